"""Runs tasks on an engine, one after another, and keeps each result as it ends.

The same function measures base and tuned model. A result that stands is not
measured again, so a measurement that was killed goes on at the next task.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.data.sources import load_rows
from laura.data.templates import chat_prompts
from laura.errors import DataError, StoreError
from laura.evals import tasks
from laura.evals.asking import Ask
from laura.evals.scoring import choice_item
from laura.evals.tasks import TaskEntry
from laura.models.engine import Engine, Reference
from laura.models.requests import TokenDocument
from laura.progress import SILENT, Progress
from laura.recipe import MeasureSection
from laura.results import Item, TaskResult, summarise

RowProvider = Callable[[str, str], list[dict[str, Any]]]
Measured = tuple[list[Item], list[Item]]

# No tokenizer makes more tokens than bytes, beside a few special ones.
SPECIAL_TOKENS = 8


@dataclass(frozen=True)
class Material:
    """What tasks measure with, beside the engine.

    Attributes:
        section: The recipe's `measure` section.
        rows: Gives a benchmark's rows by name and split (see `file_rows`).
        documents: Documents of the losses and of `kl`, by task.
        reference: The base for `kl`: another model, or a callable whose context
            switches the adapters off. None means the engine holds the base.
    """

    section: MeasureSection
    rows: RowProvider
    documents: Mapping[str, Sequence[TokenDocument]]
    reference: Reference | None = None


@dataclass(frozen=True)
class _Plan:
    """A task made ready: what it covers, and the work itself.

    Attributes:
        version: Version of the result.
        covers: What items a finished result must have, as `covered` tells.
        measure: Does the work; items and samples.
    """

    version: str
    covers: list[tuple[int, int | None]]
    measure: Callable[[], Measured]


def file_rows(data_dir: Path | None) -> RowProvider:
    """Benchmark rows from the data folder or the Hub, each file read once.

    Args:
        data_dir: Data folder; None means `LAURA_DATA`, if set, else the Hub.
    """

    @functools.cache
    def rows(name: str, split: str) -> list[dict[str, Any]]:
        return load_rows(name, split, data_dir)

    return rows


def evaluate(
    engine: Engine,
    task_names: Sequence[str],
    material: Material,
    *,
    model_name: str,
    out: Callable[[str], Path],
    progress: Progress = SILENT,
) -> dict[str, TaskResult]:
    """Measure tasks one after another; each TASK.json is written when its task ends.

    Args:
        engine: Runs the model, adapters attached or not.
        task_names: Names of the table of tasks; they run in this order.
        material: Rows, documents and settings.
        model_name: Recorded in the results.
        out: Where a task's TASK.json stands. One that covers the same items in
            the same version is read instead of measured; one that does not is
            measured again and replaced.
        progress: Shows one bar a task.

    Returns:
        Task to result, in the order given.

    Raises:
        UsageError: an unknown task.
        DataError: a row or document cannot be measured, or there are fewer than
            two (no standard error).
        StoreError: a result there is damaged or of another model, or the folder
            cannot be written.
        DivergenceError: the model's numbers are not finite.
    """
    entries = {name: tasks.find(name) for name in task_names}
    results = {}
    for name, entry in entries.items():
        plan = _KINDS[entry.kind](engine, name, entry, material)
        if len(plan.covers) < 2:
            raise DataError(
                f"{name} has {len(plan.covers)} item(s), a standard error needs at least 2; raise "
                "the limit (measure.limit, measure.loss_documents, --limit) or give more rows"
            )
        path = out(name)
        found = _standing(path, name, plan, model_name, progress)
        results[name] = found or _measure(engine, name, entry, plan, model_name, path, progress)
    return results


def _standing(
    path: Path, name: str, plan: _Plan, model_name: str, progress: Progress
) -> TaskResult | None:
    """The result that stands at `path`, if it is the one wanted."""
    if not path.exists():
        return None
    found = TaskResult.read(path)
    if (found.task, found.model) != (name, model_name):
        raise StoreError(
            f"{path} holds {found.task} of {found.model}, wanted is {name} of {model_name}; choose "
            "another folder with --out, or delete the file"
        )
    if found.version == plan.version and covered(found.items) == plan.covers:
        return found
    progress.say(
        f"{path} covers {found.n} items in version {found.version!r}, wanted are "
        f"{len(plan.covers)} in {plan.version!r}; {name} is measured again"
    )
    return None


def covered(items: Sequence[Item]) -> list[tuple[int, int | None]]:
    """Index of every item, with its tokens where it is a document with a loss."""
    return [(item["index"], item.get("tokens") if "nats" in item else None) for item in items]


def _measure(
    engine: Engine,
    name: str,
    entry: TaskEntry,
    plan: _Plan,
    model_name: str,
    path: Path,
    progress: Progress,
) -> TaskResult:
    start = time.perf_counter()
    with _titled(engine, entry.title, progress):
        items, samples = plan.measure()
    directions = {metric: entry.higher_is_better for metric in tasks.load(name).METRICS}
    try:
        metrics = {metric: summarise(items, metric, up) for metric, up in directions.items()}
    except ValueError as error:
        raise DataError(f"{name} cannot be summed up: {error}") from error
    seconds = time.perf_counter() - start
    result = TaskResult(name, plan.version, model_name, len(items), metrics, items, seconds)
    result.write(path, samples)
    return result


def _choice(engine: Engine, name: str, entry: TaskEntry, material: Material) -> _Plan:
    module = tasks.load(name)
    rows = material.rows(name, entry.split)[: material.section.limit]
    questions = [module.question(row, index) for index, row in enumerate(rows)]

    def measure() -> Measured:
        requests = [request for question in questions for request in question.requests]
        answers = iter(engine.score(requests))
        items = []
        for question in questions:
            own = [next(answers) for _ in question.requests]
            item = choice_item(question, own, module.METRICS, entry.metric)
            texts = [request.context + request.continuation for request in question.requests]
            # One more token than the context may be scored: the last is only predicted.
            items.append(_mark_cut(item, engine, texts, engine.encoder.context_tokens + 1))
        return items, []

    return _Plan(module.VERSION, [(question.index, None) for question in questions], measure)


def _generation(engine: Engine, name: str, entry: TaskEntry, material: Material) -> _Plan:
    module, section = tasks.load(name), material.section
    rows = material.rows(name, entry.split)[: section.limit]
    other_rows = functools.partial(material.rows, name)
    ask = Ask(section, other_rows, functools.partial(chat_prompts, engine.tokenizer))
    version, questions = module.prepare(rows, ask)

    def measure() -> Measured:
        answers = engine.generate([question.request for question in questions])
        graded = module.grades(questions, answers)
        items, samples = [], []
        for question, (item, sample) in zip(questions, graded, strict=True):
            room = engine.encoder.context_tokens - question.request.max_new_tokens
            items.append(_mark_cut(item, engine, [question.request.prompt], room))
            samples.append(sample)
        return items, samples

    return _Plan(version, [(question.index, None) for question in questions], measure)


def _loss(engine: Engine, name: str, entry: TaskEntry, material: Material) -> _Plan:
    module, documents = tasks.load(name), _documents(name, material)

    def measure() -> Measured:
        return module.items(documents, engine.document_losses(documents)), []

    return _Plan(module.VERSION, _supervised(documents), measure)


def _divergence(engine: Engine, name: str, entry: TaskEntry, material: Material) -> _Plan:
    module, documents = tasks.load(name), _documents(name, material)
    covers = _supervised(documents)

    def measure() -> Measured:
        if material.reference is None:
            # The base diverges from itself by nothing, by definition.
            return module.items(documents, [[0.0] * (tokens or 0) for _, tokens in covers]), []
        found = engine.document_divergences(documents, material.reference)
        return module.items(documents, found), []

    return _Plan(module.VERSION, covers, measure)


_KINDS: dict[str, Callable[[Engine, str, TaskEntry, Material], _Plan]] = {
    "choice": _choice,
    "generation": _generation,
    "loss": _loss,
    "divergence": _divergence,
}


def _documents(name: str, material: Material) -> Sequence[TokenDocument]:
    documents = material.documents.get(name, ())
    if not documents:
        fields = {"source_loss": "source_text", "validation_loss": "validation"}
        field = f"data.{fields.get(name, 'test')}"
        raise DataError(f"{name} needs documents and there are none; give {field} in the recipe")
    indices = {document.index for document in documents}
    assert len(indices) == len(documents), f"documents of {name} share an index"
    return documents


def _supervised(documents: Sequence[TokenDocument]) -> list[tuple[int, int | None]]:
    """Index and supervised tokens of every document; its first token is never one."""
    return [(document.index, sum(document.supervised[1:])) for document in documents]


def _mark_cut(item: Item, engine: Engine, texts: Sequence[str], room: int) -> Item:
    """Mark an item whose text was cut from the left because it exceeds the context.

    lm-eval cuts too, and so the numbers stay equal to its; but the reader should know.
    """
    for text in texts:
        if len(text.encode("utf-8")) + SPECIAL_TOKENS <= room:
            continue  # saves encoding the text once more
        if len(engine.tokenizer(text)["input_ids"]) > room:
            return {**item, "truncated": True}
    return item


class _Titled:
    """A `Progress` whose bars carry the task's title."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title

    def bar(self, title: str, total: float, unit: str = "") -> Any:
        return self.progress.bar(f"{self.title}: {title}", total, unit)

    def say(self, text: str) -> None:
        self.progress.say(text)


@contextmanager
def _titled(engine: Engine, title: str, progress: Progress) -> Iterator[None]:
    """While a task runs, the engine's bars are the task's."""
    before = engine.progress
    engine.progress = _Titled(progress, title)
    try:
        yield
    finally:
        engine.progress = before
