"""What a recipe could decide, before anything is run: the claims judged on a study that went well.

The same claims that will be judged are asked, of a simulated study in which every arm learns,
forgets, and is best inside its list. What cannot speak even there cannot speak at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np

from laura.recipe.sections import Recipe
from laura.results.schema import Analysis, CheckpointSpectra, DiversityRow, MatrixSpectra
from laura.results.statistics import ALPHA, Estimate
from laura.study.claims.answer import amount, compare_pair, main_pair
from laura.study.claims.judgement import judge_claims
from laura.study.claims.settings import GROUPS
from laura.study.claims.simulated import SimulatedWorld, rates_of, simulate
from laura.study.evidence import Evidence

LUCK = 0.03  # of a run: as measured on the micro laboratory
ITEMS, STUDIES = 200, 5


def could_decide(recipes: Mapping[str, Recipe], width: int) -> dict[str, Any]:
    """Which claims a recipe, or the settings of a series together, could judge.

    Args:
        recipes: Each setting under its name.
        width: Fewest directions of a matrix of the base.

    Returns:
        `{"claims": [{"id", "statement", "missing": [words]}], "smallest": {...} | null}`:
        smallest is the difference in forgetting that would be shown about half of the times,
        tuned and at equal learning, by the median interval of simulated studies.
    """
    draw = np.random.default_rng(0)
    settings = [simulate(_going_well(own, width), draw, name) for name, own in recipes.items()]
    claims = judge_claims(settings)
    rows = [
        {"id": one.id, "statement": one.statement, "missing": one.missing}
        for one in claims
    ]  # fmt: skip
    tested = sum(one.p is not None for one in claims)
    smallest = None
    if len(recipes) == 1:
        (recipe,) = recipes.values()
        smallest = _smallest(recipe, width, max(1, tested), draw)
    return {"claims": rows, "smallest": smallest}


def claims_lines(found: dict[str, Any]) -> list[str]:
    """What could be decided, for the terminal."""
    able = [row for row in found["claims"] if not row["missing"]]
    lines = [f"Claims: {len(able)} of {len(found['claims'])} could be judged by this design"]
    if found["smallest"]:
        sizes = found["smallest"]
        told = [f"{amount(sizes[key], 'share')} {words}" for key, words in
                (("forgetting", "tuned"), ("equal_learning", "at equal learning"))
                if sizes.get(key) is not None]  # fmt: skip
        if told:
            lines.append(
                f"  smallest difference in forgetting that it would show about half of the times: "
                f"{', '.join(told)} (run luck of {amount(LUCK, 'share')} taken)"
            )
    lines += [f"  not {row['id']}: {row['missing'][0]}" for row in found["claims"]
              if row["missing"]]  # fmt: skip
    return lines


def _going_well(recipe: Recipe, width: int) -> SimulatedWorld:
    """Every arm learns, forgets and is best in the middle of its list."""

    def away(arm: str, place: int) -> float:
        rates = rates_of(recipe.arms[arm], recipe)
        return place - (len(rates) - 1) / 2

    points = max(1, len(recipe.budget.tokens or recipe.budget.epochs or []))

    def grown(budget: int) -> float:
        """Share of what is learnt: all of it one point before the last, where there are three."""
        if points < 3:
            return (budget + 1) / points
        return 0.9 if budget == points - 1 else (budget + 1) / (points - 1)

    return SimulatedWorld(
        recipe,
        learnt=lambda arm, r, b: 0.2 + (0.5 - 0.04 * abs(away(arm, r))) * grown(b),
        kept=lambda arm, r, b: 0.75 - 0.04 * (away(arm, r) + 3) * (b + 1) / points,
        validation=lambda arm, r, b: 1 + 0.1 * (away(arm, r) - 0.1) ** 2,
        items=max(2, min(recipe.measure.limit or ITEMS, ITEMS)),
        luck=LUCK,
        validation_luck=1e-4,
        analysis=lambda evidence, draw: _analysis(evidence, width, draw),
    )


def _smallest(
    recipe: Recipe, width: int, tested: int, draw: np.random.Generator
) -> dict[str, float | None] | None:
    """The reach of the joint interval: a true difference so large is shown half of the times."""
    found: dict[str, list[float]] = {"forgetting": [], "equal_learning": []}
    for _ in range(STUDIES):
        setting = simulate(_going_well(recipe, width), draw)
        pair = main_pair(setting)
        if pair is None:
            return None
        told = compare_pair(setting, *pair, level=1 - ALPHA / tested)
        for key, values in found.items():
            effect = getattr(told, key)
            if effect is not None and effect.unit == "share":
                values.append((effect.interval[1] - effect.interval[0]) / 2)
    return {key: median(values) if values else None for key, values in found.items()}


def _analysis(evidence: Evidence, width: int, draw: np.random.Generator) -> Analysis:
    """Spectra and samples, where the recipe asks for them."""
    recipe = evidence.recipe
    budgets = recipe.budget.tokens or recipe.budget.epochs or []
    spectra, rows = [], []
    for point in filter(evidence.is_chosen, evidence.points):
        last = point.budget == budgets[-1]
        who = {"arm": point.arm, "run": point.run["id"], "seed": point.seed,
               "learning_rate": point.learning_rate, "budget": point.budget}  # fmt: skip
        wanted = recipe.analysis.spectra == "all" or (recipe.analysis.spectra == "final" and last)
        if wanted and recipe.arms[point.arm].method == "full":
            luck = draw.normal(0, 1)
            matrices = [
                MatrixSpectra(name=f"{layer}.{module}", layer=layer, module=module,
                              shape=(width, width), rank={"90": max(1, round(width / 2 + luck))},
                              noise_rank={"90": 0.51 * width})
                for layer in range(4) for module in sorted(GROUPS["all"])
            ]  # fmt: skip
            spectra.append(CheckpointSpectra(**who, step=point.step, matrices=matrices))
        for name, extra in recipe.measure.extras.items():
            if last and extra.samples > 1:
                n = min(extra.limit or ITEMS, ITEMS)
                rows.append(DiversityRow(
                    **who, extra=name, task=extra.task, samples=extra.samples,
                    distinct=Estimate(extra.samples / 2 + draw.normal(0, 0.3), 0.3, n),
                ))  # fmt: skip
    return Analysis(spectra=spectra, diversity=rows)
