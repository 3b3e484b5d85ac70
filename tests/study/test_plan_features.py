"""The plan of what a recipe can ask for besides plain arms: each against a count by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from laura.cli import app as cli
from laura.evals.tasks import micro_code, micro_math
from laura.models.registry import MICRO_BASE
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import FullArm, LoraArm, Recipe
from laura.study import extras, plan_evaluation
from laura.study.cohorts import cohorts
from laura.study.plan import plan
from laura.study.plan_activations import Pass
from laura.study.plan_announced import announcement
from laura.study.plan_arms import checkpoint_bytes, fits_together, lockstep_runs
from laura.study.plan_data import Survey
from laura.study.plan_memory import pass_of, training_parts
from laura.study.plan_shapes import shapes_of
from laura.study.plan_work import arm_work, budget_tokens, tries_of
from laura.study.session import RunSpec

KNOWN = Survey(100_000, 1000, 64, 0.5, "")


def make_recipe(**changes: Any) -> Recipe:
    """A recipe on the micro base, read as a file is: grids are written out."""
    data: dict[str, Any] = {
        "name": "p", "base": {"model": "micro"}, "data": {"train": {"source": "micro-code"}},
        "budget": {"tokens": [10_000, 40_000]}, "seeds": [0, 1],
        "arms": {
            "full": {"method": "full", "learning_rates": [1e-4]},
            "lora": {"method": "lora", "learning_rates": [1e-4, 3e-4, 1e-3]},
        },
        "train": {"batch_tokens": 512, "row_tokens": 256},
        "measure": {"learning": ["micro_code"], "forgetting": ["micro_facts"]},
    }  # fmt: skip
    return parse_recipe(json.dumps({**data, **changes}))


def parts_of(arm: Any, one: Pass, optimiser: str = "adamw") -> Any:
    return training_parts(shapes_of(make_recipe().base), arm, optimiser, one)


def test_decay_toward_the_base_keeps_one_copy_of_what_is_trained() -> None:
    one = Pass(512, 512, 4, 2)
    shapes = shapes_of(make_recipe().base)
    plain = parts_of(FullArm(method="full", weight_decay=0.1), one)
    anchored = FullArm(method="full", weight_decay=0.1, weight_decay_toward="base")
    found = parts_of(anchored, one)
    assert found.anchor == 4 * shapes.parameters and plain.anchor == 0
    assert found.peak - plain.peak == found.anchor
    layer = FullArm(method="full", weight_decay=0.1, weight_decay_toward="base", layers=[0])
    assert parts_of(layer, one).anchor == 4 * shapes.layer_parameters


def test_an_external_arm_is_measured_only() -> None:
    made = [
        {"model": "there", "budget": point, "learning_rate": 1e-4} for point in (10_000, 40_000)
    ]
    arms = {
        "full": {"method": "full", "external": made},
        "lora": {"method": "lora", "learning_rates": [1e-4, 3e-4]},
    }
    recipe = make_recipe(arms=arms)
    found = plan(recipe, gpus=[1])
    full, lora = found["arms"]
    shapes = shapes_of(recipe.base)
    assert (full["runs"], full["models"], full["tokens"], full["checkpoint_bytes"]) == (0, 2, 0, 0)
    assert full["devices"][0]["training"] is None
    assert full["devices"][0]["evaluation"]["peak"] > 0
    # The base, two made elsewhere, and 2 rates x 2 seeds at 2 points.
    assert found["totals"]["evaluation"]["models"] == 1 + 2 + 8
    assert found["totals"]["runs"] == lora["runs"] == 8 and full["longer"] == 0
    assert found["totals"]["disk"]["elsewhere"] == 2 * 4 * shapes.parameters


def test_replay_comes_on_top_of_epochs_and_within_tokens() -> None:
    epochs = make_recipe(budget={"epochs": [1, 3]})
    assert budget_tokens(epochs, KNOWN, 0.25) == [133_333, 400_000]
    assert budget_tokens(make_recipe(), KNOWN, 0.25) == [10_000, 40_000]
    arms = {
        "plain": {"method": "full", "learning_rates": [1e-4]},
        "more": {"method": "full", "learning_rates": [1e-4], "replay": 0.5},
    }
    data = {
        "train": {"source": "micro-code"},
        "replay": [{"source": "base_samples", "count": 30, "tokens": 20}],
    }
    found = plan(make_recipe(arms=arms, data=data, budget={"epochs": [1, 3]}), gpus=[1])
    plain, more = found["arms"]
    assert more["tokens"] == pytest.approx(2 * plain["tokens"], rel=0.01)
    without = plan(make_recipe(arms={"plain": arms["plain"]}, budget={"epochs": [1, 3]}), gpus=[1])
    answers = found["totals"]["evaluation"]["answers"]
    models = found["totals"]["evaluation"]["models"]
    each = (without["totals"]["evaluation"]["answers"]) // without["totals"]["evaluation"]["models"]
    assert answers == models * each + 30


def test_a_search_has_its_trials_whatever_the_grid() -> None:
    arms = {
        "lora": {
            "method": "lora", "learning_rates": [1e-4, 1e-3], "grid": {"rank": [4, 8, 16]},
        },
        "full": {"method": "full", "learning_rates": [1e-5, 1e-4]},
        "fixed": {"method": "full", "learning_rates": [1e-4], "weight_decay": 0.1},
    }  # fmt: skip
    search = {"sampler": "tpe", "trials": 10}
    recipe = make_recipe(arms=arms, search=search)
    assert tries_of(recipe) == {
        "lora-rank-4": 4, "lora-rank-8": 3, "lora-rank-16": 3, "full": 10, "fixed": 1,
    }  # fmt: skip
    shapes = shapes_of(recipe.base)
    # A try more for the second seed, at two budget points that are runs of their own.
    assert arm_work(recipe, "full", shapes, KNOWN, 4).runs == (10 + 1) * 2
    grid = tries_of(make_recipe(arms=arms))
    assert grid == {"lora-rank-4": 2, "lora-rank-8": 2, "lora-rank-16": 2, "full": 2, "fixed": 1}


def test_a_warmup_longer_than_the_shortest_run_is_told() -> None:
    def told(steps: int) -> bool:
        train = {"batch_tokens": 512, "row_tokens": 256, "warmup_steps": steps}
        notes = plan(make_recipe(train=train), gpus=[1])["notes"]
        return any("warmup_steps is" in note and "will refuse" in note for note in notes)

    # 10,000 tokens are twenty steps of 512.
    assert told(21) and not told(20)


@pytest.mark.parametrize("most", [1, 2, 3, 4, 8, 9])
def test_runs_in_lockstep_are_those_that_are_grouped(most: int) -> None:
    rates = [1e-4 * (n + 1) for n in range(9)]
    train = {"batch_tokens": 512, "row_tokens": 256, "cohort": most}
    recipe = make_recipe(arms={"lora": {"method": "lora", "learning_rates": rates}}, train=train)
    specs = [RunSpec("lora", rate, 0, recipe.budget) for rate in rates]
    largest = max(len(group) for group in cohorts(specs, recipe))
    assert lockstep_runs(recipe, recipe.arms["lora"]) == largest


def test_memory_of_runs_in_lockstep() -> None:
    train = {"batch_tokens": 512, "row_tokens": 256, "cohort": 3}
    recipe = make_recipe(train=train)
    arm = recipe.arms["lora"]
    alone = pass_of(make_recipe(), arm, 4, 2, device="cpu")
    turns = pass_of(recipe, arm, 4, 2, device="cpu")
    shared = pass_of(recipe, arm, 4, 2, device="cuda:0")
    one, each, all_of_them = (parts_of(arm, a_pass) for a_pass in (alone, turns, shared))
    for parts in (each, all_of_them):
        assert (parts.adapter, parts.optimiser) == (3 * one.adapter, 3 * one.optimiser)
        assert parts.weights == one.weights
    assert (each.activations, each.gradients) == (one.activations, one.gradients)
    assert all_of_them.gradients == 3 * one.gradients
    # Frozen casts, cosine and sine are there once.
    assert 2.9 < all_of_them.activations / one.activations <= 3
    assert not fits_together(LoraArm(method="lora", dora=True))
    assert not pass_of(recipe, LoraArm(method="lora", dropout=0.1), 4, 2, device="cuda").shared


def test_checkpoints_of_variants() -> None:
    shapes = shapes_of(make_recipe().base)
    plain = checkpoint_bytes(shapes, LoraArm(method="lora", rank=8), 4)
    outputs = shapes.layers * sum(out for out, _ in shapes.maps.values())
    assert checkpoint_bytes(shapes, LoraArm(method="lora", rank=8, init="pissa"), 4) == 2 * plain
    dora = checkpoint_bytes(shapes, LoraArm(method="lora", rank=8, dora=True), 4)
    assert dora == plain + 4 * outputs
    half = checkpoint_bytes(shapes, LoraArm(method="lora", rank=8, layers=[0]), 4)
    assert half * shapes.layers == plain
    some = FullArm(method="full", layers=[0])
    assert checkpoint_bytes(shapes, some, 2) == 2 * shapes.parameters


def test_extras_are_counted_where_they_are_measured() -> None:
    bare = plan(make_recipe(), gpus=[1])["totals"]["evaluation"]
    measure = make_recipe().measure.model_dump(mode="json") | {
        "extras": {
            "last": {"task": "micro_code", "samples": 20, "limit": 10},
            "every": {"task": "micro_math", "samples": 5, "limit": 8, "at": "all"},
        }
    }
    recipe = make_recipe(measure=measure)
    more = plan(recipe, gpus=[1])["totals"]["evaluation"]
    # The base, and of each of 2 arms 2 seeds, at the last or at both points.
    last, every = (1 + 2 * 2) * 20 * 10, (1 + 2 * 2 * 2) * 5 * 8
    assert more["answers"] - bare["answers"] == last + every
    assert more["generated_tokens"] - bare["generated_tokens"] == 64 * (last + every)
    assert extras.most_jobs(recipe) == plan_evaluation.extra_models(recipe, "all")
    told = {"micro_code": micro_code.NEW_TOKENS, "micro_math": micro_math.NEW_TOKENS}
    assert told == plan_evaluation.NEW_TOKENS


def test_a_comparison_announces_what_is_trained_only() -> None:
    made = [{"model": "there", "budget": 40_000, "learning_rate": 1e-4}]
    arms = {"full": {"method": "full", "external": made}}
    base = SimpleNamespace(folder=MICRO_BASE, model=SimpleNamespace(dtype=torch.float32))

    def told(recipe: Recipe) -> str:
        bench = SimpleNamespace(base=base, device_name="cpu")
        session: Any = SimpleNamespace(
            recipe=recipe, bench=bench, epoch_tokens=1000, data=SimpleNamespace(train=[1, 2])
        )
        return announcement(session)

    assert "nothing is trained" in told(make_recipe(arms=arms))
    words = told(make_recipe())  # (1 + 3 rates) x 2 seeds at 2 points
    assert "memory beside torch's own full" in words and "16 runs (and up to 12 more)" in words


@pytest.mark.parametrize(
    ("arm", "path", "words"),
    [
        ({"method": "full", "layers": [1, 99]}, "layers", "names 99"),
        ({"method": "lora", "layers": [99]}, "layers", "numbered 0 to"),
        ({"method": "lora", "layers": [0], "targets": ["layers.1.mlp.up_proj"]}, "layers", "none"),
    ],
)
def test_layers_that_the_base_lacks(
    tmp_path: Path, arm: dict[str, Any], path: str, words: str
) -> None:
    file = tmp_path / "p.yaml"
    data = make_recipe().model_dump(mode="json") | {"arms": {"x": arm}}
    file.write_text(json.dumps(data))
    ended = CliRunner().invoke(cli.app, ["plan", str(file), "--gpus", "1", "--json"])
    assert ended.exit_code == 2
    fault = json.loads(ended.stdout)["error"]["faults"][0]
    assert fault["path"] == f"arms.x.{path}" and words in fault["problem"]


def series_file(folder: Path) -> str:
    """A series of two settings."""
    common = make_recipe().model_dump(mode="json")
    del common["name"], common["budget"]
    budgets = {"one": {"tokens": [5000]}, "two": {"epochs": [1]}}
    settings = {name: {"budget": budget} for name, budget in budgets.items()}
    settings["two"]["data"] = {"train": {"source": "nowhere/at-all"}}
    file = folder / "s.yaml"
    file.write_text(json.dumps({"name": "s", "common": common, "settings": settings}))
    return str(file)


def test_a_series_is_planned_setting_by_setting_and_as_a_whole(tmp_path: Path) -> None:
    def planned(*more: str) -> Any:
        command = ["plan", series_file(tmp_path), "--gpus", "1", "--flops-per-second", "1e12"]
        return CliRunner().invoke(cli.app, [*command, *more])

    found = json.loads(planned("--json").stdout)
    one, two = (found["settings"][name]["totals"] for name in ("one", "two"))
    total = found["totals"]
    assert total["runs"] == one["runs"] + two["runs"]
    assert total["unknown"] == ["two"] and two["flops"] is None
    assert (total["flops"], total["seconds"]) == (one["flops"], one["seconds"])
    assert total["disk"]["resume"] == max(one["disk"]["resume"], two["disk"]["resume"])
    ended = planned()
    assert "all settings together" in ended.stdout and "training of two" in ended.stdout
    refused = planned("--epoch-tokens", "1000")
    assert refused.exit_code == 2 and "--setting" in refused.stderr
    alone = json.loads(planned("--setting", "two", "--epoch-tokens", "1000", "--json").stdout)
    assert list(alone["settings"]) == ["two"] and alone["totals"]["flops"] > 0
    assert planned("--setting", "three").exit_code == 2
