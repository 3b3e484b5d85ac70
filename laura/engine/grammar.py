"""Grammars: answers that must be JSON of a schema, or match a regular expression.

Before a token is chosen, those that no such answer goes on with lose their chance; what is left
keeps its proportions. llguidance (MIT; Earley parser over regular expressions) says which they are.

A schema comes from strangers. Its compiler is recursive, and a long chain of references ends
the process: who takes one from a client has it compiled elsewhere first, with less stack
(`serve/confined.py`). All else is bounded by LIMITS.

Shapes: N rows of logits, V vocabulary.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from laura.engine.requests import Grammar
from laura.results.errors import GrammarError

# llguidance's own are for grammars that one wrote oneself: a pattern of 22 letters then takes
# 1.7 seconds and 254 MiB for one token, and with these 40 ms (LOG.md).
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 50_000,
    "max_lexer_states": 20_000,
    "verbose_errors": False,
}
STACK_BYTES = 64 << 20
MOST_KEPT = 8
TOO_COMPLEX = "its grammar became too complex"


class Matcher:
    """Where an answer stands in its grammar.

    Args:
        own: llguidance's.
        vocabulary: Tokens that it knows.
    """

    def __init__(self, own: Any, vocabulary: int) -> None:
        self._own, self._words = own, -(-vocabulary // 32)

    def copy(self) -> Matcher:
        """Another that stands where this one does."""
        return Matcher(self._own.deep_copy(), 32 * self._words)

    def masks(self, draft: Sequence[int] = ()) -> np.ndarray:
        """Which tokens may come next, and behind each token of a draft: 32 a word, int32.

        Behind one that may not come itself all may: nothing goes on from there.
        """
        words = np.full((1 + len(draft), self._words), -1, np.int32)
        self._own.unsafe_compute_mask_ptr_with_draft_token(
            words.ctypes.data, 4 * self._words, list(draft)
        )
        return words

    def add(self, token: int) -> None:
        """Take in the answer's next token."""
        self._own.consume_token(token)

    @property
    def complete(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._own.is_stopped() and not self._own.is_error())

    @property
    def fault(self) -> str:
        """Why it cannot go on, if it cannot."""
        return str(self._own.get_error()) or TOO_COMPLEX if self._own.is_error() else ""


class GrammarCompiler:
    """Makes matchers of grammars, in a thread of its own, which lets others compute meanwhile.

    Args:
        tokenizer: The model's.
        vocabulary: Tokens that it has logits for.
        ends: Tokens that end an answer.
        notice: Called, from any thread, when a matcher is there.
    """

    def __init__(
        self, tokenizer: Any, vocabulary: int, ends: Iterable[int], notice: Callable[[], None]
    ) -> None:
        self._tokenizer, self._ends, self._notice = tokenizer, sorted(ends), notice
        self._vocabulary = max(vocabulary, len(tokenizer))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="laura-grammars")
        self._compiled = lru_cache(MOST_KEPT)(self._compile)

    def matcher(self, grammar: Grammar) -> Future[Matcher]:
        """A matcher that stands before an answer's first token; or a GrammarError."""
        # What compiled in a small stack (`serve/confined.py`) does so in a large one.
        before = threading.stack_size(STACK_BYTES)
        try:
            found = self._thread.submit(lambda: self._compiled(grammar).copy())
        finally:
            threading.stack_size(before)
        found.add_done_callback(lambda _: self._notice())
        return found

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _known(self) -> Any:
        from llguidance import LLTokenizer

        text = tokenizer_text(self._tokenizer)
        return LLTokenizer(text, n_vocab=self._vocabulary, eos_token=self._ends)

    def _compile(self, grammar: Grammar) -> Matcher:
        from llguidance import LLMatcher, LLParserLimits

        try:
            limits = LLParserLimits(**LIMITS)
            own = LLMatcher(self._known, grammar.source, limits=limits, log_level=0)
        except ValueError as error:
            raise GrammarError(str(error)) from error
        matcher = Matcher(own, self._vocabulary)
        if not matcher.fault:
            matcher.masks()  # the longest step, and kept for all copies
        if matcher.fault:
            raise GrammarError(matcher.fault)
        return matcher


def tokenizer_text(tokenizer: Any) -> str:
    """A tokenizer as JSON, for llguidance.

    Raises:
        GrammarError: it is no tokenizer of the tokenizers library.
    """
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise GrammarError("this base's tokenizer cannot be held to a grammar")
    # Padding and cutting are settings of whoever used it last.
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps(found | {"padding": None, "truncation": None})


Held = tuple[Matcher, int, Sequence[int]]
"""A matcher, the row of what follows its newest token, and a draft with a row behind each token."""


def allowed(held: Sequence[Held], logits_NV: Tensor) -> Tensor:
    """A copy of logits, minus infinity at tokens that an answer's grammar does not go on with.

    Args:
        held: Of each answer that has a grammar.
        logits_NV: Of all answers.
    """
    masks = [(row, matcher.masks(draft)) for matcher, row, draft in held]
    words = np.full((len(logits_NV), masks[0][1].shape[1]), -1, np.int32)
    for row, own in masks:
        words[row : row + len(own)] = own
    # Made on the processor and moved once, a bit a token. What is added to eight tokens is looked
    # up: filling by a mask takes seven times as long on a processor.
    device = logits_NV.device
    octets = torch.from_numpy(words.view(np.uint8)).to(device).int()
    added = functional.embedding(octets, _ADDED.to(device)).flatten(1)
    return logits_NV + added[:, : logits_NV.shape[1]]


_BITS = torch.arange(256)[:, None] >> torch.arange(8) & 1
_ADDED = torch.zeros(256, 8).masked_fill(_BITS == 0, float("-inf"))
