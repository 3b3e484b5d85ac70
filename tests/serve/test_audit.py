"""The audit log: whole lines, on the disk, private, and never a key."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from laura.results.errors import StoreError
from laura.serve.admin import Audit
from laura.serve.auth import new_key


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_no_key_no_prompt_no_infinity(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    key = new_key()
    prompt = "Tell me all about " + "x" * 10_000
    Audit(path).write(f"a {key}", key, f"Bearer {key}", f"({key})", prompt=prompt, rate=1e999)
    text = path.read_text()
    assert key[12:] not in text and len(text) < 800
    assert "Infinity" not in text and rows(path)[0]["rate"] == "inf"


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('{"action": "adapt')
    Audit(path).write("a", "b", "c", "d")
    cut, whole = path.read_text().splitlines()
    assert cut == '{"action": "adapt' and json.loads(whole)["action"] == "a"


def test_moved_away_a_new_one_begins(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.write("first", "b", "c", "d")
    path.rename(tmp_path / "audit.jsonl.1")
    audit.write("second", "b", "c", "d")
    assert [row["action"] for row in rows(path)] == ["second"]


def test_lines_of_several_writers_stay_whole(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"

    def write(number: int) -> None:
        for count in range(20):
            Audit(path).write("a", str(number), str(count), "x" * 200)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {(row["actor"], row["subject"]) for row in rows(path)}
    assert found == {(str(one), str(two)) for one in range(4) for two in range(20)}


def test_what_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="not the kind of file"):
        Audit(tmp_path).write("a", "b", "c", "d")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        Audit(link).write("a", "b", "c", "d")
    assert not (tmp_path / "elsewhere").exists()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="disk is full"):
            Audit(tmp_path / "audit.jsonl").write("a", "b", "c", "d")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, line: len(line) - 1)
        with pytest.raises(StoreError, match="disk is full"):
            Audit(tmp_path / "audit.jsonl").write("a", "b", "c", "d")
