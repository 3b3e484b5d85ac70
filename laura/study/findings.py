"""`analysis.json`: what a study's scores, samples and weights say together. No torch.

Like `summary.json` it is rebuilt from the folder at any time and depends on neither time
nor machine. What is missing is named under "gaps"; nothing stops because of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from laura.analysis.tradeoff import explained
from laura.recipe.tasks import DRIFT
from laura.results.schema import ANALYSIS_FILE, Analysis, DriftFit, DriftRow, write_file
from laura.results.statistics import Estimate
from laura.results.store import StudyStore
from laura.study.choosing import choice_gaps
from laura.study.curves import build_curves
from laura.study.evidence import Evidence
from laura.study.measures import leading
from laura.study.sampled import build_sampled
from laura.study.spectra_results import read_spectra, read_subspaces
from laura.study.stability import read_spikes


def build_findings(evidence: Evidence, store: StudyStore) -> Analysis:
    """What the scores, samples and weights of a study say together."""
    gaps = _run_gaps(evidence)
    curves = build_curves(evidence, gaps)
    sampled = build_sampled(evidence, store, gaps)
    return Analysis(
        tradeoff=curves.tradeoff,
        efficiency=curves.efficiency,
        diversity=sampled.diversity,
        diversity_differences=sampled.differences,
        pass_at_k=sampled.pass_at_k,
        drift=_drift(evidence),
        drift_fit=_drift_fit(evidence, curves.forgetting, curves.forgotten),
        spikes=read_spikes(evidence),
        spectra=read_spectra(store, evidence, gaps),
        subspaces=read_subspaces(store, evidence, gaps),
        # Whoever moves the folder must find the same words.
        gaps=[gap.replace(f"{store.folder}/", "") for gap in dict.fromkeys(gaps)],
    )


def write_findings(evidence: Evidence, store: StudyStore) -> Analysis:
    """Build `analysis.json` and write it."""
    findings = build_findings(evidence, store)
    write_file(store.folder / ANALYSIS_FILE, findings)
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


def _drift(evidence: Evidence) -> list[DriftRow]:
    rows = []
    for point in evidence.points:
        for name in DRIFT:
            result = point.results.get(name)
            if result is not None:
                metric = result.metrics[leading(result)]
                rows.append(
                    DriftRow(
                        arm=point.arm,
                        run=point.run["id"],
                        seed=point.seed,
                        learning_rate=point.learning_rate,
                        budget=point.budget,
                        measure=name,
                        value=Estimate(metric.value, metric.stderr, result.n),
                    )
                )
    return rows


def _drift_fit(
    evidence: Evidence, forgetting: str, forgotten: Mapping[int, float]
) -> list[DriftFit]:
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
            row = DriftFit(measure=name, forgetting=forgetting, r_squared=share, n=len(pairs))
            rows.append(row)
    return rows
