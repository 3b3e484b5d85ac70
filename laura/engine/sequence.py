"""A prompt and what grows behind it, and what a step's logits make of it.

Shapes: N predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from laura.engine.adapter_slots import Slot
from laura.engine.detokenizer import NOTHING, Detokenizer, Score, TextDelta
from laura.engine.drafting import Drafter
from laura.engine.kv_cache import CacheRow
from laura.engine.sampler import Draw, choose, most_likely, scores_of

Finish = Literal["stop", "end", "length"]
UNSOUND = "its numbers left the finite range"


@dataclass(eq=False)
class TokenSequence:
    """A prompt and what grows behind it.

    Attributes:
        owner: Whose it is; the prefix cache is kept apart by owner.
        prompt: Token ids, at least one.
        limit: Most new tokens; 0 only for the prompt's scores.
        slot: The adapter it goes through, as its model runner knows it; None for the base.
        draw: How tokens are chosen.
        stop: Texts that end it.
        top: How many most likely tokens are told with every token; None for no scores.
        scores_prompt: Whether the prompt's tokens are scored.
        ignore_end: Whether an end token does not end it.
        streamed: Whether its text is told as it comes; else only its end.
        prefix: What several prompts begin with, read once for all of them: a sequence that only
            its users keep; this one's row holds what stands behind it.
        tokens: New tokens so far.
        logprobs: Their log-probabilities (nats), where scores are wanted.
        cached: Tokens of the prompt that were not computed anew.
    """

    owner: Hashable
    prompt: tuple[int, ...]
    limit: int
    slot: Slot | int | None = None
    draw: Draw = field(default_factory=Draw)
    stop: tuple[str, ...] = ()
    top: int | None = None
    scores_prompt: bool = False
    ignore_end: bool = False
    streamed: bool = True
    prefix: TokenSequence | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    # The scheduler's own, from its beginning to its end.
    row: CacheRow | None = None
    users: int = 0  # sequences in work whose prefix it is
    text: Detokenizer | None = None
    stops: Mapping[int, Finish] = field(default_factory=dict)
    drafter: Drafter | None = None
    prompt_scores: list[Score] = field(default_factory=list)

    @property
    def own(self) -> tuple[int, ...]:
        """The prompt behind the shared prefix."""
        return self.prompt if self.prefix is None else self.prompt[len(self.prefix.prompt) :]

    @property
    def room(self) -> int:
        """Tokens that its row may come to hold; the newest token is never read."""
        shared = 0 if self.prefix is None else len(self.prefix.prompt)
        return max(1, len(self.prompt) - shared + self.limit - 1)

    @property
    def key(self) -> tuple[Hashable, ...]:
        """Who may share what its row holds: the same owner, adapter and shared prefix."""
        adapter = self.slot.digest if isinstance(self.slot, Slot) else self.slot
        return self.owner, adapter, self.prefix


@dataclass(frozen=True)
class StepOutput:
    """What a step brought for one sequence: a token, as a rule.

    Attributes:
        sequence: Which one.
        delta: New text, with its tokens' scores where they are wanted.
        prompt: Scores of the whole prompt, once, where they are wanted.
        finish: Why it ended, if it has: a stop text, an end token, or its limit.
        fault: Why it cannot go on, if it cannot.
    """

    sequence: TokenSequence
    delta: TextDelta = NOTHING
    prompt: tuple[Score, ...] = ()
    finish: Finish | None = None
    fault: str = ""


Asked = tuple[TokenSequence, Sequence[int]]
"""A sequence and its draft."""


def extend(
    asked: Sequence[Asked], logits_NV: Tensor, must_be_finite: bool = True
) -> list[StepOutput]:
    """The next token of each, and further ones as far as its draft proves right.

    Every token is the model's choice, drafted or not: what is told is the same without drafts.

    Args:
        asked: Sequences with their drafts.
        logits_NV: float32; of each what follows its newest token, then what follows every
            token of its draft.
        must_be_finite: Whether a sequence breaks off where its numbers leave the finite range.
    """
    left, rows = [], 0
    for one, draft in asked:
        left.append((one, draft, rows))
        rows += 1 + len(draft)
    sound = logits_NV.amax(-1).isfinite().tolist() if must_be_finite else [True] * rows
    likeliest = most_likely(logits_NV).tolist()
    outputs, depth = list[StepOutput](), 0
    while left:
        answers = [(one, first + depth) for one, _, first in left]
        tokens = _drawn(answers, logits_NV, {one: likeliest[row] for one, row in answers})
        scores = _scored(answers, logits_NV, tokens)
        found = [
            advance(one, tokens[one], scores.get(one))
            if sound[row]
            else StepOutput(one, fault=UNSOUND)
            for one, row in answers
        ]
        outputs += found
        goes_on = {own.sequence for own in found if not (own.finish or own.fault)}
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
    return outputs


def _drawn(
    answers: Sequence[tuple[TokenSequence, int]],
    logits_NV: Tensor,
    likeliest: dict[TokenSequence, int],
) -> dict[TokenSequence, int]:
    """The token of each answer by its row of logits: the likeliest, or one drawn."""
    drawn = [(one, row) for one, row in answers if one.draw.source is not None]
    if not drawn:
        return likeliest
    found = choose(_rows(logits_NV, drawn), [one.draw for one, _ in drawn])
    return likeliest | {one: token for (one, _), token in zip(drawn, found, strict=True)}


def _rows(logits_NV: Tensor, answers: Sequence[tuple[TokenSequence, int]]) -> Tensor:
    """The logits of these answers; a copy only where they are not all there are."""
    rows = [row for _, row in answers]
    return logits_NV if rows == list(range(len(logits_NV))) else logits_NV[rows]


def _scored(
    answers: Sequence[tuple[TokenSequence, int]],
    logits_NV: Tensor,
    tokens: dict[TokenSequence, int],
) -> dict[TokenSequence, Score]:
    """The scores of these tokens, of answers that want them."""
    wanted = [(one, row) for one, row in answers if one.top is not None]
    if not wanted:
        return {}
    most = max(one.top or 0 for one, _ in wanted)
    found = scores_of(_rows(logits_NV, wanted), [tokens[one] for one, _ in wanted], most)
    return {one: score for (one, _), score in zip(wanted, found, strict=True)}


def advance(one: TokenSequence, token: int, score: Score | None) -> StepOutput:
    """Take in a sequence's next token, with its score where that is wanted."""
    prompt = () if one.tokens else tuple(one.prompt_scores)
    if not one.limit:
        return StepOutput(one, prompt=prompt, finish="length")
    one.tokens.append(token)
    if score is not None:
        score = (score[0], score[1], score[2][: one.top or 0])  # others may have wanted more
        one.logprobs.append(score[1] or 0.0)
    if one.drafter is not None:
        one.drafter.add(token)
    finish = one.stops.get(token)
    text = one.text
    if finish is None:
        if text is not None:
            text.add(token, score)
        if text is not None and text.stopped:
            finish = "stop"
        elif len(one.tokens) >= one.limit:
            finish = "length"
    if text is None or not one.streamed:
        return StepOutput(one, prompt=prompt, finish=finish)
    delta = text.rest() if finish else text.delta()
    return StepOutput(one, delta, prompt, finish)
