"""Schedules and legs against written-out values and transformers' own cosine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laura.recipe.sections import TrainSection
from laura.results.errors import RecipeError
from laura.training.optimisers import DecoupledLion
from laura.training.schedules import plan_legs, rate_factor, refuse_long_warmup


def _factors(section: TrainSection, points: list[int]) -> dict[str, list[float]]:
    legs = plan_legs(section, points)
    steps = {leg: range(leg.start, leg.end) for leg in legs}
    return {leg.name: [rate_factor(section, leg, s) for s in steps[leg]] for leg in legs}


def test_cosine_equals_transformers_with_a_floor() -> None:
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    section = TrainSection(schedule="cosine", warmup=0.1, final_factor=0.01)
    ours = _factors(section, [50])["main"]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    theirs = get_cosine_with_min_lr_schedule_with_warmup(optimiser, 5, 50, min_lr_rate=0.01)
    for step, factor in enumerate(ours):
        # transformers starts its warm-up at 0, which wastes a step; ours is one step ahead there.
        if step >= 5:
            assert factor == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        else:
            assert factor == pytest.approx((step + 1) / 5)
        optimiser.step()
        theirs.step()


def test_trapezoid_forks_before_every_budget_and_cools_down_over_its_last_fifth() -> None:
    section = TrainSection(schedule="trapezoidal", warmup=0.2, cooldown=0.2)
    legs = plan_legs(section, [10, 20, 40])
    told = [(leg.name, leg.start, leg.end, leg.origin, leg.points) for leg in legs]
    assert told == [
        ("trunk-1", 0, 8, None, ()),
        ("branch-1", 8, 10, "trunk-1", (10,)),
        ("trunk-2", 8, 16, "trunk-1", ()),
        ("branch-2", 16, 20, "trunk-2", (20,)),
        ("trunk-3", 16, 32, "trunk-2", ()),
        ("branch-3", 32, 40, "trunk-3", (40,)),
    ]
    factors = _factors(section, [10, 20, 40])
    assert factors["trunk-1"] == [0.5, 1, 1, 1, 1, 1, 1, 1]
    assert factors["trunk-3"] == [1.0] * 16
    assert factors["branch-2"] == [1.0, 0.75, 0.5, 0.25]


def test_warmup_in_steps_may_be_longer_than_the_first_budgets() -> None:
    section = TrainSection(schedule="trapezoidal", warmup_steps=12, cooldown=0.2)
    factors = _factors(section, [5, 10, 40])
    trunk = [*factors["trunk-1"], *factors["trunk-2"], *factors["trunk-3"]]
    assert trunk == [min(1, step / 12) for step in range(1, 33)]
    assert factors["branch-1"] == [5 / 12]
    assert factors["branch-2"] == [9 / 12, 9 / 24]
    assert factors["branch-3"] == [1 - step / 8 for step in range(8)]
    cosine = TrainSection(schedule="cosine", warmup_steps=5)
    assert plan_legs(cosine, [50]) == plan_legs(TrainSection(schedule="cosine"), [50])
    assert "warmup_steps" not in TrainSection().identity()


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("schedule", ["cosine", "constant", "trapezoidal"])
def test_a_warmup_after_which_no_step_is_at_the_peak_is_refused(schedule: Any, hot: bool) -> None:
    refused = 0
    for points in ([1], [7], [5, 40], [1, 3]):
        for steps in range(points[-1] + 3):
            section = TrainSection(schedule=schedule, warmup_steps=steps)
            legs = plan_legs(section, points, hot)
            factors = [rate_factor(section, leg, s) for leg in legs
                       for s in range(leg.start, leg.end)]  # fmt: skip
            if max(factors) == 1:
                refuse_long_warmup(section, points, hot)
                continue
            refused += 1
            words = rf"is {steps}, but a run of {points[-1]} steps.*raise the budget"
            with pytest.raises(RecipeError, match=words):
                refuse_long_warmup(section, points, hot)
    assert refused >= 8
    refuse_long_warmup(TrainSection(schedule=schedule, warmup=0.5), [3], hot)


def test_constant_is_one_leg_with_a_snapshot_at_each_point() -> None:
    legs = plan_legs(TrainSection(schedule="constant", warmup=0.0), [3, 7])
    assert [(leg.start, leg.end, leg.points) for leg in legs] == [(0, 7, (3, 7))]


def test_lion_follows_the_papers_rule_with_decay_not_times_the_rate() -> None:
    torch.manual_seed(0)
    start = torch.randn(5, 3)
    parameter = torch.nn.Parameter(start.clone())
    optimiser = DecoupledLion([parameter], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    weight, memory = start.clone(), torch.zeros_like(start)
    for step in range(4):
        gradient = torch.randn(5, 3)
        rate = 0.01 * (1 - step / 8)
        optimiser.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        optimiser.step()
        weight = weight * (1 - 0.1 * rate / 0.01)
        weight = weight - rate * torch.sign(0.9 * memory + 0.1 * gradient)
        memory = 0.95 * memory + 0.05 * gradient
    torch.testing.assert_close(parameter.detach(), weight)
    torch.testing.assert_close(optimiser.state[parameter]["exp_avg"], memory)


def test_hot_points_are_snapshots_of_one_run() -> None:
    section = TrainSection(schedule="trapezoidal", warmup=0.1, cooldown=0.2)
    trunk, branch = plan_legs(section, [10, 35, 45, 50], hot=True)
    assert (trunk.start, trunk.end, trunk.points, trunk.cooldown) == (0, 40, (10, 35), False)
    assert (branch.start, branch.end, branch.points) == (40, 50, (45, 50))
    assert branch.cooldown and branch.origin == trunk.name
    # Every step is taken once, and the warm-up is that of the whole run.
    assert trunk.warmup == branch.warmup == 5
    assert rate_factor(section, trunk, 39) == 1
    assert rate_factor(section, branch, 49) == pytest.approx(0.1)
    never = TrainSection(schedule="trapezoidal", cooldown=0.0)
    (only,) = plan_legs(never, [1, 3], hot=True)
    assert (only.end, only.points, only.cooldown) == (3, (1, 3), False)
    (short,) = plan_legs(section, [1], hot=True)
    assert (short.start, short.end, short.origin) == (0, 1, None)
