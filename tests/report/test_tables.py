from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from laura.report.study import Study
from laura.report.tables import markdown_table, summary_table
from laura.results.schema import Judgement, Summary
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
    assert "GSM8K (%)" in text and "learnt (points)" in text and "forgot (points)" in text
    assert text.count("lora-r16") == 3 and "3e-5" in text
    assert "diverged" in text


def test_terminal_table_takes_names_literally(build: Build) -> None:
    name = "[red]arm[/red]"
    summary = build(arms={name: ("lora", [1e-4], 1e-4)}, seeds=(0,), budgets=(20_000,))
    assert name in printed(summary)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_terminal_table_fits(build: Build, width: int) -> None:
    assert max(map(len, printed(build(), width).splitlines())) <= width


def test_an_arm_without_runs_is_a_row_of_gaps(build: Build) -> None:
    summary = build(arms={"full": ("full", [1e-4], None)}, seeds=(0,))
    assert "| full | – | – | 0 | – | – | – | – | – |" in markdown_table(
        Summary.model_validate(summary)
    )


def test_markdown_table_is_rectangular_and_safe(build: Build) -> None:
    name = "a|b\n<b>"
    summary = build(arms={name: ("lora", [1e-4], 1e-4)}, seeds=(0,), budgets=(20_000,))
    rows = markdown_table(Summary.model_validate(summary)).splitlines()
    assert len(rows) == 4
    assert {row.replace("\\|", "").count("|") for row in rows} == {10}
    assert "a\\|b &lt;b&gt;" in rows[-1]


def test_edge_rates_are_marked(build: Build) -> None:
    summary = build(arms={"full": ("full", [1e-5, 1e-4], 1e-4)}, seeds=(0,), diverged=())
    text = printed(summary)
    assert "1e-4 *" in text and "try further out" in text


def test_what_was_lost_is_told_above_zero(build: Build) -> None:
    summary = build(
        arms={"full": ("full", [1e-4], 1e-4)}, seeds=(0,), budgets=(80_000,), diverged=()
    )
    [point] = summary["points"]
    row = markdown_table(Summary.model_validate(summary)).splitlines()[-1]
    for name, sign in (("gsm8k", 1), ("mean", -1)):
        moved = point["changes"][name]
        assert f" {100 * sign * moved['value']:.1f} ± {100 * moved['stderr']:.1f} " in row
