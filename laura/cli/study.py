"""What the commands on recipes and study folders share: one study, or a series of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.cli.answers import without_curves
from laura.results.errors import UsageError

if TYPE_CHECKING:
    from laura.cli.console import Desk
    from laura.recipe.sections import Recipe
    from laura.recipe.series import Series
    from laura.report.html import Format
    from laura.results.progress import Progress


def read_chosen(
    name: str, overrides: list[str] | None, data_dir: Path | None, setting: str | None
) -> Recipe | Series:
    """The recipe or series that a command was given, or one setting of a series.

    Raises:
        RecipeError: it has faults.
        UsageError: there is no such recipe or setting.
    """
    from dataclasses import replace

    from laura.recipe.series import Series, read_study
    from laura.recipe.shipped import find_recipe

    chosen = read_study(find_recipe(name), overrides or (), data_dir)
    if setting is None:
        return chosen
    known = chosen.settings if isinstance(chosen, Series) else {}
    if setting not in known:
        allowed = f"its settings: {', '.join(known)}" if known else "it is a recipe, not a series"
        raise UsageError(f"--setting {setting}: {name} has no such setting; {allowed}")
    assert isinstance(chosen, Series)
    return replace(chosen, settings={setting: known[setting]})


def read_setting(
    name: str, overrides: list[str] | None, data_dir: Path | None, setting: str | None
) -> Recipe:
    """The recipe that a command was given, or one setting of a series.

    Raises:
        UsageError: a series was given, and not which setting is meant.
    """
    from laura.recipe.sections import Recipe

    chosen = read_chosen(name, overrides, data_dir, setting)
    if isinstance(chosen, Recipe):
        return chosen
    if len(chosen.settings) > 1:
        names = ", ".join(chosen.settings)
        raise UsageError(f"{name} is a series; say which setting with --setting, one of: {names}")
    return next(iter(chosen.settings.values()))


def carry_out(
    chosen: Recipe | Series,
    study: Path,
    data_dir: Path | None,
    device: str | None,
    workers: int | None,
    progress: Progress,
    confirm: Sequence[str] = (),
    confirm_seeds: int = 3,
) -> None:
    """Carry out a recipe or a series in its folder.

    Raises:
        UsageError: what is to be confirmed, ARM@RATE, is not of it, or of several settings.
    """
    from laura.recipe.sections import Recipe
    from laura.study.confirming import check_configurations, read_configurations

    # Also this before torch is loaded.
    wanted = read_configurations(confirm)
    recipes = [chosen] if isinstance(chosen, Recipe) else list(chosen.settings.values())
    if wanted and len(recipes) > 1:
        names = ", ".join(recipe.name for recipe in recipes)
        raise UsageError(f"--confirm is of one setting; say which with --setting, one of: {names}")
    for recipe in recipes:
        check_configurations(wanted, confirm_seeds, recipe)
    if isinstance(chosen, Recipe):
        from laura.study.compare import compare

        compare(
            chosen,
            study=study,
            data_dir=data_dir,
            device=device,
            workers=workers,
            confirm=wanted,
            confirm_seeds=confirm_seeds,
            progress=progress,
        )
        return
    from laura.study.series import compare_series

    compare_series(
        chosen,
        folder=study,
        data_dir=data_dir,
        device=device,
        workers=workers,
        confirm=wanted,
        confirm_seeds=confirm_seeds,
        progress=progress,
    )


def judge_again(desk: Desk, folder: Path) -> None:
    """Write again what follows from the folder alone; a comparison has just written it."""
    from laura.results.store import SeriesStore
    from laura.study.claims.judgement import write_series_claims
    from laura.study.rebuilding import rebuild

    settings = SeriesStore(folder).settings()
    for study in settings.values():
        try:
            rebuild(study.folder, desk.progress)
        except UsageError as error:
            desk.progress.say(str(error))
    if settings:
        write_series_claims(folder)
    else:
        rebuild(folder, desk.progress)


def draw_and_answer(desk: Desk, folder: Path, form: Format = "html") -> None:
    """Draw the report of a study, or of a series and its settings, and show what they found."""
    from laura.results.errors import StoreError
    from laura.results.store import SeriesStore

    settings = SeriesStore(folder).settings()
    if not settings:
        _answer(desk, *_drawn(desk, folder, form))
        return
    from laura.cli.claims import claims_table
    from laura.report.series import write_series_report
    from laura.results.schema import CLAIMS_FILE, Judgement, read_file

    answers = {}
    for name, study in settings.items():
        if not study.summary_file.is_file():
            continue
        try:
            answers[name] = _drawn(desk, study.folder, form)
        except (StoreError, UsageError) as error:
            desk.progress.say(f"setting {name} is not drawn: {error}")
    judged = read_file(Judgement, folder / CLAIMS_FILE)
    page = write_series_report(folder, form)
    told = {name: value for name, (value, _) in answers.items()}
    value = {
        "series": str(folder),
        "report": str(page),
        "settings": told,
        "judgement": judged.model_dump(mode="json"),
    }
    if desk.as_json:
        desk.answer(value)
        return
    for name, (one, table) in answers.items():
        desk.answer(one, f"\n{name}")
        _answer(desk, one, table)
    _answer(desk, value, claims_table(judged))


def _answer(desk: Desk, value: dict[str, Any], table: Any) -> None:
    """Show a study: its answer with the table, and where the report is."""
    desk.answer(value, table)
    if not desk.as_json:
        desk.answer(value, f"\nReport: {value['report']}")


def _drawn(desk: Desk, folder: Path, form: Format) -> tuple[dict[str, Any], Any]:
    """The answer on one study, whose report is drawn: for machines, and for people."""
    from laura.report.html import write_report
    from laura.report.study import read_study
    from laura.report.tables import summary_table

    page = write_report(folder, desk.progress, form)
    read = read_study(folder)
    value = {
        "study": str(folder),
        "report": str(page),
        **without_curves(read.summary),
        "judgement": None if read.judgement is None else read.judgement.model_dump(mode="json"),
    }
    return value, summary_table(read)
