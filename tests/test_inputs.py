"""Hostile files given to every reader: each is refused by name, soon, and in little memory."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laura.data.rows import count_rows, read_rows
from laura.evals.user_task import UserTask
from laura.models.adapter_files import CONFIG, WEIGHTS, read_adapter
from laura.models.gguf import GgufFile
from laura.models.load import check_model_folder
from laura.recipe.reading import read_study, stored_recipe
from laura.recipe.shipped import find_recipe
from laura.results.errors import DataError, LauraError, StoreError
from laura.results.inputs import FREE_BYTES, MOST_LINE_BYTES, bounded_lines
from laura.results.schema import RECORD_FILE, read_record
from laura.results.store import RunStore, file_hash, kept_rows, read_json, read_lines_gz
from laura.serve.auth import read_tenants

MIB = 2**20
CPU_SECONDS, MOST_MIB = 2.0, 100  # a second and a few tens, with room for a busy machine


def kept(path: Path) -> None:
    with kept_rows(path, {"a": 1}):
        pass


def in_folder(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """A reader of a folder in which one file is hostile; the others that it wants are there."""

    def read_folder(path: Path) -> object:
        folder = path.with_name("folder")
        folder.mkdir()
        others = {CONFIG: b"{}", WEIGHTS: b"{}", "config.json": b"{}", "tokenizer.json": b"{}"}
        for other, content in others.items():
            (folder / other).write_bytes(content)
        (folder / name).unlink(missing_ok=True)
        path.rename(folder / name)
        return read(folder)

    return read_folder


READERS: dict[str, Callable[[Path], object]] = {
    "recipe": lambda path: read_study(find_recipe(str(path))),
    "stored recipe": stored_recipe,
    "rows": lambda path: list(read_rows(path)),
    "count": count_rows,
    "tenants": read_tenants,
    "json": read_json,
    "samples": read_lines_gz,
    "metrics": lambda path: RunStore(path.parent).metrics(),
    "kept": kept,
    "hash": file_hash,
    "task": UserTask.load,
    "gguf": GgufFile,
    "record": in_folder(RECORD_FILE, read_record),
    "adapter config": in_folder(CONFIG, read_adapter),
    "adapter weights": in_folder(WEIGHTS, read_adapter),
    "config": in_folder("config.json", check_model_folder),
    "tokenizer": in_folder("tokenizer.json", check_model_folder),
}
# A suffix decides what some read; the name, where a fixed one is read.
NAMES = {"recipe": "file.yaml", "metrics": "metrics.jsonl", "task": "file.py", "gguf": "file.gguf"}


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


def sparse(path: Path) -> None:
    """3 GiB of zeros that take no room: a line without an end, or a huge file of any kind."""
    path.touch()
    os.truncate(path, 3 * 2**30)


def bomb(path: Path) -> None:
    path.write_bytes(BOMBS[b"x"])


def short_lines(path: Path) -> None:
    path.write_bytes(BOMBS[b"\n"])


# 256 MiB each, in a quarter of one: a member of a gzip file may follow another.
BOMBS = {byte: gzip.compress(byte * 16 * MIB) * 16 for byte in (b"x", b"\n")}
STRANGE: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": listening,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "folder": Path.mkdir,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "circle": lambda path: path.symlink_to(path.name),
    "sparse": sparse,
    "bomb": bomb,
    "short lines": short_lines,
}
# What is no fault there: any bytes have a hash, what was kept for something else starts anew,
# lines of a run are read up to the first that is none, and the folder's own checks come first.
HARMLESS = {
    "hash": {"bomb", "short lines"},
    "metrics": {"pipe", "socket", "device", "terminal", "folder", "dangling", "circle"}
    | {"bomb", "short lines"},
    "kept": {"pipe", "socket", "device", "terminal", "dangling", "circle", "bomb", "short lines"},
}


@contextmanager
def watched() -> Iterator[None]:
    """Fail where it hangs, takes much processor time, or much memory."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    start, held = time.process_time(), peak_mib(anew=True)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    # Coverage follows every line: 1.1 seconds are 3.9.
    traced = 1 if sys.gettrace() is None else 4
    assert time.process_time() - start < traced * CPU_SECONDS
    assert peak_mib() - held < MOST_MIB


def peak_mib(anew: bool = False) -> int:
    """Most memory this process held, in MiB, since it was last asked to count anew."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


# A file of any size has a hash, which takes its time.
CASES = [pair for pair in product(READERS, STRANGE) if pair != ("hash", "sparse")]


@pytest.mark.parametrize(("reader", "strange"), CASES)
def test_no_strange_file_holds_a_reader_up(reader: str, strange: str, tmp_path: Path) -> None:
    path = tmp_path / NAMES.get(reader, "file")
    STRANGE[strange](path)
    with watched():
        try:
            READERS[reader](path)
        except LauraError as error:
            told = str(error)
            assert len(told) < 2000
        else:
            assert strange in HARMLESS.get(reader, ())


PIECES = (
    b"[", b"{", b'{"a":', b"a: ", b"- ", b"? ", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf", b'"', b"'",
    b"&a ", b"*a ", b"!!int ", b"<<: ", b"%YAML 1.1\n", b"---\n", b"010", b"1e999", b"9" * 5000,
    b"1:30", b"|\n", b"#", b" ", b"\\u0000", b"\\ud800", b"\xf0\x9f\xa6\x8a", b"GGUF\x03\0\0\0",
    b"\xff" * 8, b"PK\x03\x04", b"\x1f\x8b\x08", b"tenants: ", b"settings: ", b'{"text": "a"}\n',
)  # fmt: skip
contents = st.lists(
    st.tuples(
        st.sampled_from(PIECES) | st.binary(max_size=20), st.sampled_from([1, 1, 2, 30, 5000])
    ),
    max_size=8,
).map(lambda parts: b"".join(piece * count for piece, count in parts))


@settings(max_examples=100, deadline=None)
@given(content=contents, packed=st.booleans(), reader=st.sampled_from(sorted(READERS)))
def test_any_bytes_are_read_or_refused(
    content: bytes, packed: bool, reader: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("any") / NAMES.get(reader, "file")
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    with watched():
        try:
            READERS[reader](path)
        except LauraError as error:
            assert len(str(error)) < 40_000


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000, "\udcff"])
@pytest.mark.parametrize("reader", ["stored recipe", "rows", "json", "samples", "hash", "gguf"])
def test_no_name_is_a_traceback(reader: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(LauraError):
        READERS[reader](tmp_path / name)


def test_lines_up_to_the_longest(tmp_path: Path) -> None:
    """The longest line is read whole; one byte more is refused, with its number."""
    path = tmp_path / "rows.jsonl"
    row = b'{"text": "%s"}\n' % (b"x" * (MOST_LINE_BYTES - 13))
    assert len(row) == MOST_LINE_BYTES
    path.write_bytes(b'{"text": "a"}\n' + row)
    assert [place for place, _ in read_rows(path)] == [f"{path}, line {n}" for n in (1, 2)]
    path.write_bytes(b'{"text": "a"}\n' + row.replace(b"x", b"xx", 1))
    with pytest.raises(DataError, match="line 2: has more than the 16,777,216 bytes"):
        count_rows(path)


def test_what_is_packed_well_is_no_bomb(tmp_path: Path) -> None:
    """Rows that repeat each other unpack to fifty times their size, and are read."""
    rows = b"".join(b'{"text": "row %d %s"}\n' % (n, b"again " * 50) for n in range(9000))
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(rows))
    assert len(rows) > FREE_BYTES and len(rows) > 50 * path.stat().st_size
    assert count_rows(path) == 9000
    with pytest.raises(StoreError, match="holds more than 100 bytes"), path.open("rb") as file:
        list(bounded_lines(file, path, most_bytes=100))


def test_a_file_swapped_for_a_pipe_after_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    os.mkfifo(path)
    regular = os.stat(__file__)
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: regular)
    with watched(), pytest.raises(StoreError, match="is a pipe, not a regular file"):
        read_json(path)


def test_the_size_of_a_file_is_told(tmp_path: Path) -> None:
    found: dict[str, Any] = {"recipe": "1,048,576", "json": "67,108,864", "tenants": "16,777,216"}
    for reader, allowed in found.items():
        path = tmp_path / f"{reader}.yaml"
        sparse(path)
        with pytest.raises(LauraError, match=rf"has 3,221,225,472 bytes, allowed are {allowed}"):
            READERS[reader](path)
