"""Settings that continue one another: every fault of a series of tasks, told together."""

from __future__ import annotations

from pathlib import Path

import pytest

from laura.recipe.reading import Series, parse_recipe, read_study, recipe_yaml
from laura.results.errors import RecipeError

TEXT = """\
name: tasks
common:
  base: {model: micro}
  budget: {tokens: [1000]}
  arms:
    full: {method: full, learning_rates: [1e-4]}
    lora: {method: lora, rank: 8, learning_rates: [1e-3]}
  train: {batch_tokens: 512, row_tokens: 256}
  measure: {forgetting: [micro_facts]}
settings:
  first:
    data: {train: micro-code, test: micro-code}
    measure: {learning: [micro_code]}
  second:
    continues: first
    data: {train: micro-math, test: micro-math}
    arms: {lora: {learning_rates: [2e-3]}}
    measure: {learning: [micro_math, micro_code]}
"""


def series_of(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    """The file, with these words in place of those."""
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "series.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(tmp_path: Path, *changes: tuple[str, str]) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        read_study(series_of(tmp_path, *changes))
    return {fault.path: fault.problem for fault in caught.value.faults}


def test_a_setting_continues_an_earlier_one_of_its_series(tmp_path: Path) -> None:
    series = read_study(series_of(tmp_path))
    assert isinstance(series, Series)
    assert [one.continues for one in series.settings.values()] == [None, "first"]
    place = "settings.second.continues"
    told = faults(tmp_path, ("continues: first", "continues: second"))
    assert list(told) == [place] and "before it are: first" in told[place]
    told = faults(tmp_path, ("  first:\n", "  first:\n    continues: second\n"))
    assert list(told) == ["settings.first.continues"], "one that is wrong is not told twice"
    assert "there is none" in told["settings.first.continues"], "two stages, or more"
    second = series.settings["second"]
    assert parse_recipe(recipe_yaml(second)) == second, "by itself it is a recipe"


def test_all_that_keeps_stages_apart_is_told_together(tmp_path: Path) -> None:
    told = faults(
        tmp_path,
        ("    continues: first\n", "    continues: first\n    base: {revision: main}\n"
         "    seeds: [0, 5]\n"),
        ("[2e-3]}}", "[2e-3], rank: 4, init: pissa}, full: {weight_decay: 0.1, "
         "weight_decay_toward: base}, more: {method: lora, after: {scale: [0.5]}}}"),
        ("[micro_math, micro_code]", "[micro_math]"),
    )  # fmt: skip
    assert {key.removeprefix("settings.second."): words[:32] for key, words in told.items()} == {
        "base": "is not that of first, whose chec",
        "seeds": "has 5, which first has not; ever",
        "arms.full.weight_decay": "is 0.1, in first 0.0: an arm car",
        "arms.full.weight_decay_toward": "is base, but would pull to the s",
        "arms.lora.rank": "is 4, in first 8: an arm carries",
        "arms.lora.init": "is pissa: its checkpoints have t",
        "arms.more": "is no arm of first; it has: full",
        "arms.more.after": "changes finished checkpoints, fr",
        "measure.learning": "lacks micro_code, which earlier ",
    }


@pytest.mark.parametrize(
    ("old", "new", "place", "problem"),
    [
        ("rank: 8", "rank: 8, init: milora", "arms.lora.init", "have twice the rank"),
        ("{method: full", "{method: full, weight_decay: 0.1, weight_decay_toward: base",
         "arms.full.weight_decay_toward", "would pull to the stage before"),
        ("[1e-4]}", "[1e-4], external: [{model: x, learning_rate: 1e-4, seed: 0, "
         "budget: 1000}]}", "arms.full.external", "were made elsewhere"),
        ("[1e-4]", "[1e-4], after: {scale: [0.5]}", "arms.full.after", "finished checkpoints"),
    ],
)  # fmt: skip
def test_a_remedy_that_no_stage_can_carry_on(
    tmp_path: Path, old: str, new: str, place: str, problem: str
) -> None:
    told = faults(tmp_path, (old, new))
    assert problem in told.get(f"settings.second.{place}", told.get(f"common.{place}", ""))


def test_every_stage_has_a_task_of_its_own_with_items(tmp_path: Path) -> None:
    where = "settings.second.measure.learning.0"
    told = faults(tmp_path, ("[micro_math, micro_code]", "[micro_code, micro_math]"))
    assert "is micro_code, which an earlier stage learns already" in told[where]
    told = faults(tmp_path, ("[micro_math, micro_code]", "[target_loss, micro_code]"))
    assert "is target_loss in second" in told[where]
    told = faults(tmp_path, ("[micro_code]", "[target_loss]"))
    assert "is target_loss in first" in told[where]
