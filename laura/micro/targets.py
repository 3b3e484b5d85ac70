"""Rows of the two target domains: disjoint splits, two forms, difficulty as a parameter.

What is told apart is the problem, not its wording: a problem falls into one split
by its key, so none is both learnt and asked.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from laura.micro.arithmetic import Problem, problems
from laura.micro.functions import NAME, Function, functions
from laura.micro.settings import WorldSettings
from laura.results.errors import DataError

Domain = Literal["math", "code"]
DOMAINS: tuple[Domain, ...] = ("math", "code")
# Of a hundred problems, how many fall into each split.
SPLITS = {"train": 70, "validation": 10, "test": 20}


@dataclass(frozen=True)
class Difficulty:
    """How hard a domain's problems are.

    Attributes:
        steps: Steps of a word problem (1 to 4), changes of a function (1 or 2).
        largest: Largest number (math 3 to 99, code 2 to 9).
    """

    steps: int
    largest: int


# Settled on full finetuning alone, before LoRA was looked at (see LOG.md).
DEFAULT = {"math": Difficulty(steps=3, largest=9), "code": Difficulty(steps=1, largest=9)}


def rows(
    domain: Domain,
    split: str,
    count: int,
    settings: WorldSettings | None = None,
    difficulty: Difficulty | None = None,
) -> list[dict[str, Any]]:
    """Different problems of one split.

    Args:
        domain: `math` (rows as GSM8K's) or `code` (rows as HumanEval's).
        split: train, validation or test.
        count: How many.
        settings: The world's; its seed draws and words the problems.
        difficulty: Null for the domain's default.

    Raises:
        DataError: no such domain or split, a difficulty out of range, or fewer
            problems of this difficulty than `count`.
    """
    if domain not in DOMAINS:
        raise DataError(f"there is no micro domain {domain!r}; there are {', '.join(DOMAINS)}")
    if split not in SPLITS:
        raise DataError(f"micro {domain} has no split {split!r}; it has {', '.join(SPLITS)}")
    how = difficulty or DEFAULT[domain]
    every = problems if domain == "math" else functions
    found: list[Problem | Function] = [
        one for one in every(how.steps, how.largest) if _split(domain, one.key) == split
    ]
    if not 0 < count <= len(found):
        raise DataError(
            f"micro {domain} with {how} has {len(found)} different {split} problems, "
            f"{count} are wanted; ask for fewer or raise steps or largest"
        )
    chance = (settings or WorldSettings()).generator(f"{domain} {split}")
    return [
        _row(domain, split, n, one, chance) for n, one in enumerate(chance.sample(found, count))
    ]


def running_text(row: dict[str, Any]) -> str:
    """A row as it stands in a text of its domain, for continued pretraining."""
    if "question" in row:
        return f"{row['question']}\n{row['answer']}"
    return str(row["prompt"] + row["canonical_solution"])


def prompt_and_completion(row: dict[str, Any]) -> dict[str, str]:
    """A row as a pair, for instruction finetuning."""
    if "question" in row:
        return {"prompt": row["question"], "completion": row["answer"]}
    return {"prompt": row["prompt"], "completion": row["canonical_solution"]}


def forms(row: dict[str, Any]) -> list[str]:
    """Every text a row is tokenised as: running text, and each side of the pair."""
    return [running_text(row), *prompt_and_completion(row).values()]


def _split(domain: str, key: str) -> str:
    """The split a problem belongs to, whatever the seed and the count."""
    place = int(hashlib.sha256(f"{domain} {key}".encode()).hexdigest(), 16) % 100
    for split, size in SPLITS.items():
        if place < size:
            return split
        place -= size
    raise AssertionError("the splits share out a hundred")


def _row(domain: str, split: str, number: int, one: Any, chance: Random) -> dict[str, Any]:
    if domain == "math":
        question, answer = one.tell(chance)
        return {"question": question, "answer": answer}
    return {
        "task_id": f"micro-code/{split}/{number}",
        "prompt": one.prompt,
        "entry_point": NAME,
        "canonical_solution": one.solution,
        "test": one.tests(chance),
    }
