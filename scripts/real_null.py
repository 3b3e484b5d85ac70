"""Ten studies of two arms that are one: how often the judge tells them apart on real runs.

    python scripts/real_null.py [--out studies/real-null] [--studies 10] [--seeds 3] [--deals 100]

One LoRA arm is trained on the micro base at four rates with many seeds. The seeds are dealt
out to studies; in each, half of them are called `full` and half `lora`, so that every statement
on full finetuning and LoRA is in its null, but for the rate's: ten times is wrong here. The
verdicts are printed as they come. Then the same seeds are dealt out at random, again and again, and
the verdicts counted; these studies share runs, so the counts waver more than their number tells.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from laura.cli.progress import open_progress
from laura.recipe.reading import read_recipe
from laura.recipe.sections import Recipe
from laura.recipe.shipped import find_recipe
from laura.results.schema import Claim
from laura.results.store import StudyStore
from laura.study.claims.judgement import judge
from laura.study.claims.settings import Setting
from laura.study.compare import compare
from laura.study.evidence import Evidence, RunFacts
from laura.study.summary import evidence_of, gather

ARM = "lora-r16"
TOLD = ("learns-less-code", "forgets-less", "forgets-less-matched", "same-tradeoff",
        "rate-ten-times", "rate-sensitivity")  # fmt: skip


def null_study(found: Evidence, first: list[int], second: list[int]) -> Evidence:
    """The runs of some seeds as `full`, those of others as `lora`, under seeds 0, 1, 2..."""
    arm = found.recipe.arms[ARM]
    full = {"method": "full", "learning_rates": arm.learning_rates}
    arms = {"full": full, "lora": arm.model_dump(mode="json")}
    values = {**found.recipe.model_dump(mode="json"), "arms": arms,
              "seeds": list(range(len(first)))}  # fmt: skip
    recipe = Recipe.model_validate(values)
    names = {seed: (who, place) for who, own in (("full", first), ("lora", second))
             for place, seed in enumerate(own)}  # fmt: skip

    def renamed(run: dict[str, Any]) -> dict[str, Any]:
        arm_name, seed = names[int(run["seed"])]
        return {**run, "arm": arm_name, "seed": seed}

    runs = [RunFacts(renamed(r.record), r.state) for r in found.runs if r.seed in names]
    points = [replace(p, record=renamed(p.record)) for p in found.points if p.seed in names]
    facts = {**found.facts, "trainable_parameters": {"full": 1, "lora": 1}}
    return evidence_of(recipe, facts, found.base, runs, points)


def main() -> None:
    """Train what is not trained yet, deal the seeds out, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("studies/real-null"))
    parser.add_argument("--studies", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--deals", type=int, default=100)
    given = parser.parse_args()
    each = given.seeds
    seeds = list(range(2 * each * given.studies))
    sets = [
        "name=real-null", f"seeds={seeds}", "budget.tokens=[30000,60000]", "search.extend=0",
        "measure.learning=[micro_code]", "measure.limit=200",
        "measure.forgetting=[micro_facts,micro_events,micro_pronouns]",
    ]  # fmt: skip
    recipe = read_recipe(find_recipe("micro"), sets)
    recipe = recipe.model_copy(update={"arms": {ARM: recipe.arms[ARM]}})
    with open_progress() as progress:
        compare(recipe, study=given.out, workers=None, progress=progress)
    found = gather(StudyStore(given.out), recipe)
    print("| study | " + " | ".join(TOLD) + " |")
    print("|---|" + "---|" * len(TOLD))
    for number in range(given.studies):
        own = seeds[2 * each * number : 2 * each * (number + 1)]
        claims = judged(found, own[:each], own[each:])
        print(f"| {number + 1} | " + " | ".join(_cell(claims[name]) for name in TOLD) + " |")
    counts = {name: Counter[str]() for name in TOLD}
    deal = random.Random(0)
    for _ in range(given.deals):
        own = deal.sample(seeds, 2 * each)
        for name, claim in judged(found, own[:each], own[each:]).items():
            if name in counts:
                counts[name][claim.verdict if claim.effect else "could not speak"] += 1
    words = ("could not speak", "undecided", "supported", "contradicted")
    print(f"\n{given.deals} deals\n\n| claim | " + " | ".join(words) + " |\n" + "|---" * 5 + "|")
    for name in TOLD:
        print(f"| {name} | " + " | ".join(str(counts[name][word]) for word in words) + " |")


def judged(found: Evidence, first: list[int], second: list[int]) -> dict[str, Claim]:
    """Claims of a null study, by their names."""
    study = null_study(found, first, second)
    return {claim.id: claim for claim in judge([Setting("null", study)]).claims}


def _cell(claim: Claim) -> str:
    verdict, effect = claim.verdict, claim.effect
    if effect is None:
        return verdict
    factor = 100 if effect.unit == "share" else 1
    value, low, high = (round(factor * x, 1) for x in (effect.value, *effect.interval))
    return f"{verdict} ({value:+g}, {low:+g} to {high:+g})"


if __name__ == "__main__":
    main()
