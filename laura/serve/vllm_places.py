"""Adapters in vLLM's memory: a bounded number of places, the least recently used one leaves.

For each there is a private copy on disk, from which vLLM reads it, also after a new start.
Everything runs in the event loop's thread; reading and writing files does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.results.errors import AdapterError, LauraError
from laura.serve.engines import AdapterFiles, EngineError, SlotState
from laura.serve.vllm_adapters import write_plain
from laura.serve.vllm_client import VllmClient, VllmFault

if TYPE_CHECKING:
    from laura.models.lora import LoraSettings

LOG = logging.getLogger(__name__)
ReadChecked = Callable[[AdapterFiles], "tuple[LoraSettings, dict[str, Any]]"]


@dataclass(eq=False)
class Place:
    """One adapter in memory, or on its way there.

    Attributes:
        adapter: Its checked files.
        model: What vLLM calls it; no two places ever have the same name, so that nothing
            of an earlier one (its cache, a late word about it) is taken for it.
        folder: The private copy.
        pinned: Whether it stays.
        in_use: Sequences that need it.
        loading: Brings it there.
        loaded: Whether vLLM has it.
        leaving: Whether it leaves as soon as nobody uses it.
    """

    adapter: AdapterFiles
    model: str
    folder: Path
    pinned: bool = False
    in_use: int = 0
    loading: asyncio.Task[None] | None = None
    loaded: bool = False
    leaving: bool = False


def all_pinned() -> EngineError:
    """Other adapters have every place for good."""
    return EngineError("every place is taken by pinned adapters; unpin one", "adapter")


@dataclass(eq=False)
class Places:
    """The places there are.

    Attributes:
        count: How many.
        folder: Where private copies are made.
        read: Reads an adapter that was checked, if its bytes are still the same.
        client: Speaks to the server that runs at the moment.
    """

    count: int
    folder: Path
    read: ReadChecked
    client: VllmClient
    # The least recently used one first.
    _places: dict[tuple[str, str], Place] = field(default_factory=dict)
    _going: set[asyncio.Task[None]] = field(default_factory=set)
    _made: int = 0

    def has_room(self, adapter: AdapterFiles) -> bool:
        """Whether `take` would succeed now."""
        found = self._places.get((adapter.name, adapter.digest))
        return found is not None or self._is_free() or self._idle() is not None

    def never_room(self, adapter: AdapterFiles) -> bool:
        """Whether all places are pinned by others."""
        others = [place for place in self._places.values() if place.pinned]
        known = (adapter.name, adapter.digest) in self._places
        return len(others) >= self.count and not known

    def take(self, adapter: AdapterFiles) -> Place:
        """A place for this adapter, in use once more; its loading has begun.

        Raises:
            EngineError: every place is in use or pinned.
        """
        key = adapter.name, adapter.digest
        place = self._places.pop(key, None)
        if place is None:
            old = None if self._is_free() else self._idle()
            if old is not None:
                del self._places[old.adapter.name, old.adapter.digest]
            elif not self._is_free():
                raise EngineError(
                    f"all {self.count} places for adapters are in use or pinned; try again later",
                    "adapter",
                )
            self._made += 1
            model = f"{adapter.name}@{self._made}"
            place = Place(adapter, model, self.folder / str(self._made))
            place.loading = asyncio.create_task(self._load(place, old))
            # Whoever waits for it hears of its fault; if nobody does, that is no fault of ours.
            place.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._places[key] = place
        place.in_use += 1
        place.leaving = False
        return place

    def give_back(self, place: Place) -> None:
        """A sequence does not need it any more."""
        place.in_use -= 1
        if place.leaving and not place.in_use:
            self._start_leaving(place)

    async def wait_for(self, place: Place) -> None:
        """Returns when vLLM has the adapter.

        Raises:
            EngineError: it cannot be loaded.
        """
        assert place.loading is not None
        # Who waits may go away without ending the loading for the others.
        await asyncio.shield(place.loading)

    def drop(self, name: str) -> bool:
        """Free the places of this name as soon as nobody uses them; whether there was one."""
        found = [place for place in self._places.values() if place.adapter.name == name]
        for place in found:
            place.pinned, place.leaving = False, True
            if not place.in_use:
                self._start_leaving(place)
        return bool(found)

    async def settle(self) -> None:
        """Returns when all that had to leave has left."""
        await asyncio.gather(*self._going, return_exceptions=True)

    def clear(self) -> None:
        """Forget every adapter; the new server takes none."""
        for place in list(self._places.values()):
            self._forget(place)

    async def come_back(self, client: VllmClient) -> None:
        """Load into a new server what the last one had.

        Raises:
            VllmFault: the server has gone.
        """
        self.client = client
        for place in [place for place in self._places.values() if place.loaded]:
            try:
                await client.load(place.model, place.folder)
            except VllmFault as error:
                if error.status == 0:
                    raise
                LOG.warning("adapter %s did not come back: %s", place.adapter.name, error)
                self._forget(place)

    async def close(self) -> None:
        """Forget everything; the server has ended."""
        tasks = [*self._going, *(place.loading for place in self._places.values())]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task), return_exceptions=True)
        self._places.clear()

    def state(self) -> tuple[SlotState, ...]:
        """What is in the places."""
        return tuple(
            SlotState(place.adapter.name, place.pinned, place.in_use, place.adapter.bytes)
            for place in self._places.values()
        )

    def _is_free(self) -> bool:
        return len(self._places) + len(self._going) < self.count

    def _idle(self) -> Place | None:
        found = (p for p in self._places.values() if p.loaded and not p.in_use and not p.pinned)
        return next(found, None)

    def _start_leaving(self, place: Place) -> None:
        """Its place is free when vLLM has let go of it."""
        if self._places.get((place.adapter.name, place.adapter.digest)) is not place:
            return
        del self._places[place.adapter.name, place.adapter.digest]
        task = asyncio.create_task(self._unload(place))
        self._going.add(task)
        task.add_done_callback(self._going.discard)

    async def _load(self, place: Place, old: Place | None) -> None:
        name = place.adapter.name
        try:
            if old is not None:
                await self._unload(old)
            await asyncio.to_thread(self._copy, place)
            await self.client.load(place.model, place.folder)
            place.loaded = True
        except VllmFault as error:
            LOG.warning("adapter %s cannot be loaded: %s", name, error)
            if error.status == 0:
                raise EngineError("vLLM has stopped; try again", "gone", 1.0) from error
            raise EngineError(f"vLLM cannot load adapter {name}", "adapter") from error
        except AdapterError as error:
            raise EngineError(f"adapter {name} cannot be loaded: {error}", "adapter") from error
        except (LauraError, OSError) as error:
            LOG.warning("adapter %s cannot be copied: %s", name, error)
            raise EngineError(f"adapter {name} cannot be read now", "adapter") from error
        finally:
            if not place.loaded:
                self._forget(place)

    def _copy(self, place: Place) -> None:
        settings, tensors = self.read(place.adapter)
        write_plain(settings, tensors, place.folder)

    async def _unload(self, place: Place) -> None:
        with contextlib.suppress(VllmFault):  # gone with its server
            await self.client.unload(place.model)
        await asyncio.to_thread(shutil.rmtree, place.folder, True)

    def _forget(self, place: Place) -> None:
        key = place.adapter.name, place.adapter.digest
        if self._places.get(key) is place:
            del self._places[key]
        shutil.rmtree(place.folder, ignore_errors=True)
