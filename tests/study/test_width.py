"""Every command that prints a table, at 80 columns: no row broken, no heading cut."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from laura.cli.app import app
from tests.report.conftest import Builder, no_figures
from tests.report.gallery import crowd, write_gallery

WIDTH = 80
# Between two cells, or a line of a box.
CELLS = re.compile(r"\S {2,}\S|[─━│┃]")


def told(*words: object) -> str:
    """What a command prints."""
    ended = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": str(WIDTH)})
    assert ended.exit_code in (0, 4), ended.stderr
    return ended.stdout


def check(text: str, *headings: str) -> None:
    wide = [line for line in text.splitlines() if len(line) > WIDTH and CELLS.search(line)]
    assert not wide, "\n".join(wide)
    words = set(text.split())
    for heading in headings:
        cut = [word for word in heading.split() if word not in words]
        assert not cut, f"{cut} of {heading} in\n{text}"


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seventeen arms with long names, two budgets that differ in the fourth digit."""
    monkeypatch.setattr("laura.report.html.draw_figures", no_figures)
    write_gallery(Builder, tmp_path / "study", crowd())
    return tmp_path / "study"


def test_a_study(finished: Any, tmp_path: Path) -> None:
    _, study, summary = finished
    run = next(one for one in summary["runs"] if one["arm"] == "lora")
    adapter = next((study / "runs" / run["id"] / "checkpoints").iterdir())
    check(told("claims", study, "--out", tmp_path / "claims.json"))
    check(told("recommend", study, "--max-forgetting", "100 nats", "--out", tmp_path / "r.yaml"))
    check(told("show", study))
    models = [part for one in summary["runs"] for part in ("--model", one["id"])]
    check(told("show", study, "--task", "source_loss", *models), "index tokens")
    base = summary["base"]["model"]
    shapes = told("spectra", base, adapter, "--out", tmp_path / "x.json", "--intruders")
    check(shapes, "module shape rank noise effective stable norm intruders", "down_proj layer")


def test_many_arms_with_long_names(crowded: Path) -> None:
    text = told("report", crowded)
    check(text, "arm rate budget (tokens) learnt forgot")
    for name in crowd():
        assert textwrap.wrap(name, 12)[-1] in text
    check(told("report", crowded, "--format", "md"))


WORK = "arm trained share runs tokens operations time disk"
PARTS = "peak weights adapter gradients optimiser activations logits"


def test_a_plan() -> None:
    check(told("plan", "micro", "--flops-per-second", "1e10"), WORK, PARTS)
    check(told("plan", "--table", "70e9", "--devices", "1,2,4,8,16,32,64,128,256"), "256 GPU")


@pytest.mark.slow
def test_plans_of_many_arms_devices_and_settings() -> None:
    machine = ("--device-memory", "80GB", "--flops-per-second", "4e14", "--devices", "1,8")
    check(told("plan", "paper/code-pretrain", *machine), WORK, PARTS, "gathered loading")
    check(told("plan", "micro/paper", "--flops-per-second", "1e10"), WORK, "setting")


def test_scores_machine_and_tenants(finished: Any, tmp_path: Path) -> None:
    _, study, summary = finished
    run = next(one for one in summary["runs"] if one["arm"] == "lora")
    adapter = next((study / "runs" / run["id"] / "checkpoints").iterdir())
    base, out = summary["base"]["model"], ("--out", tmp_path / "evals")
    scores = told("evaluate", base, "--tasks", "micro_pronouns", "--adapter", adapter,
                  "--limit", 4, *out)  # fmt: skip
    check(scores)
    assert "change" in scores and "95%" in scores
    check(told("doctor"))
    database = ("--database", f"sqlite:///{tmp_path}/laura.db")
    told("tenants", "add", "acme", "--adapters", "a,b,c", "--concurrent", "16", *database)
    check(told("tenants", "list", *database))


def test_help_is_not_cut() -> None:
    for words in ((), ("tenants",), ("tenants", "key")):
        text = told(*words, "--help")
        assert "..." not in text.partition("Commands:")[2], text
