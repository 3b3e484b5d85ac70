"""What a study reads: training tokens on the disk, held-out documents, endless sources."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from laura.data import sources
from laura.data.corpus import Corpus
from laura.data.sources import load_examples
from laura.data.templates import encode_all
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import Source
from laura.results.errors import DataError, StoreError
from laura.study import material, opening
from laura.study.material import ExampleEncoder, prepare
from laura.study.opening import open_study
from laura.study.runs import specs_of
from tests.study.carried_out import compare

CHANGED_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)
WORDS = "the cat sat on a mat and the dog ran to it with an apple".split()


def endless_text(read: list[int]) -> Any:
    """Stands for the Hub: text without end, counted as it is read."""

    def rows(*_: Any, streaming: bool, **__: Any) -> Iterator[dict[str, Any]]:
        assert streaming, "a set of terabytes would be downloaded whole"
        chance = random.Random(1)
        while True:
            read.append(1)
            yield {"text": " ".join(chance.choices(WORDS, k=30))}

    return rows


def pretraining(recipe_text: str) -> str:
    return (
        recipe_text.replace("domain: sums", "domain: sums\nregime: pretrain")
        .replace(recipe_text.split("train: ")[1].split("\n")[0], "openwebmath")
        .replace("forgetting: [source_loss, kl]", "forgetting: [source_loss]")
    )


def test_pretraining_reads_an_endless_source_as_far_as_its_budget(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(sources, "hub_rows", endless_text(read))
    recipe = parse_recipe(pretraining(recipe_text), ["seeds=[0]"])
    summary = compare(recipe, study=tmp_path / "s")
    corpus = Corpus(next((tmp_path / "s" / "corpus").iterdir()))
    lengths = [len(item.token_ids) for item in corpus]
    further = 2 * 12 + material.RESERVE
    assert sum(lengths[:-further]) >= 1200 > sum(lengths[: -further - 1])
    assert all(point["tokens"] >= point["budget"] for point in summary["points"])
    assert len(summary["points"]) == 8
    # Held out of what was read, and not trained on: 12 documents, of which 10 are measured.
    assert {point["scores"]["validation_loss"]["n"] for point in summary["points"]} == {10}
    count = len(read)
    assert compare(recipe, study=tmp_path / "s") == summary
    assert len(read) == count, "the corpus was read again"


def test_an_endless_source_needs_a_budget_in_tokens(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "hub_rows", endless_text([]))
    text = pretraining(recipe_text).replace("tokens: [600, 1200]", "epochs: [1]")
    with pytest.raises(DataError, match="too large to load whole; give a limit"):
        compare(parse_recipe(text), study=tmp_path / "s")


def test_training_tokens_are_those_of_the_examples(
    recipe_text: str, tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(recipe_text)
    encoder = ExampleEncoder(tiny_tokenizer, "chat", "instruct")
    sections = (recipe.data, recipe.measure, recipe.budget)
    data = prepare(*sections, encoder, tmp_path, None)
    whole = encode_all(load_examples(recipe.data.train), tiny_tokenizer, "chat", "instruct")
    held_out = {document.index for document in data.documents["validation_loss"]}
    assert len(held_out) == 10
    kept = [item for item in whole if item.index not in held_out]
    assert all(item in kept for item in data.train) and len(data.train) == len(whole) - 12

    # A second call tokenises nothing; a changed file is noticed.
    def refuse(*_: Any) -> Any:
        raise AssertionError("tokenised training examples again")

    monkeypatch.setattr(material, "check_end_token", refuse)
    assert prepare(*sections, encoder, tmp_path, None).fingerprint == data.fingerprint
    source = Path(recipe.data.train.source)
    copy = tmp_path / "copy.jsonl"
    copy.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    section = recipe.data.model_copy(
        update={"train": recipe.data.train.model_copy(update={"source": str(copy)})}
    )
    with pytest.raises(AssertionError, match="again"):
        prepare(section, recipe.measure, recipe.budget, encoder, tmp_path, None)


def test_a_refused_command_leaves_the_corpus_as_it_was(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(recipe_text, ["seeds=[0]"])
    with open_study(recipe, tmp_path, None, "cpu") as session:
        folder = session.data.corpus_folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = parse_recipe(recipe_text, ["seeds=[0]", "data.train.limit=60"])
    with (
        pytest.raises(StoreError, match="another data"),
        open_study(other, tmp_path, None, "cpu"),
    ):
        pass
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert len(list(folder.parent.iterdir())) == 2
    # The right recipe goes on, and clears away what the wrong one left.
    with open_study(recipe, tmp_path, None, "cpu") as session:
        assert [path.name for path in session.store.corpora.iterdir()] == [folder.name]
    # Another base, tokenizer or measure is told before anything is read.
    monkeypatch.setattr(opening, "prepare", None)
    other = parse_recipe(recipe_text, ["seeds=[0]", "measure.limit=5"])
    with (
        pytest.raises(StoreError, match="another measure"),
        open_study(other, tmp_path, None, "cpu"),
    ):
        pass


def test_another_chat_template_makes_other_runs(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(recipe_text, ["seeds=[0]"])
    with open_study(recipe, tmp_path / "a", None, "cpu") as session:
        spec = specs_of(session.recipe, next(iter(recipe.arms)), 1e-3, 0)[0]
        before = session.run_store(spec).folder.name
        tokenizer = session.bench.base.tokenizer
        monkeypatch.setattr(session.bench.base.tokenizer, "chat_template", CHANGED_TEMPLATE)
        encoder = ExampleEncoder(tokenizer, recipe.data.template, recipe.regime)
        sections = (recipe.data, recipe.measure, recipe.budget)
        session.data = prepare(*sections, encoder, tmp_path / "b", None)
        assert session.run_store(spec).folder.name != before


def test_small_sources_are_read_before_anything_is_tokenised(
    recipe_text: str, tmp_path: Path, tiny_tokenizer: Any
) -> None:
    recipe = parse_recipe(recipe_text)
    missing = Source(source=str(tmp_path / "missing.jsonl"))
    section = recipe.data.model_copy(update={"test": missing})
    encoder = ExampleEncoder(tiny_tokenizer, "chat", "instruct")
    with pytest.raises(DataError, match="does not exist"):
        prepare(section, recipe.measure, recipe.budget, encoder, tmp_path / "corpora", None)
    assert not (tmp_path / "corpora").exists()
