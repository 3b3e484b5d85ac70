"""A few kept samples of the base and of every arm, to the same questions: for the report's page.

Bounded in number and size, so that a study with millions of samples has a page that opens.
Items on which the verdicts differ come first: they show what training changed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from laura.report import formats
from laura.report.measured import BASE, Measured
from laura.report.sample_text import Block, Page, page
from laura.report.samples import Samples, Selection, Wish, select, stream
from laura.results.errors import UsageError
from laura.results.schema import Summary
from laura.results.store import StudyStore
from laura.results.task_result import samples_file

MOST_TASKS, MOST_ITEMS, MOST_MODELS, MOST_CHARACTERS = 3, 6, 8, 900


@dataclass(frozen=True)
class Examples:
    """Samples of one task.

    Attributes:
        title: What the task is called.
        models: What each model is, in words, by name.
        items: One a question, with the answer of every model.
        differing: Items on which verdicts differ; of `common` that all have.
        left_out: Names of arms for which there was no room.
    """

    title: str
    models: dict[str, str]
    items: list[Page]
    differing: int
    common: int
    left_out: list[str]


def read_examples(folder: Path, summary: Summary) -> list[Examples]:
    """A few samples of each task that kept them; empty where none did.

    Raises:
        StoreError: a file of samples is damaged.
        UsageError: the models were measured on items none of which is the same.
    """
    store = StudyStore(folder)
    found: list[Examples] = []
    for task in dict.fromkeys([*summary.measure.learning, *summary.measure.forgetting]):
        base = store.base_evaluation(task)
        if len(found) == MOST_TASKS or not _is_kept(base):
            continue
        models = [Measured(BASE, summary.base.model, base), *_arms(store, summary, task)]
        if len(models) > 1:
            found.append(_examples(summary.task(task).title, task, models))
    return found


def _is_kept(result: Path) -> bool:
    return result.is_file() and samples_file(result).is_file()


def _arms(store: StudyStore, summary: Summary, task: str) -> list[Measured]:
    """Every arm at its best rate and largest budget, first seed."""
    last: dict[str, Measured] = {}
    points = [point for point in summary.points if point.selected and point.step is not None]
    for point in sorted(points, key=lambda point: (-point.budget, point.seed)):
        file = store.run(point.run).evaluation(point.step or 0, task)
        if point.arm not in last and _is_kept(file):
            rate = formats.rate(point.learning_rate)
            budget = formats.budget_of(summary, point.budget)
            title = f"rate {rate}, seed {point.seed}, {budget}"
            last[point.arm] = Measured(point.arm, title, file)
    return [last[arm.name] for arm in summary.arms if arm.name in last]


def _examples(title: str, task: str, models: list[Measured]) -> Examples:
    shown, left_out = models[:MOST_MODELS], models[MOST_MODELS:]
    samples = [Samples(model, task) for model in shown]
    every = select(samples, Wish())
    try:
        differing = select(samples, Wish("differ"))
    except UsageError:  # nothing has a verdict
        differing = replace(every, keys=[], matching=0)
    keys = _first_of_each([*differing.keys, *every.keys])
    selection = Selection(sorted(keys), len(keys), every.alone, every.verdicts)
    metric = samples[0].metrics[0]
    names = [model.name for model in shown]
    items = [
        _cut(page(key, names, rows, metric=metric)) for key, rows in stream(samples, selection)
    ]
    titles = {model.name: model.title for model in shown}
    left = [model.name for model in left_out]
    return Examples(title, titles, items, differing.matching, len(every.keys), left)


def _first_of_each(keys: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first items there is room for, one sample each."""
    found: dict[int, tuple[int, int]] = {}
    for key in keys:
        if len(found) == MOST_ITEMS:
            break
        found.setdefault(key[0], key)
    return list(found.values())


def _cut(shown: Page) -> Page:
    answers = [
        replace(answer, blocks=[_short(block) for block in answer.blocks])
        for answer in shown.answers
    ]
    return replace(shown, shared=[_short(block) for block in shown.shared], answers=answers)


def _short(block: Block) -> Block:
    if len(block.text) <= MOST_CHARACTERS:
        return replace(block, note=block.note.replace("--full shows them", "`laura show --full`"))
    note = f"cut: {len(block.text) - MOST_CHARACTERS:,} characters more; `laura show` has them"
    return replace(block, text=block.text[:MOST_CHARACTERS] + " …", note=note)
