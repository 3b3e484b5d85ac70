"""Grids inside arms: plain arms come out, faults are told where they were written."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laura.recipe.document import YamlDocument, yaml_text
from laura.recipe.reading import parse_recipe, recipe_yaml
from laura.recipe.search import families_of
from laura.recipe.sections import MOST_ARMS, LoraArm
from laura.recipe.tasks import NAME_PATTERN
from laura.results.errors import RecipeError
from laura.study.runs import grid_of

BASE = """\
name: demo
base: {model: smollm2-135m}
data: {train: gsm8k, test: gsm8k, source_text: wikitext}
budget: {tokens: [20000, 40000]}
arms:
  lora:
    method: lora
    learning_rates: [1e-4, 1e-3]
    grid:
      rank: [4, 16]
      targets: [all, [q_proj, v_proj]]
  full: {method: full, learning_rates: [1e-5, 1e-4]}
"""


def faults_of(text: str, *overrides: str) -> dict[str, tuple[str, int | None]]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides)
    paths = [fault.path for fault in caught.value.faults]
    assert len(set(paths)) == len(paths), "one mistake is told once, not once an arm"
    return {fault.path: (fault.problem, fault.line) for fault in caught.value.faults}


def test_a_grid_makes_plain_arms_that_read_back() -> None:
    recipe = parse_recipe(BASE)
    made = [
        "lora-rank-4-targets-all",
        "lora-rank-4-targets-q_proj.v_proj",
        "lora-rank-16-targets-all",
        "lora-rank-16-targets-q_proj.v_proj",
    ]
    assert list(recipe.arms) == [*made, "full"]
    arm = recipe.arms[made[1]]
    assert isinstance(arm, LoraArm)
    assert (arm.rank, arm.targets) == (4, ["q_proj", "v_proj"])
    assert arm.learning_rates == [1e-4, 1e-3]
    # What is trained is told by the arm alone: as if it had been written out by hand.
    by_hand = LoraArm(
        method="lora", learning_rates=[1e-4, 1e-3], rank=4, targets=["q_proj", "v_proj"]
    )
    assert arm.model_dump() == by_hand.model_dump() and "grid" not in arm.model_dump()
    assert recipe.search.families == {"lora": made}
    assert parse_recipe(recipe_yaml(recipe)) == recipe


VALUES: dict[str, list[Any]] = {
    "rank": [1, 2, 16, 256],
    "alpha": [None, 8, 0.5, 32.0],
    "rslora": [True, False],
    "targets": ["all", "mlp", ["q_proj"], ["q_proj", "v_proj"]],
    "dropout": [0.0, 0.05, 1e-05],
}


@settings(deadline=None)
@given(st.data())
def test_any_grid_of_good_values_is_the_product(data: st.DataObject) -> None:
    keys = data.draw(st.lists(st.sampled_from(sorted(VALUES)), unique=True, min_size=1, max_size=3))
    grid = {}
    for key in keys:
        places = st.integers(0, len(VALUES[key]) - 1)
        chosen = data.draw(st.lists(places, unique=True, min_size=1))
        grid[key] = [VALUES[key][place] for place in chosen]
    value = YamlDocument.parse(BASE, "x").data
    value["arms"]["lora"]["grid"] = grid
    value["arms"]["lora"]["learning_rates"] = [1e-4]
    recipe = parse_recipe(yaml_text(value))
    combinations = list(itertools.product(*grid.values()))
    names = [name for name in recipe.arms if name != "full"]
    assert len(names) == len(combinations)
    for name, combination in zip(names, combinations, strict=True):
        assert re.fullmatch(NAME_PATTERN, name) and name.startswith("lora-")
        for key, wanted in zip(grid, combination, strict=True):
            assert getattr(recipe.arms[name], key) == wanted
    assert parse_recipe(recipe_yaml(recipe)) == recipe
    # The family found from the arms alone is the grid: each combination of words, once.
    family = families_of(recipe.arms, recipe.search.families)[0]
    assert list(family.arms.values()) == names
    several = {key: values for key, values in grid.items() if len(values) > 1}
    assert {k: len(v) for k, v in family.parameters.items()} == {
        k: len(v) for k, v in several.items()
    }


@pytest.mark.parametrize(
    ("old", "new", "path", "words", "line"),
    [
        ("rank: [4, 16]", "rank: [4, x]", "arms.lora.grid.rank.1", "integer, came 'x'", 10),
        ("rank: [4, 16]", "rank: [0, 4]", "arms.lora.grid.rank.0", "greater", 10),
        ("rank: [4, 16]", "rank: []", "arms.lora.grid.rank", "at least 1 item", 10),
        ("rank: [4, 16]", "rank: 4", "arms.lora.grid.rank", "must be a valid list", 10),
        ("rank: [4, 16]", "rank: [{a: 1}]", "arms.lora.grid.rank.0", "integer", 10),
        ("rank: [4, 16]", "rank: [4, 4]", "arms.lora.grid.rank", "names 4 twice", 10),
        ("rank: [4, 16]", "rnk: [4]", "arms.lora.grid.rnk", "did you mean rank?", 10),
        ("rank: [4, 16]", "learning_rates: [1]", "arms.lora.grid.learning_rates", "an arm of", 10),
        ("rank: [4, 16]", "method: [full]", "arms.lora.grid.method", "an arm for each", 10),
        ("rank: [4, 16]", "grid: [1]", "arms.lora.grid.grid", "unknown key", 10),
        ("method: lora\n", "method: lora\n    rank: 8\n", "arms.lora.grid.rank", "keep one", 11),
        ("method: lora\n", "method: lorra\n", "arms.lora", "full, lora or oft", 6),
        ("[q_proj, v_proj]]", "[]]", "arms.lora.grid.targets", "is empty", 11),
        ("  full:", "  lora-rank-4-targets-all:", "arms.lora.grid", "another of that name", 9),
        ("rank: [4, 16]", f"rank: [{', '.join(map(str, range(1, 120)))}]", "arms.lora.grid",
         f"at most {MOST_ARMS}", 9),
        ("  lora:", f"  {'l' * 50}:", f"arms.{'l' * 50}.grid", "at most 64 characters", 9),
        ("[1e-4, 1e-3]", "[2]", "arms.lora.learning_rates.0", "less than or equal", 8),
    ],
)  # fmt: skip
def test_each_mistake(old: str, new: str, path: str, words: str, line: int) -> None:
    assert old in BASE
    faults = faults_of(BASE.replace(old, new))
    assert words in faults[path][0], faults
    assert faults[path][1] == line


@pytest.mark.parametrize("grid", ["{}", "3", "[rank]"])
def test_a_grid_that_is_none(grid: str) -> None:
    faults = faults_of(BASE, f"arms.lora.grid={grid}")
    assert list(faults) == ["arms.lora.grid"]
    assert "lists of values" in faults["arms.lora.grid"][0]


def test_overrides_reach_into_a_grid() -> None:
    recipe = parse_recipe(BASE, ["arms.lora.grid.rank=[8]"])
    assert next(iter(recipe.arms)) == "lora-rank-8-targets-all"
    problem, line = faults_of(BASE, "arms.lora.grid.rank=[8, 9, y]")["arms.lora.grid.rank.2"]
    assert "given by --set" in problem and line is None


def test_values_that_do_not_go_together_are_told_where_the_grid_is_written() -> None:
    base = "weight_decay_toward: base, grid: {weight_decay: [1e-4, 0]}"
    text = BASE.replace("{method: full,", f"{{method: full, {base},")
    text = text.replace("rank: [4, 16]", "dora: [true, false]\n      init: [pissa, default]")
    found = faults_of(text + "seeds: [x]\n")
    assert list(found) == ["seeds.0", "arms.lora.grid.init", "arms.full.weight_decay_toward"]
    # A fault between sections too, and families that are there already.
    found = faults_of(BASE.replace("rank: [4, 16]", "replay: [0.1, 0.2]"))
    assert "data.replay names no source" in found["arms.lora.grid.replay"][0]
    found = faults_of(BASE, "search.families={lora: [full]}")
    assert "is a family already" in found["search.families.lora"][0]


@pytest.mark.parametrize(
    ("families", "words"),
    [
        ("{f: [a, nobody]}", "names nobody"),
        ("{f: []}", "names no arm"),
        ("{f: [a, b], g: [a]}", "named twice"),
        ("{a: [b]}", "name of an arm outside"),
        ("{f: [a, full]}", "different learning_rates"),
        ("{f: [a, b, c]}", "every combination"),
    ],
)
def test_families_written_by_hand(families: str, words: str) -> None:
    text = BASE.replace(BASE[BASE.index("  lora:") : BASE.index("  full:")], """\
  a: {method: lora, rank: 4, learning_rates: [1e-4, 1e-3]}
  b: {method: lora, rank: 8, learning_rates: [1e-4, 1e-3]}
  c: {method: lora, rank: 8, dropout: 0.1, learning_rates: [1e-4, 1e-3]}
""") + f"search: {{sampler: tpe, families: {families}}}\n"  # fmt: skip
    (problem, line), *_ = faults_of(text).values()
    assert words in problem and line is not None
    good = parse_recipe(text.replace(families, "{f: [a, b]}"))
    assert families_of(good.arms, good.search.families)[0].parameters == {"rank": ["4", "8"]}


def test_a_pruner_needs_a_search_and_early_points() -> None:
    assert "grid runs every rate" in faults_of(BASE, "search.pruner=median")["search.pruner"][0]
    one = ["search={sampler: tpe, pruner: hyperband}", "budget={tokens: [40000]}"]
    assert "one budget point" in faults_of(BASE, *one)["search.pruner"][0]
    search = parse_recipe(BASE, ["search={sampler: tpe, pruner: median}"]).search
    assert search.objective_value == "learning"
    assert parse_recipe(BASE).search.objective_value == "validation_loss"


OF = "  x: {{of: {}, change: scale, factor: 0.5, "
AFTER = BASE.replace("    grid:", "    after: {scale: [0.4, 0.7], intruders: [0.5]}\n    grid:")


def test_what_is_done_after_training_makes_arms_of_arms() -> None:
    recipe = parse_recipe(AFTER.replace("      targets: [all, [q_proj, v_proj]]\n", ""))
    kinds = ("scale-0.4", "scale-0.7", "intruders-0.5")
    made = [
        name
        for rank in (4, 16)
        for name in (f"lora-rank-{rank}", *(f"lora-rank-{rank}-{kind}" for kind in kinds))
    ]
    assert list(recipe.arms) == [*made, "full"]
    arm, source = recipe.arms["lora-rank-16-scale-0.7"], recipe.arms["lora-rank-16"]
    assert (arm.of, arm.change, arm.factor) == ("lora-rank-16", "scale", 0.7)
    assert source.is_trained and not arm.is_trained
    told = {"of": "lora-rank-16", "change": "scale", "factor": 0.7}
    assert arm.identity() == {**source.identity(), **told}
    assert recipe.search.families == {"lora": ["lora-rank-4", "lora-rank-16"]}
    assert parse_recipe(recipe_yaml(recipe)) == recipe
    assert {spec.arm for spec in grid_of(recipe)} == {"lora-rank-4", "lora-rank-16", "full"}


@pytest.mark.parametrize(
    ("old", "new", "path", "words", "line"),
    [
        ("0.4, 0.7", "0.4, 1.0", "arms.lora.after.scale.1", "less than 1", 9),
        ("0.4, 0.7", "0.4, 0.4", "arms.lora.after.scale", "cannot be: names 0.4 twice", 9),
        ("0.4, 0.7", "0.0", "arms.lora.after", "which is the base itself", None),
        ("scale:", "squash:", "arms.lora.after.squash", "", None),
        ("    grid:", "    dora: true\n    grid:", "arms.lora.after.scale", "with dora", 9),
        ("  full:", "  lora-rank-4-scale-0.4:", "arms.lora.after", "another of that", None),
        ("arms:", "search: {sampler: tpe, trials: 3}\narms:", "arms.lora.after", "is tpe", None),
        ("  full: {", "  x: {of: lora, ", "arms.x.of", "all three", 12),
        ("  full: {", OF.format("y"), "arms.x.of", "no arm that is", 12),
        ("  full: {", OF.format("lora-rank-4"), "arms.x.of", "are others", 12),
    ],
)  # fmt: skip
def test_what_cannot_be_done_after_training_is_refused(
    old: str, new: str, path: str, words: str, line: int | None
) -> None:
    text = AFTER.replace("      targets: [all, [q_proj, v_proj]]\n", "")
    assert old in text
    found = faults_of(text.replace(old, new))
    assert path in found and words in found[path][0], found
    assert line is None or found[path][1] == line, found


def test_a_rotation_has_no_intruders_to_lessen() -> None:
    oft = "{method: oft, learning_rates: [1e-3, 1e-2], after: {intruders: [0.5]}}"
    found = faults_of(BASE.replace("{method: full, learning_rates: [1e-5, 1e-4]}", oft))
    assert "a rotation has no rank" in found["arms.full.after.intruders"][0]


def test_what_an_arm_and_the_arms_made_of_it_share_is_told_once() -> None:
    after = "{method: full, learning_rates: [1e-5], penalty_strength: 3, after: {scale: [0.4]}}"
    text = BASE.replace("{method: full, learning_rates: [1e-5, 1e-4]}", after)
    with pytest.raises(RecipeError) as error:
        parse_recipe(text)
    assert [fault.path for fault in error.value.faults] == ["arms.full.penalty_strength"]
