"""A log of who changed what; no torch, no web framework."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select

from laura.serve.auth import without_keys
from laura.serve.database import AUDIT, Database

MOST_CHARACTERS = 200
BEGUN = "begun"
"""Outcome of the row that stands on the disk before anything is done."""


class Audit:
    """A row of the database for each action; what was written once is never changed.

    Args:
        database: Where the rows are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(
        self, action: str, actor: str, subject: str, outcome: str, request: str | None = None
    ) -> None:
        """Add a row, on the disk when this returns.

        Keys are struck out and texts cut at 200 characters: neither a key nor a prompt
        lands here by mistake.

        Args:
            action: What was asked, such as "adapter.load".
            actor: Who asked.
            subject: Of what: an adapter, a tenant, a file.
            outcome: `BEGUN`, then "done" or why not.
            request: Its id, where it was one.

        Raises:
            StoreError: it cannot be written; then the action had better not be done.
        """
        row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "action": action}
        row |= {"actor": actor, "subject": subject, "outcome": outcome}
        row |= {} if request is None else {"request": request}
        with self._database.transaction(durable=True) as connection:
            connection.execute(insert(AUDIT), {key: _safe(value) for key, value in row.items()})

    def last(self, most: int) -> list[dict[str, Any]]:
        """The last rows, the newest at the end.

        Raises:
            StoreError: as `Database.transaction`.
        """
        with self._database.transaction() as connection:
            found = connection.execute(select(AUDIT).order_by(AUDIT.c.id.desc()).limit(most)).all()
        return [{**row._mapping} for row in reversed(found)]


def _safe(text: str) -> str:
    text = without_keys(text)
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 3] + "..."
