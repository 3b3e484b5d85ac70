"""Examples from files, named sets and the Hub, checked row by row.

A source is looked up in this order: a name of `NAMED`, a JSON Lines file, a
data set id on the Hub. For a named set the data folder (`--data-dir` or
`LAURA_DATA`) wins over the Hub.
"""

from __future__ import annotations

import difflib
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

from laura.data.examples import Example
from laura.data.named import BENCHMARK_ROWS, NAMED, KnownSet
from laura.recipe.sections import Source
from laura.results.errors import DataError, HubError, LauraError, StoreError
from laura.results.inputs import bounded_lines, open_regular

BUILTIN = Path(__file__).parent / "builtin"
Placed = tuple[str, dict[str, Any]]
_FILE_ENDING = re.compile(r"\.(jsonl?|gz|txt|csv|parquet)$")
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
    found = 0
    for example in islice(_examples(source, data_dir), source.limit):
        found += 1
        yield example
    if not found:
        raise DataError(f"{source.source} has no rows; a source needs at least one")


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
    path = _shipped_or_own(folder, local, known.builtin, split)
    if path is not None:
        rows = _file_rows(path)
    else:
        found = hub_rows(known.hub, known.config, hub_split, streaming=False, local_hint=local)
        rows = _placed(found, known.hub)
    checked = [_need_fields(row, known.fields, place) for place, row in rows]
    if path is not None and split in known.task_ids:
        checked = [row for row in checked if row["task_id"] in known.task_ids[split]]
    if not checked:
        raise DataError(f"benchmark {name}, split {split}, has no rows; fetch its file again")
    return checked


def _examples(source: Source, data_dir: Path | None) -> Iterator[Example]:
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
        rows = _file_rows(path)
        if named is not None and _splits_in_rows(named):
            rows = ((place, row) for place, row in rows if row["split"] == split)
    for index, (place, row) in enumerate(rows):
        example = (
            _detected(row, index, place) if named is None else _mapped(row, named, index, place)
        )
        if not _blank(example):
            yield example
        elif named is None and path is not None:
            raise DataError(
                f"{place}: has nothing to learn (its text or answer is blank, or no message is "
                "the assistant's); fill it or delete the line"
            )


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


def _mapped(row: dict[str, Any], named: KnownSet, index: int, place: str) -> Example:
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
    if text.startswith((".", "~", "/")) or _FILE_ENDING.search(text):
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


def _refuse_parts(source: Source, path: Path) -> None:
    if source.split or source.subset:
        field = "split" if source.split else "subset"
        raise DataError(f"{path} is a file and has no {field}; leave {field} out")


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
        return _file_rows(path)
    if _FILE_ENDING.search(name):
        raise DataError(missing_file(path))
    source = Source(source=name)
    local = source_file(source, data_dir)
    if local is None:
        return _hub_rows(source, _named(source), streaming=False, regroup=False)
    return _file_rows(local)


def _file_rows(path: Path) -> Iterator[Placed]:
    return ((f"{path}, line {number}", row) for number, row in read_rows(path))


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


# ----- one row -----


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


# ----- JSON Lines, every fault one message with its line -----


GZIP_MAGIC = b"\x1f\x8b"


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON Lines file, plain or gzipped, one after the other.

    Blank lines are passed over. Whether a file is gzipped is read from its
    first bytes, not its name.

    Args:
        path: The file.

    Yields:
        Line number, counted from 1, and the row.

    Raises:
        DataError: the file is missing (with the nearest names), unreadable, a
            broken gzip, not UTF-8, or a line is not a JSON object.
    """
    for number, line in _lines(path):
        yield number, _row(path, number, line)


def count_rows(path: Path) -> int:
    """Rows of a JSON Lines file; what they hold is not checked, which makes it quick.

    Raises:
        DataError: the file cannot be read.
    """
    return sum(1 for _ in _lines(path))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers."""
    try:
        with open_regular(path) as file:
            compressed = file.peek(2)[:2] == GZIP_MAGIC
            if path.suffix == ".gz" and not compressed and file.peek(1):
                raise DataError(
                    f"{path} ends in .gz but is not gzipped; rename it to .jsonl, or compress it"
                )
            lines = (
                bounded_lines(gzip.GzipFile(fileobj=file), path, packed=file)
                if compressed
                else bounded_lines(file, path)
            )
            for number, line in enumerate(lines, start=1):
                whole = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if whole.strip():
                    yield number, whole
    except FileNotFoundError as error:
        raise DataError(missing_file(path)) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} is a broken gzip file ({error}); fetch or write it again"
        ) from error
    except StoreError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from error


def _row(path: Path, number: int, line: bytes) -> dict[str, Any]:
    place = f"{path}, line {number}"
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{place}: is not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise DataError(
            f"{place}: is not JSON ({reason}); the file must be JSON Lines, one object a line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f'{place}: must be a JSON object such as {{"text": ...}}, came {kind_of(row)}'
        )
    return row


def kind_of(value: object) -> str:
    """What a JSON value is called in messages."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def missing_file(path: Path) -> str:
    """Message for a file that is not there, with the nearest names in its folder."""
    folder = path.parent
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except (OSError, ValueError):
        return f"{path} does not exist, nor does its folder; check the path"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    near = near or [name for name in names if ".jsonl" in name][:3]
    hint = f"nearest there: {', '.join(near)}" if near else "its folder holds no JSON Lines file"
    return f"{path} does not exist; {hint}"


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
        f"to a folder{place}, or name a JSON Lines file as the source; or {last}"
    )
