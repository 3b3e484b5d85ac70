"""What is asked of a study while it goes on: to stop, to skip a run, to take in more. No torch.

It all stands in STUDY/steering.json, so whoever asks (`laura watch`) need not know which commands
on which machines are at the study. They look there: to stop they end as at Ctrl-C, a run that is
skipped ends after its step with its state saved, and what was added is carried out when the rest
is. What was added is part of the recipe from then on; when it was added, and how much had been
measured by then, stays on record for whoever concludes.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from laura.recipe.reading import recipe_yaml, stored_recipe
from laura.recipe.sections import Recipe
from laura.results.errors import StoreError, UsageError
from laura.results.schema import Count, File, read_optional, write_file
from laura.results.store import StudyStore, read_json, write_text
from laura.study.sharing import held

STEERING = "steering.json"
LOOK_SECONDS = 1.0


class SkippedRun(File):
    """An arm at a rate with a seed that is not to be run on, nor begun."""

    arm: str
    learning_rate: float
    seed: int


class Added(File):
    """When something was added, and how many budget points of any run had been measured by then."""

    at: str
    measured: Count


class AddedRate(Added):
    """A rate that an arm is run at too; `grown` are those that its list had come to by itself."""

    arm: str
    learning_rate: float
    grown: list[float]


class AddedSeed(Added):
    """A seed that arms are run with too."""

    seed: int


class Steering(File):
    """All that is asked of a study; `stop` is when it was asked to, and null where it is not."""

    format: Literal[2] = 2
    stop: str | None = None
    skipped: tuple[SkippedRun, ...] = ()
    rates: tuple[AddedRate, ...] = ()
    seeds: tuple[AddedSeed, ...] = ()

    def skips(self, arm: str, learning_rate: float, seed: int) -> bool:
        """Whether a run is to be left out."""
        return SkippedRun(arm=arm, learning_rate=learning_rate, seed=seed) in self.skipped

    def extended(self, recipe: Recipe) -> Recipe:
        """A recipe with what was added, as far as it has the arms."""
        arms = dict(recipe.arms)
        for one in self.rates:
            if one.arm in arms:
                rates = list(arms[one.arm].learning_rates)
                rates += [r for r in (*one.grown, one.learning_rate) if r not in rates]
                arms[one.arm] = arms[one.arm].model_copy(update={"learning_rates": rates})
        seeds = list(dict.fromkeys([*recipe.seeds, *(one.seed for one in self.seeds)]))
        return recipe.model_copy(update={"arms": arms, "seeds": seeds})


def read_steering(folder: Path) -> Steering:
    """What is asked of a study.

    Raises:
        StoreError: its file is damaged.
    """
    return read_optional(Steering, folder / STEERING) or Steering()


@contextmanager
def steady(folder: Path) -> Iterator[None]:
    """What is asked of a study, and its recipe with that, stay as they are while this lasts."""
    with held(folder / f".{STEERING}.lock"):
        yield


# ----- asking -----


def _change(folder: Path, change: Callable[[Steering], dict[str, Any]]) -> None:
    """Write what is asked, and the recipe that comes of it."""
    if not (folder / "recipe.yaml").is_file():
        raise StoreError(f"{folder} holds no study; give the folder that `laura compare` wrote")
    with steady(folder):
        before = read_steering(folder)
        after = before.model_copy(update=change(before))
        if after == before:
            return
        write_file(folder / STEERING, after)
        recipe = stored_recipe(folder / "recipe.yaml")
        if after.extended(recipe) != recipe:
            write_text(folder / "recipe.yaml", recipe_yaml(after.extended(recipe)))


def ask_to_stop(folder: Path, wanted: bool) -> None:
    """Have every command at a study end where it can go on, or not."""
    _change(folder, lambda _: {"stop": _now() if wanted else None})


def ask_to_skip(folder: Path, arm: str, learning_rate: float, seed: int, wanted: bool) -> None:
    """Have a run left out, or take that back. What it measured stays, and it can go on later.

    Raises:
        UsageError: a search decides by itself which trials end.
    """
    if wanted and stored_recipe(folder / "recipe.yaml").search.sampler != "grid":
        raise UsageError(
            "the rates of this study are drawn by what earlier trials came to, so none can be "
            "left out; search.pruner stops those that are hopeless"
        )
    run = SkippedRun(arm=arm, learning_rate=learning_rate, seed=seed)

    def change(before: Steering) -> dict[str, Any]:
        others = [one for one in before.skipped if one != run]
        return {"skipped": (*others, run) if wanted else tuple(others)}

    _change(folder, change)


def ask_for_rate(folder: Path, arm: str, learning_rate: float, grown: list[float]) -> None:
    """Have an arm run at one more rate, with every seed that its others are run with.

    Args:
        folder: The study.
        arm: The arm.
        learning_rate: Peak rate.
        grown: The rates that its list has come to, by growing too.

    Raises:
        UsageError: it cannot be added; the reason is told.
    """
    recipe = stored_recipe(folder / "recipe.yaml")
    if arm not in recipe.arms:
        raise UsageError(f"there is no arm {arm!r}; the study has: {', '.join(recipe.arms)}")
    given = recipe.arms[arm]
    if given.external is not None:
        raise UsageError(f"the checkpoints of {arm} were made elsewhere, so no rate can be added")
    if given.of is not None:
        raise UsageError(f"{arm} is made of {given.of}'s checkpoints; add the rate to {given.of}")
    if recipe.search.sampler != "grid" or any(arm in f for f in recipe.search.families.values()):
        raise UsageError(f"the rates of {arm} are those of its search; change them in the recipe")
    if not 0 < learning_rate <= 1:
        raise UsageError(f"a rate must be above 0 and at most 1, came {learning_rate:g}")
    if learning_rate in {*given.learning_rates, *grown}:
        raise UsageError(f"{arm} is run at {learning_rate:g} already")
    more = [rate for rate in grown if rate not in given.learning_rates]
    added = AddedRate(
        at=_now(), measured=_measured(folder), arm=arm, learning_rate=learning_rate, grown=more
    )
    _change(folder, lambda before: {"rates": (*before.rates, added)})


def ask_for_seed(folder: Path, seed: int) -> None:
    """Have every arm run with one more seed.

    Raises:
        UsageError: it is used already, as a fresh one of `--confirm` too, or is none.
    """
    recipe = stored_recipe(folder / "recipe.yaml")
    if not 0 <= seed < 2**31:
        raise UsageError(f"a seed must be from 0 to {2**31 - 1}, came {seed}")
    if seed in recipe.seeds or seed in _seeds_run(folder):
        raise UsageError(f"seed {seed} is used already; choose another one")
    added = AddedSeed(at=_now(), measured=_measured(folder), seed=seed)
    _change(folder, lambda before: {"seeds": (*before.seeds, added)})


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _measured(folder: Path) -> int:
    """Budget points of all runs of which something was measured."""
    return sum(1 for run in StudyStore(folder).runs() for _ in run.folder.glob("evals/[0-9]*"))


def _seeds_run(folder: Path) -> set[int]:
    files = (run.folder / "run.json" for run in StudyStore(folder).runs())
    return {read_json(file)["seed"] for file in files if file.is_file()}


# ----- heeding -----


class Steered:
    """What is asked of a study, looked up again every second.

    Args:
        folder: The study.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._looked, self._known = folder, -LOOK_SECONDS, Steering()

    @property
    def now(self) -> Steering:
        """What is asked; what was asked before where the file cannot be read."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            with suppress(StoreError, UsageError):
                self._known = read_steering(self._folder)
        return self._known


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Within the block the main thread is interrupted, as by Ctrl-C, once a study shall stop."""
    main, here = threading.main_thread(), threading.current_thread()
    if here is not main:  # nothing but the main thread can be interrupted
        yield
        return
    ended, before = threading.Event(), read_steering(folder).stop
    steered = Steered(folder)

    def look() -> None:
        while not ended.wait(LOOK_SECONDS):
            if steered.now.stop not in (None, before):
                if main.ident is not None:
                    signal.pthread_kill(main.ident, signal.SIGINT)
                return

    thread = threading.Thread(target=look, name="laura-steering", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
