"""The private folder goes with its door, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from laura.results.errors import StoreError
from laura.serve.vllm_folder import PrivateFolder
from laura.serve.vllm_folder_keeper import PREFIX

ROOT = Path(__file__).resolve().parents[2]
# A door that has a folder and waits to be killed.
DOOR = """
from laura.serve.vllm_folder import PrivateFolder
folder = PrivateFolder()
(folder.path / "adapters" / "1").mkdir(parents=True)
(folder.path / "adapters" / "1" / "weights").write_text("x")
print(folder._keeper.pid, folder.path, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def until(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def killed_door(with_keeper: bool) -> tuple[int, Path]:
    """Number of its keeper, and its folder."""
    with subprocess.Popen(
        [sys.executable, "-c", DOOR],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    ) as door:
        assert door.stdout is not None
        number, folder = door.stdout.readline().split()
        if with_keeper:
            os.kill(int(number), signal.SIGKILL)
        os.killpg(door.pid, signal.SIGKILL)
    return int(number), Path(folder)


def test_it_is_this_users_alone_and_goes(place: Path) -> None:
    folder = PrivateFolder()
    assert folder.path.parent == place and folder.path.stat().st_mode & 0o077 == 0
    (folder.path / "deep" / "deeper").mkdir(parents=True)
    folder.remove()
    assert not list(place.iterdir()) and folder._keeper.returncode == 0
    folder.remove()


def test_a_killed_door_leaves_none(place: Path) -> None:
    number, folder = killed_door(with_keeper=False)
    assert folder.name.startswith(PREFIX)
    until(lambda: not list(place.iterdir()))
    until(lambda: not Path(f"/proc/{number}/cmdline").exists())


def test_where_all_was_killed_the_next_door_removes_it(place: Path) -> None:
    living = PrivateFolder()
    stranger = place / f"{PREFIX}stranger"
    stranger.mkdir()
    (place / f"{PREFIX}link").symlink_to(living.path)
    _, folder = killed_door(with_keeper=True)
    assert (folder / "adapters" / "1" / "weights").exists()
    other = PrivateFolder()
    until(lambda: not folder.exists())
    other.remove()
    assert living.path.is_dir() and stranger.is_dir() and (place / f"{PREFIX}link").is_symlink()
    living.remove()


def test_a_folder_whose_keeper_was_killed_stays_while_its_door_lives(place: Path) -> None:
    one = PrivateFolder()
    one._keeper.kill()
    one._keeper.wait()
    two = PrivateFolder()
    two.remove()
    assert one.path.is_dir()
    one.remove()
    assert not list(place.iterdir())


def test_no_room_for_it(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    from laura.serve import vllm_folder_keeper

    broken = place / "keeper.py"
    broken.write_text("raise OSError(28, 'No space left on device')\n")
    monkeypatch.setattr(vllm_folder_keeper, "__file__", str(broken))
    with pytest.raises(StoreError, match=r"No space left on device.*set TMPDIR"):
        PrivateFolder()
