"""Files swapped between looking and opening, and texts that would steer a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laura.models import safe_files
from laura.models.safe_files import OpenFolder, UnreadableError, printable, strict_json
from laura.results.errors import AdapterError


@pytest.mark.parametrize(
    ("put_there", "words"),
    [
        (lambda path: path.symlink_to("secret"), "file cannot be read"),
        (os.mkfifo, "file is a pipe, not a regular file"),
        (Path.mkdir, "file is a folder, not a regular file"),
    ],
)
def test_what_is_swapped_in_after_the_look_is_not_read(
    tmp_path: Path,
    put_there: Callable[[Path], object],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "file").write_text("harmless")
    real = safe_files._check_regular
    looks: list[Any] = []

    def look(facts: os.stat_result, label: Path) -> None:
        real(facts, label)
        if not looks:
            (tmp_path / "file").unlink()
            put_there(tmp_path / "file")
        looks.append(facts)

    monkeypatch.setattr(safe_files, "_check_regular", look)
    with OpenFolder(tmp_path, Path("label")) as folder, pytest.raises(AdapterError, match=words):
        folder.read("file", 100)


def test_a_folder_swapped_for_a_link_after_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "link").symlink_to("secret")
    facts = os.lstat(tmp_path / "secret")
    monkeypatch.setattr(os, "lstat", lambda path: facts)
    with pytest.raises(UnreadableError, match="label cannot be read"):
        OpenFolder(tmp_path / "link", Path("label"))


def test_a_folder_that_is_renamed_stays_the_one_that_was_opened(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with OpenFolder(tmp_path / "one", Path("one")) as folder:
        (tmp_path / "one").rename(tmp_path / "away")
        (tmp_path / "two").rename(tmp_path / "one")
        assert folder.read("file", 100)[0] == b"one"


def test_only_what_has_one_meaning_is_json() -> None:
    assert strict_json(b'{"a": [1, 2.5, null]}', Path("x")) == {"a": [1, 2.5, None]}
    for text in (b'{"a": 1, "a": 1}', b"NaN", b"[-Infinity]", b"\xff", b"", b"[" * 10**5):
        with pytest.raises(AdapterError, match="x is no usable JSON"):
            strict_json(text, Path("x"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 日本 'a' \\", "Größe 日本 'a' \\"),
        ("a\x1b[2J\r\n\0", r"a\x1b[2J\r\n\x00"),
        ("\u202e\u200b\ud800\ue000", r"\u202e\u200b\ud800\ue000"),
        ("x" * 700, "x" * 599 + "…"),
    ],
)
def test_texts_of_strangers(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert shown.encode()
