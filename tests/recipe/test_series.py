"""A series: settings over what they share, every fault where its cause stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from laura.recipe.reading import Series, parse_recipe, read_study, recipe_yaml
from laura.recipe.sections import Recipe
from laura.results.errors import RecipeError

COMMON = """\
name: both
common:
  base: {model: micro}
  budget: {tokens: [1000, 2000]}
  arms:
    full: {method: full, learning_rates: [1e-5, 1e-4]}
    lora: {method: lora, rank: 8, learning_rates: [1e-4, 1e-3]}
  train: {batch_tokens: 512, row_tokens: 256}
  measure: {forgetting: [kl]}
"""
SETTINGS = """\
settings:
  code:
    domain: code
    data: {train: micro-code, test: micro-code}
    arms: {lora: {rank: 4}}
  math:
    domain: math
    regime: pretrain
    data: {train: micro-math-text, test: micro-math-text}
    budget: {tokens: null, epochs: [1]}
    arms: {full: null}
"""


def read(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> Recipe | Series:
    path = tmp_path / "series.yaml"
    path.write_text(text, encoding="utf-8")
    return read_study(path, overrides)


def faults(tmp_path: Path, text: str, overrides: tuple[str, ...] = ()) -> dict[str, int | None]:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text, overrides)
    return {fault.path: fault.line for fault in caught.value.faults}


def test_settings_are_laid_over_what_they_share(tmp_path: Path) -> None:
    series = read(tmp_path, COMMON + SETTINGS)
    assert isinstance(series, Series) and series.name == "both"
    code, math = series.settings["code"], series.settings["math"]
    assert (code.name, math.name) == ("code", "math")
    # Written out by hand, the setting is the same recipe.
    whole = COMMON.replace("name: both\ncommon:\n", "name: code\n").replace("\n  ", "\n")
    whole = whole.replace("rank: 8", "rank: 4")
    whole += "domain: code\ndata: {train: micro-code, test: micro-code}\n"
    assert code == parse_recipe(whole)
    assert list(math.arms) == ["lora"]
    assert (math.budget.tokens, math.budget.epochs) == (None, [1])
    assert code.budget.tokens == [1000, 2000]
    assert read(tmp_path, recipe_yaml(code)) == code, "a recipe alone is still a recipe"


def test_overrides_reach_a_setting_that_is_a_file(tmp_path: Path) -> None:
    own = "name: alone\nseeds: [5]\ndata: {train: micro-code, test: micro-code}\n"
    (tmp_path / "own.yaml").write_text(own, encoding="utf-8")
    text = COMMON + "settings: {code: own.yaml, code.x: own.yaml}\n"
    series = read(tmp_path, text, ("settings.code.x.seeds=[4]", "settings.code.domain=a"))
    assert isinstance(series, Series)
    assert [(r.name, r.seeds) for r in series.settings.values()] == [("code", [5]), ("code.x", [4])]
    assert [r.domain for r in series.settings.values()] == ["a", "target"]
    assert faults(tmp_path, text, ("settings.other.seeds=[4]",)) == {
        "--set settings.other.seeds": None
    }


def test_faults_stand_where_their_cause_does(tmp_path: Path) -> None:
    text = COMMON.replace("rank: 8", "rnk: 8") + SETTINGS.replace("regime: pretrain", "regime: x")
    assert faults(tmp_path, text) == {"common.arms.lora.rnk": 7, "settings.math.regime": 17}


def test_what_is_shared_is_told_once(tmp_path: Path) -> None:
    text = COMMON.replace("512", "12") + SETTINGS
    assert faults(tmp_path, text) == {"common.train.batch_tokens": 8}


def test_overrides_reach_every_setting_or_one(tmp_path: Path) -> None:
    series = read(
        tmp_path,
        COMMON + SETTINGS,
        ("seeds=[7]", "settings.code.domain=cod", "common.train.clip=2"),
    )
    assert isinstance(series, Series)
    assert [recipe.seeds for recipe in series.settings.values()] == [[7], [7]]
    assert series.settings["code"].domain == "cod"
    assert series.settings["math"].train.clip == 2
    assert faults(tmp_path, COMMON + SETTINGS, ("sedes=[7]",)) == {"sedes": None}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("name: x\nsettings: {}\n", "settings"),
        ("name: x\nsettings: [a]\n", "settings"),
        (COMMON + "settings: {'a b': {}}\n", "settings.a b"),
        (COMMON + "settings: {a: 5}\n", "settings.a"),
        (COMMON + "settings: {a: missing.yaml}\n", "settings.a"),
        (COMMON + SETTINGS + "extra: 1\n", "extra"),
        (COMMON.replace("name: both\n", "") + SETTINGS, "name"),
        (COMMON + SETTINGS.replace("domain: code", "name: code"), "settings.code.name"),
        (COMMON.replace("  base:", "  name: x\n  base:") + SETTINGS, "common.name"),
        ("name: x\ncommon: 3\n" + SETTINGS, "common"),
    ],
)
def test_malformed_series(tmp_path: Path, text: str, where: str) -> None:
    assert where in faults(tmp_path, text)
    assert faults(tmp_path, "name: s\nsettings: {a: {}}", ("settings={b: {}}",))


def test_what_settings_share_cannot_be_multiplied(tmp_path: Path) -> None:
    """Fifty settings of 5,000 shared values took 8 s of processor time and 700 kB of message."""
    common = ", ".join(f"k{number}: 1" for number in range(3000))
    settings = ", ".join(f"s{number}: {{}}" for number in range(50))
    words = r"settings \(line 3\): stand for more than 10,000"
    with pytest.raises(RecipeError, match=words) as told:
        read(tmp_path, f"name: x\ncommon: {{{common}}}\nsettings: {{{settings}}}\n")
    assert len(str(told.value)) < 60_000
