"""The extras of a recipe: many samples, measured last of all; diversity and pass@k from them.

One job is one model: the base, or a run's checkpoint at a seed's best rate, with every extra
it still lacks. Beside a model's samples lie the numbers of each prompt, in `analysis`: counting
and comparing all texts takes longest, and is done once, by whoever measured them. No torch
before something is measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laura.analysis import diversity
from laura.analysis.diversity import Prompt, curve
from laura.recipe.sections import Recipe
from laura.results.errors import StoreError
from laura.results.schema import CountDifference, DiversityRow, PassAtKRow
from laura.results.statistics import Estimate, seed_error
from laura.results.store import StudyStore, file_hash, read_json, read_lines_gz, write_json
from laura.results.task_result import TaskResult, samples_file
from laura.study.evidence import Evidence, Point, is_current
from laura.study.sharing import BUSY, LOCK, claimed
from laura.study.summary import gather

if TYPE_CHECKING:
    from laura.study.session import Session


FORMAT = 1
COMPARED = ("distinct", "rarefied_passed", "rarefied_failed")


@dataclass(frozen=True)
class _Sample:
    """One model's samples of an extra: whose, (n, c) of each item, each prompt's numbers."""

    point: Point | None
    counts: list[tuple[int, int]]
    prompts: dict[int, Prompt]


def build_sampled(evidence: Evidence, store: StudyStore, gaps: list[str]) -> dict[str, list[Any]]:
    """What many samples of the study's models say: three parts of analysis.json by name.

    Args:
        evidence: The study.
        store: Its folder.
        gaps: What is missing is added here, in words.
    """
    parts: dict[str, list[Any]] = {"diversity": [], "diversity_differences": [], "pass_at_k": []}
    for name in evidence.recipe.measure.extras:
        found = list(_found(name, evidence, store, gaps))
        parts["diversity"] += [_diversity(name, one, evidence) for one in found]
        parts["diversity_differences"] += _differences(name, found, evidence)
        parts["pass_at_k"] += [_pass_at_k(name, one, evidence) for one in found]
    return parts


def prompts_of(result: Path) -> list[Prompt]:
    """The numbers of each prompt of an extra's result, kept beside it.

    Raises:
        StoreError: the samples are missing, damaged, or not those of an extra.
    """
    samples = samples_file(result)
    mark = file_hash(samples)
    kept = analysis_file(result)
    if kept.is_file():
        try:
            known = read_json(kept)
            if (known["format"], known["samples"]) == (FORMAT, mark):
                return list(known["prompts"])
        except (StoreError, KeyError, TypeError):
            pass  # made anew from the samples
    rows = read_lines_gz(samples)
    try:
        prompts = [
            diversity.prompt_numbers(list(own))
            for _, own in itertools.groupby(rows, key=lambda row: row["index"])
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{samples} holds no samples of an extra ({error!r})") from error
    if not prompts:
        raise StoreError(f"{samples} is empty; delete it and its result, and measure again")
    write_json(kept, {"format": FORMAT, "samples": mark, "prompts": prompts})
    return prompts


def analysis_file(result: Path) -> Path:
    """Where the numbers of an extra's prompts stand: `analysis` instead of `evals`."""
    parts = list(result.parts)
    place = len(parts) - 1 - parts[::-1].index("evals")
    parts[place] = "analysis"
    return Path(*parts).with_name(f"{result.stem}.diversity.json")


def _points(name: str, evidence: Evidence) -> list[Point]:
    """The points that an extra covers."""
    return evidence.chosen_points(evidence.recipe.measure.extras[name].at == "all")


def _found(name: str, evidence: Evidence, store: StudyStore, gaps: list[str]) -> Iterator[_Sample]:
    for point in [None, *_points(name, evidence)]:
        whose = "the base" if point is None else str(point)
        path = _model(point).result(store, name)
        if not path.is_file():
            gaps.append(f"{name} was not measured on {whose}")
            continue
        try:
            result = TaskResult.read(path)
            if not is_current(result, evidence.facts.get("tasks", {})):
                gaps.append(f"{name} of {whose} was measured with other settings")
                continue
            prompts = {prompt["index"]: prompt for prompt in prompts_of(path)}
            counts = [(item["samples"], item["passes"]) for item in result.items]
        except (StoreError, KeyError) as error:
            gaps.append(f"samples of {name} on {whose} cannot be used: {error}")
            continue
        yield _Sample(point, counts, prompts)


def _diversity(name: str, one: _Sample, evidence: Evidence) -> DiversityRow:
    extra = evidence.recipe.measure.extras[name]
    prompts = list(one.prompts.values())
    samples = max(prompt["samples"] for prompt in prompts)
    return DiversityRow(
        **_whose(name, extra.task, one.point),
        samples=samples,
        temperature=extra.temperature,
        rarefied_to=min(diversity.RAREFIED, samples),
        self_bleu_of=min(diversity.SELF_BLEU_ANSWERS, samples),
        **{key: diversity.over_prompts(prompts, key) for key in diversity.KEYS},
    )


def _pass_at_k(name: str, one: _Sample, evidence: Evidence) -> PassAtKRow:
    extra = evidence.recipe.measure.extras[name]
    ks = sorted({1, *extra.k})
    return PassAtKRow(
        **_whose(name, extra.task, one.point),
        samples=extra.samples,
        temperature=extra.temperature,
        at_k=dict(zip(ks, curve(one.counts, ks), strict=True)),
    )


def _differences(name: str, found: Sequence[_Sample], evidence: Evidence) -> list[CountDifference]:
    """Arms against one another and against the base, paired by prompt, at each budget."""
    extra = evidence.recipe.measure.extras[name]
    sides: dict[tuple[float | None, str | None], list[dict[int, Prompt]]] = {}
    for one in found:
        budget, arm = (one.point.budget, one.point.arm) if one.point else (None, None)
        sides.setdefault((budget, arm), []).append(one.prompts)
    rows = []
    base = sides.pop((None, None), None)
    for budget in dict.fromkeys(budget for budget, _ in sides):
        own: dict[str | None, list[dict[int, Prompt]]] = {
            arm: seeds for (at, arm), seeds in sides.items() if at == budget
        }
        if base:
            own[None] = base
        for first, second in itertools.combinations(own, 2):
            for key in COMPARED:
                # The base has no seeds: it is the same beside each of the arm's.
                other = own[second] * (len(own[first]) if second is None else 1)
                found_one = _difference(own[first], other, key)
                if found_one is not None:
                    row = CountDifference(
                        extra=name,
                        task=extra.task,
                        arms=(first, second),
                        budget=budget or 0.0,
                        measure=key,
                        difference=found_one.value,
                        stderr=found_one.stderr,
                        n=found_one.n,
                        seeds=min(len(own[first]), len(other)),
                    )
                    rows.append(row)
    return rows


def _difference(
    first: Sequence[dict[int, Prompt]], second: Sequence[dict[int, Prompt]], key: str
) -> Estimate | None:
    """First minus second over the prompts that have the number in every seed of both."""
    shared = set.intersection(
        *(
            {index for index, prompt in seed.items() if prompt[key] is not None}
            for seed in (*first, *second)
        )
    )
    means = [
        {i: {key: math.fsum(seed[i][key] for seed in side) / len(side)} for i in sorted(shared)}
        for side in (first, second)
    ]
    found = diversity.difference(means[1], means[0], key)
    if found is None:
        return None
    over_seeds = [
        seed_error([math.fsum(seed[i][key] for i in shared) / len(shared) for seed in side])
        for side in (first, second)
    ]
    return Estimate(found.value, math.hypot(found.stderr, *over_seeds), found.n)


def _whose(name: str, task: str, point: Point | None) -> dict[str, Any]:
    keys = ("arm", "run", "seed", "learning_rate", "budget")
    return {"extra": name, "task": task, **(point.whose if point else dict.fromkeys(keys))}


@dataclass(frozen=True)
class ExtraJob:
    """A model whose extras are measured.

    Attributes:
        run: The run's ID; None for the base.
        step: Its checkpoint.
        names: Which extras.
    """

    run: str | None
    step: int
    names: tuple[str, ...] = ()

    def result(self, store: StudyStore, name: str) -> Path:
        """Where the result of an extra stands."""
        if self.run is None:
            return store.base_evaluation(name)
        return store.run(self.run).evaluation(self.step, name)


def _model(point: Point | None) -> ExtraJob:
    """The model of a point, or the base, without any extra yet."""
    return ExtraJob(None, 0) if point is None else ExtraJob(point.run_id, point.step)


def most_jobs(recipe: Recipe) -> int:
    """How many models have extras, if every run ends well."""
    extras = recipe.measure.extras.values()
    each = len(recipe.budget.listed) if any(extra.at == "all" for extra in extras) else 1
    return 1 + len(recipe.arms) * len(recipe.seeds) * each if extras else 0


def extra_jobs(session: Session) -> tuple[list[ExtraJob], int]:
    """Those with something left to measure, and how many have nothing left."""
    recipe = session.recipe
    if not recipe.measure.extras:
        return [], 0
    evidence = gather(session.store, recipe)
    wanted = {_model(None): list(recipe.measure.extras)}
    for name in recipe.measure.extras:
        for point in _points(name, evidence):
            if session.store.run(point.run_id).checkpoint(point.step).is_dir():
                wanted.setdefault(_model(point), []).append(name)
    jobs = [replace(job, names=tuple(names)) for job, names in wanted.items()]
    left = [job for job in jobs if not _measured(job, session)]
    return left, len(jobs) - len(left)


def measure_extras(session: Session, job: ExtraJob) -> str:
    """Measure a model's extras; what stands is not measured again.

    Returns:
        `measured`, or `busy` where another process is at this model.
    """
    run = None if job.run is None else session.store.run(job.run)
    with claimed((session.store.folder / "base" if run is None else run.folder) / LOCK) as mine:
        if not mine:
            return BUSY
        session.measure(list(job.names), run, job.step)
        for name in job.names:
            prompts_of(job.result(session.store, name))
    return "measured"


def _measured(job: ExtraJob, session: Session) -> bool:
    for name in job.names:
        path = job.result(session.store, name)
        if not path.is_file() or not is_current(TaskResult.read(path), session.tasks):
            return False
    return True
