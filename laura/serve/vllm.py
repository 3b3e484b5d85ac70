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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from laura.engine.detokenizer import Detokenizer, Score, decoder_of
from laura.engine.scheduler import StepOutput, advance
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
from laura.models.lora import LoraSettings
from laura.results.errors import AdapterError, LauraError, ModelError, UsageError
from laura.results.store import disk_faults, write_json
from laura.serve.async_engine import AsyncEngine, ServedSequence, call
from laura.serve.engines import AdapterFiles, EngineError, EngineState, SlotState
from laura.serve.library import read_checked
from laura.serve.settings import LENGTH, OPTION, EngineSettings, VllmArguments

LOG = logging.getLogger(__name__)
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
# A turn of the base or of the adapters lasts so long while the others wait.
TURN_SECONDS = 2.0
ENDED = "vLLM has ended"


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
        loading: Brings it there, and gives back what was in the way.
        loads: Whether it is on its way.
        loaded: Whether it was there once: then it comes back after a new start.
        pinned: Whether it stays.
        leaving: Whether it leaves as soon as nobody uses it.
    """

    adapter: AdapterFiles
    number: int
    loading: asyncio.Task[EngineError | None] | None = None
    loads: bool = False
    loaded: bool = False
    pinned: bool = False
    leaving: bool = False

    @property
    def name(self) -> str:
        """What vLLM calls it."""
        return f"{self.adapter.name}@{self.number}"


class VllmServed(AsyncEngine):
    """A `ServingEngine` in vLLM.

    Args:
        folder: The model's folder, as `resolve_model` finds it.
        settings: Of the engine. vLLM needs two slots at least; what the arguments say of length,
            format and sequences in work goes before what is said here.
        most_running: Most sequences in work.
        patience: How long is waited for what.
        read: Reads an adapter that was checked.

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
        settings: EngineSettings,
        *,
        most_running: int = 64,
        patience: Patience | None = None,
        read: Callable[[AdapterFiles], tuple[LoraSettings, dict[str, Tensor]]] = read_checked,
    ) -> None:
        check_model_folder(folder)
        config, tokenizer = describe_model(folder)
        reads, arguments = Encoder(tokenizer, config).context_tokens, settings.arguments
        self._most_tokens = _context(reads, arguments)
        super().__init__(
            tokenizer, self._most_tokens, int(config.vocab_size), fingerprint(folder),
            max_rank=settings.max_rank, most_waiting=settings.queue,
        )  # fmt: skip
        self._ends, self._decode = end_ids(folder, config, tokenizer), decoder_of(tokenizer)
        self._patience, self._read = patience or Patience(), read
        self._most_running = arguments.most_running or most_running
        self._slots_total = max(2, settings.slots) if settings.slots else 0
        # vLLM insists on a new token behind a scored prompt.
        engine = model_arguments(folder, config, reads, self.context_tokens + 1)
        engine["max_num_seqs"] = self._most_running
        if arguments.context_tokens == 0:
            engine["max_model_len"] = -1
        if number_format := arguments.precision or PRECISIONS.get(settings.precision):
            engine["dtype"] = number_format
        if self._slots_total:
            engine |= lora_arguments(settings.max_rank, self._slots_total, config.model_type)
            engine["max_cpu_loras"] = self._slots_total
        self._setup = {"engine": engine, "arguments": list(arguments.words)}
        self._numbers = itertools.count(1)
        # The least recently used one first.
        self._slots: dict[AdapterFiles, _VllmSlot] = {}
        self._loads: dict[str, asyncio.Future[str | None]] = {}
        # Whether base and adapters take turns, whose turn it is, and since when.
        self._base_apart, self._base_turn, self._turn_began = False, False, 0.0
        self._stopping, self._why_not = False, "it has not been started"
        self._process: VllmProcess | None = None
        # The first word of the process that is in use; None from its end on.
        self._launch: asyncio.Future[Message | None] | None = None
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
        self._why_not = "vLLM is starting"
        try:
            await self._begin()
        except BaseException:
            await self.stop(0.0)
            raise
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, finish what runs within the time, cancel the rest, free everything."""
        self._stopping, self._ready, self._why_not = True, False, "the server is stopping"
        self._send_away()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        end = time.monotonic() + grace_seconds
        while self._running and time.monotonic() < end:
            await asyncio.sleep(0.02)
        self._break_off(in_order=True)
        self._forget_process()
        loadings = [slot.loading for slot in self._slots.values() if slot.loading]
        await asyncio.gather(*loadings, return_exceptions=True)
        if self._process is not None:
            await asyncio.to_thread(self._process.close)

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        """See `ServingEngine.load`."""
        self._check_adapter(adapter)
        if not self._ready:
            raise self._gone()
        slot = self._slot(adapter, pin)
        assert slot.loading is not None
        # Who waits may go away without ending the loading for the others.
        if error := await asyncio.shield(slot.loading):
            raise error

    async def unload(self, name: str) -> bool:
        """See `ServingEngine.unload`; one that is in use leaves with its last sequence."""
        found = [slot for slot in self._slots.values() if slot.adapter.name == name]
        for slot in found:
            slot.pinned, slot.leaving = False, True
        self._free_idle()
        return bool(found)

    def _figures(self) -> EngineState:
        slots = tuple(
            SlotState(one.name, slot.pinned, len(self._users(slot)), one.bytes)
            for one, slot in self._slots.items()
        )
        memory = {"adapters": sum(slot.bytes for slot in slots)}
        return EngineState(False, slots=slots, slots_total=self._slots_total, memory_bytes=memory)

    # The process: its start, its messages, its end.

    async def _begin(self) -> None:
        """Start a process and give it the adapters that the last one had."""
        began, loop = time.monotonic(), asyncio.get_running_loop()
        launch = self._launch = loop.create_future()
        process = self._process = VllmProcess(
            self._setup, lambda message: call(loop, self._hear, launch, message)
        )
        try:
            async with asyncio.timeout(self._patience.start):
                message = await launch
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
        self._ready, self._why_not = True, ""

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
            self._why_not = self._process.how if self._why_not == ENDED else self._why_not
            LOG.error("%s%s", self._why_not, self._process.last_words())
            while not self._ready:
                await asyncio.to_thread(self._process.close)
                self._back_at = time.monotonic() + pause + self._start_seconds
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._patience.last_pause)
                try:
                    await self._begin()
                except Exception as error:  # whatever it is, it is tried again
                    self._forget_process()
                    self._why_not = "vLLM does not start again; the log says why"
                    LOG.error("vLLM does not start again: %s", error)
                else:
                    LOG.warning("vLLM is back")

    def _hear(self, launch: asyncio.Future[Message | None], message: Message | None) -> None:
        """Of the process that is in use; a late word of an earlier one means nothing."""
        if launch is not self._launch:
            return
        self._heard = time.monotonic()
        if not launch.done():
            launch.set_result(message)
        elif message is None or "fault" in message:
            LOG.error("vLLM has failed: %s", message and message["fault"])
            self._fall(ENDED)
        elif "lora" in message:
            self._loads.pop(message["lora"]).set_result(message["refused"])
        elif "refused" in message:
            LOG.warning("vLLM refuses a request: %s", message["refused"])
            if one := self._running.get(message["id"]):
                self._end(one, EngineError("the model's server refuses this request", "request"))
        else:
            self._take_in(self._outputs(message["outputs"]))
        self._wake()

    def _outputs(self, told: list[Message]) -> Iterator[StepOutput]:
        """What a step of vLLM's brought, token by token."""
        for output in told:
            number, reason = output["id"], output["reason"]
            if (one := self._running.get(number)) is None:
                continue
            try:
                one.cached = max(one.cached, output["cached"])
                if output["prompt"]:
                    scores = zip(one.prompt, output["prompt"], strict=True)
                    one.prompt_scores = [_score(one, *score) for score in scores]
                for token, found in zip_longest(output["tokens"], output["logprobs"]):
                    if number in self._running:
                        wanted = one.top is not None
                        yield advance(one, token, _score(one, token, found) if wanted else None)
                if reason is None and number not in self._running:
                    self._say({"abort": number})
                elif reason is not None and number in self._running:
                    raise ModelError(f"vLLM gave a request up ({reason})")
            except Exception:
                LOG.exception("a sequence failed")
                if self._running.get(number) is one:
                    self._say({"abort": number})
                    self._end(one, _failed())

    def _say(self, message: Message) -> None:
        """Tell vLLM something; nothing comes of it where it has ended."""
        if self._launch is not None:
            assert self._process is not None
            if not self._running and not self._loads:
                self._heard = time.monotonic()
            self._process.send(message)

    def _fall(self, why: str) -> None:
        """vLLM has gone: so has all that ran in it or waited for it."""
        self._ready, self._why_not = False, why
        self._back_at = time.monotonic() + self._start_seconds
        self._forget_process()
        self._break_off(in_order=False)
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

    def _wake(self) -> None:
        self._free_idle()
        while self._ready and len(self._running) < self._most_running and (one := self._next()):
            if not self._running:
                self._heard = time.monotonic()  # until now there was nothing to say
            self._begun(one)
            if (one.adapter is None) != self._base_turn:
                self._base_turn, self._turn_began = one.adapter is None, time.monotonic()
            if one.adapter is None or not self._slot(one.adapter).loads:
                self._say(self._message(one))

    def _next(self) -> ServedSequence | None:
        """The first in fair order of those whose turn it is."""
        waiting = list(self._queue.in_order())
        if not self._base_apart:
            return next(iter(waiting), None)
        both_wait = len({one.adapter is None for one in waiting}) > 1
        turn_over = both_wait and time.monotonic() - self._turn_began >= TURN_SECONDS
        for one in waiting:
            own_turn = (one.adapter is None) == self._base_turn
            if not (turn_over if own_turn else self._running):
                return one
        return None

    def _message(self, one: ServedSequence) -> Message:
        """What is said to vLLM; what ends an answer is known on this side."""
        request = one.request
        one.text = Detokenizer(self._decode, one.stop)
        one.stops = {} if one.ignore_end else dict.fromkeys(self._ends, "end")
        sampling: dict[str, Any] = {
            "max_tokens": max(1, one.limit),  # vLLM insists on a new token
            "temperature": request.temperature,
            "ignore_eos": True,
            "stop_token_ids": sorted(one.stops),
            "detokenize": False,
            "logprobs": one.top,
            "prompt_logprobs": (one.top or 0) if one.scores_prompt else None,
        }
        if request.min_new_tokens:
            sampling["min_tokens"] = request.min_new_tokens
        if (grammar := request.grammar) is not None:
            sampling["structured_outputs"] = {grammar.kind: grammar.text}
        if request.temperature > 0:
            sampling |= {"top_p": request.top_p, "top_k": request.top_k, "seed": request.seed}
        return {
            "add": request.id,
            "prompt": list(one.prompt),
            "first": 0,
            "sampling": sampling,
            "stream": True,
            "adapter": one.adapter and self._slots[one.adapter].name,
            # How fast an answer comes would tell what another tenant asked.
            "salt": f"tenant {one.tenant}",
        }

    def _drop(self, sequence: ServedSequence) -> None:
        # It has left the batch before anything that is said later enters it.
        self._say({"abort": sequence.request.id})

    # LoRA slots. Where more adapters are in use than there are slots, vLLM loads them in turn.

    def _check_adapter(self, adapter: AdapterFiles) -> None:
        super()._check_adapter(adapter)
        if not self._slots_total:
            raise EngineError("the server was started without LoRA slots", "adapter")
        pinned = sum(slot.pinned for slot in self._slots.values())
        if adapter not in self._slots and pinned >= self._slots_total:
            raise EngineError("every slot is taken by pinned adapters; unpin one", "adapter")

    def _slot(self, adapter: AdapterFiles, pin: bool | None = None) -> _VllmSlot:
        """The slot of an adapter that is used now, its loading begun; pinned or not as said."""
        slot = self._slots.pop(adapter, None) or _VllmSlot(adapter, next(self._numbers))
        self._slots[adapter] = slot
        slot.leaving = False
        if pin is not None:
            slot.pinned = pin
        if slot.loading is None:
            self._start_loading(slot)
        self._free_idle()
        return slot

    def _users(self, slot: _VllmSlot) -> list[ServedSequence]:
        """Sequences in work that need a slot."""
        return [one for one in self._running.values() if one.adapter == slot.adapter]

    def _free_idle(self) -> None:
        """Free what nobody uses, the least recently used first, while there are too many."""
        for slot in list(self._slots.values()):
            too_many = len(self._slots) > self._slots_total
            goes = slot.leaving or (too_many and not slot.pinned)
            if goes and not slot.loads and not self._users(slot):
                self._free(slot)

    def _free(self, slot: _VllmSlot) -> None:
        """Forget a slot; vLLM does before it hears anything else."""
        self._slots.pop(slot.adapter, None)
        if slot.loaded:
            self._say({"remove_lora": slot.name})
        if self._process is not None:
            shutil.rmtree(self._process.folder / str(slot.number), ignore_errors=True)

    def _start_loading(self, slot: _VllmSlot) -> None:
        slot.loading, slot.loads = asyncio.create_task(self._load(slot)), True

    async def _load(self, slot: _VllmSlot) -> EngineError | None:
        """Have an adapter loaded, then begin or refuse the sequences that wait for it."""
        error: EngineError | None = None
        try:
            await self._bring(slot)
            slot.loaded = True
        except EngineError as refused:
            error = refused
        except Exception:
            LOG.exception("an adapter cannot be loaded")
            error = _failed()
        if slot.loading is not asyncio.current_task():  # vLLM has started anew meanwhile
            return error
        slot.loads = False
        users = self._users(slot)
        if error is not None:
            LOG.warning("adapter %s is not served: %s", slot.adapter.name, error)
            if error.kind != "gone" or not slot.loaded:
                self._free(slot)
        for one in users:
            if error is None:
                self._say(self._message(one))
            else:
                self._end(one, error)
        self._wake()
        return error

    async def _bring(self, slot: _VllmSlot) -> None:
        """From a private copy: vLLM never reads what a user can change.

        Raises:
            EngineError: it cannot be loaded.
        """
        name, launch, process = slot.adapter.name, self._launch, self._process
        assert process is not None
        folder = process.folder / str(slot.number)
        try:
            await asyncio.to_thread(lambda: write_plain(*self._read(slot.adapter), folder))
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


def write_plain(settings: LoraSettings, tensors: dict[str, Tensor], folder: Path) -> None:
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


def _score(one: ServedSequence, token: int, found: Any) -> Score:
    """Of a token and what the worker says of it; nothing for a prompt's first one."""
    if found is None:
        return token, None, ()
    value, likeliest = found
    return token, value, tuple((i, v) for i, v in likeliest[: one.top or 0])


def _failed() -> EngineError:
    return EngineError("the server failed at this request", "gone", 1.0)


def _context(reads: int, arguments: VllmArguments) -> int:
    """Most tokens of prompt and answer, of a model that reads so many."""
    wanted = arguments.context_tokens or reads
    if wanted > reads:
        raise UsageError(
            f"{OPTION} {LENGTH}={wanted}: the model reads {reads} tokens at the most; give fewer, "
            "or leave it out"
        )
    return wanted
