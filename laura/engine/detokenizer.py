"""The detokenizer: text as it comes, token by token.

Nothing is told that may still change or be cut off: held back are the bytes of an unfinished
character and what could begin a stop text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# A character has at most four bytes; decoders show each missing one as U+FFFD.
MOST_UNFINISHED = 3
BROKEN = "\ufffd"
# Tokens decoded together with what is new, because a token's text may depend on those
# before it (a space, a joined character).
CONTEXT_TOKENS = 6
LONGEST_WINDOW = 24

Score = tuple[int, float | None, tuple[tuple[int, float], ...]]
"""Token, its log-probability (nats) and the most likely tokens with theirs."""


@dataclass(frozen=True)
class TextDelta:
    """What stands for good.

    Attributes:
        text: New text.
        scores: Of the tokens that it completes, where they are wanted.
    """

    text: str
    scores: tuple[Score, ...] = ()


NOTHING = TextDelta("")


def decoder_of(tokenizer: Any) -> Callable[[list[int]], str]:
    """Text of token ids, without special tokens, by the shortest way a tokenizer has.

    Transformers' own `decode` takes longer than the decoding. It is left out where it would
    only hand on to the tokenizers library.
    """
    from transformers import PreTrainedTokenizerFast

    def whole(tokens: list[int]) -> str:
        text: str = tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def direct(tokens: list[int]) -> str:
        text: str = tokenizer.backend_tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    plain = isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(type(tokenizer), name, None) is getattr(PreTrainedTokenizerFast, name, None)
        for name in ("decode", "_decode")
    )
    return direct if plain else whole


def text_of(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str]) -> str:
    """The text of a whole answer, cut before the first of its stop texts."""
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    for one in stop:
        text = text.split(one)[0] if one else text
    return text


class Detokenizer:
    """The text of one answer.

    Args:
        decode: Text of token ids, without special tokens.
        stop: Texts that end the answer.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self.decode, self.stop = decode, [text for text in stop if text]
        self.stopped = False
        self._tokens: list[int] = []
        self._window = 0  # first token that is decoded anew
        self._before = ""  # the window's text as far as it is in `_held` or told
        self._held = ""  # text that is not told yet
        self._told = 0  # characters told
        self._scores: list[tuple[int, Score]] = []  # (where the token's text begins, score)

    def add(self, token: int, score: Score | None = None) -> None:
        """Take in the next token; `stopped` tells whether a stop text is complete."""
        if score is not None:
            self._scores.append((self._told + len(self._held), score))
        self._tokens.append(token)
        text = self.decode(self._tokens[self._window :])
        whole = text
        if len(self._tokens) - self._window < LONGEST_WINDOW:
            for _ in range(MOST_UNFINISHED):
                whole = whole.removesuffix(BROKEN)
        if len(whole) > len(self._before):
            self._held += whole[len(self._before) :]
            self._before = whole
        if whole == text and len(self._tokens) - self._window > 2 * CONTEXT_TOKENS:
            self._window = len(self._tokens) - CONTEXT_TOKENS
            self._before = self.decode(self._tokens[self._window :])
        found = [place for place in (self._held.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self._held, self.stopped = self._held[: min(found)], True

    def delta(self) -> TextDelta:
        """What stands for good since the last time."""
        return self._tell(len(self._held) - self._may_begin_stop())

    def rest(self) -> TextDelta:
        """All that is left, when no token comes any more."""
        if not self.stopped and self._tokens:
            self._held += self.decode(self._tokens[self._window :])[len(self._before) :]
            found = [place for place in (self._held.find(s) for s in self.stop) if place >= 0]
            self._held = self._held[: min(found)] if found else self._held
        delta = self._tell(len(self._held))
        # Tokens without text of their own at the very end; not those that were cut off.
        left = () if self.stopped else tuple(score for _, score in self._scores)
        self._scores = []
        return TextDelta(delta.text, (*delta.scores, *left))

    def _tell(self, count: int) -> TextDelta:
        text, self._held = self._held[:count], self._held[count:]
        self._told += len(text)
        done = [score for start, score in self._scores if start < self._told]
        if self._held:
            # The last of them may go on in what is held.
            done = done[:-1]
        self._scores = self._scores[len(done) :]
        return TextDelta(text, tuple(done))

    def _may_begin_stop(self) -> int:
        """Characters at the end of what is held that could begin a stop text."""
        most = max((len(stop) for stop in self.stop), default=1) - 1
        for count in range(min(most, len(self._held)), 0, -1):
            end = self._held[-count:]
            if any(stop.startswith(end) for stop in self.stop):
                return count
        return 0
