"""A serving engine in vLLM: a process that Laura starts, watches and starts anew.

What vLLM cannot be trusted with stays on this side: which adapters it gets, what may share a
batch, in which order tenants come, and the text of the tokens. On a processor the base's
sequences take turns with those of adapters, see `engine/vllm.py`.

Everything runs in the event loop's thread, except reading and writing an adapter's files.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.engine.detokenizer import Detokenizer, Score
from laura.engine.vllm import (
    Message,
    VllmProcess,
    check_adapter,
    end_ids,
    lora_arguments,
    model_arguments,
)
from laura.models.adapter_files import CONFIG, PREFIX, WEIGHTS
from laura.models.encoding import Encoder
from laura.models.load import check_model_folder, describe_model, fingerprint
from laura.results.errors import AdapterError, LauraError, ModelError, UsageError
from laura.results.store import disk_faults, write_json
from laura.serve.ask_checks import check_ask, check_rank
from laura.serve.engines import (
    AdapterFiles,
    Ask,
    Ended,
    EngineError,
    EngineState,
    Event,
    Finish,
    NewText,
    PromptScores,
    SlotState,
    TokenScore,
)
from laura.serve.fairness import FairQueue, QueueFull
from laura.serve.rates import TokenRate
from laura.serve.tickets import SequenceEvents, call
from laura.serve.vllm_arguments import LENGTH, NO_ARGUMENTS, OPTION, VllmArguments

if TYPE_CHECKING:
    from laura.models.lora import LoraSettings

LOG = logging.getLogger(__name__)
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
# A turn of the base or of the adapters lasts so long while the others wait.
TURN_SECONDS = 2.0
ENDED = "vLLM has ended"

ReadChecked = Callable[[AdapterFiles], "tuple[LoraSettings, dict[str, Any]]"]


@dataclass(frozen=True)
class Patience:
    """How long is waited for what, in seconds.

    Attributes:
        start: For vLLM to be ready; loading a large model takes minutes.
        poll: Between two looks whether it still says something.
        silence: Without a word while something runs; then it hangs.
        first_pause: Before the first new start; doubled each time up to `last_pause`.
        last_pause: Most seconds before a new start.
        settled: After so long in health the pauses begin anew.
    """

    start: float = 3600.0
    poll: float = 0.5
    silence: float = 600.0
    first_pause: float = 1.0
    last_pause: float = 60.0
    settled: float = 300.0


@dataclass(eq=False)
class _VllmSlot:
    """A LoRA slot: an adapter in vLLM's memory, or on its way there.

    Attributes:
        adapter: Its checked files.
        number: No two slots ever have the same, so nothing of an earlier one (its cache, a
            late word about it) is taken for it.
        loading: Brings it there; done once vLLM has it.
        loaded: Whether it was there once: then it comes back after a new start.
        pinned: Whether it stays.
        in_use: Sequences that need it.
        leaving: Whether it leaves as soon as nobody uses it.
    """

    adapter: AdapterFiles
    number: int
    loading: asyncio.Task[None] | None = None
    loaded: bool = False
    pinned: bool = False
    in_use: int = 0
    leaving: bool = False

    @property
    def name(self) -> str:
        """What vLLM calls it."""
        return f"{self.adapter.name}@{self.number}"


@dataclass(eq=False)
class _Sequence:
    """A sequence that waits or runs.

    Attributes:
        number: vLLM's request id.
        ask: What is wanted.
        adapter: Its adapter's files.
        ends: Tokens that end it.
        text: Its text as it comes.
        slot: Its adapter's, from when it runs.
        events: What its reader has not read yet.
        over: Whether its last event is among them, or was read.
        new: New tokens so far.
        cached: Tokens of the prompt that were not computed anew.
    """

    number: str
    ask: Ask
    adapter: AdapterFiles | None
    ends: frozenset[int]
    text: Detokenizer
    slot: _VllmSlot | None = None
    events: asyncio.Queue[Event | EngineError] = field(default_factory=asyncio.Queue)
    over: bool = False
    new: int = 0
    cached: int = 0

    def tell(self, event: Event | EngineError) -> None:
        """Give the reader an event; nothing comes after the last one."""
        if not self.over:
            self.over = isinstance(event, Ended | EngineError)
            self.events.put_nowait(event)

    def request(self) -> Message:
        """What is said to vLLM; what ends an answer is known on this side."""
        ask = self.ask
        sampling: dict[str, Any] = {
            "max_tokens": max(1, ask.max_new_tokens),  # vLLM insists on a new token
            "temperature": ask.temperature,
            "ignore_eos": True,
            "stop_token_ids": sorted(self.ends),
            "detokenize": False,
            "logprobs": ask.top_logprobs,
            "prompt_logprobs": (ask.top_logprobs or 0) if ask.prompt_logprobs else None,
        }
        if ask.temperature > 0:
            sampling |= {"top_p": ask.top_p, "top_k": ask.top_k, "seed": ask.seed}
        return {
            "add": self.number,
            "prompt": list(ask.prompt),
            "first": 0,
            "sampling": sampling,
            "stream": True,
            "adapter": self.slot and self.slot.name,
            # How fast an answer comes would tell what another tenant asked.
            "salt": f"tenant {ask.tenant}",
        }

    def take_in(self, output: Message) -> bool:
        """Tell the reader what a step brought; whether the sequence has ended."""
        ask, text, before = self.ask, self.text, self.new
        if output["prompt"]:
            scores = zip(ask.prompt, output["prompt"], strict=True)
            self.tell(PromptScores(tuple(TokenScore(*self._score(*one)) for one in scores)))
        self.cached = max(self.cached, output["cached"])
        stopped = False
        for i, token in enumerate(output["tokens"][: ask.max_new_tokens - before]):
            self.new += 1
            stopped = token in self.ends
            if not stopped:
                wanted = ask.top_logprobs is not None
                text.add(token, self._score(token, output["logprobs"][i]) if wanted else None)
                stopped = text.stopped
            if stopped:
                break
        ended = stopped or output["reason"] is not None
        for told in (text.delta(), text.rest()) if ended else (text.delta(),):
            if told.text or told.scores:
                self.tell(NewText(told.text, tuple(TokenScore(*one) for one in told.scores)))
        if ended:
            self.end("stop" if stopped or self.new < ask.max_new_tokens else "length")
        return ended

    def end(self, finish: Finish) -> None:
        """Tell the reader that this is all."""
        self.tell(Ended(finish, len(self.ask.prompt), self.new, self.cached))

    def _score(self, token: int, found: Any) -> Score:
        """Of a token and what the worker says of it; nothing for a prompt's first one."""
        if found is None:
            return token, None, ()
        value, likeliest = found
        return token, value, tuple((i, v) for i, v in likeliest[: self.ask.top_logprobs or 0])


class VllmServed:
    """A `ServingEngine` in vLLM.

    Args:
        folder: The model's folder, as `resolve_model` finds it.
        precision: "fp32", "bf16", or "auto": bf16 except on a processor.
        slots: Most adapters in memory, at least 2; 0 for a server without adapters.
        max_rank: Largest rank of an adapter.
        context_tokens: Most tokens of prompt and answer; None for as many as the model reads.
        most_running: Most sequences in work.
        most_waiting: Most that wait for that.
        most_waiting_per_tenant: Most of one tenant.
        arguments: Further arguments of vLLM's engine, of `vllm_arguments.read_arguments`; what
            they say of length, format and sequences in work goes before what is said here.
        patience: How long is waited for what.
        read: Reads an adapter that was checked; None for `adapter_checks.read_checked`.

    Attributes:
        context_tokens: Most tokens of prompt and answer; what vLLM has memory for may turn out
            to be less when it starts.

    Raises:
        ModelError: the folder is no usable model.
        UsageError: the arguments ask for a longer text than the model reads.
    """

    def __init__(
        self,
        folder: Path,
        *,
        precision: str = "auto",
        slots: int = 16,
        max_rank: int = 64,
        context_tokens: int | None = None,
        most_running: int = 64,
        most_waiting: int = 512,
        most_waiting_per_tenant: int = 256,
        arguments: VllmArguments = NO_ARGUMENTS,
        patience: Patience | None = None,
        read: ReadChecked | None = None,
    ) -> None:
        check_model_folder(folder)
        config, self.tokenizer = describe_model(folder)
        reads = Encoder(self.tokenizer, config).context_tokens
        self.context_tokens = self._most_tokens = _context(reads, context_tokens, arguments)
        self.fingerprint = fingerprint(folder)
        self._ends = end_ids(folder, config, self.tokenizer)
        self._vocabulary, self._max_rank = int(config.vocab_size), max_rank
        self._patience, self._read = patience or Patience(), read or _read_checked
        self._most_running = arguments.most_running or most_running
        self._slots_total = max(2, slots) if slots else 0
        # vLLM insists on a new token behind a scored prompt.
        engine = model_arguments(folder, config, reads, self.context_tokens + 1)
        engine["max_num_seqs"] = self._most_running
        if arguments.context_tokens == 0:
            engine["max_model_len"] = -1
        if number_format := arguments.precision or PRECISIONS.get(precision):
            engine["dtype"] = number_format
        if slots:
            engine |= lora_arguments(max_rank, self._slots_total)
            engine["max_cpu_loras"] = self._slots_total
        self._setup = {"engine": engine, "arguments": list(arguments.words)}
        self._queue = FairQueue[_Sequence](most_waiting, most_waiting_per_tenant)
        self._rate = TokenRate()
        self._numbers = itertools.count(1)
        self._running: dict[str, _Sequence] = {}
        # The least recently used one first.
        self._slots: dict[tuple[str, str], _VllmSlot] = {}
        self._loads: dict[str, asyncio.Future[str | None]] = {}
        # Whether base and adapters take turns, whose turn it is, and since when.
        self._base_apart, self._base_turn, self._turn_began = False, False, 0.0
        self._ready, self._stopping, self._why = False, False, "it has not been started"
        self._process: VllmProcess | None = None
        # Of the process that is in use; None from its end on.
        self._launch: object | None = None
        self._first_word: asyncio.Future[Message | None] | None = None
        self._heard = self._back_at = 0.0
        self._start_seconds = 10.0
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start vLLM.

        Raises:
            ModelError: it does not start.
            UsageError: `LAURA_VLLM_PYTHON` names no Python.
            MissingExtraError: that Python has no vLLM, or too old a one.
            StoreError: there is no room for a private folder.
        """
        self._why = "vLLM is starting"
        try:
            await self._begin()
        except BaseException:
            await self.stop(0.0)
            raise
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, finish what runs within the time, cancel the rest, free everything."""
        self._stopping, self._ready, self._why = True, False, "the server is stopping"
        self._send_away()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        end = time.monotonic() + grace_seconds
        while self._running and time.monotonic() < end:
            await asyncio.sleep(0.02)
        for sequence in list(self._running.values()):
            sequence.end("cancelled")
            self._leave(sequence)
        self._forget_process()
        loadings = [slot.loading for slot in self._slots.values() if slot.loading]
        await asyncio.gather(*loadings, return_exceptions=True)
        if self._process is not None:
            await asyncio.to_thread(self._process.close)

    def submit(self, ask: Ask, adapter: AdapterFiles | None) -> AsyncIterator[Event]:
        """See `ServingEngine.submit`."""
        check_ask(
            ask,
            adapter,
            context_tokens=self.context_tokens,
            vocabulary=self._vocabulary,
            max_rank=self._max_rank,
        )
        if not self._ready:
            raise self._gone()
        if adapter is not None:
            self._check_room(adapter)
        sequence = _Sequence(
            str(next(self._numbers)),
            ask,
            adapter,
            frozenset() if ask.ignore_end else self._ends,
            Detokenizer(lambda ids: self.tokenizer.decode(ids, skip_special_tokens=True), ask.stop),
        )
        try:
            cost = len(ask.prompt) + ask.max_new_tokens
            self._queue.put(sequence, ask.tenant, ask.priority, cost)
        except QueueFull as full:
            rate = self._rate.per_second()
            seconds = self._queue.seconds_until_room(rate, full.tenants_own)
            raise EngineError(str(full), "full", seconds) from None
        self._pump()
        return SequenceEvents(sequence.events, lambda: self._give_up(sequence))

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        """See `ServingEngine.load`."""
        check_rank(adapter, self._max_rank)
        if not self._ready:
            raise self._gone()
        self._check_room(adapter)
        slot = self._take_slot(adapter)
        try:
            assert slot.loading is not None
            # Who waits may go away without ending the loading for the others.
            await asyncio.shield(slot.loading)
            slot.pinned = pin
        finally:
            slot.in_use -= 1
            self._free_idle()

    async def unload(self, name: str) -> bool:
        """See `ServingEngine.unload`; one that is in use leaves with its last sequence."""
        found = [slot for slot in self._slots.values() if slot.adapter.name == name]
        for slot in found:
            slot.pinned, slot.leaving = False, True
        self._free_idle()
        return bool(found)

    def state(self) -> EngineState:
        """See `ServingEngine.state`."""
        slots = tuple(
            SlotState(slot.adapter.name, slot.pinned, slot.in_use, slot.adapter.bytes)
            for slot in self._slots.values()
        )
        return EngineState(
            ready=self._ready,
            why_not=self._why,
            slots=slots,
            slots_total=self._slots_total,
            running=dict(Counter(sequence.ask.tenant for sequence in self._running.values())),
            waiting=self._queue.waiting(),
            tokens_per_second=self._rate.per_second(),
            memory_bytes={"adapters": sum(slot.bytes for slot in slots)},
        )

    # The process: its start, its messages, its end.

    async def _begin(self) -> None:
        """Start a process and give it the adapters that the last one had."""
        began, launch, loop = time.monotonic(), object(), asyncio.get_running_loop()
        self._launch, self._first_word = launch, loop.create_future()
        process = self._process = VllmProcess(
            self._setup, lambda message: call(loop, self._hear, launch, message)
        )
        try:
            async with asyncio.timeout(self._patience.start):
                message = await self._first_word
        except TimeoutError:
            raise ModelError(
                f"vLLM was not ready after {self._patience.start:.0f} seconds"
                + process.last_words()
            ) from None
        if message is None or "ready" not in message:
            raise await asyncio.to_thread(process.fault, message)
        self._base_apart = message["cpu"]
        self.context_tokens = max(1, min(self._most_tokens, message["length"] - 1))
        for slot in self._slots.values():
            self._start_loading(slot)
        self._start_seconds = time.monotonic() - began
        self._ready, self._why = True, ""

    async def _watch(self) -> None:
        """Start vLLM anew whenever it has ended or hangs, after a pause that grows."""
        pause = self._patience.first_pause
        while True:
            began = time.monotonic()
            while self._ready:
                await asyncio.sleep(self._patience.poll)
                silent = time.monotonic() - self._heard
                if (self._running or self._loads) and silent > self._patience.silence:
                    self._fall(f"vLLM has said nothing for {silent:.0f} seconds")
            if time.monotonic() - began > self._patience.settled:
                pause = self._patience.first_pause
            assert self._process is not None
            await asyncio.to_thread(self._process.close)
            self._why = self._process.how if self._why == ENDED else self._why
            LOG.error("%s%s", self._why, self._process.last_words())
            while not self._ready:
                await asyncio.to_thread(self._process.close)
                self._back_at = time.monotonic() + pause + self._start_seconds
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._patience.last_pause)
                try:
                    await self._begin()
                except Exception as error:  # whatever it is, it is tried again
                    self._forget_process()
                    self._why = "vLLM does not start again; the log says why"
                    LOG.error("vLLM does not start again: %s", error)
                else:
                    LOG.warning("vLLM is back")

    def _hear(self, launch: object, message: Message | None) -> None:
        """Of the process that is in use; a late word of an earlier one means nothing."""
        if launch is not self._launch:
            return
        assert self._first_word is not None
        self._heard = time.monotonic()
        if not self._first_word.done():
            self._first_word.set_result(message)
        elif message is None or "fault" in message:
            LOG.error("vLLM has failed: %s", message and message["fault"])
            self._fall(ENDED)
        elif "lora" in message:
            self._loads.pop(message["lora"]).set_result(message["refused"])
        elif "refused" in message:
            LOG.warning("vLLM refuses a request: %s", message["refused"])
            if sequence := self._running.get(message["id"]):
                sequence.tell(EngineError("the model's server refuses this request", "request"))
                self._leave(sequence)
        else:
            for output in message["outputs"]:
                if sequence := self._running.get(output["id"]):
                    self._take_in(sequence, output)
        self._pump()

    def _take_in(self, sequence: _Sequence, output: Message) -> None:
        before = sequence.new
        try:
            if output["reason"] not in (None, "stop", "length"):
                raise ModelError(f"vLLM gave a request up ({output['reason']})")
            ended = sequence.take_in(output)
        except Exception:
            LOG.exception("a sequence failed")
            sequence.tell(EngineError("the server failed at this request", "gone", 1.0))
            ended = True
        self._queue.charge(sequence.ask.tenant, sequence.new - before)
        self._rate.add(sequence.new - before)
        if ended:
            if output["reason"] is None:
                self._say({"abort": sequence.number})
            self._leave(sequence)

    def _say(self, message: Message) -> None:
        """Tell vLLM something; nothing comes of it where it has ended."""
        if self._launch is not None:
            assert self._process is not None
            if not self._running and not self._loads:
                self._heard = time.monotonic()
            self._process.send(message)

    def _fall(self, why: str) -> None:
        """vLLM has gone: so has all that ran in it or waited for it."""
        self._ready, self._why = False, why
        self._back_at = time.monotonic() + self._start_seconds
        self._forget_process()
        for sequence in list(self._running.values()):
            sequence.tell(self._gone())
            self._leave(sequence)
        self._send_away()

    def _forget_process(self) -> None:
        """Hear nothing more of it."""
        self._launch = None
        for reply in self._loads.values():
            reply.set_exception(self._gone())
        self._loads = {}

    def _gone(self) -> EngineError:
        if self._stopping:
            return EngineError("the server is stopping; try another one", "gone")
        seconds = max(1.0, math.ceil(self._back_at - time.monotonic()))
        return EngineError("the model's server has stopped and starts anew", "gone", seconds)

    # Sequences: who begins next, and how they end.

    def _pump(self) -> None:
        """Begin whatever may begin."""
        while self._ready and len(self._running) < self._most_running:
            sequence = self._next()
            if sequence is None:
                return
            self._queue.remove(sequence, sequence.ask.tenant)
            self._queue.charge(sequence.ask.tenant, len(sequence.ask.prompt))
            if (sequence.adapter is None) != self._base_turn:
                self._base_turn, self._turn_began = sequence.adapter is None, time.monotonic()
            if sequence.adapter is not None:
                sequence.slot = self._take_slot(sequence.adapter)
            loading = sequence.slot.loading if sequence.slot else None
            if loading is None or loading.done():
                self._say(sequence.request())
            self._running[sequence.number] = sequence

    def _next(self) -> _Sequence | None:
        """The first in fair order of those whose turn it is."""
        waiting = list(self._queue.in_order())
        if not self._base_apart:
            return next(iter(waiting), None)
        both_wait = len({sequence.adapter is None for sequence in waiting}) > 1
        turn_over = both_wait and time.monotonic() - self._turn_began >= TURN_SECONDS
        for sequence in waiting:
            own_turn = (sequence.adapter is None) == self._base_turn
            if not (turn_over if own_turn else self._running):
                return sequence
        return None

    def _give_up(self, sequence: _Sequence) -> None:
        """The reader wants no more."""
        sequence.over = True
        if not self._queue.remove(sequence, sequence.ask.tenant):
            if sequence.number in self._running:
                # It has left the batch before anything that is said later enters it.
                self._say({"abort": sequence.number})
                self._leave(sequence)
        self._pump()

    def _leave(self, sequence: _Sequence) -> None:
        """A sequence does not run any more."""
        self._running.pop(sequence.number, None)
        if sequence.slot is not None:
            sequence.slot.in_use -= 1
            sequence.slot = None
            self._free_idle()

    def _send_away(self) -> None:
        """Nobody waits any more."""
        for sequence in list(self._queue.in_order()):
            self._queue.remove(sequence, sequence.ask.tenant)
            sequence.tell(self._gone())

    # LoRA slots. Where more adapters are in use than there are slots, vLLM loads them in turn.

    def _check_room(self, adapter: AdapterFiles) -> None:
        """Refuse an adapter where others have every slot for good."""
        if not self._slots_total:
            raise EngineError("the server was started without places for adapters", "adapter")
        known = (adapter.name, adapter.digest) in self._slots
        if not known and sum(slot.pinned for slot in self._slots.values()) >= self._slots_total:
            raise EngineError("every place is taken by pinned adapters; unpin one", "adapter")

    def _take_slot(self, adapter: AdapterFiles) -> _VllmSlot:
        """A slot for this adapter, in use once more; its loading has begun."""
        key = adapter.name, adapter.digest
        slot = self._slots.pop(key, None)
        if slot is None:
            slot = _VllmSlot(adapter, next(self._numbers))
            self._start_loading(slot)
        self._slots[key] = slot
        slot.in_use += 1
        slot.leaving = False
        self._free_idle()
        return slot

    def _free_idle(self) -> None:
        """Free what nobody uses, the least recently used first, while there are too many."""
        for slot in list(self._slots.values()):
            too_many = len(self._slots) > self._slots_total
            idle = not slot.in_use and slot.loading is not None and slot.loading.done()
            if idle and (slot.leaving or (too_many and not slot.pinned)):
                self._free(slot)

    def _free(self, slot: _VllmSlot) -> None:
        """Forget a slot; vLLM does before it hears anything else."""
        self._slots.pop((slot.adapter.name, slot.adapter.digest), None)
        if slot.loaded:
            self._say({"remove_lora": slot.name})
        if self._process is not None:
            shutil.rmtree(self._process.folder / str(slot.number), ignore_errors=True)

    def _start_loading(self, slot: _VllmSlot) -> None:
        slot.loading = asyncio.create_task(self._load(slot))
        slot.loading.add_done_callback(lambda task: self._end_loading(slot, task))

    async def _load(self, slot: _VllmSlot) -> None:
        """Have an adapter loaded, from a private copy: vLLM never reads what a user can change.

        Raises:
            EngineError: it cannot be loaded.
        """
        name, launch, process = slot.adapter.name, self._launch, self._process
        assert process is not None
        folder = process.folder / str(slot.number)

        def copy() -> None:
            settings, tensors = self._read(slot.adapter)
            write_plain(settings, tensors, folder)

        try:
            await asyncio.to_thread(copy)
        except AdapterError as error:
            raise EngineError(f"adapter {name} cannot be loaded: {error}", "adapter") from error
        except (LauraError, OSError) as error:
            raise EngineError(f"adapter {name} cannot be read now", "adapter") from error
        if launch is None or launch is not self._launch:
            raise self._gone()
        reply: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._say({"add_lora": slot.name, "folder": str(folder)})
        self._loads[slot.name] = reply
        if refused := await reply:
            LOG.warning("vLLM cannot load adapter %s: %s", name, refused)
            raise EngineError(f"vLLM cannot load adapter {name}", "adapter")
        slot.loaded = True

    def _end_loading(self, slot: _VllmSlot, task: asyncio.Task[None]) -> None:
        """Begin or refuse the sequences that wait for an adapter."""
        if task.cancelled() or task is not slot.loading:
            return
        error = task.exception()
        if error is not None:
            LOG.warning("adapter %s is not served: %r", slot.adapter.name, error)
            if not isinstance(error, EngineError):
                error = EngineError("the server failed at this request", "gone", 1.0)
            if error.kind != "gone" or not slot.loaded:
                self._free(slot)
        for sequence in [one for one in self._running.values() if one.slot is slot]:
            if error is None:
                self._say(sequence.request())
            else:
                sequence.tell(error)
                self._leave(sequence)
        self._free_idle()
        self._pump()


def write_plain(settings: LoraSettings, tensors: dict[str, Any], folder: Path) -> None:
    """Write a checked adapter as vLLM gets it: one rank for all modules, the scale folded into B.

    So nothing depends on how vLLM reads patterns and scales.

    Args:
        settings: Its settings, targets as full names.
        tensors: Its tensors by PEFT's names.
        folder: A new folder.

    Raises:
        AdapterError: vLLM cannot represent it.
        StoreError: the disk is full or not writable.
    """
    import torch
    from safetensors.torch import save_file

    check_adapter(settings)
    rank, plain = settings.largest_rank, dict[str, Any]()
    for name in settings.targets:
        own, scale = settings.for_module(name)
        a_RI, b_OR = (tensors[f"{PREFIX}{name}.lora_{part}.weight"].float() for part in "AB")
        # Further rows and columns of zeros add exactly nothing.
        wide_A, wide_B = torch.zeros(rank, a_RI.shape[1]), torch.zeros(b_OR.shape[0], rank)
        wide_A[:own], wide_B[:, :own] = a_RI, b_OR * scale
        plain[f"{PREFIX}{name}.lora_A.weight"] = wide_A
        plain[f"{PREFIX}{name}.lora_B.weight"] = wide_B
    kinds = sorted({name.rsplit(".", 1)[-1] for name in settings.targets})
    with disk_faults(folder):
        folder.mkdir(parents=True)
        save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank}
    write_json(folder / CONFIG, {**config, "target_modules": kinds})


def _context(reads: int, wanted: int | None, arguments: VllmArguments) -> int:
    """Most tokens of prompt and answer, of a model that reads so many."""
    wanted = arguments.context_tokens or wanted or reads
    if arguments.context_tokens and wanted > reads:
        raise UsageError(
            f"{OPTION} {LENGTH}={wanted}: the model reads {reads} tokens at the most; give fewer, "
            "or leave it out"
        )
    return min(reads, wanted)


def _read_checked(files: AdapterFiles) -> Any:
    from laura.serve.library import read_checked

    return read_checked(files)
