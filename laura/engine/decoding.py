"""Generation for many prompts at once, with our own key/value cache.

What makes it fast: prompts are read in packed rows without padding; what prompts
begin with in common is computed and kept once (a stem), and so is a prompt of which
several samples are wanted; an answer that ends gives its place to the next at once.
Answers of different adapters go side by side.

Shapes: B rows, T tokens, N predictions, W hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from laura.engine.branches import Branches, Stem
from laura.engine.key_values import Cache, Geometry, NextToken, ReadPrompts
from laura.engine.prefixes import SHORTEST_STEM, Piece, Span, packs, slot_order
from laura.engine.sampling import Draw
from laura.models.attention import Decoding
from laura.results.progress import Bar

MOST_ROWS = 256
# A stem is a second part of every step's attention: it should save so many tokens of reading.
LEAST_SAVED = 256

Key = tuple[int | None, tuple[int, ...]]
Segments = list[tuple[int | None, int]]
"""(slot, tokens) pieces of a pass, in order."""


class Forward(Protocol):
    """A pass through the model's trunk."""

    def __call__(
        self, token_ids: Tensor, position_ids: Tensor, decode: Decoding, segments: Segments
    ) -> Tensor:
        """Hidden states (B, T, W) of token ids and positions (B, T)."""


Pick = Callable[[Tensor, "list[Answer]"], list[tuple[int, float]]]
"""Next token of every answer and its log-probability, from hidden states (N, W)."""


@dataclass(eq=False)
class Answer:
    """A prompt and the answer that grows behind it.

    Attributes:
        number: Which request it answers.
        prompt: Token ids of the whole prompt, at least one.
        stop: Texts that end the answer.
        limit: Most new tokens, at least one.
        slot: The adapter slot that answers; None for the base.
        draw: How tokens are chosen.
        logprobs: Log-probabilities of the new tokens, where they are wanted.
        tokens: New token ids so far, with the end token if it came.
        finish: Why it ended: "stop", "length" or "end"; empty while in work.
        family: Those it is generated with; set by `families`.
    """

    number: int
    prompt: tuple[int, ...]
    stop: tuple[str, ...]
    limit: int
    slot: int | None = None
    draw: Draw = field(default_factory=Draw)
    logprobs: list[float] | None = None
    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    family: Family | None = None

    @property
    def tail_tokens(self) -> int:
        """Last tokens that can hold a stop text whose end has just appeared.

        A token is at least one byte of text; a few more guard against tokenizers
        that drop a space at the beginning of what they decode.
        """
        return max((len(text.encode()) for text in self.stop), default=0) + 4

    @property
    def key(self) -> Key:
        """Slot and prompt: answers that share both are samples of one another."""
        return self.slot, self.prompt

    @property
    def prefix(self) -> int:
        """Tokens of the prompt that stand in its family's stem."""
        return self.family.prefix if self.family else 0

    @property
    def own(self) -> int:
        """Own tokens of its row in the cache; the newest token is not yet read."""
        return len(self.prompt) - self.prefix + max(0, len(self.tokens) - 1)


@dataclass(eq=False)
class Family:
    """Answers of one slot whose prompts begin alike.

    Attributes:
        number: Its place among the families.
        prefix: Tokens they share; 0 where that is not worth a stem.
        members: The answers.
        stem: Keys and values of the shared tokens, once they are read.
    """

    number: int
    prefix: int
    members: list[Answer]
    stem: Stem | None = None


class Generation:
    """Answers to many prompts.

    Args:
        forward: Hidden states of a pass.
        pick: Chooses next tokens.
        decode: Texts of token lists, special tokens included.
        done: Told every answer when it has ended.
        geometry: Size of the model's keys and values.
        end_ids: Tokens that end an answer.
        budget_bytes: Memory for keys and values.
        row_tokens: Most tokens of prompts read in one pass (a longer one is read alone).
        device: Where the model lives.
        bar: Counts answers; an answer in work counts by its share of the limit.
    """

    def __init__(
        self,
        forward: Forward,
        pick: Pick,
        decode: Callable[[list[list[int]]], list[str]],
        done: Callable[[Answer], None],
        *,
        geometry: Geometry,
        end_ids: frozenset[int],
        budget_bytes: int,
        row_tokens: int,
        device: torch.device,
        bar: Bar,
    ) -> None:
        self.forward, self.pick, self.decode, self.done = forward, pick, decode, done
        self.geometry, self.end_ids, self.budget_bytes = geometry, end_ids, budget_bytes
        self.row_tokens, self.device, self.bar = row_tokens, device, bar
        self.active: list[Answer] = []
        # Last hidden state of a prompt of which further samples wait.
        self.ends: dict[Key, Tensor] = {}

    def run(self, answers: Sequence[Answer]) -> None:
        """Fill in `tokens` and `finish` of every answer."""
        for wave in self._waves(families(answers)):
            self._run_wave(wave)

    def _waves(self, found: Sequence[Family]) -> Iterator[list[Family]]:
        """Families whose stems fit into half of the memory together, at least one at a time."""
        wave: list[Family] = []
        held = 0
        for family in found:
            size = self.geometry.row_bytes(family.prefix)
            if wave and size and held + size > self.budget_bytes // 2:
                yield wave
                wave, held = [], 0
            wave.append(family)
            held += size
        if wave:
            yield wave

    def _run_wave(self, wave: list[Family]) -> None:
        for family in wave:
            self._read_stem(family)
        order: dict[Key, int] = {}
        waiting = [answer for family in wave for answer in family.members]
        for answer in waiting:
            order.setdefault(answer.key, len(order))
        # The longest first: later rows are no longer than the cache already reads. Samples
        # of one prompt stand together.
        waiting.sort(key=lambda a: (a.own + a.limit, -order[a.key], -a.number))
        capacity = waiting[-1].own + waiting[-1].limit
        stems = sum(self.geometry.row_bytes(family.prefix) for family in wave)
        rows = (self.budget_bytes - stems) // self.geometry.row_bytes(capacity)
        slots = max(1, min(rows, MOST_ROWS, len(waiting)))
        self.cache = Cache(self.geometry, slots, capacity, self.device)
        while waiting or self.active:
            free = slots - len(self.active)
            # A quarter at a time: reading prompts in larger packs costs less per token.
            if waiting and (free >= max(1, slots // 4) or not self.active):
                self._admit([waiting.pop() for _ in range(min(free, len(waiting)))])
                # Only the next in line can want a prompt that was read before.
                wanted = {waiting[-1].key} if waiting else set()
                self.ends = {key: end for key, end in self.ends.items() if key in wanted}
            if self.active:
                self._step()
        for family in wave:
            family.stem = None
        # Before the next wave makes one: two at once would exceed the budget.
        del self.cache

    def _read_stem(self, family: Family) -> None:
        if not family.prefix:
            return
        first, family.stem = family.members[0], Stem()
        piece = Piece(first.slot, [Span(0, 0, family.prefix)])
        shared = torch.tensor([first.prompt[: family.prefix]], device=self.device)
        positions = torch.arange(family.prefix, device=self.device)[None]
        reading = Branches([piece], None, family.stem, self.device)
        self.forward(shared, positions, reading, [(first.slot, family.prefix)])

    def _admit(self, arrivals: list[Answer]) -> None:
        """Read new prompts, in packs of at most `row_tokens`, and begin their answers."""
        known = set(self.ends) & {answer.key for answer in self.active}
        fresh: list[Answer] = []
        copies: list[Answer] = []
        for answer in arrivals:
            (copies if answer.key in known else fresh).append(answer)
            known.add(answer.key)
        fresh.sort(key=_place)
        for _, group in groupby(fresh, key=_family_number):
            members = list(group)
            for pack in packs([answer.own for answer in members], self.row_tokens):
                self._read([members[i] for i in pack])
        rows = {answer.key: row for row, answer in enumerate(self.active)}
        for answer in copies:
            self.cache.copy(rows[answer.key], len(self.active), answer.own)
            self.active.append(answer)
        self._extend(arrivals, torch.stack([self.ends[answer.key] for answer in arrivals]))
        self._retire()

    def _read(self, members: list[Answer]) -> None:
        """Read the prompts of answers behind one stem in one pass, into the next rows."""
        prefix, sizes = members[0].prefix, [answer.own for answer in members]
        ids = [token for answer in members for token in answer.prompt[prefix:]]
        positions = [prefix + i for size in sizes for i in range(size)]
        row = len(self.active)
        rows = range(row, row + len(members))
        hidden = self.forward(
            torch.tensor([ids], device=self.device),
            torch.tensor([positions], device=self.device),
            ReadPrompts(self.cache, rows, sizes, _stem(members[0])),
            _segments(members, sizes),
        )
        end = -1
        for answer, size in zip(members, sizes, strict=True):
            end += size
            self.ends[answer.key] = hidden[0, end].clone()
        self.active += members

    def _step(self) -> None:
        """One more token for every answer in work."""
        order = sorted(range(len(self.active)), key=lambda row: _place(self.active[row]))
        plain = order == list(range(len(order)))
        ordered = [self.active[row] for row in order]
        groups = [list(g) for _, g in groupby(ordered, key=_family_number)]
        stems = [(_stem(group[0]), len(group)) for group in groups]
        step = NextToken(
            self.cache, [answer.own for answer in self.active], None if plain else order, stems
        )
        ids = torch.tensor([[answer.tokens[-1]] for answer in ordered], device=self.device)
        places = [[answer.prefix + answer.own] for answer in ordered]
        positions = torch.tensor(places, device=self.device)
        hidden = self.forward(ids, positions, step, _segments(ordered, [1] * len(ordered)))
        self._extend(ordered, hidden[:, 0])
        self._retire()

    def _extend(self, answers: list[Answer], hidden: Tensor) -> None:
        """Give each answer its next token, from hidden states (N, W)."""
        for answer, (token, nats) in zip(answers, self.pick(hidden, answers), strict=True):
            answer.tokens.append(token)
            if answer.logprobs is not None:
                answer.logprobs.append(nats)
        self.bar.advance(sum(1 / answer.limit for answer in answers))

    def _retire(self) -> None:
        """Find the answers that have ended and close the gaps they leave."""
        tails = self.decode([answer.tokens[-answer.tail_tokens :] for answer in self.active])
        for answer, tail in zip(self.active, tails, strict=True):
            if answer.tokens[-1] in self.end_ids:
                answer.finish = "end"
            elif any(text in tail for text in answer.stop):
                answer.finish = "stop"
            elif len(answer.tokens) >= answer.limit:
                answer.finish = "length"
        for row in reversed(range(len(self.active))):
            answer = self.active[row]
            if not answer.finish:
                continue
            self.bar.advance(1 - len(answer.tokens) / answer.limit)
            last = self.active.pop()
            if row < len(self.active):
                self.cache.copy(len(self.active), row, last.own)
                self.active[row] = last
            self.done(answer)


def families(answers: Sequence[Answer]) -> list[Family]:
    """Group answers by what their prompts begin with, and tell each its family.

    A beginning becomes a stem where it saves more reading than it costs; answers
    without one form one family.
    """
    groups: dict[Key, list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.slot, answer.prompt[:SHORTEST_STEM]), []).append(answer)
    found: list[Family] = []
    alone = Family(len(groups), 0, [])
    for members in groups.values():
        distinct = list({answer.prompt: None for answer in members})
        prefix = common_prefix(distinct)
        if prefix * (len(distinct) - 1) >= LEAST_SAVED:
            found.append(Family(len(found), prefix, members))
        else:
            alone.members += members
    found += [alone] if alone.members else []
    for family in found:
        for answer in family.members:
            answer.family = family
    return found


def common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that all prompts share at their beginning and that are worth sharing.

    Every prompt keeps at least one token of its own; 0 for a single prompt and for
    a beginning shorter than `SHORTEST_STEM`.
    """
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    length = next((i for i in range(most) if low[i] != high[i]), most)
    return length if length >= SHORTEST_STEM else 0


def _stem(answer: Answer) -> Stem | None:
    return answer.family.stem if answer.family else None


def _family_number(answer: Answer) -> int:
    return answer.family.number if answer.family else -1


def _place(answer: Answer) -> tuple[int, int]:
    """Sorts answers of a pass: those of one slot together, and within it those of one stem."""
    return slot_order(answer.slot), _family_number(answer)


def _segments(answers: Sequence[Answer], sizes: Sequence[int]) -> Segments:
    return [(answer.slot, size) for answer, size in zip(answers, sizes, strict=True)]
