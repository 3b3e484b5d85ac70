"""The extras of a recipe: measured on the base and at each seed's best rate, last of all.

One job is one model: the base, or a run's checkpoint, with every extra it still lacks.
No torch before something is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from laura.recipe.sections import Recipe
from laura.results.store import StudyStore
from laura.results.task_result import TaskResult
from laura.study.measures import is_current
from laura.study.sampled import extra_points, prompts_of
from laura.study.summary import gather

if TYPE_CHECKING:
    from laura.study.session import Session


@dataclass(frozen=True)
class ExtraJob:
    """A model whose extras are measured.

    Attributes:
        run: The run's ID; None for the base.
        step: Its checkpoint.
        names: Which extras.
    """

    run: str | None
    step: int
    names: tuple[str, ...]

    def result(self, store: StudyStore, name: str) -> Path:
        """Where the result of an extra stands."""
        if self.run is None:
            return store.base_evaluation(name)
        return store.run(self.run).evaluation(self.step, name)


def most_jobs(recipe: Recipe) -> int:
    """How many models have extras, if every run ends well."""
    extras = recipe.measure.extras.values()
    if not extras:
        return 0
    points = len(recipe.budget.tokens or recipe.budget.epochs or [])
    each = points if any(extra.at == "all" for extra in extras) else 1
    return 1 + len(recipe.arms) * len(recipe.seeds) * each


def extra_jobs(session: Session) -> tuple[list[ExtraJob], int]:
    """Those with something left to measure, and how many have nothing left."""
    recipe = session.recipe
    if not recipe.measure.extras:
        return [], 0
    evidence = gather(session.store, recipe)
    wanted: dict[tuple[str | None, int], list[str]] = {(None, 0): list(recipe.measure.extras)}
    for name in recipe.measure.extras:
        for point in extra_points(name, evidence):
            if session.store.run(point.run["id"]).checkpoint(point.step).is_dir():
                wanted.setdefault((point.run["id"], point.step), []).append(name)
    jobs = [ExtraJob(run, step, tuple(names)) for (run, step), names in wanted.items()]
    left = [job for job in jobs if not _measured(job, session)]
    return left, len(jobs) - len(left)


def measure_extras(session: Session, job: ExtraJob) -> str:
    """Measure a model's extras; what stands is not measured again.

    Returns:
        `measured`, or `busy` where another process is at this model.
    """
    from laura.study.sharing import BUSY, LOCK, claimed

    run = None if job.run is None else session.store.run(job.run)
    with claimed((session.store.folder / "base" if run is None else run.folder) / LOCK) as mine:
        if not mine:
            return BUSY
        session.measure(list(job.names), run, job.step)
        for name in job.names:
            prompts_of(job.result(session.store, name))
    return "measured"


def _measured(job: ExtraJob, session: Session) -> bool:
    for name in job.names:
        path = job.result(session.store, name)
        if not path.is_file() or not is_current(TaskResult.read(path), session.tasks):
            return False
    return True
