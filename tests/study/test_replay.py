"""Replay in a study: run IDs, run.json, what the base writes, killed at any moment, refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from laura.data import sources
from laura.evals import keeping
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import Recipe
from laura.results.errors import CheckpointError, DataError
from laura.results.progress import Silent
from laura.results.store import kept_rows as real_kept_rows
from laura.results.store import read_json, read_lines_gz
from laura.study.opening import join_study, open_study
from laura.study.runs import RunSpec, specs_of
from laura.study.session import Session
from tests.study.carried_out import compare, judgement
from tests.study.test_material import endless_text

TEXTS = [f"a dog number {i} ran to the mat and sat on an apple" for i in range(30)]
CHATS = [{"prompt": f"what is {i} times 2?", "completion": f"{2 * i}"} for i in range(30)]


class Stopper(Silent):
    """Raises KeyboardInterrupt at the n-th advance of bars of one title, as Ctrl-C would."""

    def __init__(self, title: str = "", left: int = 0) -> None:
        self.title, self.left = title, left
        self.titles: dict[str, float] = {}  # and how much is to be done
        self.said: list[str] = []

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Any]:
        self.titles[title] = total
        stopper = self

        class Bar:
            def advance(self, amount: float = 1.0) -> None:
                if stopper.title and title.startswith(stopper.title):
                    stopper.left -= 1
                    if stopper.left == 0:
                        raise KeyboardInterrupt

            def note(self, text: str) -> None:
                pass

        yield Bar()

    def say(self, text: str) -> None:
        self.said.append(text)


def write(path: Path, rows: list[Any]) -> Path:
    lines = (json.dumps(row if isinstance(row, dict) else {"text": row}) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def replayed(recipe_text: str, tmp_path: Path) -> Any:
    """Makes a recipe whose LoRA arm replays these sources."""

    def make(*entries: Any, fraction: float = 0.3, **changes: Any) -> Recipe:
        listed = [json.dumps({"source": str(e)} if isinstance(e, Path) else e) for e in entries]
        lines = "".join(f"\n    - {entry}" for entry in listed)
        text = recipe_text.replace("rank: 4", f"rank: 4, replay: {fraction}")
        text = text.replace("  validation_rows: 12", f"  validation_rows: 12\n  replay:{lines}")
        return parse_recipe(text, ["seeds=[0]", *(f"{k}={v}" for k, v in changes.items())])

    return make


@contextmanager
def opened(recipe: Recipe, folder: Path, progress: Any = None) -> Iterator[Session]:
    with open_study(recipe, folder, None, "cpu", progress or Silent()) as session:
        yield session


def spec(session: Session, arm: str = "lora") -> RunSpec:
    return specs_of(session.recipe, arm, 1e-2, 0)[-1]


def run_ids(recipe: Recipe, folder: Path) -> dict[str, str]:
    with opened(recipe, folder) as session:
        return {arm: session.run_store(spec(session, arm)).folder.name for arm in recipe.arms}


def test_recipes_that_differ_only_in_replay_make_other_runs(
    replayed: Any, recipe_text: str, tmp_path: Path
) -> None:
    texts, chats = write(tmp_path / "t.jsonl", TEXTS), write(tmp_path / "c.jsonl", CHATS)
    plain = run_ids(parse_recipe(recipe_text, ["seeds=[0]"]), tmp_path / "plain")
    recipes = [
        replayed(texts),
        replayed(texts, fraction=0.2),
        replayed(texts, chats),
        replayed(texts, {"source": str(chats), "weight": 2}),
        replayed({"source": str(texts), "limit": 20}),
    ]
    found = [run_ids(recipe, tmp_path / str(i)) for i, recipe in enumerate(recipes)]
    # The same rows elsewhere are the same replay; changed rows are not.
    copy = write(tmp_path / "copy.jsonl", TEXTS)
    assert run_ids(replayed(copy), tmp_path / "again") == found[0]
    write(texts, [*TEXTS[:-1], "another end"])
    found.append(run_ids(replayed(texts), tmp_path / "0"))
    assert len({ids["lora"] for ids in found} | {plain["lora"]}) == len(found) + 1
    # An arm without replay is the run it was.
    assert {ids["full"] for ids in found} == {plain["full"]}


def test_the_mix_is_told_in_run_json_and_summary(replayed: Any, tmp_path: Path) -> None:
    texts = write(tmp_path / "t.jsonl", TEXTS[:3])
    chats = write(tmp_path / "c.jsonl", CHATS)
    recipe = replayed(texts, {"source": str(chats), "weight": 2})
    summary = compare(recipe, study=tmp_path / "s")
    for point in summary["points"]:
        record = read_json(tmp_path / "s" / "runs" / point["run"] / "run.json")
        if point["arm"] == "full":
            assert point["mix"] == {} and "replay" not in record["identity"]
            continue
        mix = point["mix"]
        assert record["identity"]["replay"]["fraction"] == 0.3
        assert mix == next(m for m in record["points"] if m["step"] == point["step"])["mix"]
        assert mix["target_tokens"] + mix["replay_tokens"] == point["tokens"]
        assert abs(mix["replay_tokens"] - 0.3 * point["tokens"]) <= 32
        target, text, chat = mix["sources"]
        assert target["source"] == "target" and [text["source"], chat["source"]] == [
            str(texts),
            str(chats),
        ]
        # Of a text all but the first token is learnt, of a conversation the answer.
        assert text["supervised_tokens"] == text["tokens"] - text["documents"]
        assert chat["supervised_tokens"] < chat["tokens"] / 2
    assert text["repeats"] >= 1
    assert any("began it anew" in caveat for caveat in judgement(tmp_path / "s").caveats)
    settings = {arm["name"]: arm["settings"].get("replay") for arm in summary["arms"]}
    assert settings == {"full": None, "lora": 0.3}


def test_stopped_anywhere_a_run_with_replay_ends_with_the_same_weights(
    replayed: Any, tmp_path: Path
) -> None:
    entries = (write(tmp_path / "t.jsonl", TEXTS), write(tmp_path / "c.jsonl", CHATS))
    recipe = replayed(*entries)
    with opened(recipe, tmp_path / "whole") as session:
        assert session.carry_out([spec(session)]) == ["done"]
        whole = session.run_store(spec(session))
    for left in (3, 4):
        stopper = Stopper("training", left)
        with pytest.raises(KeyboardInterrupt), opened(recipe, tmp_path / "cut", stopper) as session:
            session.carry_out([spec(session)])
    with opened(recipe, tmp_path / "cut") as session:
        session.carry_out([spec(session)])
        cut = session.run_store(spec(session))
    assert cut.folder.name == whole.folder.name
    keep = ("step", "loss", "tokens", "supervised_tokens", "learning_rate")
    tables = [[{k: row[k] for k in keep} for row in run.metrics()] for run in (whole, cut)]
    assert tables[0] == tables[1] and len(tables[0]) > 6
    [checkpoint] = (whole.folder / "checkpoints").iterdir()
    file = Path("checkpoints") / checkpoint.name / "adapter_model.safetensors"
    one, other = load_file(whole.folder / file), load_file(cut.folder / file)
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_source_too_small_is_refused_before_training_where_wanted(
    replayed: Any, tmp_path: Path
) -> None:
    texts = write(tmp_path / "t.jsonl", TEXTS[:3])
    recipe = replayed(texts, **{"data.replay_exhausted": "error"})
    with pytest.raises(DataError, match=r"data\.replay\.0 .*t\.jsonl.* needs \d+ of it"):
        compare(recipe, study=tmp_path / "s")
    assert not (tmp_path / "s" / "runs").exists()


@pytest.mark.parametrize("name", ["source_text", "test", "validation"])
def test_what_is_measured_on_is_never_replayed(
    replayed: Any, recipe_text: str, tmp_path: Path, name: str
) -> None:
    recipe = parse_recipe(recipe_text)
    if name == "validation":
        # Rows held out of train; which ones is known only once it is read.
        rows = Path(recipe.data.train.source)
    else:
        rows = Path(getattr(recipe.data, name).source)
    known = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    if name == "source_text":
        known = [{"text": known[3]["text"].upper() + "  "}]  # told by content, not by spelling
    mine = write(tmp_path / "mine.jsonl", [*TEXTS[:4], *known])
    count = {"source_text": 1, "test": 34, "validation": 12}[name]
    with pytest.raises(
        DataError, match=rf"data\.replay\.0 holds {count} rows .*\(data\.{name}\).*not be learnt"
    ):
        compare(replayed(mine), study=tmp_path / "s")
    samples = {"source": "base_samples", "count": 40, "tokens": 4, "prompts": str(mine)}
    if name == "source_text":
        with pytest.raises(DataError, match=r"data\.replay\.0\.prompts holds 1 rows"):
            compare(replayed(samples), study=tmp_path / "s")


def test_faults_in_a_source_name_the_source(replayed: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    good = write(tmp_path / "t.jsonl", TEXTS)
    for entry, words in (
        (tmp_path / "empty.jsonl", "has no rows"),
        (tmp_path / "missing.jsonl", "does not exist"),
        (
            write(tmp_path / "x.jsonl", [{"messages": [{"role": "user", "content": "a"}]}]),
            "x.jsonl",
        ),
    ):
        with pytest.raises(DataError, match=rf"data\.replay\.1: .*{words}"):
            compare(replayed(good, entry), study=tmp_path / "s")


def test_an_endless_source_is_read_as_far_as_the_largest_share_needs(
    replayed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "hub_rows", endless_text([]))
    recipe = replayed({"source": "openwebmath"}, **{"data.replay_exhausted": "error"})
    with opened(recipe, tmp_path / "s") as session:
        assert session.carry_out([spec(session)]) == ["done"]
        [part] = session.replay.parts
        assert 0.3 * 1200 <= sum(len(item.token_ids) for item in part.encoded) < 20_000
    epochs = replayed(
        {"source": "openwebmath"}, **{"budget.tokens": "null", "budget.epochs": "[1]"}
    )
    with pytest.raises(DataError, match=r"data\.replay\.0: openwebmath is too large"):
        compare(epochs, study=tmp_path / "e")


def interrupted_after(left: int) -> Any:
    """`kept_rows`, with Ctrl-C after so many rows."""

    @contextmanager
    def kept_rows(*where: Any) -> Iterator[Any]:
        with real_kept_rows(*where) as (rows, keep):
            written = itertools.count(1)

            def kept(row: dict[str, Any]) -> None:
                keep(row)
                if next(written) == left:
                    raise KeyboardInterrupt

            yield rows, kept

    return kept_rows


SAMPLED = {"source": "base_samples", "count": 12, "tokens": 10, "temperature": 0.8}


def samples_of(folder: Path) -> Path:
    [file] = folder.glob("replay/samples/*/samples.jsonl.gz")
    return file


def test_the_base_writes_once_and_always_the_same(
    replayed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replayed(SAMPLED)
    with opened(recipe, tmp_path / "one", first := Stopper()) as session:
        session.carry_out([spec(session)])
        before = session.run_store(spec(session)).folder.name
    assert "generating" in first.titles
    rows = read_lines_gz(samples_of(tmp_path / "one"))
    assert len(rows) == 12 and len({row["text"] for row in rows}) > 6
    # The same command, and a worker process, read what stands there.
    again = Stopper()
    with opened(recipe, tmp_path / "one", again) as session:
        assert session.run_store(spec(session)).folder.name == before
        worker = join_study(recipe, tmp_path / "one", None, "cpu", again)
        assert worker.run_store(spec(worker)).folder.name == before
    assert "generating" not in again.titles and "tokenising" not in again.titles
    # Stopped while it writes, in a folder of its own: the rest is drawn, to the same bytes.
    for left in (4, 2):
        with (
            monkeypatch.context() as patch,
            pytest.raises(KeyboardInterrupt),
        ):
            patch.setattr(keeping, "kept_rows", interrupted_after(left))
            with opened(recipe, tmp_path / "two"):
                pass
    [partial] = (tmp_path / "two" / "replay" / "samples").glob("*.partial.jsonl")
    kept = len(partial.read_text(encoding="utf-8").splitlines()) - 1
    assert kept == 6
    with opened(recipe, tmp_path / "two", last := Stopper()) as session:
        assert session.run_store(spec(session)).folder.name == before
    assert last.titles["generating"] == 12 - kept
    assert samples_of(tmp_path / "two").read_bytes() == samples_of(tmp_path / "one").read_bytes()
    assert not list((tmp_path / "two").rglob("*.partial.jsonl"))


def test_samples_equal_the_engines_answers_and_another_setting_draws_others(
    replayed: Any, tmp_path: Path
) -> None:
    from laura.engine.engine import Engine
    from laura.engine.requests import GenerateRequest

    with opened(replayed(SAMPLED), tmp_path / "a") as session:
        engine = Engine(session.bench.base.model, session.bench.base.tokenizer)
        start = session.bench.base.tokenizer.eos_token  # the tiny tokenizer has no begin token
        requests = [GenerateRequest(start, (), 10, 0.8, seed=i) for i in range(12)]
        answers = engine.generate(requests)
    rows = read_lines_gz(samples_of(tmp_path / "a"))
    assert [row["text"] for row in rows] == [answer.text for answer in answers]
    assert [row["finish"] for row in rows] == [answer.finish for answer in answers]
    with opened(replayed({**SAMPLED, "temperature": 1.2}), tmp_path / "b"):
        assert read_lines_gz(samples_of(tmp_path / "b")) != rows


def test_changed_samples_are_refused(replayed: Any, tmp_path: Path) -> None:
    recipe = replayed(SAMPLED)
    with opened(recipe, tmp_path / "s"):
        file = samples_of(tmp_path / "s")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with (
        pytest.raises(CheckpointError, match=r"SHA-256.*give the same command again"),
        opened(recipe, tmp_path / "s"),
    ):
        pass


def test_texts_and_questions_can_be_continued(replayed: Any, tmp_path: Path) -> None:
    chats = [{"prompt": f"how many is {i}?", "completion": f"{i}"} for i in range(3)]
    prompts = write(tmp_path / "p.jsonl", [*TEXTS[:3], *chats])
    entry = {**SAMPLED, "prompts": str(prompts), "prompt_tokens": 5}
    with opened(replayed(entry), tmp_path / "s") as session:
        tokenizer = session.bench.base.tokenizer
        [part] = session.replay.parts
        encoded = list(part.encoded)
    rows = read_lines_gz(samples_of(tmp_path / "s"))
    assert [row["index"] for row in rows] == list(range(12))
    ends = {tokenizer.eos_token_id}
    cut = {row["index"] for row in rows if row["finish"] == "length"}
    assert cut and len(encoded) >= 10
    for item in encoded:
        row = rows[item.index]
        learnt = [t for t, on in zip(item.token_ids, item.supervised, strict=True) if on]
        assert (learnt[-1] in ends) == (item.index not in cut), "what was cut off does not end"
        if "text" in row:
            beginning = tokenizer(TEXTS[item.index % 6], add_special_tokens=False)["input_ids"][:5]
            assert row["text"].startswith(tokenizer.decode(beginning))
            assert all(item.supervised[1:])
        else:
            question = chats[item.index % 6 - 3]["prompt"]
            assert row["messages"][0] == {"role": "user", "content": question}
            asked = tokenizer.apply_chat_template(
                row["messages"][:1], tokenize=True, add_generation_prompt=True, return_dict=False
            )
            assert item.token_ids[: len(asked)] == asked
            assert not any(item.supervised[: len(asked)]) and learnt


def test_texts_the_base_wrote_that_are_measured_on_are_left_out(
    replayed: Any, tmp_path: Path
) -> None:
    with opened(replayed(SAMPLED), tmp_path / "a"):
        written = [row["text"] for row in read_lines_gz(samples_of(tmp_path / "a"))]
    measured = write(tmp_path / "measured.jsonl", [*TEXTS, *written[:2]])
    recipe = replayed(SAMPLED, **{"data.source_text": str(measured)})
    with opened(recipe, tmp_path / "b", listener := Stopper()) as session:
        [part] = session.replay.parts
        known = {" ".join(text.lower().split()) for text in written[:2]}
        kept = {item.index for item in part.encoded}
        alike = {i for i, t in enumerate(written) if " ".join(t.lower().split()) in known}
        assert alike and not kept & alike
    assert any(f"{len(alike)} are measured on" in text for text in listener.said)
