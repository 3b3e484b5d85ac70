"""The store: files are whole or absent, folders prove themselves, refusals are told in words."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laura.results import store
from laura.results.errors import CheckpointError, HubError, StoreError
from laura.results.store import MANIFEST, RunStore, StudyStore

FACTS = {"step": 3}
ROOT = str(Path(__file__).parents[1])


def fill(folder: Path) -> None:
    """Two files, one of them in a folder below."""
    (folder / "weights.bin").write_bytes(b"abc")
    (folder / "below").mkdir()
    (folder / "below" / "state.bin").write_bytes(b"xyz")


def refuse(code: int) -> Any:
    """A system call that fails with this error number."""

    def call(*args: object, **kwargs: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "value.json"
    value = {"a": [1, 2.5, None, "ü"]}
    store.write_json(path, value)
    assert store.read_json(path) == value
    assert "ü" in path.read_text(encoding="utf-8")
    store.write_json(path, [1])
    assert store.read_json(path) == [1]
    assert names(path.parent) == ["value.json"]


def test_not_a_number_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "disk is full.*Free some space"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "no permission.*--out"),
        (errno.EROFS, "no permission"),
        (errno.EIO, "try again"),
    ],
)
def test_a_refused_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, advice: str
) -> None:
    path = tmp_path / "summary.json"
    store.write_json(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse(code))
        with pytest.raises(StoreError, match=advice):
            store.write_json(path, "new")
    assert store.read_json(path) == "old"
    assert names(tmp_path) == ["summary.json"]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    store.write_json(path, "old")

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.write_json(path, "new")
    assert store.read_json(path) == "old"
    assert names(tmp_path) == ["summary.json"]


def test_a_killed_write_leaves_the_old_file_and_a_leftover(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    store.write_json(path, "old")
    code = (
        "import os, signal, sys, pathlib\n"
        "from laura.results import store\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.write_json(pathlib.Path(sys.argv[1]), 'new')\n"
    )
    root = Path(__file__).resolve().parents[1]
    ended = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, check=False)
    assert ended.returncode == -9
    assert store.read_json(path) == "old"
    assert len(names(tmp_path)) == 2
    store.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["summary.json"]


def test_reading_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(StoreError, match="does not exist"):
        store.read_json(path)
    for content in (b"{", b"\xff", b""):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"is not JSON.*delete it"):
            store.read_json(path)
    with pytest.raises(StoreError, match="a folder, not a regular file"):
        store.read_json(tmp_path)


def test_lines_gz(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    rows = [{"index": 0, "text": "a\nb\u2028c"}, {"index": 1}]
    store.write_lines_gz(path, rows)
    assert store.read_lines_gz(path) == rows
    first = path.read_bytes()
    store.write_lines_gz(path, rows)
    assert path.read_bytes() == first, "the same rows give the same bytes"
    for damaged in (
        first[:-9],
        first[:12] + b"\x00\x00" + first[14:],
        b"plain",
        gzip.compress(b"{"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="is not whole"):
            store.read_lines_gz(path)


def test_folder_appears_whole_with_its_facts(tmp_path: Path) -> None:
    target = tmp_path / "checkpoints" / "00000003"
    store.write_folder(target, fill, FACTS)
    assert store.check_folder(target) == FACTS
    assert names(target.parent) == ["00000003"]
    manifest = json.loads((target / MANIFEST).read_text())
    assert manifest["sha256"]["weights.bin"] == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    ), "SHA-256 of b'abc', FIPS 180-2 appendix B.1"
    store.write_folder(target, lambda folder: None, {})
    assert names(target) == [MANIFEST], "an older folder is replaced, not mixed with"


def test_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        fill(folder)
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(StoreError, match="disk is full"):
        store.write_folder(tmp_path / "x", full, FACTS)
    assert names(tmp_path) == []


def test_reasons_told_in_words_become_store_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="disk is full"), store.disk_faults(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: No space left (os error 28)")
    with pytest.raises(RuntimeError, match="something else"), store.disk_faults(tmp_path):
        raise RuntimeError("something else")


def test_our_own_errors_pass_through(tmp_path: Path) -> None:
    with pytest.raises(HubError, match="far away"), store.disk_faults(tmp_path):
        raise HubError("far away")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "weights.bin").write_bytes(b"abd"), "does not match its SHA-256"),
        (lambda f: (f / "weights.bin").write_bytes(b""), "does not match its SHA-256"),
        (lambda f: (f / "below" / "state.bin").unlink(), "lacks below/state.bin"),
        (lambda f: (f / MANIFEST).unlink(), "has no manifest.json"),
        (lambda f: (f / MANIFEST).write_text("{"), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST).write_text("[]"), "manifest.json is damaged"),
        (lambda f: (f / MANIFEST).write_text('{"sha256": 3, "facts": {}}'), "is damaged"),
        (lambda f: (f / MANIFEST).write_text('{"sha256": {}, "facts": 3}'), "is damaged"),
        (lambda f: (f / MANIFEST).write_text('{"sha256": "ab", "facts": {}}'), "is damaged"),
    ],
)
def test_damage_is_found(tmp_path: Path, damage: Any, words: str) -> None:
    folder = tmp_path / "x"
    store.write_folder(folder, fill, FACTS)
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        store.check_folder(folder)
    assert "give the same command again" in str(caught.value)


def test_leftovers_and_only_they_are_removed(tmp_path: Path) -> None:
    keep = ["summary.json", ".gitignore", ".hidden", "a.b.c", ".x.UPPERCAS", "abcdefgh.abcdefgh"]
    for name in keep:
        (tmp_path / name).touch()
    (tmp_path / ".summary.json.a1b2c3d_").touch()
    (tmp_path / ".00000003.abcdefgh" / ".x.abcdefgh").mkdir(parents=True)
    (tmp_path / ".00000003.abcdefgh" / "weights.bin").touch()
    store.remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted(keep)
    store.remove_leftovers(tmp_path / "absent")


def test_run_ids_do_not_drift() -> None:
    """A run's folder must be found again by later versions: these IDs are for ever."""
    identity = {"arm": "lora", "rate": 1e-4, "seed": 0, "data": ["a", "ü"], "limit": None}
    assert store.run_id(identity) == "92cf5aa4d127"
    assert store.run_id(dict(reversed(identity.items()))) == store.run_id(identity)
    assert store.run_id({**identity, "seed": 1}) != store.run_id(identity)


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text()))
def test_content_hash_ignores_order_and_survives_json(value: dict[str, Any]) -> None:
    shuffled = dict(sorted(value.items(), reverse=True))
    assert store.content_hash(json.loads(json.dumps(shuffled))) == store.content_hash(value)


def test_run_states(tmp_path: Path) -> None:
    run = StudyStore(tmp_path).run("abc")
    assert run.state == "open"
    store.write_json(run.folder / "failed.json", {"kind": "diverged", "reason": "loss is nan"})
    assert run.state == "diverged"
    store.write_json(run.folder / "failed.json", [])
    assert run.state == "failed"
    store.write_json(run.folder / "done.json", {})
    assert run.state == "done"
    assert [found.folder.name for found in StudyStore(tmp_path).runs()] == ["abc"]
    assert StudyStore(tmp_path / "absent").runs() == []


def test_metrics_cut_off_by_a_kill(tmp_path: Path) -> None:
    run = RunStore(tmp_path)
    assert run.metrics() == []
    rows = [{"step": step, "loss": 1.5} for step in range(3)]
    for row in rows:
        run.append_metrics(row)
    with run.metrics_file.open("ab") as file:
        file.write(b'{"step": 3, "lo\xff')
    assert run.metrics() == rows
    run.keep_metrics(lambda row: row["step"] < 2)
    run.append_metrics({"step": 2, "loss": 1.25})
    assert [row["step"] for row in run.metrics()] == [0, 1, 2]


def test_paths_sort_by_step(tmp_path: Path) -> None:
    run = RunStore(tmp_path)
    assert run.checkpoint(9) < run.checkpoint(10)
    assert run.evaluation(9, "kl").parent < run.evaluation(10, "kl").parent


def test_no_permission(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is forbidden to root")
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="no permission"):
        store.write_text(tmp_path / "x", "x")


KILLED = """
import os, sys
from pathlib import Path
from laura.results import store
moment, calls = int(sys.argv[2]), 0
def dying(function):
    def call(*positional, **named):
        global calls
        calls += 1
        if calls == moment:
            os._exit(9)
        return function(*positional, **named)
    return call
# Every call that changes a folder, also those of rmtree.
for name in ("replace", "unlink", "rmdir", "mkdir", "open"):
    setattr(os, name, dying(getattr(os, name)))
def fill(folder):
    (folder / "a.txt").write_text("new")
    (folder / "b.txt").write_text("new")
store.write_folder(Path(sys.argv[1]), fill, {"step": 2})
"""


def test_a_folder_replaced_by_a_killed_process_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    def old(folder: Path) -> None:
        for name in "ab":
            (folder / f"{name}.txt").write_text("old")

    seen = []
    for moment in range(1, 60):
        target = tmp_path / str(moment) / "state"
        store.write_folder(target, old, {"step": 1})
        command = [sys.executable, "-c", KILLED, str(target), str(moment)]
        code = subprocess.run(command, check=False, env={"PYTHONPATH": ROOT}).returncode
        store.remove_leftovers(tmp_path / str(moment))
        step = store.check_folder(target)["step"]
        words = {(target / f"{name}.txt").read_text() for name in "ab"}
        assert words == {"old" if step == 1 else "new"}
        assert [path.name for path in target.parent.iterdir()] == ["state"]
        seen.append(step)
        if code == 0:
            break
        assert code == 9
    assert code == 0 and seen == sorted(seen) and set(seen) == {1, 2}
