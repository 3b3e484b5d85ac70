"""Carrying out a series: each setting is a study of its own, in SERIES/settings/NAME."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from laura.recipe.reading import Series
from laura.results.errors import LauraError
from laura.results.progress import SILENT, Progress
from laura.results.schema import Summary
from laura.results.store import SeriesStore
from laura.study.claims.judgement import write_series_claims
from laura.study.compare import compare, grid_of
from laura.study.confirming import FRESH_SEEDS, Configuration
from laura.study.opening import open_study


def compare_series(
    series: Series,
    *,
    folder: Path,
    data_dir: Path | None = None,
    device: str | None = None,
    workers: int | None = 1,
    confirm: Sequence[Configuration] = (),
    confirm_seeds: int = FRESH_SEEDS,
    progress: Progress = SILENT,
) -> dict[str, Summary]:
    """Carry out every setting, continuing what stands in the folder.

    All are checked before the first is trained, so that a mistake in the last does not
    come to light after hours.

    Args:
        series: The settings.
        folder: The folder of the series.
        data_dir: Folder of data sets that wins over the Hub.
        device: Device name; None for the best there is.
        workers: Runs carried out side by side; None for as many as pay.
        confirm: As for `compare`, in every setting.
        confirm_seeds: As for `compare`.
        progress: Where to report.

    Returns:
        The summary of each setting.

    Raises:
        LauraError: what stops a setting; the others' finished work stands.
    """
    store, runs = SeriesStore(folder), {}
    with progress.bar("checking the settings", len(series.settings), "settings") as bar:
        for name, recipe in series.settings.items():
            bar.note(name)
            with _told(name, progress):
                study = store.setting(name).folder
                with open_study(recipe, study, data_dir, device) as session:
                    session.check(grid := grid_of(session))
            runs[name] = len(grid)
            bar.advance()
    store.write(series.name, list(series.names))
    summaries = {}
    with progress.bar("series", sum(runs.values()), "grid runs") as bar:
        for name, recipe in series.settings.items():
            bar.note(name)
            with _told(name, progress):
                summaries[name] = compare(
                    recipe,
                    study=store.setting(name).folder,
                    data_dir=data_dir,
                    device=device,
                    workers=workers,
                    confirm=confirm,
                    confirm_seeds=confirm_seeds,
                    progress=progress,
                )
            bar.advance(runs[name])
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
