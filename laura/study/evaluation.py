"""`laura evaluate`: tasks on a base, a full checkpoint, or a base and many adapters at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from laura.data.sources import load_examples
from laura.engine.engine import Engine
from laura.engine.forecast import forecast, measure_pace
from laura.engine.requests import MeasuringEngine
from laura.evals.runner import Material, Subject, check_name, evaluate_all, file_rows
from laura.evals.scoring import TaskPlan
from laura.evals.tasks import TASKS
from laura.models.adapter_files import CONFIG, WEIGHTS, trained_whole
from laura.recipe.sections import MeasureSection, Source
from laura.results.errors import UsageError
from laura.results.progress import SILENT, Progress, duration_text
from laura.results.store import content_hash, file_hash, read_json
from laura.results.task_result import RATIO_FIELDS, TaskResult, change
from laura.study.material import ExampleEncoder, documents_of
from laura.study.measuring import ENGINES
from laura.study.workbench import merged

BASE = "base"
NAMES_BASE = ("base_model_name_or_path", "revision")
MARK = 8  # characters of a fingerprint in a model's name


def evaluate_model(
    model: str,
    *,
    adapters: Mapping[str, Path] | None = None,
    with_base: bool = True,
    tasks: list[str],
    section: MeasureSection,
    data_dir: Path | None = None,
    out: Path,
    device: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a model, or a base and adapters on it, on benchmarks.

    Without adapters one TASK.json each stands under `out`; with adapters under
    `out/base` and `out/NAME`. All adapters are measured in one pass over a task; one that holds
    more than LoRA beside the layers' maps is merged and measured by itself.
    `source_loss` reads C4 validation text. `target_loss` and `kl` need a recipe,
    which says what the target is: use `laura compare`.

    Args:
        model: Registry name, Hub id, folder or GGUF file.
        adapters: Name to folder of a PEFT adapter on it.
        with_base: Whether the base is measured too, where there are adapters.
        tasks: Task names, or extras of the section.
        section: Limits, shots, precision and engine.
        data_dir: Folder of data sets that wins over the Hub.
        out: Where the results go.
        device: Device name; None for the best there is.
        progress: Where to report.

    Returns:
        `{TASK: {"n", "metrics": {...}, "file"}}`; with adapters `{MODEL: {TASK: {...}}}`,
        where an adapter's metric has its "change" against the base, paired by item, with
        a standard error and, where it is a mean over items, a bootstrap interval.
    """
    for task in tasks:
        check_task(task, section)
    adapters = dict(adapters or {})
    subjects = [] if adapters and not with_base else [_subject(None, adapters, out)]
    subjects += [_subject(name, adapters, out) for name in adapters]
    whole = [name for name, folder in adapters.items() if trained_whole(folder)]
    beside = {name: folder for name, folder in adapters.items() if name not in whole}

    def measured(
        weights: str, on_it: Mapping[str, Path], asked: Sequence[Subject], title: str
    ) -> list[dict[str, TaskResult]]:
        opened = ENGINES[section.engine].models(weights, on_it, section, device, progress)
        with opened as (engine, mark):
            name = f"{title}@{mark[:MARK]}"
            named = [
                replace(s, name=f"{name} + {marked(s.adapter, on_it)}" if s.adapter else name)
                for s in asked
            ]
            documents = _documents(tasks, section, engine.tokenizer, data_dir)
            material = Material(section, file_rows(data_dir), documents, data_dir=data_dir)

            def tell(plans: list[tuple[TaskPlan, int]]) -> None:
                _tell(engine, plans, section, progress)

            return evaluate_all(engine, tasks, material, named, progress=progress, before=tell)

    together = [subject for subject in subjects if subject.adapter not in whole]
    results = measured(model, beside, together, model) if together else []
    found = dict(zip([subject.adapter for subject in together], results, strict=True))
    for name in whole:
        progress.say(f"{name} cannot stand beside the base; it is measured as a model of its own")
        lone = replace(_subject(name, adapters, out), adapter=None)
        with merged(model, adapters[name]) as (folder, _):
            (found[name],) = measured(str(folder), {}, [lone], f"{model} + {name}")
    if not adapters:
        return {task: _answer(one, subjects[0]) for task, one in found[None].items()}
    base = found.get(None, {})
    return {
        subject.adapter or BASE: {
            task: _answer(one, subject, base.get(task) if subject.adapter else None)
            for task, one in found[subject.adapter].items()
        }
        for subject in subjects
    }


def check_task(task: str, section: MeasureSection) -> None:
    """Refuse a task that a model alone cannot be measured on.

    Raises:
        UsageError: there is none of this name, or it needs a recipe.
    """
    check_name(task, section.extras)
    entry = TASKS.get(task)
    if entry and (entry.kind == "divergence" or task in ("target_loss", "validation_loss")):
        usable = [n for n, e in TASKS.items() if e.kind in ("choice", "generation")]
        raise UsageError(
            f"{task} needs a recipe, which says what the target domain is; `laura compare` "
            f"measures it. Here: {', '.join(usable)}, source_loss"
        )


def _subject(adapter: str | None, adapters: Mapping[str, Path], out: Path) -> Subject:
    folder = out / (adapter or BASE) if adapters else out
    return Subject(adapter or BASE, lambda task: folder / f"{task}.json", adapter)


def marked(adapter: str, adapters: Mapping[str, Path]) -> str:
    """An adapter's name with a mark of its files: results of other weights are not its own."""
    config = read_json(adapters[adapter] / CONFIG)
    for name in NAMES_BASE:  # where it lies; what it is, its own mark says
        config.pop(name, None)
    weights = file_hash(adapters[adapter] / WEIGHTS)
    return f"{adapter}@{content_hash([config, weights])[:MARK]}"


def _documents(
    tasks: Sequence[str], section: MeasureSection, tokenizer: Any, data_dir: Path | None
) -> dict[str, Any]:
    if "source_loss" not in tasks:
        return {}
    texts = Source(source="c4", split="validation", limit=section.loss_documents)
    encoded = ExampleEncoder(tokenizer, "plain", "pretrain")(load_examples(texts, data_dir))
    return {"source_loss": documents_of(encoded, tokenizer, section.loss_tokens)}


def _tell(
    engine: MeasuringEngine,
    plans: list[tuple[TaskPlan, int]],
    section: MeasureSection,
    progress: Progress,
) -> None:
    """Say what will be measured and about how long it takes."""
    pace = None
    if isinstance(engine, Engine) and plans:
        engine.progress = SILENT
        try:
            pace = measure_pace(engine)
        finally:
            engine.progress = progress
    seconds, bounded = 0.0, False
    for plan, models in plans:
        items = len(plan.covers)
        parts = [f"{plan.title}: {items:,} items"]
        if models > 1:
            parts.append(f"{models} models")
        if section.subset == "random" and items == section.limit:
            parts.append(f"a share's standard error is up to {50 / items**0.5:.1f} points")
        if pace is not None and plan.requests:
            found = forecast(engine, plan.requests, models, pace)  # type: ignore[arg-type]
            seconds, bounded = seconds + found.seconds, bounded or found.written > 0
            parts.append(f"about {found.read:,} tokens to read")
            if found.written:
                parts.append(f"at most {found.written:,} to write")
        progress.say(", ".join(parts))
    if pace is not None and seconds:
        word = "at most about" if bounded else "about"
        told = duration_text(math.ceil(seconds))
        progress.say(f"This takes {word} {told} (minutes:seconds) here")


def _answer(found: TaskResult, subject: Subject, base: TaskResult | None = None) -> dict[str, Any]:
    metrics = found.to_json()["metrics"]
    for name, metric in metrics.items() if base is not None else ():
        assert base is not None
        metric["change"] = _change(base, found, name)
    return {"file": str(subject.out(found.task)), "n": found.n, "metrics": metrics}


def _change(base: TaskResult, found: TaskResult, metric: str) -> dict[str, Any]:
    from laura.results.statistics import paired_bootstrap

    estimate = change(base, found, metric)
    told: dict[str, Any] = {"value": estimate.value, "stderr": estimate.stderr}
    if metric not in RATIO_FIELDS:
        interval = paired_bootstrap(base.values(metric), found.values(metric), seed=0)
        told["interval"] = [interval.low, interval.high]
    return told
