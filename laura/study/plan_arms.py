"""What an arm trains, keeps and saves, counted from the base's shapes. No torch."""

from __future__ import annotations

from laura.models.targets import GROUPS, is_named
from laura.recipe.sections import Arm, LoraArm, Recipe
from laura.study.plan_shapes import Shapes

FLOAT32 = 4


def adapted_maps(shapes: Shapes, arm: LoraArm) -> list[tuple[str, tuple[int, int]]]:
    """Full name and shape of each map that an arm adapts."""
    wanted = GROUPS.get(arm.targets, ()) if isinstance(arm.targets, str) else arm.targets
    return [
        (name, shape)
        for name, shape in shapes.named_maps()
        if any(is_named(name, target) for target in wanted)
        and (arm.layers is None or layer_of(name) in arm.layers)
    ]


def layer_of(name: str) -> int:
    """Number of the layer that a map of this full name lies in."""
    return int(name.split(".", 3)[2])


def learning_maps(shapes: Shapes, arm: Arm) -> list[set[str]]:
    """Of each layer, the names within it of the maps that are adapted or trained."""
    found: list[set[str]] = [set() for _ in range(shapes.layers)]
    if isinstance(arm, LoraArm):
        for name, _ in adapted_maps(shapes, arm):
            found[layer_of(name)].add(name.split(".", 3)[3])
        return found
    for number in arm.layers if arm.layers is not None else range(shapes.layers):
        found[number] = set(shapes.maps)
    return found


def first_trained(shapes: Shapes, arm: Arm) -> int:
    """The lowest layer that a gradient reaches; those below are passed forwards only."""
    if trains_all(arm):
        return 0
    learning = learning_maps(shapes, arm)
    return next((n for n, maps in enumerate(learning) if maps), shapes.layers)


def trains_all(arm: Arm) -> bool:
    """Whether embeddings and output map are trained too."""
    return not isinstance(arm, LoraArm) and arm.layers is None


def trainable_parameters(shapes: Shapes, arm: Arm) -> int:
    """Numbers an arm trains.

    LoRA: r (in + out) of each adapted map, DoRA one more for each of its outputs. Full:
    everything, or the named layers whole, norms and biases included.
    """
    if not isinstance(arm, LoraArm):
        whole = arm.layers is None
        return shapes.parameters if whole else len(arm.layers or ()) * shapes.layer_parameters
    maps = [shape for _, shape in adapted_maps(shapes, arm)]
    return sum(arm.rank * (o + i) + o * arm.dora for o, i in maps)


def start_numbers(shapes: Shapes, arm: Arm) -> int:
    """Numbers of PiSSA's frozen starts A0 and B0, r (in + out) of each adapted map; else 0."""
    if not isinstance(arm, LoraArm) or arm.init != "pissa":
        return 0
    return arm.rank * sum(o + i for _, (o, i) in adapted_maps(shapes, arm))


def adapter_numbers(shapes: Shapes, arm: LoraArm) -> int:
    """Numbers in the adapter's file; PiSSA's is a plain adapter of rank 2r."""
    return trainable_parameters(shapes, arm) + start_numbers(shapes, arm)


def checkpoint_bytes(shapes: Shapes, arm: Arm, number: int) -> int:
    """Bytes of one checkpoint: the adapter in float32, or the whole model as it is held.

    Args:
        shapes: The base's.
        arm: The arm.
        number: Bytes of a weight of the base.
    """
    if isinstance(arm, LoraArm):
        return adapter_numbers(shapes, arm) * FLOAT32
    return shapes.parameters * number


def lockstep_runs(recipe: Recipe, arm: Arm) -> int:
    """Most runs of an arm that are trained in lock-step, as `cohorts.cohorts` groups a grid."""
    rates = len(arm.learning_rates)
    alone = not isinstance(arm, LoraArm) or recipe.search.sampler != "grid"
    if alone or arm.external is not None or recipe.train.cohort == 1:
        return 1
    groups = -(-rates // recipe.train.cohort)
    return -(-rates // groups)


def fits_together(arm: Arm) -> bool:
    """Whether runs in lock-step may share their passes, as `train.cohort.fits_together`."""
    plain = isinstance(arm, LoraArm) and not arm.dora and arm.init != "pissa" and not arm.dropout
    return plain and not arm.attention_dropout and not arm.residual_dropout
