"""Standard output and error of a process that must not wait for whoever reads them."""

from __future__ import annotations

import atexit
import io
import json
import logging
import os
import sys
import threading
from typing import TextIO

from laura.serve.context import RequestLog

MOST_BYTES = 1 << 20
"""As much may wait to be written; what comes then is dropped."""
FLUSH_SECONDS = 1.0


class LogStream(io.BufferedIOBase):
    """A file or pipe that a thread of its own writes: nobody else waits for it.

    Where lines were dropped, because nobody read or the disk was full, a line
    `{"dropped": N}` says how many.

    Args:
        descriptor: Of the file or pipe.

    Attributes:
        dropped: Lines so far.
    """

    name = "log"

    def __init__(self, descriptor: int) -> None:
        self.dropped = self._told = 0
        self._descriptor = descriptor
        self._waiting, self._writing = bytearray(), False
        self._changed = threading.Condition()
        # A daemon writes past Python's own buffers: at the end of the process, nobody waits for
        # it nor for a lock that it holds.
        threading.Thread(target=self._write_all, name="laura-log", daemon=True).start()

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Hand bytes over, best a whole line; they may be dropped."""
        with self._changed:
            if self._waiting and len(self._waiting) + len(data) > MOST_BYTES:
                self.dropped += data.count(b"\n")
            else:
                self._waiting += data
                self._changed.notify_all()
        return len(data)

    def drain(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until all is written, but no longer than so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._writing), seconds)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                data, self._waiting, self._writing = self._waiting, bytearray(), True
                if self.dropped > self._told:  # since these lines came
                    data += json.dumps({"dropped": self.dropped - self._told}).encode() + b"\n"
                    self._told = self.dropped
            left = memoryview(data)
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                self.dropped += bytes(left).count(b"\n")
            with self._changed:
                self._writing = False
                self._changed.notify_all()


def unblocked_log() -> RequestLog:
    """The log of requests on standard error, which from now on nobody waits for.

    Nor for standard output: both are replaced for the rest of the process, so that Python's
    `logging`, warnings and messages stop nothing either. At its end, each has a second.
    """
    for name in ("stdout", "stderr"):
        text: TextIO = getattr(sys, name)
        text.flush()
        stream = LogStream(text.fileno())
        atexit.register(stream.drain)
        encoded = io.TextIOWrapper(stream, text.encoding, text.errors, write_through=True)
        setattr(sys, name, encoded)
        # Libraries have made handlers of their own when they were imported.
        for logger in logging.root.manager.loggerDict.values():
            for handler in getattr(logger, "handlers", ()):
                if isinstance(handler, logging.StreamHandler) and handler.stream is text:
                    handler.setStream(encoded)
    return RequestLog(sys.stderr, lambda: stream.dropped)
