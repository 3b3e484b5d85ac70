"""LoRA as a replacement of Linear layers, with room for several adapters.

One class replaces a Linear and holds S slots: stacked A (S, r, in) and B
(S, out, r) and a scale per slot. A route, set for one forward pass, says which
tokens use which slot, or none: the base. The layer trains one adapter (S = 1)
and runs several in one pass; model files stay unaware.

    y = W x + scale * B (A x),   scale = alpha / r, or alpha / sqrt(r) (rsLoRA)

A starts Kaiming-uniform and B at zero, as in PEFT, so the update starts at zero.
Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA).

The product is one differentiable step (`lora_product`), because the parts' sum is where
time and memory go: the update is added into the product in place, forwards and
backwards, and only x and A x are kept for the gradient. W is frozen and gets none. Where W
is in four bits (nf4.py) its product is a step of its own.

For several adapters, each with as many tokens of its own, W is multiplied once for
all tokens, and the small products are batched.

Shapes: N tokens (of one adapter), S adapters, I in, O out, R rank.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from laura.models.device import arithmetic
from laura.models.experts import close_experts, expert_maps
from laura.models.nf4 import Nf4Linear
from laura.models.targets import GROUPS, is_named
from laura.results.errors import AdapterError


@dataclass(frozen=True)
class LoraSettings:
    """What determines a LoRA adapter besides its weights.

    Attributes:
        rank: Rank r of every update that no pattern names.
        alpha: Scale numerator that no pattern names.
        targets: A group (`all`, `mlp`, `attention`) or module names, matched
            like PEFT: a module whose name is, or ends in, `.NAME`.
        dropout: Dropout on the input of the update while training.
        rslora: Scale by alpha / sqrt(r) instead of alpha / r.
        rank_pattern: Rank by module name, where it differs.
        alpha_pattern: Alpha by module name, where it differs.
        layers: Numbers of the decoder layers that are adapted; None for all.
        pissa: Start at the leading singular directions, see `lora_variants.py`.
        milora: Start at the last ones.
        lora_null: Start where the base's activations are least, see `activations.py`.
        corda: Start at the last directions of weight and activations, see there.
        protect: So many leading ones are left alone (OPLoRA).
        dora: Train the lengths of the weight's rows too, see `lora_variants.py`.
        block_size: Rotate the inputs in blocks of this size instead (OFT), see `oft.py`; rank and
            alpha are 1 then.
        terms: Of the sum that stands for an exact rotation in a file of PEFT's; 0 for none.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str | tuple[str, ...] = "all"
    dropout: float = 0.0
    rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    layers: tuple[int, ...] | None = None
    pissa: bool = False
    milora: bool = False
    lora_null: bool = False
    corda: bool = False
    protect: int = 0
    dora: bool = False
    block_size: int = 0
    terms: int = 0

    @property
    def started(self) -> bool:
        """Whether what A and B start with is taken off again, so that a file has rank 2r."""
        return self.pissa or self.milora or self.lora_null or self.corda

    def for_module(self, name: str) -> tuple[int, float]:
        """Rank and scale of the module with this full name."""
        rank = next((r for key, r in self.rank_pattern.items() if is_named(name, key)), self.rank)
        alpha = next(
            (a for key, a in self.alpha_pattern.items() if is_named(name, key)), self.alpha
        )
        return rank, alpha / math.sqrt(rank) if self.rslora else alpha / rank

    @property
    def largest_rank(self) -> int:
        """Of settings whose targets are full module names: the largest rank, or a block's size."""
        return self.block_size or max(self.for_module(name)[0] for name in self.targets)


@dataclass
class Route:
    """Which tokens of the coming forward passes use which slot.

    Attributes:
        slot: One slot for all tokens; None for the base alone.
        segments: Instead of `slot`: (slot or None, tokens) pieces, in order,
            over the flattened tokens of the batch.
        abreast: Whether the segments give slots 0, 1, ... as many tokens each.
    """

    slot: int | None = 0
    segments: tuple[tuple[int | None, int], ...] | None = None
    abreast: bool = False
    _kept: tuple[Tensor, Tensor] | None = None

    def cast(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` in the pass's arithmetic, cast once for the layers that share it (q, k, v)."""
        if x.dtype == dtype:
            return x
        if self._kept is None or self._kept[0] is not x or self._kept[1].dtype != dtype:
            self._kept = (x, x.to(dtype))
        return self._kept[1]


class LoraLinear(nn.Module):
    """A frozen Linear with low-rank updates beside it.

    Args:
        base: The layer it replaces; its weight is neither copied nor trained.
        rank: Rank of the updates.
        scale: Factor of the update, the same for every slot at first.
        dropout: Dropout on the update's input.
        slots: Adapters it has room for.
        route: The model-wide route, shared by all its layers.
    """

    def __init__(
        self, base: nn.Linear, rank: int, scale: float, dropout: float, slots: int, route: Route
    ) -> None:
        super().__init__()
        self.base = base
        self.dropout = dropout
        self.scales = [scale] * slots
        self.route = route
        # How the base map is computed; exchanged while generating, see `engine/engine.py`.
        self.product: Callable[..., Tensor] = functional.linear
        self.merged: Tensor | None = None
        self._cast: Tensor | None = None
        self._draw(rank, slots)

    def _draw(self, rank: int, slots: int) -> None:
        base, device = self.base, self.base.weight.device
        a_SRI = torch.empty(slots, rank, base.in_features, dtype=torch.float32, device=device)
        b_SOR = torch.zeros(slots, base.out_features, rank, dtype=torch.float32, device=device)
        self.A, self.B = nn.Parameter(a_SRI), nn.Parameter(b_SOR)
        for matrix in self.A:
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """The base weight (out, in), so that code asking a Linear's type or place works."""
        return self.base.weight

    @property
    def multiplied(self) -> int:
        """Numbers of one slot that a token is multiplied by besides the weight."""
        return self.A[0].numel() + self.B[0].numel()

    def factors(self, slot: int) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of one slot, as the update and the file have them."""
        return self.A[slot], self.B[slot]

    def update(self, slot: int = 0) -> Tensor:
        """The update of one slot, tuned minus base weight, shape (out, in), float32."""
        a, b = self.factors(slot)
        return self.scales[slot] * (b.float() @ a.float())

    def tuned(self, slot: int = 0) -> Tensor:
        """The weight that one slot stands for, base plus update, (out, in), float32."""
        return self.base.weight.float() + LoraLinear.update(self, slot)

    def forward(self, x: Tensor) -> Tensor:
        """Base map plus the updates of the routed slots; shape (..., out)."""
        route = self.route
        if self.merged is not None or (route.segments is None and route.slot is None):
            return self._mapped(x, self.base.bias)
        if route.segments is None:
            assert route.slot is not None
            return self._adapted(x, route.slot)
        if route.abreast and self._trains_abreast():
            x = route.cast(x, arithmetic(x))
            return lora_products(x, self._weight(x), self.A, self.B, self.scales[0])
        return self._by_segments(x)

    def _adapted(self, x: Tensor, slot: int) -> Tensor:
        """All of x through one slot."""
        if not self._in_one_step():
            return self._joined(x, self._mapped(x, self.base.bias), slot)
        a, b = self.factors(slot)
        x = self.route.cast(x, arithmetic(x))
        return lora_product(x, self._weight(x), a, b, self.scales[slot], self.product)

    def _split(self, x: Tensor) -> Sequence[Tensor]:
        """The tokens of each segment."""
        flat = x.reshape(-1, x.shape[-1])
        sizes = [tokens for _, tokens in self.route.segments or ()]
        if sum(sizes) != len(flat):
            raise AdapterError(f"the route covers {sum(sizes)} tokens, the batch has {len(flat)}")
        parts: Sequence[Tensor] = flat.split(sizes)
        return parts

    def _by_segments(self, x: Tensor) -> Tensor:
        y = self._mapped(x, self.base.bias)
        if not torch.is_grad_enabled():
            x = self.route.cast(x, y.dtype)
        segments = self.route.segments or ()
        parts = zip(segments, self._split(x), self._split(y), strict=True)
        if torch.is_grad_enabled():
            pieces = [
                part_y if slot is None else self._joined(part_x, part_y, slot)
                for (slot, _), part_x, part_y in parts
            ]
            return torch.cat(pieces).reshape(y.shape)
        for (slot, _), part_x, part_y in parts:
            if slot is not None and self.scales[slot]:
                a_RI, b_OR = (factor.to(y.dtype) for factor in self.factors(slot))
                part_y.addmm_(part_x @ a_RI.T, b_OR.T, alpha=self.scales[slot])
                self._stretch(part_y, slot)
        return y

    def _joined(self, x: Tensor, y: Tensor, slot: int) -> Tensor:
        """One slot's output, from x and the base map y of it."""
        return y + self._low_rank(self._dropped(x), slot)

    def _stretch(self, y: Tensor, slot: int) -> None:
        """Change one slot's output in place, where a variant does more than add to it."""

    def _low_rank(self, x: Tensor, slot: int) -> Tensor:
        x = x.to(arithmetic(x))
        a, b = self.factors(slot)
        inner = functional.linear(x, a.to(x.dtype))
        return functional.linear(inner, b.to(x.dtype)) * self.scales[slot]

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, training=True) if self._drops() else x

    def _trains_abreast(self) -> bool:
        """Whether all slots can be trained in one product."""
        if type(self) is not LoraLinear or not torch.is_grad_enabled() or not self._in_one_step():
            return False
        whole = len(self.route.segments or ()) == len(self.scales) == len(self.A)
        return whole and len(set(self.scales)) == 1

    def _drops(self) -> bool:
        return self.training and self.dropout > 0

    def _in_one_step(self) -> bool:
        # The step keeps W for its gradient; a weight in NF4 is made again for it instead.
        quantised = isinstance(self.base, Nf4Linear)
        return self.base.bias is None and not self._drops() and not quantised

    def _mapped(self, x: Tensor, bias_O: Tensor | None) -> Tensor:
        """W x + b, where W is what was merged, if anything was, else the base's."""
        if self.merged is None and isinstance(self.base, Nf4Linear):
            return self.base.mapped(x, bias_O)
        return self.product(x, self._weight(x), bias_O)

    def _weight(self, x: Tensor) -> Tensor:
        """The frozen weight in the pass's arithmetic, cast once and kept.

        Autocast would cast it again in every pass: frozen weights are not in
        its cache, which holds only what is being trained.
        """
        source = self.base.weight if self.merged is None else self.merged
        dtype = arithmetic(x)
        if source.dtype == dtype:
            return source
        if self._cast is None or self._cast.dtype != dtype:
            self._cast = source.detach().to(dtype)
        return self._cast

    def forget_cast(self) -> None:
        """Free the kept cast; needed after the base weight has changed."""
        self._cast = None


def detach(model: nn.Module) -> None:
    """Put the original Linears back, exactly as they were (merged or not)."""
    for name, layer in lora_layers(model).items():
        replace_module(model, name, layer.base)
    close_experts(model)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The LoRA layers of a model by full module name, in order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


@contextmanager
def route(
    model: nn.Module, slot: int | None = None, segments: Sequence[tuple[int | None, int]] = ()
) -> Iterator[None]:
    """Within the block, forward passes use this slot (None: the base) or these segments."""
    layers = list(lora_layers(model).values())
    if not layers:
        yield
        return
    shared = layers[0].route
    used = [s for s, _ in segments] if segments else [slot]
    for one in used:
        if one is not None and not 0 <= one < len(layers[0].scales):
            raise AdapterError(f"slot {one} does not exist; there are {len(layers[0].scales)}")
    before = (shared.slot, shared.segments, shared.abreast)
    shared.slot, shared.segments = slot, tuple(segments) or None
    shared.abreast = bool(segments) and used == list(range(len(segments)))
    shared.abreast = shared.abreast and len({tokens for _, tokens in segments}) == 1
    try:
        yield
    finally:
        shared.slot, shared.segments, shared.abreast = before


def merge(model: nn.Module, slot: int = 0) -> None:
    """Fold one slot into the weights that forward passes use; the base is kept aside."""
    for layer in lora_layers(model).values():
        layer.merged = layer.tuned(slot).detach().to(layer.base.weight.dtype)
        layer.forget_cast()


def unmerge(model: nn.Module) -> None:
    """Undo `merge` exactly: the base weight was never touched."""
    for layer in lora_layers(model).values():
        layer.merged = None
        layer.forget_cast()


def target_names(model: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Full names of the Linears, and maps of experts, that `targets` means.

    Raises:
        AdapterError: a target matches no Linear; the message names the nearest.
    """
    group = GROUPS.get(targets, ()) if isinstance(targets, str) else ()
    wanted = group or ((targets,) if isinstance(targets, str) else tuple(targets))
    head = getattr(model, "get_output_embeddings", lambda: None)()
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    linears += expert_maps(model)
    kinds = sorted({name.rsplit(".", 1)[-1] for name in linears})
    faults = []
    for target in wanted:
        if not group and not any(is_named(name, target) for name in linears):
            near = difflib.get_close_matches(target, [*kinds, *GROUPS], n=1)
            faults.append(f"{target!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if faults:
        raise AdapterError(
            f"no Linear is named {', '.join(faults)}; this model has: {', '.join(kinds)}; "
            "groups: all, mlp, attention"
        )
    return [name for name in linears if any(is_named(name, target) for target in wanted)]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where another of this full name stands."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


class _LoraProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        a, b = a_RI.to(x.dtype), b_OR.to(x.dtype) * scale
        inner_NR = x_NI @ a.T
        y_NO = x_NI @ weight_OI.T
        y_NO.addmm_(inner_NR, b.T)
        ctx.save_for_backward(x_NI, inner_NR, weight_OI, a, b)
        ctx.scale, ctx.dtypes, ctx.shape = scale, (a_RI.dtype, b_OR.dtype), x.shape
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, inner_NR, weight_OI, a, b = ctx.saved_tensors
        grad_NO = grads[0].reshape(-1, grads[0].shape[-1])
        grad_inner_NR = grad_NO @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NO @ weight_OI).addmm_(grad_inner_NR, a).view(ctx.shape)
        grad_a = (grad_inner_NR.T @ x_NI).to(ctx.dtypes[0])
        # b carries the scale already, the parameter does not.
        grad_b = (grad_NO.T @ inner_NR).to(ctx.dtypes[1]) * ctx.scale
        return grad_x, None, grad_a, grad_b, None


class _LoraProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_OI: Tensor, a_SRI: Tensor, b_SOR: Tensor, scale: float
    ) -> Tensor:
        x_SNI = x.reshape(len(a_SRI), -1, x.shape[-1])
        a, b = a_SRI.to(x.dtype), b_SOR.to(x.dtype) * scale
        inner_SNR = x_SNI @ a.mT
        y_SNO = x_SNI @ weight_OI.T
        y_SNO.baddbmm_(inner_SNR, b.mT)
        ctx.save_for_backward(x_SNI, inner_SNR, weight_OI, a, b)
        ctx.scale, ctx.dtypes, ctx.shape = scale, (a_SRI.dtype, b_SOR.dtype), x.shape
        return y_SNO.view(*x.shape[:-1], y_SNO.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_SNI, inner_SNR, weight_OI, a, b = ctx.saved_tensors
        grad_SNO = grads[0].reshape(*x_SNI.shape[:2], -1)
        grad_inner_SNR = grad_SNO @ b
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_SNO @ weight_OI).baddbmm_(grad_inner_SNR, a).view(ctx.shape)
        grad_a = (grad_inner_SNR.mT @ x_SNI).to(ctx.dtypes[0])
        # b carries the scale already, the parameter does not.
        grad_b = (grad_SNO.mT @ inner_SNR).to(ctx.dtypes[1]) * ctx.scale
        return grad_x, None, grad_a, grad_b, None


def lora_products(
    x: Tensor, weight_OI: Tensor, a_SRI: Tensor, b_SOR: Tensor, scale: float
) -> Tensor:
    """W x + scale * B_s (A_s x), where the s-th of S equal parts of the tokens is adapter s's.

    Args:
        x: Inputs (..., in) in the type all products run in; tokens in order, S divides them.
        weight_OI: The frozen weight, of the same type.
        a_SRI: Every adapter's A.
        b_SOR: Every adapter's B.
        scale: The same for all.

    Returns:
        Shape (..., out), with gradients for x, A and B.
    """
    result: Tensor = _LoraProducts.apply(x, weight_OI, a_SRI, b_SOR, scale)  # type: ignore[no-untyped-call]
    return result


def lora_product(
    x: Tensor,
    weight_OI: Tensor,
    a_RI: Tensor,
    b_OR: Tensor,
    scale: float,
    product: Callable[..., Tensor] = functional.linear,
) -> Tensor:
    """W x + scale * B (A x) for x of shape (..., in); gradients for x, A and B.

    All products run in the type of `x`; `weight_OI` must already have it. `product`
    computes W x where there is no gradient.
    """
    if torch.is_grad_enabled():
        result: Tensor = _LoraProduct.apply(x, weight_OI, a_RI, b_OR, scale)  # type: ignore[no-untyped-call]
        return result
    x_NI = x.reshape(-1, x.shape[-1])
    y_NO = product(x_NI, weight_OI)
    y_NO.addmm_(x_NI @ a_RI.to(x.dtype).T, b_OR.to(x.dtype).T, alpha=scale)
    return y_NO.view(*x.shape[:-1], y_NO.shape[-1])


def rate_ratios(model: nn.Module, ratio: float) -> dict[str, float]:
    """Names of the parameters that take a multiple of the rate, and the multiple (LoRA+).

    Everything an adapter trains except A takes the higher rate, as in PEFT's
    `create_loraplus_optimizer`: B, and DoRA's magnitudes.
    Source: Hayou et al. 2024, arXiv:2402.12354.

    Args:
        model: A model with LoRA layers.
        ratio: Rate of B over rate of A; at 1 nothing differs.
    """
    if ratio == 1:
        return {}
    return {
        f"{name}.{inner}": ratio
        for name, layer in lora_layers(model).items()
        for inner, parameter in layer.named_parameters()
        if parameter.requires_grad and inner != "A"
    }
