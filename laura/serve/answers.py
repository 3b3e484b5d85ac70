"""Events of an engine as answers of OpenAI's API.

Each event becomes one chunk of a stream; a whole answer is the sum of its chunks, so that
both always say the same.
"""

from __future__ import annotations

import codecs
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from laura.serve.chats import TokenTexts
from laura.serve.engines import Ended, Event, NewText, PromptScores, TokenScore
from laura.serve.replies import (
    AnswerMessage,
    CachedTokens,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatReply,
    ChosenToken,
    CompletionChoice,
    CompletionLogprobs,
    CompletionReply,
    Delta,
    FinishReason,
    TopToken,
    Usage,
)
from laura.serve.visits import Visit

# What OpenAI writes for a probability that is no number above it; JSON has no infinities.
LEAST_LOGPROB = -9999.0

Chunk = ChatChunk | CompletionReply


@dataclass(frozen=True)
class Heading:
    """What every answer and every chunk begins with."""

    id: str
    model: str
    system_fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))


class Form(Protocol):
    """How the events of one request are written."""

    def begin(self) -> list[Chunk]:
        """Chunks that come before any event."""

    def chunk(self, index: int, event: Event) -> Chunk | None:
        """The chunk of an event of sequence `index`, if it has one."""

    def usage(self, visit: Visit) -> Chunk:
        """The chunk that tells what was used."""

    def whole(self, chunks: Sequence[Chunk], visit: Visit) -> ChatReply | CompletionReply:
        """All chunks as one answer."""


class ChatForm:
    """Answers to a conversation.

    Args:
        heading: What every chunk begins with.
        texts: What tokens stand for.
        choices: How many answers there are.
        logprobs: Whether log-probabilities are told.
    """

    def __init__(self, heading: Heading, texts: TokenTexts, choices: int, logprobs: bool) -> None:
        self._heading, self._texts = heading, texts
        self._choices, self._logprobs = choices, logprobs

    def begin(self) -> list[Chunk]:
        """The role of each answer."""
        return [
            self._chunk(ChatChunkChoice(index=index, delta=Delta(role="assistant", content="")))
            for index in range(self._choices)
        ]

    def chunk(self, index: int, event: Event) -> Chunk | None:
        """New text, or how the answer ended."""
        if isinstance(event, NewText):
            scores = self._scores(event.tokens) if self._logprobs else None
            delta = Delta(content=event.text)
            return self._chunk(ChatChunkChoice(index=index, delta=delta, logprobs=scores))
        if isinstance(event, Ended):
            finish = _finish(event)
            return self._chunk(ChatChunkChoice(index=index, delta=Delta(), finish_reason=finish))
        return None

    def usage(self, visit: Visit) -> Chunk:
        """What was used, with no choice beside it."""
        return ChatChunk(**vars(self._heading), choices=[], usage=_usage(visit))

    def whole(self, chunks: Sequence[Chunk], visit: Visit) -> ChatReply:
        """One message an answer."""
        choices = []
        parts = [one for chunk in chunks if isinstance(chunk, ChatChunk) for one in chunk.choices]
        for index in range(self._choices):
            mine = [part for part in parts if part.index == index]
            scores = [one for part in mine if part.logprobs for one in part.logprobs.content]
            choices.append(
                ChatChoice(
                    index=index,
                    message=AnswerMessage(content="".join(one.delta.content or "" for one in mine)),
                    logprobs=ChatLogprobs(content=scores) if self._logprobs else None,
                    finish_reason=_last_finish(mine),
                )
            )
        return ChatReply(**vars(self._heading), choices=choices, usage=_usage(visit))

    def _chunk(self, choice: ChatChunkChoice) -> ChatChunk:
        return ChatChunk(**vars(self._heading), choices=[choice])

    def _scores(self, tokens: Sequence[TokenScore]) -> ChatLogprobs:
        return ChatLogprobs(
            content=[
                ChosenToken(
                    **vars(self._top(token.token_id, token.logprob)),
                    top_logprobs=[self._top(*one) for one in token.top],
                )
                for token in tokens
            ]
        )

    def _top(self, token_id: int, logprob: float | None) -> TopToken:
        found = self._texts.bytes_of(token_id)
        return TopToken(
            token=self._texts.text_of(token_id),
            logprob=_nats(logprob),
            bytes=None if found is None else list(found),
        )


class CompletionForm:
    """Completions of prompts, with the prompts themselves before them where echo is wanted.

    Args:
        heading: What every chunk begins with.
        texts: What tokens stand for.
        choices: How many answers there are.
        logprobs: Whether log-probabilities are told.
        echoes: The text each answer begins with; None without echo.
    """

    def __init__(
        self,
        heading: Heading,
        texts: TokenTexts,
        choices: int,
        logprobs: bool,
        echoes: Sequence[str] | None,
    ) -> None:
        self._heading, self._texts = heading, texts
        self._choices, self._logprobs, self._echoes = choices, logprobs, echoes
        self._offsets = [Offsets() for _ in range(choices)]
        self._scored = [0] * choices

    def begin(self) -> list[Chunk]:
        """The echoes, where they need not wait for their scores."""
        if self._echoes is None or self._logprobs:
            return []
        return [self._chunk(index, text) for index, text in enumerate(self._echoes)]

    def chunk(self, index: int, event: Event) -> Chunk | None:
        """The prompt's scores, new text, or how the answer ended."""
        if isinstance(event, PromptScores):
            if self._echoes is None or not self._logprobs:
                return None
            return self._chunk(index, self._echoes[index], event.tokens)
        if isinstance(event, NewText):
            self._scored[index] += len(event.tokens)
            return self._chunk(index, event.text, event.tokens)
        last = self._chunk(index, "", (), _finish(event))
        if self._echoes is not None and last.choices[0].logprobs is not None:
            # Whoever asks for echo, as lm-eval does, tells the prompt's tokens from the new
            # ones by their number: an end token, which has no score, counts too.
            missing = event.new_tokens - self._scored[index]
            last.choices[0].logprobs = _unscored(missing, self._offsets[index].end)
        return last

    def usage(self, visit: Visit) -> Chunk:
        """What was used, with no choice beside it."""
        return CompletionReply(**vars(self._heading), choices=[], usage=_usage(visit))

    def whole(self, chunks: Sequence[Chunk], visit: Visit) -> CompletionReply:
        """One text an answer."""
        choices = []
        parts = [one for c in chunks if isinstance(c, CompletionReply) for one in c.choices]
        for index in range(self._choices):
            mine = [part for part in parts if part.index == index]
            choices.append(
                CompletionChoice(
                    index=index,
                    text="".join(part.text for part in mine),
                    logprobs=_joined([part.logprobs for part in mine if part.logprobs])
                    if self._logprobs
                    else None,
                    finish_reason=_last_finish(mine),
                )
            )
        return CompletionReply(**vars(self._heading), choices=choices, usage=_usage(visit))

    def _chunk(
        self,
        index: int,
        text: str,
        tokens: Sequence[TokenScore] = (),
        finish: FinishReason | None = None,
    ) -> CompletionReply:
        scores = self._scores(tokens, text, self._offsets[index]) if self._logprobs else None
        choice = CompletionChoice(index=index, text=text, logprobs=scores, finish_reason=finish)
        return CompletionReply(**vars(self._heading), choices=[choice])

    def _scores(
        self, tokens: Sequence[TokenScore], text: str, offsets: Offsets
    ) -> CompletionLogprobs:
        pieces = [self._texts.bytes_of(token.token_id) for token in tokens]
        return CompletionLogprobs(
            tokens=[self._texts.text_of(token.token_id) for token in tokens],
            token_logprobs=[
                None if token.logprob is None else _nats(token.logprob) for token in tokens
            ],
            top_logprobs=[self._tops(token) for token in tokens],
            text_offset=offsets.add(pieces, text),
        )

    def _tops(self, token: TokenScore) -> dict[str, float] | None:
        """The most likely tokens in this place, and the one that stands there."""
        if token.logprob is None:
            return None
        told: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            # The likelier of two tokens that are written alike.
            told.setdefault(self._texts.text_of(token_id), _nats(logprob))
        return told


class Offsets:
    """Where each token of a growing text begins in it, in characters.

    A token that completes a character begins where the character does; one that is not
    in the text, such as a begin token, where the next one does.
    """

    def __init__(self) -> None:
        self._text, self._place = "", 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def end(self) -> int:
        """Length of the text."""
        return len(self._text)

    def add(self, pieces: Sequence[bytes | None], text: str) -> list[int]:
        """Where the next tokens begin.

        Args:
            pieces: Bytes of each; None where they are not known.
            text: What is new of the text. Tokens may come after the text that they are of.
        """
        self._text += text
        places = []
        for piece in pieces:
            places.append(self._place)
            letters = self._decoder.decode(piece or b"")
            # Some tokenizers write a space before a text's first word that the text has not.
            for found in (letters, letters.removeprefix(" ")):
                if self._text.startswith(found, self._place):
                    self._place += len(found)
                    break
        return places


def _joined(parts: Sequence[CompletionLogprobs]) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=[one for part in parts for one in part.tokens],
        token_logprobs=[one for part in parts for one in part.token_logprobs],
        top_logprobs=[one for part in parts for one in part.top_logprobs],
        text_offset=[one for part in parts for one in part.text_offset],
    )


def _unscored(count: int, place: int) -> CompletionLogprobs:
    """Entries of tokens that have neither text nor score."""
    return CompletionLogprobs(
        tokens=[""] * count,
        token_logprobs=[None] * count,
        top_logprobs=[None] * count,
        text_offset=[place] * count,
    )


def _usage(visit: Visit) -> Usage:
    return Usage(
        prompt_tokens=visit.prompt_tokens,
        completion_tokens=visit.new_tokens,
        total_tokens=visit.prompt_tokens + visit.new_tokens,
        prompt_tokens_details=CachedTokens(cached_tokens=visit.cached_tokens),
    )


def _nats(logprob: float | None) -> float:
    usable = logprob is not None and math.isfinite(logprob)
    return max(logprob, LEAST_LOGPROB) if usable and logprob is not None else LEAST_LOGPROB


def _finish(ended: Ended) -> FinishReason:
    # "cancelled" never comes here: `Work.next` makes an error of it.
    return "length" if ended.finish == "length" else "stop"


def _last_finish(parts: Sequence[ChatChunkChoice | CompletionChoice]) -> FinishReason:
    return next((one.finish_reason for one in reversed(parts) if one.finish_reason), "stop")
