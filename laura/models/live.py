"""Continuations of prompts as they come: added and dropped at any moment, all in one batch.

Synchronous and for one thread; tenants, waiting and asyncio are `serve`'s. Every step gives
each running continuation one more token and reads on in the prompts of those that have
just come, in one pass; a long prompt is read in parts, so that nobody waits for it.

Shapes: T tokens of a pass, N predictions, W hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from laura.models.beginnings import Beginnings, common_length
from laura.models.device import pass_tokens
from laura.models.encoding import Encoder, end_ids_of
from laura.models.evaluating import evaluating
from laura.models.key_values import geometry_of
from laura.models.lanes import Lanes, Row
from laura.models.live_decoder import live_decoder
from laura.models.live_maps import join_maps
from laura.models.live_pass import LivePass
from laura.models.live_plan import slot_order
from laura.models.live_text import NOTHING, Score, TextStream, Told, decoder_of
from laura.models.losses import CHUNK_POSITIONS, output_head
from laura.models.packed import PackedMap
from laura.models.sampling import Draw, choose
from laura.models.slots import FEWEST_TOKENS, Slot, Slots

MOST_ROWS = 256
# Share of the memory for keys and values that beginnings of prompts may take.
BEGINNINGS_SHARE = 0.25
# Of prompts that begin alike, one is read before the others from so many tokens on.
WORTH_WAITING = 32

Finish = Literal["stop", "length"]


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
    _row: Row | None = None
    _text: TextStream | None = None
    _stops: frozenset[int] = frozenset()
    _scores: list[Score] = field(default_factory=list)

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


class LiveEngine:
    """Continues many prompts at once. It takes the model over: it serves only from then on.

    Used as a context, in the thread that steps.

    Args:
        model: A causal language model with attention "laura", without adapters.
        tokenizer: Its tokenizer.
        precision: float32 or bfloat16, for matrices, adapters, keys and values.
        slots: Most adapters in memory.
        max_rank: Highest rank of an adapter.
        cache_bytes: Memory for keys and values, beginnings included.
        most_rows: Most continuations at the same time.
        part_tokens: Most tokens of prompts in a pass in which others run.

    Raises:
        ModelError: the model's output map is not a plain one.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        precision: torch.dtype = torch.float32,
        slots: int = 16,
        max_rank: int = 64,
        cache_bytes: int,
        most_rows: int = MOST_ROWS,
        part_tokens: int = 128,
    ) -> None:
        self.model, self.tokenizer, self.part_tokens = model, tokenizer, part_tokens
        weight = output_head(model).weight.detach()
        self.device, self._output = weight.device, PackedMap(weight, shared=True)
        self.context_tokens = Encoder(tokenizer, model.config).context_tokens
        self.end_ids = end_ids_of(getattr(model, "generation_config", None), tokenizer)
        self._decode = decoder_of(tokenizer)
        self._special = {tokenizer.decode([one]): one for one in tokenizer.all_special_ids}
        joined, self._board = join_maps(model, precision)
        self._decoder = live_decoder(model, joined)
        plain = sum(one.untyped_storage().nbytes() for one in model.parameters())
        self.weight_bytes = plain + sum(one.product.bytes for one in joined)
        groups = [one.group for one in joined]
        self.slots = Slots(groups, slots, max_rank, precision, self.device)
        kept = int(cache_bytes * BEGINNINGS_SHARE)
        self.beginnings = Beginnings(kept)
        geometry = geometry_of(model.config, precision)
        self.lanes = Lanes(
            geometry, self.context_tokens, cache_bytes - kept, most_rows, self.device
        )
        self._reading: list[Continuation] = []
        self._owners: dict[Row, Continuation] = {}
        self._context = ExitStack()

    def __enter__(self) -> LiveEngine:
        self._context.enter_context(evaluating([self.model], torch.float32))
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def can_ever_take(self, wanted: Continuation) -> bool:
        """Whether there is room for it when nothing else is there."""
        return self.lanes.can_ever_hold(wanted.room)

    def add(self, wanted: Continuation) -> bool:
        """Take a continuation in; False while there is no room."""
        row = self.lanes.take(wanted.room)
        if row is None:
            return False
        wanted._row = row
        ends = frozenset() if wanted.ignore_end else self.end_ids
        # A special token leaves no text in which a stop text could be found.
        named = {self._special[text] for text in wanted.stop if text in self._special}
        wanted._stops = ends | named
        wanted._text = TextStream(self._decode, wanted.stop)
        if wanted.slot is not None:
            self.slots.use(wanted.slot)
        self._owners[row] = wanted
        self._reading.append(wanted)
        return True

    def drop(self, one: Continuation) -> None:
        """Forget a continuation and free its row; nothing happens if it has ended."""
        row = one._row
        if row is None:
            return
        one._row = None
        if one in self._reading:
            self._reading.remove(one)
        if one.slot is not None:
            self.slots.leave(one.slot)
        del self._owners[row]
        row.block.free(row)

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._owners)

    def step(self) -> list[News]:
        """One more token for all that run, and a part of the prompts that are being read."""
        rows = [row for block in self.lanes.blocks for row in block.rows[: block.running]]
        running = sorted((self._owners[row] for row in rows), key=_adapter_order)
        parts = self._parts(len(running))
        if not running and not parts:
            return []
        hidden_TW = self._pass(running, parts)
        for one in running:
            _row(one).tokens += 1
        asked, places, end = list(running), list(range(len(running))), len(running)
        read: list[Continuation] = []
        for one, tokens in parts:
            if one.scores_prompt:
                self._score_prompt(one, _row(one).tokens, hidden_TW[end : end + tokens])
            end += tokens
            _row(one).tokens += tokens
            if _row(one).tokens == len(one.prompt):
                read.append(one)
                places.append(end - 1)
        for one in read:
            self._reading.remove(one)
            self.beginnings.keep(one.key, one.prompt, _row(one))
            _row(one).block.start(_row(one))
        asked += read
        if not asked:
            return []
        news = self._extend(asked, hidden_TW[torch.tensor(places, device=self.device)])
        for told in news:
            if told.finish or told.fault:
                self._end(told)
        if not self._owners:
            self._board.clear()
        return news

    def _parts(self, running: int) -> list[tuple[Continuation, int]]:
        """How many tokens of which prompts are read next."""
        left = self.part_tokens
        if running < len(self._reading):
            # More wait for their first token than for their next one.
            left = max(left, pass_tokens(self.device) // 2)
        parts: list[tuple[Continuation, int]] = []
        for number, one in enumerate(self._reading):
            row = _row(one)
            if not row.tokens and not one.scores_prompt:
                if self._waits(one, self._reading[:number]):
                    continue
                # The last token is read in any case: what follows it is wanted.
                one.cached = self.beginnings.fill(one.key, one.prompt[:-1], row)
            tokens = len(one.prompt) - row.tokens
            # Only the first is cut: others, cut to what is left, would cost a pass more.
            if parts and tokens > left:
                continue
            parts.append((one, _piece(tokens, left)))
            left -= tokens
            if left <= 0:
                break
        return sorted(parts, key=lambda part: slot_order(part[0].slot))

    def _waits(self, one: Continuation, before: Sequence[Continuation]) -> bool:
        """Whether a prompt that is just being read will be its beginning."""
        if not self.beginnings.budget_bytes:
            return False
        return any(
            other.key == one.key
            and common_length(other.prompt, one.prompt[:-1]) >= min(WORTH_WAITING, len(one.prompt))
            for other in before
        )

    def _pass(
        self, running: Sequence[Continuation], parts: Sequence[tuple[Continuation, int]]
    ) -> Tensor:
        """Hidden states (T, W): of the newest token of all that run, then of the parts."""
        ids = [one.tokens[-1] for one in running]
        positions = [_row(one).tokens for one in running]
        segments = [(one.slot, 1) for one in running]
        for one, tokens in parts:
            start = _row(one).tokens
            ids += one.prompt[start : start + tokens]
            positions += range(start, start + tokens)
            segments.append((one.slot, tokens))
        self._board.prepare(segments, self.device)
        rows = [_row(one) for one in running]
        work = LivePass(rows, [(_row(one), tokens) for one, tokens in parts], self.device)
        return self._decoder(ids, positions, work)

    def _logits(self, hidden_NW: Tensor) -> Tensor:
        return self._output(hidden_NW.to(self._output.dtype)).float()

    def _extend(self, asked: Sequence[Continuation], hidden_NW: Tensor) -> list[News]:
        """Give each its next token; what is new of each."""
        logits_NV = self._logits(hidden_NW)
        tokens = choose(logits_NV, [one.draw for one in asked])
        sound = logits_NV.amax(-1).isfinite().tolist()
        scored = [i for i, one in enumerate(asked) if one.top is not None]
        scores: dict[int, Score] = {}
        if scored:
            most = max(asked[i].top or 0 for i in scored)
            found = _scores(logits_NV[scored], [tokens[i] for i in scored], most)
            scores = dict(zip(scored, found, strict=True))
        news = []
        for i, (one, token) in enumerate(zip(asked, tokens, strict=True)):
            if not sound[i]:
                news.append(News(one, fault="its numbers left the finite range"))
                continue
            news.append(self._next(one, token, scores.get(i)))
        return news

    def _next(self, one: Continuation, token: int, score: Score | None) -> News:
        assert one._text is not None
        prompt = () if one.tokens else tuple(one._scores)
        if not one.limit:
            return News(one, prompt=prompt, finish="length")
        one.tokens.append(token)
        finish: Finish | None = None
        if token in one._stops:
            finish = "stop"
        else:
            one._text.add(token, None if score is None else _cut(score, one.top))
            if one._text.stopped:
                finish = "stop"
            elif len(one.tokens) >= one.limit:
                finish = "length"
        told = one._text.rest() if finish else one._text.told()
        return News(one, told, prompt, finish)

    def _end(self, news: News) -> None:
        one = news.of
        if not news.fault:
            self.beginnings.keep(one.key, (*one.prompt, *one.tokens), _row(one))
        self.drop(one)

    def _score_prompt(self, one: Continuation, start: int, hidden_TW: Tensor) -> None:
        """Scores of the prompt's tokens that these states predict, and of its first."""
        if not start:
            one._scores.append((one.prompt[0], None, ()))
        targets = one.prompt[start + 1 : start + 1 + len(hidden_TW)]
        for begin in range(0, len(targets), CHUNK_POSITIONS):
            part = targets[begin : begin + CHUNK_POSITIONS]
            logits = self._logits(hidden_TW[begin : begin + len(part)])
            one._scores += _scores(logits, part, one.top or 0)


def _piece(tokens: int, most: int) -> int:
    """How many of a prompt's tokens are read next; too few are not left over.

    Few go another way through an adapter (live_plan.py), and may come to other last bits.
    """
    left = tokens - most
    if left <= 0:
        return tokens
    return most - FEWEST_TOKENS if left < FEWEST_TOKENS <= most // 2 else most


def _adapter_order(one: Continuation) -> tuple[int, int]:
    return slot_order(one.slot)


def _row(one: Continuation) -> Row:
    assert one._row is not None
    return one._row


def _scores(logits_NV: Tensor, tokens: Sequence[int], top: int) -> list[Score]:
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
