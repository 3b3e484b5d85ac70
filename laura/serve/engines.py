"""What the HTTP side asks of an engine, and what comes back. No torch.

The HTTP side knows tenants, keys and requests; an engine knows tokens, adapters and memory.
An engine runs in this process (`async_engine.py`), is another server (`vllm.py`) or several of
them (`pool.py`); nobody else can tell. One `SequenceRequest` is one sequence: a request with n = 3
is three of them, with seeds of their own.

Every call below is made from the event loop's thread; an engine that computes does so in a
thread or process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from laura.engine.detokenizer import Score, TextDelta
from laura.engine.requests import Grammar
from laura.results.errors import LauraError

Finish = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class SequenceRequest:
    """One sequence that is wanted.

    Attributes:
        id: Name of this sequence, unique while the server lives.
        tenant: Whose it is: fairness and the prefix cache go by tenant.
        priority: Share of the engine against other tenants while all wait; 1 is usual.
        adapter: Name in the library; None for the base.
        prompt: Token ids, at least one.
        max_new_tokens: Most new tokens; 0 only together with `prompt_logprobs`.
        temperature, top_p, top_k, seed: As in `models.requests.GenerateRequest`.
        stop: Texts that end the answer; they are cut off.
        top_logprobs: How many most likely tokens are told with each token, 0 for the
            token's own log-probability alone; None where none are wanted.
        prompt_logprobs: Whether the prompt's own log-probabilities are wanted.
        ignore_end: Whether an end token does not end the answer (for benchmarks).
        min_new_tokens: No end token is chosen before so many tokens; stop texts end it as ever.
        grammar: What the answer must be; None for anything. It ends where nothing can follow.
    """

    id: str
    tenant: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    priority: float = 1.0
    adapter: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    ignore_end: bool = False
    min_new_tokens: int = 0
    grammar: Grammar | None = None


@dataclass(frozen=True)
class Begun:
    """A sequence has left the queue and its prompt is being read.

    A gate before several engines must know: what was begun is charged, and who was in work when
    an engine died may have been the reason. Nobody else listens, and not every engine says it.
    """


@dataclass(frozen=True)
class PromptScores:
    """Scores of every token of the prompt, in order; comes once, before any text.

    Nothing comes before a prompt's first token, so it has no log-probability.
    """

    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Ended:
    """The last word on a sequence that ended in order.

    Attributes:
        finish: "stop" (a stop text or an end token), "length" or "cancelled".
        prompt_tokens: Tokens of the prompt.
        new_tokens: New tokens, those of the stop text or the end token included.
        cached_tokens: Tokens of the prompt that were not computed anew.
    """

    finish: Finish
    prompt_tokens: int
    new_tokens: int
    cached_tokens: int = 0


Event = PromptScores | TextDelta | Ended


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter whose files have been checked (`library.py`).

    Attributes:
        name: Name in the library.
        folder: Where its files are.
        digest: SHA-256 over its weights and configuration: other bytes are another adapter.
        rank: Largest rank of a module.
        bytes: Size of its weights on disk.
    """

    name: str
    folder: Path
    digest: str
    rank: int
    bytes: int


@dataclass(frozen=True)
class SlotState:
    """A LoRA slot: an adapter in the engine's memory."""

    adapter: str
    pinned: bool
    in_use: int
    bytes: int


@dataclass(frozen=True)
class EngineState:
    """What an engine is doing at this moment, for the page, the metrics and `/readyz`.

    Attributes:
        ready: Whether it answers.
        why_not: What is the matter, where it does not, or where a part of it does not.
        slots: Adapters in memory.
        slots_total: LoRA slots there are.
        running: Sequences in work, by tenant.
        waiting: Sequences that wait, by tenant.
        tokens_per_second: New tokens over the last ten seconds.
        memory_bytes: Of the weights, the adapters and the cache of keys and values.
        cache_tokens: Tokens that the cache of keys and values holds at the moment.
        drafted_tokens: Tokens that Laura's own engine drafted ahead since the start
            (engine/drafting.py).
        accepted_tokens: Those of them that were right and gone on from: steps that were saved.
        engines: Of a pool, each engine's own state, by its address.
    """

    ready: bool
    why_not: str = ""
    slots: tuple[SlotState, ...] = ()
    slots_total: int = 0
    running: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    tokens_per_second: float = 0.0
    memory_bytes: dict[str, int] = field(default_factory=dict)
    cache_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    engines: dict[str, EngineState] = field(default_factory=dict)


class EngineError(LauraError, RuntimeError):
    """A sequence cannot be answered.

    Args:
        message: For the client: what happened and what to do; names nobody else's things.
        kind: "full" (the queue is; try again), "gone" (the engine has stopped or died; try
            again), "adapter" (it cannot be loaded), "request" (it cannot be meant).
        retry_after: Seconds after which trying again makes sense, where it does.
    """

    def __init__(
        self,
        message: str,
        kind: Literal["full", "gone", "adapter", "request"],
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.kind, self.retry_after = kind, retry_after


Tell = Callable[[Begun | Event | EngineError], None]
"""Gets the events of a sequence in order, in the loop's thread; `Ended` or an error is the last.

One that is cancelled in work is told how far it came, one that still waited is told nothing."""


class ServingEngine(Protocol):
    """Answers sequences as they come, several at a time.

    Attributes:
        tokenizer: The base's tokenizer.
        context_tokens: Most tokens of prompt and answer together.
        fingerprint: Hash of the base's weights, as `laura.json` records it.
    """

    tokenizer: Any
    context_tokens: int
    fingerprint: str

    async def start(self) -> None:
        """Make ready to answer; returns when it is."""

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, finish what runs within the time, cancel the rest, free everything."""

    def submit(
        self, request: SequenceRequest, adapter: AdapterFiles | None, tell: Tell
    ) -> Callable[[], None]:
        """Take a sequence in; it stands in the queue when this returns.

        Args:
            request: What is wanted.
            adapter: The checked files of `request.adapter`; None for the base.
            tell: Gets its events.

        Returns:
            Cancels it and frees its place; nothing is told afterwards. Does nothing once it has
            ended.

        Raises:
            EngineError: it cannot be taken in.
        """

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        """Bring an adapter into memory now, and keep it there if `pin`; else it may leave again.

        Raises:
            EngineError: it does not fit the base, or every slot is in use or pinned.
        """

    async def unload(self, name: str) -> bool:
        """Free an adapter's slot when no sequence uses it; whether it had one."""

    def state(self) -> EngineState:
        """What it is doing; costs nothing."""
