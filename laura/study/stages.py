"""What an arm holds of a series of tasks: overall performance and backward transfer. No torch.

With R[t, i] the score on task i after stage t, each at the rate that stage t chose by its own
validation, of T stages

    OP  = mean over i of R[T, i]
    BWT = mean over i < T of R[T, i] - R[i, i]

The task of a stage is its first learning task. Sums are paired by seed and by item.

Source: Lopez-Paz and Ranzato 2017, arXiv:1706.08840; of language models TRACE, arXiv:2310.06762.
"""

from __future__ import annotations

from pathlib import Path

from laura.results.errors import LauraError, first_line
from laura.results.schema import Estimated, StagesRow
from laura.results.statistics import TooThin
from laura.study.claims.judgement import stored_evidence
from laura.study.claims.settings import Kind, Scores, Setting, combined
from laura.study.evidence import Evidence


def build_stages(evidence: Evidence, folder: Path, gaps: list[str]) -> list[StagesRow]:
    """The part `stages` of analysis.json; empty for a study that continues no other.

    Args:
        evidence: The last stage.
        folder: Its folder, beside which those of the earlier stages lie.
        gaps: Gets what could not be told, in words.
    """
    stages = [Setting(evidence.recipe.name, evidence)]
    try:
        while (name := stages[0].evidence.recipe.continues) is not None:
            stages.insert(0, Setting(name, stored_evidence(folder.parent / name)))
    except LauraError as error:
        gaps.append(f"nothing is told of the series: {first_line(error)}")
        return []
    if len(stages) == 1:
        return []
    tasks = [stage.evidence.learning[0] for stage in stages]
    if strange := [task for task in tasks if not evidence.measures[task].is_accuracy]:
        told = ", ".join(strange)
        gaps.append(f"no OP and BWT: they are means of shares of right answers, and not of {told}")
        return []
    rows = []
    for arm in stages[-1].arms:
        try:
            rows.append(_row(arm, stages, tasks))
        except TooThin as thin:
            gaps.append(f"no OP and BWT of {arm.name}: {thin}")
    return rows


def _row(arm: Kind, stages: list[Setting], tasks: list[str]) -> StagesRow:
    """One arm's scores after every stage.

    Raises:
        TooThin: something was not measured, or with too few seeds or items.
    """
    scores_TI = [_scores(arm, stage, tasks[: at + 1]) for at, stage in enumerate(stages)]
    final, last = scores_TI[-1], len(stages) - 1
    overall = combined([(1 / len(tasks), one, "") for one in final])
    terms = [
        (sign / last, scores[at], "")
        for at in range(last)
        for sign, scores in ((1.0, final), (-1.0, scores_TI[at]))
    ]
    return StagesRow(
        arm=arm.name,
        settings=[stage.name for stage in stages],
        tasks=tasks,
        scores=[[float(one.tables[task].mean()) for task, one in zip(tasks, own, strict=False)]
                for own in scores_TI],
        overall=Estimated.of(overall, "share"),
        backward=Estimated.of(combined(terms), "share"),
    )  # fmt: skip


def _scores(arm: Kind, stage: Setting, tasks: list[str]) -> list[Scores]:
    points = stage.points(arm, stage.budgets[-1])
    results = {seed: point.results for seed, point in points.items()}
    return [stage.scores_on([t], results, f"{t} of {arm.name} after {stage.name}") for t in tasks]
