"""The start of a vLLM server, the first one and every one after a fall.

A server is examined each time before anything is asked of it: what it may be asked together
(`vllm_exactness.py`) and how much it reads. Another start may be another vLLM, with another
batch or less memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from laura.serve.vllm_adapters import write_probes
from laura.serve.vllm_client import VllmFault
from laura.serve.vllm_exactness import Mixing, ask_base, find_mixing
from laura.serve.vllm_server import ServerSettings, VllmServer

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """A server that is well.

    Attributes:
        server: The process.
        adapters: Places for adapters; 0 where none can be served.
        mixing: What may share a batch.
        remark: Why no more, in words for the admin; empty where everything may.
        length: Most tokens of prompt and answer that it reads.
    """

    server: VllmServer
    adapters: int
    mixing: Mixing
    remark: str
    length: int


class Starter:
    """Starts servers, one after the other.

    Args:
        settings: What each is started with.
        make: Makes a server of such settings, which is not started yet.
        place: A folder that only this user can enter.
        tokenizer: The base's.
    """

    def __init__(
        self,
        settings: ServerSettings,
        make: Callable[[ServerSettings], VllmServer],
        place: Path,
        tokenizer: Any,
    ) -> None:
        self._settings, self._make = settings, make
        self._place, self._tokenizer = place, tokenizer
        self._server: VllmServer | None = None
        self._probes: dict[str, Path] = {}

    async def start(self, again: bool) -> Started:
        """Start a server and examine it.

        Args:
            again: Whether an earlier one has served. Then one that falls while it is examined
                has to be started once more; else what was tried is too much for it, and it
                serves the base alone.

        Raises:
            ModelError: it does not start.
            VllmFault: it does not answer.
        """
        server = await self._run(self._settings)
        adapters, mixing, remark = self._settings.adapters, Mixing.ALL, ""
        if adapters:
            mixing, why = await self._examine(server, again)
            remark = "" if mixing is Mixing.ALL else f"only {mixing.value}: {why}"
        if remark:
            LOG.warning("vLLM serves %s", remark)
        if mixing is Mixing.NONE:
            # What was tried may still work in it, so the base gets a server of its own.
            await server.stop()
            server, adapters = await self._run(replace(self._settings, adapters=0)), 0
        length = await server.meanwhile(server.client.context_tokens())
        return Started(server, adapters, mixing, remark, length)

    async def stop(self) -> None:
        """End the server that was started last."""
        if self._server is not None:
            await self._server.stop()

    async def _run(self, settings: ServerSettings) -> VllmServer:
        self._server = self._make(settings)
        await self._server.start()
        return self._server

    async def _examine(self, server: VllmServer, again: bool) -> tuple[Mixing, str]:
        began = time.monotonic()
        if not self._probes:
            folder, count = self._settings.folder, self._settings.adapters_at_once
            place = self._place / "probes"
            self._probes = await asyncio.to_thread(write_probes, folder, place, count)
        client, precision = server.client, self._settings.precision
        base = await server.meanwhile(ask_base(client, self._tokenizer))
        try:
            found = await server.meanwhile(
                find_mixing(client, base, self._probes, self._tokenizer, precision)
            )
        except VllmFault as error:
            if again:
                raise
            return Mixing.NONE, f"vLLM breaks off with adapters ({error})"
        LOG.info("vLLM was examined in %.1f seconds", time.monotonic() - began)
        return found
