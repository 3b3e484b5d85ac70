"""A few answers of the base and of every arm to the same questions, for the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from laura.report import formats
from laura.report.samples.find import BASE, KeptSamples, MeasuredModel, SampleFilter, select
from laura.report.samples.text import SamplePage, SampleText, page
from laura.results.errors import UsageError
from laura.results.schema import Summary
from laura.results.store import StudyStore

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
    items: list[SamplePage]
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
        base = MeasuredModel(BASE, summary.base.model, store.base_evaluation(task))
        if len(found) == MOST_TASKS or not _is_whole(base):
            continue
        if arms := _arms(store, summary, task):
            found.append(_examples(summary.task(task).title, task, [base, *arms]))
    return found


def _is_whole(model: MeasuredModel) -> bool:
    return model.file.is_file() and model.kept


def _arms(store: StudyStore, summary: Summary, task: str) -> list[MeasuredModel]:
    """Every arm at its best rate and largest budget, first seed."""
    first: dict[str, MeasuredModel] = {}
    points = [point for point in summary.points if point.selected]
    for point in sorted(points, key=lambda point: (-point.budget, point.seed)):
        budget = formats.budget_of(summary, point.budget)
        title = f"rate {formats.rate(point.learning_rate)}, seed {point.seed}, {budget}"
        file = store.run(point.run).evaluation(point.step, task)
        model = MeasuredModel(point.arm, title, file)
        if point.arm not in first and _is_whole(model):
            first[point.arm] = model
    return [first[arm.name] for arm in summary.arms if arm.name in first]


def _examples(title: str, task: str, models: list[MeasuredModel]) -> Examples:
    shown = models[:MOST_MODELS]
    samples = [KeptSamples(model, task) for model in shown]
    common, differing = select(samples, SampleFilter()).keys, []
    try:
        differing = select(samples, SampleFilter("differ")).keys
    except UsageError:  # nothing has a verdict
        pass
    # The first items there is room for, one sample each.
    first: dict[int, tuple[int, int]] = {}
    for key in (*differing, *common):
        if len(first) < MOST_ITEMS:
            first.setdefault(key[0], key)
    names, metric = [model.name for model in shown], samples[0].metrics[0]
    items = []
    for key in sorted(first.values()):
        rows = [(one.rows[key], one.verdicts[key]) for one in samples]
        items.append(_cut(page(f"item {key[0]}", names, rows, metric=metric)))
    left_out = [model.name for model in models[MOST_MODELS:]]
    titles = {model.name: model.title for model in shown}
    return Examples(title, titles, items, len(differing), len(common), left_out)


def _cut(shown: SamplePage) -> SamplePage:
    answers = [
        replace(answer, texts=[_short(text) for text in answer.texts]) for answer in shown.answers
    ]
    return replace(shown, shared=[_short(text) for text in shown.shared], answers=answers)


def _short(text: SampleText) -> SampleText:
    if len(text.text) <= MOST_CHARACTERS:
        return replace(text, note=text.note.replace("--full shows them", "`laura show --full`"))
    note = f"cut: {len(text.text) - MOST_CHARACTERS:,} characters more; `laura show` has them"
    return replace(text, text=text.text[:MOST_CHARACTERS] + " …", note=note)
