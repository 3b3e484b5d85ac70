"""Opening a study folder: checked, recorded, and locked against another recipe."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

import laura
from laura.evals.runner import Material, RowProvider, check_name, file_rows, plan_task
from laura.evals.tasks import TASKS
from laura.models.device import (
    has_bf16_arithmetic,
    pick_device,
    resolve_precision,
    spread_devices,
    threads,
)
from laura.models.nf4 import Nf4Linear
from laura.recipe.reading import recipe_yaml
from laura.recipe.sections import Recipe
from laura.results.errors import StoreError
from laura.results.inputs import MOST_RECIPE_BYTES, read_bounded
from laura.results.progress import SILENT, Progress
from laura.results.store import (
    StudyStore,
    disk_faults,
    read_json,
    remove_leftovers,
    write_json,
    write_text,
)
from laura.study.evidence import all_tasks
from laura.study.material import ExampleEncoder, keep_only, prepare
from laura.study.measuring import StudyEngines
from laura.study.plan.misfits import refuse_arms
from laura.study.plan.shapes import shapes_from
from laura.study.replay import ReplayReader
from laura.study.session import Session
from laura.study.sharing import StudyLock
from laura.study.steering import ask_to_stop, read_steering, steady, stoppable
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
        UsageError: no such device, or fewer than `train.devices`.
    """
    place = pick_device(device)
    spread_devices(device, recipe.train.devices)
    store = StudyStore(folder)
    with StudyLock(folder, progress) as lock:
        recipe = read_steering(folder).extended(recipe)
        if lock.alone:
            remove_leftovers(folder)
            session, identity = _read_all(recipe, folder, data_dir, device, progress)
            write_facts(session, identity)
            # What commands that were refused or mended have left behind.
            keep_only(store.corpora, {session.data.corpus_folder})
            session.replay.forget_others(store.replay)
            write_text(folder / "recipe.yaml", recipe_yaml(recipe))
            write_json(folder / "environment.json", describe(place))
            ask_to_stop(folder, False)
            lock.share()
        # Also after setting up: sharing lets go for a moment, in which another may come first.
        _refuse_another_recipe(recipe, folder)
        if not lock.alone:
            session = join_study(recipe, folder, data_dir, device, progress)
        session.lock, session.alone = lock.file, lock.alone
        with closing(session.engines), stoppable(folder):
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
    refuse_arms(recipe, shapes_from(bench.base.model.config.to_dict(), recipe.base.model))
    engines = StudyEngines(bench, recipe, progress)
    low = resolve_precision(recipe.measure.precision, pick_device(device)) == torch.bfloat16
    measure = recipe.measure.identity({"extras"})  # these may come later
    encoder = ExampleEncoder(bench.base.tokenizer, recipe.data.template, recipe.regime)
    identity = {
        "base": bench.base.fingerprint,
        # It was measured so, and every run is compared with that.
        "dtype": recipe.base.dtype,
        "quantization": recipe.base.quantization,
        "tokenizer": encoder.fingerprint,
        "measure": {**measure, "precision": "bf16" if low else "fp32"},
        # What one version answers is not compared with what another does.
        **({"engine version": engines.version} if engines.version else {}),
    }
    refuse_another(store, identity)  # before anything large is read
    rows = file_rows(data_dir)
    if tasks is None:
        tasks = task_facts(recipe, engines, rows, data_dir)
    data = prepare(
        recipe.data, recipe.measure, recipe.budget, encoder, store.corpora, data_dir, threads(),
        progress,
    )  # fmt: skip
    identity["data"] = data.fingerprint
    refuse_another(store, identity)
    reader = ReplayReader(recipe, bench, encoder, data.measured, store.replay, data_dir, progress)
    replay = reader.read()
    session = Session(recipe, store, bench, data, rows, tasks, replay, engines, data_dir, progress)
    return session, identity


def _refuse_another_recipe(recipe: Recipe, folder: Path) -> None:
    with steady(folder), disk_faults(folder):
        recipe = read_steering(folder).extended(recipe)
        theirs = read_bounded(folder / "recipe.yaml", MOST_RECIPE_BYTES)
    if theirs != recipe_yaml(recipe).encode():
        raise StoreError(
            f"another laura process works in {folder} on another recipe (its recipe.yaml); give "
            "that one to join in, or wait, or choose another folder with --out"
        )


# ----- study.json: what a study is made of, written when opened, checked ever after -----


def refuse_another(store: StudyStore, identity: dict[str, Any]) -> None:
    """Results of one folder must be comparable: same base and type, tokens, data and measures.

    Raises:
        StoreError: the folder holds a study with another identity.
    """
    path = store.folder / "study.json"
    if not path.is_file():
        return
    before = read_json(path)["identity"]
    changed = [word for key in identity for word in _changed(key, before.get(key), identity[key])]
    if changed:
        raise StoreError(
            f"{store.folder} holds a study with another {', '.join(changed)}; its "
            "results cannot be compared with new ones: choose another folder with --out, "
            "or another name"
        )


def _changed(key: str, before: Any, now: Any) -> list[str]:
    """Names of what differs; of a section, its own keys."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [key] if before != now else []
    return [f"{key}.{name}" for name in {**before, **now} if before.get(name) != now.get(name)]


def task_facts(
    recipe: Recipe, engines: StudyEngines, rows: RowProvider, data_dir: Path | None
) -> dict[str, dict[str, str]]:
    """Title and version of each extra and each task that is not Laura's own, by its result.

    Each is made ready as if it were measured, so its mistakes are told before anything
    large is read. Its version is not part of the study's identity: a task that changes
    is measured again, and nothing is trained for it.

    Raises:
        LauraError: what is wrong with a task.
    """
    others = [task for task in all_tasks(recipe) if task not in TASKS]
    for extra in recipe.measure.extras:
        check_name(extra, recipe.measure.extras)
        others.append(extra)
    if not others:
        return {}
    material = Material(recipe.measure, rows, {}, data_dir=data_dir)
    found = {}
    with engines.opened(recipe.measure.engine, None) as base:
        for task in others:
            plan = plan_task(base.engine, task, material)
            found[plan.name] = {"title": plan.title, "version": plan.version}
    return found


def write_facts(session: Session, identity: dict[str, Any]) -> None:
    """Write `study.json`.

    What the arms replay, answers that the base rewrites, and where runs begin may change from one
    command to the next: then they are other runs, and those of before are left out.

    Raises:
        StoreError: the folder cannot be written.
    """
    bench, replay = session.bench, session.replay.sources
    base = bench.base
    parameters = sum(p.numel() for p in base.model.parameters())
    quantised = [m for m in base.model.modules() if isinstance(m, Nf4Linear)]
    parameters += sum(m.in_features * m.out_features for m in quantised)
    arms = session.recipe.arms.items()
    begun: dict[str, dict[str, list[Any]]] = {}
    for (arm, seed), point in session.starts.items():
        begun.setdefault(arm, {})[str(seed)] = [point.run_id, point.step]
    facts = {
        "identity": identity,
        "base": {
            "model": base.name,
            "fingerprint": base.fingerprint,
            "parameters": parameters,
            "quantization": session.recipe.base.quantization,
        },
        "trainable_parameters": {name: bench.count_trainable(arm) for name, arm in arms},
        "tasks": session.tasks,
        **({"replay": replay} if replay else {}),
        **({"rewrite": session.rewriting} if session.recipe.data.rewrite else {}),
        **({"continues": begun} if session.recipe.continues else {}),
    }
    write_json(session.store.folder / "study.json", facts)


PACKAGES = ("torch", "transformers", "safetensors", "datasets", "numpy", "pydantic")


def describe(device: torch.device) -> dict[str, Any]:
    """Versions, processor and code version, as a JSON value."""
    return {
        "laura": laura.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "bf16_arithmetic": has_bf16_arithmetic(device),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _commit() -> str | None:
    """Commit of the checkout Laura runs from; None for an installed wheel."""
    root = Path(laura.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
