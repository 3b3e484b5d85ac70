"""Samples as they are shown: by `laura show`, and a few of them in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from laura.evals.tasks import TASKS
from laura.report import formats
from laura.report.samples.find import (
    BASE,
    KeptSamples,
    MeasuredModel,
    SampleFilter,
    Selection,
    choose_models,
    choose_task,
    find_results,
    model_lines,
    models_of,
    select,
)
from laura.report.samples.text import SamplePage, SampleText, loss_lines, page, plain_lines
from laura.report.visible import visible_line
from laura.results.errors import UsageError
from laura.results.schema import ANALYSIS_FILE, Analysis, StagesRow, Summary, read_optional
from laura.results.store import StudyStore


@dataclass(frozen=True)
class Overview:
    """What there is to show in a folder: the models measured on each task."""

    folder: Path
    models: dict[str, list[MeasuredModel]]
    stages: list[StagesRow]

    def to_json(self) -> dict[str, Any]:
        """{"study", "stages", "tasks": {TASK: {"title", "models": [{"name", "title", ...}]}}}."""
        return {
            "study": str(self.folder),
            "stages": [row.model_dump(mode="json") for row in self.stages],
            "tasks": {
                task: {
                    "title": _title(task),
                    "models": [
                        {"name": one.name, "title": one.title, "samples": one.kept}
                        for one in models
                    ],
                }
                for task, models in self.models.items()
            },
        }

    def lines(self) -> Iterator[str]:
        """The same in words."""
        yield f"Measured in {visible_line(str(self.folder))}; choose with --task NAME:"
        width = max(len(visible_line(task)) for task in self.models)
        for task, models in self.models.items():
            kept = sum(model.kept for model in models)
            texts = f"samples of {kept}" if kept else "only items"
            count = "1 model" if len(models) == 1 else f"{len(models)} models"
            yield f"  {visible_line(task):<{width}}  {_title(task)} ({count}, {texts})"
        yield "Models, for --model NAME:"
        every = {model.name: model for models in self.models.values() for model in models}
        yield model_lines(list(every.values()))
        for row in self.stages:
            yield f"{visible_line(row.arm)} after {', '.join(map(visible_line, row.settings))}:"
            yield f"  OP  {formats.estimated(row.overall)}"
            yield f"  BWT {formats.estimated(row.backward)}"


@dataclass(frozen=True)
class View:
    """The wanted samples of one task, of one model or of several side by side.

    Attributes:
        folder: The study.
        task: Name of the task.
        samples: One a model.
        selection: Which samples were found.
        outcome: Which were wanted.
        full: Whether long prompts are shown whole.
        others: Names of the models that were measured too.
    """

    folder: Path
    task: str
    samples: list[KeptSamples]
    selection: Selection
    outcome: str
    full: bool
    others: list[str]

    @property
    def names(self) -> list[str]:
        """The models' names."""
        return [one.model.name for one in self.samples]

    @property
    def are_losses(self) -> bool:
        """Whether there are documents with a loss instead of samples."""
        return all(one.are_losses for one in self.samples)

    def heading(self) -> Iterator[str]:
        """What is shown, each model's score, and what is not shown."""
        yield f"{_title(self.task)} ({visible_line(self.task)}) in {visible_line(str(self.folder))}"
        for one in self.samples:
            marks = Counter(one.verdicts[key] for key in self.selection.common)
            told = f"{marks[True]} passed, {marks[False]} failed"
            if not (marks[True] or marks[False]):
                told = f"{len(self.selection.common)} items"
            scores = ", ".join(
                f"{visible_line(name)} {metric.value:.4f} ± {metric.stderr:.4f}"
                for name, metric in one.result.metrics.items()
            )
            name, title = visible_line(one.model.name), visible_line(one.model.title)
            model = name if title == name else f"{name} ({title})"
            yield f"{model}: {told}; {scores} (n={one.result.n})"
        yield from self._notes()

    def _notes(self) -> Iterator[str]:
        found, shown = self.selection.matching, len(self.selection.keys)
        common, alone = self.selection.common, len(self.samples) == 1
        told = {
            "any": f"{found} {'samples' if any(number for _, number in common) else 'items'}",
            "failed": f"{found} of {len(common)} failed"
            + ("" if alone else " by one of them or more"),
            "passed": f"{found} of {len(common)} passed" + ("" if alone else " by all of them"),
            "differ": f"the verdicts differ on {found} of {len(common)}",
            "forgotten": f"{found} of {len(common)} passed on the first and failed on another",
            "gained": f"{found} of {len(common)} failed on the first and passed on another",
        }[self.outcome]
        yield told + (f", the first {shown} shown" if shown < found else "")
        if len(self.samples) == 2 and not self.are_losses:
            counts = Counter(tuple(one.verdicts[key] for one in self.samples) for key in common)
            first, second = (visible_line(name) for name in self.names)
            yield (
                f"both passed {counts[True, True]}, only {first} {counts[True, False]}, "
                f"only {second} {counts[False, True]}, neither {counts[False, False]}"
            )
        if self.selection.alone:
            yield f"{self.selection.alone} not shown: not every one of these models has them"
        versions = list(dict.fromkeys(one.result.version for one in self.samples))
        if len(versions) > 1:
            told = " and ".join(visible_line(repr(version)) for version in versions)
            yield f"These were measured in different versions, their prompts may differ: {told}"
        bare = [one.model.name for one in self.samples if not (one.kept or one.are_losses)]
        if bare:
            yield f"No texts were kept of {_some(bare)}; measure again to keep them"
        if alone and self.others:
            yield f"Measured too, for --model: {_some(self.others)}"

    def pages(self) -> Iterator[SamplePage]:
        """The samples one by one, laid out."""
        several = any(number for _, number in self.selection.common)
        for key in self.selection.keys:
            rows = [(one.rows[key], one.verdicts[key]) for one in self.samples]
            heading = f"item {key[0]}" + (f", sample {key[1]}" if several else "")
            yield page(heading, self.names, rows, metric=self.samples[0].metrics[0], full=self.full)

    def table(self) -> Iterator[str]:
        """A line a document, where the task is a loss; nothing otherwise."""
        if self.are_losses:
            rows = [[one.rows[key] for one in self.samples] for key in self.selection.keys]
            yield from loss_lines(self.names, rows)

    def lines(self) -> Iterator[str]:
        """All of it as plain lines."""
        yield from self.heading()
        yield ""
        if self.are_losses:
            yield from self.table()
            return
        for shown in self.pages():
            yield from plain_lines(shown)

    def to_json(self) -> dict[str, Any]:
        """All of it, uncut.

        Returns:
            {"study", "task", "title", "models": [{"name", "title", "version", "n",
            "metrics"}], "matching", "shown", "items": [{"index", "sample", "answers":
            [{"model", "passed", "row"}]}]}; a row is the sample as it was kept.
        """
        models = []
        for one in self.samples:
            value = one.result.to_json()
            scores = {name: value[name] for name in ("version", "n", "metrics")}
            models.append({"name": one.model.name, "title": one.model.title, **scores})
        items = []
        for key in self.selection.keys:
            answers = [
                {"model": one.model.name, "passed": one.verdicts[key], "row": one.rows[key]}
                for one in self.samples
            ]
            items.append({"index": key[0], "sample": key[1], "answers": answers})
        return {
            "study": str(self.folder),
            "task": self.task,
            "title": _title(self.task),
            "models": models,
            "matching": self.selection.matching,
            "shown": len(items),
            "items": items,
        }


def open_view(
    folder: Path,
    task: str | None = None,
    models: Sequence[str] = (),
    wanted: SampleFilter | None = None,
    full: bool = False,
) -> View | Overview:
    """Find what is to be shown; without a task where there are several, what there is.

    Args:
        folder: A study, or a folder that `laura evaluate` wrote.
        task: Name of a task; None for the only one.
        models: Names of models; none for the base, or the only one.
        wanted: Which samples; None for all.
        full: Show long prompts whole.

    Raises:
        UsageError: a task, model, item or sample that is not there.
        StoreError: no results there, or a damaged file.
    """
    wanted = wanted or SampleFilter()
    results = find_results(folder)
    if task is None and len(results) > 1:
        if models or wanted != SampleFilter():
            raise UsageError(
                "which task? Choose with --task NAME; there are: "
                f"{', '.join(visible_line(name) for name in sorted(results))}"
            )
        order = [*(name for name in TASKS if name in results), *sorted(results)]
        found = {name: models_of(folder, results[name]) for name in dict.fromkeys(order)}
        analysis = read_optional(Analysis, folder / ANALYSIS_FILE)
        return Overview(folder, found, analysis.stages if analysis else [])
    name = choose_task(results, task or next(iter(results)), folder)
    there = models_of(folder, results[name])
    chosen = choose_models(there, models)
    samples = [KeptSamples(model, name) for model in chosen]
    others = [model.name for model in there if model not in chosen]
    return View(folder, name, samples, select(samples, wanted), wanted.outcome, full, others)


def _title(task: str) -> str:
    return TASKS[task].title if task in TASKS else visible_line(task)


def _some(names: Sequence[str], most: int = 6) -> str:
    told = ", ".join(visible_line(name) for name in names[:most])
    return told if len(names) <= most else f"{told} and {len(names) - most} more"


# ----- for the report: a few answers of the base and of every arm -----


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
    common, differing, forgotten = select(samples, SampleFilter()).keys, [], []
    try:
        differing = select(samples, SampleFilter("differ")).keys
        forgotten = select(samples, SampleFilter("forgotten")).keys
    except UsageError:  # nothing has a verdict
        pass
    # The first items there is room for, one sample each.
    first: dict[int, tuple[int, int]] = {}
    for key in (*forgotten, *differing, *common):
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
