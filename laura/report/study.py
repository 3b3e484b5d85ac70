"""A study as the report sees it: the summary, and beside it whatever else lies in the folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from laura.recipe.tasks import DRIFT
from laura.report import formats
from laura.report.arms import groups
from laura.report.samples.show import Examples, read_examples
from laura.results.errors import StoreError, UsageError
from laura.results.inputs import MOST_RECIPE_BYTES, read_bounded
from laura.results.schema import (
    ANALYSIS_FILE,
    CLAIMS_FILE,
    COST_FILE,
    MEAN,
    RECOMMENDATION_FILE,
    SUMMARY_FILE,
    Analysis,
    Costs,
    File,
    Judgement,
    PointRow,
    Recommendation,
    RunRow,
    Summary,
    read_file,
    read_optional,
)
from laura.results.store import disk_faults

T = TypeVar("T")
F = TypeVar("F", bound=File)

STATE_WORDS = {
    "done": "done",
    "diverged": "diverged",
    "failed": "failed",
    "pruned": "stopped early by the search",
    "open": "not finished",
}


@dataclass(frozen=True)
class Study:
    """All that a report is drawn from; only the summary must be there.

    Attributes:
        faults: What lies in the folder and could not be read, in words.
    """

    summary: Summary
    analysis: Analysis = field(default_factory=Analysis)
    judgement: Judgement | None = None
    recommendation: Recommendation | None = None
    costs: Costs | None = None
    examples: list[Examples] = field(default_factory=list)
    recipe: str = ""
    faults: list[str] = field(default_factory=list)

    @property
    def answer(self) -> str:
        """The first line of every output: what was found and what to do."""
        if self.judgement is None:
            return "This study was not judged; `laura claims STUDY` does it."
        return self.judgement.answer

    @property
    def gaps(self) -> list[str]:
        """What is missing, in words."""
        return [*gaps(self.summary), *self.faults]


def read_summary(study: Path) -> Summary:
    """Read and check STUDY/summary.json.

    Raises:
        StoreError: no such folder, no summary.json (with what to do), or a damaged one
            (with every fault).
        UsageError: it is of an older format.
    """
    if not study.is_dir():
        raise StoreError(f"{study} is not a folder; give the folder of a study, as in studies/NAME")
    file = study / SUMMARY_FILE
    if not file.is_file():
        raise StoreError(
            f"{study} has no summary.json, so there is nothing to report yet; finish the study "
            "with `laura compare RECIPE` (it continues where it stopped), then report again"
        )
    return read_file(Summary, file)


def read_or_note(faults: list[str], what: str, read: Callable[[], T], otherwise: T) -> T:
    """What is read, or else `otherwise` and a sentence among the faults that starts with `what`."""
    try:
        return read()
    except (StoreError, UsageError) as error:
        faults.append(f"{what}: {error}.")
        return otherwise


def read_study(folder: Path) -> Study:
    """Read a study folder; what is damaged beside the summary becomes a sentence.

    Raises:
        StoreError, UsageError: as `read_summary`.
    """
    summary, faults, recipe = read_summary(folder), list[str](), folder / "recipe.yaml"

    def part(what: str, kind: type[F], name: str) -> F | None:
        read = partial(read_optional, kind, folder / name)
        return read_or_note(faults, f"{what} are not shown", read, None)

    def text() -> str:
        with disk_faults(recipe):
            return read_bounded(recipe, MOST_RECIPE_BYTES).decode(errors="replace")

    return Study(
        summary,
        part("Analyses", Analysis, ANALYSIS_FILE) or Analysis(),
        part("Claims", Judgement, CLAIMS_FILE),
        part("Recommendations", Recommendation, RECOMMENDATION_FILE),
        part("Costs", Costs, COST_FILE),
        read_or_note(faults, "Samples are not shown", lambda: read_examples(folder, summary), []),
        read_or_note([], "", text, ""),  # the page says so in its place
        faults,
    )


def gaps(summary: Summary) -> list[str]:
    """What a study lacks, so that no chart is read as more than it is.

    Sentences about missing arms, runs, budgets, tasks and seeds; empty for a whole study.
    """
    # Divergence from the base is zero on the base by definition, so it need not be measured there.
    bare = [
        f"{summary.task(name).title} was not measured on the base, so its change is unknown."
        for name in (*summary.measure.learning, *summary.measure.forgetting)
        if name not in DRIFT and name not in summary.base.scores
    ]
    return [*bare, *_run_gaps(summary), *_arm_gaps(summary), *_task_gaps(summary)]


def _run_gaps(summary: Summary) -> list[str]:
    """Runs of one arm and rate that ended alike, in one sentence."""
    alike: dict[tuple[str, float, str, str], list[RunRow]] = {}
    for run in summary.runs:
        if run.state != "done":
            alike.setdefault((run.arm, run.learning_rate, run.state, run.reason), []).append(run)
    sentences = []
    for (arm, rate, state, why), runs in alike.items():
        where = "; ".join(
            f"seed {run.seed}"
            + (f", {formats.budget_of(summary, run.budget)}" if run.budget else "")
            for run in runs
        )
        reason = f" ({why.rstrip('.')})" if why else ""
        words = f"{arm} at learning rate {formats.rate(rate)}: {STATE_WORDS[state]}{reason}"
        sentences.append(f"{words}, {where}.")
    return sentences


def _arm_gaps(summary: Summary) -> list[str]:
    reached: dict[str, set[float | None]] = {arm.name: set() for arm in summary.arms}
    sentences = []
    for group in groups(summary, selected=True):
        reached.setdefault(group.arm, set()).add(group.budget)
    for arm in summary.arms:
        missing = [point for point in summary.budget.points if point not in reached[arm.name]]
        if not reached[arm.name]:
            sentences.append(
                f"Arm {arm.name} has no measured run at a best learning rate, so it is missing "
                "from the comparison."
            )
        elif missing:
            listed = " and ".join(formats.budget_of(summary, point) for point in missing)
            sentences.append(f"Arm {arm.name} was not measured at {listed}.")
    return sentences


def _task_gaps(summary: Summary) -> list[str]:
    """Tasks that were not measured everywhere, and arms with one seed."""

    def place(point: PointRow) -> str:
        budget = formats.budget_of(summary, point.budget)
        rate = formats.rate(point.learning_rate)
        return f"{point.arm} at {rate}, seed {point.seed}, {budget}"

    sentences = []
    for name in (*summary.measure.learning, *summary.measure.forgetting):
        without = [point for point in summary.points if name not in point.scores]
        if not without:
            continue
        text = f"{summary.task(name).title} was not measured on any tuned model."
        if len(without) < len(summary.points):
            more = f" and {len(without) - 3} more" if len(without) > 3 else ""
            listed = "; ".join(map(place, without[:3]))
            text = f"{summary.task(name).title} was not measured for {listed}{more}."
        if name in summary.accuracies:
            text += f" There, “{summary.task(MEAN).title}” has no mean."
        sentences.append(text)
    alone = {group.arm for group in groups(summary, selected=True) if len(group.seeds) == 1}
    if alone:
        sentences.append(
            f"Only one seed at the best learning rate for {', '.join(sorted(alone))}: the error "
            "bars hold the luck of the questions, not the luck of the seed."
        )
    return sentences
