"""A recommendation handed over: as JSON, as a recipe, as a folder of weights with its record.

No torch: weights are copied as files, after their checksums were checked.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from laura.recipe.reading import recipe_yaml
from laura.results.errors import EvidenceError, UsageError
from laura.results.schema import (
    RECORD_FILE,
    BaseIdentity,
    Candidate,
    EstimatedTasks,
    Recommendation,
    Record,
    RecordedClaim,
    TaskScores,
    write_record,
)
from laura.results.statistics import Estimate, count
from laura.results.store import (
    MANIFEST,
    StudyStore,
    check_folder,
    disk_faults,
    file_hash,
    read_json,
    write_folder,
    write_text,
)
from laura.results.task_result import TaskResult, change
from laura.study.claims.judgement import judge
from laura.study.claims.settings import FORGETTING, LEARNING, Setting
from laura.study.claims.verdicts import estimated
from laura.study.evidence import Evidence, Point
from laura.study.measures import leading
from laura.study.recommend import Configuration, Decision, answer_of, describe
from laura.study.untried import untried

NAME_ENDING, LONGEST_NAME = "-recommended", 64


def recommendation_of(
    decision: Decision, recipe: Path | None, adapter: Path | None
) -> Recommendation:
    """A decision as `recommendation.json` holds it, with where recipe and weights went."""
    setting, chosen = decision.setting, decision.chosen
    gaps = untried(setting, chosen.arm if chosen else None, chosen.budget if chosen else None)
    return Recommendation(
        answer=answer_of(decision),
        study=setting.name,
        asked=decision.constraint,
        state=decision.state,
        measures={
            name: {"tasks": setting.tasks(name), "unit": setting.unit(name)}
            for name in (LEARNING, FORGETTING)
        },
        candidates=decision.candidates,
        chosen=_candidate(chosen, setting, "") if chosen else None,
        alternatives=[_candidate(one, setting, why) for one, why in decision.others],
        confirm=decision.confirm,
        not_tried=gaps,
        recipe=None if recipe is None else str(recipe),
        adapter=None if adapter is None else str(adapter),
    )


def write_recipe(decision: Decision, path: Path) -> None:
    """Write the recipe of the recommended configuration, ready for `train` and `compare`.

    It is the study's with one arm, one rate and one budget, under a name of its own, so that
    it does not run into the study's folder. Points of a `hot` run keep the whole list: the
    schedule belongs to the longest.

    Raises:
        StoreError: the file cannot be written.
    """
    recipe, chosen = decision.setting.evidence.recipe, _chosen(decision)
    arm = recipe.arms[chosen.arm.name]
    arm = arm.model_copy(update={"learning_rates": [chosen.learning_rate]})
    budget = recipe.budget
    if budget.points == "separate":
        unit = "tokens" if budget.tokens else "epochs"
        point = int(chosen.budget) if budget.tokens else chosen.budget
        budget = budget.model_copy(update={unit: [point]})
    name = recipe.name[: LONGEST_NAME - len(NAME_ENDING)] + NAME_ENDING
    ready = recipe.model_copy(
        update={"name": name, "arms": {chosen.arm.name: arm}, "budget": budget}
    )
    write_text(path, recipe_yaml(ready))


def write_weights(decision: Decision, study: Path, folder: Path) -> Record:
    """Copy the recommended checkpoint, with its `laura.json`; the first seed of the recipe.

    The first and not the best: to pick the best seed by its scores would make the scores
    in the record too good.

    Raises:
        EvidenceError: the checkpoint is not there any more.
        UsageError: the folder holds something else.
        CheckpointError: the checkpoint does not match its checksums.
        StoreError: the folder cannot be written.
    """
    chosen = _chosen(decision)
    point = next(iter(chosen.points.values()))
    source = StudyStore(study).run(point.run["id"]).checkpoint(point.step)
    if not source.is_dir():
        raise EvidenceError(
            f"the checkpoint {source} is not there any more; train it again with the recipe "
            "that --out writes"
        )
    with disk_faults(folder):
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (folder / RECORD_FILE).is_file():
        raise UsageError(f"{folder} holds something else; name a new folder for --adapter")
    facts = check_folder(source)
    files = sorted(p for p in source.rglob("*") if p.is_file() and p.name != MANIFEST)
    record = _record(
        decision, study, point, {str(p.relative_to(source)): file_hash(p) for p in files}
    )

    def fill(place: Path) -> None:
        shutil.copytree(source, place, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        write_record(place, record)

    write_folder(folder, fill, facts)
    return record


def _chosen(decision: Decision) -> Configuration:
    if decision.chosen is None:
        raise ValueError("nothing was recommended, so there is nothing to hand over")
    return decision.chosen


def _candidate(one: Configuration, setting: Setting, why: str) -> Candidate:
    sides = {
        name: None if found is None else estimated(found, setting.unit(name), one.level)
        for name, found in ((LEARNING, one.learning), (FORGETTING, one.forgetting))
    }
    return Candidate(
        arm=one.arm.name,
        method=one.arm.method,
        settings=dict(one.arm.settings),
        learning_rate=one.learning_rate,
        budget=one.budget,
        seeds=list(one.points),
        runs=[point.run["id"] for point in one.points.values()],
        confirmed=one.confirmed,
        learning=sides[LEARNING],
        forgetting=sides[FORGETTING],
        learnt=one.learnt,
        forgot=one.forgot,
        cost=one.cost,
        why_not=why,
    )


def _record(decision: Decision, study: Path, point: Point, weights: dict[str, str]) -> Record:
    setting, chosen = decision.setting, _chosen(decision)
    evidence = setting.evidence
    base = evidence.facts["base"]
    judged = judge([setting]).claims
    return Record(
        study=setting.name,
        base=BaseIdentity(**base),
        recipe=evidence.recipe.model_dump(mode="json"),
        arm=chosen.arm.name,
        method=chosen.arm.method,
        learning_rate=chosen.learning_rate,
        seed=point.seed,
        budget=float(chosen.budget),
        budget_unit="tokens" if evidence.recipe.budget.tokens else "epochs",
        tokens=point.tokens,
        step=point.step,
        run=str(point.run["id"]),
        scores=_scores(evidence, point),
        confirmed=chosen.confirmed,
        learning=_estimated(setting, LEARNING, chosen),
        forgetting=_estimated(setting, FORGETTING, chosen),
        claims=[
            RecordedClaim(id=c.id, statement=c.statement, verdict=c.verdict, reason=c.reason)
            for c in judged
        ],
        versions=_versions(study),
        weights=weights,
    )


def _estimated(setting: Setting, measure: str, one: Configuration) -> EstimatedTasks:
    found = one.learning if measure == LEARNING else one.forgetting
    if found is None:
        raise EvidenceError(
            f"{describe(one)} has {count(len(one.points), 'seed')}: too few to tell how much seeds "
            "differ, so its weights get no record; confirm it first, as `laura recommend` says"
        )
    told = estimated(found, setting.unit(measure), one.level)
    return EstimatedTasks(tasks=setting.tasks(measure), **told.model_dump())


def _scores(evidence: Evidence, point: Point) -> dict[str, TaskScores]:
    found = {}
    for name, measure in evidence.measures.items():
        tuned, base = point.results.get(name), evidence.base.get(name)
        if tuned is None:
            continue
        moved = change(base, tuned, leading(base)) if base else None
        found[name] = TaskScores(
            title=measure.title,
            unit=measure.unit,
            higher_is_better=measure.higher_is_better,
            base=_score(base) if base else None,
            tuned=_score(tuned),
            change=moved,
        )
    return found


def _score(result: TaskResult) -> Estimate:
    metric = result.metrics[leading(result)]
    return Estimate(metric.value, metric.stderr, result.n)


def _versions(study: Path) -> dict[str, str]:
    """What the weights were trained with, as the study recorded it."""
    path = study / "environment.json"
    known = read_json(path) if path.is_file() else {}
    own = {key: known.get(key) for key in ("laura", "commit", "python")}
    return {k: str(v) for k, v in {**own, **known.get("packages", {})}.items() if v is not None}
