"""Examples packed into rows, all of them made at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from laura.data.packing import Row, arrange, fit
from laura.data.templates import Encoded


def pack(
    encoded: Sequence[Encoded], row_tokens: int, *how: Any, seed: int = 0, **more: Any
) -> list[Row]:
    """Rows as training makes them one by one."""
    fitted = fit(encoded, row_tokens, *how, **more)
    return [fitted.row(encoded, found) for found in arrange(fitted.lengths, row_tokens, seed)]


def fill_rate(rows: Sequence[Row], row_tokens: int) -> float:
    """Share of the rows' room that holds tokens."""
    return sum(len(row.token_ids) for row in rows) / (len(rows) * row_tokens)
