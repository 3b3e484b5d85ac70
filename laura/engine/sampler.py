"""The sampler: which token comes next, the most likely one or one drawn.

Draws come from a generator of their own for every answer, one number a token, so
what is drawn depends on the answer's seed and its own probabilities only: not on its
neighbours, not on the device.

Shapes: N answers, V vocabulary, K tokens drawn from.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from laura.engine.detokenizer import Score
from laura.results.errors import UsageError

# Tokens of the vocabulary that `most_likely` looks through at a time.
BLOCK_TOKENS = 64
# So many tokens nearly always hold the wanted share; sorting the whole vocabulary is slow.
FIRST_LOOK = 64


@dataclass(frozen=True)
class Draw:
    """How the tokens of one answer are chosen; see `GenerateRequest`.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: Share of probability that is drawn from.
        top_k: Most tokens that are drawn from; 0 for all.
        source: Gives one number in [0, 1) a token; None where nothing is drawn.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    source: random.Random | None = None


class Sampled(Protocol):
    """A request that says how its tokens are chosen, as `GenerateRequest` does."""

    @property
    def temperature(self) -> float:
        """0 takes the most likely token."""

    @property
    def top_p(self) -> float:
        """Share of probability that is drawn from."""

    @property
    def top_k(self) -> int:
        """Most tokens that are drawn from; 0 for all."""

    @property
    def seed(self) -> int:
        """Seed of the draws."""


def draw_of(request: Sampled) -> Draw:
    """How the tokens of a request's answer are chosen, with a generator of its own."""
    # Python's generator gives the same numbers on every device.
    source = random.Random(request.seed) if request.temperature > 0 else None
    return Draw(request.temperature, request.top_p, request.top_k, source)


def check_settings(request: Sampled) -> None:
    """Refuse what cannot be drawn with.

    Raises:
        UsageError: a setting is out of range.
    """
    heat = request.temperature
    checks = {
        "temperature": (heat == 0 or heat >= 1e-6, "0, or 1e-6 or more"),
        "top_p": (0 < request.top_p <= 1, "above 0 and at most 1"),
        "top_k": (request.top_k >= 0, "0 (all) or more"),
    }
    for name, (fits, allowed) in checks.items():
        if not fits:
            raise UsageError(f"{name} is {getattr(request, name)}; allowed is {allowed}")


def most_likely(logits_NV: Tensor) -> Tensor:
    """The token (N,) with the highest logit of every answer; of equals the lowest token.

    A logit that is not a number is the highest. Where the answers stand side by side in
    memory, as a processor's product leaves them (`device.linear`), torch looks for a place
    ten times as long as for a value: the value is looked for first, then its place.
    """
    answers, vocabulary = logits_NV.shape
    if logits_NV.stride(0) != 1 or answers == 1 or vocabulary % BLOCK_TOKENS:
        return logits_NV.argmax(-1)
    blocks_BKN = logits_NV.t().unflatten(0, (-1, BLOCK_TOKENS))
    block = blocks_BKN.amax(1).t().argmax(-1)
    place = torch.arange(answers, device=block.device)
    within = blocks_BKN[block, :, place].argmax(-1)
    ids: Tensor = block * BLOCK_TOKENS + within
    return ids


def choose(logits_NV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """The next token of every answer, drawn.

    The order is that of transformers and vLLM: temperature, then top-k, then top-p; the
    token that crosses the share is still drawn from, and the most likely one always is.

    Args:
        logits_NV: float32.
        draws: One a row, with a source each.
    """
    tokens = [0] * len(draws)
    cut = [i for i, draw in enumerate(draws) if draw.top_p < 1 or draw.top_k]
    whole = [i for i, draw in enumerate(draws) if not (draw.top_p < 1 or draw.top_k)]
    for rows, draw_from in ((cut, _cut), (whole, _whole)):
        if rows:
            heat = logits_NV.new_tensor([draws[i].temperature for i in rows])
            found = draw_from(logits_NV[rows] / heat[:, None], [draws[i] for i in rows])
            for i, token in zip(rows, found, strict=True):
                tokens[i] = token
    return tokens


def _whole(scaled_NV: Tensor, draws: Sequence[Draw]) -> list[int]:
    found: list[int] = _taken(scaled_NV.softmax(-1), draws).tolist()
    return found


def _cut(scaled_NV: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draws from the most likely tokens; looks at more of them where the first do not suffice."""
    vocabulary = scaled_NV.shape[1]
    most = max(draw.top_k for draw in draws)
    count = min(vocabulary, max(FIRST_LOOK, most))
    total = scaled_NV.logsumexp(-1, keepdim=True)
    values, ids = _by_likelihood(*scaled_NV.topk(count))
    limits = scaled_NV.new_tensor([draw.top_k or vocabulary for draw in draws])[:, None]
    share = scaled_NV.new_tensor([draw.top_p for draw in draws])[:, None]
    # Where top-k bounds the row, the share is one of what top-k leaves.
    bounded = limits <= count
    kept = torch.arange(count, device=ids.device)[None] < limits
    among = values.masked_fill(~kept, float("-inf")).logsumexp(-1, keepdim=True)
    chances = (values - torch.where(bounded, among, total)).exp() * kept
    enough = bounded[:, 0] | (chances.sum(-1) >= share[:, 0])
    if count < vocabulary and not bool(enough.all()):
        return _sorted(scaled_NV, draws)
    return _from_most_likely(chances, ids, share, draws)


def _by_likelihood(values_NK: Tensor, ids_NK: Tensor) -> tuple[Tensor, Tensor]:
    """The same tokens in the order of a stable sort: of equals the lower id first."""
    ids, order = ids_NK.sort(-1)
    values, order = values_NK.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _sorted(scaled_NV: Tensor, draws: Sequence[Draw]) -> list[int]:
    vocabulary = scaled_NV.shape[1]
    values, ids = scaled_NV.sort(dim=-1, descending=True, stable=True)
    limits = scaled_NV.new_tensor([draw.top_k or vocabulary for draw in draws])[:, None]
    kept = torch.arange(vocabulary, device=ids.device)[None] < limits
    chances = values.masked_fill(~kept, float("-inf")).softmax(-1)
    share = scaled_NV.new_tensor([draw.top_p for draw in draws])[:, None]
    return _from_most_likely(chances, ids, share, draws)


def _from_most_likely(
    chances_NK: Tensor, ids_NK: Tensor, share_N1: Tensor, draws: Sequence[Draw]
) -> list[int]:
    before = chances_NK.cumsum(-1) - chances_NK
    # The first token stands at 0 and is always kept.
    chances = chances_NK * ((before < share_N1) | (share_N1 >= 1))
    # Drawn in the vocabulary's order: that of likelihood turns with the last bit of a logit.
    ids_NK, order = ids_NK.sort(-1)
    taken = _taken(chances.gather(1, order), draws)
    found: list[int] = ids_NK.gather(1, taken[:, None])[:, 0].tolist()
    return found


def _taken(chances_NK: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The place at which each answer's number falls among its chances (any positive sum)."""
    numbers = [draw.source.random() for draw in draws if draw.source is not None]
    reached = chances_NK.cumsum(-1)
    wanted = chances_NK.new_tensor(numbers)[:, None] * reached[:, -1:]
    place = (reached <= wanted).sum(-1)
    # Rounding may lead past the last token that has a chance at all.
    last = (chances_NK > 0).long().cumsum(-1).argmax(-1)
    return torch.minimum(place, last)


def scores_of(logits_NV: Tensor, tokens: Sequence[int], top: int) -> list[Score]:
    """Of one token a row: its log-probability, and the `top` most likely ones with theirs."""
    total = logits_NV.logsumexp(-1, keepdim=True)
    chosen = logits_NV.gather(1, torch.tensor(tokens, device=logits_NV.device)[:, None]) - total
    values, ids = (logits_NV - total).topk(top) if top else (chosen[:, :0], chosen[:, :0].long())
    rows = zip(tokens, chosen[:, 0].tolist(), values.tolist(), ids.tolist(), strict=True)
    return [
        (token, nats, tuple(zip(best, rivals, strict=True))) for token, nats, rivals, best in rows
    ]
