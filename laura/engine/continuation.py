"""A prompt and what grows behind it, and what a step's logits make of it.

Shapes: N predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from laura.engine.drafts import Drafts
from laura.engine.lanes import Row
from laura.engine.live_text import NOTHING, Score, TextStream, Told
from laura.engine.sampling import Draw, choose, most_likely
from laura.models.slots import Slot

Finish = Literal["stop", "length"]
UNSOUND = "its numbers left the finite range"


@dataclass(eq=False)
class Continuation:
    """A prompt and what grows behind it.

    Attributes:
        owner: Whose it is; beginnings of prompts are kept apart by owner.
        prompt: Token ids, at least one.
        limit: Most new tokens; 0 only for the prompt's scores.
        slot: The adapter it goes through; None for the base.
        draw: How tokens are chosen.
        stop: Texts that end it.
        top: How many most likely tokens are told with every token; None for no scores.
        scores_prompt: Whether the prompt's tokens are scored.
        ignore_end: Whether an end token does not end it.
        tokens: New tokens so far.
        cached: Tokens of the prompt that were not computed anew.
    """

    owner: Hashable
    prompt: tuple[int, ...]
    limit: int
    slot: Slot | None = None
    draw: Draw = field(default_factory=Draw)
    stop: tuple[str, ...] = ()
    top: int | None = None
    scores_prompt: bool = False
    ignore_end: bool = False
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    # The engine's own, from its beginning to its end.
    row: Row | None = None
    text: TextStream | None = None
    stops: frozenset[int] = frozenset()
    drafts: Drafts | None = None
    prompt_scores: list[Score] = field(default_factory=list)

    @property
    def room(self) -> int:
        """Tokens whose keys and values it may come to; the newest token is never read."""
        return max(1, len(self.prompt) + self.limit - 1)

    @property
    def key(self) -> tuple[Hashable, str]:
        """Who may share its beginning: the same owner, through the same adapter."""
        return self.owner, "" if self.slot is None else self.slot.digest


@dataclass(frozen=True)
class News:
    """What a step brought for one continuation.

    Attributes:
        of: Which one.
        told: New text, with its tokens' scores where they are wanted.
        prompt: Scores of the whole prompt, once, where they are wanted.
        finish: Why it ended, if it has.
        fault: Why it cannot go on, if it cannot.
    """

    of: Continuation
    told: Told = NOTHING
    prompt: tuple[Score, ...] = ()
    finish: Finish | None = None
    fault: str = ""


def extend(asked: Sequence[tuple[Continuation, Sequence[int]]], logits_NV: Tensor) -> list[News]:
    """The next token of each, and further ones as far as its draft proves right.

    Every token is the model's choice, drafted or not: what is told is the same without drafts.

    Args:
        asked: Continuations with their drafts.
        logits_NV: float32; of each what follows its newest token, then what follows every
            token of its draft.
    """
    left, rows = [], 0
    for one, draft in asked:
        left.append((one, draft, rows))
        rows += 1 + len(draft)
    sound = logits_NV.amax(-1).isfinite().tolist()
    likeliest = most_likely(logits_NV).tolist()
    news, depth = list[News](), 0
    while left:
        answers = [(one, first + depth) for one, _, first in left]
        tokens = _drawn(answers, logits_NV, {one: likeliest[row] for one, row in answers})
        scores = _scored(answers, logits_NV, tokens)
        told = [
            _next(one, tokens[one], scores.get(one)) if sound[row] else News(one, fault=UNSOUND)
            for one, row in answers
        ]
        news += told
        goes_on = {own.of for own in told if not (own.finish or own.fault)}
        # Beside a wrong draft numbers may leave the finite range that otherwise do not: what
        # is not sound there is asked anew, alone.
        left = [
            (one, draft, first)
            for one, draft, first in left
            if one in goes_on
            and depth < len(draft)
            and one.tokens[-1] == draft[depth]
            and sound[first + depth + 1]
        ]
        depth += 1
    return news


def _drawn(
    answers: Sequence[tuple[Continuation, int]],
    logits_NV: Tensor,
    likeliest: dict[Continuation, int],
) -> dict[Continuation, int]:
    """The token of each answer by its row of logits: the likeliest, or one drawn."""
    drawn = [(one, row) for one, row in answers if one.draw.source is not None]
    if not drawn:
        return likeliest
    logits = logits_NV[[row for _, row in drawn]]
    found = choose(logits, [one.draw for one, _ in drawn])
    return likeliest | {one: token for (one, _), token in zip(drawn, found, strict=True)}


def _scored(
    answers: Sequence[tuple[Continuation, int]],
    logits_NV: Tensor,
    tokens: dict[Continuation, int],
) -> dict[Continuation, Score]:
    """The scores of these tokens, of answers that want them."""
    wanted = [(one, row) for one, row in answers if one.top is not None]
    if not wanted:
        return {}
    most = max(one.top or 0 for one, _ in wanted)
    logits = logits_NV[[row for _, row in wanted]]
    found = scores_of(logits, [tokens[one] for one, _ in wanted], most)
    return {one: score for (one, _), score in zip(wanted, found, strict=True)}


def _next(one: Continuation, token: int, score: Score | None) -> News:
    assert one.text is not None
    prompt = () if one.tokens else tuple(one.prompt_scores)
    if not one.limit:
        return News(one, prompt=prompt, finish="length")
    one.tokens.append(token)
    if one.drafts is not None:
        one.drafts.add(token)
    finish: Finish | None = None
    if token in one.stops:
        finish = "stop"
    else:
        one.text.add(token, None if score is None else _cut(score, one.top))
        if one.text.stopped:
            finish = "stop"
        elif len(one.tokens) >= one.limit:
            finish = "length"
    told = one.text.rest() if finish else one.text.told()
    return News(one, told, prompt, finish)


def scores_of(logits_NV: Tensor, tokens: Sequence[int], top: int) -> list[Score]:
    """Of one token a row: its log-probability, and the `top` most likely ones with theirs."""
    total = logits_NV.logsumexp(-1, keepdim=True)
    chosen = logits_NV.gather(1, torch.tensor(tokens, device=logits_NV.device)[:, None]) - total
    values, ids = (logits_NV - total).topk(top) if top else (chosen[:, :0], chosen[:, :0].long())
    rows = zip(tokens, chosen[:, 0].tolist(), values.tolist(), ids.tolist(), strict=True)
    return [
        (token, nats, tuple(zip(best, rivals, strict=True))) for token, nats, rivals, best in rows
    ]


def _cut(score: Score, top: int | None) -> Score:
    """A score with no more rivals than were asked for."""
    return score[0], score[1], score[2][: top or 0]
