"""Tenants' sequences before a model: what every engine does with them, and the one in this process.

`AsyncEngine` is what Laura's own engine and vLLM share: the queue, what cannot be meant, what a
step brought as events. Everything there runs in the event loop's thread, so nothing is locked.

`InProcess` computes in this process: one thread computes, the event loop decides.

    queue -> (adapter read from disk -> slot) -> row -> steps -> events

The loop's thread owns the queue, who runs and all events; the engine's thread owns the model
and all its memory. One awaits the other: between two steps the loop admits who waits, in fair
order, and whatever else is to be done with the model (an adapter loaded, a sequence dropped)
stands in the thread's own queue. So nothing is locked, and nothing waits for longer than a step.

A sequence whose adapter is not loaded yet lets others pass (`AdapterLoader`), and so does one whose
grammar is not compiled; one that has no
row yet does not, or a long one would wait for ever behind short ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from laura.engine.adapter_slots import Slot, Slots
from laura.engine.grammar import GrammarCompiler, Matcher
from laura.engine.model_runner import FusedRunner
from laura.engine.sampler import check_settings, draw_of
from laura.engine.scheduler import Scheduler, StepOutput, TokenSequence
from laura.models.device import cache_budget, keep_freed_memory, resolve_precision
from laura.models.encoding import Encoder
from laura.models.load import load_base
from laura.models.lora import LoraSettings
from laura.models.oft import with_turns
from laura.results.errors import AdapterError, GrammarError, UsageError
from laura.serve.engines import (
    AdapterFiles,
    Begun,
    Ended,
    EngineError,
    EngineState,
    Finish,
    PromptScores,
    SequenceRequest,
    SlotState,
    Tell,
)
from laura.serve.library import read_checked
from laura.serve.limits import FairQueue, QueueFull
from laura.serve.settings import EngineSettings

RATE_SECONDS = 10.0
RETRY_SECONDS = 5.0
# Adapters that are read but have no slot yet are held in memory besides.
MOST_READ_AHEAD = 4

Adapter = tuple[LoraSettings, Mapping[str, Tensor]]
Read = Callable[[AdapterFiles], Adapter]
Result = TypeVar("Result")


@dataclass(eq=False, kw_only=True)
class ServedSequence(TokenSequence):
    """A tenant's sequence, waiting or in work.

    Attributes:
        request: What is wanted.
        adapter: Its adapter's checked files; None for the base.
        tell: Gets its events.
        compiling: Its grammar's matcher, on the way.
    """

    request: SequenceRequest
    adapter: AdapterFiles | None
    tell: Tell
    compiling: Future[Matcher] | None = None

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.request.tenant


class AsyncEngine(ABC):
    """A `ServingEngine` but for the model.

    Args:
        tokenizer: The base's tokenizer.
        context_tokens: Most tokens of prompt and answer together.
        vocabulary: Tokens that the model has.
        fingerprint: Hash of the base's weights.
        max_rank: Highest rank of an adapter.
        most_waiting: Most sequences that wait; no tenant may take more than half of it.
    """

    def __init__(
        self,
        tokenizer: Any,
        context_tokens: int,
        vocabulary: int,
        fingerprint: str,
        *,
        max_rank: int,
        most_waiting: int,
    ) -> None:
        self.tokenizer, self.fingerprint = tokenizer, fingerprint
        self.context_tokens, self.vocabulary, self.max_rank = context_tokens, vocabulary, max_rank
        self._queue = FairQueue[ServedSequence](most_waiting, max(1, most_waiting // 2))
        self._running: dict[str, ServedSequence] = {}
        self._came: deque[tuple[float, int]] = deque()
        self._ready, self._why_not = False, "it is starting"

    def submit(
        self, request: SequenceRequest, adapter: AdapterFiles | None, tell: Tell
    ) -> Callable[[], None]:
        """See `ServingEngine.submit`."""
        if (request.adapter is None) != (adapter is None):
            raise ValueError("a request names an adapter exactly where its files are given")
        self._check(request)
        if adapter is not None:
            self._check_adapter(adapter)
        if not self._ready:
            raise self._gone()
        sequence = ServedSequence(
            request.tenant,
            request.prompt,
            request.max_new_tokens,
            draw=draw_of(request),
            stop=request.stop,
            top=request.top_logprobs,
            scores_prompt=request.prompt_logprobs,
            ignore_end=request.ignore_end,
            least=request.min_new_tokens,
            request=request,
            adapter=adapter,
            tell=tell,
        )
        try:
            cost = len(request.prompt) + request.max_new_tokens
            self._queue.put(sequence, request.tenant, request.priority, cost)
        except QueueFull as full:
            seconds = self._queue.seconds_until_room(self._tokens_per_second(), full.tenants_own)
            raise EngineError(str(full), "full", seconds) from None
        self._wake()
        return partial(self._cancel, sequence)

    def state(self) -> EngineState:
        """See `ServingEngine.state`."""
        return replace(
            self._figures(),
            ready=self._ready,
            why_not=self._why_not,
            running=dict(Counter(one.tenant for one in self._running.values())),
            waiting=self._queue.waiting(),
            tokens_per_second=self._tokens_per_second(),
        )

    @abstractmethod
    def _figures(self) -> EngineState:
        """Adapters and memory as they are."""

    @abstractmethod
    def _wake(self) -> None:
        """Begin what may begin: something has changed."""

    @abstractmethod
    def _drop(self, sequence: ServedSequence) -> None:
        """Compute no more of one that was given up."""

    @abstractmethod
    def _gone(self) -> EngineError:
        """What is told while there is no engine."""

    def _check(self, request: SequenceRequest) -> None:
        """Refuse what cannot be meant, before it stands in the queue.

        Raises:
            EngineError: kind "request", with every fault.
        """
        faults = []
        try:
            check_settings(request)
        except UsageError as error:
            faults.append(str(error))
        prompt, new = len(request.prompt), request.max_new_tokens
        least, most = 0 if request.prompt_logprobs else 1, self.context_tokens - prompt
        if not prompt:
            faults.append("the prompt is empty")
        elif not 0 <= min(request.prompt) <= max(request.prompt) < self.vocabulary:
            faults.append(f"token ids must be 0 to {self.vocabulary - 1}")
        if not least <= new <= most:
            faults.append(
                f"{new} new tokens were asked for after a prompt of {prompt}; the context has "
                f"{self.context_tokens} tokens, so allowed are {least} to {most}"
            )
        if not 0 <= (request.top_logprobs or 0) <= self.vocabulary:
            faults.append(f"top_logprobs must be 0 to {self.vocabulary}")
        if request.priority <= 0:
            faults.append("the priority must be above 0")
        if faults:
            raise EngineError("; ".join(faults), "request")

    def _check_adapter(self, adapter: AdapterFiles) -> None:
        """Refuse an adapter that no slot is large enough for.

        Raises:
            EngineError: kind "adapter".
        """
        if adapter.rank > self.max_rank:
            raise EngineError(
                f"adapter {adapter.name} has rank {adapter.rank}; this server takes at most "
                f"{self.max_rank}",
                "adapter",
            )

    def _refuse(self, sequence: ServedSequence, error: EngineError) -> None:
        """Send a waiting sequence away."""
        if self._queue.remove(sequence, sequence.tenant):
            sequence.tell(error)

    def _begun(self, sequence: ServedSequence) -> bool:
        """Take a sequence from the queue into work; False where it was given up meanwhile."""
        if not self._queue.remove(sequence, sequence.tenant):
            return False
        self._queue.charge(sequence.tenant, len(sequence.prompt))
        self._running[sequence.request.id] = sequence
        sequence.tell(Begun())
        return True

    def _take_in(self, outputs: Iterable[StepOutput]) -> None:
        """What a step brought, as events."""
        tokens = 0
        for output in outputs:
            one = output.sequence
            assert isinstance(one, ServedSequence)
            if one.request.id not in self._running:  # it was given up meanwhile
                continue
            tokens += 1
            self._queue.charge(one.tenant, 1)
            if output.prompt:
                one.tell(PromptScores(output.prompt))
            if output.delta.text or output.delta.scores:
                one.tell(output.delta)
            if output.finish:
                self._end(one, _ended(one, "length" if output.finish == "length" else "stop"))
            elif output.fault:
                what = f"the answer broke off: {output.fault}"
                self._end(one, EngineError(what, "adapter" if one.adapter else "request"))
        if tokens:
            self._came.append((time.monotonic(), tokens))

    def _end(self, sequence: ServedSequence, last: Ended | EngineError) -> None:
        """Tell a running sequence's last event."""
        del self._running[sequence.request.id]
        sequence.tell(last)
        # A place is free: who waits for it is looked at, also where nobody runs.
        self._wake()

    def _cancel(self, sequence: ServedSequence) -> None:
        """Forget a sequence, waiting or in work; what was computed of it is told."""
        if not self._queue.remove(sequence, sequence.tenant):
            if self._running.pop(sequence.request.id, None) is None:
                return
            self._drop(sequence)
            sequence.tell(_ended(sequence, "cancelled"))
        self._wake()

    def _send_away(self) -> None:
        """Nobody waits any more."""
        for one in list(self._queue.in_order()):
            self._refuse(one, self._gone())

    def _break_off(self, in_order: bool) -> None:
        """Nothing runs any more: it was cancelled in order, or the engine has gone."""
        for one in list(self._running.values()):
            self._end(one, _ended(one, "cancelled") if in_order else self._gone())

    def _tokens_per_second(self) -> float:
        """New tokens, over the last ten seconds."""
        begin = time.monotonic() - RATE_SECONDS
        while self._came and self._came[0][0] < begin:
            self._came.popleft()
        return sum(tokens for _, tokens in self._came) / RATE_SECONDS


def _ended(sequence: ServedSequence, finish: Finish) -> Ended:
    return Ended(finish, len(sequence.prompt), len(sequence.tokens), sequence.cached)


def call(loop: asyncio.AbstractEventLoop, work: Callable[..., object], *given: object) -> None:
    """Have something done in a loop, from any thread; nothing happens if it is closed."""
    try:
        loop.call_soon_threadsafe(work, *given)
    except RuntimeError:  # closed: nobody listens any more
        return


class InProcess(AsyncEngine):
    """A `ServingEngine` in this process.

    Args:
        make: Makes the scheduler and its model; called in their thread.
        tokenizer: The base's tokenizer.
        config: The base's configuration.
        fingerprint: Hash of the base's weights.
        read: Reads an adapter's files, checked; called in a thread of its own.
        max_rank: Highest rank of an adapter.
        most_waiting: Most sequences that wait.
    """

    def __init__(
        self,
        make: Callable[[], Scheduler[FusedRunner]],
        tokenizer: Any,
        config: Any,
        fingerprint: str,
        read: Read,
        *,
        max_rank: int,
        most_waiting: int = 512,
    ) -> None:
        context, vocabulary = Encoder(tokenizer, config).context_tokens, int(config.vocab_size)
        super().__init__(
            tokenizer, context, vocabulary, fingerprint,
            max_rank=max_rank, most_waiting=most_waiting,
        )  # fmt: skip
        self._make, self._read = make, read
        self._published = EngineState(False)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="laura-engine")
        self._changed = asyncio.Event()
        self._stop_at = float("inf")
        self._steps: asyncio.Task[None] | None = None
        # There from the start to the end.
        self._scheduler: Scheduler[FusedRunner] | None = None
        self._loader: AdapterLoader | None = None
        self._grammars: GrammarCompiler | None = None

    async def start(self) -> None:
        """Make ready to answer; returns when it is.

        Raises:
            LauraError: the engine cannot be made.
        """
        loop = asyncio.get_running_loop()
        try:
            self._scheduler = await loop.run_in_executor(self._thread, self._make)
        except BaseException:
            self._why_not = "it has died of a fault"
            raise
        slots, ends = self._scheduler.runner.slots, self._scheduler.end_ids

        def notice() -> None:
            call(loop, self._wake)

        self._loader = AdapterLoader(slots, self._read, notice)
        self._grammars = GrammarCompiler(self.tokenizer, self.vocabulary, ends, notice)
        self._publish()
        self._ready, self._why_not = True, ""
        self._steps = asyncio.create_task(self._run())

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, finish what runs within the time, cancel the rest, free everything."""
        self._ready, self._stop_at = False, time.monotonic() + grace_seconds
        self._send_away()  # at once: another server may have room
        self._wake()
        if self._steps is not None:
            await asyncio.wait([self._steps])
        await asyncio.to_thread(self._thread.shutdown)

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        """Bring an adapter into memory now; see `ServingEngine.load`."""
        self._check_adapter(adapter)
        try:
            read = await asyncio.to_thread(self._read, adapter)
            await self._between_steps(self._place, adapter, read, pin)
        except AdapterError as error:
            raise EngineError(str(error), "adapter") from error

    async def unload(self, name: str) -> bool:
        """Free an adapter's slot when no sequence uses it; whether it had one."""
        return await self._between_steps(lambda: self._used.runner.slots.remove(name))

    def _figures(self) -> EngineState:
        return self._published

    def _wake(self) -> None:
        self._changed.set()

    def _gone(self) -> EngineError:
        return EngineError("the engine has stopped; try again in a moment", "gone", RETRY_SECONDS)

    def _check(self, request: SequenceRequest) -> None:
        super()._check(request)
        cache, tokens = self._used.kv_cache, len(request.prompt) + request.max_new_tokens
        if not cache.can_ever_hold(tokens):
            raise EngineError(
                "prompt and answer are longer than this server has memory for", "request"
            )

    @property
    def _used(self) -> Scheduler[FusedRunner]:
        if self._scheduler is None:
            raise self._gone()
        return self._scheduler

    async def _run(self) -> None:
        """Step until it is time to end, then free everything."""
        died = False
        try:
            while await self._turn():
                pass
        except Exception as error:
            died = True
            logging.getLogger(__name__).error("the engine has died", exc_info=error)
        finally:
            self._close(died)

    async def _turn(self) -> bool:
        """Admit who may begin, and one step; False when it is time to end."""
        scheduler = self._used
        if not scheduler.busy:
            await self._changed.wait()
        self._changed.clear()
        if self._ready:
            await self._admit()
        elif not scheduler.busy or time.monotonic() >= self._stop_at:
            return False
        self._take_in(await self._do(scheduler.step))
        return True

    async def _admit(self) -> None:
        """Begin what waits, in fair order, as far as there is room."""
        while self._ready and (waiting := list(self._queue.in_order())):
            found = await self._do(self._add_first, waiting)
            if found is None:
                return
            sequence, refused = found
            if refused is not None:
                self._refuse(sequence, refused)
            elif not self._begun(sequence):
                await self._do(self._used.drop, sequence)

    def _drop(self, sequence: ServedSequence) -> None:
        self._thread.submit(self._then_publish, self._used.drop, sequence)

    def _close(self, died: bool) -> None:
        """Tell everybody that there is nothing more, and free what was held."""
        self._ready, self._why_not = False, "it has died of a fault" if died else "it has stopped"
        self._send_away()
        self._break_off(in_order=not died)
        if self._loader is not None and self._grammars is not None:
            self._loader.close()
            self._grammars.close()
        self._scheduler, self._loader, self._published = None, None, EngineState(False)
        self._thread.shutdown(wait=False)

    async def _between_steps(self, work: Callable[..., Result], *given: object) -> Result:
        """Have the engine's thread do something; who waits is looked at afterwards.

        Raises:
            EngineError: the engine has stopped.
        """
        if not self._ready:
            raise self._gone()
        try:
            return await self._do(work, *given)
        finally:
            self._wake()

    async def _do(self, work: Callable[..., Result], *given: object) -> Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._then_publish, work, *given)

    # In the engine's thread from here on.

    def _then_publish(self, work: Callable[..., Result], *given: object) -> Result:
        """Do something; who asks for the state next finds it done."""
        try:
            return work(*given)
        finally:
            self._publish()

    def _publish(self) -> None:
        scheduler = self._scheduler
        if scheduler is None:
            return
        slots = scheduler.runner.slots
        self._published = EngineState(
            True,
            slots=tuple(
                SlotState(slot.name, slot.pinned, slot.uses, slot.bytes)
                for slot in slots.held.values()
            ),
            slots_total=slots.most,
            memory_bytes={
                "weights": scheduler.runner.weight_bytes,
                "adapters": slots.bytes,
                "cache": scheduler.kv_cache.bytes + scheduler.prefix_cache.bytes,
            },
            cache_tokens=scheduler.kv_cache.tokens,
            drafted_tokens=scheduler.drafted_tokens,
            accepted_tokens=scheduler.accepted_tokens,
        )

    def _place(self, files: AdapterFiles, adapter: Adapter, pin: bool) -> None:
        """Bring an adapter into a slot, and keep it there if `pin`."""
        slots = self._used.runner.slots
        slot = slots.find(files.name, files.digest)
        slot = slot or slots.place(files.name, files.digest, *adapter)
        slot.pinned = pin

    def _add_first(
        self, waiting: Sequence[ServedSequence]
    ) -> tuple[ServedSequence, EngineError | None] | None:
        """Begin the first that can; it, and what is wrong with it, or None where nobody can."""
        loader, grammars = self._loader, self._grammars
        assert loader is not None and grammars is not None
        loader.look_anew(one.adapter for one in waiting)
        for one in waiting:
            if one.request.grammar is not None:
                one.compiling = one.compiling or grammars.matcher(one.request.grammar)
                if not one.compiling.done():
                    continue
                try:
                    one.matcher = one.compiling.result()
                except GrammarError as error:
                    return one, EngineError(str(error), "request")
            if one.adapter is not None:
                try:
                    one.slot = loader.slot(one.adapter)
                except AdapterError as error:
                    return one, EngineError(str(error), "adapter")
                if one.slot is None:
                    continue
            return (one, None) if self._used.add(one) else None
        return None


class AdapterLoader:
    """Reads adapters and puts them into slots without holding anybody up.

    Files are read in a thread of their own; only the copy into a slot stands between two steps
    of the engine. Where every slot is in use, the one that was used least recently takes no
    further sequences until it is free, so that a new adapter does not wait for ever.

    Args:
        slots: Where they go; of the engine's thread, as all calls here are.
        read: Reads an adapter's files.
        notice: Called, from any thread, when one has been read.
    """

    def __init__(self, slots: Slots, read: Read, notice: Callable[[], None]) -> None:
        self._slots, self._read, self._notice = slots, read, notice
        self._reads: dict[str, Future[Adapter]] = {}
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="laura-adapters")
        self._leaving: Slot | None = None

    def look_anew(self, wanted: Iterable[AdapterFiles | None]) -> None:
        """Begin a round over all that wait; what was read and is wanted no more is given up."""
        self._leaving = None
        if self._reads:
            digests = {files.digest for files in wanted if files is not None}
            self._reads = {key: read for key, read in self._reads.items() if key in digests}

    def slot(self, files: AdapterFiles) -> Slot | None:
        """The adapter's slot, filled now if its files are read and there is a place.

        Returns:
            None where it has none yet: ask again when something has changed.

        Raises:
            AdapterError: it cannot be loaded.
        """
        slot = self._slots.find(files.name, files.digest)
        if slot is not None:
            return None if slot is self._leaving else slot
        read = self._reads.get(files.digest)
        if read is None and len(self._reads) < MOST_READ_AHEAD:
            read = self._reads[files.digest] = self._readers.submit(self._read, files)
            read.add_done_callback(lambda _: self._notice())
        if read is None or not read.done():
            return None
        if not self._slots.room_for(files.name):
            if self._leaving is None:
                held = self._slots.held.get(files.name)
                self._leaving = held or self._slots.longest_unused()
            if self._leaving is not None:
                return None
        del self._reads[files.digest]
        try:
            adapter = read.result()
        except AdapterError:
            raise
        except Exception as error:
            raise AdapterError(f"the adapter cannot be read ({type(error).__name__})") from error
        return self._slots.place(files.name, files.digest, *adapter)

    def close(self) -> None:
        """Give everything up."""
        self._reads = {}
        self._readers.shutdown(wait=False, cancel_futures=True)


def _read(files: AdapterFiles) -> Adapter:
    settings, tensors = read_checked(files)
    return settings, with_turns(settings, tensors)


def open_inprocess(folder: Path, settings: EngineSettings) -> InProcess:
    """Load a base and make an engine of it, which is to be started.

    Raises:
        ModelError: the base cannot be used.
        UsageError: there is no such device.
    """
    keep_freed_memory()
    base = load_base(str(folder), device=settings.device)
    place, slots = base.model.device, max(1, settings.slots)
    arithmetic = resolve_precision(settings.precision, place)

    def make() -> Scheduler[FusedRunner]:
        runner = FusedRunner(base.model, arithmetic, slots, settings.max_rank)
        memory = cache_budget(place)
        return Scheduler(runner, base.tokenizer, cache_bytes=memory, drafts=settings.drafts)

    return InProcess(
        make,
        base.tokenizer,
        base.model.config,
        base.fingerprint,
        _read,
        max_rank=settings.max_rank,
        most_waiting=settings.queue,
    )
