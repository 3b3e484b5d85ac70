from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from laura.errors import StoreError
from laura.report.tables import markdown_table, summary_table

Build = Callable[..., dict[str, Any]]


def printed(summary: dict[str, Any], width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(summary_table(summary))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


def test_terminal_table_holds_verdict_arms_and_gaps(build: Build) -> None:
    summary = build()
    text = printed(summary)
    assert summary["verdict"]["headline"] in text and summary["verdict"]["caveats"][0] in text
    assert "GSM8K (%)" in text and "forgetting mean" in text
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
    assert "| full | – | – | 0 | – | – | – | – | – |" in markdown_table(summary)


def test_markdown_table_is_rectangular_and_safe(build: Build) -> None:
    name = "a|b\n<b>"
    summary = build(arms={name: ("lora", [1e-4], 1e-4)}, seeds=(0,), budgets=(20_000,))
    rows = markdown_table(summary).splitlines()
    assert len(rows) == 4
    assert {row.replace("\\|", "").count("|") for row in rows} == {10}
    assert "a\\|b &lt;b&gt;" in rows[-1]


def test_edge_rates_are_marked(build: Build) -> None:
    summary = build(arms={"full": ("full", [1e-5, 1e-4], 1e-4)}, seeds=(0,), diverged=())
    text = printed(summary)
    assert "1e-4 *" in text and "try further out" in text


def test_damaged_summary_is_refused() -> None:
    with pytest.raises(StoreError, match="is missing"):
        markdown_table({"format": 1})
