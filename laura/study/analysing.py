"""Analysis of the weights a study has saved, after its last run: spectra, subspaces, movement.

Each result is a file; what stands is not done again, and within a checkpoint the
matrices are kept as they come. A checkpoint that cannot be analysed (a diverged run's)
is named in its file and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from laura.analysis.comparison import compare_subspaces
from laura.analysis.measuring import Wanted, base_spectra, measure_spectra, warnings
from laura.analysis.movement import measure_movement
from laura.analysis.weights import StoredModel, open_tuned
from laura.engine.engine import Engine
from laura.engine.requests import TokenDocument
from laura.models.device import spectral_device
from laura.models.external import weights_folder
from laura.recipe.sections import FullArm, LoraArm
from laura.results.errors import AdapterError, ModelError, ShapeError
from laura.results.store import check_folder, content_hash, read_json, write_json
from laura.study.evidence import Evidence, Point
from laura.study.findings import (
    FORMAT,
    analysed_points,
    base_spectra_file,
    movement_file,
    spectra_file,
    subspaces_file,
)
from laura.study.session import Session
from laura.study.summary import gather

UNUSABLE = (ModelError, AdapterError, ShapeError)


def analyse(session: Session) -> None:
    """Write the spectra, subspaces and movement that the recipe's `analysis` asks for.

    Raises:
        CheckpointError: a checkpoint does not match its checksums.
        StoreError: a file cannot be read or written.
    """
    section = session.recipe.analysis
    if section.spectra == "none":
        return
    evidence = gather(session.store, session.recipe)
    counted = (section.intruders, section.intruder_k, section.intruder_eps)
    wanted = Wanted(*counted, leading=section.leading_k or 0)
    todo = [p for p in analysed_points(evidence) if not _stands(session, p, wanted)]
    device = spectral_device(session.bench.device_name)
    if todo:
        base = session.bench.stored
        known = _base_spectra(session, base, device)
        with session.progress.bar("analysis", len(todo), "checkpoints") as bar:
            for point in todo:
                _analyse_point(session, base, known, point, wanted, device)
                bar.advance()
    if section.subspace_k is not None:
        _subspaces(session, evidence, section.subspace_k, device)
    if section.movement:
        _movement(session, evidence, device)


def _movement(session: Session, evidence: Evidence, device: torch.device) -> None:
    """How far the points' hidden states moved on both texts, where that is not told yet."""
    texts = {
        name: session.data.documents[f"{name}_loss"]
        for name in ("target", "source")
        if f"{name}_loss" in session.data.documents
    }
    identity = content_hash([[one.token_ids for one in own] for own in texts.values()])
    for point in analysed_points(evidence):
        file = movement_file(session.store, point)
        if not file.is_file() or read_json(file).get("identity") != identity:
            _move(session, point, device, texts, identity)


def _move(
    session: Session,
    point: Point,
    device: torch.device,
    texts: Mapping[str, Sequence[TokenDocument]],
    identity: str,
) -> None:
    checkpoint = session.store.run(point.run_id).checkpoint(point.step)
    if not checkpoint.is_dir():
        return
    entry: dict[str, Any] = {"format": FORMAT, "identity": identity, "texts": []}
    try:
        with session.bench.tuned(checkpoint) as (model, base):
            assert base is not None, "a checkpoint has a base"
            engine = Engine(model, session.bench.base.tokenizer, progress=session.progress)
            for name, documents in texts.items():
                found = measure_movement(engine, base, documents, device)
                entry["texts"].append({**point.whose, "step": point.step, "text": name, **found})
    except UNUSABLE as error:
        entry["fault"] = str(error)
        session.progress.say(f"No movement of {point.arm}, seed {point.seed}: {error}")
    write_json(movement_file(session.store, point), entry)


def _base_spectra(
    session: Session, base: StoredModel, device: torch.device
) -> dict[str, dict[str, Any]]:
    file = base_spectra_file(session.store)
    # Once a study could be continued with its base held in another type.
    identity = {"dtype": session.recipe.base.dtype}
    kept = read_json(file) if file.is_file() else {}
    known: dict[str, dict[str, Any]] = kept.get("matrices", {})
    if kept.get("dtype") != identity["dtype"]:
        partial = _partial(file)
        known = base_spectra(
            base, file=partial, identity=identity, device=device, progress=session.progress
        )
        write_json(file, {"format": FORMAT, **identity, "matrices": known})
        partial.unlink()
    return known


def _stands(session: Session, point: Point, wanted: Wanted) -> bool:
    file = spectra_file(session.store, point)
    if file.is_file():
        return bool(read_json(file).get("settings") == wanted.settings)
    return not session.store.run(point.run_id).checkpoint(point.step).is_dir()


def _analyse_point(
    session: Session,
    base: StoredModel,
    known: dict[str, dict[str, Any]],
    point: Point,
    wanted: Wanted,
    device: torch.device,
) -> None:
    file = spectra_file(session.store, point)
    check_folder(session.store.run(point.run_id).checkpoint(point.step))
    partial = _partial(file)
    fault, matrices, remarks = None, list[dict[str, Any]](), list[str]()
    title = f"spectra of {point.arm} at {point.learning_rate:g}, seed {point.seed}"
    try:
        tuned = open_tuned(base, _weights(session, point))
        matrices = measure_spectra(
            base,
            tuned,
            wanted,
            known=known,
            file=partial,
            identity={"run": point.run_id, "step": point.step},
            device=device,
            title=title,
            progress=session.progress,
        )
        remarks = warnings(base, tuned, matrices)
    except UNUSABLE as error:
        fault = str(error)
        session.progress.say(f"No spectra of {point.arm}, seed {point.seed}: {fault}")
    entry: dict[str, Any] = {
        "format": FORMAT,
        **point.whose,
        "step": point.step,
        "settings": wanted.settings,
        "warnings": remarks,
        "matrices": matrices,
    }
    write_json(file, entry if fault is None else {**entry, "fault": fault})
    partial.unlink(missing_ok=True)


def _subspaces(session: Session, evidence: Evidence, k: int, device: torch.device) -> None:
    """Directions of the best lora and the best full arm, seed by seed, at the last budget."""
    pairs = _pairs(evidence)
    file = subspaces_file(session.store)
    identity = {"k": k, "pairs": [[p.run_id, q.run_id, p.step, q.step] for p, q in pairs]}
    if not pairs or (file.is_file() and read_json(file)["identity"] == identity):
        return
    base = session.bench.stored
    rows: list[dict[str, Any]] = []
    for number, pair in enumerate(pairs):
        runs = [point.run_id for point in pair]
        folders = [_weights(session, point) for point in pair]
        partial = file.with_name(f"subspaces.{number}.partial.jsonl")
        try:
            found = compare_subspaces(
                base,
                [open_tuned(base, folder) for folder in folders],
                k,
                file=partial,
                identity={**identity, "runs": runs},
                device=device,
                progress=session.progress,
            )
        except UNUSABLE as error:
            session.progress.say(f"No subspaces of {pair[0].arm} and {pair[1].arm}: {error}")
            continue
        # A matrix that one of them leaves alone has no directions to compare.
        rows += [{"runs": runs, **row} for row in found if row["k"]]
    write_json(file, {"format": FORMAT, "identity": identity, "matrices": rows})
    for partial in file.parent.glob("subspaces.*.partial.jsonl"):
        partial.unlink()


def _pairs(evidence: Evidence) -> list[tuple[Point, Point]]:
    """The best lora run and the best full run of each seed that has both, at the last budget."""
    arms = evidence.recipe.arms
    budgets: Sequence[float] = evidence.recipe.budget.listed
    points = [p for p in analysed_points(evidence) if p.budget == budgets[-1]]
    sides = []
    for method in (LoraArm, FullArm):
        own = [p for p in points if isinstance(arms[p.arm], method)]
        losses: dict[str, list[float]] = {}
        for point in own:
            if point.validation is not None:
                losses.setdefault(point.arm, []).append(point.validation)
        if not losses:
            return []
        best = min(losses, key=lambda arm: (sum(losses[arm]) / len(losses[arm]), arm))
        sides.append({p.seed: p for p in own if p.arm == best})
    return [(lora, sides[1][seed]) for seed, lora in sides[0].items() if seed in sides[1]]


def _weights(session: Session, point: Point) -> Path:
    checkpoint = session.store.run(point.run_id).checkpoint(point.step)
    return weights_folder(checkpoint, session.progress)


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.stem}.partial.jsonl")
