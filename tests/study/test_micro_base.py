"""Building a micro base: a real Llama, every target token seen, continued when stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laura.data.examples import Example
from laura.data.sources import load_examples
from laura.data.templates import encode_all
from laura.evals.tasks import load
from laura.micro.settings import WorldSettings
from laura.micro.targets import DOMAINS, SPLITS, forms
from laura.micro.tokenizer import ASSISTANT, END, USER, pieces, train_tokenizer
from laura.models.load import load_base
from laura.recipe.sections import Source
from laura.results.errors import ModelError
from laura.results.store import file_hash, read_lines_gz
from scripts import make_micro_base as module
from scripts.check_micro import check_card
from scripts.make_micro_base import Stage, build_micro_base

SMALL = WorldSettings(entities=8, events=8, names=8)
SHORT = (Stage(0.5, 2_000, 3e-3, "constant"),)
STAGES = (Stage(0.5, 10_000, 3e-3, "constant"), Stage(1.0, 14_000, 3e-3, "cosine"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro")
    return build_micro_base(folder / "base", folder / "work", SMALL, STAGES, "cpu")


def test_a_base_loads_like_any_model_and_its_card_fits(built: Path) -> None:
    base = load_base(str(built), device="cpu")
    assert sum(p.numel() for p in base.model.parameters()) < 3_000_000
    assert (built / "model.safetensors").stat().st_size <= 6_000_000
    card = check_card(built)
    assert card["world"]["entities"] == 8 and len(card["training_data_sha256"]) == 2
    assert base.tokenizer.eos_token == END


def test_files_are_those_the_tasks_and_sources_read(built: Path) -> None:
    data = built / "data" / "micro"
    kinds = {"facts": "arc_challenge", "events": "hellaswag", "pronouns": "winogrande"}
    for name, task in kinds.items():
        rows = read_lines_gz(data / f"{name}.jsonl.gz")
        assert [load(task).question(row, place) for place, row in enumerate(rows)]
    for domain in DOMAINS:
        for split in SPLITS:
            assert read_lines_gz(data / f"{domain}_{split}.jsonl.gz")
    assert load_examples(Source(source=str(data / "source.jsonl.gz")))


def test_every_target_token_was_read_in_pretraining(built: Path) -> None:
    tokenizer = load_base(str(built), device="cpu").tokenizer
    needed: set[int] = set()
    for domain in DOMAINS:
        for split in SPLITS:
            for row in read_lines_gz(built / "data" / "micro" / f"{domain}_{split}.jsonl.gz"):
                for text in forms(row):
                    needed.update(tokenizer(text)["input_ids"])
    read: set[int] = set()
    for file in (built.parent / "work").glob("corpus-*/tokens.bin"):
        content = file.read_bytes()
        read.update(content[i] + 256 * content[i + 1] for i in range(0, len(content), 2))
    assert not needed - read


@pytest.mark.slow
def test_a_stopped_build_goes_on_to_the_same_weights(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = module.train_runs, 0

    def dying(*positional: Any, **named: Any) -> list[str]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(*positional, **named)

    monkeypatch.setattr(module, "train_runs", dying)
    with pytest.raises(KeyboardInterrupt):
        build_micro_base(tmp_path / "base", tmp_path / "work", SMALL, STAGES, "cpu")
    assert not (tmp_path / "base").exists()
    build_micro_base(tmp_path / "base", tmp_path / "work", SMALL, STAGES, "cpu")
    for name in ("model.safetensors", "tokenizer.json", "card.json", "data/micro/facts.jsonl.gz"):
        assert file_hash(tmp_path / "base" / name) == file_hash(built / name), name


@pytest.mark.slow
def test_stages_of_another_world_or_of_other_code_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One work folder, two seeds and two worlds: each base is the one a folder of its own gives."""

    def built(name: str, work: str, settings: WorldSettings) -> str:
        build_micro_base(tmp_path / name, tmp_path / work, settings, SHORT, "cpu")
        return file_hash(tmp_path / name / "model.safetensors")

    first = built("a", "shared", SMALL)
    second = built("b", "shared", WorldSettings(seed=1, entities=8, events=8, names=8))
    # The tokenizer reads the whole world and stays as it was; the stage does not.
    monkeypatch.setattr("laura.micro.pronouns.FIRST_SCHEMAS", 40)
    third = built("c", "shared", SMALL)
    assert len({first, second, third}) == 3
    assert third == built("d", "own", SMALL)


def test_a_card_of_other_weights_is_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no card"):
        check_card(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"other")
    (tmp_path / "card.json").write_text(json.dumps(json.loads((built / "card.json").read_text())))
    with pytest.raises(ModelError, match="other weights"):
        check_card(tmp_path)


def test_the_tokenizer_takes_digits_one_by_one_and_ends_answers() -> None:
    texts = ["Mira has 17 plums. 9 + 13 = 22.\n#### 22", "def solve(xs):\n    return sum(x)\n"]
    tokenizer = train_tokenizer(texts)
    tokens = tokenizer.tokenize("12 + 345")
    assert [t for t in tokens if any(c.isdigit() for c in t)] == list("12345")
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert set("".join(pieces([text, text]))) == set(text)
    again = train_tokenizer(texts)
    assert again.get_vocab() == tokenizer.get_vocab()
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == f"{USER}a{END}{ASSISTANT}b{END}"


def test_answers_in_the_chat_form_end_with_the_end_token(built: Path) -> None:
    tokenizer = load_base(str(built), device="cpu").tokenizer
    row = read_lines_gz(built / "data" / "micro" / "math_train.jsonl.gz")[0]
    example = Example(0, (("user", row["question"]), ("assistant", row["answer"])))
    encoded = encode_all([example], tokenizer, "chat", "instruct")[0]
    assert encoded.token_ids[-1] == tokenizer.eos_token_id and encoded.supervised[-1]
    learnt = [t for t, on in zip(encoded.token_ids, encoded.supervised, strict=True) if on]
    assert tokenizer.decode(learnt) == row["answer"] + END
