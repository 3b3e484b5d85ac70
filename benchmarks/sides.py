"""One side of a comparison: a program in a process of its own that leaves its result in a file."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def start(
    program: Sequence[str],
    result_file: Path,
    *,
    threads: int,
    folders: Sequence[Path],
    seconds: float,
) -> dict[str, Any]:
    """Run a program to its end.

    Args:
        program: Command, to which `--output` is added.
        result_file: Where the program writes its result as JSON; an old one is removed.
        threads: Of the program.
        folders: Searched for modules.
        seconds: Most time it may take.

    Returns:
        The result, or `{"failed": reason}`.
    """
    result_file.unlink(missing_ok=True)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
    }
    try:
        done = subprocess.run(
            [*program, "--output", str(result_file)],
            env=environment, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"took more than {seconds} s"}
    if done.returncode or not result_file.is_file():
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"failed": lines[-1] if lines else f"exit code {done.returncode}"}
    result: dict[str, Any] = json.loads(result_file.read_text())
    return result
