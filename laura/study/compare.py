"""`laura compare`: base, grids, longer lists, further and fresh seeds, extras, analysis, report.

A short program: each step leaves files, and a step whose files stand is not
done again, so a comparison that is stopped at any moment goes on with the same
command.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laura.recipe.search import grid_seeds
from laura.recipe.sections import Recipe
from laura.results.progress import SILENT, Progress
from laura.results.schema import COST_FILE, Summary, write_file
from laura.results.store import StudyStore, read_json, write_json
from laura.study.analysing import analyse
from laura.study.claims.judgement import write_claims
from laura.study.cohorts import remark
from laura.study.confirming import (
    FRESH_SEEDS,
    Configuration,
    check_configurations,
    check_run,
    fresh_seeds,
)
from laura.study.extras import extra_jobs, most_jobs
from laura.study.findings import write_findings
from laura.study.opening import open_study
from laura.study.plan_announced import announcement
from laura.study.plan_work import each_of, further_seeds
from laura.study.session import RunSpec, Session
from laura.study.sharing import LOCK, held
from laura.study.summary import build_costs, build_summary, gather
from laura.study.workers import Crew

TIMING = "timing.json"


def compare(
    recipe: Recipe,
    *,
    study: Path,
    data_dir: Path | None = None,
    device: str | None = None,
    workers: int | None = 1,
    confirm: Sequence[Configuration] = (),
    confirm_seeds: int = FRESH_SEEDS,
    progress: Progress = SILENT,
) -> Summary:
    """Carry out a whole comparison, continuing what stands in the folder.

    Args:
        recipe: What is compared.
        study: The study folder.
        data_dir: Folder of data sets that wins over the Hub.
        device: Device name; None for the best there is.
        workers: Runs carried out side by side, each in a process; None for as many
            as pay (one, but for a tiny base on a processor).
        confirm: Arms and rates that are run with fresh seeds too, when the rest is done.
        confirm_seeds: How many these are.
        progress: Where to report.

    Returns:
        The content of `summary.json`, which is written beside `analysis.json` and
        `cost.json`.

    Raises:
        UsageError: what is to be confirmed is not of this study.
        LauraError: what stopped it; the same command continues.
    """
    check_configurations(confirm, confirm_seeds, recipe)
    start = time.monotonic()
    with open_study(recipe, study, data_dir, device, progress) as session:
        grid = grid_of(session)
        session.check(grid)
        search = _search(session) if recipe.search.sampler != "grid" else None
        if told := remark(grid, recipe):
            progress.say(told)
        progress.say(announcement(session))
        fresh = [
            spec
            for seed in (fresh_seeds(recipe, confirm_seeds) if confirm else ())
            for arm, rate in confirm
            for spec in session.specs(arm, rate, seed)
        ]
        crew = Crew(session, data_dir, device, workers)
        runs, before = _carry_out(crew, grid, search, fresh, confirm)
        with held(session.store.folder / "analysis" / LOCK):
            analyse(session)
        summary = write_summary(session.store, recipe)
        # A command that found all done, or was helped, says nothing of how long it takes.
        if runs and session.alone and not crew.shared:
            seconds = time.monotonic() - start
            timing = {"seconds": seconds, "workers": crew.workers, "runs": runs}
            write_json(session.store.folder / TIMING, {**timing, "runs_before": before})
        return summary


def _carry_out(
    crew: Crew,
    grid: Sequence[RunSpec],
    search: Any,
    fresh: Sequence[RunSpec],
    confirm: Sequence[Configuration],
) -> tuple[int, int]:
    """All runs and extras of a study; how many runs were carried out, and how many stood."""
    session = crew.session
    recipe = session.recipe
    # What stands is not counted, or the time left would be judged by its speed.
    due = [spec for spec in grid if search is None or recipe.arms[spec.arm].external]
    left, before = _left(session, due)
    ended, trials = search.counts() if search else (0, 0)
    each, further = each_of(recipe), further_seeds(recipe)
    stages = 1 + len(left) + trials + len(further) * len(recipe.arms) * each
    stages += most_jobs(recipe) + len(fresh)
    with session.progress.bar("study", stages, "stages") as bar, crew:
        session.base_results()
        bar.advance()
        crew.carry_out(left, bar)
        if search is not None:
            search.carry_out(crew, bar)
        runs, before = len(left) + trials * each + _lengthen(crew), before + ended
        more, finished = _left(session, _further_seeds(session))
        bar.advance(finished)
        crew.carry_out(more, bar)
        extras, measured = extra_jobs(session)
        bar.advance(measured)
        crew.carry_out(extras, bar)
        if confirm:
            check_run(confirm, gather(session.store, recipe))
        last, stood = _left(session, fresh)
        bar.advance(stood)
        crew.carry_out(last, bar)
    return runs + len(more) + len(last), before + finished + stood


def write_summary(store: StudyStore, recipe: Recipe) -> Summary:
    """Build `summary.json`, `analysis.json`, `claims.json` and `cost.json` from the folder."""
    evidence = gather(store, recipe)
    summary = build_summary(evidence)
    write_findings(evidence, store)
    costs = build_costs(evidence, read_json(store.folder / "environment.json"))
    write_file(store.folder / COST_FILE, costs)
    write_file(store.summary_file, summary)
    write_claims(store.folder, evidence)
    return summary


def grid_of(session: Session) -> list[RunSpec]:
    """The runs that every study begins with, seed by seed; one rate where a search draws them."""
    recipe = session.recipe
    searched = recipe.search.sampler != "grid"
    return [
        spec
        for seed in grid_seeds(recipe.seeds, recipe.search)
        for name, arm in recipe.arms.items()
        for rate in sorted(arm.learning_rates)[: 1 if searched and arm.external is None else None]
        for spec in session.specs(name, rate, seed)
    ]


def _search(session: Session) -> Any:
    from laura.study.search import Search  # Optuna takes a while to import

    return Search(session)


def _left(session: Session, specs: Sequence[RunSpec]) -> tuple[list[RunSpec], int]:
    """Those not finished, and how many are."""
    left = [spec for spec in specs if not session.finished(spec)]
    return left, len(specs) - len(left)


def _lengthen(crew: Crew) -> int:
    """Carry out the rates that lists grow by, round by round; how many runs these were.

    A round begins when the one before has ended with every seed, whoever carried it out:
    what it asks for depends on what was measured alone.
    """
    count, session = 0, crew.session
    recipe = session.recipe
    for _ in range(recipe.search.extend):
        choices = gather(session.store, recipe).choices
        for arm, choice in choices.items():
            if choice.further:
                rates = ", ".join(f"{rate:g}" for rate in choice.further)
                session.progress.say(f"{arm} is best at the end of its rates: {rates} is tried too")
        grown = {arm: [*choice.rates, *choice.further] for arm, choice in choices.items()}
        left, _ = _left(session, _grown_runs(session, grown))
        if not left:
            break
        with session.progress.bar("further rates", len(left), "runs") as bar:
            crew.carry_out(left, bar)
        count += len(left)
    return count


def _grown_runs(session: Session, rates: Mapping[str, Sequence[float]]) -> list[RunSpec]:
    """The runs of rates that are not in the recipe, where it has a grid."""
    recipe = session.recipe
    if recipe.search.sampler != "grid":
        return []
    return [
        spec
        for seed in grid_seeds(recipe.seeds, recipe.search)
        for name, arm in recipe.arms.items()
        for rate in rates[name]
        if rate not in arm.learning_rates
        for spec in session.specs(name, rate, seed)
    ]


def _further_seeds(session: Session) -> list[RunSpec]:
    """Runs at each arm's best rate with the seeds that not every rate is run with."""
    recipe = session.recipe
    seeds = further_seeds(recipe)
    best = gather(session.store, recipe).best if seeds else {}
    return [
        spec
        for seed in seeds
        for name in best
        for spec in session.specs(name, best[name][seed], seed)
    ]
