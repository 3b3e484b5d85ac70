"""`laura evaluate`: tasks on a base, a full checkpoint, or a base with an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laura.data.sources import load_examples
from laura.errors import UsageError
from laura.evals.runner import Material, evaluate, file_rows
from laura.evals.tasks import TASKS, find
from laura.models.adapters import load_adapter
from laura.models.device import resolve_precision
from laura.models.engine import Engine
from laura.models.load import load_base
from laura.progress import SILENT, Progress
from laura.recipe import MeasureSection, Source
from laura.study.material import Encoder, documents_of


def evaluate_model(
    model: str,
    *,
    adapter: Path | None = None,
    tasks: list[str],
    section: MeasureSection,
    data_dir: Path | None = None,
    out: Path,
    device: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure a model on benchmarks; one TASK.json each under `out`.

    `source_loss` reads C4 validation text. `target_loss` and `kl` need a
    recipe, which says what the target is: use `laura compare`.

    Args:
        model: Registry name, Hub id, folder or GGUF file.
        adapter: Folder of a PEFT adapter to put on it.
        tasks: Task names.
        section: Limits, shots and precision.
        data_dir: Folder of data sets that wins over the Hub.
        out: Where the results go.
        device: Device name; None for the best there is.
        progress: Where to report.

    Returns:
        `{TASK: {"n", "metrics": {...}, "file"}}`.
    """
    for task in tasks:
        if find(task).kind == "divergence" or task in ("target_loss", "validation_loss"):
            usable = [n for n, e in TASKS.items() if e.kind in ("choice", "generation")]
            raise UsageError(
                f"{task} needs a recipe, which says what the target domain is; `laura compare` "
                f"measures it. Here: {', '.join(usable)}, source_loss"
            )
    base = load_base(model, device=device, progress=progress)
    name = base.name
    if adapter is not None:
        load_adapter(base.model, adapter)
        name = f"{base.name} + {adapter.name}"
    documents = {}
    if "source_loss" in tasks:
        texts = Source(source="c4", split="validation", limit=section.loss_documents)
        examples = load_examples(texts, data_dir)
        encoded = Encoder(base.tokenizer, "plain", "pretrain")(examples)
        documents["source_loss"] = documents_of(encoded, base.tokenizer, section.loss_tokens)
    precision = resolve_precision(section.precision, base.model.device)
    engine = Engine(base.model, base.tokenizer, precision, progress=progress)
    material = Material(section, file_rows(data_dir), documents)
    results = evaluate(
        engine,
        tasks,
        material,
        model_name=name,
        out=lambda task: out / f"{task}.json",
        progress=progress,
    )
    return {
        task: {
            "file": str(out / f"{task}.json"),
            "n": found.n,
            "metrics": found.to_json()["metrics"],
        }
        for task, found in results.items()
    }
