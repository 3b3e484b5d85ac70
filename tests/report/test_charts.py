"""The charts: their numbers against those of the files, their colours, and one from outside."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import altair
import pytest

from laura.report import figures, html
from laura.report.arms import families, regularised, regulariser, representatives, variations
from laura.report.blocks import Prose, Table
from laura.report.charts import style
from laura.report.charts.analyses import diversity, intruders, pass_at_k, spectra
from laura.report.charts.lines import drift, learning_curves, ranks, regularisers, replay
from laura.report.charts.style import LEGEND_LETTERS, PALETTE, SHAPES, Chart, ChartPanel, hue
from laura.report.charts.tradeoff import pairs, tradeoff
from laura.report.figures import CHARTS, draw_figures
from laura.report.pages.analyses import spectra as spectra_page
from laura.report.pages.overview import learning_rate, overview
from laura.report.study import Study
from laura.results.schema import Summary
from tests.report.conftest import no_figures

Build = Callable[..., dict[str, Any]]
Row = dict[str, Any]
STAND = ["full", "lora-r4", "lora-r16", "lora-r64"]
each_chart = pytest.mark.parametrize("chart", CHARTS, ids=[chart.name for chart in CHARTS])


def drawn(panel: ChartPanel) -> Row:
    """The specification of a panel."""
    value: Row = panel.drawing.to_dict(validate=False)
    return value


def all_rows(panel: ChartPanel) -> list[Row]:
    return [row for rows in drawn(panel)["datasets"].values() for row in rows]


def rows_of(panel: ChartPanel) -> list[Row]:
    """Rows of the largest data set of a panel: those of its lines and markers."""
    found: list[Row] = max(drawn(panel)["datasets"].values(), key=len)
    return found


def arms_of(panel: ChartPanel) -> set[str]:
    """Arms that a panel has rows of."""
    return {row["arm"] for row in all_rows(panel) if "arm" in row} - {"base"}


def final(study: Study, arm: str, name: str, budget: int = 80_000) -> float:
    """An arm's mean score at its best rate and largest budget."""
    points = [p for p in study.summary.points if p.arm == arm and p.selected and p.budget == budget]
    assert len(points) > 1
    return statistics.fmean(point.scores[name].value for point in points)


# ----- every chart -----


@each_chart
def test_specifications_are_valid_and_fit_a_phone(chart: Chart, full_study: Study) -> None:
    panels = chart.draw(full_study)
    assert panels and len({panel.name for panel in panels}) == len(panels)
    for panel in panels:
        title = panel.drawing.to_dict(validate=True)["title"]
        text = title["text"] if isinstance(title["text"], list) else [title["text"]]
        assert max(map(len, text)) <= 40 and max(map(len, title["subtitle"])) <= 54


def test_every_chart_survives_every_gap(build: Build) -> None:
    studies = [
        build(missing=("gsm8k", "kl"), seeds=(0,)),
        build(seeds=(0,), budgets=(20_000,), diverged=(("full", 3e-5), ("lora-r16", 3e-4))),
        build(learning=("target_loss",), forgetting=("kl",)),
        build(arms={}),
    ]
    studies[1]["base"]["scores"] = {}
    for value in studies:
        study = Study(Summary.model_validate(value))
        panels = {chart.name: [drawn(p) for p in chart.draw(study)] for chart in CHARTS}
        for name in ("regularisers", "spectra", "intruders", "diversity", "pass_at_k", "replay",
                     "ranks"):  # fmt: skip
            assert panels[name] == []  # nothing of the kind was run or analysed


def test_colours_differ_and_follow_the_arm(build: Build) -> None:
    assert len(set(PALETTE)) == len(PALETTE) and len(set(SHAPES)) == len(SHAPES)
    assert [hue(place) for place in range(7)] == list(PALETTE)
    assert len({hue(place) for place in range(21)}) == 21
    study = Study(Summary.model_validate(build()))
    # Few arms are all drawn, and nothing is said of it.
    assert all(chart.caption(study) == chart.explanation for chart in CHARTS)
    layers = [layer for c in CHARTS for panel in c.draw(study) for layer in drawn(panel)["layer"]]
    colors = [layer["encoding"].get("color", {}) for layer in layers]
    scales = [(c["scale"]["domain"], c["scale"]["range"]) for c in colors if "scale" in c]
    assert len(scales) > 20 and all(scale == scales[0] for scale in scales)


@each_chart
def test_every_arm_has_a_colour_of_its_own_or_is_grey(chart: Chart, crowd_study: Study) -> None:
    for value in map(drawn, chart.draw(crowd_study)):
        for layer in value["layer"]:
            color = layer["encoding"].get("color", {})
            if "scale" not in color or not color.get("field"):
                continue
            domain, range_ = color["scale"]["domain"], color["scale"]["range"]
            assert len(set(range_)) == len(domain) == len(range_)
            field = color["field"]
            rows = value["datasets"][layer.get("data", value.get("data"))["name"]]
            assert {row[field] for row in rows} <= set(domain)  # nothing is coloured by chance
            columns = color["legend"].get("columns") or 1
            if field in ("arm", "series"):
                assert columns == 1 or max(map(len, domain)) <= LEGEND_LETTERS


def test_a_chart_from_outside_is_drawn_like_ours(
    build: Build, make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(study: Study) -> list[ChartPanel]:
        points = [{"x": p.tokens, "y": p.step} for p in study.summary.points]
        layer = style.chart(points).mark_point().encode(x=altair.X("x:Q"), y="y:Q")
        return [ChartPanel("steps", style.titled([layer], "Steps"), "Steps against tokens.")]

    own = Chart("steps", "Steps taken", "One marker a checkpoint.", draw, page="runs")
    few = {"learning": ("target_loss",), "forgetting": ("kl",), "seeds": (0,)}
    study = make_study(build(**few, budgets=(20_000,)))
    monkeypatch.setattr(figures, "CHARTS", [own])  # which is drawn like ours, they as if empty
    kept = no_figures()
    monkeypatch.setattr(html, "draw_figures", lambda *given: kept | draw_figures(*given))
    page = html.write_report(study).read_text(encoding="utf-8")
    markdown = html.write_report(study, form="md").read_text(encoding="utf-8")
    assert (study / "figures/steps.svg").read_text().startswith("<svg")
    assert (study / "figures/steps.png").stat().st_size > 5000
    # At the end of the page that it names.
    assert page.index('id="figure-loss_curves"') < page.index('id="figure-steps"')
    assert page.index('id="figure-steps"') < page.index('id="absent"')
    assert "![Steps against tokens.](figures/steps.svg)" in markdown


# ----- the trade-off -----


@pytest.mark.parametrize(
    ("learning", "forgetting", "expected"),
    [
        (("gsm8k", "target_loss"), ("hellaswag", "arc_challenge", "source_loss", "kl"),
         [("gsm8k", "mean"), ("target_loss", "source_loss"), ("gsm8k", "kl")]),
        (("gsm8k",), ("source_loss",), [("gsm8k", "source_loss")]),
        (("target_loss",), ("source_loss", "kl"),
         [("target_loss", "source_loss"), ("target_loss", "kl")]),
        (("target_loss",), ("winogrande",), [("target_loss", "mean")]),
    ],
)  # fmt: skip
def test_pairs_that_make_sense(
    build: Build, learning: Any, forgetting: Any, expected: list[tuple[str, str]]
) -> None:
    summary = Summary.model_validate(build(learning=learning, forgetting=forgetting))
    assert pairs(summary) == expected
    assert [p.name for p in tradeoff.draw(Study(summary))] == ["-".join(pair) for pair in expected]


@pytest.mark.parametrize(
    ("place", "up", "right", "signs"),
    [(0, "gsm8k", "mean", (100, -100)), (1, "target_loss", "source_loss", (-1, 1))],
)
def test_trade_off_points_are_the_changes_of_the_summary(
    build: Build, place: int, up: str, right: str, signs: tuple[int, int]
) -> None:
    value = build(seeds=(0,))
    point = next(p for p in value["points"] if p["selected"] and p["budget"] == 80_000)
    panel = tradeoff.draw(Study(Summary.model_validate(value)))[place]
    [row] = [row for row in all_rows(panel) if row.get("run") == point["run"]]
    for axis, name, sign in (("y", up, signs[0]), ("x", right, signs[1])):
        change = point["changes"][name]
        # What was learnt, and what was lost, are numbers above zero.
        assert row[axis] == pytest.approx(sign * change["value"]) and row[axis] > 0
        assert row[f"{axis}_high"] - row[axis] == pytest.approx(abs(sign) * change["stderr"])
    reverse = {
        axis: layer["encoding"][axis]["scale"].get("reverse", False)
        for layer in drawn(panel)["layer"]
        for axis in ("x", "y")
        if "scale" in layer["encoding"].get(axis, {})
    }
    assert reverse == {"x": True, "y": False}


def rings(panel: ChartPanel) -> list[Row]:
    """Layers of the large rings around the front's points."""
    return [layer for layer in drawn(panel)["layer"] if layer["mark"].get("size") == 330]


def test_the_front_rings_the_points_that_were_found(full_study: Study) -> None:
    panel, found = tradeoff.draw(full_study)[0], full_study.analysis.tradeoff
    assert found is not None
    [ring] = rings(panel)
    rows = drawn(panel)["datasets"][ring["data"]["name"]]
    means = [
        statistics.fmean(100 * p.changes["gsm8k"].value for p in full_study.summary.points
                         if p.run in one.runs and p.budget == one.budget)
        for one in found.front
    ]  # fmt: skip
    assert sorted(row["y"] for row in rows) == pytest.approx(sorted(means))
    # Each is named by arm, rate and budget: at the point, and for who cannot see it.
    names = {"full 3e-5 80k", "lora-r16 3e-4 80k", "lora-r64 3e-4 80k"}
    assert {row["front_label"] for row in rows} == names
    assert all(name in panel.description for name in names)
    [table] = [b for b in overview(full_study) if isinstance(b, Table) and b.name == "front-table"]
    assert {" ".join(cell.text for cell in row[:3]) for row in table.rows} == {
        f"{name.rsplit(' ', 1)[0]} 80k tokens" for name in names
    }
    analysis = full_study.analysis.model_copy(update={"tradeoff": None})
    assert rings(tradeoff.draw(replace(full_study, analysis=analysis))[0]) == []


def test_names_of_the_front_do_not_lie_over_one_another(full_study: Study) -> None:
    found = full_study.analysis.tradeoff
    assert found is not None
    # Beside the front, one arm at two rates that ended where another one did.
    points = list(full_study.summary.points)
    crowd = [p.model_copy(update={"learning_rate": rate, "selected": False})
             for p in points for rate in (1.1e-5, 1.2e-5)
             if (p.arm, p.budget) == ("full", 80_000) and p.selected]  # fmt: skip
    front = [found.front[0].model_copy(update={
                "arm": "full", "learning_rate": rate, "budget": 80_000,
                "runs": tuple(p.run for p in crowd if p.learning_rate == rate)})
             for rate in (1.1e-5, 1.2e-5)]  # fmt: skip
    summary = full_study.summary.model_copy(update={"points": (*points, *crowd)})
    pareto = found.model_copy(update={"front": (*found.front, *front)})
    analysis = full_study.analysis.model_copy(update={"tradeoff": pareto})
    panel = tradeoff.draw(replace(full_study, summary=summary, analysis=analysis))[0]
    [ring] = rings(panel)
    everything = drawn(panel)
    assert len(everything["datasets"][ring["data"]["name"]]) == 5
    words = [layer for layer in everything["layer"] if layer["mark"]["type"] == "text"]
    named = [row["front_label"] for layer in words
             for row in everything["datasets"][layer["data"]["name"]]
             if "front_label" in row]  # fmt: skip
    assert sum(name.startswith("full ") for name in named) == 1
    assert any(name.startswith("lora") for name in named)
    assert f"{5 - len(named)} more names" in json.dumps(everything["title"])
    # Who cannot see it hears of all five.
    assert all(f"full {rate} 80k" in panel.description for rate in ("1.1e-5", "1.2e-5"))


# ----- lines -----


def test_divergences_have_a_chart_of_their_own(crowd_study: Study) -> None:
    panels = {panel.name: panel for panel in drift.draw(crowd_study)}
    assert list(panels) == ["kl", "kl_reverse", "kl_source"]
    assert not set(panels) & {panel.name for panel in learning_curves.draw(crowd_study)}
    rows = all_rows(panels["kl_source"])
    [found] = {r["y"] for r in rows if r.get("arm") == "full-l2sp" and r["x"] == 80_000}
    assert found == pytest.approx(final(crowd_study, "full-l2sp", "kl_source"))


def test_replay_draws_share_against_score(full_study: Study) -> None:
    named = families(full_study.summary, "replay")
    assert [[arm.name for arm in arms] for arms in named.values()] == [["full", "full-replay"]]
    found = {row["x"]: row["y"] for row in rows_of(replay.draw(full_study)[0])}
    assert found == {
        0.0: pytest.approx(100 * final(full_study, "full", "gsm8k")),
        0.1: pytest.approx(100 * final(full_study, "full-replay", "gsm8k")),
    }


def test_rank_and_modules_are_told_apart(full_study: Study) -> None:
    rows = rows_of(ranks.draw(full_study)[0])
    assert {(row["arm"], row["series"], row["x"]) for row in rows} == {
        ("lora-r16", "all", 16.0),
        ("lora-r64", "all", 64.0),
        ("lora-mlp", "mlp", 16.0),
        ("lora-alpha", "all, alpha 0.5r", 16.0),
    }


def test_regularisers_are_told_from_the_settings(full_study: Study) -> None:
    told = {arm.name: regulariser(arm) for arm in full_study.summary.arms}
    assert told["full"] == "nothing"
    assert told["full-decay"] == "weight decay 0.1 toward zero"
    assert told["full-l2sp"] == "weight decay 0.1 toward the base (L2-SP)"
    assert told["lora-r16"] == "low rank 16"
    arms = set(regularised(full_study.summary))
    assert [arms_of(panel) for panel in regularisers.draw(full_study)] == [arms] * 3


# ----- analyses -----


def test_spectra_are_means_over_seeds_beside_noise(full_study: Study) -> None:
    panels = spectra.draw(full_study)
    for panel, arm in zip(panels, ("full", "lora-r16"), strict=True):
        rows = rows_of(panel)
        for row in rows:
            found = [
                matrix.rank_kept
                for one in full_study.analysis.spectra
                for matrix in one.matrices
                if (one.arm, one.budget, matrix.module, str(matrix.layer))
                == (arm, row["budget"], row["module"], row["layer"])
            ]
            assert len(found) == 2 and row["y"] == statistics.fmean(found)
            assert row["noise"] == 400
        assert len(rows) == 2 * 2 * 4
    assert max(row["y"] for row in rows_of(panels[1])) <= 16


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
    for row in rows_of(panels[0]):
        band = {"q_proj": 0, "up_proj": 1}[row["module"]]
        assert row["x"] == band + (int(row["layer"]) + 0.5) / 4  # of four layers


def test_intruders_are_means_over_matrices(full_study: Study) -> None:
    [panel] = intruders.draw(full_study)
    found = {(row["arm"], row["x"]): row["y"] for row in rows_of(panel)}
    assert found == {
        **{("full", layer): 0.0 for layer in range(4)},
        **{("lora-r16", layer): float(layer) for layer in range(4)},
    }


def test_diversity_is_taken_over_seeds(full_study: Study) -> None:
    [panel] = diversity.draw(full_study)
    rows = {(row["arm"], row["kind"]): row for row in rows_of(panel)}
    assert {arm for arm, _ in rows} == {"base", "full", "lora-r16"}
    assert rows["full", "all"]["x"] == 9.0 and rows["base", "of those that pass"]["x"] == 4.0


def test_pass_at_k_is_in_per_cent(full_study: Study) -> None:
    [panel] = pass_at_k.draw(full_study)
    rows = [row for row in rows_of(panel) if row["series"] == "base"]
    assert [(row["x"], row["y"]) for row in rows] == [
        (1, pytest.approx(5)), (4, pytest.approx(15)), (16, pytest.approx(40))
    ]  # fmt: skip
    assert all(math.isclose(row["y_high"] - row["y"], 2) for row in rows)


def test_spikes_stand_beside_the_rates(full_study: Study) -> None:
    [table] = [block for block in learning_rate(full_study) if isinstance(block, Table)]
    rows = {(row[0].text, row[1].text): [cell.text for cell in row[2:]] for row in table.rows}
    # Full finetuning at 1e-4 has one spike in both its runs of forty steps.
    assert rows["full", "1e-4"] == ["", "2", "2", "25.00", "1.25"]
    assert rows["full", "3e-5"] == ["yes", "4", "0", "0.00", "–"]
    tried = {(arm.name, rate) for arm in full_study.summary.arms for rate in arm.rates}
    assert len(rows) == len(tried)
    calm = [one for one in full_study.analysis.spikes if not one.count]
    analysis = full_study.analysis.model_copy(update={"spikes": calm})
    told = learning_rate(replace(full_study, analysis=analysis))[-1]
    assert isinstance(told, Prose) and told.text.startswith(f"None in {len(calm)} runs.")


# ----- more arms than colours -----


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


def test_charts_of_weights_say_whom_they_leave_to_the_table(crowd_study: Study) -> None:
    for chart in (spectra, intruders):
        panels = chart.draw(crowd_study)
        assert set().union(*map(arms_of, panels)) <= set(STAND) and len(panels) <= 8
        told = chart.caption(crowd_study)
        assert f"Drawn are {', '.join(STAND)}:" in told and "has all 12 arms." in told
    [table] = [
        block for block in spectra_page(crowd_study)
        if isinstance(block, Table) and block.name == "update-sizes"
    ]  # fmt: skip
    assert len({row[0].text for row in table.rows}) == 12
    assert f"“{table.caption}” has" in spectra.caption(crowd_study)


def test_movement_is_told_by_arm_and_text(crowd_study: Study) -> None:
    [table] = [
        block for block in spectra_page(crowd_study)
        if isinstance(block, Table) and block.name == "movement-table"
    ]  # fmt: skip
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[2] for row in rows] == ["target", "source"] * 12
    assert {tuple(row[3:]) for row in rows} == {("0.98500", "0.97000", "0.03", "0.20%")}


def test_grey_lines_keep_every_arm(crowd_study: Study) -> None:
    names = {arm.name for arm in crowd_study.summary.arms}
    for chart in CHARTS:
        if chart.name in ("tradeoff", "learning_curves", "learning_rates", "drift"):
            assert "In colour are full, lora-r4" in chart.caption(crowd_study)
            assert all(arms_of(panel) == names for panel in chart.draw(crowd_study))
    [panel] = pass_at_k.draw(crowd_study)
    series = {row["series"] for row in all_rows(panel)}
    assert series == {"base", *STAND} and "has all 12 arms" in pass_at_k.caption(crowd_study)
