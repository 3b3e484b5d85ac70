"""What a training pass keeps for its gradient, layer by layer, with models/lean.py. No torch.

A token in a layer keeps:

- the residual stream before each of the two norms, 2 C w, and their scales, 2 x 4;
- queries after the rotation, keys, values: (H + 2 G) D e;
- attention's output H D e and the logarithm of its denominator, 4 H;
- gate and up, 2 F e; their product is made again when it is wanted;
- what the maps that learn read, once for all that share it: what either norm gives, C e
  each, and with several documents in a pass their joined outputs, H D e.

A layer below everything that is trained keeps nothing, and the first above them only what
comes after the first map that learns. A frozen map that nothing adapts is cast anew in each
pass of mixed precision, and the cast kept: e for each of its numbers.

The variants of LoRA, of each adapted map (I in, O out):

- plain: A x, r e a token; scaled B, and A where it is cast, r e of each of their numbers;
- dropout: its own dropped input, I e a token, and a mask in the same numbers (on CUDA of one
  byte) where its input has a gradient; the shared input is not kept;
- PiSSA: twice the rank, and A always, since A' = [A; A0] is made in the pass;
- DoRA: the outputs before they are stretched, O e a token, and two vectors of float32. With
  dropout the base's part and the update's are stretched each by itself: once more O e, and O.

Dropout on what a block adds to the residual stream keeps a mask of C. Dropout on attention
has no kernel of its own on a processor: each document of n tokens keeps three matrices
H n^2 (the weights, the mask, the weights with the mask), and queries, keys and values of all
H heads, in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from laura.recipe.sections import Arm, LoraArm
from laura.study.plan_arms import FLOAT32, adapted_maps, first_trained, learning_maps
from laura.study.plan_shapes import Shapes

QKV = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"})
OUTPUT, DOWN = "self_attn.o_proj", "mlp.down_proj"
GATED = frozenset({"mlp.gate_proj", "mlp.up_proj"})


@dataclass(frozen=True)
class Pass:
    """What goes through the model together, and in which numbers.

    Attributes:
        tokens: T, of one run.
        labelled: Positions of one run with a label.
        weight_bytes: w, of `base.dtype`.
        arithmetic_bytes: e, of `train.precision`; 2 for bf16, 4 for fp32.
        packed: Whether a pass holds more than one document.
        more: Whether an optimiser step takes several passes.
        document: Mean tokens of a document, weighed by tokens; sum of n^2 over sum of n.
        fused: Whether dropout has kernels of its own, as on CUDA.
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
    runs: int = 1
    shared: bool = False

    @property
    def times(self) -> int:
        """How often the tokens are there at once."""
        return self.runs if self.shared else 1

    @property
    def mask_bytes(self) -> int:
        """Of one number that dropout keeps or drops."""
        return 1 if self.fused else self.arithmetic_bytes


def activation_bytes(shapes: Shapes, arm: Arm, one: Pass) -> int:
    """What a pass keeps for its gradient; see above for a layer.

    The last norm keeps its input and its scale; the loss, the gradient of the labelled
    states. Cosine and sine are 2 D numbers of float32 a token for all layers.
    """
    e, w, c = one.arithmetic_bytes, one.weight_bytes, shapes.width
    first, learning = first_trained(shapes, arm), learning_maps(shapes, arm)
    tokens = one.tokens * one.times
    total = one.tokens * 2 * shapes.head_width * FLOAT32
    total += tokens * (c * w + FLOAT32) + one.labelled * one.times * c * e
    for number in range(first, shapes.layers):
        # Where everything is trained, the first layer's input has a gradient too.
        reached = number > first or not isinstance(arm, LoraArm)
        layer = _Layer(shapes, arm, one, frozenset(learning[number]), reached)
        total += layer.token_bytes() * tokens + layer.pass_bytes()
    return total


@dataclass(frozen=True)
class _Layer:
    """One layer that a gradient reaches.

    Attributes:
        learning: Names of its maps that are adapted or trained.
        reached: Whether its input has a gradient, or its first norm is trained.
    """

    shapes: Shapes
    arm: Arm
    one: Pass
    learning: frozenset[str]
    reached: bool

    @property
    def _attends(self) -> bool:
        """Whether a gradient goes through the attention."""
        return self.reached or bool(QKV & self.learning)

    @property
    def _midway(self) -> bool:
        """Whether the stream between the two blocks has a gradient."""
        return self._attends or OUTPUT in self.learning

    @property
    def _drops(self) -> bool:
        return isinstance(self.arm, LoraArm) and self.arm.dropout > 0

    def _input_reached(self, name: str) -> bool:
        """Whether the input of a map has a gradient."""
        if name in QKV:
            return self.reached
        if name in GATED:
            return self._midway
        return self._attends if name == OUTPUT else self._midway or bool(GATED & self.learning)

    def token_bytes(self) -> int:
        """Kept of each token."""
        e, c = self.one.arithmetic_bytes, self.shapes.width
        norm = c * self.one.weight_bytes + FLOAT32
        unit = self._midway or bool((GATED | {DOWN}) & self.learning)
        total = norm * self.reached + norm * self._midway
        total += 2 * self.shapes.feed_forward * e * unit
        if self._attends:
            total += self._attention()
        if not self._drops:
            total += c * e * bool(QKV & self.learning)
            total += c * e * bool(GATED & self.learning)
            apart = self.one.packed or self._by_products or not self._attends
            total += self.shapes.queries * e * (apart and OUTPUT in self.learning)
        if self.arm.residual_dropout:
            total += c * self.one.mask_bytes * (self._midway + unit)
        if isinstance(self.arm, LoraArm):
            total += sum(self._adapted(self.arm, name) for name in self.learning)
        return total

    @property
    def _by_products(self) -> bool:
        """Whether attention is taken as two products with all weights between them."""
        return bool(self.arm.attention_dropout) and not self.one.fused

    def _attention(self) -> int:
        shapes, e = self.shapes, self.one.arithmetic_bytes
        if not self._by_products:
            return (2 * shapes.queries + 2 * shapes.keys) * e + FLOAT32 * shapes.heads
        weights = 3 * shapes.heads * round(self.one.document)
        return (3 * shapes.queries + weights) * FLOAT32

    def _adapted(self, arm: LoraArm, name: str) -> int:
        """Of a token, in one adapted map."""
        e = self.one.arithmetic_bytes
        out, inner = self.shapes.maps[name]
        total = arm.rank * (2 if arm.init == "pissa" else 1) * e
        if self._drops:
            total += inner * (e + self.one.mask_bytes * self._input_reached(name))
        if arm.dora:
            total += out * e * (2 if self._drops else 1)
        return total

    def pass_bytes(self) -> int:
        """Kept once a pass, whatever its tokens."""
        arm, e = self.arm, self.one.arithmetic_bytes
        total, cast = 0, e != FLOAT32
        for name, (out, inner) in self.shapes.maps.items():
            if name not in self.learning:
                recast = cast and self.one.weight_bytes != e and self._input_reached(name)
                total += out * inner * e * recast
            elif isinstance(arm, LoraArm):
                joined = arm.init == "pissa"
                rank = arm.rank * (2 if joined else 1) * self.one.times
                total += rank * e * inner * (cast or joined)
                total += rank * e * out * (cast or joined or not self._drops)
                total += out * FLOAT32 * (3 if self._drops else 2) * arm.dora
        return total


def keeping_layers(shapes: Shapes, arm: Arm) -> int:
    """Layers that keep something for the gradient."""
    return shapes.layers - first_trained(shapes, arm)


def lasting_casts(shapes: Shapes, arm: Arm, one: Pass) -> int:
    """Bytes of the casts that adapted maps keep of their frozen weights in mixed precision."""
    if not isinstance(arm, LoraArm) or one.arithmetic_bytes == one.weight_bytes:
        return 0
    return one.arithmetic_bytes * sum(o * i for _, (o, i) in adapted_maps(shapes, arm))
