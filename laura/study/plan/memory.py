"""Memory of training and of measuring, part by part, counted from shapes alone. No torch.

Every number follows from what the code keeps. A part is counted when it is largest, and the
peak is the largest sum of parts that are there together:

    loss      activations of the last pass, logits, gradients of the passes before it
    backward  the same activations, and what the last layer's gradient needs on the way; where
              layers are passed once more (`train.recompute`), also all that one of them keeps
    end       all gradients, and those of the embedding once more
    update    all gradients and the optimiser's own copies

The parts:

- runtime: the process without a model: Python, torch, its libraries;
- weights: the base, with the casts that mixed precision keeps of frozen maps (of quantised ones
  it keeps none), and the trained weights as they began where decay pulls toward them, or a remedy
  reads the base; when
  measuring the tuned model, beside a full arm's the base too, and their copies in the pass's
  arithmetic;
- adapter: A and B of every run in lock-step, DoRA's lengths, PiSSA's and MiLoRA's frozen starts,
  the directions that OPLoRA keeps;
- gradients: of everything that is trained; of one run at a time where runs take turns;
- optimiser: moments of every run in lock-step, and copies made during an update;
- activations: kept by one pass for its gradient;
- cache: most keys and values of generation;
- logits: they and what is made of them, with the output map's gradient;
- working: what a layer needs on the way, the largest map where maps are dequantised, and freed
  memory that stays with the process;
- gathered: over several devices (`fully_shard`), what is there whole: all outside the layers from
  the forward pass until its gradient is sent off, the layer at work and the one that comes; where
  they are trained, the gradient of the layer at work and the one before on its way;
- loading: over several devices, the whole base that each reads before it is spread out.

Letters: T tokens of a pass, C width, F feed-forward width, H and G heads of D numbers, V
vocabulary, r rank; w bytes of a weight, e bytes of a number in the pass's arithmetic.

**What a token keeps for its gradient in a layer** (models/lean.py):

- the residual stream before each of the two norms, 2 C w, and their scales, 2 x 4;
- queries after the rotation, keys, values: (H + 2 G) D e;
- attention's output H D e and the logarithm of its denominator, 4 H;
- gate and up, 2 F e; their product is made again when it is wanted;
- what the maps that learn read, once for all that share it: what either norm gives, C e
  each, and with several documents in a pass their joined outputs, H D e.

With `train.recompute` a layer keeps its input alone, C w, and while its own gradient is taken
all of the above; the gated unit's product is gone before the unit's own slopes come.

A layer below everything that is trained keeps nothing, and the first above them only what
comes after the first map that learns. A frozen map that nothing adapts is cast anew in each
pass of mixed precision, and the cast kept: e for each of its numbers.

The variants of LoRA, of each adapted map (I in, O out):

- plain: A x, r e a token; scaled B, and A where it is cast, r e of each of their numbers; on a
  quantised map B is not scaled, and kept only where it is cast;
- dropout: its own dropped input, I e a token, and a mask in the same numbers (on CUDA of one
  byte) where its input has a gradient; the shared input is not kept;
- PiSSA, MiLoRA: twice the rank, and A always, since A' = [A; A0] is made in the pass;
- OPLoRA: A always, since it is projected in the pass;
- DoRA: the outputs before they are stretched, O e a token, and two vectors of float32. With
  dropout, or on a quantised map, the base's part and the update's are stretched each by itself:
  once more O e, and O.

OFT keeps of each map I + Q, its factors and R - I, b I numbers each, and the latter cast; what it
reads as LoRA does, but the gated unit's product too, whose blocks are not made again.

Dropout on what a block adds to the residual stream keeps a mask of C. Dropout on attention
has no kernel of its own on a processor: each document of n tokens keeps three matrices
H n^2 (the weights, the mask, the weights with the mask), and queries, keys and values of all
H heads, in float32. So does attention whose scores are capped (Gemma 2), on every device; its
capped logits are held twice more.

Of a mixture, a token's K experts keep K (2 C + 4 F) e instead of 2 F e: what each reads and
gives, gate, up, and what is made of both. All experts count as weights, and as what is trained;
K of them as operations, and as A x. Everything else is counted as in Llama's block: families
with more norms or joined maps keep a little more or less, which was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from laura.evals.tasks import TASKS
from laura.models.targets import GROUPS, is_named
from laura.recipe.sections import (
    AdapterArm,
    Arm,
    FullArm,
    LoraArm,
    MeasureSection,
    OftArm,
    Recipe,
)
from laura.study.plan.machine import Machine
from laura.study.plan.shapes import Shapes
from laura.study.runs import cohorts, grid_of

FLOAT32 = 4
NUMBER_BYTES = {"float32": 4, "bfloat16": 2}
# The same numbers as in models/losses.py, engine/scheduler.py and device.pass_tokens, which
# need torch; a test compares them.
CHUNK_POSITIONS, GROUP_POSITIONS, BLOCK_WORDS = 128, 512, 8192
MOST_ROWS, CPU_PASS_TOKENS, PASS_TOKENS = 256, 1024, 2048
# What vLLM takes for keys and values on a processor (engine/vllm_worker.py), and what its process
# holds of a GPU while it sleeps: a context and CUDA graphs. The latter was never measured.
VLLM_CPU_CACHE, VLLM_ASLEEP = 2 * 2**30, 2 * 2**30
# glibc's largest threshold above which a block is mapped by itself, 32 MiB on 64-bit systems.
LARGEST_HEAP_BLOCK = 32 * 2**20
# Of NF4: weights of one scale, and scales of one scale (models/nf4.py).
NF4_WEIGHTS, NF4_SCALES = 64, 256
# Numbers that an optimiser keeps of each trained one, and those of its copies in one update.
# AdamW: two moments, updated in place (fused). Lion: one, and all directions at once.
OPTIMISER_STATE = {"adamw": (2, 0), "lion": (1, 1)}
# As they are shown: what it comes to first, since a narrow terminal has the last ones below.
PARTS = (
    "peak", "runtime", "weights", "adapter", "gradients", "optimiser", "activations", "cache",
    "logits", "working", "gathered", "loading",
)  # fmt: skip


# ----- what an arm trains -----


def adapted_maps(shapes: Shapes, arm: AdapterArm) -> list[tuple[str, tuple[int, int]]]:
    """Full name and shape of each map that an arm adapts."""
    wanted = GROUPS.get(arm.targets, ()) if isinstance(arm.targets, str) else arm.targets
    return [
        (name, shape)
        for name, shape in shapes.named_maps()
        if any(is_named(name, target) for target in wanted)
        and (arm.layers is None or int(name.split(".")[2]) in arm.layers)
    ]


def learning_maps(shapes: Shapes, arm: Arm) -> list[frozenset[str]]:
    """Of each layer, the names within it of the maps that are adapted or trained."""
    if isinstance(arm, AdapterArm):
        names = {name for name, _ in adapted_maps(shapes, arm)}
        return [
            frozenset(own for own in shapes.maps if shapes.full_name(number, own) in names)
            for number in range(shapes.layers)
        ]
    trained = range(shapes.layers) if arm.layers is None else arm.layers
    return [frozenset(shapes.maps if n in trained else ()) for n in range(shapes.layers)]


def first_trained(shapes: Shapes, arm: Arm) -> int:
    """The lowest layer that a gradient reaches; those below are passed forwards only."""
    if trains_all(arm):
        return 0
    learning = learning_maps(shapes, arm)
    return next((n for n, maps in enumerate(learning) if maps), shapes.layers)


def trains_all(arm: Arm) -> bool:
    """Whether embeddings and output map are trained too."""
    return not isinstance(arm, AdapterArm) and arm.layers is None


def trainable_parameters(shapes: Shapes, arm: Arm) -> int:
    """Numbers an arm trains.

    LoRA: r (in + out) of each adapted map, DoRA one more for each of its outputs. OFT:
    in (b - 1) / 2. Full: everything, or the named layers whole, norms and biases included.
    """
    if isinstance(arm, OftArm):
        return sum(i * (arm.block_size - 1) // 2 for _, (_, i) in adapted_maps(shapes, arm))
    if not isinstance(arm, LoraArm):
        whole = arm.layers is None
        return shapes.parameters if whole else len(arm.layers or ()) * shapes.layer_parameters
    maps = [shape for _, shape in adapted_maps(shapes, arm)]
    return sum(arm.rank * (o + i) + o * arm.dora for o, i in maps)


def start_numbers(shapes: Shapes, arm: Arm) -> int:
    """Numbers of the frozen starts of PiSSA and its kind, r (in + out) of a map; else 0."""
    if not isinstance(arm, LoraArm) or arm.init == "default":
        return 0
    return arm.rank * sum(o + i for _, (o, i) in adapted_maps(shapes, arm))


def buffer_numbers(shapes: Shapes, arm: Arm) -> int:
    """Frozen starts, and the directions that OPLoRA keeps, k (in + out) of each adapted map."""
    if not isinstance(arm, LoraArm):
        return 0
    kept = arm.protect * sum(o + i for _, (o, i) in adapted_maps(shapes, arm))
    return start_numbers(shapes, arm) + kept


def checkpoint_numbers(shapes: Shapes, arm: Arm) -> int:
    """Numbers in a checkpoint: the adapter (PiSSA's and MiLoRA's have rank 2r), or the model."""
    if isinstance(arm, AdapterArm):
        return trainable_parameters(shapes, arm) + start_numbers(shapes, arm)
    return shapes.parameters


def base_bytes(shapes: Shapes, weight_bytes: int, quantised: bool) -> int:
    """Bytes of the base as it is held: whole, or the maps of its layers in NF4.

    Half a byte a weight, a byte each 64 weights, and 4 each 256 of those bytes. NF4's tables (1
    KiB) and a mean for each map are left out.
    """
    whole = shapes.parameters * weight_bytes
    if not quantised:
        return whole
    held = 0
    for out, inner in shapes.maps.values():
        scales = ceil(out * inner / NF4_WEIGHTS)
        held += ceil(out * inner / 2) + scales + FLOAT32 * ceil(scales / NF4_SCALES)
    return whole - shapes.map_elements * weight_bytes + shapes.layers * held


def dequantised_bytes(shapes: Shapes, number: int) -> int:
    """The largest map of a layer, while it is there whole."""
    return number * max(out * inner for out, inner in shapes.maps.values())


def averages_kept(arm: Arm) -> int:
    """Copies of the trained numbers that an average keeps (`training/optimisers.py`): BEMA two."""
    return 0 if arm.remedy("average") is None else 2 if arm.average == "bema" else 1


def trained_bytes(arm: Arm, weight_bytes: int) -> int:
    """Bytes of a trained number; adapters are always float32."""
    return FLOAT32 if isinstance(arm, AdapterArm) else weight_bytes


def lockstep_runs(recipe: Recipe, arm: str) -> int:
    """Most runs of an arm that are trained in lock-step."""
    if recipe.search.sampler != "grid":
        return 1
    own = [spec for spec in grid_of(recipe) if spec.arm == arm]
    return max((len(group) for group in cohorts(own, recipe)), default=1)


# ----- training -----


@dataclass(frozen=True)
class Pass:
    """What goes through the model together, and in which numbers.

    Attributes:
        tokens: T, of one run.
        labelled: Positions of one run with a label.
        weight_bytes: w, of what the base is held in under the arm.
        arithmetic_bytes: e, of `train.precision`; 2 for bf16, 4 for fp32.
        packed: Whether a pass holds more than one document.
        more: Whether an optimiser step takes several passes.
        document: Mean tokens of a document, weighed by tokens; sum of n^2 over sum of n.
        fused: Whether dropout has kernels of its own, as on CUDA.
        recompute: Whether each layer keeps its input alone and is passed once more.
        quantised: Whether the frozen maps are held in NF4.
        runs: Runs that are trained in lock-step.
        shared: Whether these share their passes, or take turns.
    """

    tokens: int
    labelled: int
    weight_bytes: int
    arithmetic_bytes: int
    packed: bool = True
    more: bool = True
    document: float = 0.0
    fused: bool = False
    recompute: bool = False
    quantised: bool = False
    runs: int = 1
    shared: bool = False

    @property
    def times(self) -> int:
        """How often the tokens are there at once."""
        return self.runs if self.shared else 1


def pass_of(
    recipe: Recipe, name: str, machine: Machine, learnt: float = 1.0, document: float = 0.0
) -> Pass:
    """The largest pass that training an arm makes: full rows, as many as go together.

    Args:
        recipe: The recipe.
        name: One of its arms.
        machine: Where it is trained.
        learnt: Share of the tokens that have a label.
        document: Tokens of a document, weighed by tokens; 0 for full rows.
    """
    train, arm = recipe.train, recipe.arms[name]
    rows = min(train.rows_per_pass, max(1, train.batch_tokens // train.row_tokens))
    tokens = rows * train.row_tokens
    # As `training.cohort.fits_together`.
    drops = arm.attention_dropout or arm.residual_dropout
    plain = isinstance(arm, LoraArm) and not (
        arm.dora or arm.init != "default" or arm.protect or arm.dropout
    )
    return Pass(
        tokens,
        round(learnt * tokens),
        NUMBER_BYTES[recipe.base.dtype_under(arm)],
        machine.arithmetic_bytes,
        more=train.batch_tokens > tokens,
        document=document or train.row_tokens,
        fused=machine.kind == "cuda",
        recompute=train.recompute,
        quantised=recipe.base.quantization is not None,
        runs=lockstep_runs(recipe, name),
        shared=machine.kind != "cpu" and plain and not drops,
    )


def activation_bytes(shapes: Shapes, arm: Arm, one: Pass) -> int:
    """What a pass keeps for its gradient; see above for a layer.

    The last norm keeps its input and its scale; the loss, the gradient of the labelled
    states. Cosine and sine are 2 D numbers of float32 a token for all layers.
    """
    e, w, c = one.arithmetic_bytes, one.weight_bytes, shapes.width
    first, tokens = first_trained(shapes, arm), one.tokens * one.times
    total = one.tokens * 2 * shapes.head_width * FLOAT32
    total += tokens * (c * w + FLOAT32) + one.labelled * one.times * c * e
    if one.recompute:
        return total + (shapes.layers - first) * tokens * c * w
    return total + sum(_layers_bytes(shapes, arm, one))


def recomputed_bytes(shapes: Shapes, arm: Arm, one: Pass) -> int:
    """The most that one layer keeps besides its input while its own gradient is taken.

    It is 0 where all layers keep that from the start.
    """
    if not one.recompute:
        return 0
    narrow = one.tokens * one.times * shapes.width * one.weight_bytes
    return max(_layers_bytes(shapes, arm, one), default=0) - narrow


def _layers_bytes(shapes: Shapes, arm: Arm, one: Pass) -> Iterator[int]:
    """What each layer keeps, from the lowest that keeps anything."""
    first, learning = first_trained(shapes, arm), learning_maps(shapes, arm)
    for number in range(first, shapes.layers):
        # Where everything is trained, the first layer's input has a gradient too.
        reached = number > first or not isinstance(arm, AdapterArm)
        each, once = _layer_bytes(shapes, arm, one, learning[number], reached)
        yield each * one.tokens * one.times + once


def _layer_bytes(
    shapes: Shapes, arm: Arm, one: Pass, learning: frozenset[str], reached: bool
) -> tuple[int, int]:
    """What a layer keeps of each token, and once a pass whatever its tokens.

    Args:
        shapes: The base's.
        arm: What is trained.
        one: The pass.
        learning: Names of the layer's maps that are adapted or trained.
        reached: Whether its input has a gradient, or its first norm is trained.
    """
    e, c, wide = one.arithmetic_bytes, shapes.width, shapes.feed_forward
    qkv, gated, down = map(frozenset, (shapes.family.qkv, shapes.gate_up, shapes.down))
    output = shapes.family.output
    lora = arm if isinstance(arm, LoraArm) else None
    drops = lora is not None and lora.dropout > 0
    mask = 1 if one.fused else e
    # Whether a gradient goes through the attention, the stream behind it, and the gated unit.
    attends = reached or bool(qkv & learning)
    midway = attends or output in learning
    unit = midway or bool((gated | down) & learning)
    slopes = {**dict.fromkeys(qkv, reached), **dict.fromkeys(gated, midway), output: attends,
              **dict.fromkeys(down, midway or bool(gated & learning))}  # fmt: skip
    by_products = shapes.capped or (bool(arm.attention_dropout) and not one.fused)
    each = (c * one.weight_bytes + FLOAT32) * (reached + midway)
    each += (shapes.active * (2 * c + 4 * wide) if shapes.experts else 2 * wide) * e * unit
    if attends and by_products:
        each += (3 * shapes.queries + 3 * shapes.heads * round(one.document)) * FLOAT32
    elif attends:
        each += (2 * shapes.queries + 2 * shapes.keys) * e + FLOAT32 * shapes.heads
    if not drops:
        apart = one.packed or by_products or not attends
        each += c * e * (bool(qkv & learning) + bool(gated & learning))
        each += shapes.queries * e * (apart and output in learning)
    if arm.residual_dropout:
        each += c * mask * (midway + unit)
    once, cast, parted = 0, e != FLOAT32, drops or one.quantised
    by_map = list[tuple[str, int]]()
    for name, (out, inner) in shapes.maps.items():
        if name not in learning:
            recast = cast and one.weight_bytes != e and not one.quantised
            once += out * inner * e * (recast and slopes[name])
        elif lora is not None:
            joined = lora.init != "default" or lora.protect > 0
            rank = lora.rank * (2 if lora.init != "default" else 1)
            own = rank * e + drops * inner * (e + mask * slopes[name])
            by_map.append((name, own + lora.dora * out * e * (2 if parted else 1)))
            kept = inner * (cast or joined) + out * (cast or joined or not parted)
            once += one.times * rank * e * kept + lora.dora * out * FLOAT32 * (3 if parted else 2)
        elif isinstance(arm, OftArm):
            by_map.append((name, inner * e * (name in shapes.down)))
            once += inner * arm.block_size * (3 * FLOAT32 + e * cast) + 8 * arm.block_size**2
    return each + shapes.through(by_map), once


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
    total += 2 * chunk * FLOAT32 * shapes.capped
    if e != w:
        total += v * c * e
    if any(found and found[0].reads_base for found in map(arm.remedy, ("penalty", "policy"))):
        # The base's: as they come, in float32, their logarithm, and the slope made of it.
        total += chunk * (FLOAT32 * 3 + (e if e != FLOAT32 else 0))
    if arm.reads_base:
        copied = v * c * e if e != w and not isinstance(arm, AdapterArm) else 0
        total += one.labelled * c * e + copied
    if trains_all(arm):
        total += v * c * w + min(GROUP_POSITIONS, one.labelled) * v * e
        total += min(BLOCK_WORDS, v) * c * e
    return total


def working_bytes(shapes: Shapes, one: Pass) -> int:
    """What the gradient of the gated unit holds on the way, the most of any part of a layer.

    The slopes by its product, by gate and by up, and what the last is made of: four tensors of
    T x F in the pass's arithmetic; and the slope of the residual stream, T x C. Where maps are
    quantised, one of them: it is dequantised to numbers of w bytes, and cast.
    """
    numbers = sum({one.weight_bytes, one.arithmetic_bytes})
    whole = dequantised_bytes(shapes, numbers) if one.quantised else 0
    wide = 4 * shapes.active * shapes.feed_forward * one.arithmetic_bytes
    narrow = shapes.width * one.weight_bytes
    return one.tokens * one.times * (wide + narrow) + whole


def allocator_bytes(shapes: Shapes, arm: Arm, one: Pass) -> int:
    """Freed memory that glibc's heap keeps resident at the end of a forward pass: 2 T C w a layer.

    An observation, not a derivation: what LoRA trainings of SmolLM2-135M took beyond all other
    parts was 1.4 to 2.9 T C w a layer where a step is one pass, in fp32 and in bf16, from 256
    to 2,048 tokens (benchmarks/README.md); full finetuning, whose gradients lie in the same
    heap, took up to 12. That it is the heap's is seen from a training that took 0.59 GB less in
    fp32 and 0.28 in bf16 where glibc was told to return every large block at once
    (MALLOC_MMAP_THRESHOLD_=65536). Which blocks stay is a hypothesis: two of the residual
    stream's size, which a layer frees among others that it keeps. Blocks above 32 MiB, the
    largest that glibc takes from its heap, count nothing. Layers that are passed once more leave
    1.5 to 4.2 T C w each, since what they keep lies among all that they free; so told, the plan is
    0.96 to 1.03 of the measured where glibc returns large blocks at once.
    """
    size = one.tokens * one.times * shapes.width * one.weight_bytes
    keeping = shapes.layers - first_trained(shapes, arm)
    return (3 if one.recompute else 2) * keeping * size * (size <= LARGEST_HEAP_BLOCK)


def training_parts(
    shapes: Shapes,
    arm: Arm,
    optimiser: str,
    one: Pass,
    machine: Machine | None = None,
    devices: int = 1,
) -> dict[str, int]:
    """Bytes of training one arm, on one device of several, by part.

    Args:
        shapes: The base's.
        arm: What is trained.
        optimiser: `train.optimiser`.
        one: The largest pass of one device.
        machine: Adds what its process takes without a model, and on a processor glibc's heap.
        devices: Weights, and of a full arm gradients and optimiser, are spread evenly over so
            many (FSDP, the paper's rule of 1/N; `training/sharded.py`); a pass is not. Adapters
            and the casts beside them are whole on every device, and see `gathered` above.

    Source:
        Biderman et al. 2024, arXiv:2405.09673, appendix H, for weights, gradients and optimiser.
    """
    e, w = one.arithmetic_bytes, one.weight_bytes
    trained, lora = trainable_parameters(shapes, arm), isinstance(arm, AdapterArm)
    weights, adapter, casts = base_bytes(shapes, w, one.quantised), 0, 0
    spread = 1 if lora else devices
    loading = weights if devices > 1 else 0
    if isinstance(arm, AdapterArm):
        adapter = FLOAT32 * (trained * one.runs + buffer_numbers(shapes, arm))
        # `LoraLinear` casts its frozen map once and keeps the cast.
        recast = e != w and not one.quantised
        casts = e * recast * sum(o * i for _, (o, i) in adapted_maps(shapes, arm))
    else:
        weights += trained * w * (_has_anchor(arm) + arm.reads_base)
    (kept, copied), numbers = OPTIMISER_STATE[optimiser], trained * trained_bytes(arm, w)
    moments, copies = (kept + averages_kept(arm)) * numbers * one.runs, copied * numbers
    held = -(-weights // devices) + casts
    gradients = -(-numbers * one.times // spread)
    activations = activation_bytes(shapes, arm, one)
    logits, working = logits_bytes(shapes, arm, one), working_bytes(shapes, one)
    again = recomputed_bytes(shapes, arm, one)
    runtime = machine.runtime if machine else 0
    holes = allocator_bytes(shapes, arm, one) if machine and machine.kind == "cpu" else 0
    # The output map's gradient is made with the loss and waits for the embedding's.
    head = 0 if lora or not trains_all(arm) else shapes.head_elements * w
    layer, rest, leaving = gathered_bytes(shapes, arm, w) if devices > 1 else (0, 0, 0)
    ends = 2 * rest * trains_all(arm) if devices > 1 else (2 if shapes.tied else 1) * head
    before = gradients if one.more else 0
    peak = runtime + held + adapter + -(-moments // spread) + holes + max(
        before + activations + logits + rest + layer,
        before + head + activations + again + working + rest + 2 * layer + leaving,
        gradients + ends + working,
        gradients + -(-copies // spread),
    )  # fmt: skip
    return {
        "runtime": runtime,
        "weights": held,
        "adapter": adapter,
        "gradients": gradients,
        "optimiser": -(-(moments + copies) // spread),
        "activations": activations,
        "logits": logits,
        "working": working + again + holes,
        "gathered": rest + 2 * layer + leaving,
        "loading": loading,
        "peak": max(peak, runtime + loading),
    }


def gathered_bytes(shapes: Shapes, arm: Arm, weight_bytes: int) -> tuple[int, int, int]:
    """Of a run over several devices: a layer, all outside the layers, gradients on their way."""
    layer = shapes.layer_parameters * weight_bytes
    rest = shapes.parameters * weight_bytes - shapes.layers * layer
    return layer, rest, 0 if isinstance(arm, AdapterArm) else 2 * layer


def _has_anchor(arm: FullArm) -> bool:
    """Whether decay keeps a copy of what the trained weights were (`training/optimisers.py`)."""
    return arm.weight_decay_toward == "base" and arm.weight_decay > 0


# ----- measuring -----


def measured_tasks(section: MeasureSection) -> list[str]:
    """Laura's own tasks among those a recipe names."""
    return [name for name in (*section.learning, *section.forgetting) if name in TASKS]


def measured_bytes(section: MeasureSection, machine: Machine) -> int:
    """Of a number in the arithmetic of `measure.precision`, as `device.resolve_precision`."""
    if section.precision is None:
        return 2 if machine.kind == "cuda" else FLOAT32
    return {"fp32": FLOAT32, "bf16": 2}.get(section.precision, machine.arithmetic_bytes)


def evaluation_parts(shapes: Shapes, recipe: Recipe, name: str, machine: Machine) -> dict[str, int]:
    """Bytes of measuring a tuned model of one arm, by part; it is measured on one device.

    A full arm's model stands beside the base, which stays loaded and is `kl`'s reference. In
    mixed precision every matrix that is not quantised has a copy in the pass's arithmetic
    (`lowered_weights`), the output map only where texts are scored. Keys and values take as much
    as they may, but no more than 256 rows of the whole context. Logits are float32: a chunk of
    128 places, one each for what is asked of it (divergence: two distributions, and three made of
    them), or one place for each of 256 answers (drawn ones: probabilities and their order besides).

    Args:
        shapes: The base's.
        recipe: The recipe.
        name: The arm that is measured.
        machine: Where; it decides how long a pass is, and the memory for keys and values.
    """
    arm, section, w = recipe.arms[name], recipe.measure, NUMBER_BYTES[recipe.base.dtype]
    e = measured_bytes(section, machine)
    kinds = {TASKS[name].kind for name in measured_tasks(section)}
    kinds |= {TASKS[extra.task].kind for extra in section.extras.values()}
    lora = isinstance(arm, AdapterArm)
    quantised = recipe.base.quantization is not None
    matrices = shapes.head_elements + (0 if quantised else shapes.map_elements)
    weights = (1 if lora else 2) * (base_bytes(shapes, w, quantised) + e * (e != w) * matrices)
    adapter = checkpoint_numbers(shapes, arm) * (FLOAT32 + (e if e != FLOAT32 else 0)) * lora
    cache, chunk = 0, shapes.vocabulary * FLOAT32
    logits = chunk * CHUNK_POSITIONS * (5 if "divergence" in kinds else 2)
    if "generation" in kinds:
        drawn = section.code_samples > 1 or section.code_temperature > 0 or bool(section.extras)
        logits = max(logits, chunk * MOST_ROWS * (5 if drawn else 1))
        row = cache_row_bytes(shapes, shapes.context, w if e == FLOAT32 else e)
        cache = min(machine.cache_bytes, MOST_ROWS * row)
    layer = 2 * shapes.width * w
    inner = 3 * shapes.active * shapes.feed_forward
    layer += (shapes.width + shapes.queries + 2 * shapes.keys + inner) * e
    working = (CPU_PASS_TOKENS if machine.kind == "cpu" else PASS_TOKENS) * layer
    working += dequantised_bytes(shapes, e) if quantised else 0
    parts = {"runtime": machine.runtime, "weights": weights, "adapter": adapter, "cache": cache,
             "logits": logits, "working": working}  # fmt: skip
    return {**parts, "peak": sum(parts.values())}


def vllm_bytes(shapes: Shapes, recipe: Recipe, machine: Machine) -> tuple[int, int]:
    """The least that the vLLM of a study holds (`measure.engine`): at work, and while it waits.

    At work: weights in its number format, keys and values of one row of the whole context (on a
    processor the worker's 2 GiB), logits of a pass twice, and what it never gives back. On a
    processor it does not sleep.
    """
    if recipe.measure.engine == "laura":
        return 0, 0
    e = measured_bytes(recipe.measure, machine)
    cpu = machine.kind == "cpu"
    cache = VLLM_CPU_CACHE if cpu else cache_row_bytes(shapes, shapes.context, e)
    logits = 2 * PASS_TOKENS * shapes.vocabulary * FLOAT32
    awake = VLLM_ASLEEP + shapes.parameters * e + cache + logits
    return awake, awake if cpu else VLLM_ASLEEP


def cache_row_bytes(shapes: Shapes, tokens: int, number: int) -> int:
    """Keys and values of one row of `tokens` tokens, as `key_values.Geometry` counts them."""
    return 2 * shapes.layers * shapes.keys * tokens * number
