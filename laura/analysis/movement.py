"""How far training moved what a model computes: base beside tuned model on the same texts.

After every decoder layer the hidden states X of the base and Y of the tuned model, of N tokens,
centred, give linear CKA, 1 where they are alike but for rotation and scale, and the orthogonal
Procrustes distance, 0 where a rotation turns one into the other, at most 2:

    CKA = ||Xᵀ Y||² / (||Xᵀ X|| ||Yᵀ Y||)
    Procrustes = min over Q of || X / ||X|| - Y Q / ||Y|| ||² = 2 - 2 ||Xᵀ Y||_* / (||X|| ||Y||)

Every linear map that reads all tokens (not experts) gives CSD, what the update adds to the
output on the inputs h that the base gives the map, before any bias:

    CSD = E ||dW h||² / E ||W h||²

Tokens are those at which a supervised one is predicted, as in the divergences, but no text's
first: states are up to 150 times as long there (SmolLM2-135M) and would be all that is seen.

Only sums over tokens are held, in float64: 24 W² bytes a layer (0.24 GB for SmolLM2-135M, 13 GB
for a model of 7B), beside both models; two products more a map are computed than in a pass.

Source: Kornblith et al. 2019, arXiv:1905.00414 (CKA); Ding et al. 2021, arXiv:2108.01661
(Procrustes distance); CSD, and that the three go with forgetting: arXiv:2605.28819, whose
definition of CSD we have at second hand.
Shapes: N tokens, W hidden width, I in, O out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from laura.engine.engine import Engine, Reference, evaluating
from laura.engine.prefix_tree import inputs_of, plan, supervised
from laura.engine.requests import TokenDocument
from laura.models.layers import decoder_layers
from laura.models.lora import LoraLinear
from laura.results.errors import ModelError


class Moments:
    """Sums over tokens of two representations, from which their likeness follows.

    Args:
        width: W of both.
        device: Where they are summed; it must have float64.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        # Of states with a one before them: their number and their sums are products too.
        shape = (3, 1 + width, 1 + width)
        self._products = torch.zeros(shape, dtype=torch.float64, device=device)

    @property
    def tokens(self) -> int:
        """How many were taken in."""
        return int(self._products[0, 0, 0])

    def add(self, x_NW: Tensor, y_NW: Tensor) -> None:
        """Take in more tokens."""
        device = self._products.device  # first: MPS has no float64
        sides = (states.to(device).double() for states in (x_NW, y_NW))
        x, y = (functional.pad(side, (1, 0), value=1.0) for side in sides)
        for product, one, other in zip(self._products, (x, y, x), (x, y, y), strict=True):
            product.addmm_(one.T, other)

    def likeness(self, name: str) -> dict[str, float]:
        """The "cka" and "procrustes" of both.

        Raises:
            ModelError: they are not finite, or the same for every token.
        """
        xx, yy, xy = (p[1:, 1:] - torch.outer(p[1:, 0], p[0, 1:]) / p[0, 0] for p in self._products)
        sizes = [float(product.trace()) for product in (xx, yy)]
        size = math.sqrt(max(0.0, sizes[0] * sizes[1]))
        if not 0 < size < math.inf:
            raise ModelError(f"{name} are not finite, or alike for all tokens; nothing can be told")
        # Of equal states nothing is to be turned, and rounding shall not say so either.
        turned = sizes[0] if torch.equal(xx, xy) else float(torch.linalg.svdvals(xy).sum())
        squares = [float(product.square().sum()) for product in (xx, yy, xy)]
        cka = squares[2] / math.sqrt(squares[0] * squares[1])
        return {"cka": cka, "procrustes": max(0.0, 2 - 2 * turned / size)}


def measure_movement(
    engine: Engine,
    reference: Reference,
    documents: Sequence[TokenDocument],
    device: torch.device,
) -> dict[str, Any]:
    """How far the engine's model is from the base, layer by layer.

    Args:
        engine: Of the tuned model.
        reference: The base: another model, or a callable whose context makes the model it.
        documents: What both read.
        device: Where sums are held; it must have float64.

    Returns:
        {"tokens": N, "layers": [{"layer", "cka", "procrustes", "csd": share by module}]}.

    Raises:
        ModelError: the states are not finite.
    """
    base = reference if isinstance(reference, nn.Module) else engine.model
    switch = nullcontext if isinstance(reference, nn.Module) else reference
    texts = [supervised(document, None) for document in documents]
    passes = plan(texts, engine.row_tokens, share=False)
    layers = list(zip(decoder_layers(base), decoder_layers(engine.model), strict=True))
    moments = [Moments(engine.model.config.hidden_size, device) for _ in layers]
    sums = [dict[str, Tensor]() for _ in layers]
    tokens = sum(one.tokens for one in passes)
    with (
        evaluating([base, engine.model], engine.precision),
        engine.progress.bar("measuring movement", tokens, "tokens") as bar,
    ):
        for one, inputs in inputs_of(texts, passes, engine.device):
            asked = [place for text, number, place in one.asks if texts[text].asked[number]]
            places = torch.tensor(asked, dtype=torch.long, device=engine.device)
            after = _states(engine, engine.model, inputs, places)
            with switch(), _updates(layers, sums, places, one.tokens):
                before = _states(engine, base, inputs, places)
            for own, x_NW, y_NW in zip(moments, before, after, strict=True):
                own.add(x_NW, y_NW)
            bar.advance(one.tokens)
    rows = []
    for number, (own, by_map) in enumerate(zip(moments, sums, strict=True)):
        csd = {name: float(added / kept) for name, (added, kept) in by_map.items()}
        likeness = own.likeness(f"the hidden states after layer {number}")
        rows.append({"layer": number, **likeness, "csd": csd})
    return {"tokens": moments[0].tokens, "layers": rows}


def _states(engine: Engine, model: Any, inputs: dict[str, Any], places: Tensor) -> list[Tensor]:
    """Hidden states (N, W) at some places of a row, after each layer."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for layer in decoder_layers(model):
            hook = layer.register_forward_hook(lambda _, __, x_1TW: found.append(x_1TW[0][places]))
            stack.callback(hook.remove)
        engine.runner.states(inputs, model)
    return found


@contextmanager
def _updates(
    layers: Sequence[tuple[nn.Module, nn.Module]],
    sums: Sequence[dict[str, Tensor]],
    places: Tensor,
    tokens: int,
) -> Iterator[None]:
    """Within the block, what the base's maps read is told to `sums`: (dW h)² and (W h)²."""

    def read(own: dict[str, Tensor], name: str, twin: Any, module: Any, inputs: Any) -> None:
        if inputs[0].shape[:-1] != (1, tokens):
            return
        h_NI = inputs[0][0, places].float()
        weight_OI = module.weight.float()
        lora = isinstance(module, LoraLinear)
        update_OI = module.update() if lora else twin.weight.float() - weight_OI
        parts = [functional.linear(h_NI, one).square().sum() for one in (update_OI, weight_OI)]
        own[name] = own.get(name, 0) + torch.stack(parts)

    with ExitStack() as stack:
        for (layer, tuned), own in zip(layers, sums, strict=True):
            for name, module in layer.named_modules():
                if isinstance(module, nn.Linear | LoraLinear):
                    told = partial(read, own, name.rsplit(".", 1)[-1], tuned.get_submodule(name))
                    stack.callback(module.register_forward_pre_hook(told).remove)
        yield
