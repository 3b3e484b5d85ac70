"""The micro target domains: right answers, disjoint splits, difficulty that means something."""

from __future__ import annotations

import re
from typing import Any

import pytest

from laura.evals.tasks import load
from laura.micro.arithmetic import problems
from laura.micro.functions import functions
from laura.micro.settings import WorldSettings
from laura.micro.targets import (
    DEFAULT,
    DOMAINS,
    SPLITS,
    Difficulty,
    prompt_and_completion,
    rows,
    running_text,
)
from laura.results.errors import DataError

TARGET_ITEMS = 625  # standard error 0.02 at one half


def worked(answer: str) -> int:
    """What the worked answer comes to, computed from its first number and its signs."""
    parts = re.findall(r"(\d+) ([+*-]) (\d+) = (\d+)\.", answer)
    now = int(parts[0][0])
    for before, sign, amount, after in parts:
        assert int(before) == now
        now = {"+": now + int(amount), "-": now - int(amount), "*": now * int(amount)}[sign]
        assert int(after) == now
    return now


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_math_answers_are_right_and_in_gsm8ks_form(steps: int) -> None:
    made = rows("math", "test", 90, difficulty=Difficulty(steps, 30))
    gsm8k = load("gsm8k")
    for row in made:
        assert gsm8k.extract_strict(row["answer"]) == str(worked(row["answer"]))
        assert row["answer"].count("=") == steps
        start = int(re.findall(r"\d+", row["question"])[0])
        assert row["answer"].startswith(f"{start} ")


def run(row: dict[str, Any], solution: str) -> None:
    """Execute one of our own solutions with its tests: Python is the independent judge."""
    space: dict[str, Any] = {}
    exec(row["prompt"] + solution + "\n" + row["test"], space)
    space["check"](space[row["entry_point"]])


@pytest.mark.parametrize("changes", [1, 2])
def test_code_solutions_pass_their_tests_and_others_do_not(changes: int) -> None:
    made = rows("code", "test", 150, difficulty=Difficulty(changes, 6))
    for row in made:
        assert set(row) == {"task_id", "prompt", "entry_point", "canonical_solution", "test"}
        run(row, row["canonical_solution"])
        with pytest.raises(AssertionError):
            run(row, "\n    return None\n")
    wrong = sum(
        _passes(row, made[place - 1]["canonical_solution"]) for place, row in enumerate(made)
    )
    assert wrong <= 0.1 * len(made), "another function's body passes only where both do the same"


def _passes(row: dict[str, Any], solution: str) -> bool:
    try:
        run(row, solution)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("domain", DOMAINS)
def test_splits_are_disjoint_large_enough_and_the_same_for_every_count(domain: Any) -> None:
    prompts: dict[str, set[str]] = {}
    for split in SPLITS:
        count = TARGET_ITEMS if split == "test" else 300
        made = rows(domain, split, count)
        assert len(made) == count
        prompts[split] = {prompt_and_completion(row)["completion"] for row in made}
    if domain == "code":  # a solution says all of a function; two sums may read alike
        assert not prompts["train"] & prompts["test"]
        assert not prompts["validation"] & (prompts["train"] | prompts["test"])
    assert rows(domain, "test", 20) == rows(domain, "test", 20)
    assert rows(domain, "test", 20) != rows(domain, "test", 20, WorldSettings(seed=1))


def test_a_problem_never_changes_its_split() -> None:
    keys = [one.key for one in problems(2, 20)]
    assert len(set(keys)) == len(keys)
    code = [one.key for one in functions(1, 9)]
    assert len(set(code)) == len(code)
    few = {row["question"].split("?")[0] for row in rows("math", "test", 5)}
    assert len(few) == 5


def test_running_text_holds_question_and_answer() -> None:
    math, code = rows("math", "train", 1)[0], rows("code", "train", 1)[0]
    assert running_text(math) == f"{math['question']}\n{math['answer']}"
    compile(running_text(code), "code", "exec")


def test_the_default_difficulties_have_room_for_training() -> None:
    for domain in DOMAINS:
        assert len(rows(domain, "train", 900)) == 900, DEFAULT[domain]


@pytest.mark.parametrize(
    ("domain", "split", "count", "difficulty", "told"),
    [
        ("art", "train", 5, None, "no micro domain 'art'.*math, code"),
        ("math", "dev", 5, None, "no split 'dev'.*train, validation, test"),
        ("math", "train", 5, Difficulty(5, 20), "steps must be 1 to 4, came 5"),
        ("code", "train", 5, Difficulty(1, 10), "largest must be 2 to 9, came 10"),
        ("math", "test", 10_000_000, Difficulty(1, 3), "different test problems.*ask for fewer"),
        ("code", "test", 0, None, "0 are wanted"),
    ],
)
def test_what_cannot_be_made_is_told(
    domain: Any, split: str, count: int, difficulty: Difficulty | None, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        rows(domain, split, count, difficulty=difficulty)
