"""The commands on recipes and study folders: `laura compare`, `train`, `report` and `plan`."""

from __future__ import annotations

import re
import time
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import laura
from laura.cli.console import Console
from laura.cli.options import RECIPE, RecipeOptions, StudyOptions, argument, option
from laura.results.errors import UsageError

if TYPE_CHECKING:
    from laura.results.schema import Summary

DEFAULT_RECIPE = "micro"


@dataclass(frozen=True, kw_only=True)
class CompareOptions(StudyOptions):
    """What is compared, and how."""

    recipe: str = argument(DEFAULT_RECIPE, **RECIPE)
    workers: int | None = option(
        metavar="N", min=1, max=64, show_default="1; for a tiny base one a core"
    )
    """Runs carried out side by side, each in a process."""
    ray: str | None = option(metavar="ADDRESS")
    """Carry the runs out on the machines of this Ray cluster, as many as it has room for (at most
    --workers): auto, HOST:PORT or ray://HOST:PORT. They share the study folder. Needs the extra
    'laura-lab[ray]'; see docs/scale.md."""
    track: list[str] | None = option(metavar="NAME")
    """Tell a tracker as it goes: mlflow, tensorboard, trackio or wandb. Repeatable."""
    confirm: list[str] | None = option(metavar="ARM@RATE")
    """Also run this arm at this rate with fresh seeds, which had no part in choosing it.
    Repeatable."""
    confirm_seeds: int = option(default=3, metavar="N", min=1, max=100)
    """Fresh seeds of each --confirm."""


def compare(console: Console, options: CompareOptions) -> None:
    """Compare arms: what each learns, what it forgets.

    Evaluates the base, trains every arm at every learning rate with every seed,
    measures, and writes summary.json and report.html into the study folder.
    Stopped or killed, the same command continues; finished runs are never repeated.
    A series is carried out setting by setting, each a study of its own.

    \b
    Example:
      laura compare recipes/smollm2-gsm8k.yaml --data-dir data --set seeds=[0]
    """
    _answer(console, laura.compare(**vars(options), progress=console.progress))


@dataclass(frozen=True, kw_only=True)
class TrainOptions(StudyOptions):
    """Which run of a recipe is trained."""

    recipe: str = argument(**RECIPE)
    arm: str = option(default=MISSING, metavar="NAME")
    """Arm of the recipe to train."""
    learning_rate: float | None = option(metavar="RATE", show_default="the arm's only one")
    """Learning rate."""
    seed: int | None = option(metavar="N", show_default="the recipe's first")
    """Seed."""


def train(console: Console, options: TrainOptions) -> None:
    """Train one run: an arm, a learning rate, a seed.

    The run lands in the study folder where `laura compare` finds it again.

    \b
    Example:
      laura train recipes/smollm2-gsm8k.yaml --arm lora --learning-rate 3e-4
    """
    made = laura.train(**vars(options), progress=console.progress)
    runs = [run.model_dump() for run in made.runs]
    text = "\n".join(f"{run.id}: {run.state}, in {run.folder}" for run in made.runs)
    console.answer({"runs": runs, "summary": _without_curves(made.summary)}, text)


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """Which study is told to which tracker."""

    study: Path = argument(metavar="STUDY")
    """Folder of a study, finished or not."""
    tracker: str = argument(metavar="TRACKER")
    """mlflow, tensorboard, trackio or wandb."""
    follow: bool = option(default=False)
    """Go on telling what is new, until Ctrl-C."""


def track(console: Console, options: TrackOptions) -> None:
    """Tell a tracker of a study: losses, scores, answer, charts.

    What was told before is not told again. Runs that other machines carry out are told too.

    \b
    Example:
      laura track studies/micro tensorboard
    """
    from laura.study.trackers import TrackerError
    from laura.study.tracking import PERIOD_SECONDS, Mirror

    if not (options.study / "recipe.yaml").is_file():
        raise UsageError(f"{options.study} is no study folder; give one of `laura compare`")
    mirror = Mirror(options.study, options.tracker)
    try:
        while options.follow and not mirror.fault:
            mirror.tell()
            time.sleep(PERIOD_SECONDS)
    finally:
        mirror.end(concluded=True)
    if mirror.fault:
        raise TrackerError(mirror.fault)
    told = {"study": str(options.study), "tracker": options.tracker}
    console.answer(told, f"{options.tracker} knows what is in {options.study}.")


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What is watched, and where."""

    study: Path = argument(metavar="STUDY")
    """Folder of a study, finished or not."""
    port: int = option(default=0, metavar="N", min=0, max=65535, show_default="a free one")
    """Port of this machine that the page is served at."""


def watch(console: Console, options: WatchOptions) -> None:
    """Show a study while it goes on, and steer it, in a browser.

    Runs as they go, the trade-off as it grows, the time left; stop, skip a run, add a rate or a
    seed. It reads and writes the study folder alone, so it may be closed and opened at any time,
    and the runs may go on elsewhere. Ctrl-C ends the page, not the study.

    \b
    Example:
      laura watch studies/micro
    """
    from secrets import token_urlsafe

    from laura.results.store import SeriesStore

    study = options.study
    if settings := SeriesStore(study).settings():
        places = ", ".join(str(one.folder) for one in settings.values())
        raise UsageError(f"{study} is a series; watch one of its settings: {places}")
    if not (study / "recipe.yaml").is_file():
        raise UsageError(f"{study} is no study folder; give one of `laura compare`")
    from laura.watch.server import create_watch, listening, serve_page

    token = token_urlsafe(16)
    with listening(options.port) as place:
        url = f"http://127.0.0.1:{place.getsockname()[1]}/{token}/"
        told = f"watching {study} at {url}\nThe address is the key to it. Stop: Ctrl-C"
        console.answer({"study": str(study), "url": url}, told)
        serve_page(create_watch(study, token), place)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is drawn."""

    study: Path = argument(metavar="STUDY")
    """Folder of a study, or of a series."""
    form: Literal["html", "md"] = option("--format", default="html")
    """html: report.html, one page for a browser; md: report.md."""


def report(console: Console, options: ReportOptions) -> None:
    """Draw the report again from a study folder alone.

    Figures for a paper lie in STUDY/figures, as SVG and PNG.

    \b
    Example:
      laura report studies/smollm2-demo --format md
    """
    _answer(console, laura.write_report(options.study, options.form, progress=console.progress))


def _answer(console: Console, found: laura.StudyResults | laura.SeriesResults) -> None:
    """Show a study or each of a series: its answer with the table, and where the report is."""
    if isinstance(found, laura.StudyResults):
        console.answer(_value(found), *_shown(found))
        return
    from laura.cli.decision import claims_table

    value = {
        "series": str(found.folder),
        "report": str(found.report),
        "settings": {name: _value(study) for name, study in found.settings.items()},
        "judgement": found.judgement and found.judgement.model_dump(mode="json"),
    }
    shown = [part for name, one in found.settings.items() for part in (f"\n{name}", *_shown(one))]
    table = [claims_table(found.judgement)] if found.judgement else []
    console.answer(value, *shown, *table, f"\nReport: {found.report}")


def _value(study: laura.StudyResults) -> dict[str, Any]:
    judgement = study.judgement and study.judgement.model_dump(mode="json")
    places = {"study": str(study.folder), "report": str(study.report)}
    return {**places, **_without_curves(study.summary), "judgement": judgement}


def _shown(study: laura.StudyResults) -> list[Any]:
    from laura.report.tables import summary_table

    return [summary_table(study), f"\nReport: {study.report}"]


def _without_curves(summary: Summary) -> dict[str, Any]:
    """The summary without the training curves, which are long and lie in summary.json."""
    return summary.model_dump(mode="json", exclude={"runs": {"__all__": {"loss_curve"}}})


# ----- what a recipe will take -----


MOST_PARAMETERS = 1e15


@dataclass(frozen=True, kw_only=True)
class PlanOptions(RecipeOptions):
    """What is planned for."""

    recipe: str | None = argument(None, metavar="RECIPE")
    """YAML file of a recipe or a series, or the name of a shipped one."""
    devices: str | None = option(metavar="1,8,...", show_default="this machine, which is measured")
    """Plan for so many GPUs, over which a run may be spread (train.devices)."""
    device_memory: str | None = option(metavar="80GB", show_default="this machine's")
    """Memory of one of them: says which arms fit, and the least change with which they do."""
    flops_per_second: float | None = option(
        metavar="RATE", show_default="this machine's matrix products"
    )
    """Operations a second of one device, such as 2e14."""
    epoch_tokens: int | None = option(min=1, metavar="N")
    """Tokens of one epoch, where the data is not here."""
    table: str | None = option(metavar="PARAMETERS[,P]")
    """Instead of a recipe: the paper's memory table for so many parameters, P the adapter's share
    of them, as in --table 7e9,0.01"""


def plan(console: Console, options: PlanOptions) -> None:
    """Say what a recipe or a series takes: memory, time and disk.

    Also tokens and operations. Nothing is trained and no weights are read; of the base
    config.json is enough. Of a series every setting is planned, and all of them together.

    \b
    Example:
      laura plan recipes/smollm2-gsm8k.yaml
      laura plan paper/code-pretrain --devices 8 --device-memory 80GB --flops-per-second 4e14
      laura plan micro/paper --setting code-instruct
      laura plan --table 7e9 --devices 1,8,16,32,64
    """
    devices = _numbers(options.devices)
    if options.table is not None:
        _answer_table(console, *_table(options.table), devices or [1, 8, 16, 32, 64])
        return
    if options.recipe is None:
        raise UsageError("laura plan needs a RECIPE, or --table PARAMETERS for the paper's")
    from laura.api import resolve_recipe
    from laura.recipe.sections import Recipe

    chosen = resolve_recipe(
        options.recipe,
        overrides=options.overrides,
        setting=options.setting,
        data_dir=options.data_dir,
    )
    from laura.study.plan.planning import plan as make_plan
    from laura.study.plan.planning import plan_series
    from laura.study.plan.text import plan_text, series_text

    given: dict[str, Any] = {
        "devices": devices,
        "device_memory": _memory(options.device_memory),
        "device": options.device,
        "flops_per_second": options.flops_per_second,
        "epoch_tokens": options.epoch_tokens,
        "data_dir": options.data_dir,
    }
    if isinstance(chosen, Recipe):
        found = make_plan(chosen, **given)
        console.answer(found, plan_text(found))
    else:
        found = plan_series(chosen, **given)
        console.answer(found, series_text(found))


def _answer_table(console: Console, parameters: float, share: float, devices: list[int]) -> None:
    from laura.study.plan.text import paper_rows, paper_text

    value = {"parameters": parameters, "share": share, "devices": devices}
    value["rows"] = paper_rows(parameters, devices, share)
    console.answer(value, paper_text(parameters, devices, share))


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    from laura.study.plan.planning import check_devices

    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            f"--devices wants whole numbers, as in --devices 1,8,64; came {text}"
        ) from None
    return check_devices(counts)


def _memory(text: str | None) -> int | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(G|Gi)B", text)
    if found is None or not float(found[1]):
        raise UsageError(f"--device-memory wants a size, as in 80GB or 79.6GiB; came {text}")
    return int(float(found[1]) * {"G": 10**9, "Gi": 2**30}[found[2]])


def _table(text: str) -> tuple[float, float]:
    from laura.study.plan.text import SHARE

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    share = numbers[1] if len(numbers) == 2 else SHARE
    if not 1 <= len(numbers) <= 2 or not 1 <= numbers[0] <= MOST_PARAMETERS or not 0 < share <= 1:
        raise UsageError(
            f"--table wants parameters from 1 to 1e15, and a share in (0, 1], as in "
            f"--table 7e9,0.01; came {text}"
        )
    return numbers[0], share
