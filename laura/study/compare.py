"""`laura compare` of a recipe and of a series, and `laura train`: one run of a recipe.

Short programs: each step leaves files, and a step whose files stand is not done again, so what
is stopped at any moment goes on with the same command.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from laura.models.device import pick_device, worker_devices
from laura.recipe.reading import Series
from laura.recipe.sections import Recipe
from laura.results.errors import LauraError, UsageError
from laura.results.progress import SILENT, Bar, Progress, Within
from laura.results.schema import Summary
from laura.results.store import SeriesStore, write_json
from laura.study.analysing import analyse
from laura.study.claims.judgement import write_series_claims
from laura.study.evidence import Choice
from laura.study.extras import extra_jobs, most_jobs
from laura.study.measuring import OURS
from laura.study.opening import open_study
from laura.study.plan.fitting import check_memory
from laura.study.plan.planning import announcement
from laura.study.rebuilding import write_summary
from laura.study.runs import (
    FRESH_SEEDS,
    Configuration,
    RunSpec,
    check_configurations,
    check_run,
    fresh_seeds,
    further_seeds,
    grid_of,
    remark,
    runs_each,
    specs_of,
)
from laura.study.session import Session
from laura.study.sharing import BUSY, LOCK, WAIT_SECONDS, held
from laura.study.steering import ask_to_skip
from laura.study.summary import gather
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
    ray: bool = False,
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
        ray: Whether the Ray cluster that is `connected` carries out the runs.
        progress: Where to report.

    Returns:
        The content of `summary.json`, which is written beside `analysis.json` and
        `cost.json`.

    Raises:
        UsageError: what is to be confirmed is not of this study.
        LauraError: what stopped it; the same command continues.
    """
    check_configurations(confirm, confirm_seeds, recipe)
    _check_workers(recipe, workers or 1, device, ray)
    start = time.monotonic()
    with open_study(recipe, study, data_dir, device, progress) as session:
        grid = grid_of(recipe)
        _check(session, grid)
        search = None
        if recipe.search.sampler != "grid":
            from laura.study.search import Search  # Optuna takes a while to import

            search = Search(session)
        if told := remark(grid, recipe):
            progress.say(told)
        progress.say(announcement(session))
        fresh = [
            spec
            for seed in (fresh_seeds(recipe, confirm_seeds) if confirm else ())
            for arm, rate in confirm
            for spec in specs_of(recipe, arm, rate, seed)
        ]
        session.check_starts([spec for spec in (*grid, *fresh) if session.wants(spec)])
        crew = Crew(session, workers, ray)
        runs, before = _carry_out(crew, search, fresh, confirm)
        with held(session.store.folder / "analysis" / LOCK):
            analyse(session)
        summary = write_summary(session.store, session.recipe)
        # A command that found all done, or was helped, says nothing of how long it takes.
        if runs and session.alone and not crew.shared:
            seconds = time.monotonic() - start
            timing = {"seconds": seconds, "workers": crew.workers, "runs": runs}
            write_json(session.store.folder / TIMING, {**timing, "runs_before": before})
        return summary


def _check_workers(recipe: Recipe, workers: int, device: str | None, ray: bool) -> None:
    """Refuse workers that would have to share a device which each takes whole."""
    if workers > 1 and recipe.train.devices > 1:
        raise UsageError(
            f"--workers is {workers}, but each run takes all of train.devices: "
            f"{recipe.train.devices}; leave one of the two out"
        )
    engine, gpus = recipe.measure.engine, len(worker_devices(device))
    on_gpus = not ray and pick_device(device).type == "cuda"
    if engine != OURS and on_gpus and workers > gpus:
        raise UsageError(
            f"--workers is {workers}, but with measure.engine: {engine} each needs a GPU of its "
            f"own, and there are {gpus}; give at most so many"
        )


def _check(session: Session, specs: Sequence[RunSpec]) -> None:
    """Find what would stop these runs later, also that the device cannot hold those to be done."""
    session.check(specs)
    check_memory(session, dict.fromkeys(spec.arm for spec in _left(session, specs)[0]))


def _carry_out(
    crew: Crew, search: Any, fresh: Sequence[RunSpec], confirm: Sequence[Configuration]
) -> tuple[int, int]:
    """All runs and extras of a study; how many runs were carried out, and how many stood."""
    session = crew.session
    recipe = session.recipe
    left, before = _left(session, _listed(session))
    ended, trials = search.counts() if search else (0, 0)
    each, further = runs_each(recipe), further_seeds(recipe)
    stages = len(left) + trials + len(further) * len(recipe.arms) * each
    stages += most_jobs(recipe) + len(fresh)
    session.base_results()  # no stage: it takes less time than one, and would seem to be the pace
    with crew:
        # What stands is not counted, or the time left would be judged by its speed.
        with session.progress.bar("study", stages, "stages") as bar:
            runs, stood = _stages(crew, search, fresh, confirm, bar)
        # What was added meanwhile, or taken back of what was skipped.
        while left := _missing(session):
            with session.progress.bar("added", len(left), "runs") as bar:
                runs += _stages(crew, search, fresh, confirm, bar)[0]
    return runs + trials * each, before + ended + stood


def _stages(
    crew: Crew,
    search: Any,
    fresh: Sequence[RunSpec],
    confirm: Sequence[Configuration],
    bar: Bar,
) -> tuple[int, int]:
    """What is left of a study, in its order; how many runs that is, and how many others stood."""
    session = crew.session
    left, _ = _left(session, _listed(session))
    crew.carry_out(left, bar)
    if search is not None:
        search.carry_out(crew, bar)
    runs = len(left) + _lengthen(crew)
    more, finished = _left(session, _further_seeds(session))
    bar.advance(finished)
    crew.carry_out(more, bar)
    extras, measured = extra_jobs(session)
    bar.advance(measured)
    crew.carry_out(extras, bar)
    if confirm:
        check_run(confirm, gather(session.store, session.recipe).choices)
    last, stood = _left(session, fresh)
    bar.advance(stood)
    crew.carry_out(last, bar)
    return runs + len(more) + len(last), finished + stood


def _missing(session: Session) -> list[RunSpec]:
    """What all of its stages would still run."""
    listed = _listed(session)
    grown = _grown(session, gather(session.store, session.recipe).choices)
    return _left(session, [*listed, *grown, *_further_seeds(session)])[0]


def _listed(session: Session) -> list[RunSpec]:
    """The runs whose rates are listed and not drawn, with what was added to the lists."""
    session.take_up()
    arms, drawn = session.recipe.arms, session.recipe.search.sampler != "grid"
    return [s for s in grid_of(session.recipe) if not drawn or arms[s.arm].external]


def _left(session: Session, specs: Sequence[RunSpec]) -> tuple[list[RunSpec], int]:
    """Those not finished that are not to be skipped, and how many others there are."""
    left = [spec for spec in specs if session.wants(spec) and not session.finished(spec)]
    return left, len(specs) - len(left)


def _lengthen(crew: Crew) -> int:
    """Carry out the rates that lists grow by, round by round; how many runs these were.

    A round begins when the one before has ended with every seed, whoever carried it out:
    what it asks for depends on what was measured alone.
    """
    count, session = 0, crew.session
    while True:
        choices = gather(session.store, session.recipe).choices
        left, _ = _left(session, _grown(session, choices))
        if not left:
            return count
        for arm, choice in choices.items():
            if choice.further:
                rates = ", ".join(f"{rate:g}" for rate in choice.further)
                session.progress.say(f"{arm} is best at the end of its rates: {rates} is tried too")
        with session.progress.bar("further rates", len(left), "runs") as bar:
            crew.carry_out(left, bar)
        count += len(left)


def _grown(session: Session, choices: Mapping[str, Choice]) -> list[RunSpec]:
    """The runs at rates that lists have grown by, and are to grow by next."""
    recipe = session.recipe
    if recipe.search.sampler != "grid":
        return []
    grown = {
        name: [r for r in (*one.rates, *one.further) if r not in recipe.arms[name].learning_rates]
        for name, one in choices.items()
    }
    return grid_of(recipe, grown)


def _further_seeds(session: Session) -> list[RunSpec]:
    """Runs at each arm's best rate with the seeds that not every rate is run with."""
    recipe = session.recipe
    seeds = further_seeds(recipe)
    best = gather(session.store, recipe).best if seeds else {}
    found: list[RunSpec] = []
    for seed in seeds:
        for name in best:
            trained = recipe.arms[name].of or name
            specs = specs_of(recipe, trained, best[name][seed], seed)
            found += [spec for spec in specs if spec not in found]
    return found


def compare_series(
    series: Series,
    *,
    folder: Path,
    data_dir: Path | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
    **options: Any,
) -> dict[str, Summary]:
    """Carry out every setting, continuing what stands in the folder.

    All are checked before the first is trained, so that a mistake in the last does not
    come to light after hours.

    Args:
        series: The settings.
        folder: The folder of the series.
        data_dir: Folder of data sets that wins over the Hub.
        device: Device name; None for the best there is.
        progress: Where to report.
        options: `workers`, `confirm`, `confirm_seeds` and `ray` as for `compare`, in every setting.

    Returns:
        The summary of each setting.

    Raises:
        LauraError: what stops a setting; the others' finished work stands.
    """
    store, runs, left = SeriesStore(folder), {}, {}
    with progress.bar("checking the settings", len(series.settings), "settings") as bar:
        for name, recipe in series.settings.items():
            bar.note(name)
            with _told(name, progress):
                study = store.setting(name).folder
                with open_study(recipe, study, data_dir, device) as session:
                    grid = grid_of(recipe)
                    _check(session, grid)
                    runs[name], left[name] = len(grid), len(_left(session, grid)[0])
            bar.advance()
    store.write(series.name, list(series.names))
    summaries = {}
    with progress.bar("series", sum(runs.values()), "grid runs") as bar:
        bar.advance(sum(runs.values()) - sum(left.values()))
        for name, recipe in series.settings.items():
            bar.note(name)
            with _told(name, progress):
                summaries[name] = compare(
                    recipe,
                    study=store.setting(name).folder,
                    data_dir=data_dir,
                    device=device,
                    progress=Within(progress, "study", bar, left[name]),
                    **options,
                )
    write_series_claims(folder)
    return summaries


@contextmanager
def _told(name: str, progress: Progress) -> Iterator[None]:
    """Say in which setting something went wrong."""
    try:
        yield
    except LauraError:
        progress.say(f"stopped in setting {name}")
        raise


def train(
    recipe: Recipe,
    *,
    arm: str,
    learning_rate: float | None = None,
    seed: int | None = None,
    study: Path,
    data_dir: Path | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train one arm at one rate with one seed, and measure its budget points.

    Args:
        recipe: Where the arm and everything else is described.
        arm: Name of an arm of the recipe.
        learning_rate: None takes the arm's only rate.
        seed: None takes the recipe's first.
        study: The study folder.
        data_dir: Folder of data sets that wins over the Hub.
        device: Device name; None for the best there is.
        progress: Where to report.

    Returns:
        `{"runs": [{"id", "state", "folder", "checkpoints"}], "summary": ...}`.

    Raises:
        UsageError: no such arm, or the arm has several rates and none was chosen.
    """
    if arm not in recipe.arms:
        raise UsageError(f"the recipe has no arm {arm!r}; it has: {', '.join(recipe.arms)}")
    if made_of := recipe.arms[arm].of:
        raise UsageError(f"{arm} is made of {made_of}'s checkpoints; train {made_of}, and it comes")
    rates = recipe.arms[arm].learning_rates
    if learning_rate is None and len(rates) > 1:
        listed = ", ".join(f"{rate:g}" for rate in rates)
        raise UsageError(f"{arm} lists several rates ({listed}); choose one with --learning-rate")
    rate = rates[0] if learning_rate is None else learning_rate
    if not 0 < rate <= 1:
        raise UsageError(f"--learning-rate must be above 0 and at most 1, came {rate:g}")
    chosen = recipe.seeds[0] if seed is None else seed
    with open_study(recipe, study, data_dir, device, progress) as session:
        specs = specs_of(recipe, arm, rate, chosen)
        if not specs:
            raise UsageError(
                f"{arm} has no checkpoint made elsewhere at rate {rate:g} with seed {chosen}; "
                "choose one of those that its `external` names"
            )
        ask_to_skip(study, arm, rate, chosen, False)  # it is wanted after all
        _check(session, specs)
        session.check_starts(specs)
        session.base_results()
        runs = []
        for spec in specs:
            while (state := session.carry_out([spec])[0]) == BUSY:
                time.sleep(WAIT_SECONDS)
            run = session.run_store(spec)
            folders = sorted(str(p) for p in (run.folder / "checkpoints").glob("[0-9]*"))
            record = {"id": run.folder.name, "state": state, "folder": str(run.folder)}
            runs.append({**record, "checkpoints": folders})
        return {"runs": runs, "summary": write_summary(session.store, recipe)}
