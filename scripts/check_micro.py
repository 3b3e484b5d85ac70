"""Measure what must be true of the micro laboratory, and say whether it is.

    python scripts/check_micro.py --study studies/micro
    python scripts/check_micro.py --base DIR    a base made by scripts/make_micro_base.py

Exits with 2 when something does not hold; what could not be looked at is told. The base is
measured anew and the world's text is read again; what a comparison
showed is read from its study folder. A comparison that has not been made is told
as such, never as fulfilled.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.cli.progress import open_progress
from laura.data.sources import load_rows
from laura.evals.tasks import find
from laura.micro.settings import WorldSettings
from laura.micro.targets import DOMAINS, SPLITS, forms, running_text
from laura.micro.tokenizer import pieces
from laura.micro.world import World, text_of
from laura.models.load import WEIGHTS, load_base
from laura.models.registry import MICRO_BASE
from laura.recipe.sections import MeasureSection
from laura.results.errors import ModelError
from laura.results.progress import SILENT, Progress
from laura.results.store import StudyStore, file_hash, read_json
from laura.study.compare import TIMING
from laura.study.evaluation import evaluate_model

SOURCE_TASKS = ("micro_facts", "micro_events", "micro_pronouns")
KNOWN = (0.85, 0.95)
UNKNOWN = 0.02
STDERR = 0.02
LEARNT = 0.60
FORGOTTEN = 0.10
MINUTES = 7.0
# Of the training text, enough to show every token of the target domains many times.
DOCUMENTS = 20_000


@dataclass(frozen=True)
class Check:
    """One thing that must be true.

    Attributes:
        what: What was looked at.
        found: What was found.
        wanted: What must hold.
        holds: Whether it does; None where it could not be looked at.
    """

    what: str
    found: str
    wanted: str
    holds: bool | None


def check_base(
    folder: Path,
    data_dir: Path | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> list[Check]:
    """Measure a micro base.

    Args:
        folder: The base, with its card.
        data_dir: Folder that holds its `micro/`; None for the data of the shipped base.
        device: Device name; None for the best there is.
        progress: Where to report.

    Raises:
        ModelError: the card is missing, does not fit the weights, or tells of no world.
    """
    card = check_card(folder)
    world = _world_of(card, folder)
    targets = [f"micro_{domain}" for domain in DOMAINS]
    with tempfile.TemporaryDirectory() as place:
        results = evaluate_model(
            str(folder),
            tasks=[*SOURCE_TASKS, *targets],
            section=MeasureSection(limit=None),
            data_dir=data_dir,
            out=Path(place),
            device=device,
            progress=progress,
        )
    scores = {task: result["metrics"][find(task).metric] for task, result in results.items()}
    return [
        *(_source_check(task, results[task]["n"], scores[task]) for task in SOURCE_TASKS),
        *(_target_check(task, results[task]["n"], scores[task]) for task in targets),
        _unseen(world, len(card["stages"]) - 1, folder, data_dir, progress),
    ]


def _source_check(task: str, count: int, score: dict[str, float]) -> Check:
    value, stderr = score["value"], score["stderr"]
    holds = KNOWN[0] <= value <= KNOWN[1] and round(stderr, 3) <= STDERR
    wanted = f"{KNOWN[0]:.2f} to {KNOWN[1]:.2f}, error at most {STDERR}"
    return Check(f"base, {task}", f"{value:.3f} ± {stderr:.3f} (n={count})", wanted, holds)


def _target_check(task: str, count: int, score: dict[str, float]) -> Check:
    found = f"{score['value']:.3f} (n={count})"
    return Check(f"base, {task}", found, f"at most {UNKNOWN}", score["value"] <= UNKNOWN)


def _world_of(card: dict[str, Any], folder: Path) -> World:
    try:
        return World(WorldSettings(**card["world"]))
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"card.json in {folder} tells of no world that this version of Laura makes ({error}); "
            "build the base again with scripts/make_micro_base.py"
        ) from error


def _unseen(
    world: World, stage: int, folder: Path, data_dir: Path | None, progress: Progress
) -> Check:
    """Tokens of the target domains that the text of the last stage never shows."""
    tokenizer = load_base(str(folder), device="cpu").tokenizer
    rows = list(_target_rows(data_dir))
    texts = [text for row in rows for text in forms(row)]
    needed = {token for ids in tokenizer(texts)["input_ids"] for token in ids}
    documents = world.documents(f"stage {stage}", pieces(running_text(row) for row in rows))
    with progress.bar("reading the world", DOCUMENTS, "documents") as bar:
        for _, row in zip(range(DOCUMENTS), documents, strict=False):
            needed.difference_update(tokenizer(text_of(row))["input_ids"])
            bar.advance()
            if not needed:
                break
    return Check("target tokens that pretraining never showed", str(len(needed)), "0", not needed)


def _target_rows(data_dir: Path | None) -> Iterator[dict[str, Any]]:
    for domain in DOMAINS:
        for split in SPLITS:
            yield from load_rows(f"micro_{domain}", split, data_dir)


def check_study(folder: Path) -> list[Check]:
    """What a comparison on the micro base showed.

    Args:
        folder: The study folder.
    """
    store = StudyStore(folder)
    if not store.summary_file.is_file():
        hint = f"no comparison there yet; make it with laura compare NAME --out {folder}"
        return [Check(f"comparison in {folder}", hint, "a finished comparison", None)]
    summary = read_json(store.summary_file)
    task = summary["measure"]["learning"][0]
    best = {method: max(_values(summary, method, task), default=0.0) for method in ("full", "lora")}
    lost = min(_changes(summary, "full"), default=0.0)
    name = summary["name"]
    return [
        Check(
            f"{name}: full finetuning at its best, {task}",
            f"{best['full']:.3f}", f"at least {LEARNT}", best["full"] >= LEARNT,
        ),
        Check(
            f"{name}: LoRA at its best, {task}",
            f"{best['lora']:.3f}", "at least half of full's", best["lora"] >= best["full"] / 2,
        ),
        Check(
            f"{name}: most that full finetuning lost of the source mean",
            f"{-lost:.3f}", f"at least {FORGOTTEN}", -lost >= FORGOTTEN,
        ),
        _time_check(name, folder / TIMING),
    ]  # fmt: skip


def _time_check(name: str, file: Path) -> Check:
    what, wanted = f"{name}: minutes of the comparison", f"at most {MINUTES:g}"
    if not file.is_file():
        return Check(what, "no record of them", wanted, None)
    timing = read_json(file)
    minutes, before = timing["seconds"] / 60, timing["runs_before"]
    found = f"{minutes:.1f} for {timing['runs']} runs, {timing['workers']} at once"
    if before:
        found += f"; {before} runs stood before, so it is not the whole"
    holds = None if before else minutes <= MINUTES
    return Check(what, found, wanted, holds)


def _points(summary: dict[str, Any], method: str) -> Iterable[dict[str, Any]]:
    arms = {arm["name"] for arm in summary["arms"] if arm["method"] == method}
    return [point for point in summary["points"] if point["arm"] in arms]


def _values(summary: dict[str, Any], method: str, task: str) -> list[float]:
    return [float(point["scores"][task]["value"]) for point in _points(summary, method)]


def _changes(summary: dict[str, Any], method: str) -> list[float]:
    return [float(p["changes"]["mean"]["value"]) for p in _points(summary, method)]


def check_card(folder: Path) -> dict[str, Any]:
    """The card of a micro base, which must be of these weights.

    Raises:
        ModelError: there is no card, or it is of other weights.
    """
    if not (folder / "card.json").is_file():
        raise ModelError(
            f"{folder} has no card.json, so it is no micro base (see scripts/make_micro_base.py)"
        )
    card: dict[str, Any] = read_json(folder / "card.json")
    if card.get("weights_sha256") != file_hash(folder / WEIGHTS):
        raise ModelError(
            f"card.json in {folder} is of other weights than its {WEIGHTS}; build the base again"
        )
    return card


def main() -> None:
    """Look at a base and at studies on it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, help="another micro base; the shipped one if absent")
    parser.add_argument("--study", type=Path, action="append", help="studies/micro if absent")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps; the best if absent")
    options = parser.parse_args()
    # A base that was made elsewhere has its data beside it.
    data_dir = None if options.base is None else options.base / "data"
    with open_progress() as progress:
        checks = check_base(options.base or MICRO_BASE, data_dir, options.device, progress)
    for folder in options.study or [Path("studies/micro")]:
        checks += check_study(folder)
    words = {True: "ok", False: "NOT SO", None: "not known"}
    for one in checks:
        print(f"{words[one.holds]:<10}{one.what}: {one.found} ({one.wanted})")
    if any(one.holds is False for one in checks):
        sys.exit(2)


if __name__ == "__main__":
    main()
