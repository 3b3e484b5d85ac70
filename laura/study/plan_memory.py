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

from laura.models.targets import GROUPS, is_named
from laura.recipe import Arm, LoraArm, TrainSection
from laura.study.plan_shapes import Shapes

FLOAT32 = 4
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
        adapter: A and B.
        anchor: Copy of the base that a decay toward it needs.
        gradients: Of everything that is trained.
        optimiser: Moments, and copies made during an update.
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


@dataclass(frozen=True)
class Pass:
    """What goes through the model together, and in which numbers.

    Attributes:
        tokens: T.
        labelled: Positions with a label.
        weight_bytes: w, of `base.dtype`.
        arithmetic_bytes: e, of `train.precision`; 2 for bf16, 4 for fp32.
        packed: Whether a pass holds more than one document.
        more: Whether an optimiser step takes several passes.
    """

    tokens: int
    labelled: int
    weight_bytes: int
    arithmetic_bytes: int
    packed: bool = True
    more: bool = True


def pass_of(
    train: TrainSection, weight_bytes: int, arithmetic_bytes: int, learnt: float = 1.0
) -> Pass:
    """The largest pass a recipe's `train` makes: full rows, as many as go together.

    Args:
        train: The recipe's `train`.
        weight_bytes: Of `base.dtype`.
        arithmetic_bytes: Of `train.precision`, resolved.
        learnt: Share of the tokens that have a label.
    """
    rows = min(train.rows_per_pass, max(1, train.batch_tokens // train.row_tokens))
    tokens = rows * train.row_tokens
    more = train.batch_tokens > tokens
    return Pass(tokens, round(learnt * tokens), weight_bytes, arithmetic_bytes, more=more)


def adapted_maps(shapes: Shapes, arm: LoraArm) -> list[tuple[str, tuple[int, int]]]:
    """Full name and shape of each map that an arm adapts."""
    wanted = GROUPS.get(arm.targets, ()) if isinstance(arm.targets, str) else arm.targets
    return [
        (name, shape)
        for name, shape in shapes.named_maps()
        if any(is_named(name, target) for target in wanted)
    ]


def trainable_parameters(shapes: Shapes, arm: Arm) -> int:
    """Numbers an arm trains; for LoRA r (in + out) of each adapted map."""
    if not isinstance(arm, LoraArm):
        return shapes.parameters
    return arm.rank * sum(o + i for _, (o, i) in adapted_maps(shapes, arm))


def activation_bytes(shapes: Shapes, arm: Arm, one: Pass) -> int:
    """What a pass keeps for its gradient, with the kernels of models/lean.py.

    A token in a layer:

    - residual stream before each of the two norms, 2 C w, and their scales, 2 x 4;
    - queries after the rotation, keys, values: (H + 2 G) D e;
    - attention's output H D e and the logarithm of its denominator, 4 H;
    - gate and up, 2 F e; their product is made again when it is wanted;
    - what the maps that learn read, once for all that share it: what either norm gives, C e
      each, and with several documents in a pass their joined outputs, H D e.

    LoRA keeps r e of each adapted map, A x, and of the whole pass its scaled B (and A, where
    it is cast). With dropout each adapted map keeps its own dropped input and a mask in
    the same numbers, and not the input itself. Frozen maps that nothing adapts are cast anew in
    each pass of mixed precision: + e for each of their numbers.

    The last norm keeps its input and its scale; the loss, the gradient of the labelled
    states. Cosine and sine are 2 D numbers of float32 a token for all layers.
    """
    e, w, c, queries = one.arithmetic_bytes, one.weight_bytes, shapes.width, shapes.queries
    # With a frozen bf16 base the residual stream is bf16; with float32 it stays float32.
    token = 2 * c * w + 2 * FLOAT32
    token += (2 * queries + 2 * shapes.keys + 2 * shapes.feed_forward) * e
    token += FLOAT32 * shapes.heads
    learning = set(shapes.maps)
    if isinstance(arm, LoraArm):
        learning = {full.split(".", 3)[3] for full, _ in adapted_maps(shapes, arm)}
    if not (isinstance(arm, LoraArm) and arm.dropout):
        token += c * e * bool({f"self_attn.{kind}_proj" for kind in "qkv"} & learning)
        token += c * e * bool({"mlp.gate_proj", "mlp.up_proj"} & learning)
        token += queries * e * (one.packed and "self_attn.o_proj" in learning)
    total = shapes.layers * token * one.tokens
    if isinstance(arm, LoraArm):
        total += _adapter_activations(shapes, arm, one)
        total -= one.tokens * _before_the_first(shapes, learning, one, arm.dropout > 0)
    total += one.tokens * (c * w + FLOAT32 + 2 * shapes.head_width * FLOAT32)
    return total + one.labelled * c * e


def _before_the_first(shapes: Shapes, learning: set[str], one: Pass, drops: bool) -> int:
    """What a token does not keep in the first layer, before the first map that learns."""
    norm = shapes.width * one.weight_bytes + FLOAT32
    left_out = norm
    first = {f"self_attn.{kind}_proj" for kind in "qkv"} & learning
    if drops:
        left_out += len(first) * shapes.width * one.arithmetic_bytes
    if not first:
        left_out += (2 * shapes.queries + 2 * shapes.keys) * one.arithmetic_bytes
        left_out += FLOAT32 * shapes.heads
        left_out += norm if "self_attn.o_proj" not in learning else 0
    return left_out


def _adapter_activations(shapes: Shapes, arm: LoraArm, one: Pass) -> int:
    e = one.arithmetic_bytes
    maps = adapted_maps(shapes, arm)
    cast = e != FLOAT32
    kept = sum(arm.rank * e * one.tokens + arm.rank * e * (o + i * cast) for _, (o, i) in maps)
    if arm.dropout:
        kept += sum(2 * i * e * one.tokens for _, (_, i) in maps)
    if cast and one.weight_bytes != e:
        adapted = sum(o * i for _, (o, i) in maps)
        kept += e * (shapes.map_elements - adapted)
    return kept


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
    if not isinstance(arm, LoraArm):
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
    return one.tokens * (wide + shapes.width * (one.weight_bytes + one.arithmetic_bytes))


def allocator_bytes(shapes: Shapes, one: Pass) -> int:
    """Freed memory that glibc's heap keeps resident at the end of a forward pass.

    A layer frees three tensors that lie between others it keeps: what the attention's output
    map gives, T C, the gated product, T F, and what the last map gives, T C. They come from
    posix_memalign, and a freed block is too small by its own alignment for the next request
    of the same size, so the hole stays. Seen with SmolLM2-135M, r=8, 2,048 tokens, against
    glibc told to return every large block at once (MALLOC_MMAP_THRESHOLD_=65536): 3.54 GB
    against 2.95 in fp32, 2.75 against 2.47 in bf16; counted here: 0.66 and 0.33. Blocks above
    32 MiB are always returned at once (mmap), and count nothing.
    """
    total = 0
    for width in (shapes.width, shapes.feed_forward, shapes.width):
        size = one.tokens * width * one.arithmetic_bytes
        total += size if size <= LARGEST_HEAP_BLOCK else 0
    return shapes.layers * total


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
    lora = isinstance(arm, LoraArm)
    trained = trainable_parameters(shapes, arm)
    number = FLOAT32 if lora else w
    weights = shapes.parameters * w
    if isinstance(arm, LoraArm) and e != w:
        # `LoraLinear` casts its frozen map once and keeps the cast.
        weights += e * sum(o * i for _, (o, i) in adapted_maps(shapes, arm))
    adapter = trained * FLOAT32 if lora else 0
    state, copies = OPTIMISER_STATE[optimiser]
    gradients, moments = trained * number, trained * number * state
    gathered = _gathered(shapes, e) if devices > 1 else 0
    shared = -(-(weights + adapter + moments) // devices)
    gradients = -(-gradients // devices)
    activations = activation_bytes(shapes, arm, one)
    logits, working = logits_bytes(shapes, arm, one), working_bytes(shapes, one)
    holes = allocator_bytes(shapes, one) if on_processor else 0
    # The output map's gradient is made with the loss and waits for the embedding's.
    head = 0 if lora else shapes.head_elements * w
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
        # Hook: a full arm with `weight_decay_toward: base` keeps parameters * w more, also in peak.
        anchor=0,
        gradients=gradients,
        optimiser=-(-(moments + trained * number * copies) // devices),
        activations=activations,
        logits=logits,
        working=working,
        allocator=holes,
        peak=runtime + peak,
    )


def _gathered(shapes: Shapes, e: int) -> int:
    """Maps of one layer and the output map, whole on a device while they are at work."""
    return e * (shapes.map_elements // shapes.layers + shapes.head_elements)
