"""What a study's commands give, as the JSON values that they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laura.results.schema import CLAIMS_FILE, Judgement, read_file
from laura.study import compare as comparing
from laura.study import single, spectra_results


def compare(*given: Any, **asked: Any) -> dict[str, Any]:
    """`compare`, and the value of its summary.json."""
    return comparing.compare(*given, **asked).model_dump(mode="json")


def write_summary(*given: Any) -> dict[str, Any]:
    """`write_summary`, and the value of its summary.json."""
    return comparing.write_summary(*given).model_dump(mode="json")


def train(*given: Any, **asked: Any) -> dict[str, Any]:
    """`train`, its summary as the value of summary.json."""
    made = single.train(*given, **asked)
    return {**made, "summary": made["summary"].model_dump(mode="json")}


def read_spectra(*given: Any) -> list[dict[str, Any]]:
    """`read_spectra`, as values of analysis.json."""
    return [one.model_dump(mode="json") for one in spectra_results.read_spectra(*given)]


def read_subspaces(*given: Any) -> list[dict[str, Any]]:
    """`read_subspaces`, as values of analysis.json."""
    return [one.model_dump(mode="json") for one in spectra_results.read_subspaces(*given)]


def judgement(study: Path) -> Judgement:
    """What a study concludes."""
    return read_file(Judgement, study / CLAIMS_FILE)


def best_rate(arm: dict[str, Any]) -> float | None:
    """The one best rate of an arm of summary.json; None where it has none."""
    rates = set(arm["best"].values())
    assert len(rates) <= 1
    return next(iter(rates), None)
