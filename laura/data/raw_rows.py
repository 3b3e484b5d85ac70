"""Rows of a source as they stand, each with its place, for whoever reads fields of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from laura.data.files import missing_file, read_rows
from laura.data.hub import hub_rows
from laura.data.named import BENCHMARK_ROWS, NAMED
from laura.data.sources import load_rows, source_file
from laura.recipe.sections import Source
from laura.results.errors import DataError

Placed = tuple[str, dict[str, Any]]


def raw_rows(source: Source, beside: Path, data_dir: Path | None = None) -> list[Placed]:
    """Every row of a source, at most `source.limit`, with the place it stands at.

    Looked up in this order: a file relative to `beside`, a benchmark's rows (with
    `split`), a named set, a data set of the Hub.

    Args:
        source: File, name or Hub id, with split, subset and limit.
        beside: Folder that relative paths start from.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Raises:
        DataError: a missing or broken file, an unknown name, or no rows.
        HubError: the Hub is needed and cannot be reached.
    """
    rows = list(islice(_all_rows(source, beside, data_dir), source.limit))
    if not rows:
        raise DataError(f"{source.source} has no rows; a source needs at least one")
    return rows


def _all_rows(source: Source, beside: Path, data_dir: Path | None) -> Iterable[Placed]:
    path = beside / Path(source.source).expanduser()
    if path.is_file():
        if source.split or source.subset:
            field = "split" if source.split else "subset"
            raise DataError(f"{path} is a file and has no {field}; leave {field} out")
        return _file_rows(path)
    if re.search(r"\.(jsonl?|gz|txt|csv|parquet)$", source.source):
        raise DataError(missing_file(path))
    if source.source in BENCHMARK_ROWS and source.split:
        found = load_rows(source.source, source.split, data_dir)
        return [(f"{source.source}, row {number}", row) for number, row in enumerate(found)]
    local = source_file(source, data_dir)
    if local is None:
        return _hub_rows(source)
    wanted = source.split
    # Some sets that come with Laura hold every split in one file.
    return (
        (place, row)
        for place, row in _file_rows(local)
        if wanted is None or row.get("split", wanted) == wanted
    )


def _file_rows(path: Path) -> Iterable[Placed]:
    return ((f"{path}, line {number}", row) for number, row in read_rows(path))


def _hub_rows(source: Source) -> Iterable[Placed]:
    named = NAMED.get(source.source)
    split = source.split or (named.default_split if named else "train")
    rows = hub_rows(
        named.hub if named else source.source,
        source.subset or (named.config if named else None),
        named.splits.get(split, split) if named else split,
        folder=named.folder if named else None,
        streaming=source.limit is not None,
    )
    place = f"{source.source}, split {split}"
    return ((f"{place}, row {number}", row) for number, row in enumerate(rows))
