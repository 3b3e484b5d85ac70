"""Memory of training and of measuring, part by part, counted from shapes alone. No torch.

Every number follows from what the code keeps; the docstrings say what and where. A part is
counted when it is largest, and the peak is the largest sum of parts that are there together:

    loss      activations of the last pass, logits, gradients of the passes before it
    backward  the same activations, and what the last layer's gradient needs on the way
    end       all gradients, and those of the embedding once more
    update    all gradients and the optimiser's own copies

Letters: T tokens of a pass, C width, F feed-forward width, H and G heads of D numbers, V
vocabulary, r rank; w bytes of a weight, e bytes of a number in the pass's arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from laura.recipe.sections import Arm, FullArm, LoraArm, Recipe
from laura.study.plan_activations import Pass, activation_bytes, keeping_layers, lasting_casts
from laura.study.plan_arms import (
    FLOAT32,
    fits_together,
    lockstep_runs,
    start_numbers,
    trainable_parameters,
    trains_all,
)
from laura.study.plan_shapes import Shapes

# The same numbers as in models/losses.py, which needs torch; a test compares them.
CHUNK_POSITIONS, GROUP_POSITIONS, BLOCK_WORDS = 128, 512, 8192
# glibc's largest threshold above which a block is mapped by itself, 32 MiB on 64-bit systems.
LARGEST_HEAP_BLOCK = 32 * 2**20
# Numbers that an optimiser keeps of each trained one, and those of its copies in one update.
# AdamW: two moments, updated in place (fused). Lion: one, and all directions at once.
OPTIMISER_STATE = {"adamw": (2, 0), "lion": (1, 1)}


@dataclass(frozen=True)
class Parts:
    """Bytes of one training process (or of one device's share), by part.

    Attributes:
        runtime: The process without a model: Python, torch, its libraries.
        weights: The base, with the copy of frozen maps that mixed precision keeps.
        adapter: A and B of every run in lock-step, DoRA's lengths, PiSSA's frozen starts.
        anchor: Copy of the trained weights as they began, where decay pulls toward them.
        gradients: Of everything that is trained; of one run at a time where runs take turns.
        optimiser: Moments of every run in lock-step, and copies made during an update.
        activations: Kept by one pass for its gradient.
        logits: Logits, and the output map's gradient while the loss is taken.
        working: What a layer's gradient needs on the way.
        allocator: On a processor, freed memory that stays with the process.
        peak: The most that is there at one time; less than the sum of the parts.
    """

    runtime: int
    weights: int
    adapter: int
    anchor: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    working: int
    allocator: int
    peak: int


def pass_of(
    recipe: Recipe,
    arm: Arm,
    weight_bytes: int,
    arithmetic_bytes: int,
    *,
    device: str,
    learnt: float = 1.0,
    document: float = 0.0,
) -> Pass:
    """The largest pass that training an arm makes: full rows, as many as go together.

    Args:
        recipe: The recipe.
        arm: One of its arms.
        weight_bytes: Of `base.dtype`.
        arithmetic_bytes: Of `train.precision`, resolved.
        device: Its name.
        learnt: Share of the tokens that have a label.
        document: Tokens of a document, weighed by tokens; 0 for full rows.
    """
    train, kind = recipe.train, device.split(":")[0]
    rows = min(train.rows_per_pass, max(1, train.batch_tokens // train.row_tokens))
    tokens = rows * train.row_tokens
    return Pass(
        tokens,
        round(learnt * tokens),
        weight_bytes,
        arithmetic_bytes,
        more=train.batch_tokens > tokens,
        document=document or train.row_tokens,
        fused=kind == "cuda",
        runs=lockstep_runs(recipe, arm),
        shared=kind != "cpu" and fits_together(arm),
    )


def logits_bytes(shapes: Shapes, arm: Arm, one: Pass) -> int:
    """The most that `losses.loss_sum` holds at a time, besides its result.

    A chunk of logits in the pass's arithmetic and, where that is not float32, once more in
    float32; the output map cast to that arithmetic; where the output map is trained, its
    gradient V C w, the slopes of a group and one block of their product.
    """
    e, w = one.arithmetic_bytes, one.weight_bytes
    v, c = shapes.vocabulary, shapes.width
    chunk = min(CHUNK_POSITIONS, one.labelled) * v
    total = chunk * FLOAT32 + (chunk * e if e != FLOAT32 else 0)
    if e != w:
        total += v * c * e
    if trains_all(arm):
        total += v * c * w + min(GROUP_POSITIONS, one.labelled) * v * e
        total += min(BLOCK_WORDS, v) * c * e
    return total


def working_bytes(shapes: Shapes, one: Pass) -> int:
    """What the gradient of the gated unit holds on the way, the most of any part of a layer.

    The product made again, the slope by it, silu(gate), the slope by gate and up, and what
    they are made of: six tensors of T x F in the pass's arithmetic; and the slope of the
    residual stream and of the maps' input, T x C each.
    """
    wide = 6 * shapes.feed_forward * one.arithmetic_bytes
    narrow = shapes.width * (one.weight_bytes + one.arithmetic_bytes)
    return one.tokens * one.times * (wide + narrow)


def allocator_bytes(shapes: Shapes, arm: Arm, one: Pass) -> int:
    """Freed memory that glibc's heap keeps resident at the end of a forward pass: 2 T C w a layer.

    An observation, not a derivation: what LoRA trainings of SmolLM2-135M took beyond all other
    parts was 1.4 to 2.9 T C w a layer where a step is one pass, in fp32 and in bf16, from 256
    to 2,048 tokens (benchmarks/README.md); full finetuning, whose gradients lie in the same
    heap, took up to 12. That it is the heap's is seen from a training that took 0.59 GB less in
    fp32 and 0.28 in bf16 where glibc was told to return every large block at once
    (MALLOC_MMAP_THRESHOLD_=65536). Which blocks stay is a hypothesis: two of the residual
    stream's size, which a layer frees among others that it keeps. Blocks above 32 MiB, the
    largest that glibc takes from its heap, count nothing.
    """
    size = one.tokens * one.times * shapes.width * one.weight_bytes
    return 2 * keeping_layers(shapes, arm) * size * (size <= LARGEST_HEAP_BLOCK)


def training_parts(
    shapes: Shapes,
    arm: Arm,
    optimiser: str,
    one: Pass,
    *,
    runtime: int = 0,
    devices: int = 1,
    on_processor: bool = False,
) -> Parts:
    """Memory of training one arm, on one device of several.

    Args:
        shapes: The base's.
        arm: What is trained.
        optimiser: `train.optimiser`.
        one: The largest pass of one device.
        runtime: Bytes of the process without a model.
        on_processor: Whether memory is the processor's, with glibc's heap.
        devices: Weights, gradients and optimiser are spread evenly over so many (FSDP's
            full sharding, the paper's rule of 1/N); a pass is not. The maps of the layer at
            work are whole on every device.

    Source:
        Biderman et al. 2024, arXiv:2405.09673, appendix H, for the first four parts.
    """
    e, w = one.arithmetic_bytes, one.weight_bytes
    trained, number = trainable_parameters(shapes, arm), _number_bytes(arm, w)
    # `LoraLinear` casts its frozen map once and keeps the cast.
    weights = shapes.parameters * w + lasting_casts(shapes, arm, one)
    lora = isinstance(arm, LoraArm)
    adapter = FLOAT32 * (trained * one.runs + start_numbers(shapes, arm)) if lora else 0
    anchor = trained * w if _has_anchor(arm) else 0
    state, copies = OPTIMISER_STATE[optimiser]
    moments = trained * number * state * one.runs
    gathered = _gathered(shapes, e) if devices > 1 else 0
    shared = -(-(weights + adapter + anchor + moments) // devices)
    gradients = -(-trained * number * one.times // devices)
    activations = activation_bytes(shapes, arm, one)
    logits, working = logits_bytes(shapes, arm, one), working_bytes(shapes, one)
    holes = allocator_bytes(shapes, arm, one) if on_processor else 0
    # The output map's gradient is made with the loss and waits for the embedding's.
    head = shapes.head_elements * w if trains_all(arm) else 0
    before = gradients if one.more else 0
    peak = shared + gathered + holes + max(
        before + activations + logits,
        before + head + activations + working,
        gradients + (2 if shapes.tied else 1) * head + working,
        gradients + -(-trained * number * copies // devices),
    )  # fmt: skip
    return Parts(
        runtime=runtime,
        weights=-(-weights // devices) + gathered,
        adapter=-(-adapter // devices),
        anchor=-(-anchor // devices),
        gradients=gradients,
        optimiser=-(-(moments + trained * number * copies) // devices),
        activations=activations,
        logits=logits,
        working=working,
        allocator=holes,
        peak=runtime + peak,
    )


def _number_bytes(arm: Arm, weight_bytes: int) -> int:
    """Bytes of a trained number; adapters are always float32."""
    return FLOAT32 if isinstance(arm, LoraArm) else weight_bytes


def _has_anchor(arm: Arm) -> bool:
    """Whether decay keeps a copy of what the trained weights were (`training/optimisers.py`)."""
    return isinstance(arm, FullArm) and arm.weight_decay_toward == "base" and arm.weight_decay > 0


def _gathered(shapes: Shapes, e: int) -> int:
    """Maps of one layer and the output map, whole on a device while they are at work."""
    return e * (shapes.map_elements // shapes.layers + shapes.head_elements)
