from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from laura.report import formats
from laura.report.blocks import Prose
from laura.report.charts import CHARTS, tradeoff
from laura.report.charts.style import PALETTE, SHAPES
from laura.report.pages import cost
from laura.report.study import Study
from laura.results.schema import Costs, Summary

Build = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("chart", CHARTS, ids=[chart.name for chart in CHARTS])
def test_specifications_obey_the_vega_lite_schema(chart: Any, full_study: Study) -> None:
    panels = chart.draw(full_study)
    assert panels and len({panel.name for panel in panels}) == len(panels)
    for panel in panels:
        panel.drawing.to_dict(validate=True)


@pytest.mark.parametrize("chart", CHARTS, ids=[chart.name for chart in CHARTS])
def test_no_title_is_wider_than_a_phone(chart: Any, full_study: Study) -> None:
    for panel in chart.draw(full_study):
        title = panel.drawing.to_dict(validate=False)["title"]
        text = title["text"] if isinstance(title["text"], list) else [title["text"]]
        assert max(map(len, text)) <= 40 and max(map(len, title["subtitle"])) <= 54


def test_epochs_and_machines_are_told_in_words(full_study: Study) -> None:
    assert formats.budget(2.3760712, "epochs") == "2.376 epochs"
    machine = {"cores": 2, "packages": {"torch": "2.13", "numpy": "2.4"}}
    costs = Costs(machine=machine, runs=[])
    told = [b.text for b in cost.blocks(replace(full_study, costs=costs)) if isinstance(b, Prose)]
    assert told[0] == "Machine: cores 2; packages torch 2.13, numpy 2.4."


def rows_of(summary: Summary, place: int = 0) -> list[dict[str, Any]]:
    found = tradeoff.draw(Study(summary))[place].drawing.to_dict(validate=False)["datasets"]
    return [row for rows in found.values() for row in rows]


def test_trade_off_points_are_the_changes_of_the_summary(build: Build) -> None:
    value = build(seeds=(0,))
    point = next(p for p in value["points"] if p["selected"] and p["budget"] == 80_000)
    rows = rows_of(Summary.model_validate(value))
    [row] = [row for row in rows if row.get("run") == point["run"]]
    change, mean = point["changes"]["gsm8k"], point["changes"]["mean"]
    assert row["y"] == pytest.approx(100 * change["value"])
    assert row["y_high"] - row["y"] == pytest.approx(100 * change["stderr"])
    # What was lost is told as a number above zero.
    assert row["x"] == pytest.approx(-100 * mean["value"])
    assert row["forgetting_change"].startswith("forgot ")
    assert row["forgetting_change"].endswith(" points")
    assert row["x"] - row["x_low"] == pytest.approx(100 * mean["stderr"])


def test_losses_too_are_told_as_learnt_and_forgotten(build: Build) -> None:
    value = build(seeds=(0,))
    panel = tradeoff.draw(Study(Summary.model_validate(value)))[1]
    assert panel.name == "target_loss-source_loss"
    drawn = panel.drawing.to_dict()
    reversed_axes = {
        axis: layer["encoding"][axis]["scale"].get("reverse", False)
        for layer in drawn["layer"]
        for axis in ("x", "y")
        if "scale" in layer["encoding"].get(axis, {})
    }
    assert reversed_axes == {"x": True, "y": False}
    point = next(p for p in value["points"] if p["selected"] and p["budget"] == 80_000)
    rows = [row for rows in drawn["datasets"].values() for row in rows]
    [row] = [row for row in rows if row.get("run") == point["run"]]
    assert row["y"] == pytest.approx(-point["changes"]["target_loss"]["value"]) and row["y"] > 0
    assert row["x"] == pytest.approx(point["changes"]["source_loss"]["value"]) and row["x"] > 0


@pytest.mark.parametrize(
    ("learning", "forgetting", "expected"),
    [
        (
            ("gsm8k", "target_loss"),
            ("hellaswag", "arc_challenge", "winogrande", "source_loss", "kl"),
            [("gsm8k", "mean"), ("target_loss", "source_loss"), ("gsm8k", "kl")],
        ),
        (("gsm8k",), ("source_loss",), [("gsm8k", "source_loss")]),
        (
            ("target_loss",),
            ("source_loss", "kl"),
            [("target_loss", "source_loss"), ("target_loss", "kl")],
        ),
        (("target_loss",), ("winogrande",), [("target_loss", "mean")]),
    ],
)
def test_pairs_that_make_sense(
    build: Build,
    learning: tuple[str, ...],
    forgetting: tuple[str, ...],
    expected: list[tuple[str, str]],
) -> None:
    summary = Summary.model_validate(build(learning=learning, forgetting=forgetting))
    assert tradeoff.pairs(summary) == expected
    assert [panel.name for panel in tradeoff.draw(Study(summary))] == [
        "-".join(p) for p in expected
    ]


def test_every_chart_survives_every_gap(build: Build) -> None:
    studies = [
        build(missing=("gsm8k", "kl"), seeds=(0,)),
        build(seeds=(0,), budgets=(20_000,), diverged=(("full", 3e-5), ("lora-r16", 3e-4))),
        build(learning=("target_loss",), forgetting=("kl",)),
        build(arms={}),
    ]
    studies[1]["base"]["scores"] = {}
    for value in studies:
        summary = Summary.model_validate(value)
        for chart in CHARTS:
            for panel in chart.draw(Study(summary)):
                panel.drawing.to_dict(validate=False)


def test_colours_differ_and_follow_the_arm(build: Build) -> None:
    assert len(set(PALETTE)) == len(PALETTE) and len(set(SHAPES)) == len(SHAPES)
    scales = []
    for chart in CHARTS:
        for panel in chart.draw(Study(Summary.model_validate(build()))):
            for layer in panel.drawing.to_dict(validate=False)["layer"]:
                color = layer["encoding"].get("color", {})
                if "scale" in color:
                    scales.append((color["scale"]["domain"], color["scale"]["range"]))
    assert len(scales) > 20 and all(scale == scales[0] for scale in scales)
