"""Study and run folders: typed reading and writing, atomic and checksummed.

    STUDY/
      recipe.yaml  environment.json  base/evals/TASK.json
      steering.json   what was asked of it while it went on (`study/steering.py`)
      corpus/      training examples as tokens; made again if deleted
      replay/      texts the base wrote to be replayed, and replayed rows as tokens
      study.journal  search/      a search's memory (Optuna), and its locks
      runs/ID/     ID = hash of everything that determines the run
        run.json  metrics.jsonl  done.json | failed.json
        checkpoints/STEP/   weights, manifest.json with SHA-256 (kept at budget points)
        resume/STEP/        optimiser, random state, data position (one, replaced)
        evals/STEP/TASK.json + TASK.samples.jsonl.gz
        analysis/STEP/spectra.json
        analysis/STEP/NAME.diversity.json   each prompt's numbers of an extra; made again if deleted
      base/analysis/spectra.json  analysis/subspaces.json
      summary.json  analysis.json  claims.json  cost.json  recommendation.json
                          one class each in laura/results/schema.py, which writes and reads them
      report.html  report.md  figures/*.svg, *.png

    SERIES/
      series.json          name, and the settings in order
      settings/NAME/       each a study folder
      claims.json  report.html  report.md

Files are written aside and renamed, so a file that exists is whole; rows that are kept as they
come (`kept_rows`) are added, so a last line may be cut off. Folders
(checkpoints) carry a manifest that is written last. No torch here.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laura.results.errors import CheckpointError, LauraError, StoreError
from laura.results.inputs import (
    MOST_JSON_BYTES,
    MOST_SAMPLES_BYTES,
    bounded_lines,
    open_regular,
    read_bounded,
)

MANIFEST = "manifest.json"


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into a `StoreError` that says what to do."""
    try:
        yield
    except LauraError:
        raise
    except OSError as error:
        raise StoreError(disk_message(error, path)) from error
    except Exception as error:
        # Libraries written in Rust (safetensors, tokenizers) tell the reason in words only.
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        refusal = OSError(int(code[1]), os.strerror(int(code[1])))
        raise StoreError(disk_message(refusal, path)) from error


def disk_message(error: OSError, path: Path) -> str:
    """What an operating system's refusal means for the user, and what to do."""
    if isinstance(error, LauraError):
        return str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full while writing {path}; finished work is kept. Free some space "
            "(old checkpoints, other studies) and give the same command again"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {path}; choose another folder with --out, or change its owner"
    if error.errno == errno.ENOENT:
        return f"{path} does not exist; check the path"
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
        return f"{path} is not the kind of file expected ({error.strerror}); choose another path"
    return f"{path}: {error.strerror or error}; finished work is kept, try again"


def write_bytes(
    path: Path, content: bytes, mode: int = 0o644, owner: tuple[int, int] = (-1, -1)
) -> None:
    """Write a file so that it is either whole or absent, also after a power cut.

    Args:
        path: The file.
        content: All of it.
        mode: Who may read and write it.
        owner: User and group whose file it shall be; -1 for who runs this.
    """
    with disk_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chown(name, *owner)
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are our bug, not a file format."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        StoreError: missing, unreadable, larger than `MOST_JSON_BYTES`, or not JSON.
    """
    with disk_faults(path):
        text = read_bounded(path, MOST_JSON_BYTES)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is not JSON ({error}); delete it and run again") from error


def write_lines_gz(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as gzipped JSON Lines, byte for byte the same for the same rows."""
    lines = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_bytes(path, gzip.compress(lines.encode("utf-8"), mtime=0))


def read_lines_gz(path: Path) -> list[dict[str, Any]]:
    """Read gzipped JSON Lines.

    Raises:
        StoreError: missing, unreadable, too large, cut off or not gzipped JSON Lines.
    """
    with disk_faults(path), open_regular(path) as packed, gzip.GzipFile(fileobj=packed) as file:
        try:
            return [json.loads(line) for line in bounded_lines(file, path, MOST_SAMPLES_BYTES)]
        except LauraError:
            raise
        except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
            problem = f"is not whole ({error}); delete it and run again"
            raise StoreError(f"{path} {problem}") from error


@contextmanager
def kept_rows(
    path: Path, identity: dict[str, Any]
) -> Iterator[tuple[list[dict[str, Any]], Callable[[dict[str, Any]], None]]]:
    """JSON Lines kept as they come: what was kept, and a function that keeps one more, at once.

    The first line tells what the rows belong to. A file of anything else starts anew; a last line
    that was cut off is left out. So work that is stopped goes on where it was.

    Raises:
        StoreError: the file cannot be read or written.
    """
    rows = _kept(path, identity)
    write_text(path, "".join(json.dumps(row) + "\n" for row in (identity, *rows)))
    with disk_faults(path):
        file = path.open("a", encoding="utf-8")

    def keep(row: dict[str, Any]) -> None:
        with disk_faults(path):
            file.write(json.dumps(row) + "\n")
            file.flush()

    with file:
        yield rows, keep


def _kept(path: Path, identity: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    with disk_faults(path), open_regular(path) as file:
        for line in bounded_lines(file, path):
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                break
            rows.append(row)
    return rows[1:] if rows and rows[0] == identity else []


def content_hash(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def run_id(identity: dict[str, Any]) -> str:
    """ID of a run: a hash of everything that determines its weights."""
    return content_hash(identity)[:12]


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with disk_faults(path), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_folder(target: Path, fill: Callable[[Path], None], facts: dict[str, Any]) -> None:
    """Make a checksummed folder appear whole or not at all.

    Args:
        target: Where it shall stand; replaced if it exists.
        fill: Writes the files into the folder it is given.
        facts: What the manifest records beside the checksums.
    """
    with disk_faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            fill(aside)
            files = sorted(p for p in aside.rglob("*") if p.is_file())
            sums = {str(p.relative_to(aside)): file_hash(p) for p in files}
            write_json(aside / MANIFEST, {"facts": facts, "sha256": sums})
            os.chmod(aside, 0o755)
            _put(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, target: Path) -> None:
    """Rename a whole folder into place.

    What stands there is renamed too and deleted last: deleted where it stands, a kill
    in between would leave half of it. After a kill between the two renames nothing
    stands there, and `remove_leftovers` puts back what is whole.
    """
    if not target.exists():
        os.replace(aside, target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    os.replace(target, old)
    try:
        os.replace(aside, target)
    except BaseException:
        if not target.exists():
            os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_folder(folder: Path) -> dict[str, Any]:
    """Check a folder against its manifest and give the facts recorded there.

    Raises:
        CheckpointError: no manifest, a file is missing, or a checksum differs.
    """
    advice = "delete the folder and give the same command again; it continues from what is whole"
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}, so it is not whole; {advice}")
    try:
        manifest = read_json(folder / MANIFEST)
        sums, facts = dict(manifest["sha256"]), dict(manifest["facts"])
    except (StoreError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged; {advice}") from error
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} lacks {name}; {advice}")
        if file_hash(folder / name) != expected:
            raise CheckpointError(f"{folder / name} does not match its SHA-256; {advice}")
    return facts


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written beside the real files.

    A folder that is whole, and whose place is empty, was about to be renamed there or
    had just been renamed away: the newest is put back.
    """
    found = list(folder.rglob(".*.????????")) if folder.is_dir() else []
    for path in sorted(found, key=_made, reverse=True):
        if not re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name):
            continue
        target = path.with_name(path.name[1:-9])
        if (path / MANIFEST).is_file() and not target.exists():
            with disk_faults(path):
                os.replace(path, target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with disk_faults(path):
                path.unlink(missing_ok=True)


def _made(path: Path) -> int:
    """When a folder became whole, 0 for anything else; its manifest is written last."""
    manifest = path / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.is_file() else 0


class RunStore:
    """One run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def metrics_file(self) -> Path:
        """JSON Lines, one per optimiser step."""
        return self.folder / "metrics.jsonl"

    def checkpoint(self, step: int) -> Path:
        """Folder of the weights at a budget point."""
        return self.folder / "checkpoints" / f"{step:08d}"

    def evaluation(self, step: int, task: str) -> Path:
        """File of one task's result at a budget point."""
        return self.folder / "evals" / f"{step:08d}" / f"{task}.json"

    def analysis(self, step: int, name: str) -> Path:
        """File of one analysis of the weights at a budget point."""
        return self.folder / "analysis" / f"{step:08d}" / f"{name}.json"

    @property
    def state(self) -> str:
        """`done`, `diverged`, `pruned` (a search stopped it), `failed` or `open`."""
        if (self.folder / "done.json").is_file():
            return "done"
        failed = self._failed()
        return "open" if failed is None else str(failed.get("kind", "failed"))

    @property
    def reason(self) -> str | None:
        """Why it diverged, failed or was stopped, as far as it was noted."""
        reason = (self._failed() or {}).get("reason")
        return None if reason is None else str(reason)

    def _failed(self) -> dict[str, Any] | None:
        """What failed.json says; nothing where it is damaged: that it failed is known."""
        if not (self.folder / "failed.json").is_file():
            return None
        try:
            record = read_json(self.folder / "failed.json")
        except StoreError:
            return {}
        return record if isinstance(record, dict) else {}

    def metrics(self) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl; a last line cut off by a kill is left out."""
        rows: list[dict[str, Any]] = []
        if not self.metrics_file.is_file():
            return rows
        with disk_faults(self.metrics_file), open_regular(self.metrics_file) as file:
            for line in bounded_lines(file, self.metrics_file):
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError):
                    break
        return rows

    def keep_metrics(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the rows a continued run will write again."""
        kept = [row for row in self.metrics() if wanted(row)]
        if self.metrics_file.is_file():
            write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in kept))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one row."""
        with disk_faults(self.metrics_file):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


class StudyStore:
    """A study's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def summary_file(self) -> Path:
        """All tables of the study, rebuilt from the rest at any time."""
        return self.folder / "summary.json"

    @property
    def corpora(self) -> Path:
        """Where the training examples lie as tokens, in a folder of each corpus."""
        return self.folder / "corpus"

    @property
    def replay(self) -> Path:
        """Where what is replayed lies."""
        return self.folder / "replay"

    def base_evaluation(self, task: str) -> Path:
        """File of one task's result on the base."""
        return self.folder / "base" / "evals" / f"{task}.json"

    def run(self, identity: str) -> RunStore:
        """The folder of the run with this ID."""
        return RunStore(self.folder / "runs" / identity)

    def runs(self) -> list[RunStore]:
        """Every run folder there is, by ID."""
        root = self.folder / "runs"
        folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        return [RunStore(folder) for folder in folders]


class SeriesStore:
    """A folder of several settings, each a study."""

    FORMAT = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def file(self) -> Path:
        """Where the settings are listed."""
        return self.folder / "series.json"

    def setting(self, name: str) -> StudyStore:
        """The study of one setting."""
        return StudyStore(self.folder / "settings" / name)

    def write(self, name: str, settings: list[str]) -> None:
        """Write `series.json`."""
        write_json(self.file, {"format": self.FORMAT, "name": name, "settings": settings})

    def settings(self) -> dict[str, StudyStore]:
        """The study of each setting by name, in order; empty where this is no series.

        Raises:
            StoreError: `series.json` is damaged.
        """
        if not self.file.is_file():
            return {}
        found = read_json(self.file)
        names = found.get("settings") if isinstance(found, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise StoreError(f"{self.file} lists no settings; give `laura compare` again")
        return {name: self.setting(name) for name in names}
