"""Which rates a study runs and which it chooses, on studies that stand in memory alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from laura.recipe.reading import parse_recipe
from laura.recipe.search import rates_beyond, reachable_rates
from laura.recipe.sections import Recipe
from laura.results.errors import RecipeError
from laura.results.task_result import TaskResult, summarise
from laura.study.choosing import choice_gaps, why_none
from laura.study.evidence import Evidence, Point, RunFacts
from laura.study.summary import evidence_of

TEXT = """
name: chosen
base: {model: m}
data: {train: gsm8k, source_text: wikitext}
budget: {epochs: [1, 2]}
arms:
  full: {method: full, learning_rates: [1e-3, 5e-4, 2e-3]}
  lora: {method: lora, learning_rates: [1e-3, 1e-2]}
seeds: [0, 1, 2]
measure: {learning: [gsm8k], forgetting: [source_loss]}
"""
Loss = Callable[[str, float, int], float]  # of arm, rate and seed; infinite where it diverges


def recipe_of(*settings: str) -> Recipe:
    return parse_recipe(TEXT, ["search.allow_shared_rate=true", *settings])


def run_of(arm: str, rate: float, seed: int, state: str) -> RunFacts:
    points = [{"budget": budget, "step": budget * 10} for budget in (1, 2)]
    record = {"id": f"{arm}-{rate}-{seed}", "arm": arm, "learning_rate": rate, "seed": seed,
              "points": points}  # fmt: skip
    return RunFacts(record, state)


def study(recipe: Recipe, loss: Loss, runs: Sequence[tuple[str, float, int]]) -> Evidence:
    """The study of which these runs have ended; at the first budget every loss is reversed."""
    facts, points = [], []
    for arm, rate, seed in runs:
        value = loss(arm, rate, seed)
        run = run_of(arm, rate, seed, "done" if math.isfinite(value) else "diverged")
        facts.append(run)
        for budget in (1, 2) if math.isfinite(value) else ():
            result = {"validation_loss": measured(value if budget == 2 else -value)}
            points.append(Point(run.record, budget, budget * 10, 9, 9, result))
    return evidence_of(recipe, {"base": {}}, {}, facts, points)


def measured(value: float) -> TaskResult:
    items = [{"index": i, "nats": value * 10, "tokens": 10} for i in range(2)]
    metrics = {"nats_per_token": summarise(items, "nats_per_token", False)}
    return TaskResult("validation_loss", "1", "m", 2, metrics, items)


def whole_grid(recipe: Recipe, seeds: Sequence[int] | None = None) -> list[tuple[str, float, int]]:
    return [
        (name, rate, seed)
        for name, arm in recipe.arms.items()
        for rate in arm.learning_rates
        for seed in (recipe.seeds if seeds is None else seeds)
    ]


def carried_out(recipe: Recipe, loss: Loss, stop: int | None = None) -> Evidence:
    """What `compare` comes to: the grid, then round by round what the choice asks for.

    Args:
        recipe: The recipe.
        loss: What every run comes to.
        stop: As if killed after so many runs of longer lists, then continued.
    """
    seeds = recipe.seeds if recipe.search.seeds_value == "all" else recipe.seeds[:1]
    runs = whole_grid(recipe, seeds)
    for _ in range(20):
        choices = study(recipe, loss, runs).choices
        more = [
            (arm, rate, seed)
            for arm, choice in choices.items()
            for rate in (*choice.rates, *choice.further)
            for seed in seeds
            if (arm, rate, seed) not in runs
        ]
        if not more:
            return study(recipe, loss, runs)
        if stop is not None and stop < len(more):
            more, stop = more[:stop], None
        elif stop is not None:
            stop -= len(more)
        runs += more
    raise AssertionError("it does not end")


def lowest_at(best: Mapping[tuple[str, int], float]) -> Loss:
    """Losses that rise with the distance from a best rate, by arm and seed."""
    return lambda arm, rate, seed: abs(math.log(rate / best.get((arm, seed), best[arm, 0]))) + 1


@pytest.mark.parametrize("chance", range(8))
def test_each_seed_has_the_rate_of_its_lowest_loss(chance: int) -> None:
    draw = np.random.default_rng(chance)
    recipe = recipe_of("search.extend=0")
    table = {place: float(draw.normal()) if draw.random() < 0.8 else math.inf
             for place in whole_grid(recipe)}  # fmt: skip
    found = study(recipe, lambda *place: table[place], list(table))
    for arm, given in recipe.arms.items():
        expected = {}
        for seed in recipe.seeds:
            lowest, chosen = math.inf, None
            for rate in given.learning_rates:
                if table[arm, rate, seed] < lowest:
                    lowest, chosen = table[arm, rate, seed], rate
            if chosen is not None:
                expected[seed] = chosen
        assert found.best.get(arm, {}) == expected
        assert found.rates(arm) == sorted(given.learning_rates)
    for point in found.points:
        assert found.is_chosen(point) == (found.best[point.arm][point.seed] == point.learning_rate)


def test_a_seed_that_lacks_a_rate_is_left_out_and_told() -> None:
    recipe = recipe_of("search.extend=0")
    runs = [place for place in whole_grid(recipe) if place != ("full", 5e-4, 1)]
    found = study(recipe, lowest_at({("full", 0): 1e-3, ("lora", 0): 1e-2}), runs)
    assert found.best["full"] == {0: 1e-3, 2: 1e-3}
    assert choice_gaps(found) == ["full with seed 1 lacks a rate, so that seed is left out"]
    # A run that is there but has not ended, or failed, is no better.
    for state in ("open", "failed"):
        opened = evidence_of(recipe, {}, {}, [*found.runs, run_of("full", 5e-4, 1, state)],
                             found.points)  # fmt: skip
        assert opened.best == found.best
    assert any("seed 1 lacks a rate" in gap for gap in _gaps(opened))


def _gaps(evidence: Evidence) -> list[str]:
    from laura.study.findings import _run_gaps

    return _run_gaps(evidence)


def test_where_all_diverged_or_nothing_ended_there_is_no_best_rate() -> None:
    recipe = recipe_of("search.extend=0")
    found = study(recipe, lambda arm, *_: math.inf if arm == "full" else 1.0, whole_grid(recipe))
    assert "full" not in found.best and found.edge("full") == ""
    assert why_none("full", found) == "diverged in every run"
    # Equal losses: the lowest rate.
    assert found.best["lora"] == dict.fromkeys(recipe.seeds, 1e-3)
    nothing = study(recipe, lambda *_: 1.0, [])
    assert nothing.best == {} and why_none("lora", nothing).startswith("has no finished run")
    assert nothing.rates("full") == [5e-4, 1e-3, 2e-3]


def test_one_seed_is_enough_to_choose() -> None:
    recipe = recipe_of("seeds=[4]", "search.extend=0")
    found = study(recipe, lowest_at({("full", 0): 1e-3, ("lora", 0): 1e-3}), whole_grid(recipe))
    assert found.best == {"full": {4: 1e-3}, "lora": {4: 1e-3}}
    assert found.edge("full") == "" and found.edge("lora") == "low"


def test_with_first_every_seed_takes_the_choice_of_the_first() -> None:
    recipe = recipe_of("search.seeds=first", "search.extend=0")
    loss = lowest_at({("full", 0): 1e-3, ("full", 1): 2e-3, ("lora", 0): 1e-2})
    grid = study(recipe, loss, whole_grid(recipe, [0]))
    expected = {"full": dict.fromkeys([0, 1, 2], 1e-3), "lora": dict.fromkeys([0, 1, 2], 1e-2)}
    assert grid.best == expected
    # Runs of further seeds, at any rate, have no part in the choice.
    assert study(recipe, loss, whole_grid(recipe)).best == expected


def test_fresh_seeds_stand_apart() -> None:
    recipe = recipe_of("search.extend=0")
    loss = lowest_at({("full", 0): 1e-3, ("lora", 0): 1e-3})
    runs = [*whole_grid(recipe), ("full", 1e-3, 7), ("full", 5e-4, 3)]
    found, plain = study(recipe, loss, runs), study(recipe, loss, whole_grid(recipe))
    assert (found.runs, found.points, found.best) == (plain.runs, plain.points, plain.best)
    assert [(p.learning_rate, p.seed, p.budget) for p in found.confirming] == [
        (5e-4, 3, 1), (5e-4, 3, 2), (1e-3, 7, 1), (1e-3, 7, 2),
    ]  # fmt: skip
    assert [run.seed for run in found.confirming_runs] == [3, 7]
    assert not any(found.is_chosen(point) for point in found.confirming)


def test_the_rates_beyond_a_list_keep_its_step() -> None:
    recipe = recipe_of("arms.full.learning_rates=[3e-4, 1e-3, 2e-3]", "search.extend=2")
    below, above = rates_beyond(recipe.arms["full"], recipe.search)
    assert below == [9e-5, 2.7e-5] and above == [4e-3, 8e-3]
    assert reachable_rates(recipe.arms["full"], recipe.search) == [
        2.7e-5, 9e-5, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3,
    ]  # fmt: skip
    for settings in (
        ["arms.full.learning_rates=[1e-3]"],
        ["search.extend=0"],
        ["search.sampler=random"],
        ["arms.full.external=[{model: x, budget: 2, learning_rate: 5e-4},"
         " {model: y, budget: 2, learning_rate: 1e-3},"
         " {model: z, budget: 2, learning_rate: 2e-3}]"],
        # No rate is above 1, and none is finer than it is written.
        ["arms.full.learning_rates=[1.0, 0.999999]"],
    ):  # fmt: skip
        recipe = recipe_of(*settings)
        assert rates_beyond(recipe.arms["full"], recipe.search) == ([], [])


@pytest.mark.parametrize("stop", [None, 0, 1, 2, 3, 4, 5, 7])
def test_a_list_grows_where_its_best_lies_at_an_end(stop: int | None) -> None:
    recipe = recipe_of()
    best = {("full", 0): 1e-3, ("full", 1): 1e-4, ("full", 2): 5e-3, ("lora", 0): 3e-3}
    found = carried_out(recipe, lowest_at(best), stop)
    # The first round at both ends; one more is left, which goes to the low end.
    assert found.rates("full") == [1.25e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3]
    assert found.best["full"] == {0: 1e-3, 1: 1.25e-4, 2: 4e-3}
    assert found.edge("full") == "both" and found.choices["full"].further == ()
    # 3e-3 is nearer to 1e-3 than to 1e-2; below it nothing is nearer.
    assert found.rates("lora") == [1e-4, 1e-3, 1e-2] and found.edge("lora") == ""
    assert found == carried_out(recipe, lowest_at(best))


def test_an_end_that_diverged_needs_no_further_rate() -> None:
    def loss(arm: str, rate: float, seed: int) -> float:
        return math.inf if rate >= 2e-3 else 1 / rate

    found = carried_out(recipe_of(), loss)
    assert found.rates("full") == [5e-4, 1e-3, 2e-3] and found.edge("full") == ""
    assert found.best["full"] == dict.fromkeys([0, 1, 2], 1e-3)


@pytest.mark.parametrize("extend", [0, 1, 2, 5])
def test_the_list_grows_at_most_so_far(extend: int) -> None:
    found = carried_out(recipe_of(f"search.extend={extend}"), lambda arm, rate, seed: -rate)
    expected = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2][: 3 + extend]
    assert found.rates("full") == expected and found.edge("full") == "high"


def test_with_first_the_first_seed_alone_lengthens_the_list() -> None:
    best = {("full", 0): 2e-3, ("full", 1): 1e-5, ("lora", 0): 3e-3}
    found = carried_out(recipe_of("search.seeds=first"), lowest_at(best))
    assert found.rates("full") == [5e-4, 1e-3, 2e-3, 4e-3]
    assert {run.seed for run in found.runs} == {0}


def test_a_study_that_was_never_lengthened_is_told_as_it_is() -> None:
    recipe = recipe_of()
    found = study(recipe, lambda arm, rate, seed: -rate, whole_grid(recipe))
    assert found.best["full"] == dict.fromkeys([0, 1, 2], 2e-3)
    assert found.edge("full") == "high" and found.choices["full"].further == (4e-3,)


def test_rates_nobody_asked_for_are_not_chosen() -> None:
    recipe = recipe_of("search.extend=0")
    strange = [("full", 7e-4, seed) for seed in recipe.seeds]
    found = study(recipe, lowest_at({("full", 0): 7e-4, ("lora", 0): 1e-3}),
                  [*whole_grid(recipe), *strange])  # fmt: skip
    assert found.rates("full") == [5e-4, 1e-3, 2e-3]
    assert set(found.best["full"].values()) == {5e-4}


def test_budgets_that_are_runs_of_their_own_have_ended_when_the_last_has() -> None:
    recipe = recipe_of("search.extend=0")
    runs, points = [], []
    for (arm, rate, seed), budget in itertools.product(whole_grid(recipe), (1, 2)):
        run = run_of(arm, rate, seed, "open" if (arm, seed, budget) == ("full", 1, 2) else "done")
        mark = {"budget": budget, "step": 9}
        run = RunFacts({**run.record, "id": f"{run.run_id}-{budget}", "points": [mark]}, run.state)
        runs.append(run)
        if run.state == "done":
            points.append(Point(run.record, budget, 9, 9, 9, {"validation_loss": measured(rate)}))
    found = evidence_of(recipe, {}, {}, runs, points)
    assert found.best["full"] == {0: 5e-4, 2: 5e-4}


def test_all_seeds_do_not_go_with_a_search() -> None:
    for sampler in ("random", "tpe"):
        with pytest.raises(RecipeError, match=r"search\.seeds: is all, but search\.sampler is"):
            recipe_of(f"search.sampler={sampler}", "search.seeds=all")
        assert recipe_of(f"search.sampler={sampler}").search.seeds_value == "first"
    assert recipe_of().search.seeds_value == "all"
    with pytest.raises(RecipeError, match="extend"):
        recipe_of("search.extend=-1")
