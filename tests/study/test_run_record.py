"""Which runs of a study folder are of the recipe that is asked about."""

from __future__ import annotations

from typing import Any

import pytest

from laura.recipe.reading import parse_recipe
from laura.recipe.sections import Recipe
from laura.study.runs import UNTRAINED, is_of

RECIPE = """
name: x
base: {model: x}
data: {train: x, test: x, source_text: x}
budget: {epochs: [1]}
arms:
  x: {method: lora}
  made:
    method: lora
    external: [{model: y, budget: 1, learning_rate: 1e-3}]
train: {batch_tokens: 4096}
"""


def recipe_with(*overrides: str) -> Recipe:
    return parse_recipe(RECIPE, overrides)


def record(recipe: Recipe, arm: str = "x") -> dict[str, Any]:
    """What run.json says of a run of this recipe."""
    made = recipe.train.identity(UNTRAINED) | {"precision": "torch.float32"}
    identity = {
        "dtype": recipe.base.dtype,
        "quantization": recipe.base.quantization,
        "template": [recipe.data.template, recipe.data.overlong, recipe.regime],
        "arm": [arm, recipe.arms[arm].identity({"learning_rates", "replay"})],
        "train": made,
    }
    return {"arm": arm, "identity": identity}


@pytest.mark.parametrize("arm", ["x", "made"])
@pytest.mark.parametrize(
    "change",
    [
        "train.batch_tokens=2048",
        "base.dtype=bfloat16",
        "base.quantization=nf4",
        "data.overlong=drop",
        "regime=pretrain",
    ],
)
def test_a_run_under_other_settings_is_left_out(arm: str, change: str) -> None:
    first, second = recipe_with(), recipe_with(change)
    assert is_of(record(first, arm), first, {}) and is_of(record(second, arm), second, {})
    # Not one way, nor the other: where both lie in a folder, those of the recipe count.
    assert not is_of(record(first, arm), second, {})
    assert not is_of(record(second, arm), first, {})


def test_a_run_that_became_the_same_counts_however_it_was_carried_out() -> None:
    told = recipe_with("train.validate_every=3", "train.cohort=4")
    assert is_of(record(recipe_with()), told, {})
    assert not is_of({**record(told), "arm": "gone"}, told, {})


def test_what_a_record_does_not_say_is_taken_to_be_as_it_was() -> None:
    changed = recipe_with("base.dtype=bfloat16", "data.overlong=drop")
    known = record(changed)
    old = {key: known["identity"][key] for key in ("arm", "train")}
    assert is_of({**known, "identity": old}, changed, {})
    trainers = {"arm": known["identity"]["arm"]}
    assert is_of({**known, "identity": trainers}, changed, {})
    assert is_of({"arm": "x"}, changed, {})
    assert is_of({"arm": "x"}, recipe_with("base.quantization=nf4"), {})
    # Runs of before there were quantised bases had none.
    before = record(recipe_with())
    del before["identity"]["quantization"]
    assert is_of(before, recipe_with(), {})
    assert not is_of(before, recipe_with("base.quantization=nf4"), {})


def test_a_run_with_another_replay_is_left_out() -> None:
    data = "data.replay=[{source: base_samples, count: 9}]"
    half, more = (recipe_with(data, f"arms.x.replay={share}") for share in (0.25, 0.5))
    facts = {"replay": [[1.0, "of what was read"]]}
    known = record(half)
    known["identity"]["replay"] = {"fraction": 0.25, "sources": facts["replay"]}
    assert is_of(known, half, facts)
    assert not is_of(known, more, facts) and not is_of(known, recipe_with(), {})
    assert not is_of(known, half, {"replay": [[1.0, "of other rows"]]})
    assert not is_of(record(half), half, facts)


def test_a_run_that_began_elsewhere_is_left_out() -> None:
    stage = recipe_with("continues=first")
    facts = {"continues": {"x": {"0": ["abc", 7]}}}
    known = {**record(stage), "seed": 0}
    known["identity"]["continues"] = ["abc", 7]
    assert is_of(known, stage, facts)
    assert not is_of(known, stage, {"continues": {"x": {"0": ["abc", 9]}}})
    assert not is_of({**known, "seed": 1}, stage, facts)
    assert not is_of(known, recipe_with(), {}) and not is_of(known, stage, {})
    from_the_base = {**record(stage), "seed": 0}
    assert not is_of(from_the_base, stage, facts) and is_of(from_the_base, recipe_with(), {})
