"""Rows as lines that fit a terminal. What needs colour or folded cells is rich's."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def terminal_width() -> int:
    """Cells in a line of the terminal (or $COLUMNS); 80 in a pipe."""
    return shutil.get_terminal_size().columns


def table_lines(rows: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Rows as lines, the first column to the left and the others to the right.

    Columns for which a line has no room stand below, beside the first column again.

    Args:
        rows: The headings, then the cells.
        indent: What every line begins with.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = terminal_width() - len(indent) - widths[0]
    blocks: list[list[int]] = [[]]
    for place, width in enumerate(widths[1:], 1):
        if blocks[-1] and sum(2 + widths[one] for one in blocks[-1]) + 2 + width > room:
            blocks.append([])
        blocks[-1].append(place)
    lines: list[str] = []
    for block in blocks:
        lines += [""] * bool(lines)
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[one].rjust(widths[one]) for one in block)]
            lines.append((indent + "  ".join(cells)).rstrip())
    return lines
