"""`laura remedy`: make a finished adapter forget less, or say why not.

Every candidate (the adapter scaled, or its intruders; where minutes are given, trained a little
more from the best of these) is measured on the same items as base and adapter. One is chosen on
one half of the items and told on the other, so that the choice among them cannot flatter it. It
is accepted where the other half shows, each with 95 %, that it is not worse on the target by more
than a margin (non-inferiority) and that it forgets less. This speaks of the one adapter, so its
items are what is random; there are no seeds.

    OUT/remedy.json              what was measured and decided
    OUT/candidates/NAME          each candidate, a PEFT adapter
    OUT/polish                   see `polish.py`
    OUT/evals/NAME@HASH          its results; those that stand are not measured again
    OUT/adapter                  the accepted one
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

from laura.data.examples import Example
from laura.data.sources import load_examples
from laura.data.splits import refuse_measured
from laura.engine.requests import TokenDocument
from laura.evals.runner import Material, Subject, evaluate_all, file_rows
from laura.models.adapter_files import CONFIG
from laura.models.adapters import load_adapter, save_adapter
from laura.models.after import CHANGES
from laura.models.load import Base, fingerprint, load_base, resolve_model
from laura.models.lora import detach
from laura.recipe.sections import BaseSection, MeasureSection, Source
from laura.results.errors import AdapterError, UsageError
from laura.results.progress import SILENT, Progress
from laura.results.schema import (
    RECORD_FILE,
    Remedied,
    RemedyCandidate,
    ScoreMoved,
    read_record,
    write_file,
)
from laura.results.statistics import MIN_ITEMS, Estimate, mean_of_tasks
from laura.results.store import read_json
from laura.results.task_result import TaskResult, change
from laura.study.evaluation import BASE, marked
from laura.study.evidence import leading
from laura.study.material import ExampleEncoder, documents_of
from laura.study.measuring import ENGINES
from laura.study.polish import Polisher
from laura.study.workbench import Workbench

TARGET, SOURCE = "target_loss", "source_loss"
AS_IT_IS = "as-it-is"
CANDIDATES = (
    *(("scale", factor) for factor in (0.8, 0.6, 0.4, 0.2)),
    *(("intruders", factor) for factor in (0.5, 0.0)),
)
WIDTH = 1.96  # standard errors of a 95 % interval
REMEDY_FILE = "remedy.json"


@dataclass(frozen=True)
class _Moved:
    """What a candidate changes against the adapter as it is, on some of the items.

    Attributes:
        target: Of the target loss; above 0, it has unlearnt something.
        kept: Of what is kept of the source; above 0, it forgets less.
    """

    target: Estimate
    kept: Estimate


def remedy(
    model: str,
    adapter: Path,
    *,
    data: Source,
    source_text: Source,
    tasks: Sequence[str] = (),
    margin: float = 0.05,
    train: Source | None = None,
    minutes: float = 0.0,
    template: str = "chat",
    section: MeasureSection,
    data_dir: Path | None = None,
    out: Path,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Remedied:
    """Search the scale of a finished adapter and of its intruder dimensions, and polish it.

    Args:
        model: Its base: registry name, Hub id, folder or GGUF file.
        adapter: Its folder, in PEFT's format.
        data: Held-out examples of what it learnt, which it has not seen.
        source_text: Text of what it should not forget.
        tasks: Tasks by whose mean forgetting is judged; none: by the loss on `source_text`, which
            is measured in any case.
        margin: How much of what it learnt may be lost, as a share.
        train: Rows to polish it on; None for no training.
        minutes: How long that may take.
        template: As in a recipe's `data`.
        section: Limits and precision.
        data_dir: Folder of data sets that wins over the Hub.
        out: Where everything goes.
        device: Device name; None for the best there is.
        progress: Where to report.

    Returns:
        What was found, which also stands in `out/remedy.json`.

    Raises:
        AdapterError: the adapter cannot be read, or is of another base.
        DataError: a row to polish it on is one that is measured on.
        UsageError: too few examples, tasks of two units, or an adapter where `out` is written.
    """
    if SOURCE in tasks and len(tasks) > 1:
        raise UsageError(f"{SOURCE} is in nats per token, which have no mean with tasks; give one")
    _refuse_own(adapter, out)
    folder = resolve_model(model, None, progress)
    _check_record(adapter, folder)
    read = {TARGET: load_examples(data, data_dir), SOURCE: load_examples(source_text, data_dir)}
    rows = load_examples(train, data_dir) if train else []
    if train and len(rows) < MIN_ITEMS:
        raise UsageError(f"{len(rows)} rows to polish on; give at least {MIN_ITEMS}")
    refuse_measured("train", rows, read)
    base = load_base(str(folder), device=device)
    documents = _documents(read, base.tokenizer, template, section)
    folders = _candidates(base, adapter, out, progress)
    _say_unverified(adapter, {model, base.source()[0]}, progress)
    del base  # the engine loads its own

    def judged() -> Remedied:
        opened = ENGINES[section.engine].models(str(folder), folders, section, device, progress)
        with opened as (engine, mark):
            material = Material(section, file_rows(data_dir), documents, data_dir=data_dir)
            subjects = _subjects(folders, mark, out / "evals")
            asked = list(dict.fromkeys([TARGET, SOURCE, *tasks]))
            measured = evaluate_all(engine, asked, material, subjects, progress=progress)
        results = dict(zip([BASE, *folders], measured, strict=True))
        return decide(results, list(tasks) or [SOURCE], margin)

    found = judged()
    if train and found.learnt.interval[0] > 0 and found.forgot.interval[0] > 0:
        name, bench = found.chosen or AS_IT_IS, Workbench(BaseSection(model=str(folder)), device)
        given = (rows, read, minutes, template, section, out, progress)
        polished, done = Polisher(bench, name, folders[name], *given).polish()
        del bench
        folders |= polished
        found = (judged() if polished else found).model_copy(update={"polish": done})
    rmtree(out / "adapter", ignore_errors=True)  # of an earlier answer
    if found.chosen is not None and found.accepted:
        copytree(folders[found.chosen], out / "adapter")
        write_file(out / "adapter" / REMEDY_FILE, found)
    write_file(out / REMEDY_FILE, found)
    return found


def _documents(
    read: Mapping[str, Sequence[Example]], tokenizer: Any, template: str, section: MeasureSection
) -> dict[str, list[TokenDocument]]:
    """The documents of both losses, enough of each for two halves."""
    encoders = {
        TARGET: ExampleEncoder(tokenizer, template, "instruct"),
        SOURCE: ExampleEncoder(tokenizer, "plain", "pretrain"),
    }
    documents = {
        task: documents_of(encoders[task](examples), tokenizer, section.loss_tokens)
        for task, examples in read.items()
    }
    for task, own in documents.items():
        if len(own) < 2 * MIN_ITEMS:
            raise UsageError(
                f"{len(own)} documents for {task}: half of them choose and half tell, so at "
                f"least {2 * MIN_ITEMS} are needed; give more rows"
            )
    return documents


def _subjects(folders: Mapping[str, Path], mark: str, out: Path) -> list[Subject]:
    """The base and every adapter, each with a folder of its results."""

    def file(name: str) -> Callable[[str], Path]:
        return lambda task: out / name / f"{task}.json"

    names = {name: marked(name, folders) for name in folders}
    adapters = [Subject(f"{mark} + {own}", file(own), name) for name, own in names.items()]
    return [Subject(mark, file(BASE)), *adapters]


def _refuse_own(adapter: Path, out: Path) -> None:
    """Refuse an adapter that lies where candidates and the answer are written anew."""
    for name in ("adapter", "candidates", "polish"):
        if adapter.resolve().is_relative_to((out / name).resolve()):
            raise UsageError(
                f"{adapter} lies in {out / name}, which is written anew; give another folder "
                "as out, or copy the adapter"
            )


def _check_record(adapter: Path, base: Path) -> None:
    """Refuse an adapter whose record names another base; one of other shapes is refused later."""
    if not (adapter / RECORD_FILE).is_file():
        return
    named, own = read_record(adapter).base, fingerprint(base)
    if named.fingerprint != own:
        raise AdapterError(
            f"{adapter} was made for another base: its {RECORD_FILE} names {named.model[:100]!r} "
            f"with hash {named.fingerprint[:12]}, {base.name} has {own[:12]}; give its own base"
        )


def _say_unverified(adapter: Path, names: Collection[str], progress: Progress) -> None:
    """Say which base an adapter without a record names, where it is not this one by any name."""
    named = read_json(adapter / CONFIG).get("base_model_name_or_path")
    if not (adapter / RECORD_FILE).is_file() and named not in names:
        told = f"its configuration names {str(named)[:100]!r}" if named else "it names none"
        progress.say(
            f"{adapter}: its base is not verified, as it has no {RECORD_FILE}: {told}, given is "
            f"{' or '.join(sorted(names))}"
        )


def _candidates(base: Base, adapter: Path, out: Path, progress: Progress) -> dict[str, Path]:
    """Name to folder of the adapter as it is and of every candidate, which are written anew."""
    model, places = base.model, {AS_IT_IS: adapter}
    source, revision = base.source()
    with progress.bar("candidates", len(CANDIDATES), "adapters") as bar:
        for change, factor in CANDIDATES:
            settings = load_adapter(model, adapter)
            if settings.dora:
                raise AdapterError(f"{adapter} has trained lengths (DoRA), which are no sum; "
                                   "give a LoRA or OFT adapter")  # fmt: skip
            if change == "intruders" and settings.block_size:
                detach(model)  # a rotation has no rank that the result could go back to
                continue
            CHANGES[change](model, model, factor)
            name = f"{change}-{factor:g}"
            places[name] = out / "candidates" / name
            save_adapter(model, places[name], settings, source, revision=revision)
            detach(model)
            bar.advance()
    return places


def decide(
    results: Mapping[str, Mapping[str, TaskResult]], forgetting: Sequence[str], margin: float
) -> Remedied:
    """Choose a candidate on the even items and judge it by the odd ones.

    Args:
        results: Of `base`, of the adapter `as-it-is` and of each candidate, by task.
        forgetting: The tasks by whose mean forgetting is judged.
        margin: Share of what the adapter learnt that may be lost.
    """
    base, own = results[BASE], results[AS_IT_IS]
    learnt = change(base[TARGET], own[TARGET], leading(own[TARGET]))
    forgot = _kept(base, own, forgetting)
    allowed = margin * -learnt.value
    names = [name for name in results if name not in (BASE, AS_IT_IS)]
    halves = {
        name: [_moved(own, results[name], forgetting, half) for half in (0, 1)] for name in names
    }
    told: dict[str, Any] = {
        "margin": margin,
        "allowed": max(0.0, allowed),
        "forgetting_tasks": list(forgetting),
        "learnt": _score(learnt, -1),
        "forgot": _score(forgot, -1),
        "candidates": [
            RemedyCandidate(name=name, unlearnt=_score(first.target), kept=_score(first.kept))
            for name, (first, _) in halves.items()
        ],
    }

    def refused(why: str, **more: Any) -> Remedied:
        return Remedied(accepted=False, answer=why, **told, **more)

    if learnt.value + WIDTH * learnt.stderr >= 0:
        return refused("refused: the adapter has not surely learnt anything on this data; "
                       "is it its own, and in the template it was trained with?")  # fmt: skip
    if forgot.value + WIDTH * forgot.stderr >= 0:
        return refused("nothing to mend: the adapter has not surely forgotten anything here")
    could = {
        name: first.kept.value
        for name, (first, _) in halves.items()
        if first.kept.value > 0 and first.target.value + first.target.stderr <= allowed
    }
    if not could:
        return refused(
            f"refused: every candidate loses more than {100 * margin:g} % of what was learnt, or "
            "forgets as much; train anew at a lower rate, with replay or with a penalty"
        )
    name = max(could, key=lambda one: could[one])
    second = halves[name][1]
    figures: dict[str, Any] = {
        "chosen": name, "unlearnt": _score(second.target), "kept": _score(second.kept)
    }  # fmt: skip
    if second.target.value + WIDTH * second.target.stderr > allowed:
        return refused(
            f"refused: on the half that told, {name} may lose more than {100 * margin:g} % of "
            "what was learnt; give more examples or a larger --margin", **figures,
        )  # fmt: skip
    if second.kept.value - WIDTH * second.kept.stderr <= 0:
        return refused(
            f"refused: on the half that told, {name} does not surely forget less; give more text",
            **figures,
        )
    return Remedied(accepted=True, answer=_taken(name, second, learnt, forgot), **told, **figures)


def _taken(name: str, moved: _Moved, learnt: Estimate, forgot: Estimate) -> str:
    share, lost = (100 * moved.kept.value / -forgot.value, 100 * moved.target.value / -learnt.value)
    unlearnt = f"loses {lost:.1f} % of what was learnt" if lost > 0 else "learnt no less"
    return f"take {name}: it wins back {share:.0f} % of what was forgotten and {unlearnt}"


def _moved(
    own: Mapping[str, TaskResult], other: Mapping[str, TaskResult], tasks: Sequence[str], half: int
) -> _Moved:
    before, after = (
        {
            task: replace(result, items=[i for i in result.items if i["index"] % 2 == half])
            for task, result in side.items()
        }
        for side in (own, other)
    )
    target = change(before[TARGET], after[TARGET], leading(after[TARGET]))
    return _Moved(target, _kept(before, after, tasks))


def _kept(
    before: Mapping[str, TaskResult], after: Mapping[str, TaskResult], tasks: Sequence[str]
) -> Estimate:
    """The mean change of the tasks, turned so that above 0 more is kept."""
    changes = []
    for task in tasks:
        metric = leading(after[task])
        moved = change(before[task], after[task], metric)
        sign = 1 if after[task].metrics[metric].higher_is_better else -1
        changes.append(replace(moved, value=sign * moved.value))
    return mean_of_tasks(changes)


def _score(found: Estimate, sign: int = 1) -> ScoreMoved:
    value = sign * found.value
    reach = WIDTH * found.stderr
    return ScoreMoved(value=value, interval=(value - reach, value + reach), n=found.n)
