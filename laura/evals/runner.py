"""Runs tasks on an engine, one after another, and keeps each result as it ends.

The same function measures base and tuned model, and several adapters at once. A plan
tells what a task covers before anything is measured, so that a result that stands is
recognised and not measured again; of one that was begun every answer is kept, so a
measurement that was killed goes on at the next item. A task is one of the table, one of
lm-eval's (`lm_eval:NAME`, or a YAML file of the user's) or a Python file of the user's.
"""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from laura.data.sources import load_rows
from laura.data.templates import chat_prompts
from laura.engine.engine import Reference
from laura.engine.requests import MeasuringEngine, TokenDocument
from laura.evals import tasks, user_task
from laura.evals.keeping import Keeper, partial_file
from laura.evals.sandbox import require_sandbox
from laura.evals.scoring import (
    Adapters,
    TaskMeasurement,
    TaskPlan,
    TaskSettings,
    choice_item,
    choice_sample,
    document_items,
)
from laura.evals.tasks import TaskEntry
from laura.recipe.sections import Extra, MeasureSection, pass_names
from laura.recipe.tasks import is_lm_eval, is_task_file
from laura.results.errors import DataError, StoreError, UsageError
from laura.results.progress import SILENT, Progress
from laura.results.store import disk_faults
from laura.results.task_result import Item, TaskResult, summarise

RowProvider = Callable[[str, str], list[dict[str, Any]]]

SUBSET_SEED = 20240515  # fixed, so that every model meets the same items
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
        data_dir: Folder of local data, for tasks of the user's own.
        extra: What an extra wants of the task that is made ready; None for the plain task.
        drift: Divergences found on the way, by task and adapter, for the task that
            reads the same text in the other direction.
    """

    section: MeasureSection
    rows: RowProvider
    documents: Mapping[str, Sequence[TokenDocument]]
    reference: Reference | None = None
    data_dir: Path | None = None
    extra: Extra | None = None
    drift: dict[Any, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Subject:
    """A model that is measured.

    Attributes:
        name: Recorded in its results.
        out: Where a task's TASK.json stands.
        adapter: Name of the engine's adapter; None for the model itself.
    """

    name: str
    out: Callable[[str], Path]
    adapter: str | None = None


def file_rows(data_dir: Path | None) -> RowProvider:
    """Benchmark rows from the data folder or the Hub, each file read once.

    Args:
        data_dir: Data folder; None means `LAURA_DATA`, if set, else the Hub.
    """

    @functools.cache
    def rows(name: str, split: str) -> list[dict[str, Any]]:
        return load_rows(name, split, data_dir)

    return rows


def check_name(name: str, extras: Mapping[str, Extra] | None = None) -> None:
    """Refuse a task or extra that cannot be measured, before anything is loaded.

    Raises:
        UsageError: no such task; the message names the nearest.
        SandboxError: it runs what the model writes, and this machine cannot confine that.
    """
    if extras and name in extras:
        name = extras[name].task
    if is_lm_eval(name) or is_task_file(name):
        return
    if tasks.find(name).runs_code:
        require_sandbox()


def evaluate(
    engine: MeasuringEngine,
    task_names: Sequence[str],
    material: Material,
    *,
    model_name: str,
    out: Callable[[str], Path],
    adapter: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, TaskResult]:
    """Measure tasks on the engine's model, or on one of its adapters; see `evaluate_all`."""
    subject = Subject(model_name, out, adapter)
    return evaluate_all(engine, task_names, material, [subject], progress=progress)[0]


def evaluate_all(
    engine: MeasuringEngine,
    task_names: Sequence[str],
    material: Material,
    subjects: Sequence[Subject],
    *,
    progress: Progress = SILENT,
    before: Callable[[list[tuple[TaskPlan, int]]], None] | None = None,
) -> list[dict[str, TaskResult]]:
    """Measure tasks one after another on several models at once.

    Each TASK.json is written when its task ends. One that covers the same items in the
    same version is read instead of measured; one that does not is measured again and
    replaced.

    Args:
        engine: Runs the model and its adapters.
        task_names: Of the table of tasks, `lm_eval:NAME`, paths of a user's files, or
            extras of the `measure` section.
        material: Rows, documents and settings.
        subjects: What is measured.
        progress: Shows one bar a task.
        before: Told what will be measured, and on how many models, before it begins.

    Returns:
        For each subject: name of the result to result, in the order given.

    Raises:
        UsageError: an unknown task.
        DataError: a row or document cannot be measured, or there are fewer than
            two (no standard error).
        StoreError: a result there is damaged or of another model, or the folder
            cannot be written.
        DivergenceError: the model's numbers are not finite.
    """
    for name in task_names:
        check_name(name, material.section.extras)
    plans = [plan_task(engine, name, material) for name in task_names]
    for name, plan in zip(task_names, plans, strict=True):
        if len(plan.covers) < 2:
            raise DataError(
                f"{name} has {len(plan.covers)} item(s), a standard error needs at least 2; raise "
                "the limit (measure.limit, measure.loss_documents, --limit) or give more rows"
            )
    names = [plan.name for plan in plans]
    if len(set(names)) < len(names):
        raise UsageError(f"two tasks have one name among {', '.join(names)}; rename one's file")
    standing = [[_standing(plan, subject, progress) for subject in subjects] for plan in plans]
    left = [
        [subject for subject, one in zip(subjects, found, strict=True) if one is None]
        for found in standing
    ]
    if before is not None:
        before([(plan, len(models)) for plan, models in zip(plans, left, strict=True) if models])
    results: list[dict[str, TaskResult]] = [{} for _ in subjects]
    for plan, found, models in zip(plans, standing, left, strict=True):
        measured = iter(_measure(engine, plan, models, progress) if models else [])
        for place, one in enumerate(found):
            results[place][plan.name] = one or next(measured)
    return results


def _standing(plan: TaskPlan, subject: Subject, progress: Progress) -> TaskResult | None:
    """The result that stands, if it is the one wanted."""
    path, name = subject.out(plan.name), plan.name
    if not path.exists():
        return None
    found = TaskResult.read(path)
    if (found.task, found.model) != (name, subject.name):
        raise StoreError(
            f"{path} holds {found.task} of {found.model}, wanted is {name} of {subject.name}; "
            "choose another folder with --out, or delete the file"
        )
    covered = [(i["index"], i.get("tokens") if "nats" in i else None) for i in found.items]
    if found.version == plan.version and covered == list(plan.covers):
        # Left where an attempt was killed after its result stood.
        with disk_faults(path):
            partial_file(path).unlink(missing_ok=True)
        return found
    progress.say(
        f"{path} covers {found.n} items in version {found.version!r}, wanted are "
        f"{len(plan.covers)} in {plan.version!r}; {name} is measured again"
    )
    return None


def _measure(
    engine: MeasuringEngine, plan: TaskPlan, subjects: Sequence[Subject], progress: Progress
) -> list[TaskResult]:
    """Measure one task on several models, and write each one's result."""
    start = time.perf_counter()
    files = {subject.adapter: partial_file(subject.out(plan.name)) for subject in subjects}
    identity = {
        subject.adapter: {"task": plan.name, "version": plan.version, "model": subject.name}
        for subject in subjects
    }
    results = []
    shown = engine.progress
    engine.progress = _Titled(progress, plan.title)
    try:
        with Keeper(engine, files, identity) as keeper:
            measured = plan.measure(keeper, [subject.adapter for subject in subjects])
            seconds = (time.perf_counter() - start) / len(subjects)
            for subject, found in zip(subjects, measured, strict=True):
                result = _result(plan, subject, found, seconds)
                result.write(subject.out(plan.name), found.samples)
                results.append(result)
    finally:
        engine.progress = shown
    # Not before every result stands: what one of them lacks is found in its file.
    for path in files.values():
        with disk_faults(path):
            path.unlink(missing_ok=True)
    return results


def _result(plan: TaskPlan, subject: Subject, found: TaskMeasurement, seconds: float) -> TaskResult:
    try:
        metrics = {
            metric: summarise(found.items, metric, up) for metric, up in found.directions.items()
        }
    except ValueError as error:
        raise DataError(f"{plan.name} cannot be summed up: {error}") from error
    return TaskResult(
        plan.name, plan.version, subject.name, len(found.items), metrics, found.items, seconds
    )


class _Titled:
    """A `Progress` whose bars carry the task's title."""

    def __init__(self, progress: Progress, title: str) -> None:
        self.progress, self.title = progress, title

    def bar(self, title: str, total: float, unit: str = "") -> Any:
        return self.progress.bar(f"{self.title}: {title}", total, unit)

    def say(self, text: str) -> None:
        self.progress.say(text)


def plan_task(engine: MeasuringEngine, name: str, material: Material) -> TaskPlan:
    """Make a task ready.

    Args:
        engine: For its tokenizer and the length of its context.
        name: Of the table of tasks, `lm_eval:NAME`, the path of a user's file, or an extra.
        material: Rows, documents and settings.

    Raises:
        UsageError: no such task.
        DataError: a row or document cannot be measured.
    """
    extra = material.section.extras.get(name)
    if extra is None:
        plan = _plan(engine, name, material)
    else:
        # The extra's task with the extra's samples, under the extra's name.
        changes = {**extra.code_settings(), **({"limit": extra.limit} if extra.limit else {})}
        section = material.section.model_copy(update=changes)
        plan = _plan(engine, extra.task, replace(material, section=section, extra=extra))
        title, version = f"{name} ({plan.title})", f"{extra.task} {plan.version}"
        plan = replace(plan, name=name, title=title, version=version)
    # Results of other arithmetic are not taken over.
    low = "; bf16" if str(getattr(engine, "precision", "")) == "torch.bfloat16" else ""
    other = getattr(engine, "version", "")
    return replace(plan, version=plan.version + low + (f"; vLLM {other}" if other else ""))


@dataclass(frozen=True)
class _Given:
    """What a plan is made of; `rows` are all of the task's."""

    engine: Any
    name: str
    entry: TaskEntry
    module: Any
    rows: list[dict[str, Any]]
    material: Material

    @property
    def picked(self) -> Sequence[int]:
        """Numbers of the rows that are measured."""
        section = self.material.section
        return chosen(len(self.rows), section.limit, section.subset)


def _plan(engine: MeasuringEngine, name: str, material: Material) -> TaskPlan:
    section = material.section
    path = user_task.find(name, material.data_dir) if is_task_file(name) else None
    if is_lm_eval(name) or (path and path.suffix != ".py"):
        from laura.evals.lm_eval.tasks import plan

        folder = Path(section.lm_eval_include) if section.lm_eval_include else None
        chat = engine if section.lm_eval_prompt == "chat" else None
        return plan(str(path or name), section.limit, folder, chat)
    if path is not None:
        own = user_task.UserTask.load(path, material.data_dir)
        given = _Given(engine, path.stem, own.entry, own, own.rows(), material)
    else:
        entry, module = tasks.find(name), tasks.load(name)
        rows = material.rows(name, entry.split) if entry.split else []
        if not entry.split and hasattr(module, "rows"):
            rows = list(module.rows())
        given = _Given(engine, name, entry, module, rows, material)
    return _KINDS[given.entry.kind](given)


def chosen(count: int, limit: int | None, subset: str) -> Sequence[int]:
    """Row numbers that are measured, rising.

    Args:
        count: Rows there are.
        limit: Rows wanted; None for all.
        subset: "first", or "random" for a fixed random choice. A larger random choice
            holds every smaller one.
    """
    if limit is None or limit >= count:
        return range(count)
    if subset == "first":
        return range(limit)
    order = list(range(count))
    random.Random(SUBSET_SEED).shuffle(order)
    return sorted(order[:limit])


def _choice(given: _Given) -> TaskPlan:
    engine, entry, module = given.engine, given.entry, given.module
    questions = [module.question(given.rows[index], index) for index in given.picked]

    def grades(_: Any, answered: list[list[Any]]) -> Iterator[tuple[Item, list[Item]]]:
        for question, own in zip(questions, answered, strict=True):
            item = choice_item(question, own, module.METRICS, entry.metric)
            texts = [request.context + request.continuation for request in question.requests]
            # One more token than the context may be scored: the last is only predicted.
            item = _mark_cut(item, engine, texts, engine.encoder.context_tokens + 1)
            yield item, [choice_sample(question, item)]

    return _asked(given, module.VERSION, questions, module.METRICS, "score", grades)


def _generation(given: _Given) -> TaskPlan:
    engine, entry, module, material = given.engine, given.entry, given.module, given.material
    section, extra = material.section, material.extra

    def other_rows(split: str) -> list[dict[str, Any]]:
        if not entry.split:
            raise DataError(f"{given.name} is a file of rows and has no split {split!r}")
        return material.rows(given.name, split)

    ask = TaskSettings(
        section, other_rows, functools.partial(chat_prompts, engine.tokenizer), extra
    )
    picked = given.picked
    version, found = module.prepare([given.rows[index] for index in picked], ask)
    # A task numbers the rows it is given; what is kept is the number in the data.
    questions = [
        replace(question, index=question.index - place + index)
        for place, (question, index) in enumerate(zip(found, picked, strict=True))
    ]
    names = module.metrics(section) if hasattr(module, "metrics") else module.METRICS
    if extra is not None:
        names = (*names, *getattr(module, "SAMPLED_METRICS", ()), *pass_names(extra.k))

    def grades(asked: Any, answered: list[list[Any]]) -> Iterator[tuple[Item, list[Item]]]:
        # Programs take as long as the model does, so those who run them show it.
        shown = (asked.progress,) if entry.runs_code else ()
        graded = module.grades(questions, answered, *shown)
        for question, (item, samples) in zip(questions, graded, strict=True):
            first = question.requests[0]
            room = engine.encoder.context_tokens - first.max_new_tokens
            yield _mark_cut(item, engine, [first.prompt], room), samples

    return _asked(given, version, questions, names, "generate", grades)


def _asked(
    given: _Given,
    version: str,
    questions: Sequence[Any],
    metrics: Sequence[str],
    method: str,
    grades: Callable[[Any, list[list[Any]]], Iterator[tuple[Item, list[Item]]]],
) -> TaskPlan:
    """The plan of questions whose requests a method of the engine answers."""
    requests = [request for question in questions for request in question.requests]

    def measure(asked: Any, adapters: Adapters) -> list[TaskMeasurement]:
        named = [replace(one, adapter=adapter) for adapter in adapters for one in requests]
        answers = iter(getattr(asked, method)(named))
        found = []
        for _ in adapters:
            answered = [[next(answers) for _ in question.requests] for question in questions]
            graded = list(grades(asked, answered))
            samples = [sample for _, own in graded for sample in own]
            directions = _directions(given.entry, metrics)
            found.append(TaskMeasurement([item for item, _ in graded], samples, directions))
        return found

    covers = [(question.index, None) for question in questions]
    return TaskPlan(given.name, given.entry.title, version, covers, measure, requests)


def _loss(given: _Given) -> TaskPlan:
    documents = _documents(given)
    return _summed(given, lambda asked, adapter: asked.document_losses(documents, adapter))


def _divergence(given: _Given) -> TaskPlan:
    engine, material, module = given.engine, given.material, given.module
    drift, documents = material.drift, _documents(given)
    # The task of the other direction reads the same: what one pass finds serves both.
    names = [given.name, module.other_way(given.name)]
    wanted = {
        module.direction(name): name
        for name in names
        if name in {given.name, *material.section.forgetting}
    }

    def nats(_: Any, adapter: str | None) -> list[list[float]]:
        if material.reference is None:
            # The base diverges from itself by nothing, by definition.
            return [[0.0] * _supervised(document) for document in documents]
        if not hasattr(engine, "document_divergences"):
            raise UsageError(f"{given.name} compares whole distributions, which this engine cannot")
        if (given.name, adapter) not in drift:
            ways = tuple(wanted)
            found = engine.document_divergences(documents, material.reference, adapter, ways)
            drift.update({(wanted[way], adapter): one for way, one in found.items()})
        own: list[list[float]] = drift.pop((given.name, adapter))
        return own

    return _summed(given, nats)


def _summed(given: _Given, nats: Callable[[Any, str | None], list[list[float]]]) -> TaskPlan:
    """The plan of documents whose nats, a token, are summed."""
    documents, module = _documents(given), given.module

    def measure(asked: Any, adapters: Adapters) -> list[TaskMeasurement]:
        directions = _directions(given.entry, module.METRICS)
        return [
            TaskMeasurement(document_items(documents, nats(asked, adapter)), [], directions)
            for adapter in adapters
        ]

    covers = [(document.index, _supervised(document)) for document in documents]
    return TaskPlan(given.name, given.entry.title, module.VERSION, covers, measure)


_KINDS: dict[str, Callable[[_Given], TaskPlan]] = {
    "choice": _choice,
    "generation": _generation,
    "loss": _loss,
    "divergence": _divergence,
}


def _directions(entry: TaskEntry, metrics: Sequence[str]) -> dict[str, bool]:
    """Every metric with its direction, the leading one first."""
    return dict.fromkeys((entry.metric, *metrics), entry.higher_is_better)


def _documents(given: _Given) -> Sequence[TokenDocument]:
    name = given.name
    documents = given.material.documents.get(name, ())
    if not documents:
        part = "source_text" if "source" in name else "test"
        part = "validation" if name == "validation_loss" else part
        raise DataError(f"{name} needs documents and there are none; give data.{part}")
    indices = {document.index for document in documents}
    assert len(indices) == len(documents), f"documents of {name} share an index"
    return documents


def _supervised(document: TokenDocument) -> int:
    """Supervised tokens of a document; its first token is never one."""
    return sum(document.supervised[1:])


def _mark_cut(item: Item, engine: MeasuringEngine, texts: Sequence[str], room: int) -> Item:
    """Mark an item whose text was cut from the left because it exceeds the context.

    lm-eval cuts too, and so the numbers stay equal to its; but the reader should know.
    """
    for text in texts:
        if len(text.encode("utf-8")) + SPECIAL_TOKENS <= room:
            continue  # saves encoding the text once more
        if len(engine.tokenizer(text)["input_ids"]) > room:
            return {**item, "truncated": True}
    return item
