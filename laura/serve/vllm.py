"""A serving engine that is a vLLM server: started, watched and started anew by Laura.

What vLLM cannot be trusted with stays on this side: which adapters it gets, what may share
a batch (`vllm_exactness.py`), in which order tenants come, and the text of the tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from laura.engine.vllm_engine import end_ids
from laura.engine.vllm_limits import RANKS, TARGETS, longer_positions
from laura.models.encoding import Encoder
from laura.models.load import check_model_folder, describe_model, fingerprint
from laura.results.errors import ModelError, UsageError
from laura.results.store import read_json
from laura.serve.ask_checks import check_ask, check_rank
from laura.serve.engines import AdapterFiles, Ask, EngineError, EngineState, Event
from laura.serve.tickets import Events
from laura.serve.vllm_arguments import LENGTH, NO_ARGUMENTS, OPTION, VllmArguments
from laura.serve.vllm_client import VllmClient, VllmFault
from laura.serve.vllm_crowd import Crowd
from laura.serve.vllm_exactness import Mixing
from laura.serve.vllm_folder import PrivateFolder
from laura.serve.vllm_job import Job, settled
from laura.serve.vllm_places import Places, ReadChecked, all_pinned
from laura.serve.vllm_server import End, Patience, ServerSettings, VllmServer, find_vllm
from laura.serve.vllm_start import Starter

LOG = logging.getLogger(__name__)
# As many adapters as vLLM computes in one batch; further ones wait in the host's memory.
MOST_AT_ONCE = 8
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}


class VllmServed:
    """Serves a model folder with vLLM.

    Args:
        folder: The model's folder, as `resolve_model` finds it.
        precision: "fp32", "bf16", or "auto": bf16 except on a processor.
        slots: Most adapters in memory, at least 2; 0 for a server without adapters.
        max_rank: Largest rank of an adapter.
        context_tokens: Most tokens of prompt and answer; None for as many as the model reads.
        most_running: Most sequences in work.
        most_waiting: Most that wait for that.
        most_waiting_per_tenant: Most of one tenant.
        arguments: Further arguments of vLLM's server, of `vllm_arguments.read_arguments`; what
            they say of length, format and sequences in work goes before what is said here.
        patience: How long is waited for what.
        read: Reads an adapter that was checked; None for `adapter_checks.read_checked`.

    Attributes:
        max_rank: Largest rank of an adapter.
        mixing: What may share a batch; known once it is started.
        context_tokens: Most tokens of prompt and answer; what vLLM has memory for may turn out
            to be less when it starts.

    Raises:
        ModelError: the folder is no usable model.
        UsageError: `LAURA_VLLM_PYTHON` names no Python, or the arguments ask for a longer text
            than the model reads.
        MissingExtraError: that Python has no vLLM, or too old a one.
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
        self.context_tokens = _context(reads, context_tokens, arguments)
        self.fingerprint = fingerprint(folder)
        self.mixing, self.max_rank = Mixing.NONE, max_rank
        self._end_ids = end_ids(folder, config, self.tokenizer)
        self._vocabulary = int(config.vocab_size)
        self._patience = patience or Patience()
        self._python, self._on_processor = find_vllm()
        if precision == "auto":
            precision = "fp32" if self._on_processor else "bf16"
        # vLLM insists on a new token behind a scored prompt.
        length, positions = self.context_tokens + 1, {}
        if length > reads:
            positions = longer_positions(config, length)
        most_running = arguments.most_running or most_running
        self._settings = ServerSettings(
            folder=folder.resolve(),
            precision=arguments.precision or PRECISIONS[precision],
            length=0 if arguments.context_tokens == 0 else length,
            overrides={**positions, **_architecture(folder, config)},
            most_running=most_running,
            adapters=max(2, slots) if slots else 0,
            adapters_at_once=min(max(2, slots), MOST_AT_ONCE),
            rank=next((one for one in RANKS if one >= max_rank), RANKS[-1]),
            targets=TARGETS,
            arguments=arguments.words,
        )
        self._most_tokens = self.context_tokens
        self._read = read or _read_checked
        self._crowd = Crowd(most_running, most_waiting, most_waiting_per_tenant)
        self._ready, self._stopping = False, False
        self._why = "it has not been started"
        self._remark = ""
        self._salt = secrets.token_bytes(16)
        self._back_at = 0.0
        self._start_seconds = 10.0
        self._folder: PrivateFolder | None = None
        self._starter: Starter | None = None
        self._server: VllmServer | None = None
        self._slots_total = self._settings.adapters
        self._places: Places | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the server and find out what it may be asked together.

        Raises:
            ModelError: it does not start, or does not answer.
            StoreError: there is no room for a private folder.
        """
        self._folder = await asyncio.to_thread(PrivateFolder)
        self._why, place = "vLLM is starting", self._folder.path
        make = partial(
            VllmServer,
            python=self._python,
            on_processor=self._on_processor,
            place=place,
            patience=self._patience,
        )
        self._starter = Starter(self._settings, make, place, self.tokenizer)
        try:
            await self._begin_serving(self._starter, place)
        except BaseException as error:
            await self.stop(0.0)
            if isinstance(error, VllmFault):
                raise ModelError(f"vLLM has started but does not answer: {error}") from error
            raise
        self._ready, self._why = True, ""
        self._watching = asyncio.create_task(self._watch())

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing new, finish what runs within the time, cancel the rest, free everything."""
        self._stopping, self._ready, self._why = True, False, "the server is stopping"
        self._crowd.send_away(EngineError("the server is stopping; try another one", "gone"))
        tasks = [job.task for job in self._crowd.running if job.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for job in list(self._crowd.running):
            job.end("cancelled")
            if job.task is not None:
                job.task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._places is not None:
            await self._places.close()
        if self._starter is not None:
            await self._starter.stop()
        if self._folder is not None:
            await asyncio.to_thread(self._folder.remove)

    def submit(self, ask: Ask, adapter: AdapterFiles | None) -> AsyncIterator[Event]:
        """See `ServingEngine.submit`."""
        self._check(ask, adapter)
        if not self._ready:
            raise self._gone()
        name = None if adapter is None else f"{adapter.name}@{adapter.digest}"
        job = Job(ask, adapter, self.mixing.group(name))
        self._crowd.put(job)
        self._pump()
        return Events(job.events, lambda: self._give_up(job))

    async def load(self, adapter: AdapterFiles, pin: bool = False) -> None:
        """See `ServingEngine.load`."""
        check_rank(adapter, self.max_rank)
        places = self._with_adapters()
        place = places.take(adapter)
        try:
            await places.wait_for(place)
            place.pinned = pin
        finally:
            places.give_back(place)
            self._pump()

    async def unload(self, name: str) -> bool:
        """See `ServingEngine.unload`; one that is in use leaves with its last sequence."""
        if self._places is None:
            return False
        found = self._places.drop(name)
        await self._places.settle()
        self._pump()
        return found

    def state(self) -> EngineState:
        """See `ServingEngine.state`; `why_not` also says what may not share a batch."""
        slots = self._places.state() if self._places else ()
        return EngineState(
            ready=self._ready,
            why_not=self._why or self._remark,
            slots=slots,
            slots_total=self._slots_total,
            running=self._crowd.working(),
            waiting=self._crowd.waiting(),
            tokens_per_second=self._crowd.tokens_per_second(),
            memory_bytes={"adapters": sum(slot.bytes for slot in slots)},
        )

    async def _begin_serving(self, starter: Starter, place: Path) -> None:
        """Start a server and give it the adapters that the last one had."""
        began, again = time.monotonic(), self._places is not None
        started = await starter.start(again)
        client = started.server.client
        if self._places is None:
            folder = place / "adapters"
            self._places = Places(self._settings.adapters, folder, self._read, client)
        if not started.adapters:
            self._places.clear()
        await started.server.meanwhile(self._places.come_back(client))
        self._server, self._slots_total = started.server, started.adapters
        self.mixing, self._remark = started.mixing, started.remark
        self.context_tokens = max(1, min(self._most_tokens, started.length - 1))
        self._start_seconds = time.monotonic() - began

    async def _watch(self) -> None:
        """Start the server anew whenever it has ended, after a pause that grows."""
        pause = self._patience.first_pause
        assert self._starter is not None and self._folder is not None
        while not self._stopping:
            assert self._server is not None
            began = time.monotonic()
            self._fall(await self._server.watch())
            if time.monotonic() - began > self._patience.settled:
                pause = self._patience.first_pause
            while not self._ready and not self._stopping:
                await self._starter.stop()
                self._back_at = time.monotonic() + pause + self._start_seconds
                await asyncio.sleep(pause)
                pause = min(2 * pause, self._patience.last_pause)
                try:
                    await self._begin_serving(self._starter, self._folder.path)
                except Exception as error:  # whatever it is, it is tried again
                    self._why = "vLLM does not start again; the log says why"
                    LOG.error("vLLM does not start again: %s", error)
                else:
                    self._ready, self._why = True, ""
                    LOG.warning("vLLM is back")

    def _fall(self, end: End) -> None:
        """The server has gone: so has all that ran in it or waited for it."""
        LOG.error("%s", end)
        self._ready, self._why = False, end.how
        self._back_at = time.monotonic() + self._start_seconds
        for job in list(self._crowd.running):
            job.tell(self._gone())
            if job.task is not None:
                job.task.cancel()
        self._crowd.send_away(self._gone())

    def _gone(self) -> EngineError:
        if self._stopping:
            return EngineError("the server is stopping; try another one", "gone")
        seconds = max(1.0, math.ceil(self._back_at - time.monotonic()))
        return EngineError("the model's server has stopped and starts anew", "gone", seconds)

    def _check(self, ask: Ask, adapter: AdapterFiles | None) -> None:
        """Refuse what cannot be meant, before it stands in the queue."""
        check_ask(
            ask,
            adapter,
            context_tokens=self.context_tokens,
            vocabulary=self._vocabulary,
            max_rank=self.max_rank,
        )
        if adapter is not None and self._with_adapters().never_room(adapter):
            raise all_pinned()

    def _with_adapters(self) -> Places:
        if not self._ready or self._places is None:
            raise self._gone()
        if self._remark and self.mixing is Mixing.NONE:
            raise EngineError(
                "no adapter can be served: vLLM answers wrongly with one here", "adapter"
            )
        if not self._settings.adapters:
            raise EngineError("the server was started without places for adapters", "adapter")
        return self._places

    def _pump(self) -> None:
        """Begin whatever may begin."""
        if self._ready and self._places is not None:
            self._crowd.begin(self._places, self._begin)

    def _begin(self, job: Job) -> None:
        assert self._places is not None
        if job.adapter is not None:
            job.place = self._places.take(job.adapter)
        job.task = asyncio.create_task(self._work(job))
        job.task.add_done_callback(lambda task: self._end(job, task))

    def _end(self, job: Job, task: asyncio.Task[None]) -> None:
        """Whatever came of it, also if it was cancelled before it began."""
        if not task.cancelled() and isinstance(task.exception(), Exception):
            LOG.error("a sequence failed", exc_info=task.exception())
            job.tell(EngineError("the server failed at this request", "gone", 1.0))
        self._crowd.leave(job)
        if job.place is not None and self._places is not None:
            self._places.give_back(job.place)
        self._pump()

    async def _work(self, job: Job) -> None:
        assert self._server is not None and self._places is not None
        client, left = self._server.client, False
        salt = hashlib.blake2b(job.ask.tenant.encode(), key=self._salt, digest_size=16).hexdigest()
        try:
            if job.place is not None:
                await self._places.wait_for(job.place)
            left = True
            left = not await job.answer(
                client, salt, self.tokenizer, self._end_ids, self._crowd.count
            )
        except EngineError as error:
            job.tell(error)
        except VllmFault as error:
            job.tell(self._blame(error, client))
        finally:
            # vLLM may go on for a step, beside those that must not share its batch.
            if left and self._ready and self.mixing is not Mixing.ALL:
                await settled(client, job.model)

    def _blame(self, error: VllmFault, client: VllmClient) -> EngineError:
        """What the client hears of a fault; what vLLM said is for the log."""
        if error.status == 400:
            LOG.warning("vLLM refuses a request: %s", error)
            return EngineError("the model's server refuses this request", "request")
        assert self._server is not None
        if self._ready and error.status == 0 and self._server.client is client:
            # It has died or hangs. The watch will notice that it has ended, and say how.
            self._server.kill()
            self._fall(End("vLLM does not go on", f": {error}"))
        return self._gone()

    def _give_up(self, job: Job) -> None:
        """The reader wants no more."""
        job.over = True
        if self._crowd.remove(job):
            self._pump()
        elif job.task is not None:
            job.task.cancel()


def _context(reads: int, wanted: int | None, arguments: VllmArguments) -> int:
    """Most tokens of prompt and answer, of a model that reads so many."""
    wanted = arguments.context_tokens or wanted or reads
    if arguments.context_tokens and wanted > reads:
        raise UsageError(
            f"{OPTION} {LENGTH}={wanted}: the model reads {reads} tokens at the most; give fewer, "
            "or leave it out"
        )
    return min(reads, wanted)


def _architecture(folder: Path, config: Any) -> dict[str, list[str]]:
    """The name of the model's class, which vLLM needs and not every config.json has."""
    if read_json(folder / "config.json").get("architectures"):
        return {}
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {"architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]}


def _read_checked(files: AdapterFiles) -> Any:
    from laura.serve.library import read_checked

    return read_checked(files)
