"""Answers kept as they come, against an engine that is asked once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laura.engine.engine import Engine
from laura.engine.requests import GenerateRequest, ScoreRequest
from laura.evals.keeping import Keeper, partial_file
from laura.evals.runner import Material, Subject, chosen, evaluate_all, file_rows
from laura.micro.targets import rows
from laura.recipe.sections import Extra, MeasureSection
from laura.results.store import read_lines_gz
from laura.results.task_result import TaskResult, samples_file

WORDS = ["the cat", "a dog ran", "question: how many", "an apple", "the mat", "1 2 3"]
SCORES = [ScoreRequest(word, f" {other}") for word in WORDS for other in WORDS]
PROMPTS = [
    GenerateRequest(word, (), 6, temperature=1.0, seed=seed, logprobs=True)
    for word in WORDS
    for seed in range(3)
]


class Killed(Exception):
    """Ends a measurement as a kill would, between two answers."""


class Counting:
    """An engine that counts what it computes, and dies after so many answers."""

    def __init__(self, engine: Engine, dies_after: int = 10**9) -> None:
        self.engine, self.left, self.computed = engine, dies_after, 0
        self.tokenizer, self.encoder = engine.tokenizer, engine.encoder
        self.progress = engine.progress

    def _ask(self, ask: Any, requests: Any, known: Any, found: Any) -> Any:
        def counted(number: int, answer: Any) -> None:
            if self.left == 0:
                raise Killed
            self.left -= 1
            self.computed += 1
            found(number, answer)

        return ask(requests, known=known, found=counted)

    def score(self, requests: Any, *, known: Any = None, found: Any = None) -> Any:
        return self._ask(self.engine.score, requests, known, found)

    def generate(self, requests: Any, *, known: Any = None, found: Any = None) -> Any:
        return self._ask(self.engine.generate, requests, known, found)


@pytest.fixture
def engine(tiny_model: Any, tiny_tokenizer: Any) -> Engine:
    return Engine(tiny_model, tiny_tokenizer, row_tokens=60)


def keeper(engine: Any, path: Path, **identity: Any) -> Keeper:
    return Keeper(engine, {None: path}, {None: {"task": "x", "version": "1", **identity}})


def test_what_was_answered_is_not_asked_again(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.partial.jsonl"
    expected = engine.score(SCORES), engine.generate(PROMPTS)
    dying = Counting(engine, dies_after=20)
    with pytest.raises(Killed), keeper(dying, path) as kept:
        kept.score(SCORES)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 21
    # A kill in the middle of a line costs that line.
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:-9])
    going_on = Counting(engine)
    with keeper(going_on, path) as kept:
        found = kept.score(SCORES), kept.generate(PROMPTS)
    assert found == expected, "to the last bit"
    assert going_on.computed == len(SCORES) - 19 + len(PROMPTS)
    again = Counting(engine)
    with keeper(again, path) as kept:
        assert (kept.score(SCORES[::-1])[::-1], kept.generate(PROMPTS)) == expected
    assert again.computed == 0


@pytest.mark.parametrize("change", [{"version": "2"}, {"task": "y"}, {"model": "other"}])
def test_answers_to_something_else_start_anew(
    engine: Engine, tmp_path: Path, change: dict[str, str]
) -> None:
    path = tmp_path / "x.partial.jsonl"
    with keeper(Counting(engine), path) as kept:
        kept.score(SCORES)
    other = Counting(engine)
    with keeper(other, path, **change) as kept:
        kept.score(SCORES)
    assert other.computed == len(SCORES)


def material(shared_data: Path, **changes: Any) -> Material:
    section = MeasureSection(**{"limit": 6, "gsm8k_shots": 0, "gsm8k_tokens": 5, **changes})
    return Material(section, file_rows(shared_data), {})


def test_a_measurement_that_dies_anywhere_gives_the_same_files(
    engine: Engine, tmp_path: Path, shared_data: Path
) -> None:
    tasks = ["winogrande", "gsm8k"]
    whole = tmp_path / "whole"
    subjects = [Subject("tiny", lambda task: whole / f"{task}.json")]
    evaluate_all(engine, tasks, material(shared_data), subjects)
    files = sorted(path.name for path in whole.iterdir())
    assert not [name for name in files if "partial" in name]
    for dies_after in (0, 1, 7, 12, 15):
        folder = tmp_path / str(dies_after)
        subjects = [Subject("tiny", lambda task, folder=folder: folder / f"{task}.json")]
        with pytest.raises(Killed):
            evaluate_all(Counting(engine, dies_after), tasks, material(shared_data), subjects)
        evaluate_all(engine, tasks, material(shared_data), subjects)
        assert sorted(path.name for path in folder.iterdir()) == files
        for name in files:
            if not name.endswith(".seconds"):
                assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    # Killed between the result and the removal of what was kept.
    left = partial_file(folder / "gsm8k.json")
    left.write_text("{}\n")
    evaluate_all(engine, tasks, material(shared_data), subjects)
    assert not left.exists()
    assert partial_file(Path("a/gsm8k.json")) == Path("a/gsm8k.partial.jsonl")


def test_random_subsets_are_fixed_and_numbered_as_the_data(
    engine: Engine, tmp_path: Path, shared_data: Path
) -> None:
    subject = Subject("tiny", lambda task: tmp_path / f"{task}.json")
    wanted = material(shared_data, subset="random")
    evaluate_all(engine, ["winogrande", "gsm8k"], wanted, [subject])
    data = file_rows(shared_data)
    kinds = (("winogrande", "validation", "contexts"), ("gsm8k", "test", "prompt"))
    for task, split, field in kinds:
        items = TaskResult.read(tmp_path / f"{task}.json").items
        indices = [item["index"] for item in items]
        assert indices == list(chosen(len(data(task, split)), 6, "random"))
        assert indices != list(range(6))
        samples = read_lines_gz(samples_file(tmp_path / f"{task}.json"))
        for sample, index in zip(samples, indices, strict=True):
            assert sample["index"] == index
            row = data(task, split)[index]
            text = json.dumps(sample[field])
            start = row["question"] if task == "gsm8k" else row["sentence"].split("_")[0]
            assert json.dumps(start)[1:-1] in text
    assert set(chosen(100, 10, "random")) < set(chosen(100, 30, "random"))
    assert list(chosen(5, None, "random")) == list(chosen(5, 9, "random")) == list(range(5))


def test_a_killed_extra_goes_on_at_the_next_sample(engine: Engine, tmp_path: Path) -> None:
    section = MeasureSection(
        limit=3, extras={"drawn": Extra(task="micro_math", samples=5, temperature=1.0, k=[5])}
    )
    given = Material(section, lambda name, split: rows("math", "test", 9), {})

    def run(folder: Path, dies_after: int = 10**9) -> int:
        counting = Counting(engine, dies_after)
        subject = Subject("base", lambda task: folder / f"{task}.json")
        try:
            evaluate_all(counting, ["drawn", "micro_math"], given, [subject])  # type: ignore[arg-type]
        except Killed:
            assert (folder / "drawn.partial.jsonl").is_file()
        return counting.computed

    assert run(tmp_path / "whole") == 3 * 5 + 3
    assert (run(tmp_path / "killed", 7), run(tmp_path / "killed")) == (7, 3 * 5 + 3 - 7)
    for name in ("drawn.json", "drawn.samples.jsonl.gz", "micro_math.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    result = TaskResult.read(tmp_path / "whole" / "drawn.json")
    assert result.version.startswith("micro_math 1; chat; 64 new tokens; 5 samples")
    metrics = {"exact_match", "flexible_extract", "majority", "pass@1", "pass@5"}
    assert set(result.metrics) == metrics
    samples = read_lines_gz(samples_file(tmp_path / "whole" / "drawn.json"))
    assert len({row["text"] for row in samples}) > 3
    plain = TaskResult.read(tmp_path / "whole" / "micro_math.json")
    assert plain.version == "1; chat; 64 new tokens" and "samples" not in plain.items[0]


def test_rubbish_in_the_file_is_left_out(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "x.partial.jsonl"
    path.write_bytes(b"\xff\xfe not json\n[1]\n")
    counting = Counting(engine)
    with keeper(counting, path) as kept:
        kept.score(SCORES[:3])
    assert counting.computed == 3
