"""`analysis.json`: what a study's scores, samples and weights say together. No torch.

Like `summary.json` it is rebuilt from the folder at any time and depends on neither time
nor machine. What is missing is named under "gaps"; nothing stops because of it.

    {"format", "tradeoff": {...} | null, "efficiency": [...], "diversity": [...],
     "diversity_differences": [...], "pass_at_k": [...], "drift": [...],
     "drift_fit": [...], "spikes": [...], "spectra": [...], "subspaces": [...],
     "gaps": [words]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from laura.analysis.drift import explained
from laura.recipe_tasks import DRIFT
from laura.store import StudyStore, write_json
from laura.study.choosing import choice_gaps
from laura.study.curves import build_curves
from laura.study.measures import leading
from laura.study.sampled import build_sampled
from laura.study.spectra_results import read_spectra, read_subspaces
from laura.study.stability import read_spikes
from laura.study.summary import Evidence

FORMAT = 1
DECIMALS = 12
FILE = "analysis.json"


def build_findings(evidence: Evidence, store: StudyStore) -> dict[str, Any]:
    """The content of `analysis.json`.

    Every "interval" is a 95 % percentile interval of the bootstrap over items and, where
    there are several, seeds; every "stderr" is over items. Forgetting is how much worse
    the source scores became, so it is above 0 where something was forgotten. A level of
    `tradeoff.matched` is what was learnt beyond the base, its `score` the task's own.
    """
    gaps = _run_gaps(evidence)
    curves = build_curves(evidence, gaps)
    fit = _drift_fit(evidence, curves["forgetting"], curves["forgotten"])
    return {
        "format": FORMAT,
        "tradeoff": _rounded(curves["tradeoff"]),
        "efficiency": _rounded(curves["efficiency"]),
        **build_sampled(evidence, store, gaps),
        "drift": _drift(evidence),
        "drift_fit": _rounded(fit),
        "spikes": _rounded(read_spikes(evidence)),
        "spectra": read_spectra(store, evidence, gaps),
        "subspaces": read_subspaces(store, evidence, gaps),
        # Whoever moves the folder must find the same words.
        "gaps": [gap.replace(f"{store.folder}/", "") for gap in dict.fromkeys(gaps)],
    }


def write_findings(evidence: Evidence, store: StudyStore) -> dict[str, Any]:
    """Build `analysis.json` and write it."""
    findings = build_findings(evidence, store)
    write_json(store.folder / FILE, findings)
    return findings


def _run_gaps(evidence: Evidence) -> list[str]:
    gaps = [
        f"{run.arm} at {run.learning_rate:g}, seed {run.seed} (run {run.id}) "
        f"is {run.state}, not done"
        for run in evidence.runs
        if run.state != "done"
    ]
    measured = {(point.run["id"], point.step) for point in evidence.points}
    gaps += [
        f"{run.arm} at {run.learning_rate:g}, seed {run.seed} (run {run.id}) "
        f"was not measured at budget {mark['budget']:g}"
        for run in evidence.runs
        for mark in run.record["points"]
        if run.state == "done" and (run.id, mark["step"]) not in measured
    ]
    return gaps + choice_gaps(evidence)


def _drift(evidence: Evidence) -> list[dict[str, Any]]:
    rows = []
    for point in evidence.points:
        for name in DRIFT:
            result = point.results.get(name)
            if result is not None:
                metric = result.metrics[leading(result)]
                rows.append(
                    {
                        "arm": point.arm,
                        "run": point.run["id"],
                        "seed": point.seed,
                        "learning_rate": point.learning_rate,
                        "budget": point.budget,
                        "measure": name,
                        "value": metric.value,
                        "stderr": metric.stderr,
                        "n": result.n,
                    }
                )
    return rows


def _drift_fit(
    evidence: Evidence, forgetting: str, forgotten: Mapping[int, float]
) -> list[dict[str, Any]]:
    """How well each divergence tells what was forgotten, over all points of all arms."""
    rows = []
    for name in DRIFT:
        pairs = [
            (evidence.points[place].results[name].metrics["nats_per_token"].value, value)
            for place, value in forgotten.items()
            if name in evidence.points[place].results
        ]
        if not pairs or name == forgetting:
            continue
        share = explained(*zip(*pairs, strict=True))
        if share is not None:
            rows.append(
                {"measure": name, "forgetting": forgetting, "r_squared": share, "n": len(pairs)}
            )
    return rows


def _rounded(value: Any) -> Any:
    """Without the last digits, in which matrix products differ between machines."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return round(value, DECIMALS) + 0.0 if isinstance(value, float) else value
