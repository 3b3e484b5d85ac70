"""The scheduler: sequences come and go at any moment, and all that are there share one batch.

Synchronous and for one thread; tenants, waiting and asyncio are `serve`'s. Every step gives
each running sequence one more token, or several where its draft was right, and reads on in
the prompts of those that have just come, in one pass; a long prompt is read in parts, so that
others wait for a part of it only. A sequence is a prompt and what grows behind it; `extend` is
what a step's logits make of all of them.

Shapes: T tokens of a pass, N predictions, W hidden width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from laura.data.templates import end_tokens
from laura.engine.adapter_slots import FEWEST_TOKENS, Slot
from laura.engine.detokenizer import NOTHING, Detokenizer, Score, TextDelta, decoder_of
from laura.engine.drafting import Drafter, NgramTables, allot
from laura.engine.grammar import Matcher, allowed
from laura.engine.kv_cache import BatchAttention, CacheRow, KVCache, PrefixCache, common_length
from laura.engine.model_runner import ModelRunner
from laura.engine.sampler import Draw, choose, most_likely, scores_of
from laura.models.device import free_rows, pass_tokens
from laura.models.encoding import Encoder
from laura.models.losses import CHUNK_POSITIONS

Finish = Literal["stop", "end", "length"]
UNSOUND = "its numbers left the finite range"
MOST_ROWS = 256
# Share of the memory for keys and values that the prefix cache may take.
PREFIX_SHARE = 0.25
# Waiting for another prompt to be read delays a first token by a step.
WORTH_WAITING = 32
# A first token is worth delaying the next ones of so many others.
FIRST_BEFORE_NEXT = 4

Runner = TypeVar("Runner", bound=ModelRunner)


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
        least: No token that would end it is chosen before so many new ones; scores stay those
            of the model, as in vLLM (`min_tokens`).
        matcher: Where it stands in the grammar that holds its text; its tokens are drawn from
            those that the grammar goes on with, scores stay those of the model.
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
    least: int = 0
    matcher: Matcher | None = None
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
Parts = Sequence[tuple[TokenSequence, int]]
"""How many tokens of which prompts are read."""


class Scheduler(Generic[Runner]):
    """Continues many prompts at once.

    Args:
        runner: The model.
        tokenizer: Its tokenizer.
        cache_bytes: Memory for keys and values, the prefix cache included.
        prefix_share: Share of it that the prefix cache may take.
        most_rows: Most sequences at the same time.
        part_tokens: Most tokens of prompts in a pass, unless many wait for few who run.
        worth_waiting: Of prompts that begin alike, one is read before the others from so many
            tokens on, and where it is the same prompt.
        drafts: Whether answers are drafted ahead (drafting.py), where that is worth it.
        must_be_finite: Whether a sequence breaks off where its numbers leave the finite range.

    Attributes:
        drafted_tokens: How many were drafted so far.
        accepted_tokens: How many of them were right and gone on from: steps that were saved.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Any,
        *,
        cache_bytes: int,
        prefix_share: float = PREFIX_SHARE,
        most_rows: int = MOST_ROWS,
        part_tokens: int = 128,
        worth_waiting: int = WORTH_WAITING,
        drafts: bool = True,
        must_be_finite: bool = True,
    ) -> None:
        self.runner, self.part_tokens, self.must_be_finite = runner, part_tokens, must_be_finite
        self.worth_waiting = worth_waiting
        self.drafts, self.drafted_tokens, self.accepted_tokens = drafts, 0, 0
        self.device = runner.device
        self.context_tokens = Encoder(tokenizer, runner.model.config).context_tokens
        settings = getattr(runner.model, "generation_config", None)
        self.end_ids = end_tokens(tokenizer, settings)
        self._decode = decoder_of(tokenizer)
        added = tokenizer.added_tokens_decoder.items()
        special = {*tokenizer.all_special_ids, *(one for one, token in added if token.special)}
        self._special = {tokenizer.decode([one]): one for one in special}
        kept = int(cache_bytes * prefix_share)
        self.prefix_cache, self.ngrams = PrefixCache(kept), NgramTables()
        self.kv_cache = KVCache(
            runner.geometry,
            self.context_tokens,
            cache_bytes - kept,
            most_rows,
            self.device,
        )
        self._reading: list[TokenSequence] = []
        self._owners: dict[CacheRow, TokenSequence] = {}
        self._prefixes: list[TokenSequence] = []

    @torch.inference_mode()
    def add(self, one: TokenSequence) -> bool:
        """Take a sequence in; False while there is no room."""
        row = self._take_rows(one)
        if row is None:
            return False
        one.row = row
        # A special token leaves no text in which a stop text could be found.
        stops: dict[int, Finish] = {
            self._special[text]: "stop" for text in one.stop if text in self._special
        }
        one.stops = stops if one.ignore_end else stops | dict.fromkeys(self.end_ids, "end")
        if one.streamed or one.stop:
            one.text = Detokenizer(self._decode, one.stop)
        if self.drafts and one.limit > 1:
            one.drafter = Drafter(one.prompt, self.ngrams.of(one.key))
        if one.slot is not None:
            self.runner.use(one.slot)
        self._owners[row] = one
        self._reading.append(one)
        return True

    @torch.inference_mode()
    def drop(self, one: TokenSequence) -> None:
        """Forget a sequence and free its row; nothing happens if it has ended."""
        row = one.row
        if row is None:
            return
        one.drafter = None
        if one.slot is not None:
            self.runner.leave(one.slot)
        del self._owners[row]
        self._free(one)
        if one.prefix is not None:
            one.prefix.users -= 1

    @property
    def busy(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._owners)

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """The next tokens of all that run, and a part of the prompts that are being read."""
        rows = [row for block in self.kv_cache.blocks for row in block.rows[: block.running]]
        running = sorted((self._owners[row] for row in rows), key=self._order)
        parts = self._parts(len(running))
        if not running and not parts:
            return []
        drafts = self._drafted(running, sum(tokens for _, tokens in parts))
        hidden_TW = self._pass(running, drafts, parts)
        asked: list[Asked] = list(zip(running, drafts, strict=True))
        for one, draft in asked:
            _row(one).tokens += 1 + len(draft)
        places = list(range(len(running) + sum(map(len, drafts))))
        for one, last in self._read(parts, len(places), hidden_TW):
            asked.append((one, ()))
            places.append(last)
        if not asked:
            return []
        hidden_NW = hidden_TW[torch.tensor(places, device=self.device)]
        outputs = extend(asked, self.runner.logits(hidden_NW), self.must_be_finite)
        self._settle(asked, outputs)
        return outputs

    def _take_rows(self, one: TokenSequence) -> CacheRow | None:
        """A row, and one for its shared prefix where that has none yet."""
        row, prefix = self._take_row_behind(one.prefix, one.room), one.prefix
        if row is None:
            # Prefixes stay for those who come; now they are in the way.
            for unused in [own for own in self._prefixes if own is not prefix and not own.users]:
                self._prefixes.remove(unused)
                self._free(unused)
            row = self._take_row_behind(prefix, one.room)
        if row is not None and prefix is not None:
            row.prefix = prefix.row
            prefix.users += 1
        return row

    def _take_row_behind(self, prefix: TokenSequence | None, tokens: int) -> CacheRow | None:
        if prefix is not None and prefix.row is None:
            prefix.row = self.kv_cache.take_alone(len(prefix.prompt))
            if prefix.row is None:
                return None
            self._prefixes.append(prefix)
            self._reading.append(prefix)
        return self.kv_cache.take(tokens)

    def _free(self, one: TokenSequence) -> None:
        row, one.row = _row(one), None
        if one in self._reading:
            self._reading.remove(one)
        row.block.free(row)

    def _read(self, parts: Parts, end: int, hidden_TW: Tensor) -> list[tuple[TokenSequence, int]]:
        """Take in parts whose states begin at `end`; the prompts now read, each with the place of
        its last state."""
        found: list[tuple[TokenSequence, int]] = []
        for one, tokens in parts:
            row = _row(one)
            if one.scores_prompt:
                self._score_prompt(one, row.start + row.tokens, hidden_TW[end : end + tokens])
            end += tokens
            row.tokens += tokens
            if row.tokens == len(one.own):
                self._reading.remove(one)
                if one not in self._prefixes:
                    found.append((one, end - 1))
        for one, _ in found:
            row = _row(one)
            self.prefix_cache.keep(one.key, one.own, row)
            row.block.start(row)
        return found

    def _settle(self, asked: Sequence[Asked], outputs: Sequence[StepOutput]) -> None:
        """Forget wrong drafts, and what has ended."""
        brought = Counter(output.sequence for output in outputs)
        self.accepted_tokens += len(outputs) - len(asked)
        for one, draft in asked:
            if wrong := 1 + len(draft) - brought[one]:
                _row(one).block.cut(_row(one), _row(one).tokens - wrong)
        for output in outputs:
            if output.finish and not output.fault:
                one = output.sequence
                self.prefix_cache.keep(one.key, (*one.own, *one.tokens), _row(one))
                if one.drafter is not None:
                    self.ngrams.of(one.key).add((*one.prompt, *one.tokens), len(one.prompt))
            if output.finish or output.fault:
                self.drop(output.sequence)
        if not self._owners:
            self.runner.rest()

    def _drafted(self, running: Sequence[TokenSequence], others: int) -> list[list[int]]:
        """What is drafted ahead of each, beside so many tokens of prompts."""
        if not self.drafts:
            return [[] for _ in running]
        wanted = {
            one: (one.drafter, one.limit - len(one.tokens) - 1)
            for one in running
            if one.drafter is not None
        }
        found = allot(list(wanted.values()), len(running) + others, free_rows(self.device))
        drafts = dict(zip(wanted, found, strict=True))
        self.drafted_tokens += sum(map(len, found))
        return [drafts.get(one, []) for one in running]

    def _parts(self, running: int) -> Parts:
        """How many tokens of which prompts are read next."""
        left = self.part_tokens
        # One prompt alone, however long, does not hold up those who run.
        if running <= FIRST_BEFORE_NEXT * (len(self._reading) - 1):
            # Many wait for their first token, and no step is full before all are read.
            left = max(left, pass_tokens(self.device) // 2)
        parts: list[tuple[TokenSequence, int]] = []
        for number, one in enumerate(self._reading):
            row, own = _row(one), one.own
            if row.prefix is not None and row.prefix.tokens < len(one.prompt) - len(own):
                continue
            if not row.tokens and not one.scores_prompt:
                if self._waits(one, self._reading[:number]):
                    continue
                # The last token is read in any case: what follows it is wanted.
                one.cached = self.prefix_cache.fill(one.key, own[:-1], row)
            tokens = len(own) - row.tokens
            # Only the first is cut: others, cut to what is left, would cost a pass more.
            if parts and tokens > left:
                continue
            parts.append((one, _piece(tokens, left)))
            left -= tokens
            if left <= 0:
                break
        return sorted(parts, key=lambda part: self._order(part[0]))

    def _waits(self, one: TokenSequence, before: Sequence[TokenSequence]) -> bool:
        """Whether a prompt that is just being read will be its prefix."""
        if not self.prefix_cache.budget_bytes:
            return False
        own = one.own[:-1]
        worth = min(self.worth_waiting, max(WORTH_WAITING, len(own)))
        alike = [common_length(other.own, own) for other in before if other.key == one.key]
        shared = max(alike, default=0)
        if shared < worth:
            return False
        return shared - self.prefix_cache.length(one.key, own) >= WORTH_WAITING

    def _pass(
        self, running: Sequence[TokenSequence], drafts: Sequence[Sequence[int]], parts: Parts
    ) -> Tensor:
        """Hidden states (T, W): of all that run, each its newest token and its draft; then of
        the parts."""
        ids, positions, segments = list[int](), list[int](), list[tuple[Any, int]]()
        for one, draft in zip(running, drafts, strict=True):
            start = _row(one).start + _row(one).tokens
            ids += [one.tokens[-1], *draft]
            positions += range(start, start + 1 + len(draft))
            segments.append((one.slot, 1 + len(draft)))
        for one, tokens in parts:
            start = _row(one).start + _row(one).tokens
            ids += one.prompt[start : start + tokens]
            positions += range(start, start + tokens)
            segments.append((one.slot, tokens))
        steps = [(_row(one), len(draft)) for one, draft in zip(running, drafts, strict=True)]
        work = BatchAttention(steps, [(_row(one), tokens) for one, tokens in parts], self.device)
        return self.runner.hidden(ids, positions, segments, work)

    def _score_prompt(self, one: TokenSequence, start: int, hidden_TW: Tensor) -> None:
        """Scores of the prompt's tokens that these states predict, and of its first."""
        if not start:
            one.prompt_scores.append((one.prompt[0], None, ()))
        targets = one.prompt[start + 1 : start + 1 + len(hidden_TW)]
        for begin in range(0, len(targets), CHUNK_POSITIONS):
            part = targets[begin : begin + CHUNK_POSITIONS]
            logits = self.runner.logits(hidden_TW[begin : begin + len(part)])
            one.prompt_scores += scores_of(logits, part, one.top or 0)

    def _order(self, one: TokenSequence) -> Any:
        return self.runner.order(one.slot)


def _piece(tokens: int, most: int) -> int:
    """How many of a prompt's tokens are read next; too few are not left over.

    Few go another way through an adapter (adapter_slots.py), and may come to other last bits.
    """
    left = tokens - most
    if left <= 0:
        return tokens
    return most - FEWEST_TOKENS if left < FEWEST_TOKENS <= most // 2 else most


def _row(one: TokenSequence) -> CacheRow:
    assert one.row is not None
    return one.row


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
    allowed_NV = _within_grammars(left, _without_ends(left, logits_NV))
    likeliest = most_likely(allowed_NV).tolist()
    outputs, depth = list[StepOutput](), 0
    while left:
        answers = [(one, first + depth) for one, _, first in left]
        tokens = _drawn(answers, allowed_NV, {one: likeliest[row] for one, row in answers})
        scores = _scored(answers, logits_NV, tokens)
        found = [
            StepOutput(one, fault=fault)
            if (fault := _fault(one, sound[row]))
            else advance(one, tokens[one], scores.get(one))
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


def _fault(one: TokenSequence, sound: bool) -> str:
    """Why a sequence cannot go on, if it cannot."""
    if not sound:
        return UNSOUND
    return one.matcher.fault if one.matcher is not None else ""


def _within_grammars(
    asked: Sequence[tuple[TokenSequence, Sequence[int], int]], logits_NV: Tensor
) -> Tensor:
    """Logits of what each sequence's grammar goes on with; a copy only where one has a grammar."""
    held = [(one.matcher, first, draft) for one, draft, first in asked if one.matcher is not None]
    return allowed(held, logits_NV) if held else logits_NV


def _without_ends(
    asked: Sequence[tuple[TokenSequence, Sequence[int], int]], logits_NV: Tensor
) -> Tensor:
    """Logits in which no sequence ends before its least tokens; a copy only where one would."""
    rows, ends = list[int](), list[int]()
    for one, draft, first in asked:
        for row in range(first, first + min(1 + len(draft), one.least - len(one.tokens))):
            rows += [row] * len(one.stops)
            ends += one.stops
    if not rows:
        return logits_NV
    allowed_NV = logits_NV.clone()
    allowed_NV[rows, ends] = float("-inf")
    return allowed_NV


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
        if one.matcher is not None:
            one.matcher.add(token)
        if text is not None and text.stopped:
            finish = "stop"
        elif one.matcher is not None and one.matcher.complete:
            finish = "end"
        elif len(one.tokens) >= one.limit:
            finish = "length"
    if text is None or not one.streamed:
        return StepOutput(one, prompt=prompt, finish=finish)
    delta = text.rest() if finish else text.delta()
    return StepOutput(one, delta, prompt, finish)
