"""A small process that makes a door's private folder and removes it when the door is gone.

Started by `vllm_folder.py` only, by its path; only the standard library is used here. It
tells the folder's path in a line, and holds one end of a pipe: when that closes, since the
door stops or was killed, the folder goes. So no folder ever exists without somebody who
removes it.

Only where this process is killed as well does a folder stay. The next one finds it: every
folder has a file that its door and this process hold locked, and that nobody holds then.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from pathlib import Path

PREFIX, LOCK = "laura-vllm-", "lock"
TRIES, PAUSE_SECONDS = 100, 0.1


def main() -> int:
    """Make the folder, wait, remove it; the exit code."""
    # A Ctrl-C is the door's matter, and it still needs the folder after a SIGTERM to all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    folder = make()
    try:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.write(f"{folder}\n")
            sys.stdout.flush()
        remove_left()
        while os.read(0, 4096):
            pass
    finally:
        remove(folder)
    return 0


def make() -> Path:
    """A new folder for this user alone, with its lock held."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    # Nobody ever sees a lock that is not held yet.
    aside = os.open(folder / "new", os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600)
    fcntl.flock(aside, fcntl.LOCK_SH)
    os.rename(folder / "new", folder / LOCK)
    return folder


def hold(folder: Path) -> int:
    """Hold a folder's lock as well; to be closed by `os.close`."""
    lock = os.open(folder / LOCK, os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def remove(folder: Path) -> None:
    """Remove a folder, also where vLLM, which ends meanwhile, still changes something in it."""
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(PAUSE_SECONDS)


def remove_left() -> None:
    """Remove this user's folders that nobody holds any more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(folder)
            finally:
                os.close(lock)


if __name__ == "__main__":
    sys.exit(main())
