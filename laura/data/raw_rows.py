"""Rows of a source as they stand, each with its place, for whoever reads fields of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from laura.data.files import missing_file, read_rows
from laura.data.hub import hub_rows
from laura.data.named import NAMED
from laura.data.sources import source_file
from laura.recipe.sections import Source
from laura.results.errors import DataError

Placed = tuple[str, dict[str, Any]]


def raw_rows(name: str, beside: Path, data_dir: Path | None = None) -> list[Placed]:
    """Every row of a source, with the place it stands at.

    Looked up in this order: a file relative to `beside`, a named set, a data set of the Hub.

    Args:
        name: File, name or Hub id.
        beside: Folder that relative paths start from.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Raises:
        DataError: a missing or broken file, an unknown name, or no rows.
        HubError: the Hub is needed and cannot be reached.
    """
    rows = list(_all_rows(name, beside, data_dir))
    if not rows:
        raise DataError(f"{name} has no rows; a source needs at least one")
    return rows


def _all_rows(name: str, beside: Path, data_dir: Path | None) -> Iterable[Placed]:
    path = beside / Path(name).expanduser()
    if path.is_file():
        return _file_rows(path)
    if re.search(r"\.(jsonl?|gz|txt|csv|parquet)$", name):
        raise DataError(missing_file(path))
    local = source_file(Source(source=name), data_dir)
    return _hub_rows(name) if local is None else _file_rows(local)


def _file_rows(path: Path) -> Iterable[Placed]:
    return ((f"{path}, line {number}", row) for number, row in read_rows(path))


def _hub_rows(name: str) -> Iterable[Placed]:
    named = NAMED.get(name)
    split = named.default_split if named else "train"
    rows = hub_rows(
        named.hub if named else name,
        named.config if named else None,
        named.splits.get(split, split) if named else split,
        folder=named.folder if named else None,
        streaming=False,
    )
    return ((f"{name}, split {split}, row {number}", row) for number, row in enumerate(rows))
