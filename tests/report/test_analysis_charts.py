"""The charts of what was analysed: their numbers against those of the files."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from laura.report.arms import families, regulariser
from laura.report.blocks import Table
from laura.report.charts import (
    alphas,
    diversity,
    intruders,
    pass_at_k,
    ranks,
    regularisers,
    replay,
    singular_values,
    spectra,
    tradeoff,
)
from laura.report.charts.panel import Panel
from laura.report.pages import overview
from laura.report.study import Study
from laura.results.schema import Summary

Build = Callable[..., dict[str, Any]]


def rows_of(panel: Panel) -> list[dict[str, Any]]:
    """Rows of the largest data set of a panel: those of its lines and markers."""
    return max(panel.drawing.to_dict(validate=False)["datasets"].values(), key=len)


def final(study: Study, arm: str, name: str) -> list[float]:
    """An arm's scores at its best rate and largest budget, one a seed, in per cent."""
    points = [p for p in study.summary.points if p.arm == arm and p.selected and p.budget == 80_000]
    found = [point.scores.get(name) for point in points]
    return [100 * one.value for one in found if one is not None]


def rings(panel: Panel) -> list[dict[str, Any]]:
    """Layers of the large rings around the front's points."""
    layers: list[dict[str, Any]] = panel.drawing.to_dict(validate=False)["layer"]
    return [layer for layer in layers if layer["mark"].get("size") == 330]


def test_the_front_rings_the_points_that_were_found(full_study: Study) -> None:
    panel = tradeoff.draw(full_study)[0]
    assert full_study.analysis.tradeoff is not None
    front = full_study.analysis.tradeoff.front
    [ring] = rings(panel)
    rows = panel.drawing.to_dict(validate=False)["datasets"][ring["data"]["name"]]
    means = [
        statistics.fmean(100 * p.changes["gsm8k"].value for p in full_study.summary.points
                         if p.run in one.runs and p.budget == one.budget)
        for one in front
    ]  # fmt: skip
    assert sorted(row["y"] for row in rows) == pytest.approx(sorted(means))
    # Each is named by arm, rate and budget: at the point, and for who cannot see it.
    names = {"full 3e-5 80k", "lora-r16 3e-4 80k", "lora-r64 3e-4 80k"}
    assert {row["front_label"] for row in rows} == names
    assert all(name in panel.description for name in names)
    analysis = full_study.analysis.model_copy(update={"tradeoff": None})
    alone = replace(full_study, analysis=analysis)
    assert rings(tradeoff.draw(alone)[0]) == []


def test_the_table_names_the_front_too(full_study: Study) -> None:
    [table] = [b for b in overview.blocks(full_study)
               if isinstance(b, Table) and b.name == "front-table"]  # fmt: skip
    assert [[cell.text for cell in row] for row in table.rows] == [
        [arm, rate, "80k tokens", "8.0", "1.0", "2"]
        for arm, rate in (("full", "3e-5"), ("lora-r16", "3e-4"), ("lora-r64", "3e-4"))
    ]


def test_ranks_are_means_over_seeds_beside_the_noise(full_study: Study) -> None:
    panels = spectra.draw(full_study)
    for panel, arm in zip(panels, ("full", "lora-r16"), strict=True):
        rows = rows_of(panel)
        for row in rows:
            ranks_found = [
                matrix.rank_kept
                for one in full_study.analysis.spectra
                for matrix in one.matrices
                if (one.arm, one.budget, matrix.module, str(matrix.layer))
                == (arm, row["budget"], row["module"], row["layer"])
            ]
            assert len(ranks_found) == 2 and row["y"] == statistics.fmean(ranks_found)
            assert row["noise"] == 400
        assert len(rows) == 2 * 2 * 4
    assert max(row["y"] for row in rows_of(panels[1])) <= 16


def test_intruders_are_means_over_matrices(full_study: Study) -> None:
    [panel] = intruders.draw(full_study)
    found = {(row["arm"], row["layer"]): row["y"] for row in rows_of(panel)}
    assert found == {
        **{("full", layer): 0.0 for layer in range(4)},
        **{("lora-r16", layer): float(layer) for layer in range(4)},
    }


def test_singular_values_leave_out_zeros_and_keep_the_first(full_study: Study) -> None:
    panels = singular_values.draw(full_study)
    assert len(panels) == 2
    for panel in panels:
        rows = rows_of(panel)
        assert {row["series"] for row in rows} == {"base", "tuned", "update"}
        assert all(row["y"] > 0 for row in rows)
        assert max(row["y"] for row in rows if row["series"] == "update") == pytest.approx(0.9)


def test_replay_draws_share_against_score(full_study: Study) -> None:
    named = families(full_study.summary, "replay")
    assert [[arm.name for arm in arms] for arms in named.values()] == [["full", "full-replay"]]
    panel = replay.draw(full_study)[0]
    found = {row["x"]: row["y"] for row in rows_of(panel)}
    assert found == {
        0.0: pytest.approx(statistics.fmean(final(full_study, "full", "gsm8k"))),
        0.1: pytest.approx(statistics.fmean(final(full_study, "full-replay", "gsm8k"))),
    }


def test_rank_and_modules_are_told_apart(full_study: Study) -> None:
    rows = rows_of(ranks.draw(full_study)[0])
    assert {(row["arm"], row["series"], row["x"]) for row in rows} == {
        ("lora-r16", "all", 16.0),
        ("lora-r64", "all", 64.0),
        ("lora-mlp", "mlp", 16.0),
        ("lora-alpha", "all, alpha 0.5r", 16.0),
    }
    [panel] = alphas.draw(full_study)
    assert {(row["series"], row["x"]) for row in rows_of(panel)} == {
        *(("alpha 32", rate) for rate in (1e-4, 3e-4, 1e-3)),
        *(("alpha 8", rate) for rate in (1e-4, 3e-4)),
    }


def test_regularisers_are_told_from_the_settings(full_study: Study) -> None:
    told = {arm.name: regulariser(arm) for arm in full_study.summary.arms}
    assert told["full"] == "nothing"
    assert told["full-decay"] == "weight decay 0.1 toward zero"
    assert told["full-l2sp"] == "weight decay 0.1 toward the base (L2-SP)"
    assert told["lora-r16"] == "low rank 16"
    assert len(regularisers.draw(full_study)) == 3


def test_diversity_is_taken_over_seeds(full_study: Study) -> None:
    [panel] = diversity.draw(full_study)
    rows = {(row["arm"], row["kind"]): row for row in rows_of(panel)}
    assert {arm for arm, _ in rows} == {"base", "full", "lora-r16"}
    assert rows["full", "all"]["x"] == 9.0 and rows["base", "of those that pass"]["x"] == 4.0
    assert rows["full", "all"]["seeds"] == "2"


def test_pass_at_k_is_in_per_cent(full_study: Study) -> None:
    [panel] = pass_at_k.draw(full_study)
    rows = [row for row in rows_of(panel) if row["series"] == "base"]
    assert [(row["x"], row["y"]) for row in rows] == [
        (1, pytest.approx(5)), (4, pytest.approx(15)), (16, pytest.approx(40))
    ]  # fmt: skip
    assert all(math.isclose(row["y_high"] - row["y"], 2) for row in rows)


def test_a_study_without_analyses_draws_none_of_these(build: Build) -> None:
    study = Study(Summary.model_validate(build()))
    for chart in (regularisers, spectra, singular_values, intruders, diversity, pass_at_k,
                  replay, ranks, alphas):  # fmt: skip
        assert chart.draw(study) == []
