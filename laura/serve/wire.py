"""What a gate and an engine without a front say to one another: lines of JSON. No torch.

    gate:   GET /engine HTTP/1.1, with the key and `Upgrade: laura-engine`
    engine: HTTP/1.1 101, or a status that says why not
    engine: Hello: the base, its context, the version
    gate:   Ask and Cancel of a sequence, Load and Unload of an adapter, Poll every second
    engine: SequenceEvent of a sequence, Done with an adapter, Report of what it is doing

One connection carries all sequences between two processes, and what a step brought goes out in
one write: a token's way takes 5 microseconds of both processes. As chunks of HTTP, a connection a
sequence, it took 27 (32 sequences, h11; LOG.md). Closing it cancels all that it carries.

The other side may be anything: lines and heads are bounded, what is no message ends the
connection, and so does silence.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, StringConstraints, TypeAdapter

from laura.engine.detokenizer import TextDelta
from laura.results.errors import UsageError
from laura.results.inputs import read_bounded
from laura.results.store import disk_faults
from laura.serve.auth import NAME_PATTERN
from laura.serve.engines import (
    AdapterFiles,
    Begun,
    Ended,
    EngineError,
    EngineState,
    Event,
    PromptScores,
    SequenceRequest,
)

PATH, UPGRADE = "/engine", "laura-engine"
MOST_HEAD_BYTES, MOST_HEAD_LINES = 8 << 10, 64
# A prompt of 262,144 scores, the most that one request may ask for, has 8 million bytes.
MOST_LINE_BYTES, MOST_UNSENT_BYTES = 32 << 20, 64 << 20
POLL_SECONDS, SILENCE_SECONDS = 1.0, 10.0
MOST_KEY_BYTES = 4096


class _Message(BaseModel):
    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants", frozen=True
    )


class AdapterMark(_Message):
    """An adapter as a gate names it: the engine looks for its files in a folder of its own."""

    name: Annotated[str, StringConstraints(pattern=f"^{NAME_PATTERN}$")]
    digest: str
    rank: int
    bytes: int

    @classmethod
    def of(cls, files: AdapterFiles) -> AdapterMark:
        """What is told of an adapter's files."""
        return cls(name=files.name, digest=files.digest, rank=files.rank, bytes=files.bytes)


class Ask(_Message):
    """A sequence is wanted, by whom `traceparent` names (`traces.py`)."""

    kind: Literal["ask"] = "ask"
    request: SequenceRequest
    adapter: AdapterMark | None = None
    traceparent: str | None = None


class Cancel(_Message):
    """A sequence is not wanted any more; nothing more is told of it."""

    kind: Literal["cancel"] = "cancel"
    id: str


class Load(_Message):
    """An adapter shall be in memory; answered by `Done` of the same number."""

    kind: Literal["load"] = "load"
    number: int
    adapter: AdapterMark
    pin: bool


class Unload(_Message):
    """An adapter may leave; answered by `Done` of the same number."""

    kind: Literal["unload"] = "unload"
    number: int
    name: str


class Poll(_Message):
    """The gate lives; answered by `Report`."""

    kind: Literal["poll"] = "poll"


class Hello(_Message):
    """What the engine serves."""

    kind: Literal["hello"] = "hello"
    version: str
    fingerprint: str
    context_tokens: int


class Failure(_Message):
    """An `EngineError`."""

    message: str
    kind: Literal["full", "gone", "adapter", "request"]
    retry_after: float | None = None

    @classmethod
    def of(cls, error: EngineError) -> Failure:
        """What is told of an error."""
        return cls(message=str(error), kind=error.kind, retry_after=error.retry_after)

    def error(self) -> EngineError:
        """The error."""
        return EngineError(self.message, self.kind, self.retry_after)


class SequenceEvent(_Message):
    """An event of a sequence: one of the fields behind its id."""

    # A log-probability may be minus infinity.
    model_config = ConfigDict(allow_inf_nan=True)
    kind: Literal["told"] = "told"
    id: str
    begun: Begun | None = None
    prompt: PromptScores | None = None
    text: TextDelta | None = None
    ended: Ended | None = None
    failure: Failure | None = None

    @classmethod
    def of(cls, id: str, event: Begun | Event | EngineError) -> SequenceEvent:
        """What is told of an event."""
        if isinstance(event, EngineError):
            return cls(id=id, failure=Failure.of(event))
        return cls(id=id, **{_FIELDS[type(event)]: event})

    def event(self) -> Begun | Event | Failure | None:
        """The event; None where there is none."""
        return self.begun or self.text or self.ended or self.prompt or self.failure


_FIELDS: dict[type, str] = {
    Begun: "begun",
    PromptScores: "prompt",
    TextDelta: "text",
    Ended: "ended",
}


class Report(_Message):
    """What the engine is doing."""

    kind: Literal["report"] = "report"
    state: EngineState


class Done(_Message):
    """What became of a `Load` or an `Unload`."""

    kind: Literal["done"] = "done"
    number: int
    unloaded: bool | None = None
    failure: Failure | None = None


OF_GATE: TypeAdapter[Ask | Cancel | Load | Unload | Poll] = TypeAdapter(
    Annotated[Ask | Cancel | Load | Unload | Poll, Discriminator("kind")]
)
OF_ENGINE: TypeAdapter[Hello | SequenceEvent | Report | Done] = TypeAdapter(
    Annotated[Hello | SequenceEvent | Report | Done, Discriminator("kind")]
)


class Wire(asyncio.Protocol, ABC):
    """One end of a connection: a head as HTTP has it, then lines.

    Attributes:
        transport: The connection.
        heard: When something came last (`time.monotonic`).
        why: Why this end has ended it; empty where it has not.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.heard, self.why = time.monotonic(), ""
        self._head: list[str] | None = []
        self._parts: list[bytes] = []
        self._held = 0
        self._unsent: list[bytes] = []

    @abstractmethod
    def head_received(self, head: list[str]) -> None:
        """The head has come, the line of the request or status first."""

    @abstractmethod
    def line_received(self, line: bytes) -> None:
        """A line has come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # As in `connections.py`: else every piece waits until the one before is acknowledged.
        wire = transport.get_extra_info("socket")
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        """Take in what has come, line by line."""
        self.heard = time.monotonic()
        self._parts.append(data)
        self._held += len(data)
        if b"\n" in data:
            *lines, rest = b"".join(self._parts).split(b"\n")
            self._parts, self._held = [rest], len(rest)
            for line in lines:
                if self.transport.is_closing():
                    return
                self._take(line)
        if self._held > (MOST_LINE_BYTES if self._head is None else MOST_HEAD_BYTES):
            self.end("it says too much at once")

    def say(self, message: BaseModel) -> None:
        """Send a message, with all others that are said in this turn of the loop."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append(message.model_dump_json(exclude_none=True).encode())

    def end(self, why: str) -> None:
        """End the connection at once, and hear nothing more."""
        self.why = self.why or why
        self.transport.abort()

    def _take(self, line: bytes) -> None:
        if self._head is None:
            self.line_received(line)
        elif text := line.rstrip(b"\r").decode("latin-1"):
            self._head.append(text)
            if len(self._head) > MOST_HEAD_LINES:
                self.end("it says too much at once")
        else:
            head, self._head = self._head, None
            self.head_received(head)

    def _flush(self) -> None:
        lines, self._unsent = self._unsent, []
        if not self.transport.is_closing():
            self.transport.write(b"\n".join([*lines, b""]))
            if self.transport.get_write_buffer_size() > MOST_UNSENT_BYTES:
                self.end("it does not read what is said")


def headers_of(head: list[str]) -> dict[str, str]:
    """The headers of a head, by their names in small letters."""
    pairs = (line.partition(":") for line in head[1:])
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def read_engine_key(path: Path) -> str:
    """The key that a gate and its engines share.

    Raises:
        UsageError: it is none.
        StoreError: the file cannot be read.
    """
    with disk_faults(path):
        text = read_bounded(path, MOST_KEY_BYTES).decode("ascii", "replace").strip()
    if not re.fullmatch(r"[!-~]{32,1024}", text):
        raise UsageError(
            f"{path}: the key of an engine is one line of 32 to 1,024 letters, digits and signs "
            "without spaces; make one with: openssl rand -hex 32"
        )
    return text


def address_of(backend: str) -> tuple[str, int]:
    """Host and port of an engine's URL.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"http://(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+)):([0-9]{1,5})/?", backend)
    if found is None or not 0 < int(found[3]) < 65536:
        raise UsageError(f"--backend {backend}: give an engine as http://HOST:PORT")
    return found[1] or found[2], int(found[3])
