"""`study.json`: what a study is made of, written when it is opened and checked ever after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laura.engine.engine import Engine
from laura.evals.runner import Material, RowProvider, check_name, plan_task
from laura.evals.tasks import TASKS
from laura.models.device import resolve_precision
from laura.recipe.sections import Recipe
from laura.results.errors import StoreError
from laura.results.store import StudyStore, read_json, write_json
from laura.study.measures import all_tasks
from laura.study.workbench import Workbench


def refuse_another(store: StudyStore, identity: dict[str, Any]) -> None:
    """Results of one folder must be comparable: same base and type, tokens, data and measures.

    Raises:
        StoreError: the folder holds a study with another identity.
    """
    path = store.folder / "study.json"
    if not path.is_file():
        return
    before = read_json(path)["identity"]
    changed = [key for key in identity if before.get(key) != identity[key]]
    if changed:
        raise StoreError(
            f"{store.folder} holds a study with another {', '.join(changed)}; its "
            "results cannot be compared with new ones: choose another folder with --out, "
            "or another name"
        )


def task_facts(
    recipe: Recipe, bench: Workbench, rows: RowProvider, data_dir: Path | None
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
    base = bench.base
    precision = resolve_precision(recipe.measure.precision, base.model.device)
    engine = Engine(base.model, base.tokenizer, precision)
    material = Material(recipe.measure, rows, {}, data_dir=data_dir)
    found = {}
    for task in others:
        plan = plan_task(engine, task, material)
        found[plan.name] = {"title": plan.title, "version": plan.version}
    return found


def write_facts(
    store: StudyStore,
    recipe: Recipe,
    bench: Workbench,
    identity: dict[str, Any],
    tasks: dict[str, dict[str, str]],
    replay: list[list[Any]],
) -> None:
    """Write `study.json`; `replay` is what its arms replay, which may change from one
    command to the next: then they are other runs, and those of before are left out.

    Raises:
        StoreError: the folder cannot be written.
    """
    base = bench.base
    parameters = sum(p.numel() for p in base.model.parameters())
    trainable = {name: bench.count_trainable(arm) for name, arm in recipe.arms.items()}
    facts = {
        "identity": identity,
        "base": {"model": base.name, "fingerprint": base.fingerprint, "parameters": parameters},
        "trainable_parameters": trainable,
        "tasks": tasks,
        **({"replay": replay} if replay else {}),
    }
    write_json(store.folder / "study.json", facts)
