"""Events of an engine as answers of OpenAI's API: whole, or as server-sent events while they come.

Each event becomes one chunk of a stream; a whole answer is the sum of its chunks, so that
both always say the same.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from laura.engine.detokenizer import Score, TextDelta
from laura.serve.context import ClientGone, RequestContext
from laura.serve.engines import (
    AdapterFiles,
    Begun,
    Ended,
    EngineError,
    Event,
    PromptScores,
    SequenceRequest,
    ServingEngine,
)
from laura.serve.prompts import TokenTexts
from laura.serve.schemas import (
    ApiError,
    AssistantMessage,
    CalledFunction,
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
    ToolCallDelta,
    TopLogprob,
    of_engine,
)
from laura.serve.tools import CallPart, CallScanner

# What OpenAI writes for a probability that is no number above it; JSON has no infinities.
LEAST_LOGPROB = -9999.0

HEARTBEAT = b": still working\n\n"

T = TypeVar("T")
Chunk = ChatCompletionChunk | Completion
Told = tuple[int, Event]
"""Which sequence, counted from 0, and what happened to it."""


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
        return self._chunk_type(**self._heading, choices=[], usage=usage_of(context))

    def _by_choice(self, chunks: Sequence[Chunk]) -> list[list[Any]]:
        parts = [part for chunk in chunks for part in chunk.choices]
        return [[one for one in parts if one.index == index] for index in range(self._choices)]


class ChatSerializer(Serializer):
    """Answers to a conversation.

    Args:
        heading, texts, choices, logprobs: As of `Serializer`.
        scanners: Find the calls in each answer; none where no tools may be called.
    """

    _chunk_type = ChatCompletionChunk

    def __init__(
        self,
        heading: dict[str, Any],
        texts: TokenTexts,
        choices: int,
        logprobs: bool,
        scanners: Sequence[CallScanner] = (),
    ) -> None:
        super().__init__(heading, texts, choices, logprobs)
        self._scanners = scanners

    def begin(self) -> list[Chunk]:
        """The role of each answer."""
        role = ChoiceDelta(role="assistant", content="")
        return [self._chunk(index, role) for index in range(self._choices)]

    def chunk(self, index: int, event: Event) -> Chunk | None:
        """New text, or how the answer ended."""
        scanner = self._scanners[index] if self._scanners else None
        if isinstance(event, TextDelta):
            scores = self._scores(event.scores) if self._logprobs else None
            delta = ChoiceDelta(content=event.text)
            if scanner is not None:
                delta = _delta(scanner.feed(event.text))
                if scores is None and delta == ChoiceDelta():
                    return None
            return self._chunk(index, delta, logprobs=scores)
        if isinstance(event, Ended):
            finish, delta = _finish(event), ChoiceDelta()
            if scanner is not None:
                delta = _delta(scanner.rest())
                finish = "tool_calls" if scanner.called and finish == "stop" else finish
            return self._chunk(index, delta, finish_reason=finish)
        return None

    def whole(self, chunks: Sequence[Chunk], context: RequestContext) -> ChatCompletion:
        """One message an answer."""
        choices = []
        for index, parts in enumerate(self._by_choice(chunks)):
            text = "".join(one.delta.content or "" for one in parts)
            calls = _calls(one for part in parts for one in part.delta.tool_calls or ())
            scores = [one for part in parts if part.logprobs for one in part.logprobs.content]
            choices.append(
                ChatChoice(
                    index=index,
                    message=AssistantMessage(
                        content=text or (None if calls else ""), tool_calls=calls
                    ),
                    logprobs=ChoiceLogprobs(content=scores) if self._logprobs else None,
                    finish_reason=_last_finish(parts),
                )
            )
        return ChatCompletion(**self._heading, choices=choices, usage=usage_of(context))

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


def _delta(pieces: Iterable[str | CallPart]) -> ChoiceDelta:
    """What was found in a piece of an answer."""
    text, calls = "", dict[int, ToolCallDelta]()
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
        elif piece.index in calls:
            calls[piece.index].function.arguments += piece.arguments
        else:
            function = CalledFunction(name=piece.name, arguments=piece.arguments)
            calls[piece.index] = ToolCallDelta(
                index=piece.index,
                id=piece.id,
                type="function" if piece.id is not None else None,
                function=function,
            )
    return ChoiceDelta(content=text or None, tool_calls=list(calls.values()) or None)


def _calls(deltas: Iterable[ToolCallDelta]) -> list[ToolCallDelta] | None:
    """The calls that deltas add up to, if there are any."""
    calls: list[ToolCallDelta] = []
    for one in deltas:
        if one.id is not None:
            calls.append(one.model_copy(update={"index": None}, deep=True))
        else:
            calls[-1].function.arguments += one.function.arguments
    return calls or None


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
        return Completion(**self._heading, choices=choices, usage=usage_of(context))

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


def usage_of(context: RequestContext) -> CompletionUsage:
    """What a request has used so far."""
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


class Generation:
    """The sequences of one request while an engine works on them, merged into one series.

    Args:
        context: Whose it is; told of every event.
        serializer: How they are written.
        seconds: All must be answered within this time.
    """

    def __init__(self, context: RequestContext, serializer: Serializer, seconds: float) -> None:
        self.context, self.serializer, self._seconds = context, serializer, seconds
        self.deadline = asyncio.get_running_loop().time() + seconds
        self._told: asyncio.Queue[tuple[int, Event | EngineError]] = asyncio.Queue()
        self._held: Told | None = None
        self._cancels: list[Callable[[], None]] = []
        self._open = 0

    def begin(
        self,
        engine: ServingEngine,
        requests: Iterable[SequenceRequest],
        adapter: AdapterFiles | None,
    ) -> None:
        """Put sequences into an engine's queue.

        Raises:
            ApiError: it does not take one of them; then this is to be closed.
        """
        before: tuple[int, ...] = ()
        try:
            for request in requests:
                # Further answers to a prompt do not read it again.
                reads = 0 if request.prompt is before else len(request.prompt)
                before = request.prompt
                tell = partial(self._tell, self._open, reads)
                self._cancels.append(engine.submit(request, adapter, tell))
                self._open += 1
        except EngineError as error:
            raise of_engine(error) from error

    async def next(self, seconds: float | None = None) -> Told | None:
        """The next event of any sequence; None when all have ended, at once.

        Args:
            seconds: Longest time to wait.

        Raises:
            TimeoutError: nothing happened for so long.
            ApiError: the engine failed, the answer was cancelled, or took too long.
        """
        if self._held is not None:
            told, self._held = self._held, None
            return told
        if not self._open:
            return None
        left = self.deadline - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left if seconds is None else min(left, seconds)):
                index, event = await self._told.get()
        except TimeoutError:
            if seconds is not None and seconds < left:
                raise
            raise ApiError(
                504,
                f"the answer took longer than {self._seconds:g} seconds; ask for fewer tokens, "
                "or try again when the server is less busy",
                "timeout",
            ) from None
        if isinstance(event, EngineError):
            raise of_engine(event) from event
        if isinstance(event, Ended):
            self._open -= 1
            if event.finish == "cancelled":
                raise ApiError(
                    503,
                    "the answer was broken off because the server is stopping; try again",
                    "stopping",
                    retry_after=1,
                )
        return index, event

    async def wait_for_first(self, seconds: float) -> None:
        """Wait until something happens, at most so long; `next` gives it once more.

        Raises:
            ApiError: as of `next`; what fails at once can still be answered with a status.
        """
        try:
            self._held = await self.next(seconds)
        except TimeoutError:
            return

    async def chunks(self, heartbeat_seconds: float | None = None) -> AsyncGenerator[Chunk | None]:
        """The chunks of the answer, and None whenever nothing has happened for so long.

        Raises:
            ApiError: as of `next`.
        """
        for first in self.serializer.begin():
            yield first
        while True:
            try:
                told = await self.next(heartbeat_seconds)
            except TimeoutError:
                yield None
                continue
            if told is None:
                return
            if (chunk := self.serializer.chunk(*told)) is not None:
                yield chunk

    async def whole(self) -> ChatCompletion | Completion:
        """The answer when all of it is there.

        Raises:
            ApiError: as of `next`.
        """
        chunks = [one async for one in self.chunks() if one is not None]
        return self.serializer.whole(chunks, self.context)

    def close(self) -> None:
        """Cancel whatever has not ended, and free its places. May be called twice."""
        for cancel in self._cancels:
            cancel()

    def _tell(self, index: int, reads: int, event: Begun | Event | EngineError) -> None:
        if isinstance(event, Begun):
            return
        # What was computed counts, also where nobody has waited for it.
        if not isinstance(event, EngineError):
            self.context.count(index, reads, event)
        self._told.put_nowait((index, event))


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Do work for a client, and drop it when the client goes away.

    Args:
        receive: Of a request whose body has been read.
        work: Cancelled when the client is gone.

    Raises:
        ClientGone: it is.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    doing, watching = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait({doing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientGone
    finally:
        for task in (doing, watching):
            task.cancel()
        await asyncio.gather(doing, watching, return_exceptions=True)


class EventStream(Response):
    """Chunks as server-sent events, while the client listens.

    Args:
        generation: What is told; closed at the end, whatever happens.
        wants_usage: Whether the last chunk says what was used.
        wants_usage_so_far: Whether every chunk says what was used until then.
        heartbeat_seconds: A comment is sent when nothing happened for so long: it keeps
            proxies from hanging up, and finds out that a client is gone.
        failed: Told of a mistake of ours.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        *,
        wants_usage: bool,
        wants_usage_so_far: bool,
        heartbeat_seconds: float,
        failed: Callable[[RequestContext, Exception], ApiError],
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._generation, self._wants_usage = generation, wants_usage
        self._wants_usage_so_far = wants_usage_so_far
        self._heartbeat, self._failed = heartbeat_seconds, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; raises `ClientGone` when nobody listens any more."""
        try:
            await while_there(receive, self._send_all(send))
        finally:
            self._generation.close()

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        try:
            # Who does not read what is sent must not hold a place for ever either.
            async with asyncio.timeout_at(self._generation.deadline + self._heartbeat):
                async with aclosing(self._pieces()) as pieces:
                    async for piece in pieces:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
        except (TimeoutError, OSError):
            raise ClientGone from None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self) -> AsyncGenerator[bytes]:
        generation, context = self._generation, self._generation.context
        try:
            async for chunk in generation.chunks(self._heartbeat):
                if chunk is not None and self._wants_usage_so_far:
                    chunk.usage = usage_of(context)
                yield HEARTBEAT if chunk is None else _data(chunk.model_dump_json())
            if self._wants_usage:
                yield _data(generation.serializer.usage(context).model_dump_json())
            yield _data("[DONE]")
        except Exception as error:
            yield _data(json.dumps(self._fault(error).body()))

    def _fault(self, error: Exception) -> ApiError:
        """What is told in the stream: the status has long been sent."""
        context = self._generation.context
        fault = error if isinstance(error, ApiError) else self._failed(context, error)
        context.refuse(fault)
        return fault


def _data(text: str) -> bytes:
    return b"data: " + text.encode() + b"\n\n"
