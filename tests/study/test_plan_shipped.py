"""Every shipped recipe is planned; the paper's against what the paper says of its own runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laura.models.cache import model_entry
from laura.recipe.reading import read_study
from laura.recipe.sections import Recipe
from laura.recipe.shipped import shipped_recipes
from laura.study.plan.planning import plan, plan_series
from laura.study.plan.text import plan_text, series_text
from tests.study.test_plan import LLAMA_2_7B

SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
MAGICODER_TOKENS = 72_970_000
PAPER = [name for name in shipped_recipes() if name.startswith("paper/")]
# Biderman et al. 2024, section 1.1 of the facts: trained parameters of all seven maps.
TRAINED = {"full": 6_738_415_616, "lora-r16": 39.98e6, "lora-r64": 159.9e6, "lora-r256": 639.6e6}


def planned(name: str, base: Path | None, **options: Any) -> dict[str, Any]:
    """The plan of a shipped recipe, or of every setting of a series."""
    overrides = [f"base.model={base}"] if base else []
    chosen = read_study(shipped_recipes()[name], overrides)
    options = {"devices": [1, 32], "flops_per_second": 4e14, **options}
    if isinstance(chosen, Recipe):
        found = plan(chosen, **options)
        assert plan_text(found)
        return found
    series = plan_series(chosen, **options)
    assert list(series["settings"]) == list(chosen.settings) and series_text(series)
    return series


def settings_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The plans in a recipe's or a series'."""
    return list(found["settings"].values()) if "settings" in found else [found]


@pytest.fixture
def llama_2_7b(tmp_path: Path) -> Path:
    """A folder with nothing but the config of Llama-2-7B."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_7B))
    return tmp_path


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_is_planned(name: str, tmp_path: Path, llama_2_7b: Path) -> None:
    base = llama_2_7b if name in PAPER else None
    if name.startswith("smollm2") and not model_entry("smollm2-135m-instruct-q4").is_dir():
        base = tmp_path / "smollm2"
        base.mkdir()
        (base / "config.json").write_text(json.dumps(SMOLLM2))
    for found in settings_of(planned(name, base)):
        total, size = found["totals"], found["base"]["parameters"]
        assert total["evaluation"]["models"] >= 2 and total["peak"] > 4 * size
        for arm in found["arms"]:
            # Beside the micro base the largest adapters hold more numbers than it.
            assert 0 < arm["trained_parameters"] <= (2 * size if "micro" in name else size)
            for one in arm["devices"]:
                parts = one["training"]
                assert (parts is None) == (arm["external"] or arm["of"] is not None)
                if parts is not None:
                    assert min(parts.values()) >= 0
                    assert max(parts.values()) == parts["peak"]
            if arm["flops"]:
                # 4 N to 6 N; beside the micro base large adapters add as much again.
                assert 2 < arm["flops"] / arm["tokens"] / size < 12
        if found["arms"] and total["flops"] is not None:
            assert total["flops"] == sum(arm["flops"] for arm in found["arms"])


@pytest.mark.parametrize("name", ["code-pretrain", "math-pretrain", "code-instruct", "tulu"])
def test_the_papers_arms_train_what_the_paper_says(name: str, llama_2_7b: Path) -> None:
    found = planned(f"paper/{name}", llama_2_7b)
    assert found["base"]["parameters"] == 6_738_415_616
    for arm in found["arms"]:
        assert arm["trained_parameters"] == pytest.approx(TRAINED[arm["arm"]], rel=5e-4)


@pytest.mark.parametrize("name", ["code-pretrain", "math-pretrain"])
def test_steps_of_continued_pretraining_are_the_papers(name: str, llama_2_7b: Path) -> None:
    found = planned(f"paper/{name}", llama_2_7b)
    # Steps of 786,432 tokens; the paper rounds, Laura ends with the step that reaches the budget.
    printed = [318, 636, 1272, 2543, 5086, 10173, 20345, 25431]
    for arm in found["arms"]:
        pairs = list(zip(arm["steps"], printed, strict=True))
        assert all(0 <= ours - theirs <= 1 for ours, theirs in pairs)
        # One trunk of 16 B tokens to the last fork, and the last fifth of each of 8 budgets.
        assert arm["tokens"] == pytest.approx(16e9 + 0.2 * 51.75e9, rel=1e-3)
        assert (arm["runs"], arm["models"]) == (1, 8)


def test_epochs_of_code_are_told_by_the_papers_tokens(llama_2_7b: Path) -> None:
    unknown = planned("paper/code-instruct", llama_2_7b)
    assert unknown["totals"]["tokens"] is None and unknown["totals"]["seconds"] is None
    found = planned("paper/code-instruct", llama_2_7b, epoch_tokens=MAGICODER_TOKENS)
    for arm in found["arms"]:
        # A run of its own for 1, 2, 4, 8 and 16 epochs.
        assert arm["tokens"] == pytest.approx(31 * MAGICODER_TOKENS, rel=0.005)
        assert arm["runs"] == 5
    # pass@k draws 256 answers of 164 tasks on the base and 4 arms at 5 points.
    passk = (1 + 4 * 5) * 256 * 164
    # Diversity is measured at the last point only, on the base and 4 arms.
    diversity = (1 + 4) * 50 * 164
    assert found["totals"]["evaluation"]["answers"] == 21 * 50 * 164 + passk + diversity


def test_released_checkpoints_are_measured_only(llama_2_7b: Path) -> None:
    found = planned("paper/released", llama_2_7b)
    assert found["totals"]["runs"] == 0 and found["totals"]["flops"] == 0
    arms = [arm for one in found["settings"].values() for arm in one["arms"]]
    assert (
        all(arm["devices"][0]["training"] is None for arm in arms)
        and "training" not in (series_text(found).split("Work")[0])
    )


def test_the_demo_is_every_rate_with_every_seed() -> None:
    found = planned("micro", None)
    assert found["totals"]["runs"] == 2 * 4 * 3 and found["totals"]["longer"] == 2 * 3 * 3


def test_every_arm_of_the_micro_study_has_rates_of_its_own_and_lists_overlap() -> None:
    """Neither an arm that was not tuned nor two lists that do not meet may decide a verdict."""
    series = read_study(shipped_recipes()["micro/paper"])
    assert not isinstance(series, Recipe)
    single = {name: read_study(shipped_recipes()[name]) for name in ("micro", "micro-math")}
    for name, recipe in [*series.settings.items(), *single.items()]:
        assert isinstance(recipe, Recipe)
        assert len(recipe.seeds) >= 3 and recipe.search.seeds_value == "all", name
        lists = [set(arm.learning_rates) for arm in recipe.arms.values()]
        assert min(map(len, lists)) >= 3 and len(set.intersection(*lists)) >= 2, name
    code = series.settings["code-instruct"].arms
    plain = code["full"].learning_rates
    assert all(arm.learning_rates == plain for arm in code.values() if arm.method == "full")
