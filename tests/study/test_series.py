"""A series: each setting is the study it would be alone, and all are checked before any trains."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from laura.cli import app as cli
from laura.models import device
from laura.recipe.reading import Series, read_study
from laura.results.errors import DataError, RecipeError
from laura.results.progress import Silent
from laura.results.store import SeriesStore
from laura.study.compare import compare_series, train
from tests.study.carried_out import compare

SHORT = ("budget.tokens=[300]", "seeds=[0]", "arms.full.learning_rates=[1e-3]")


def series_of(text: str, place: Path, second: str) -> Path:
    """A file of two settings that share everything but what `second` says."""
    whole = text.replace("name: tiny\n", "").strip()
    path = place / "series.yaml"
    path.write_text(
        "name: both\ncommon:\n"
        + textwrap.indent(whole, "  ")
        + f"\nsettings:\n  first: {{domain: sums}}\n  second: {second}\n",
        encoding="utf-8",
    )
    return path


class Recorder(Silent):
    """Where the bar of the whole series stood after each of its moves."""

    def __init__(self) -> None:
        self.moves: list[float] = []

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Any]:
        def advance(amount: float = 1.0) -> None:
            if title == "series":
                self.moves.append(sum(self.moves[-1:]) + amount)

        yield SimpleNamespace(advance=advance, note=lambda text: None)


def test_each_setting_is_the_study_it_would_be_alone(recipe_text: str, tmp_path: Path) -> None:
    path = series_of(recipe_text, tmp_path, "{domain: other, regime: pretrain}")
    series = read_study(path, SHORT)
    assert isinstance(series, Series)
    seen = Recorder()
    made = compare_series(series, folder=tmp_path / "study", progress=seen)
    # Three runs a setting, and stages of its own: the bar moves within a setting.
    assert len({move for move in seen.moves if 0 < move < 3}) > 1
    assert seen.moves == sorted(seen.moves) and seen.moves[-1] == pytest.approx(6)
    again = Recorder()
    compare_series(series, folder=tmp_path / "study", progress=again)
    assert again.moves[0] == again.moves[-1] == 6
    found = {name: summary.model_dump(mode="json") for name, summary in made.items()}
    assert list(found) == ["first", "second"]
    alone = compare(series.settings["second"], study=tmp_path / "alone")
    assert found["second"] == alone and alone["regime"] == "pretrain"
    assert found["first"]["points"] != alone["points"]
    stores = SeriesStore(tmp_path / "study").settings()
    assert {
        name: json.loads(store.summary_file.read_text()) for name, store in stores.items()
    } == found


def test_a_mistake_in_the_last_setting_is_told_before_the_first_trains(
    recipe_text: str, tmp_path: Path
) -> None:
    path = series_of(recipe_text, tmp_path, "{data: {train: {source: gone.jsonl}}}")
    series = read_study(path, ("seeds=[0]",))
    assert isinstance(series, Series)
    with pytest.raises(DataError):
        compare_series(series, folder=tmp_path / "study")
    assert not list((tmp_path / "study").rglob("runs"))


def test_what_the_device_cannot_hold_is_told_before_anything_trains(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the check of all settings, and for one run of the arm that is wanted."""
    path = series_of(recipe_text, tmp_path, "{domain: other}")
    series = read_study(path, SHORT)
    assert isinstance(series, Series)
    monkeypatch.setattr(device, "total_memory_bytes", lambda _: 1000)
    with pytest.raises(RecipeError, match=r"arms\.full: needs .* and cpu has 1000 B; no setting"):
        compare_series(series, folder=tmp_path / "study")
    assert not (tmp_path / "study" / "series.json").exists()
    with pytest.raises(RecipeError) as caught:
        train(series.settings["first"], arm="full", study=tmp_path / "one")
    assert [fault.path for fault in caught.value.faults] == ["arms.full"]


def test_one_setting_by_itself_and_the_report_of_all(recipe_text: str, tmp_path: Path) -> None:
    path, out = series_of(recipe_text, tmp_path, "{domain: other}"), tmp_path / "study"
    sets = [part for override in SHORT for part in ("--set", override)]
    call = ["compare", str(path), "--out", str(out), *sets, "--json"]
    run = CliRunner().invoke
    assert run(cli.app, [*call, "--setting", "third"]).exit_code == 2
    ended = run(cli.app, [*call, "--setting", "second"])
    assert ended.exit_code == 0, ended.stderr
    assert list(json.loads(ended.stdout)["settings"]) == ["second"]
    ended = run(cli.app, call)
    assert list(json.loads(ended.stdout)["settings"]) == ["first", "second"]
    again = run(cli.app, ["report", str(out), "--json"])
    assert json.loads(again.stdout) == json.loads(ended.stdout)
    assert 'href="settings/second/report.html"' in (out / "report.html").read_text("utf-8")
    assert run(cli.app, ["report", str(out), "--format", "md"]).exit_code == 0
    assert "](settings/first/report.md)" in (out / "report.md").read_text("utf-8")
    # What is damaged in one setting is told, and stops nothing of the other.
    first = SeriesStore(out).setting("first")
    first.summary_file.write_text("{")
    next(first.folder.glob("runs/*/run.json")).write_text("{")
    ended = run(cli.app, ["report", str(out)])
    assert ended.exit_code == 0 and "first is not drawn: " in ended.stderr
    assert "first: is left out, since " in ended.stdout and "run.json is not" in ended.stdout
    told = json.loads(run(cli.app, ["report", str(out), "--json"]).stdout)
    assert list(told["settings"]) == ["second"]
    refused = run(cli.app, ["train", str(path), "--arm", "lora", "--out", str(out)])
    assert refused.exit_code == 2 and "--setting" in refused.stderr
