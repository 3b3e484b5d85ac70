"""Studies with a known truth, in a line each: a thin layer over `simulated.SimulatedWorld`.

A truth is what an arm scores at the best place of its list and the largest budget: its
learning score, and its source score. By default three rates, of which the middle one is
surely best by validation, and learning and forgetting that grow with the rate and budget.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from laura.recipe.reading import parse_recipe
from laura.recipe.sections import Recipe
from laura.results.schema import Claim
from laura.study.claims.judgement import judge_claims
from laura.study.claims.settings import Setting
from laura.study.claims.simulated import SimulatedWorld, simulate
from laura.study.evidence import Evidence
from laura.study.summary import evidence_of

RATES = (2.5e-4, 5e-4, 1e-3)
BASE_LEARNT, BASE_KEPT = 0.1, 0.85
FULL: dict[str, Any] = {"method": "full"}
LORA: dict[str, Any] = {"method": "lora", "rank": 16}
PAIR: dict[str, dict[str, Any]] = {"full": FULL, "lora": LORA}
# Of what is learnt and forgotten at most, at each rate and after each budget.
LEARNT_AT, LOST_AT, GROWN = (0.8, 1.0, 0.9), (0.6, 1.0, 1.4), (0.35, 0.5, 0.75, 1.0)
BEST_INSIDE = (0.34, 0.30, 0.36)

Level = float | Callable[[int, int], float]
"""A score at the best rate and the largest budget, or one by place of the rate and budget."""

TEXT = """
name: fabricated
base: {{model: m}}
domain: {domain}
regime: {regime}
data: {{train: gsm8k, test: {{source: gsm8k, split: test}}, source_text: wikitext{replay}}}
budget: {{epochs: {budgets}}}
arms: {arms}
seeds: {seeds}
measure: {{learning: [{learning}], forgetting: [{forgetting}]}}
search: {{seeds: {search}, allow_shared_rate: true}}
"""


def recipe(
    arms: Mapping[str, Mapping[str, Any]],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    budgets: Sequence[float] = (1, 2, 4),
    domain: str = "code",
    regime: str = "instruct",
    search: str = "all",
    learning: str = "humaneval",
    forgetting: Sequence[str] = ("hellaswag", "winogrande"),
    replay: str = "{source: c4, limit: 9}",
) -> Recipe:
    """A recipe of these arms; those without rates get three."""
    whole = {name: {"learning_rates": list(RATES), **own} for name, own in arms.items()}
    starts = ("lora_null", "corda")
    replayed = any("replay" in own or own.get("init") in starts for own in arms.values())
    rewritten = any("rewritten" in own for own in arms.values())
    learning = "gsm8k" if any("policy" in own for own in arms.values()) else learning
    text = TEXT.format(
        domain=domain, regime=regime, budgets=list(budgets), seeds=list(seeds), search=search,
        arms=json.dumps(whole), learning=learning, forgetting=", ".join(forgetting),
        replay=f", replay: [{replay}]" * replayed
        + ", rewrite: {task: gsm8k}" * rewritten,
    )  # fmt: skip
    return parse_recipe(text)


def world(
    own: Recipe,
    learnt: Mapping[str, Level],
    kept: Mapping[str, Level],
    validation: Mapping[str, Sequence[float]] | None = None,
    **more: Any,
) -> SimulatedWorld:
    """A world from each arm's level of learning and of what it keeps; `more` goes to it too."""
    budgets = len(own.budget.epochs or [])

    def at(table: Mapping[str, Level], base: float, by_rate: Sequence[float]) -> Any:
        def truth(arm: str, place: int, budget: int) -> float:
            level = table.get(arm, base)
            if callable(level):
                return level(place, budget)
            return base + (level - base) * by_rate[place] * GROWN[budget - budgets]

        return truth

    losses = validation or {}
    return SimulatedWorld(
        own,
        learnt=at(learnt, BASE_LEARNT, LEARNT_AT),
        kept=at(kept, BASE_KEPT, LOST_AT),
        validation=lambda arm, place, budget: losses.get(arm, BEST_INSIDE)[place],
        **{"items": 150, "luck": 0.01, "validation_luck": 0.002, "base_learnt": BASE_LEARNT,
           "base_kept": BASE_KEPT, **more},
    )  # fmt: skip


def setting(
    learnt: Mapping[str, Level] | None = None,
    kept: Mapping[str, Level] | None = None,
    *,
    arms: Mapping[str, Mapping[str, Any]] = PAIR,
    number: int = 0,
    name: str = "one",
    fresh: Sequence[tuple[str, float, Sequence[int]]] = (),
    validation: Mapping[str, Sequence[float]] | None = None,
    own: Mapping[str, Any] | None = None,
    **more: Any,
) -> Setting:
    """Draw one study. `own` goes to `recipe`, `more` to `world`; arms untold do as the base."""
    made = world(recipe(arms, **(own or {})), learnt or {}, kept or {}, validation, **more)
    return simulate(made, np.random.default_rng([7, number]), name, fresh)


def claims(*settings: Setting) -> dict[str, Claim]:
    """Every claim by its id."""
    return {claim.id: claim for claim in judge_claims(settings)}


def rebuilt(old: Setting, **changes: Any) -> Setting:
    """The setting with other runs, points, base or facts; what was drawn stays known."""
    was: Evidence = old.evidence
    parts = {"recipe": was.recipe, "facts": was.facts, "base": was.base,
             "runs": [*was.runs, *was.confirming_runs],
             "points": [*was.points, *was.confirming], **changes}  # fmt: skip
    return Setting(old.name, evidence_of(**parts), old.analysis, old._read)


def filled(made: Setting) -> Setting:
    """The same setting, its results with the items that were drawn, as files would have them."""
    for point in (*made.evidence.points, *made.evidence.confirming):
        for result in point.results.values():
            known = made._read.get(id(result))
            if not result.items and known is not None:
                metric = next(iter(result.metrics))
                result.items.extend(
                    {"index": index, metric: int(value)}
                    for index, value in zip(known[0], known[1], strict=True)
                )
    return made
