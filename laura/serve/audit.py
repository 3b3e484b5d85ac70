"""Who changed what, when, and whether it worked: a log of admin actions as JSON Lines."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from laura.results.store import disk_faults
from laura.serve.tenants import without_keys

MOST_CHARACTERS = 200
BEGUN = "begun"
"""Outcome of the line that stands on the disk before anything is done."""


class Audit:
    """Appends one line an action; what was written once is never changed.

    Args:
        path: The file; None keeps no log. It is opened for every line, so that it may be
            moved away at any time to begin a new one.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(
        self,
        action: str,
        actor: str,
        subject: str,
        outcome: str,
        **facts: str | float | bool | None,
    ) -> None:
        """Add a line, on the disk when this returns.

        Keys are struck out and texts cut at 200 characters: neither a key nor a prompt
        lands here by mistake.

        Args:
            action: What was asked, such as "adapter.load".
            actor: Who asked.
            subject: Of what: an adapter, a tenant, a file.
            outcome: `BEGUN`, then "done" or why not.
            facts: What else is worth knowing. Names and numbers; infinities and NaN become
                text.

        Raises:
            StoreError: it cannot be written; then the action had better not be done.
        """
        if self._path is None:
            return
        assert "time" not in facts, "the log's own"
        when = datetime.now(UTC).isoformat(timespec="milliseconds")
        told = {"action": action, "actor": actor, "subject": subject, "outcome": outcome}
        row = {"time": when, **told, **facts}
        line = json.dumps({key: _safe(value) for key, value in row.items()}) + "\n"
        _append(self._path, line.encode("ascii"))


def _safe(value: str | float | bool | None) -> str | float | bool | None:
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, float) and value - value == 0:  # finite
        return value
    text = without_keys(str(value))
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."


def _append(path: Path, line: bytes) -> None:
    """Add a line in one write, which no other process's can come between."""
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        file = os.open(path, flags, 0o600)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                # The last line was cut off, by a power cut or a full disk.
                line = b"\n" + line
            if os.write(file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        finally:
            os.close(file)
