"""A report of seventeen arms: what is drawn, in which colours, and that nothing is lost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from laura.report.arms import representatives, variations
from laura.report.blocks import Fold, Prose, Table
from laura.report.charts import CHARTS, cost, drift, intruders, learning_curves, pass_at_k, spectra
from laura.report.charts import singular_values as values
from laura.report.charts.panel import Panel
from laura.report.charts.style import LEGEND_LETTERS, PALETTE, hue
from laura.report.pages import learning_rate, overview
from laura.report.pages.spectra import blocks as spectra_blocks
from laura.report.study import Study
from laura.results.schema import Costs, RunCost, Summary

Build = Callable[..., dict[str, Any]]
STAND = ["full", "lora-r4", "lora-r16", "lora-r64"]


def drawn(panel: Panel) -> dict[str, Any]:
    """The specification of a panel."""
    value: dict[str, Any] = panel.drawing.to_dict(validate=False)
    return value


def arms_of(panel: Panel) -> set[str]:
    """Arms that a panel has rows of."""
    return {
        row["arm"] for rows in drawn(panel)["datasets"].values() for row in rows if "arm" in row
    } - {"base"}


def test_plain_arms_stand_for_all(crowd_study: Study, full_study: Study) -> None:
    summary = crowd_study.summary
    assert len(summary.arms) == 12 and representatives(summary) == STAND
    assert [arm.name for arm in summary.arms if variations(arm) == 0] == STAND
    # Few are all drawn, in the study's order.
    assert representatives(summary, ["full-l2sp", "lora-r16-mlp"]) == ["lora-r16-mlp", "full-l2sp"]
    # Told by settings: names say nothing.
    arms = [arm.model_copy(update={"name": f"arm {n}"}) for n, arm in enumerate(summary.arms)]
    named = summary.model_copy(update={"arms": arms})
    assert representatives(named) == ["arm 0", "arm 1", "arm 2", "arm 3"]
    assert representatives(full_study.summary) == ["full", "lora-r16", "lora-r64"]


def test_ranks_are_taken_evenly(build: Build) -> None:
    ranks = [256, 2, 64, 4, 16, 8, 128, 32]
    arms = {f"r{rank}": ("lora", [1e-3], 1e-3) for rank in ranks}
    value = build(arms={**arms, "all": ("full", [1e-4], 1e-4)}, budgets=(20_000,), seeds=(0,))
    for arm, rank in zip(value["arms"], ranks, strict=False):
        arm["settings"] = {"rank": rank, "alpha": 2.0 * rank, "targets": "all"}
    assert representatives(Summary.model_validate(value)) == ["r256", "r2", "r32", "all"]


def test_spectra_have_a_panel_an_arm_on_common_axes(crowd_study: Study) -> None:
    panels = spectra.draw(crowd_study)
    assert [drawn(panel)["title"]["text"] for panel in panels] == STAND
    scales = []
    for panel, arm in zip(panels, STAND, strict=True):
        assert arms_of(panel) == {arm} and arm in panel.description
        [line] = [
            layer["encoding"] for layer in drawn(panel)["layer"]
            if "y" in layer["encoding"] and "color" in layer["encoding"]
            and layer["mark"]["type"] == "line"
        ]  # fmt: skip
        scales.append((line["x"]["scale"]["domain"], line["y"]["scale"]["domain"]))
        assert json.loads(line["x"]["axis"]["labelExpr"].split("[floor")[0]) == ["q", "up"]
    assert scales[0][0] == [0, 2] and all(scale == scales[0] for scale in scales)
    for row in max(drawn(panels[0])["datasets"].values(), key=len):
        band = {"q_proj": 0, "up_proj": 1}[row["module"]]
        assert row["x"] == band + (int(row["layer"]) + 0.5) / 4  # of four layers


def test_charts_of_weights_say_whom_they_leave_to_the_table(crowd_study: Study) -> None:
    for chart in (spectra.CHART, values.CHART, intruders.CHART):
        panels = chart.draw(crowd_study)
        assert set().union(*map(arms_of, panels)) <= set(STAND) and len(panels) <= 8
        told = chart.caption(crowd_study)
        assert f"Drawn are {', '.join(STAND)}:" in told and "has all 12 arms." in told
    [table] = [
        block for block in spectra_blocks(crowd_study)
        if isinstance(block, Table) and block.name == "update-sizes"
    ]  # fmt: skip
    assert len({row[0].text for row in table.rows}) == 12
    assert f"“{table.caption}” has" in spectra.CHART.caption(crowd_study)


def test_few_arms_are_all_drawn_and_nothing_is_said(build: Build) -> None:
    study = Study(Summary.model_validate(build()))
    assert all(chart.caption(study) == chart.explanation for chart in CHARTS)


@pytest.mark.parametrize("chart", CHARTS, ids=[chart.name for chart in CHARTS])
def test_every_arm_has_a_colour_of_its_own_or_is_grey(chart: Any, crowd_study: Study) -> None:
    for panel in chart.draw(crowd_study):
        value = drawn(panel)
        for layer in value["layer"]:
            color = layer["encoding"].get("color", {})
            if "scale" not in color or not color.get("field"):
                continue
            domain, range_ = color["scale"]["domain"], color["scale"]["range"]
            assert len(set(range_)) == len(domain) == len(range_)
            field = color["field"]
            rows = value["datasets"][layer.get("data", value.get("data"))["name"]]
            found = {row[field] for row in rows}
            assert found <= set(domain)  # nothing is coloured by chance
            columns = color["legend"].get("columns") or 1
            if field in ("arm", "series"):
                assert columns == 1 or max(map(len, domain)) <= LEGEND_LETTERS


def test_colours_last_for_twenty_arms() -> None:
    assert [hue(place) for place in range(7)] == list(PALETTE)
    assert len({hue(place) for place in range(21)}) == 21


def test_grey_lines_keep_every_arm(crowd_study: Study) -> None:
    names = {arm.name for arm in crowd_study.summary.arms}
    for chart in CHARTS:
        if chart.name in ("tradeoff", "learning_curves", "learning_rates", "drift"):
            assert "In colour are full, lora-r4" in chart.caption(crowd_study)
            assert all(arms_of(panel) == names for panel in chart.draw(crowd_study))
    [panel] = pass_at_k.draw(crowd_study)
    series = {row["series"] for rows in drawn(panel)["datasets"].values() for row in rows}
    assert series == {"base", *STAND} and "has all 12 arms" in pass_at_k.CHART.caption(crowd_study)


def test_divergences_have_a_chart_of_their_own(crowd_study: Study) -> None:
    panels = {panel.name: panel for panel in drift.draw(crowd_study)}
    assert list(panels) == ["kl", "kl_reverse", "kl_source"]
    assert not set(panels) & {panel.name for panel in learning_curves.draw(crowd_study)}
    rows = [row for rows in drawn(panels["kl_source"])["datasets"].values() for row in rows]
    [row] = {r["y"] for r in rows if r.get("arm") == "full-l2sp" and r["tokens"] == 80_000}
    found = [
        point.scores["kl_source"].value
        for point in crowd_study.summary.points
        if (point.arm, point.budget, point.selected) == ("full-l2sp", 80_000, True)
    ]
    assert len(found) == 2 and row == pytest.approx(statistics.fmean(found))


def test_cost_is_that_of_the_runs(full_study: Study) -> None:
    speeds = {"full": [100.0, 300.0, 120.0], "lora-r16": [250.0]}
    runs = [
        RunCost(id=f"{arm}-{place}", arm=arm, learning_rate=1e-3, seed=place, train_seconds=1,
                tokens_per_second=speed, peak_memory_bytes=place * 2**30, flops=2)
        for arm, own in speeds.items()
        for place, speed in enumerate(own, start=1)
    ]  # fmt: skip
    study = replace(full_study, costs=Costs(runs=runs))
    speed, memory = cost.draw(study)
    rows = [max(drawn(panel)["datasets"].values(), key=len) for panel in (speed, memory)]
    assert {row["arm"]: row["x"] for row in rows[0]} == {"full": 120.0, "lora-r16": 250.0}
    assert {row["arm"]: row["x"] for row in rows[1]} == {"full": 3.0, "lora-r16": 1.0}
    assert "full 120 tokens/s" in speed.description
    assert cost.draw(replace(study, costs=None)) == []


def test_spikes_stand_beside_the_rates(full_study: Study) -> None:
    [table] = [block for block in learning_rate.blocks(full_study) if isinstance(block, Table)]
    rows = {(row[0].text, row[1].text): [cell.text for cell in row[2:]] for row in table.rows}
    # Full finetuning at 1e-4 has one spike in both its runs of forty steps.
    assert rows["full", "1e-4"] == ["", "2", "2", "25.00", "1.25"]
    assert rows["full", "3e-5"] == ["yes", "4", "0", "0.00", "–"]
    tried = {(arm.name, rate) for arm in full_study.summary.arms for rate in arm.rates}
    assert len(rows) == len(tried)
    calm = [one for one in full_study.analysis.spikes if not one.count]
    analysis = full_study.analysis.model_copy(update={"spikes": calm})
    quiet = replace(full_study, analysis=analysis)
    told = learning_rate.blocks(quiet)[-1]
    assert isinstance(told, Prose) and told.text.startswith(f"None in {len(calm)} runs.")


def test_the_overview_tells_of_two_arms_and_folds_the_others(crowd_study: Study) -> None:
    judged = crowd_study.judgement
    assert judged is not None
    found = overview.blocks(crowd_study)
    assert found[: len(judged.sentences)] == [Prose(text) for text in judged.sentences]
    [fold] = [b for b in found if isinstance(b, Fold) and b.title.startswith("The other arms")]
    assert [block.text for block in fold.blocks if isinstance(block, Prose)] == judged.others
