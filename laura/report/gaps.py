"""What a study lacks, in words, so that no chart is read as more than it is."""

from __future__ import annotations

from laura.recipe.tasks import DRIFT
from laura.report import formats
from laura.report.groups import selected_groups
from laura.results.schema import MEAN, RunRow, Summary

STATE_WORDS = {
    "done": "done",
    "diverged": "diverged",
    "failed": "failed",
    "pruned": "stopped early by the search",
    "open": "not finished",
}


def gaps(summary: Summary) -> list[str]:
    """Sentences about missing arms, runs, budgets, tasks and seeds; empty for a whole study."""
    return [
        *_base_gaps(summary),
        *_run_gaps(summary),
        *_arm_gaps(summary),
        *_task_gaps(summary),
        *_seed_gaps(summary),
    ]


def _base_gaps(summary: Summary) -> list[str]:
    # Divergence from the base is zero on the base by definition, so it need not be measured there.
    wanted = [
        name for name in summary.measure.learning + summary.measure.forgetting if name not in DRIFT
    ]
    return [
        f"{summary.task(name).title} was not measured on the base, so its change is unknown."
        for name in wanted
        if name not in summary.base.scores
    ]


def _run_gaps(summary: Summary) -> list[str]:
    alike: dict[tuple[str, float, str, str], list[RunRow]] = {}
    for run in summary.runs:
        if run.state != "done":
            alike.setdefault((run.arm, run.learning_rate, run.state, run.reason), []).append(run)
    return [_run_sentence(summary, runs) for runs in alike.values()]


def _run_sentence(summary: Summary, runs: list[RunRow]) -> str:
    """Runs of one arm and rate that ended alike, in one sentence."""
    first = runs[0]
    places = "; ".join(
        f"seed {run.seed}" + (f", {formats.budget_of(summary, run.budget)}" if run.budget else "")
        for run in runs
    )
    state = STATE_WORDS.get(first.state, f"unknown state {first.state!r}")
    reason = f" ({first.reason.rstrip('.')})" if first.reason else ""
    rate = formats.rate(first.learning_rate)
    return f"{first.arm} at learning rate {rate}: {state}{reason}, {places}."


def _arm_gaps(summary: Summary) -> list[str]:
    groups = selected_groups(summary)
    sentences = []
    for arm in summary.arms:
        reached = {group.budget for group in groups if group.arm == arm.name}
        if not reached:
            sentences.append(
                f"Arm {arm.name} has no measured run at a best learning rate, so it is missing "
                "from the comparison."
            )
            continue
        missing = [point for point in summary.budget.points if point not in reached]
        if missing:
            listed = " and ".join(formats.budget_of(summary, point) for point in missing)
            sentences.append(f"Arm {arm.name} was not measured at {listed}.")
    return sentences


def _task_gaps(summary: Summary) -> list[str]:
    sentences = []
    for name in summary.measure.learning + summary.measure.forgetting:
        without = [point for point in summary.points if point.scores.get(name) is None]
        if not without:
            continue
        title = summary.task(name).title
        if len(without) == len(summary.points):
            text = f"{title} was not measured on any tuned model."
        else:
            places = "; ".join(
                f"{point.arm} at {formats.rate(point.learning_rate)}, seed {point.seed}, "
                f"{formats.budget_of(summary, point.budget)}"
                for point in without[:3]
            )
            more = f" and {len(without) - 3} more" if len(without) > 3 else ""
            text = f"{title} was not measured for {places}{more}."
        if name in summary.accuracies:
            text += f" There, “{summary.task(MEAN).title}” has no mean."
        sentences.append(text)
    return sentences


def _seed_gaps(summary: Summary) -> list[str]:
    single = sorted({group.arm for group in selected_groups(summary) if len(group.seeds) == 1})
    if not single:
        return []
    return [
        f"Only one seed at the best learning rate for {', '.join(single)}: the error bars hold "
        "the luck of the questions, not the luck of the seed."
    ]
