"""Several answers to one item: how they are asked, graded and counted; one is as before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from laura.engine.engine import Engine
from laura.engine.requests import GenerateAnswer, GenerateRequest
from laura.evals import drawing
from laura.evals.asking import Ask
from laura.evals.kinds import Material
from laura.evals.runner import evaluate
from laura.evals.tasks import gsm8k, load, micro_code, micro_math
from laura.micro.targets import rows
from laura.recipe.sections import Extra, MeasureSection
from laura.results import store
from laura.results.task_result import TaskResult, samples_file

EXTRA = Extra(task="micro_code", samples=4, temperature=0.7, top_p=0.9, k=[1, 2, 4])


def ask(extra: Extra | None) -> Ask:
    data = [{"question": "1 + 1?", "answer": "2\n#### 2"}] * 8
    return Ask(MeasureSection(gsm8k_shots=1), lambda split: data, lambda: str, extra)


@pytest.mark.parametrize("name", ["gsm8k", "micro_math", "micro_code"])
def test_an_extra_asks_the_same_more_often(name: str) -> None:
    data = rows("code" if name == "micro_code" else "math", "test", 3)
    version, plain = load(name).prepare(data, ask(None))
    drawn_version, drawn = load(name).prepare(data, ask(EXTRA))
    words = "; 4 samples at temperature 0.7, top_p 0.9; pass@1, pass@2, pass@4"
    assert drawn_version == version + words
    for one, several in zip(plain, drawn, strict=True):
        [greedy] = one.requests
        assert (greedy.temperature, greedy.top_p, greedy.seed) == (0.0, 1.0, 0)
        assert len(several.requests) == 4
        for number, request in enumerate(several.requests):
            assert request.seed == drawing.seed(name, one.index, number)
            assert (request.temperature, request.top_p) == (0.7, 0.9)
            assert request.prompt == greedy.prompt and request.stop == greedy.stop
            assert request.max_new_tokens == greedy.max_new_tokens


def answers(texts: Sequence[str]) -> list[GenerateAnswer]:
    return [GenerateAnswer(text, 3, "end") for text in texts]


@pytest.mark.parametrize(
    ("texts", "exact", "flexible", "majority"),
    [
        (["#### 5", "#### 1,000", "#### 1000", "so 1000"], 0.5, 0.75, 1),
        (["#### 5", "#### 5", "#### 1000", "1000"], 0.25, 0.5, 0),
        (["#### 1000", "#### 5", "#### 5", "#### 1000"], 0.5, 0.5, 1),  # the first of equals
        (["what", "what", "what", "#### 1000"], 0.25, 0.25, 0),  # no answer is an answer too
    ],
)
def test_numbers_are_graded_by_shares_and_by_majority(
    texts: list[str], exact: float, flexible: float, majority: int
) -> None:
    data = [{"question": "how many?", "answer": "it is\n#### 1,000"}]
    _, questions = micro_math.prepare(data, ask(EXTRA))
    [(item, samples)] = micro_math.grades(questions, [answers(texts)])
    assert (item["exact_match"], item["pass@1"]) == (exact, exact)
    assert (item["flexible_extract"], item["majority"]) == (flexible, majority)
    assert (item["samples"], item["passes"], item["correct"]) == (4, 4 * exact, False)
    assert item["tokens"] == 12 and item["pass@4"] == 1
    singles = [gsm8k.grade(questions[0], answer) for answer in answers(texts)]
    assert item["passes"] == sum(one["exact_match"] for one, _ in singles)
    assert [sample["sample"] for sample in samples] == [0, 1, 2, 3]
    assert [sample["passed"] for sample in samples] == [one["correct"] for one, _ in singles]
    assert [sample["strict"] for sample in samples] == [sample["strict"] for _, sample in singles]
    assert [sample["answer"] for sample in samples] == [
        sample["strict"].replace(",", "") for sample in samples
    ]


def test_programs_pass_one_by_one() -> None:
    data = rows("code", "test", 2)
    _, questions = micro_code.prepare(data, ask(EXTRA))
    right = data[0]["canonical_solution"]
    own = [right, "\n    return 12345\n", right, "\n    return 0\n"]
    found = micro_code.grades(questions, [answers(own), answers(["x"] * 4)])
    (item, samples), (other, _) = found
    assert [sample["passed"] for sample in samples] == [True, False, True, False]
    assert (item["samples"], item["passes"], item["pass@1"]) == (4, 2, 0.5)
    assert item["pass@2"] == pytest.approx(1 - 1 / 6)  # one pair of six holds none that passes
    assert "12345" in samples[1]["fault"] and samples[0]["fault"] == ""
    assert (other["passes"], other["pass@4"]) == (0, 0)


class Counting:
    """An engine that counts what it generates, and can be stopped."""

    def __init__(self, engine: Engine, most: int | None = None) -> None:
        self._engine, self.most, self.asked = engine, most, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(
        self, requests: Sequence[GenerateRequest], known: Any = None, found: Any = None
    ) -> list[GenerateAnswer]:
        def hear(number: int, answer: GenerateAnswer) -> None:
            self.asked += 1
            found(number, answer)
            if self.most is not None and self.asked >= self.most:
                raise KeyboardInterrupt

        return self._engine.generate(requests, known=known, found=hear)


def test_a_killed_extra_goes_on_at_the_next_sample(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    section = MeasureSection(
        limit=3, extras={"drawn": Extra(task="micro_math", samples=5, temperature=1.0, k=[5])}
    )
    material = Material(section, lambda name, split: rows("math", "test", 9), {})

    def run(folder: Path, most: int | None = None) -> tuple[int, TaskResult]:
        engine = Counting(Engine(tiny_model, tiny_tokenizer), most)
        try:
            results = evaluate(
                engine,  # type: ignore[arg-type]
                ["drawn", "micro_math"],
                material,
                model_name="base",
                out=lambda task: folder / f"{task}.json",
            )
        except KeyboardInterrupt:
            assert (folder / "drawn.partial.jsonl").is_file()
            return engine.asked, TaskResult("", "", "", 0, {}, [])
        return engine.asked, results["drawn"]

    whole, result = run(tmp_path / "whole")
    assert whole == 3 * 5 + 3 and result.task == "drawn"
    assert result.version.startswith("micro_math 1; chat; 64 new tokens; 5 samples")
    assert {"exact_match", "flexible_extract", "majority", "pass@1", "pass@5"} == set(
        result.metrics
    )
    first, _ = run(tmp_path / "killed", most=7)
    second, again = run(tmp_path / "killed")
    assert first == 7 and second == whole - 7 and again == result
    files = [samples_file(tmp_path / name / "drawn.json") for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len({row["text"] for row in store.read_lines_gz(files[0])}) > 3
    plain = TaskResult.read(tmp_path / "whole" / "micro_math.json")
    assert plain.version == "1; chat; 64 new tokens" and "samples" not in plain.items[0]
