"""One sequence on its way through vLLM."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from laura.engine.detokenizer import Detokenizer, Score, TextDelta
from laura.serve.engines import (
    AdapterFiles,
    Ask,
    Ended,
    EngineError,
    Event,
    Finish,
    NewText,
    PromptScores,
    TokenScore,
)
from laura.serve.vllm_client import BASE, Piece, VllmClient, VllmFault
from laura.serve.vllm_places import Place

# From the end of a connection until vLLM has noticed it.
NOTICE_SECONDS = 0.2


@dataclass(eq=False)
class Job:
    """A sequence that waits or runs.

    Attributes:
        ask: What is wanted.
        adapter: Its adapter's files.
        group: Sequences of different groups do not share a batch.
        place: Its adapter's place in memory, from when it runs.
        task: Its work, from when it runs.
        blocked_since: Since when only a place for its adapter is missing; 0 for not.
        events: What its reader has not read yet.
        over: Whether its last event is among them, or was read.
        new: New tokens so far.
        cached: Tokens of the prompt that were not computed anew.
    """

    ask: Ask
    adapter: AdapterFiles | None
    group: str
    place: Place | None = None
    task: asyncio.Task[None] | None = None
    blocked_since: float = 0.0
    events: asyncio.Queue[Event | EngineError] = field(default_factory=asyncio.Queue)
    over: bool = False
    new: int = 0
    cached: int = 0

    @property
    def model(self) -> str:
        """What vLLM calls who answers."""
        return BASE if self.place is None else self.place.model

    def tell(self, event: Event | EngineError) -> None:
        """Give the reader an event; nothing comes after the last one."""
        if not self.over:
            self.over = isinstance(event, Ended | EngineError)
            self.events.put_nowait(event)

    async def answer(
        self,
        client: VllmClient,
        salt: str,
        tokenizer: Any,
        end_ids: frozenset[int],
        count: Callable[[Job, int], None],
    ) -> bool:
        """Have it answered and tell the reader.

        Args:
            client: Speaks to the server.
            salt: Prompts share a cache only under the same one.
            tokenizer: The base's.
            end_ids: Tokens that end an answer.
            count: Told how many tokens have come.

        Returns:
            Whether vLLM has ended by itself, so that nothing of it goes on.

        Raises:
            VllmFault: vLLM refuses, breaks off or has gone.
        """
        ask, ends = self.ask, frozenset() if self.ask.ignore_end else end_ids
        text = Detokenizer(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), ask.stop)
        stopped, ended = False, False
        async with contextlib.aclosing(_pieces(client, self.model, ask, salt, ends)) as pieces:
            async for piece in pieces:
                if piece.prompt:
                    self.tell(PromptScores(piece.prompt))
                self.cached, ended = max(self.cached, piece.cached or 0), ended or piece.ended
                taken = 0
                for token in piece.tokens[: ask.max_new_tokens - self.new]:
                    if stopped:
                        break
                    taken += 1
                    stopped = token.token_id in ends
                    if not stopped:
                        text.add(token.token_id, self._score(token))
                        stopped = text.stopped
                self.new += taken
                count(self, taken)
                self._tell(text.delta())
                if stopped and not ended:
                    break
        self._tell(text.rest())
        self.end("stop" if stopped or self.new < ask.max_new_tokens else "length")
        return ended

    def end(self, finish: Finish) -> None:
        """Tell the reader that this is all."""
        self.tell(Ended(finish, len(self.ask.prompt), self.new, self.cached))

    def _score(self, token: TokenScore) -> Score | None:
        wanted = self.ask.top_logprobs is not None
        return (token.token_id, token.logprob, token.top) if wanted else None

    def _tell(self, told: TextDelta) -> None:
        if told.text or told.scores:
            self.tell(NewText(told.text, tuple(TokenScore(*score) for score in told.scores)))


async def _pieces(
    client: VllmClient, model: str, ask: Ask, salt: str, ends: frozenset[int]
) -> AsyncGenerator[Piece, None]:
    """The prompt's scores, if they are wanted, and the answer as it grows."""
    if ask.prompt_logprobs:
        piece = await client.score(model, ask, salt)
        if ask.max_new_tokens <= len(piece.tokens):
            yield piece
            return
        yield Piece(prompt=piece.prompt)
    async with contextlib.aclosing(client.stream(model, ask, salt, ends)) as pieces:
        async for piece in pieces:
            yield piece


async def settled(client: VllmClient, model: str) -> None:
    """Returns when vLLM works no more on what was just cancelled.

    It drops a request between two steps, after it has noticed that the connection is closed;
    a question asked later is answered later.
    """
    await asyncio.sleep(NOTICE_SECONDS)
    with contextlib.suppress(VllmFault):
        async with contextlib.aclosing(
            client.stream(model, Ask("", "", (0,), 1), "settled")
        ) as pieces:
            async for _ in pieces:
                pass
