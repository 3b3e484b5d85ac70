"""The folder that a door shares with its vLLM alone: sockets and copies of adapters."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from laura.results.errors import StoreError
from laura.serve import vllm_folder_keeper

# Removing a folder with thousands of files on a slow disk.
REMOVE_SECONDS = 30.0


class PrivateFolder:
    """A folder for this user alone, which goes when `remove` is called or this process ends.

    Its maker and remover is a process of its own (`vllm_folder_keeper.py`), so that nothing
    stays where this one is killed.

    Attributes:
        path: The folder.

    Raises:
        StoreError: no folder can be made.
    """

    def __init__(self) -> None:
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", str(Path(vllm_folder_keeper.__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A signal to all of a terminal's processes is not meant for this one.
            start_new_session=True,
            text=True,
        )
        assert self._keeper.stdout is not None
        told = self._keeper.stdout.readline()
        if not told.endswith("\n"):
            words = self._keeper.communicate()[1].strip().splitlines() or ["it has said nothing"]
            raise StoreError(
                f"no private folder can be made ({words[-1]}); set TMPDIR to a folder on a disk "
                "with room"
            )
        self.path = Path(told.rstrip("\n"))
        self._lock: int | None = vllm_folder_keeper.hold(self.path)
        self._removing = threading.Lock()

    def remove(self) -> None:
        """Remove it with all that is in it; may be called again, from any thread."""
        with self._removing:
            if self._lock is None:
                return
            try:
                self._keeper.communicate(timeout=REMOVE_SECONDS)
            except subprocess.TimeoutExpired:
                self._keeper.kill()
                self._keeper.communicate()
            # It may have been killed.
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = None
