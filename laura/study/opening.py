"""Opening a study folder: checked, recorded, and locked against another recipe."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laura.evals.runner import file_rows
from laura.models.device import pick_device
from laura.recipe.reading import recipe_yaml
from laura.recipe.sections import Recipe
from laura.results.errors import StoreError
from laura.results.progress import SILENT, Progress
from laura.results.store import (
    StudyStore,
    disk_faults,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)
from laura.study.environment import describe
from laura.study.facts import refuse_another, task_facts, write_facts
from laura.study.material import ExampleEncoder, prepare
from laura.study.replay import prepare_replay
from laura.study.session import Session
from laura.study.sharing import StudyLock
from laura.study.workbench import Workbench


@contextmanager
def open_study(
    recipe: Recipe,
    folder: Path,
    data_dir: Path | None,
    device: str | None,
    progress: Progress = SILENT,
) -> Iterator[Session]:
    """Open a study folder for work: checked, recorded, locked against another recipe.

    Raises:
        StoreError: another process works there on another recipe, or it holds another study.
    """
    place = pick_device(device)
    store = StudyStore(folder)
    with StudyLock(folder, progress) as lock:
        if lock.alone:
            remove_leftovers(folder)
            session, identity = _read_all(recipe, folder, data_dir, device, progress)
            sources = session.replay.sources
            write_facts(store, recipe, session.bench, identity, session.tasks, sources)
            with disk_faults(folder):
                _keep_only(session.data.corpus_folder)
            session.replay.forget_others(store.replay)
            write_text(folder / "recipe.yaml", recipe_yaml(recipe))
            write_json(folder / "environment.json", describe(place))
            lock.share()
        # Also after setting up: sharing lets go for a moment, in which another may come first.
        _refuse_another_recipe(recipe, folder)
        if not lock.alone:
            session = join_study(recipe, folder, data_dir, device, progress)
        session.lock, session.alone = lock.file, lock.alone
        yield session


def join_study(
    recipe: Recipe,
    folder: Path,
    data_dir: Path | None,
    device: str | None,
    progress: Progress = SILENT,
) -> Session:
    """A study that another process has opened and holds open: nothing is set up or locked.

    Raises:
        StoreError: it holds another study.
    """
    tasks = read_json(folder / "study.json")["tasks"]
    return _read_all(recipe, folder, data_dir, device, progress, tasks)[0]


def _read_all(
    recipe: Recipe,
    folder: Path,
    data_dir: Path | None,
    device: str | None,
    progress: Progress,
    tasks: dict[str, dict[str, str]] | None = None,
) -> tuple[Session, dict[str, Any]]:
    """Base and data, checked against what the folder holds, and the study's identity."""
    store, bench = StudyStore(folder), Workbench(recipe.base, device, progress)
    encoder = ExampleEncoder(bench.base.tokenizer, recipe.data.template, recipe.regime)
    identity = {
        "base": bench.base.fingerprint,
        # It was measured so, and every run is compared with that.
        "dtype": recipe.base.dtype,
        "tokenizer": encoder.fingerprint,
        # Extras may come later: they change nothing of what stands.
        "measure": recipe.measure.model_dump(mode="json", exclude={"extras"}),
    }
    refuse_another(store, identity)  # before anything large is read
    rows = file_rows(data_dir)
    if tasks is None:
        tasks = task_facts(recipe, bench, rows, data_dir)
    data = prepare(
        recipe.data, recipe.measure, recipe.budget, encoder, store.corpora, data_dir, progress
    )
    identity["data"] = data.fingerprint
    refuse_another(store, identity)
    replay = prepare_replay(recipe, bench, encoder, data.measured, store.replay, data_dir, progress)
    return Session(recipe, store, bench, data, rows, tasks, replay, data_dir, progress), identity


def _refuse_another_recipe(recipe: Recipe, folder: Path) -> None:
    with disk_faults(folder):
        theirs = (folder / "recipe.yaml").read_text(encoding="utf-8")
    if theirs != recipe_yaml(recipe):
        raise StoreError(
            f"another laura process works in {folder} on another recipe (its recipe.yaml); give "
            "that one to join in, or wait, or choose another folder with --out"
        )


def _keep_only(corpus: Path) -> None:
    """Delete the corpora that commands which were refused or mended have left behind."""
    for other in corpus.parent.iterdir():
        if other.is_dir() and other != corpus:
            shutil.rmtree(other)
