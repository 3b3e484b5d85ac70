"""Examples from files, named sets and the Hub, checked row by row.

A source is looked up in this order: a name of `NAMED`, a JSON Lines file, a
data set id on the Hub. For a named set the data folder (`--data-dir` or
`LAURA_DATA`) wins over the Hub.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

from laura.data.examples import Example
from laura.data.files import count_rows, kind_of, missing_file, read_rows
from laura.data.hub import hub_rows
from laura.data.named import BENCHMARK_ROWS, NAMED, NamedSource
from laura.recipe.sections import Source
from laura.results.errors import DataError

BUILTIN = Path(__file__).parent / "builtin"
ROLES = ("system", "user", "assistant")
ALLOWED_FIELDS = "messages ([{role, content}, ...]), or prompt and completion, or text"


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


def stream_examples(source: Source, data_dir: Path | None = None) -> Iterator[Example]:
    """The same examples one after the other, without holding the whole set.

    Raises:
        DataError, HubError: as `load_examples`, when the row is reached.
    """
    streaming = source.limit is not None or is_endless(source, data_dir)
    return _examples(source, data_dir, streaming)


def is_endless(source: Source, data_dir: Path | None = None) -> bool:
    """Whether a source is too large to be read whole: a huge set of the Hub without a limit."""
    named = _named(source)
    huge = named is not None and named.huge and source.limit is None
    return huge and named is not None and _local_file(source, named, data_dir) is None


def too_large(source: Source) -> DataError:
    """The error of a source that would have to be read whole, and cannot."""
    return DataError(
        f"{source.source} is too large to load whole; give a limit, such as "
        f"{{source: {source.source}, limit: 100000}}"
    )


def source_file(source: Source, data_dir: Path | None = None) -> Path | None:
    """The local file whose rows a source means, or None where they come from the Hub.

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
    if path is None or not path.is_file():
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
    rows: Iterable[tuple[str, dict[str, Any]]]
    path = _shipped_or_own(folder, local, known.builtin, split)
    if path is not None:
        rows = ((f"{path}, line {number}", row) for number, row in read_rows(path))
    else:
        found = hub_rows(known.hub, known.config, hub_split, streaming=False, local_hint=local)
        rows = ((f"{known.hub}, row {number}", row) for number, row in enumerate(found))
    checked = [_need_fields(row, known.fields, place) for place, row in rows]
    if path is not None and split in known.task_ids:
        checked = [row for row in checked if row["task_id"] in known.task_ids[split]]
    if not checked:
        raise DataError(f"benchmark {name}, split {split}, has no rows; fetch its file again")
    return checked


def _examples(source: Source, data_dir: Path | None, streaming: bool) -> Iterator[Example]:
    found = 0
    for example in islice(_all_examples(source, data_dir, streaming), source.limit):
        found += 1
        yield example
    if not found:
        raise DataError(f"{source.source} has no rows; a source needs at least one")


def _all_examples(source: Source, data_dir: Path | None, streaming: bool) -> Iterator[Example]:
    named = _named(source)
    if named is not None:
        return _named_examples(source, named, data_dir, streaming)
    path = _file(source, data_dir)
    if path is not None:
        return _file_examples(source, path)
    return _hub_examples(source, streaming)


def _named(source: Source) -> NamedSource | None:
    """The named set a source means, also when it gives the set's own Hub id."""
    if source.source in NAMED:
        return NAMED[source.source]
    for named in NAMED.values():
        if named.hub == source.source and source.subset in (None, named.config):
            return named
    return None


def _local_file(source: Source, named: NamedSource, data_dir: Path | None) -> Path | None:
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


def _splits_in_rows(named: NamedSource) -> bool:
    """Whether one file holds the rows of several splits."""
    return bool(named.builtin) and "{split}" not in named.builtin and len(named.splits) > 1


def _named_examples(
    source: Source, named: NamedSource, data_dir: Path | None, streaming: bool
) -> Iterator[Example]:
    split = source.split or named.default_split
    hub_split = _split(source.source, split, named.splits)
    path = _local_file(source, named, data_dir)
    if path is not None:
        numbered = ((f"{path}, line {number}", row) for number, row in read_rows(path))
        if _splits_in_rows(named):
            numbered = ((place, row) for place, row in numbered if row["split"] == split)
    else:
        name = f"{source.source}, split {split}"
        config = source.subset or named.config
        rows = hub_rows(
            named.hub,
            config,
            hub_split,
            folder=named.folder,
            streaming=streaming,
            local_hint=named.local.get(split, ""),
        )
        rows = named.regroup(rows) if named.regroup else rows
        numbered = ((f"{name}, row {number}", row) for number, row in enumerate(rows))
    for index, (place, row) in enumerate(numbered):
        example = _mapped(row, named, index, place)
        if not _blank(example):
            yield example


def _mapped(row: dict[str, Any], named: NamedSource, index: int, place: str) -> Example:
    if not named.text and not named.answer:
        return _detected(row, index, place)
    if named.text:
        _need_fields(row, (named.text,), place)
        return Example(index, (), _string(row[named.text], named.text, place))
    _need_fields(row, (named.prompt[0], named.answer), place)
    values = {name: row.get(name) for name in named.prompt}
    parts = [_string(value, name, place) for name, value in values.items() if value is not None]
    prompt = "\n\n".join(part for part in parts if part.strip())
    answer = _string(row[named.answer], named.answer, place)
    if named.joined is not None:
        return Example(index, (), prompt + named.joined + answer)
    return Example(index, (("user", prompt), ("assistant", answer)))


def _file(source: Source, data_dir: Path | None) -> Path | None:
    """The file a source means, relative to here or to the data folder; None for a Hub id."""
    text = source.source
    path = _path(text)
    folder = find_data_dir(data_dir)
    places = [path] if path.is_absolute() or folder is None else [path, folder / path]
    for place in places:
        if _exists(place):
            return place
    if text.startswith((".", "~", "/")) or re.search(r"\.(jsonl?|gz|txt|csv|parquet)$", text):
        raise DataError(" and ".join(missing_file(place) for place in places))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return None
    raise DataError(
        f"unknown data set {text!r}; {_nearest(text, NAMED)}, or the path of a JSON Lines file, "
        "or a Hub id such as openai/gsm8k"
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


def _file_examples(source: Source, path: Path) -> Iterator[Example]:
    if source.split or source.subset:
        field = "split" if source.split else "subset"
        raise DataError(f"{path} is a file and has no {field}; leave {field} out")
    for index, (number, row) in enumerate(read_rows(path)):
        place = f"{path}, line {number}"
        example = _detected(row, index, place)
        if _blank(example):
            raise DataError(
                f"{place}: has nothing to learn (its text or answer is blank, or no message is "
                "the assistant's); fill it or delete the line"
            )
        yield example


def _hub_examples(source: Source, streaming: bool) -> Iterator[Example]:
    split = source.split or "train"
    rows = hub_rows(source.source, source.subset, split, streaming=streaming)
    for index, row in enumerate(rows):
        example = _detected(row, index, f"{source.source}, split {split}, row {index}")
        if not _blank(example):
            yield example


def _detected(row: Mapping[str, Any], index: int, place: str) -> Example:
    """An example from a row whose format its fields tell."""
    if "messages" in row:
        return Example(index, _messages(row["messages"], place))
    if "prompt" in row and "completion" in row:
        prompt = _string(row["prompt"], "prompt", place)
        answer = _string(row["completion"], "completion", place)
        return Example(index, (("user", prompt), ("assistant", answer)))
    if "text" in row:
        return Example(index, (), _string(row["text"], "text", place))
    fields = set(row)
    known = [
        name
        for name, named in NAMED.items()
        if named.hub and named.answer and {named.prompt[0], named.answer} <= fields
    ]
    hint = f" (these are the fields of the named set {' or '.join(known)})" if known else ""
    raise DataError(
        f"{place}: has the fields {_list(row)}{hint}; allowed are {ALLOWED_FIELDS}. Rename the "
        "fields"
    )


def _messages(value: object, place: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not value:
        came = "an empty list" if value == [] else kind_of(value)
        raise DataError(f"{place}: messages must be a list of {{role, content}}, came {came}")
    return tuple(_message(item, number, place) for number, item in enumerate(value))


def _message(item: object, number: int, place: str) -> tuple[str, str]:
    where = f"{place}: message {number}"
    if not isinstance(item, dict) or not {"role", "content"} <= set(item):
        came = f"the fields {_list(item)}" if isinstance(item, dict) else kind_of(item)
        raise DataError(f"{where} must have role and content, came {came}")
    role = item["role"]
    if role not in ROLES:
        raise DataError(f"{where}: role must be {', '.join(ROLES)}, came {_short(role)}")
    return str(role), _string(item["content"], f"message {number}, content", place)


def _string(value: object, field: str, place: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {field} must be a string, came {kind_of(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {field} holds half of a surrogate pair at character {error.start}, which "
            "is not text; write the file again from its origin"
        ) from error
    return value


def _need_fields(row: dict[str, Any], fields: Iterable[str], place: str) -> dict[str, Any]:
    missing = [name for name in fields if name not in row]
    if missing:
        raise DataError(
            f"{place}: lacks {', '.join(missing)}; has the fields {_list(row)}. The file is not "
            "the one expected; fetch it again"
        )
    return row


def _blank(example: Example) -> bool:
    """True where there is nothing to learn: blank text, or no answer with words in it."""
    answers = [content for role, content in example.messages if role == "assistant"]
    return not any(part.strip() for part in [example.text, *answers])


def _split(name: str, split: str, splits: Mapping[str, str]) -> str:
    if split not in splits:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{hint}known are {', '.join(names)}"


def _list(row: Mapping[Any, Any]) -> str:
    names = [_short(name) for name in list(row)[:12]]
    return ", ".join(names) + (", ..." if len(row) > 12 else "") if names else "(none)"


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
