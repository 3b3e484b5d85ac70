"""`laura train`: one run of a recipe, in the same folder as a comparison's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from laura.recipe.sections import Recipe
from laura.results.errors import UsageError
from laura.results.progress import SILENT, Progress
from laura.study.compare import write_summary
from laura.study.opening import open_study
from laura.study.sharing import BUSY, WAIT_SECONDS


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
    rates = recipe.arms[arm].learning_rates
    if learning_rate is None and len(rates) > 1:
        listed = ", ".join(f"{rate:g}" for rate in rates)
        raise UsageError(f"{arm} lists several rates ({listed}); choose one with --learning-rate")
    rate = rates[0] if learning_rate is None else learning_rate
    if not 0 < rate <= 1:
        raise UsageError(f"--learning-rate must be above 0 and at most 1, came {rate:g}")
    chosen = recipe.seeds[0] if seed is None else seed
    with open_study(recipe, study, data_dir, device, progress) as session:
        specs = session.specs(arm, rate, chosen)
        if not specs:
            raise UsageError(
                f"{arm} has no checkpoint made elsewhere at rate {rate:g} with seed {chosen}; "
                "choose one of those that its `external` names"
            )
        session.check(specs)
        session.base_results()
        runs = []
        for spec in specs:
            while (state := session.carry_out(spec)) == BUSY:
                time.sleep(WAIT_SECONDS)
            run = session.run_store(spec)
            folders = sorted(str(p) for p in (run.folder / "checkpoints").glob("[0-9]*"))
            record = {"id": run.folder.name, "state": state, "folder": str(run.folder)}
            runs.append({**record, "checkpoints": folders})
        return {"runs": runs, "summary": write_summary(session.store, recipe)}
