"""Examples from files, named sets and the Hub, checked row by row.

A source is looked up in this order: a name of `NAMED`, a file (or a folder of them, or a pattern
of their names), a data set id on the Hub. For a named set the data folder (`--data-dir` or
`LAURA_DATA`) wins over the Hub.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

from laura.data.examples import Example
from laura.data.formats import Columns, example_of, is_blank, shape_of
from laura.data.named import BENCHMARK_ROWS, NAMED, KnownSet
from laura.data.rows import (
    ENDINGS,
    Placed,
    count_rows,
    field_names,
    matches,
    missing_file,
    read_rows,
)
from laura.recipe.sections import Source
from laura.results.errors import DataError, HubError, LauraError
from laura.results.progress import SILENT
from laura.results.statistics import count

BUILTIN = Path(__file__).parent / "builtin"
FILE_ENDINGS = (*ENDINGS, ".gz", ".txt")  # a name with one of these is meant to be a file's
LOOKED_ON = 1000  # rows behind one that does not fit, in which others are looked for


def find_data_dir(given: Path | None) -> Path | None:
    """The data folder: the one given, else the one `LAURA_DATA` names, else none.

    Raises:
        DataError: the folder does not exist.
    """
    name = given if given is not None else os.environ.get("LAURA_DATA")
    if not name:
        return None
    folder = Path(name).expanduser()
    if not folder.is_dir():
        origin = "--data-dir" if given is not None else "LAURA_DATA"
        raise DataError(f"{origin} names {folder}, which is not a folder; check the path")
    return folder


def load_examples(source: Source, data_dir: Path | None = None) -> list[Example]:
    """Every example of a source, at most `source.limit`.

    Args:
        source: The recipe's entry.
        data_dir: Data folder; None means `LAURA_DATA`, if set.

    Raises:
        DataError: unknown name, missing or broken file, a row without the
            fields needed, or no rows at all.
        HubError: the Hub is needed and cannot be reached.
    """
    if is_endless(source, data_dir):
        raise too_large(source)
    return list(stream_examples(source, data_dir))


def stream_examples(
    source: Source, data_dir: Path | None = None, tell: Callable[[str], object] = SILENT.say
) -> Iterator[Example]:
    """The same examples one after the other, without holding the whole set.

    Args:
        source: The recipe's entry.
        data_dir: Data folder; None means `LAURA_DATA`, if set.
        tell: Told as what the rows are read, and how many were skipped.

    Raises:
        DataError, HubError: as `load_examples`, when the row is reached.
    """
    found, skipped = 0, list[str]()
    rows = _examples(source, data_dir, skipped, tell)
    try:
        for example in islice(rows, source.limit):
            found += 1
            yield example
    finally:  # whoever has enough of them stops before the end
        if skipped:
            tell(f"{source.source}: {count(len(skipped), 'row')} skipped, {_some(skipped)}")
    if not found:
        raise DataError(f"{source.source} has no rows; a source needs at least one")


def is_endless(source: Source, data_dir: Path | None = None) -> bool:
    """Whether a source is read only as far as needed: it says so, or is a huge set of the Hub."""
    named = _named(source)
    if source.limit is not None or source.streaming:
        return source.limit is None
    return named is not None and named.huge and _local_file(source, named, data_dir) is None


def too_large(source: Source) -> DataError:
    """The error of a source that would have to be read whole, and cannot."""
    return DataError(
        f"{source.source} is too large to load whole; give a limit, such as "
        f"{{source: {source.source}, limit: 100000}}"
    )


def source_file(source: Source, data_dir: Path | None = None) -> Path | None:
    """The local file, folder or pattern that a source means; None where rows come from the Hub.

    Raises:
        DataError: an unknown name, or a file that does not exist.
    """
    named = _named(source)
    return _local_file(source, named, data_dir) if named else _file(source, data_dir)


def count_examples(source: Source, data_dir: Path | None = None) -> float:
    """How many examples a source will give, for an estimate; infinity where that is unknown."""
    if source.limit is not None:
        return source.limit
    named, path = _named(source), source_file(source, data_dir)
    if path is None or is_endless(source, data_dir):
        return inf
    if named is not None and _splits_in_rows(named):
        split = source.split or named.default_split
        return sum(1 for _, row in read_rows(path) if row["split"] == split)
    return count_rows(path)


def load_rows(name: str, split: str, data_dir: Path | None = None) -> list[dict[str, Any]]:
    """Raw rows of a benchmark, in file order.

    Args:
        name: A key of `BENCHMARK_ROWS`.
        split: `train`, `validation` or `test`, where the benchmark has it.
        data_dir: Data folder; None means `LAURA_DATA`, if set. It wins over the Hub.

    Raises:
        DataError: unknown name or split, broken file, a field is missing, no rows.
        HubError: the Hub is needed and cannot be reached.
    """
    if name not in BENCHMARK_ROWS:
        raise DataError(f"unknown benchmark {name!r}; {_nearest(name, BENCHMARK_ROWS)}")
    known = BENCHMARK_ROWS[name]
    hub_split = _split(name, split, known.splits)
    local = known.local.get(split, "")
    folder = find_data_dir(data_dir)
    path = _shipped_or_own(folder, local, known.builtin, split)
    if path is not None:
        rows = read_rows(path)
    else:
        found = hub_rows(known.hub, known.config, hub_split, streaming=False, local_hint=local)
        rows = _placed(found, known.hub)
    checked = [_need_fields(row, known.fields, place) for place, row in rows]
    if path is not None and split in known.task_ids:
        checked = [row for row in checked if row["task_id"] in known.task_ids[split]]
    if not checked:
        raise DataError(f"benchmark {name}, split {split}, has no rows; fetch its file again")
    return checked


def _examples(
    source: Source, data_dir: Path | None, skipped: list[str], tell: Callable[[str], object]
) -> Iterator[Example]:
    """The examples; the places of rows that were skipped are added to `skipped`."""
    named, path = _named(source), source_file(source, data_dir)
    split = ""
    if named is not None:
        split = source.split or named.default_split
        _split(source.source, split, named.splits)
    elif path is not None:
        _refuse_parts(source, path)
    if path is None:
        streaming = source.limit is not None or is_endless(source, data_dir)
        rows = _hub_rows(source, named, streaming)
    else:
        rows = read_rows(path)
        if named is not None and _splits_in_rows(named):
            rows = ((place, row) for place, row in rows if row["split"] == split)
    columns, told = _columns(source, named), False
    read = partial(_example, columns=columns, own=named is None and path is not None)
    numbered = enumerate(rows)
    for index, (place, row) in numbered:
        try:
            example = read(index, place, row)
        except DataError as error:
            if source.bad_rows != "skip":
                raise _with_others(error, numbered, read) from error
            skipped.append(place)
            continue
        if columns is None and not told:
            tell(f"{source.source} is read as {shape_of(row, place).words()}")
            told = True
        if example is not None:
            yield example


def _columns(source: Source, named: KnownSet | None) -> Columns | None:
    """What the recipe says of the rows, or the named set; None where each row tells."""
    given = source.columns
    if given is None:
        return named.columns if named else None
    if named is not None:
        raise DataError(f"{source.source} is a set whose columns are known; leave columns out")
    return Columns(
        given.messages or "",
        tuple(given.prompt),
        given.completion or "",
        given.system or "system",
        given.text or "",
    )


def _example(
    index: int, place: str, row: dict[str, Any], columns: Columns | None, own: bool
) -> Example | None:
    """A row's example; None where it is blank, which is a fault in a file of one's own."""
    example = example_of(row, columns, index, place)
    if not is_blank(example):
        return example
    if own:
        raise DataError(
            f"{place}: has nothing to learn (its text or answer is blank, or no message is "
            "the assistant's); fill it or delete the row"
        )
    return None


def _with_others(
    first: DataError,
    numbered: Iterator[tuple[int, Placed]],
    read: Callable[[int, str, dict[str, Any]], object],
) -> DataError:
    """The fault of a row, with the places of those behind it that do not fit either."""
    others, seen = list[str](), 0
    with suppress(DataError):  # what cannot even be read will be told when these are mended
        for index, (place, row) in islice(numbered, LOOKED_ON):
            seen += 1
            try:
                read(index, place, row)
            except DataError:
                others.append(place)
    if not others:
        return DataError(f"{first}; or leave such rows out with bad_rows: skip")
    return DataError(
        f"{first}. {len(others)} of the {seen:,} rows behind it do not fit either "
        f"({_some(others)}); mend them, or leave such rows out with bad_rows: skip"
    )


def _some(places: list[str]) -> str:
    """The first few places, the file's name once."""
    told = [place.rsplit(", ", 1)[-1] for place in places[:5]]
    return ", ".join(told) + (", ..." if len(places) > 5 else "")


def _named(source: Source) -> KnownSet | None:
    """The named set a source means, also when it gives the set's own Hub id."""
    if source.source in NAMED:
        return NAMED[source.source]
    for named in NAMED.values():
        if named.hub == source.source and source.subset in (None, named.config):
            return named
    return None


def _local_file(source: Source, named: KnownSet, data_dir: Path | None) -> Path | None:
    folder = find_data_dir(data_dir)
    split = source.split or named.default_split
    local = named.local.get(split)
    other_subset = source.subset not in (None, named.config)
    return _shipped_or_own(folder, "" if other_subset else local or "", named.builtin, split)


def _shipped_or_own(folder: Path | None, local: str, builtin: str, split: str) -> Path | None:
    """The data folder's file, else the one that comes with Laura; None for the Hub.

    A data folder that has a folder of shipped data's name means its own world: one of
    its files that is missing is not replaced by one of another world.
    """
    own = folder / local if folder and local else None
    if own is not None and (own.is_file() or (builtin and own.parent.is_dir())):
        return own
    return BUILTIN / builtin.format(split=split) if builtin else None


def _splits_in_rows(named: KnownSet) -> bool:
    """Whether one file holds the rows of several splits."""
    return bool(named.builtin) and "{split}" not in named.builtin and len(named.splits) > 1


def _file(source: Source, data_dir: Path | None) -> Path | None:
    """The file a source means, relative to here or to the data folder; None for a Hub id."""
    text = source.source
    path = _path(text)
    folder = find_data_dir(data_dir)
    places = [path] if path.is_absolute() or folder is None else [path, folder / path]
    for place in places:
        if _exists(place) or matches(place):
            return place
    if text.startswith((".", "~", "/")) or text.endswith(FILE_ENDINGS):
        raise DataError(" and ".join(missing_file(place) for place in places))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return None
    raise DataError(
        f"unknown data set {text!r}; {_nearest(text, NAMED)}, or the path of a file or a folder of "
        f"rows ({', '.join(ENDINGS)}), or a Hub id such as openai/gsm8k"
    )


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~name of nobody
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, a forbidden folder
        return False


def _refuse_parts(source: Source, path: Path) -> None:
    if source.split or source.subset:
        field = "split" if source.split else "subset"
        raise DataError(f"{path} lies here and has no {field}; leave {field} out")


# ----- rows as they stand, each with its place -----


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
    rows = list(_raw_rows(name, beside, data_dir))
    if not rows:
        raise DataError(f"{name} has no rows; a source needs at least one")
    return rows


def _raw_rows(name: str, beside: Path, data_dir: Path | None) -> Iterable[Placed]:
    path = beside / Path(name).expanduser()
    if path.is_file():
        return read_rows(path)
    if name.endswith(FILE_ENDINGS):
        raise DataError(missing_file(path))
    source = Source(source=name)
    local = source_file(source, data_dir)
    if local is None:
        return _hub_rows(source, _named(source), streaming=False, regroup=False)
    return read_rows(local)


def _hub_rows(
    source: Source, named: KnownSet | None, streaming: bool, regroup: bool = True
) -> Iterator[Placed]:
    known = named or KnownSet(source.source, None, {})
    split = source.split or known.default_split
    rows: Iterable[dict[str, Any]] = hub_rows(
        known.hub,
        source.subset or known.config,
        known.splits.get(split, split),
        folder=known.folder,
        streaming=streaming,
        local_hint=known.local.get(split, ""),
    )
    rows = known.regroup(rows) if regroup and known.regroup else rows
    return _placed(rows, f"{source.source}, split {split}")


def _placed(rows: Iterable[dict[str, Any]], name: str) -> Iterator[Placed]:
    return ((f"{name}, row {number}", row) for number, row in enumerate(rows))


# ----- rows that are checked -----


def _need_fields(row: dict[str, Any], fields: Iterable[str], place: str) -> dict[str, Any]:
    missing = [name for name in fields if name not in row]
    if missing:
        raise DataError(
            f"{place}: lacks {', '.join(missing)}; has the fields {field_names(row)}. The file is "
            "not the one expected; fetch it again"
        )
    return row


def _split(name: str, split: str, splits: Mapping[str, str]) -> str:
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}known are {', '.join(names)}"


# ----- rows of the Hub, through `datasets`, with every refusal explained -----


ANSWER_SECONDS = 15.0


def hub_rows(
    repository: str,
    config: str | None,
    split: str,
    *,
    folder: str | None = None,
    streaming: bool = True,
    local_hint: str = "",
) -> Iterator[dict[str, Any]]:
    """Rows of one split, in the Hub's order.

    Args:
        repository: Data set id, such as `openai/gsm8k`.
        config: Configuration name, or None.
        split: The Hub's name of the split.
        folder: Folder of the repository to read, or None.
        streaming: Read row by row instead of fetching the whole split first.
        local_hint: File that would have been used from a data folder.

    Raises:
        HubError: no network, no such data set, or access is refused; says how
            to use local files instead.
        DataError: the configuration or split does not exist.
    """
    import datasets

    _check_reachable(repository, local_hint)
    try:
        rows = datasets.load_dataset(
            repository, config, split=split, data_dir=folder, streaming=streaming
        )
        for row in rows:
            yield dict(row)
    except LauraError:
        raise
    except ValueError as error:
        raise DataError(
            f"{repository} on the Hub: {_first_line(error)}; give the configuration as `subset` "
            "and the split as `split`"
        ) from error
    except Exception as error:
        raise HubError(_refusal(repository, _first_line(error), local_hint)) from error


def _check_reachable(repository: str, local_hint: str) -> None:
    """Ask once, with a short wait; `datasets` itself retries for half a minute."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().dataset_info(repository, timeout=ANSWER_SECONDS)
    except HFValidationError as error:
        raise DataError(f"{repository!r} is not a Hub data set id: {_first_line(error)}") from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403, 404):
            reason = (
                "it does not exist, or you may not read it; check the id, accept its terms on "
                "its page and log in with `hf auth login`"
            )
            raise HubError(_refusal(repository, reason, local_hint)) from error
        raise HubError(_refusal(repository, _first_line(error), local_hint)) from error
    except Exception as error:
        reason = f"the Hub cannot be reached ({_first_line(error)})"
        raise HubError(_refusal(repository, reason, local_hint)) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def _refusal(repository: str, reason: str, local_hint: str) -> str:
    from huggingface_hub import constants

    place = f" with {local_hint} in it" if local_hint else ""
    offline = constants.HF_HUB_OFFLINE
    last = (
        "unset HF_HUB_OFFLINE to download it"
        if offline
        else "if it was downloaded before, set HF_HUB_OFFLINE=1"
    )
    return (
        f"data set {repository}: {reason}. Without the Hub: give --data-dir (or set LAURA_DATA) "
        f"to a folder{place}, or name a file of rows as the source; or {last}"
    )
