"""Continuations of prompts as they come: added and dropped at any moment, all in one batch.

Synchronous and for one thread; tenants, waiting and asyncio are `serve`'s. Every step gives
each running continuation one more token, or several where its draft was right, and reads on in
the prompts of those that have just come, in one pass; a long prompt is read in parts, so that
others wait for a part of it only.

Shapes: T tokens of a pass, N predictions, W hidden width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from laura.data.end_tokens import end_tokens
from laura.engine.beginnings import Beginnings, common_length
from laura.engine.continuation import Continuation, News, extend, scores_of
from laura.engine.drafts import Drafts, allot
from laura.engine.evaluating import evaluating
from laura.engine.key_values import geometry_of
from laura.engine.lanes import Lanes, Row
from laura.engine.live_decoder import live_decoder
from laura.engine.live_maps import join_maps
from laura.engine.live_pass import LivePass
from laura.engine.live_plan import slot_order
from laura.engine.live_text import TextStream, decoder_of
from laura.engine.packed import PackedMap
from laura.engine.said import Books
from laura.models.device import free_rows, pass_tokens
from laura.models.encoding import Encoder
from laura.models.losses import CHUNK_POSITIONS, output_head
from laura.models.slots import FEWEST_TOKENS, Slot, Slots

MOST_ROWS = 256
# Share of the memory for keys and values that beginnings of prompts may take.
BEGINNINGS_SHARE = 0.25
# Of prompts that begin alike, one is read before the others from so many tokens on.
WORTH_WAITING = 32
# A first token is worth delaying the next ones of so many others.
FIRST_BEFORE_NEXT = 4


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
        part_tokens: Most tokens of prompts in a pass, unless many wait for few who run.
        drafts: Whether answers are drafted ahead (drafts.py), where that is worth it.

    Attributes:
        drafted_tokens: How many were drafted so far.
        accepted_tokens: How many of them were right and gone on from: steps that were saved.

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
        drafts: bool = True,
    ) -> None:
        self.model, self.tokenizer, self.part_tokens = model, tokenizer, part_tokens
        self.drafts, self.drafted_tokens, self.accepted_tokens = drafts, 0, 0
        weight = output_head(model).weight.detach()
        self.device, self._output = weight.device, PackedMap(weight, shared=True)
        self.context_tokens = Encoder(tokenizer, model.config).context_tokens
        self.end_ids = end_tokens(tokenizer, getattr(model, "generation_config", None))
        self._decode = decoder_of(tokenizer)
        self._special = {tokenizer.decode([one]): one for one in tokenizer.all_special_ids}
        joined, self._board = join_maps(model, precision)
        self._decoder = live_decoder(model, joined)
        plain = sum(one.untyped_storage().nbytes() for one in model.parameters())
        self.weight_bytes = plain + sum(one.product.bytes for one in joined)
        groups = [one.group for one in joined]
        self.slots = Slots(groups, slots, max_rank, precision, self.device)
        kept = int(cache_bytes * BEGINNINGS_SHARE)
        self.beginnings, self.books = Beginnings(kept), Books()
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
        wanted.row = row
        ends = frozenset() if wanted.ignore_end else self.end_ids
        # A special token leaves no text in which a stop text could be found.
        named = {self._special[text] for text in wanted.stop if text in self._special}
        wanted.stops = ends | named
        wanted.text = TextStream(self._decode, wanted.stop)
        if self.drafts and wanted.limit > 1:
            wanted.drafts = Drafts(wanted.prompt, self.books.of(wanted.key))
        if wanted.slot is not None:
            self.slots.use(wanted.slot)
        self._owners[row] = wanted
        self._reading.append(wanted)
        return True

    def drop(self, one: Continuation) -> None:
        """Forget a continuation and free its row; nothing happens if it has ended."""
        row = one.row
        if row is None:
            return
        one.row = one.drafts = None
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
        """The next tokens of all that run, and a part of the prompts that are being read."""
        rows = [row for block in self.lanes.blocks for row in block.rows[: block.running]]
        running = sorted((self._owners[row] for row in rows), key=_adapter_order)
        parts = self._parts(len(running))
        if not running and not parts:
            return []
        drafts = self._drafted(running, sum(tokens for _, tokens in parts))
        hidden_TW = self._pass(running, drafts, parts)
        asked: list[tuple[Continuation, Sequence[int]]] = list(zip(running, drafts, strict=True))
        for one, draft in asked:
            _row(one).tokens += 1 + len(draft)
        end = len(running) + sum(map(len, drafts))
        places = list(range(end))
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
        asked += [(one, ()) for one in read]
        if not asked:
            return []
        hidden_NW = hidden_TW[torch.tensor(places, device=self.device)]
        return self._told(asked, extend(asked, self._logits(hidden_NW)))

    def _told(
        self, asked: Sequence[tuple[Continuation, Sequence[int]]], news: list[News]
    ) -> list[News]:
        """The same news; wrong drafts are forgotten, and what has ended is."""
        brought = Counter(own.of for own in news)
        self.accepted_tokens += len(news) - len(asked)
        for one, draft in asked:
            if wrong := 1 + len(draft) - brought[one]:
                _row(one).block.cut(_row(one), _row(one).tokens - wrong)
        for own in news:
            if own.finish or own.fault:
                self._end(own)
        if not self._owners:
            self._board.clear()
        return news

    def _drafted(self, running: Sequence[Continuation], others: int) -> list[list[int]]:
        """What is drafted ahead of each, beside so many tokens of prompts."""
        if not self.drafts:
            return [[] for _ in running]
        wanted = {
            one: (one.drafts, one.limit - len(one.tokens) - 1)
            for one in running
            if one.drafts is not None
        }
        found = allot(list(wanted.values()), len(running) + others, free_rows(self.device))
        drafts = dict(zip(wanted, found, strict=True))
        self.drafted_tokens += sum(map(len, found))
        return [drafts.get(one, []) for one in running]

    def _parts(self, running: int) -> list[tuple[Continuation, int]]:
        """How many tokens of which prompts are read next."""
        left = self.part_tokens
        # One prompt alone, however long, does not hold up those who run.
        if running <= FIRST_BEFORE_NEXT * (len(self._reading) - 1):
            # Many wait for their first token, and no step is full before all are read.
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
        self,
        running: Sequence[Continuation],
        drafts: Sequence[Sequence[int]],
        parts: Sequence[tuple[Continuation, int]],
    ) -> Tensor:
        """Hidden states (T, W): of all that run, each its newest token and its draft; then of
        the parts."""
        ids, positions, segments = list[int](), list[int](), list[tuple[Slot | None, int]]()
        for one, draft in zip(running, drafts, strict=True):
            start = _row(one).tokens
            ids += [one.tokens[-1], *draft]
            positions += range(start, start + 1 + len(draft))
            segments.append((one.slot, 1 + len(draft)))
        for one, tokens in parts:
            start = _row(one).tokens
            ids += one.prompt[start : start + tokens]
            positions += range(start, start + tokens)
            segments.append((one.slot, tokens))
        self._board.prepare(segments, self.device)
        steps = [(_row(one), len(draft)) for one, draft in zip(running, drafts, strict=True)]
        work = LivePass(steps, [(_row(one), tokens) for one, tokens in parts], self.device)
        return self._decoder(ids, positions, work)

    def _logits(self, hidden_NW: Tensor) -> Tensor:
        return self._output(hidden_NW.to(self._output.dtype)).float()

    def _end(self, news: News) -> None:
        one = news.of
        if not news.fault:
            said = (*one.prompt, *one.tokens)
            self.beginnings.keep(one.key, said, _row(one))
            if one.drafts is not None:
                self.books.of(one.key).add(said, len(one.prompt))
        self.drop(one)

    def _score_prompt(self, one: Continuation, start: int, hidden_TW: Tensor) -> None:
        """Scores of the prompt's tokens that these states predict, and of its first."""
        if not start:
            one.prompt_scores.append((one.prompt[0], None, ()))
        targets = one.prompt[start + 1 : start + 1 + len(hidden_TW)]
        for begin in range(0, len(targets), CHUNK_POSITIONS):
            part = targets[begin : begin + CHUNK_POSITIONS]
            logits = self._logits(hidden_TW[begin : begin + len(part)])
            one.prompt_scores += scores_of(logits, part, one.top or 0)


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
    assert one.row is not None
    return one.row
