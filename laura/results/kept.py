"""JSON Lines kept as they come, so that work which is stopped goes on where it was.

    first line: what the rows belong to; then one line each

A file of anything else starts anew; a last line that was cut off is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laura.results.inputs import bounded_lines, open_regular
from laura.results.store import disk_faults, write_text


@contextmanager
def kept_rows(
    path: Path, identity: dict[str, Any]
) -> Iterator[tuple[list[dict[str, Any]], Callable[[dict[str, Any]], None]]]:
    """What was kept, and a function that keeps one more, at once.

    Raises:
        StoreError: the file cannot be read or written.
    """
    rows = _read(path, identity)
    write_text(path, "".join(json.dumps(row) + "\n" for row in (identity, *rows)))
    with disk_faults(path):
        file = path.open("a", encoding="utf-8")

    def keep(row: dict[str, Any]) -> None:
        with disk_faults(path):
            file.write(json.dumps(row) + "\n")
            file.flush()

    with file:
        yield rows, keep


def _read(path: Path, identity: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    with disk_faults(path), open_regular(path) as file:
        for line in bounded_lines(file, path):
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                break
            rows.append(row)
    return rows[1:] if rows and rows[0] == identity else []
