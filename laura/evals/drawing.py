"""Several answers to one item: how they are drawn, and what is told of them. No torch.

The item stays the unit: its share of right answers is its value (pass@1), and the
standard error is over items, as in `statistics.clustered_mean`. pass@k is the unbiased
estimate from the item's own answers (`statistics.pass_at_k`).

Source: Chen et al. 2021, arXiv:2107.03374.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from laura.engine.requests import GenerateRequest
from laura.recipe.measure import pass_names
from laura.recipe.sections import Extra
from laura.results.statistics import pass_at_k
from laura.results.task_result import Item


def draws(
    request: GenerateRequest, task: str, index: int, extra: Extra | None
) -> tuple[GenerateRequest, ...]:
    """The requests of one item: one greedy answer, or as many as an extra wants."""
    if extra is None:
        return (request,)
    return sampled(request, task, index, extra.samples, extra.temperature, extra.top_p)


def sampled(
    request: GenerateRequest, task: str, index: int, samples: int, temperature: float, top_p: float
) -> tuple[GenerateRequest, ...]:
    """One request a sample.

    Seeds come from the task, the row and the sample's number alone: every model
    draws with the same ones, whatever else is measured.
    """
    drawn = replace(request, temperature=temperature, top_p=top_p)
    return tuple(replace(drawn, seed=seed(task, index, number)) for number in range(samples))


def seed(task: str, index: int, sample: int) -> int:
    """Seed of an item's sample: 48 bits of the SHA-256 of `TASK/ROW/SAMPLE`."""
    digest = hashlib.sha256(f"{task}/{index}/{sample}".encode()).digest()
    return int.from_bytes(digest[:6])


def words(extra: Extra | None) -> str:
    """How answers are drawn, to be added to a result's version; nothing for one greedy answer."""
    if extra is None:
        return ""
    return (
        f"; {extra.samples} samples at temperature {extra.temperature:g}, "
        f"top_p {extra.top_p:g}; {', '.join(pass_names(extra.k))}"
    )


def drawn_item(index: int, passed: Sequence[bool], k: Sequence[int], tokens: int) -> Item:
    """What is told of several answers to one item.

    Args:
        index: Row number in the data file.
        passed: Whether each answer is right.
        k: The pass@k that are told beside pass@1.
        tokens: New tokens of all answers.

    Returns:
        {"index", "samples" (n), "passes" (c), "correct" (all are right), "pass@1"
        (c / n), further "pass@k", "tokens"}.
    """
    n, passes = len(passed), sum(passed)
    return {
        "index": index,
        "samples": n,
        "passes": passes,
        "correct": passes == n,
        **{f"pass@{one}": pass_at_k(n, passes, one) for one in sorted({1, *k})},
        "tokens": tokens,
    }
