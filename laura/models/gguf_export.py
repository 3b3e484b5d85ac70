"""Model folders as GGUF files, written by llama.cpp's own converter where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from laura.results.errors import ModelError, UsageError
from laura.results.store import disk_faults

CONVERTER = "convert_hf_to_gguf.py"


def find_converter(given: Path | None) -> Path:
    """llama.cpp's converter: the script or the folder that is given, else on PATH.

    Raises:
        UsageError: it is not there.
    """
    if given is None:
        found = shutil.which(CONVERTER)
        path = None if found is None else Path(found)
    else:
        path = given / CONVERTER if given.is_dir() else given
    if path is None or not path.is_file():
        raise UsageError(
            f"{path or CONVERTER} is not here, which writes GGUF files: `git clone "
            "https://github.com/ggml-org/llama.cpp` and give --converter llama.cpp, or set "
            "LAURA_GGUF_CONVERTER"
        )
    return path


def write_gguf(folder: Path, out: Path, converter: Path) -> None:
    """Write a model folder as one GGUF file in float32, whole or not at all.

    Args:
        folder: Config, safetensors and tokenizer.
        out: The file.
        converter: As `find_converter` gives it; run by this Python, whose packages it uses.

    Raises:
        ModelError: the converter fails, with what it said last.
    """
    with disk_faults(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
            file = Path(aside) / out.name
            command: list[str | Path] = [sys.executable, converter, folder, "--outfile", file]
            command += ["--outtype", "f32"]
            ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if ended.returncode != 0 or not file.is_file():
                said = (ended.stderr.strip() or "nothing").splitlines()[-1]
                raise ModelError(
                    f"{converter} wrote no GGUF file; it said: {said}. What it needs is in "
                    "llama.cpp's requirements.txt; OUT can be a folder, too"
                )
            os.replace(file, out)
