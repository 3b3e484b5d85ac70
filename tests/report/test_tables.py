from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from laura.report import formats
from laura.report.blocks import Table
from laura.report.study import Study
from laura.report.tables import layer_table, module_table, spectra_tables, summary_table
from laura.results.schema import Judgement, PointRow, Summary
from scripts import remedy_tables
from tests.report.gallery import JUDGEMENT

Build = Callable[..., dict[str, Any]]


def printed(summary: dict[str, Any], width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    judged = Judgement.model_validate(JUDGEMENT)
    console.print(summary_table(Study(Summary.model_validate(summary), judgement=judged)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


def test_terminal_table_holds_verdict_arms_and_gaps(build: Build) -> None:
    summary = build()
    text = printed(summary)
    assert text.startswith(JUDGEMENT["answer"]) and JUDGEMENT["caveats"][0] in text
    assert all(word in text for word in ("GSM8K (%)", "learnt", "forgot", "(points)"))
    assert text.count("lora-r16") == 3 and "3e-5" in text
    assert "diverged" in text


def test_terminal_table_takes_names_literally(build: Build) -> None:
    name = "[red]arm[/red]"
    summary = build(arms={name: ("lora", [1e-4], 1e-4)}, seeds=(0,), budgets=(20_000,))
    assert name in printed(summary)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_terminal_table_fits(build: Build, width: int) -> None:
    text = printed(build(), width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert ("Too wide for this terminal" in text) == (width < 200)


def cells(summary: dict[str, Any], arm: str) -> list[str]:
    """The row of an arm, as a wide terminal has it."""
    [row] = [line for line in printed(summary, 200).splitlines() if line.startswith(f"  {arm} ")]
    return re.split(" {2,}", row.strip())


def test_an_arm_without_runs_is_a_row_of_gaps(build: Build) -> None:
    summary = build(arms={"full": ("full", [1e-4], None)}, seeds=(0,))
    assert cells(summary, "full") == ["full", "–", "–", "–", "–", "–", "0", "–", "–"]


def test_edge_rates_are_marked(build: Build) -> None:
    summary = build(arms={"full": ("full", [1e-5, 1e-4], 1e-4)}, seeds=(0,), diverged=())
    text = printed(summary)
    assert "1e-4 *" in text and "try further out" in text


def test_what_was_lost_is_told_above_zero(build: Build) -> None:
    summary = build(
        arms={"full": ("full", [1e-4], 1e-4)}, seeds=(0,), budgets=(80_000,), diverged=()
    )
    [point] = summary["points"]
    row = cells(summary, "full")
    for name, sign in (("gsm8k", 1), ("mean", -1)):
        moved = point["changes"][name]
        assert f"{100 * sign * moved['value']:.1f} ± {100 * moved['stderr']:.1f}" in row


# ----- spectra: means by module, ranks by layer, warnings beneath -----


def matrix(layer: int, module: str, rank: int, **more: Any) -> dict[str, Any]:
    """One entry of `matrices`, as far as the tables read it."""
    return {
        "layer": layer,
        "module": module,
        "shape": [4096, 11008],
        "rank": {"90": rank},
        "noise_rank": {"90": 2000},
        "effective_rank": 1000.0 + layer,
        "stable_rank": 30.0,
        "relative_frobenius": 0.01,
        "intruders": None,
        **more,
    }


MATRICES = [
    matrix(0, "down_proj", 1000),
    matrix(0, "q_proj", 5, relative_frobenius=None),
    matrix(1, "down_proj", 2000),
]


def shown(answer: dict[str, Any]) -> str:
    """What a terminal of 80 columns shows."""
    file = io.StringIO()
    Console(file=file, width=80).print(spectra_tables(answer))
    return file.getvalue()


def texts(shown: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in shown.rows]


def test_means_by_module_and_ranks_by_layer() -> None:
    assert texts(module_table("folder", MATRICES, counted=False)) == [
        ["down_proj", "4096x11008", "1,500", "75%", "1,000.5", "30.0", "1.00%"],
        ["q_proj", "4096x11008", "5", "0%", "1,000.0", "30.0", "–"],
    ]
    energy = {"left": 0.3, "right": 0.2, "both": 0.125}
    asked = [{**one, "leading_energy": energy} for one in MATRICES]
    assert [row[-1] for row in texts(module_table("folder", asked, counted=False))] == [
        "12.50%"
    ] * 2
    layers = layer_table(MATRICES)
    assert [column.heading for column in layers.columns] == ["layer", "down_proj", "q_proj"]
    assert texts(layers) == [["0", "1,000", "5"], ["1", "2,000", "–"]]


def test_a_terminal_shows_everything_whole() -> None:
    text = shown(
        {
            "tuned": "[red]folder[/]",
            "settings": {"intruders": True},
            "warnings": ["stored in bfloat16"],
            "matrices": [{**one, "intruders": 3} for one in MATRICES],
        }
    )
    assert "[red]folder[/]" in text and "Mind: stored in bfloat16" in text
    for word in ("module", "effective", "intruders", "4096x11008", "1,000.5", "3.0", "down_proj"):
        assert word in text
    assert "…" not in text


def test_remedy_tables_hold_every_rate(full_study: Study) -> None:
    """Means over seeds, from the points themselves."""
    summary = full_study.summary
    head, _, *rows = remedy_tables.scores(summary)
    assert f"| {summary.task('source_loss').title}, tuned minus base |" in head
    told = {}
    for row in rows:
        arm, rate, budget, best, validation, *_ = (c.strip() for c in row.strip("|").split("|"))
        told[arm, rate, budget] = (best, validation.split(" ")[0])
    wanted: dict[Any, list[PointRow]] = {}
    for point in summary.points:
        key = point.arm, formats.rate(point.learning_rate), formats.count(point.budget)
        wanted.setdefault(key, []).append(point)
    assert told == {
        key: (
            ", ".join(str(p.seed) for p in own if p.selected) or "–",
            f"{statistics.fmean(p.scores['validation_loss'].value for p in own):.3f}",
        )
        for key, own in wanted.items()
    }
