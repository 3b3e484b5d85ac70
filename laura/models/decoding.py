"""Greedy generation for many prompts at once, with our own key/value cache.

Three things make it fast: prompts are read in packed rows without padding, the
tokens that all prompts begin with are computed and kept once, and an answer that
ends gives its place to the next prompt while the others go on.

Shapes: B rows, T tokens, N predictions, W hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from laura.models.attention import Decoding
from laura.models.key_values import Cache, Geometry, NextToken, ReadPrefix, ReadPrompts, starts_of
from laura.progress import Bar

# Shorter common beginnings are not worth a second part in every attention.
SHORTEST_PREFIX = 32
MOST_ROWS = 256


class Forward(Protocol):
    """A pass through the model's trunk."""

    def __call__(self, token_ids: Tensor, position_ids: Tensor, decode: Decoding) -> Tensor:
        """Hidden states (B, T, W) of token ids and positions (B, T)."""


@dataclass
class Answer:
    """A prompt and the answer that grows behind it.

    Attributes:
        prompt: Token ids of the whole prompt, at least one.
        stop: Texts that end the answer.
        limit: Most new tokens, at least one.
        tokens: New token ids so far, with the end token if it came.
        finish: Why it ended: "stop", "length" or "end"; empty while in work.
    """

    prompt: list[int]
    stop: tuple[str, ...]
    limit: int
    tokens: list[int] = field(default_factory=list)
    finish: str = ""

    @property
    def tail_tokens(self) -> int:
        """Last tokens that can hold a stop text whose end has just appeared.

        A token is at least one byte of text; a few more guard against tokenizers
        that drop a space at the beginning of what they decode.
        """
        return max((len(text.encode()) for text in self.stop), default=0) + 4


class Generation:
    """Greedy answers to many prompts.

    Args:
        forward: Hidden states of a pass.
        predict: Most likely next token ids (N,) for hidden states (N, W).
        decode: Texts of token lists, special tokens included.
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
        predict: Callable[[Tensor], Tensor],
        decode: Callable[[list[list[int]]], list[str]],
        *,
        geometry: Geometry,
        end_ids: frozenset[int],
        budget_bytes: int,
        row_tokens: int,
        device: torch.device,
        bar: Bar,
    ) -> None:
        self.forward, self.predict, self.decode = forward, predict, decode
        self.geometry, self.end_ids, self.budget_bytes = geometry, end_ids, budget_bytes
        self.row_tokens, self.device, self.bar = row_tokens, device, bar
        self.active: list[Answer] = []

    def run(self, answers: Sequence[Answer]) -> None:
        """Fill in `tokens` and `finish` of every answer."""
        self.prefix = common_prefix([answer.prompt for answer in answers])
        # The longest first: later rows are no longer than the cache already reads.
        waiting = sorted(answers, key=lambda answer: len(answer.prompt) + answer.limit)
        capacity = len(waiting[-1].prompt) + waiting[-1].limit - self.prefix
        budget = self.budget_bytes - self.geometry.row_bytes(self.prefix)
        slots = max(1, min(budget // self.geometry.row_bytes(capacity), MOST_ROWS, len(waiting)))
        self.cache = Cache(self.geometry, slots, capacity, self.device)
        if self.prefix:
            shared = torch.tensor([waiting[0].prompt[: self.prefix]], device=self.device)
            positions = torch.arange(self.prefix, device=self.device)[None]
            self.forward(shared, positions, ReadPrefix(self.cache))
        while waiting or self.active:
            free = slots - len(self.active)
            # A quarter at a time: reading prompts in larger packs costs less per token.
            if waiting and (free >= max(1, slots // 4) or not self.active):
                self._admit([waiting.pop() for _ in range(min(free, len(waiting)))])
            if self.active:
                self._step()

    def _own(self, answer: Answer) -> int:
        """Own tokens of a row in the cache; the newest token is not yet read."""
        return len(answer.prompt) - self.prefix + max(0, len(answer.tokens) - 1)

    def _admit(self, arrivals: list[Answer]) -> None:
        """Read new prompts, in packs of at most `row_tokens`, and begin their answers."""
        lengths = [self._own(answer) for answer in arrivals]
        row = len(self.active)
        for pack in packs(lengths, self.row_tokens):
            members, sizes = [arrivals[i] for i in pack], [lengths[i] for i in pack]
            ids = [token for answer in members for token in answer.prompt[self.prefix :]]
            positions = [self.prefix + i for size in sizes for i in range(size)]
            reading = ReadPrompts(self.cache, range(row, row + len(pack)), sizes)
            hidden = self.forward(
                torch.tensor([ids], device=self.device),
                torch.tensor([positions], device=self.device),
                reading,
            )
            ends = [start + size - 1 for start, size in zip(starts_of(sizes), sizes, strict=True)]
            self._extend(members, hidden[0, ends])
            self.active += members
            row += len(pack)
        self._retire()

    def _step(self) -> None:
        """One more token for every answer in work."""
        ids = torch.tensor([[answer.tokens[-1]] for answer in self.active], device=self.device)
        lengths = [self._own(answer) for answer in self.active]
        step = NextToken(self.cache, lengths)
        hidden = self.forward(ids, (step.places + self.prefix)[:, None], step)
        self._extend(self.active, hidden[:, 0])
        self._retire()

    def _extend(self, answers: list[Answer], hidden: Tensor) -> None:
        """Give each answer its next token, from hidden states (N, W)."""
        for answer, token in zip(answers, self.predict(hidden).tolist(), strict=True):
            answer.tokens.append(token)
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
            if self.active[row].finish:
                self.bar.advance(1 - len(self.active[row].tokens) / self.active[row].limit)
                last = self.active.pop()
                if row < len(self.active):
                    self.cache.move(len(self.active), row, self._own(last))
                    self.active[row] = last


def common_prefix(prompts: Sequence[list[int]]) -> int:
    """Tokens that all prompts share at their beginning and that are worth sharing.

    Every prompt keeps at least one token of its own; 0 for a single prompt and for
    a beginning shorter than `SHORTEST_PREFIX`.
    """
    if len(prompts) < 2:
        return 0
    low, high = min(prompts), max(prompts)
    most = min(len(prompt) for prompt in prompts) - 1
    length = next((i for i in range(most) if low[i] != high[i]), most)
    return length if length >= SHORTEST_PREFIX else 0


def packs(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Group positions, in order, so that the lengths of a group sum to at most `limit`.

    A length above the limit stands alone.
    """
    groups: list[list[int]] = []
    total = 0
    for position, length in enumerate(lengths):
        if not groups or total + length > limit:
            groups.append([])
            total = 0
        groups[-1].append(position)
        total += length
    return groups
