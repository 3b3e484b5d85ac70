"""Measures a study's models: its base, or a run's checkpoint beside the base."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.engine.engine import Engine
from laura.evals.runner import Material, evaluate
from laura.models.device import resolve_precision
from laura.results.store import RunStore

if TYPE_CHECKING:
    from laura.study.session import Session


def measure(session: Session, names: list[str], run: RunStore | None, step: int = 0) -> None:
    """Measure tasks or extras on a model of an open study; what stands is not measured again.

    Args:
        session: The study.
        names: Tasks as the recipe names them, or extras.
        run: The run; None for the base.
        step: The run's checkpoint.

    Raises:
        CheckpointError: the checkpoint does not match its checksums.
    """
    if run is None:
        base = session.bench.base.model
        _evaluate(session, names, base, None, "base", session.store.base_evaluation)
        return
    with session.bench.tuned(run.checkpoint(step)) as (model, reference):
        out = partial(run.evaluation, step)
        _evaluate(session, names, model, reference, run.folder.name, out)


def _evaluate(
    session: Session,
    names: list[str],
    model: Any,
    reference: Any,
    name: str,
    out: Callable[[str], Path],
) -> None:
    section, progress = session.recipe.measure, session.progress
    precision = resolve_precision(section.precision, model.device)
    engine = Engine(model, session.bench.base.tokenizer, precision, progress=progress)
    documents, data_dir = session.data.documents, session.data_dir
    material = Material(section, session.rows, documents, reference, data_dir)
    evaluate(engine, names, material, model_name=name, out=out, progress=progress)
