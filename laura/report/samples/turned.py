"""The questions that turned between the base and the tuned models, for the page to look through.

Every verdict is there, a character an item, so that what the page counts is whole. Texts are
kept of the items that turned under some model, as far as a page can hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from laura.report.arms import Group
from laura.report.samples.find import BASE, KeptSamples, MeasuredModel
from laura.report.samples.text import answer_text, choice_texts, question_text
from laura.results.schema import Summary
from laura.results.store import StudyStore

MOST_ANSWERS, MOST_CHARACTERS = 400_000, 1_500_000


@dataclass(frozen=True)
class _Answers:
    """One model on one task, by index of the item."""

    right: dict[int, bool] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)

    def mark(self, index: int) -> str:
        return {True: "1", False: "0", None: "-"}[self.right.get(index)]


@dataclass(frozen=True)
class _Task:
    name: str
    questions: dict[int, str]
    choices: dict[int, list[str]]
    base: _Answers
    tuned: list[_Answers]

    @property
    def turned(self) -> list[int]:
        """Indices of the items that some model turned, and whose text is known."""
        return [
            index
            for index, before in self.base.right.items()
            if index in self.questions
            and any(one.right.get(index, before) != before for one in self.tuned)
        ]

    @property
    def chance(self) -> float | None:
        """What guessing scores (percent); None where models write their own answers."""
        known = [len(choices) for choices in self.choices.values() if choices]
        return 100 * fmean(1 / count for count in known) if known else None


def chances(folder: Path, summary: Summary) -> dict[str, float]:
    """What guessing scores (percent) of each task whose items offer choices, as far as kept.

    Raises:
        StoreError: the base's results or samples are damaged.
    """
    store, found = StudyStore(folder), {}
    for name in dict.fromkeys([*summary.measure.learning, *summary.measure.forgetting]):
        file = store.base_evaluation(name)
        if summary.task(name).is_accuracy and file.is_file():
            chance = _task(store, MeasuredModel(BASE, BASE, file), name, ()).chance
            if chance is not None:
                found[name] = chance
    return found


def read_questions(
    folder: Path, summary: Summary, groups: Sequence[Group], share: float = 1.0
) -> dict[str, Any]:
    """Verdicts and answers of the base and of each group's first seed.

    Args:
        folder: The study.
        summary: Its summary.
        groups: Those wanted; the ones that matter most come first, since a page cannot hold all.
        share: Of what a page holds, where it shows several studies.

    Returns:
        {"models": [{"arm", "rate", "budget", "seed", "run"}], "pool": [text],
        "tasks": [{"id", "title", "learnt", "n", "chance", "base": marks, "tuned": [marks],
        "turned": how many, "items": [[place, question, choices, [pool index a model]]]}]};
        marks are a string with `1`, `0` or `-` an item; models stand base first in an item.

    Raises:
        StoreError: a result or samples are damaged.
    """
    store = StudyStore(folder)
    names = dict.fromkeys([*summary.measure.learning, *summary.measure.forgetting])
    found = [
        (name, store.base_evaluation(name)) for name in names if summary.task(name).is_accuracy
    ]
    bases = {name: MeasuredModel(BASE, BASE, file) for name, file in found if file.is_file()}
    items = sum(summary.task(name).n for name in bases)
    kept = list(groups[: max(2, int(share * MOST_ANSWERS) // max(1, items))])
    tasks = [_task(store, base, name, kept) for name, base in bases.items()]
    pool: dict[str, int] = {}
    shown = _shown(tasks, pool, int(share * MOST_CHARACTERS))
    first = [min(group.points, key=lambda point: point.seed) for group in kept]
    return {
        "models": [
            {"arm": p.arm, "rate": p.learning_rate, "budget": p.budget, "seed": p.seed,
             "run": p.run}
            for p in first
        ],
        "pool": list(pool),
        "tasks": [
            {
                "id": task.name,
                "title": summary.task(task.name).short_title,
                "learnt": task.name in summary.measure.learning,
                "n": len(task.base.right),
                "chance": task.chance,
                "base": "".join(map(task.base.mark, task.base.right)),
                "tuned": ["".join(map(one.mark, task.base.right)) for one in task.tuned],
                "turned": len(task.turned),
                "items": shown[task.name],
            }
            for task in tasks
        ],
    }  # fmt: skip


def _task(store: StudyStore, base: MeasuredModel, name: str, kept: Sequence[Group]) -> _Task:
    samples = KeptSamples(base, name)
    first: dict[int, dict[str, Any]] = {}
    if samples.kept:
        for (index, _), row in samples.rows.items():
            first.setdefault(index, row)
    tuned = []
    for group in kept:
        point = min(group.points, key=lambda one: one.seed)
        file = store.run(point.run).evaluation(point.step, name)
        own = KeptSamples(MeasuredModel(point.run, "", file), name) if file.is_file() else None
        tuned.append(_answers(own) if own else _Answers())
    questions = {index: question_text(row) for index, row in first.items()}
    choices = {index: choice_texts(row) for index, row in first.items()}
    return _Task(name, questions, choices, _answers(samples), tuned)


def _answers(samples: KeptSamples) -> _Answers:
    """Right is more than half of an item's samples by the metric that leads."""
    metric = samples.metrics[0]
    found = _Answers()
    for item in samples.result.items:
        value = item.get(metric, item.get("correct"))
        if isinstance(value, int | float):
            found.right[item["index"]] = value > 0.5
    for (index, _), row in samples.rows.items() if samples.kept else ():
        if index not in found.texts:
            found.texts[index] = answer_text(row, metric)
    return found


def _shown(tasks: Sequence[_Task], pool: dict[str, int], left: int) -> dict[str, list[Any]]:
    """The items whose texts the page holds; tasks take turns until it is full."""
    found: dict[str, list[Any]] = {task.name: [] for task in tasks}
    turned = [(task, place, index) for task in tasks for place, index in enumerate(task.turned)]
    places = {task.name: {i: at for at, i in enumerate(task.base.right)} for task in tasks}
    for task, _, index in sorted(turned, key=lambda one: one[1]):
        answers = [one.texts.get(index, "") for one in (task.base, *task.tuned)]
        question, choices = task.questions[index], task.choices[index]
        new = {text for text in answers if text not in pool}
        left -= len(question) + sum(map(len, [*choices, *new]))
        if left < 0:
            break
        row = [pool.setdefault(text, len(pool)) for text in answers]
        found[task.name].append([places[task.name][index], question, choices, row])
    return found
