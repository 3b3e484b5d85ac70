"""The plan of an open study in one line: what is known by then costs nothing to tell."""

from __future__ import annotations

from laura.models.device import pick_device, resolve_precision
from laura.results.errors import ModelError
from laura.study.plan_data import Survey
from laura.study.plan_memory import pass_of, training_parts
from laura.study.plan_shapes import read_shapes
from laura.study.plan_text import plan_line
from laura.study.plan_work import totals
from laura.study.session import Session


def announcement(session: Session) -> str:
    """Runs, tokens, operations, memory of each arm and disk, in words."""
    recipe, base = session.recipe, session.bench.base
    device = pick_device(session.bench.device_name)
    arithmetic = resolve_precision(recipe.train.precision, device).itemsize
    number = base.model.dtype.itemsize
    try:
        shapes = read_shapes(base.folder / "config.json")
    except ModelError as error:
        return f"No plan: {error}"
    known = Survey(session.epoch_tokens, len(session.data.train), recipe.train.row_tokens, 1.0, "")
    peaks = {}
    for name, arm in recipe.arms.items():
        if arm.external is None:
            one = pass_of(recipe, arm, number, arithmetic, device=str(device))
            on_processor = device.type == "cpu"
            peaks[name] = training_parts(
                shapes, arm, recipe.train.optimiser, one, on_processor=on_processor
            ).peak
    return plan_line(totals(recipe, shapes, known), peaks)
