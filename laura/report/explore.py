"""What the page's own script draws from: configurations, axes, questions, rows of evidence.

Numbers only: every word of judgement comes from the judge's files. The shapes stand on top of
`templates/chart.js`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from laura.report import formats
from laura.report.arms import Group, groups, representatives
from laura.report.samples.turned import read_questions
from laura.report.study import Study, read_or_note
from laura.results.schema import MEAN, Claim, Configured, Estimated, Judgement, Summary, TaskFacts
from laura.results.statistics import Estimate, cached_quantile, count

FEWEST_SEEDS = 3  # with which an interval holds the luck of seeds too
WELL_FILLED = 5  # configurations of the table beside the answer


@dataclass(frozen=True)
class Story:
    """The page above its tables.

    Attributes:
        judged: What was concluded; None where nothing was.
        command: What would decide or confirm the answer; "" where no runs would.
        effort: What that takes, in words.
        evidence: A row a statement that was tested.
        settings: One a study; of a series one a setting.
        notes: What must be borne in mind, and what is missing.
    """

    judged: Judgement | None
    command: str = ""
    effort: str = ""
    evidence: list[dict[str, Any]] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def tell(study: Study, folder: Path) -> Story:
    """The story of one study."""
    judged, gaps = study.judgement, list(study.gaps)
    caveats = judged.caveats if judged else []
    settings = [setting_value(study, folder, gaps)]
    options = judged.options if judged else ""
    path = folder.as_posix()
    command = f"laura compare {path}/recipe.yaml --out {path} {options}" if options else ""
    rows = evidence(judged, study.summary)
    return Story(judged, command, _effort(study), rows, settings, [*caveats, *gaps])


def _effort(study: Study) -> str:
    """Runs and their time on the machine of this study, one after another."""
    judged, costs = study.judgement, study.costs
    if judged is None or not judged.more_runs:
        return ""
    words = count(judged.more_runs, "run")
    if costs is None or not costs.runs:
        return words
    spent = math.fsum(run.train_seconds for run in costs.runs) + (costs.evaluation_seconds or 0)
    minutes = judged.more_runs * spent / len(costs.runs) / 60
    told = count(max(1, round(minutes)), "minute")
    if minutes > 90:
        told = f"{minutes / 60:.2g} hours"
    return f"{words}, about {told} where this study ran"


def setting_value(
    study: Study, folder: Path, gaps: list[str], share: float = 1.0, name: str = ""
) -> dict[str, Any]:
    """One study for the script.

    Args:
        study: As it was read.
        folder: Where its samples lie.
        gaps: Joined by what cannot be shown.
        share: How much of a page's texts it may take.
        name: What its series calls it.
    """
    summary = study.summary
    every = groups(summary)
    order = sorted(every, key=_weight)
    read = partial(read_questions, folder, summary, order, share)
    nothing: dict[str, Any] = {}
    asked = read_or_note(gaps, "Questions are not shown", read, nothing)
    chance = {t["id"]: t["chance"] for t in asked.get("tasks", ()) if t["chance"] is not None}
    return {
        "name": name or summary.name,
        **drawing(summary, chance),
        "beside": _beside(study, every),
        "questions": asked,
    }


def drawing(summary: Summary, chance: dict[str, float]) -> dict[str, Any]:
    """What the trade-off is drawn from: arms, axes and configurations.

    Args:
        summary: The study.
        chance: What guessing gets of a task, in points; tasks may be missing.
    """
    every = groups(summary)
    learning, forgetting = _measures(summary, chance)
    drawn = representatives(summary, {group.arm for group in every})
    return {
        "unit": summary.budget.unit,
        "arms": [
            {"name": arm.name, "method": arm.method, "shown": arm.name in drawn}
            for arm in summary.arms
        ],
        "x": learning,
        "y": forgetting,
        "configs": [_config(summary, group, learning, forgetting) for group in every],
    }


def _weight(group: Group) -> tuple[bool, float, int]:
    """Chosen rates come first, then the largest budget."""
    tuned = any(point.selected for point in group.points)
    return not tuned, -(group.budget or 0), -len(group.points)


def _measures(
    summary: Summary, chance: dict[str, float]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The axes: what can be learnt, what can be forgotten, and how far it can fall."""
    floors = {
        name: 100 * summary.base.scores[name].value - level
        for name, level in chance.items()
        if name in summary.base.scores
    }
    accuracies = summary.accuracies
    if accuracies and all(name in floors for name in accuracies):
        floors[MEAN] = fmean(floors[name] for name in accuracies)

    def measure(name: str, verb: str, alone: bool) -> dict[str, Any]:
        task = summary.task(name)
        of = "mean of all tasks" if name == MEAN else task.short_title
        title = f"{formats.change_unit(task)} {verb}"
        floor = floors.get(name) if verb == "forgotten" else None
        return {"key": name, "title": title if alone else f"{title}, {of}", "name": of,
                "unit": formats.change_unit(task), "floor": floor}  # fmt: skip

    learnt = [name for name in summary.measure.learning if name in summary.tasks]
    forgot = dict.fromkeys([*summary.forgetting_measures, *accuracies])
    return (
        [measure(name, "learnt", len(learnt) == 1) for name in learnt],
        [measure(name, "forgotten", len(forgot) == 1 or name == MEAN) for name in forgot],
    )


def _config(
    summary: Summary, group: Group, learning: Sequence[Any], forgetting: Sequence[Any]
) -> dict[str, Any]:
    values = {}
    for side, verb in ((learning, True), (forgetting, False)):
        for one in side:
            task = summary.task(one["key"])
            found = formats.turned(group.change(task.name), task, verb)
            if found is not None:
                values[task.name] = _spread(found, task, len(group.seeds))
    scores = {
        task.name: _short(100 * found.value)
        for task in map(summary.task, (*summary.measure.learning, *summary.measure.forgetting))
        if task.is_accuracy and (found := group.value(task.name)) is not None
    }
    validation = group.value("validation_loss")
    return {
        "arm": group.arm,
        "rate": group.learning_rate,
        "budget": group.budget,
        "seeds": group.seeds,
        "tuned": any(point.selected for point in group.points),
        "values": values,
        "scores": scores,
        "validation": None if validation is None else _short(validation.value),
    }


def _spread(found: Estimate, task: TaskFacts, seeds: int) -> list[Any]:
    """Value, half of the 95 % interval, and whose luck it holds."""
    known = seeds >= FEWEST_SEEDS
    half = cached_quantile(0.975, seeds - 1 if known else 1e9) * found.stderr
    kind = "seeds" if known else "items"
    return [_short(found.value * task.scale), _short(half * task.scale), kind]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _beside(study: Study, every: Sequence[Group]) -> list[dict[str, Any]]:
    """The configurations beside the answer: those it names, then the tuned of each main arm."""
    judged = study.judgement
    budgets = study.summary.budget.points
    named = [(one, "named") for one in judged.named] if judged else []
    main = judged.comparisons[0].arms if judged and judged.comparisons else ()
    tuned = [
        (Configured(arm=g.arm, learning_rate=g.learning_rate, budget=g.budget or 0), "tuned")
        for arm in main or representatives(study.summary)
        for g in every
        if g.arm == arm and g.budget == max(budgets) and any(p.selected for p in g.points)
    ]
    found: dict[tuple[str, float, float], str] = {}
    for one, word in (*named, *tuned):
        found.setdefault((one.arm, one.learning_rate, one.budget), word)
    return [
        {"arm": arm, "rate": rate, "budget": budget, "word": word}
        for (arm, rate, budget), word in list(found.items())[:WELL_FILLED]
    ]


# ----- evidence: a row a statement that was tested -----


def evidence(judged: Judgement | None, summary: Summary | None = None) -> list[dict[str, Any]]:
    """Statements with an effect, their intervals and verdicts; in points where they are shares.

    Args:
        judged: What was concluded.
        summary: Of a single study, whose seeds become dots; of a series its settings do.
    """
    claims = judged.claims if judged else []
    return [_row(c, c.effect, summary) for c in claims if c.effect is not None]


def _row(claim: Claim, effect: Estimated, summary: Summary | None) -> dict[str, Any]:
    scale = 100 if effect.unit == "share" else 1
    parts = [row for row in claim.evidence if row.decides and row.effect is not None]
    dots = [row.effect.value for row in parts if row.effect and row.effect.unit == effect.unit]
    word = "settings" if len({row.setting for row in parts}) > 1 else "parts"
    if len(dots) < 2 and summary is not None:
        dots, word = _seeds(claim, effect, summary), "seeds"
    return {
        "id": claim.id,
        "statement": claim.statement,
        "test": claim.test,
        "word": claim.verdict,
        "unit": "points" if scale == 100 else effect.unit,
        "value": _short(effect.value * scale),
        "low": _short(effect.interval[0] * scale),
        "high": _short(effect.interval[1] * scale),
        "told": f"{formats.points(effect.value, effect.unit)} ({formats.interval(effect)})",
        "why": claim.reason,
        "decide": claim.would_decide,
        "dots": [_short(dot * scale) for dot in dots] if len(dots) > 1 else [],
        "of": word,
    }


def _seeds(claim: Claim, effect: Estimated, summary: Summary) -> list[float]:
    """Differences of two tuned arms seed by seed, where their mean is the effect."""
    arms = next((row.arms for row in claim.evidence if row.decides), [])
    if claim.question != "tuned" or len(arms) != 2:
        return []
    measures = [(name, True) for name in summary.measure.learning[:1]]
    measures += [(name, False) for name in summary.forgetting_measures[:1]]
    for (name, learnt), budget in (
        (one, at) for one in measures for at in reversed(summary.budget.points)
    ):
        task, sides = summary.task(name), []
        for arm in arms:
            own = [p for p in summary.points if p.arm == arm and p.selected and p.budget == budget]
            changes = {p.seed: formats.turned(summary.change(p, name), task, learnt) for p in own}
            sides.append({seed: one.value for seed, one in changes.items() if one is not None})
        first, second = sides
        dots = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
        if dots and math.isclose(abs(fmean(dots)), abs(effect.value), rel_tol=1e-6):
            turned = 1 if fmean(dots) * effect.value > 0 else -1
            return [turned * dot for dot in dots]
    return []
