"""Events of an engine as answers of OpenAI's API.

Each event becomes one chunk of a stream; a whole answer is the sum of its chunks, so that
both always say the same.
"""

from __future__ import annotations

import codecs
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from laura.engine.detokenizer import Score, TextDelta
from laura.serve.context import RequestContext
from laura.serve.engines import Ended, Event, PromptScores
from laura.serve.prompts import TokenTexts
from laura.serve.schemas import (
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChoiceDelta,
    ChoiceLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    CompletionUsage,
    FinishReason,
    PromptTokensDetails,
    TokenLogprob,
    TopLogprob,
)

# What OpenAI writes for a probability that is no number above it; JSON has no infinities.
LEAST_LOGPROB = -9999.0

Chunk = ChatCompletionChunk | Completion


class Serializer(ABC):
    """How the events of one request are written.

    Args:
        heading: What every chunk begins with: id, created, model, system_fingerprint.
        texts: What tokens stand for.
        choices: How many answers there are.
        logprobs: Whether log-probabilities are told.
    """

    _chunk_type: type[ChatCompletionChunk] | type[Completion]

    def __init__(
        self, heading: dict[str, Any], texts: TokenTexts, choices: int, logprobs: bool
    ) -> None:
        self._heading, self._texts = heading, texts
        self._choices, self._logprobs = choices, logprobs

    @abstractmethod
    def begin(self) -> list[Chunk]:
        """Chunks that come before any event."""

    @abstractmethod
    def chunk(self, index: int, event: Event) -> Chunk | None:
        """The chunk of an event of sequence `index`, if it has one."""

    @abstractmethod
    def whole(
        self, chunks: Sequence[Chunk], context: RequestContext
    ) -> ChatCompletion | Completion:
        """All chunks as one answer."""

    def usage(self, context: RequestContext) -> Chunk:
        """The chunk that says what was used, with no choice beside it."""
        return self._chunk_type(**self._heading, choices=[], usage=_usage(context))

    def _by_choice(self, chunks: Sequence[Chunk]) -> list[list[Any]]:
        parts = [part for chunk in chunks for part in chunk.choices]
        return [[one for one in parts if one.index == index] for index in range(self._choices)]


class ChatSerializer(Serializer):
    """Answers to a conversation."""

    _chunk_type = ChatCompletionChunk

    def begin(self) -> list[Chunk]:
        """The role of each answer."""
        role = ChoiceDelta(role="assistant", content="")
        return [self._chunk(index, role) for index in range(self._choices)]

    def chunk(self, index: int, event: Event) -> Chunk | None:
        """New text, or how the answer ended."""
        if isinstance(event, TextDelta):
            scores = self._scores(event.scores) if self._logprobs else None
            return self._chunk(index, ChoiceDelta(content=event.text), logprobs=scores)
        if isinstance(event, Ended):
            return self._chunk(index, ChoiceDelta(), finish_reason=_finish(event))
        return None

    def whole(self, chunks: Sequence[Chunk], context: RequestContext) -> ChatCompletion:
        """One message an answer."""
        choices = []
        for index, parts in enumerate(self._by_choice(chunks)):
            text = "".join(one.delta.content or "" for one in parts)
            scores = [one for part in parts if part.logprobs for one in part.logprobs.content]
            choices.append(
                ChatChoice(
                    index=index,
                    message=AssistantMessage(content=text),
                    logprobs=ChoiceLogprobs(content=scores) if self._logprobs else None,
                    finish_reason=_last_finish(parts),
                )
            )
        return ChatCompletion(**self._heading, choices=choices, usage=_usage(context))

    def _chunk(self, index: int, delta: ChoiceDelta, **more: Any) -> ChatCompletionChunk:
        choice = ChunkChoice(index=index, delta=delta, **more)
        return ChatCompletionChunk(**self._heading, choices=[choice])

    def _scores(self, tokens: Sequence[Score]) -> ChoiceLogprobs:
        return ChoiceLogprobs(
            content=[
                TokenLogprob(
                    **vars(self._top(token, logprob)),
                    top_logprobs=[self._top(*one) for one in rivals],
                )
                for token, logprob, rivals in tokens
            ]
        )

    def _top(self, token_id: int, logprob: float | None) -> TopLogprob:
        found = self._texts.bytes_of(token_id)
        return TopLogprob(
            token=self._texts.text_of(token_id),
            logprob=_nats(logprob),
            bytes=None if found is None else list(found),
        )


class CompletionSerializer(Serializer):
    """Completions of prompts, with the prompts themselves before them where echo is wanted.

    Args:
        heading, texts, choices, logprobs: As of `Serializer`.
        echoes: The text each answer begins with; None without echo.
    """

    _chunk_type = Completion

    def __init__(
        self,
        heading: dict[str, Any],
        texts: TokenTexts,
        choices: int,
        logprobs: bool,
        echoes: Sequence[str] | None,
    ) -> None:
        super().__init__(heading, texts, choices, logprobs)
        self._echoes = echoes
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
            return self._chunk(index, self._echoes[index], event.scores)
        if isinstance(event, TextDelta):
            self._scored[index] += len(event.scores)
            return self._chunk(index, event.text, event.scores)
        last = self._chunk(index, "", (), _finish(event))
        if self._echoes is not None and self._logprobs:
            # Whoever asks for echo, as lm-eval does, tells the prompt's tokens from the new
            # ones by their number: an end token, which has no score, counts too.
            missing = event.new_tokens - self._scored[index]
            last.choices[0].logprobs = CompletionLogprobs(
                tokens=[""] * missing,
                token_logprobs=[None] * missing,
                top_logprobs=[None] * missing,
                text_offset=[self._offsets[index].end] * missing,
            )
        return last

    def whole(self, chunks: Sequence[Chunk], context: RequestContext) -> Completion:
        """One text an answer."""
        choices = []
        for index, parts in enumerate(self._by_choice(chunks)):
            scores = [part.logprobs for part in parts if part.logprobs]
            joined = {
                name: [one for part in scores for one in getattr(part, name)]
                for name in CompletionLogprobs.model_fields
            }
            choices.append(
                CompletionChoice(
                    index=index,
                    text="".join(part.text for part in parts),
                    logprobs=CompletionLogprobs(**joined) if self._logprobs else None,
                    finish_reason=_last_finish(parts),
                )
            )
        return Completion(**self._heading, choices=choices, usage=_usage(context))

    def _chunk(
        self,
        index: int,
        text: str,
        tokens: Sequence[Score] = (),
        finish: FinishReason | None = None,
    ) -> Completion:
        scores = self._scores(tokens, text, self._offsets[index]) if self._logprobs else None
        choice = CompletionChoice(index=index, text=text, logprobs=scores, finish_reason=finish)
        return Completion(**self._heading, choices=[choice])

    def _scores(self, tokens: Sequence[Score], text: str, offsets: Offsets) -> CompletionLogprobs:
        return CompletionLogprobs(
            tokens=[self._texts.text_of(token) for token, _, _ in tokens],
            token_logprobs=[
                None if logprob is None else _nats(logprob) for _, logprob, _ in tokens
            ],
            top_logprobs=[self._tops(*one) for one in tokens],
            text_offset=offsets.add([self._texts.bytes_of(token) for token, _, _ in tokens], text),
        )

    def _tops(
        self, token: int, logprob: float | None, rivals: Sequence[tuple[int, float]]
    ) -> dict[str, float] | None:
        """The most likely tokens in this place, and the one that stands there."""
        if logprob is None:
            return None
        told: dict[str, float] = {}
        for one, nats in (*rivals, (token, logprob)):
            # The likelier of two tokens that are written alike.
            told.setdefault(self._texts.text_of(one), _nats(nats))
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


def _usage(context: RequestContext) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=context.prompt_tokens,
        completion_tokens=context.new_tokens,
        total_tokens=context.prompt_tokens + context.new_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=context.cached_tokens),
    )


def _nats(logprob: float | None) -> float:
    if logprob is None or not math.isfinite(logprob):
        return LEAST_LOGPROB
    return max(logprob, LEAST_LOGPROB)


def _finish(ended: Ended) -> FinishReason:
    # "cancelled" never comes here: `Generation.next` makes an error of it.
    return "length" if ended.finish == "length" else "stop"


def _last_finish(parts: Sequence[ChunkChoice | CompletionChoice]) -> FinishReason:
    return next((one.finish_reason for one in reversed(parts) if one.finish_reason), "stop")
