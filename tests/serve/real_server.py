"""`laura serve` as a process of its own, for tests that ask it as its clients do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@dataclass(frozen=True)
class RealServer:
    """A command that runs.

    Attributes:
        child: Its process.
        told: What it said when it was ready.
        log: Its lines on standard error, once it has ended.
    """

    child: subprocess.Popen[str]
    told: dict[str, Any]
    log: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return str(self.told["url"])

    def resident_bytes(self) -> int:
        """Memory of the process that is in use (Linux)."""
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        (line,) = (one for one in status.splitlines() if one.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "laura", "serve", *words]


@contextmanager
def serving(
    *words: str, files: int | None = None, unread: bool = False, port: int = 0
) -> Iterator[RealServer]:
    """A server on a port of this machine, a free one by default, stopped by SIGTERM at the end.

    Args:
        words: Of the command.
        files: Most that it may open; None for as many as we may.
        unread: Whether its log goes to a pipe that nobody reads, instead of a file.
    """
    few = [] if files is None else ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh"]
    with (
        tempfile.NamedTemporaryFile("w+", encoding="utf-8") as log,
        subprocess.Popen(
            [*few, *command(*words, "--port", str(port), "--json")],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if unread else log,
            text=True,
        ) as child,
    ):
        try:
            assert child.stdout
            line = child.stdout.readline()
            assert line, Path(log.name).read_text("utf-8")
            server = RealServer(child, json.loads(line))
            yield server
            child.send_signal(signal.SIGTERM)
            child.wait(120)
            server.log.extend(Path(log.name).read_text("utf-8").splitlines())
        finally:
            child.kill()
