"""Arms that do not fit the matrices of their base, told before anything large is read."""

from __future__ import annotations

from collections.abc import Iterator

from laura.models.families import expert_of
from laura.models.targets import is_named
from laura.recipe.sections import AdapterArm, Arm, LoraArm, OftArm, Recipe
from laura.results.errors import Fault, RecipeError
from laura.study.plan.memory import adapted_maps
from laura.study.plan.shapes import Shapes


def refuse_arms(recipe: Recipe, shapes: Shapes) -> None:
    """Check that the arms fit the base's matrices.

    Raises:
        RecipeError: a layer that the base lacks, a target that names no map, or a rank, a
            protected subspace or blocks that do not fit one; all are listed.
    """
    faults: list[Fault] = []
    for name, arm in recipe.arms.items():
        faults += [Fault(f"arms.{name}.{key}", problem) for key, problem in _misfits(arm, shapes)]
    if recipe.base.quantization is not None and shapes.experts:
        faults.append(Fault("base.quantization", "holds linear maps, and experts lie stacked"))
    if faults:
        raise RecipeError(faults, f"{recipe.name} on {recipe.base.model}")


def _misfits(arm: Arm, shapes: Shapes) -> Iterator[tuple[str, str]]:
    strange = [number for number in arm.layers or () if number >= shapes.layers]
    if strange:
        problem = f"names {', '.join(map(str, strange))}, but the base's {shapes.layers} decoder"
        yield "layers", f"{problem} layers are numbered 0 to {shapes.layers - 1}"
        return
    if not isinstance(arm, AdapterArm):
        return
    targets = () if isinstance(arm.targets, str) else arm.targets
    full_names = [full for full, _ in shapes.named_maps()]
    absent = [t for t in targets if not any(is_named(full, t) for full in full_names)]
    adapted = adapted_maps(shapes, arm)
    # What an adapter made elsewhere changes stands in its own file.
    if absent and arm.external is None:
        kinds = ", ".join(dict.fromkeys(part.rsplit(".", 1)[1] for part in shapes.maps))
        yield "targets", f"names {', '.join(absent)}, which the base lacks; it has {kinds}"
    elif not adapted and arm.external is None:
        yield "layers", f"is {arm.layers}, where none of the targets lies"
    plain = isinstance(arm, LoraArm) and not (
        arm.dropout or arm.dora or arm.protect or arm.init != "default"
    )
    if not plain and any(map(expert_of, (full for full, _ in adapted))):
        yield "targets", "has experts, which take plain LoRA without dropout; give attention"
    if isinstance(arm, OftArm):
        odd = {full.rsplit(".", 1)[1]: i for full, (_, i) in adapted if i % arm.block_size}
        if odd:
            maps = ", ".join(f"{kind} ({i})" for kind, i in odd.items())
            yield "block_size", f"is {arm.block_size}, which does not divide the inputs of {maps}"
        return
    assert isinstance(arm, LoraArm)
    small = {full.rsplit(".", 1)[1]: shape for full, shape in adapted if arm.rank > min(shape)}
    if small:
        maps = ", ".join(f"{kind} ({o} x {i})" for kind, (o, i) in small.items())
        least = min(min(shape) for shape in small.values())
        yield "rank", f"is {arm.rank}, more than {maps} can have; at most {least}"
    whole = {full.rsplit(".", 1)[1]: s for full, s in adapted if arm.protect >= min(s)}
    if arm.protect and whole:
        maps = ", ".join(f"{kind} ({o} x {i})" for kind, (o, i) in whole.items())
        least = min(min(shape) for shape in whole.values())
        yield "protect", f"is {arm.protect}, which leaves nothing of {maps}; at most {least - 1}"
