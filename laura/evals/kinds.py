"""How each kind of task is made ready and measured, on one adapter or many at once.

A plan tells what a task covers before anything is measured, so that a result that
stands can be recognised. The task itself may be one of Laura's, one of lm-eval's
(`lm_eval:NAME`) or a file of the user's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from laura.data.sources import load_rows
from laura.data.templates import chat_prompts
from laura.engine.engine import Reference
from laura.engine.requests import MeasuringEngine, TokenDocument
from laura.evals import tasks
from laura.evals.asking import Ask
from laura.evals.scoring import choice_item, choice_sample
from laura.evals.subsets import chosen
from laura.evals.tasks import TaskEntry
from laura.recipe.measure import pass_names
from laura.recipe.sections import Extra, MeasureSection
from laura.recipe.tasks import is_lm_eval, result_name
from laura.results.errors import DataError, UsageError
from laura.results.task_result import Item

RowProvider = Callable[[str, str], list[dict[str, Any]]]
Adapters = Sequence[str | None]

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
class Measured:
    """What a task found on one model.

    Attributes:
        items: One an item.
        samples: What is kept beside them: texts, verdicts.
        directions: Metric to whether higher is better; the first one leads.
    """

    items: list[Item]
    samples: list[Item]
    directions: dict[str, bool]


@dataclass(frozen=True)
class Plan:
    """A task made ready: what it covers, and the work itself.

    Attributes:
        name: Name of the result and of its file.
        title: Name for bars and tables.
        version: Version of the result.
        covers: What items a finished result must have, as `covered` tells.
        measure: Does the work on an engine, for several of its adapters (None: the
            model itself); one finding each.
        requests: What is asked of one model, where that is known before.
    """

    name: str
    title: str
    version: str
    covers: Sequence[tuple[int, int | None]]
    measure: Callable[[Any, Adapters], list[Measured]]
    requests: Sequence[Any] = ()


@dataclass(frozen=True)
class _Given:
    """What a plan is made of; `rows` are all of the task's."""

    engine: Any
    name: str
    entry: TaskEntry
    module: Any
    rows: list[dict[str, Any]]
    material: Material


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
    from laura.evals import user_tasks

    if extras and name in extras:
        name = extras[name].task
    if is_lm_eval(name) or user_tasks.is_user_task(name):
        return
    if tasks.find(name).runs_code:
        from laura.evals.sandbox import require_sandbox

        require_sandbox()


def plan_task(engine: MeasuringEngine, name: str, material: Material) -> Plan:
    """Make a task ready.

    Args:
        engine: For its tokenizer and the length of its context.
        name: Of the table of tasks, `lm_eval:NAME`, the path of a user's file, or an extra.
        material: Rows, documents and settings.

    Raises:
        UsageError: no such task.
        DataError: a row or document cannot be measured.
    """
    make = _extra if name in material.section.extras else _plan
    plan = make(engine, name, material)
    return replace(plan, version=plan.version + _arithmetic(engine))


def _extra(engine: MeasuringEngine, name: str, material: Material) -> Plan:
    """The extra's task with the extra's samples, under the extra's name."""
    extra = material.section.extras[name]
    changes = {**extra.code_settings(), **({"limit": extra.limit} if extra.limit else {})}
    section = material.section.model_copy(update=changes)
    plan = _plan(engine, extra.task, replace(material, section=section, extra=extra))
    title, version = f"{name} ({plan.title})", f"{extra.task} {plan.version}"
    return replace(plan, name=name, title=title, version=version)


def _arithmetic(engine: MeasuringEngine) -> str:
    """What in an engine changes numbers: results of other arithmetic are not taken over."""
    low = "; bf16" if str(getattr(engine, "precision", "")) == "torch.bfloat16" else ""
    other = getattr(engine, "version", "")
    return f"{low}; vLLM {other}" if other else low


def _plan(engine: MeasuringEngine, name: str, material: Material) -> Plan:
    from laura.evals import user_tasks

    if is_lm_eval(name):
        return _lm_eval(name, material)
    if user_tasks.is_user_task(name):
        own = user_tasks.load(name, material.data_dir)
        rows = own.rows(material.data_dir)
        given = _Given(engine, own.name, own.entry, own.module, rows, material)
        return _KINDS[own.entry.kind](given)
    entry, module = tasks.find(name), tasks.load(name)
    rows = material.rows(name, entry.split) if entry.split else []
    return _KINDS[entry.kind](_Given(engine, name, entry, module, rows, material))


def covered(items: Sequence[Item]) -> list[tuple[int, int | None]]:
    """Index of every item, with its tokens where it is a document with a loss."""
    return [(item["index"], item.get("tokens") if "nats" in item else None) for item in items]


def _choice(given: _Given) -> Plan:
    engine, entry, module, rows = given.engine, given.entry, given.module, given.rows
    section = given.material.section
    picked = chosen(len(rows), section.limit, section.subset)
    questions = [module.question(rows[index], index) for index in picked]
    requests = [request for question in questions for request in question.requests]
    directions = _directions(entry, module.METRICS)

    def measure(asked: MeasuringEngine, adapters: Adapters) -> list[Measured]:
        answers = iter(asked.score(_named(requests, adapters)))
        found = []
        for _ in adapters:
            items, samples = [], []
            for question in questions:
                own = [next(answers) for _ in question.requests]
                item = choice_item(question, own, module.METRICS, entry.metric)
                texts = [request.context + request.continuation for request in question.requests]
                # One more token than the context may be scored: the last is only predicted.
                items.append(_mark_cut(item, engine, texts, engine.encoder.context_tokens + 1))
                samples.append(choice_sample(question, items[-1]))
            found.append(Measured(items, samples, directions))
        return found

    covers = [(question.index, None) for question in questions]
    return Plan(given.name, entry.title, module.VERSION, covers, measure, requests)


def _generation(given: _Given) -> Plan:
    engine, entry, module, rows = given.engine, given.entry, given.module, given.rows
    section = given.material.section

    def other_rows(split: str) -> list[dict[str, Any]]:
        if not entry.module.startswith("laura."):
            raise DataError(f"{given.name} is a file of rows and has no split {split!r}")
        return given.material.rows(given.name, split)

    extra = given.material.extra
    ask = Ask(section, other_rows, functools.partial(chat_prompts, engine.tokenizer), extra)
    picked = chosen(len(rows), section.limit, section.subset)
    version, found = module.prepare([rows[index] for index in picked], ask)
    # A task numbers the rows it is given; what is kept is the number in the data.
    questions = [
        replace(question, index=question.index - place + index)
        for place, (question, index) in enumerate(zip(found, picked, strict=True))
    ]
    requests = [request for question in questions for request in question.requests]
    metrics = getattr(module, "metrics", None)
    names = metrics(section) if metrics else module.METRICS
    if extra is not None:
        names = (*names, *getattr(module, "SAMPLED_METRICS", ()), *pass_names(extra.k))
    directions = _directions(entry, names)

    def measure(asked: MeasuringEngine, adapters: Adapters) -> list[Measured]:
        answers = iter(asked.generate(_named(requests, adapters)))
        measured = []
        for _ in adapters:
            answered = [[next(answers) for _ in question.requests] for question in questions]
            items, samples = [], []
            # Programs take as long as the model does, so those who run them show it.
            shown = (asked.progress,) if entry.runs_code else ()
            graded = module.grades(questions, answered, *shown)
            for question, (item, own) in zip(questions, graded, strict=True):
                first = question.requests[0]
                room = engine.encoder.context_tokens - first.max_new_tokens
                items.append(_mark_cut(item, engine, [first.prompt], room))
                samples += own
            measured.append(Measured(items, samples, directions))
        return measured

    covers = [(question.index, None) for question in questions]
    return Plan(given.name, entry.title, version, covers, measure, requests)


def _loss(given: _Given) -> Plan:
    entry, module = given.entry, given.module
    documents = _documents(given.name, given.material)
    directions = _directions(entry, module.METRICS)

    def measure(asked: MeasuringEngine, adapters: Adapters) -> list[Measured]:
        found = [asked.document_losses(documents, adapter) for adapter in adapters]
        return [Measured(module.items(documents, nats), [], directions) for nats in found]

    return Plan(given.name, entry.title, module.VERSION, _supervised(documents), measure)


def _divergence(given: _Given) -> Plan:
    engine, entry, module = given.engine, given.entry, given.module
    reference, drift = given.material.reference, given.material.drift
    section = given.material.section
    documents = _documents(given.name, given.material)
    covers = _supervised(documents)
    directions = _directions(entry, module.METRICS)

    def measure(_: MeasuringEngine, adapters: Adapters) -> list[Measured]:
        if reference is None:
            # The base diverges from itself by nothing, by definition.
            nats = [[0.0] * (tokens or 0) for _, tokens in covers]
            return [Measured(module.items(documents, nats), [], directions) for _ in adapters]
        if not hasattr(engine, "document_divergences"):
            raise UsageError(f"{given.name} compares whole distributions, which this engine cannot")
        # The task of the other direction reads the same: what one pass finds serves both.
        names = [given.name, module.other_way(given.name)]
        wanted = {module.direction(n): n for n in names if n in {given.name, *section.forgetting}}
        measured = []
        for adapter in adapters:
            if (given.name, adapter) not in drift:
                ways = tuple(wanted)
                found = engine.document_divergences(documents, reference, adapter, ways)
                drift.update({(wanted[way], adapter): nats for way, nats in found.items()})
            nats = drift.pop((given.name, adapter))
            measured.append(Measured(module.items(documents, nats), [], directions))
        return measured

    return Plan(given.name, entry.title, module.VERSION, covers, measure)


def _lm_eval(name: str, material: Material) -> Plan:
    from laura.evals import lm_eval_tasks

    include = material.section.lm_eval_include
    folder = Path(include) if include else None
    prepare = functools.partial(lm_eval_tasks.prepare, name, material.section.limit, folder)
    first = prepare()
    unused = [first]

    def measure(asked: MeasuringEngine, adapters: Adapters) -> list[Measured]:
        found = []
        for adapter in adapters:
            # lm-eval keeps answers in its task, so each model needs one of its own.
            ready = unused.pop() if unused else prepare()
            one = lm_eval_tasks.measure(ready, asked, adapter)
            for metric, why in one.left_out.items() if adapter == adapters[0] else ():
                asked.progress.say(f"{name}: {metric} is left out: {why}")
            found.append(Measured(one.items, one.samples, one.directions))
        return found

    covers = [(index, None) for index in first.indices]
    return Plan(result_name(name), first.title, first.version, covers, measure)


_KINDS: dict[str, Callable[[_Given], Plan]] = {
    "choice": _choice,
    "generation": _generation,
    "loss": _loss,
    "divergence": _divergence,
}


def _directions(entry: TaskEntry, metrics: Sequence[str]) -> dict[str, bool]:
    """Every metric with its direction, the leading one first."""
    return dict.fromkeys((entry.metric, *metrics), entry.higher_is_better)


def _named(requests: Sequence[Any], adapters: Adapters) -> list[Any]:
    """The requests once for every adapter."""
    return [replace(request, adapter=adapter) for adapter in adapters for request in requests]


def _documents(name: str, material: Material) -> Sequence[TokenDocument]:
    documents = material.documents.get(name, ())
    if not documents:
        part = "source_text" if "source" in name else "test"
        part = "validation" if name == "validation_loss" else part
        raise DataError(f"{name} needs documents and there are none; give data.{part}")
    indices = {document.index for document in documents}
    assert len(indices) == len(documents), f"documents of {name} share an index"
    return documents


def _supervised(documents: Sequence[TokenDocument]) -> list[tuple[int, int | None]]:
    """Index and supervised tokens of every document; its first token is never one."""
    return [(document.index, sum(document.supervised[1:])) for document in documents]


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
