"""Adapters on their way from disk into the engine's slots, without holding anybody up.

Files are read in a thread of their own; only the copy into a slot stands between two steps
of the engine. Where every slot is in use, the one that was used least recently takes no
further asks until it is free, so that a new adapter does not wait for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from laura.engine.adapter_slots import Slot, Slots
from laura.models.lora import LoraSettings
from laura.results.errors import AdapterError
from laura.serve.engines import AdapterFiles

Adapter = tuple[LoraSettings, Mapping[str, Tensor]]
Read = Callable[[AdapterFiles], Adapter]
# Adapters that are read but have no slot yet are held in memory besides.
MOST_READ_AHEAD = 4


class NotYet(Exception):
    """An adapter has no slot yet."""


class Loading:
    """Reads adapters and puts them into slots; for the engine's thread.

    Args:
        slots: Where they go.
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

    def slot(self, files: AdapterFiles) -> Slot:
        """The adapter's slot, filled now if its files are read and there is a place.

        Raises:
            NotYet: ask again when something has changed.
            AdapterError: it cannot be loaded.
        """
        slot = self._slots.find(files.name, files.digest)
        if slot is not None:
            if slot is self._leaving:
                raise NotYet
            return slot
        read = self._reads.get(files.digest)
        if read is None and len(self._reads) < MOST_READ_AHEAD:
            read = self._reads[files.digest] = self._readers.submit(self._read, files)
            read.add_done_callback(lambda _: self._notice())
        if read is None or not read.done():
            raise NotYet
        if not self._slots.room_for(files.name):
            if self._leaving is None:
                held = self._slots.held.get(files.name)
                self._leaving = held or self._slots.longest_unused()
            if self._leaving is not None:
                raise NotYet
        del self._reads[files.digest]
        return self._slots.place(files.name, files.digest, *_result(read))

    def close(self) -> None:
        """Give everything up."""
        self._reads = {}
        self._readers.shutdown(wait=False, cancel_futures=True)


def _result(read: Future[Adapter]) -> Adapter:
    try:
        return read.result()
    except AdapterError:
        raise
    except Exception as error:
        raise AdapterError(f"the adapter cannot be read ({type(error).__name__})") from error
