"""An open study: its folder, its base, its data, and what can be done with them.

`compare` and `train` are short programs over this; both leave the same folder.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from laura.data.packing import Fitted, fit
from laura.errors import StoreError
from laura.evals.kinds import Material, RowProvider, file_rows
from laura.evals.runner import evaluate
from laura.evals.tasks import TASKS
from laura.models.attention import Documents
from laura.models.device import autocast, pick_device, resolve_precision
from laura.models.engine import Engine
from laura.models.losses import packed_loss_sum
from laura.progress import SILENT, Progress
from laura.recipe import BudgetSection, Recipe
from laura.recipe_reading import recipe_yaml
from laura.results import VALIDATION, TaskResult
from laura.store import (
    RunStore,
    StudyStore,
    content_hash,
    disk_faults,
    read_json,
    remove_leftovers,
    run_id,
    write_json,
    write_text,
)
from laura.study.environment import describe
from laura.study.facts import refuse_another, task_facts, write_facts
from laura.study.material import Encoder, StudyData, prepare
from laura.study.measures import all_tasks, is_current, result_names
from laura.study.workbench import Workbench
from laura.train.batches import BatchPlan, plan_batches
from laura.train.run import train_run

RUN_FORMAT = 1  # counts up when the same recipe would train other weights


@dataclass(frozen=True)
class RunSpec:
    """What determines a run, before anything is computed.

    Attributes:
        arm: Name of the arm.
        learning_rate: Peak rate.
        seed: Seed.
        budget: Its budget points; one only where points are separate runs.
    """

    arm: str
    learning_rate: float
    seed: int
    budget: BudgetSection


@dataclass
class Session:
    """A study being carried out.

    Attributes:
        recipe: What to do.
        store: Where.
        bench: The base.
        data: What is read.
        rows: Benchmark rows.
        tasks: Title and version of each task that is not Laura's own, by result.
        data_dir: Folder of data sets that wins over the Hub.
        progress: Where to report.
        lock: Open file that holds the study's lock; None in a worker process, whose
            parent holds it.
    """

    recipe: Recipe
    store: StudyStore
    bench: Workbench
    data: StudyData
    rows: RowProvider
    tasks: dict[str, dict[str, str]]
    data_dir: Path | None
    progress: Progress = SILENT
    lock: int | None = None
    _plans: dict[str, BatchPlan] = field(default_factory=dict)

    def check(self, specs: Iterable[RunSpec]) -> None:
        """Find what would stop the study later: missing benchmark rows, unusable budgets.

        Raises:
            DataError: rows are missing, an example is too long, a budget is
                less than a step.
        """
        for name in all_tasks(self.recipe):
            # Tasks of lm-eval and of the user were made ready when the study was opened.
            if name in TASKS and TASKS[name].split:
                self.rows(name, TASKS[name].split)
        for spec in {str(spec.budget): spec for spec in specs}.values():
            self._plan(spec)

    def base_results(self) -> None:
        """Measure the base, before anything is trained."""
        self._evaluate(self.bench.base.model, None, "base", self.store.base_evaluation)

    def specs(self, arm: str, learning_rate: float, seed: int) -> list[RunSpec]:
        """The runs that one arm at one rate with one seed takes: one, or one a budget."""
        budget = self.recipe.budget
        points = budget.tokens or budget.epochs or []
        separate = budget.points == "separate" and self.recipe.train.schedule == "cosine"
        if not separate or len(points) == 1:
            return [RunSpec(arm, learning_rate, seed, budget)]
        unit = "tokens" if budget.tokens else "epochs"
        parts = [budget.model_copy(update={unit: [point]}) for point in points]
        return [RunSpec(arm, learning_rate, seed, part) for part in parts]

    def run_store(self, spec: RunSpec) -> RunStore:
        """The folder of a run; its name is the hash of everything that determines it."""
        return self.store.run(run_id(self._identity(spec)))

    def finished(self, spec: RunSpec) -> bool:
        """Whether a run has ended and every budget point it reached was measured."""
        run = self.run_store(spec)
        if run.state not in ("done", "diverged"):
            return False
        steps = [step for step in self._plan(spec).points if run.checkpoint(step).is_dir()]
        return all(self._is_measured(run, step) for step in steps)

    def carry_out(self, spec: RunSpec) -> str:
        """Train a run, measure each of its budget points; returns its state."""
        run = self.run_store(spec)
        plan = self._plan(spec)
        self._write_record(spec, run, plan)
        state = self._train(spec, run, plan)
        for step in plan.points:
            if run.checkpoint(step).is_dir():
                self._measure_point(run, step)
        return state

    def _train(self, spec: RunSpec, run: RunStore, plan: BatchPlan) -> str:
        if run.state in ("done", "diverged"):
            return run.state
        arm = self.recipe.arms[spec.arm]
        self.progress.say(f"{spec.arm}, rate {spec.learning_rate:g}, seed {spec.seed}")
        with self.bench.adapted(arm, spec.seed) as adapted:
            state = train_run(
                adapted.model,
                run,
                self.recipe.train,
                plan,
                learning_rate=spec.learning_rate,
                weight_decay=arm.weight_decay,
                seed=spec.seed,
                write_weights=adapted.write_weights,
                validate=self._validator(adapted.model),
                title=f"training {spec.arm} at {spec.learning_rate:g}",
                progress=self.progress,
            )
        if state == "diverged":
            reason = read_json(run.folder / "failed.json")["reason"]
            self.progress.say(f"{spec.arm} diverged: {reason}")
        return state

    def _measure_point(self, run: RunStore, step: int) -> None:
        if self._is_measured(run, step):
            return
        with self.bench.tuned(run.checkpoint(step)) as (model, reference):
            self._evaluate(
                model, reference, run.folder.name, lambda name: run.evaluation(step, name)
            )

    def _is_measured(self, run: RunStore, step: int) -> bool:
        for name in result_names(all_tasks(self.recipe)):
            path = run.evaluation(step, name)
            if not path.is_file():
                return False
            if name in self.tasks and not is_current(TaskResult.read(path), self.tasks):
                return False
        return True

    def _evaluate(self, model: Any, reference: Any, name: str, out: Callable[[str], Path]) -> None:
        precision = resolve_precision(self.recipe.measure.precision, model.device)
        engine = Engine(model, self.bench.base.tokenizer, precision, progress=self.progress)
        material = Material(
            self.recipe.measure, self.rows, self.data.documents, reference, self.data_dir
        )
        names = all_tasks(self.recipe)
        evaluate(engine, names, material, model_name=name, out=out, progress=self.progress)

    def _plan(self, spec: RunSpec) -> BatchPlan:
        key = content_hash([spec.budget.model_dump(mode="json"), spec.seed])
        if key not in self._plans:
            self._plans.clear()  # a plan may be large; runs that share one follow each other
            train = self.recipe.train
            self._plans[key] = plan_batches(
                self.data.train, self._fitted, train, spec.budget, spec.seed
            )
        return self._plans[key]

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one pass over the training examples."""
        return sum(self._fitted.lengths)

    @cached_property
    def _fitted(self) -> Fitted:
        """The training examples as documents that fit a row; the same for every run."""
        return fit(
            self.data.train,
            self.recipe.train.row_tokens,
            self.recipe.data.overlong,
            split_long=self.recipe.regime == "pretrain",
            progress=self.progress,
        )

    def _identity(self, spec: RunSpec) -> dict[str, Any]:
        recipe = self.recipe
        arm = recipe.arms[spec.arm].model_dump(mode="json", exclude={"learning_rates"})
        # These two change how often a run is saved or looked at, not what it becomes.
        train = recipe.train.model_dump(
            mode="json", exclude={"checkpoint_minutes", "validate_every"}
        )
        device = pick_device(self.bench.device_name)
        train["precision"] = str(resolve_precision(recipe.train.precision, device))
        return {
            "format": RUN_FORMAT,
            "base": self.bench.base.fingerprint,
            "dtype": recipe.base.dtype,
            "data": self.data.fingerprint,
            "tokenizer": self.data.encoding,
            "template": [recipe.data.template, recipe.data.overlong, recipe.regime],
            "arm": [spec.arm, arm],
            "learning_rate": spec.learning_rate,
            "seed": spec.seed,
            "budget": spec.budget.model_dump(mode="json"),
            "train": train,
        }

    def _write_record(self, spec: RunSpec, run: RunStore, plan: BatchPlan) -> None:
        path = run.folder / "run.json"
        if path.is_file():
            return
        budgets = spec.budget.tokens or spec.budget.epochs or []
        marks = []
        for budget, step in zip(budgets, plan.points, strict=True):
            marks.append(
                {
                    "budget": budget,
                    "step": step,
                    "tokens": plan.tokens[step],
                    "supervised_tokens": plan.supervised[step],
                }
            )
        record = {
            "id": run.folder.name,
            "arm": spec.arm,
            "learning_rate": spec.learning_rate,
            "seed": spec.seed,
            "points": marks,
            "identity": self._identity(spec),
        }
        write_json(path, record)

    def _validator(self, model: Any) -> Callable[[], float] | None:
        """Mean validation loss of the model in training, for `train.validate_every`."""
        if self.recipe.train.validate_every is None:
            return None
        documents = self.data.documents[VALIDATION]
        dtype = resolve_precision(self.recipe.train.precision, model.device)

        def validate() -> float:
            model.eval()
            total, count = 0.0, 0
            with torch.no_grad(), autocast(model.device, dtype):
                for document in documents:
                    ids = torch.tensor([document.token_ids], device=model.device)
                    wanted = torch.tensor([*document.supervised[1:], False], device=model.device)
                    labels = torch.where(wanted, ids[0].roll(-1), -100)
                    inputs = {"input_ids": ids, "documents": Documents([ids.shape[1]])}
                    total += float(packed_loss_sum(model, inputs, labels, dtype))
                    count += int(wanted.sum())
            return total / count

        return validate


@contextmanager
def open_study(
    recipe: Recipe,
    folder: Path,
    data_dir: Path | None,
    device: str | None,
    progress: Progress = SILENT,
) -> Iterator[Session]:
    """Open a study folder for work: checked, locked against a second process, recorded.

    Raises:
        StoreError: another process works there, or it holds another study.
    """
    place = pick_device(device)
    store = StudyStore(folder)
    with _locked(folder) as lock:
        remove_leftovers(folder)
        session, identity = _read_all(recipe, folder, data_dir, device, progress)
        session.lock = lock
        write_facts(store, recipe, session.bench, identity, session.tasks)
        with disk_faults(folder):
            _keep_only(session.data.corpus_folder)
        write_text(folder / "recipe.yaml", recipe_yaml(recipe))
        write_json(folder / "environment.json", describe(place))
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
    encoder = Encoder(bench.base.tokenizer, recipe.data.template, recipe.regime)
    identity = {
        "base": bench.base.fingerprint,
        "tokenizer": encoder.fingerprint,
        "measure": recipe.measure.model_dump(mode="json"),
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
    return Session(recipe, store, bench, data, rows, tasks, data_dir, progress), identity


def _keep_only(corpus: Path) -> None:
    """Delete the corpora that commands which were refused or mended have left behind."""
    for other in corpus.parent.iterdir():
        if other.is_dir() and other != corpus:
            shutil.rmtree(other)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """One command at a time; the lock goes with its processes, however they end."""
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a", encoding="utf-8")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"another laura process works in {folder}; wait for it, or choose another folder "
                "with --out"
            ) from error
        yield file.fileno()
