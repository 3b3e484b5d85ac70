"""How much a recipe asks for: data, runs, tokens, operations, answers, files. No torch.

Steps are taken to hold exactly `train.batch_tokens`, so tokens are right to a step. Tokens of
the data are counted on its first rows, with the base's tokenizer.json where it lies on the
disk, else as a quarter of the characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil, isinf
from pathlib import Path
from typing import Any

from laura.data.corpus import EXAMPLE_BYTES, token_type
from laura.data.examples import Example
from laura.data.sources import count_examples, is_endless, source_file, stream_examples
from laura.evals.tasks import TASKS
from laura.recipe.search import families_of, grid_seeds, rates_beyond
from laura.recipe.sections import AdapterArm, Arm, LoraArm, MeasureSection, OftArm, Recipe
from laura.results.errors import DataError, HubError
from laura.study.plan.memory import (
    FLOAT32,
    NUMBER_BYTES,
    OPTIMISER_STATE,
    adapted_maps,
    averages_kept,
    buffer_numbers,
    checkpoint_numbers,
    first_trained,
    lockstep_runs,
    measured_tasks,
    start_numbers,
    trainable_parameters,
    trained_bytes,
    trains_all,
)
from laura.study.plan.shapes import Shapes
from laura.study.runs import further_seeds, runs_each, separate
from laura.training.flops import TrainingWork, training_flops
from laura.training.schedules import longest_warmup, plan_legs

LOOKED_AT = 500
TOKENISED_A_SECOND = 400_000  # tokens, by one process: benchmarks/corpus.py
CHARACTERS_A_TOKEN = 4
# Items of whole benchmarks; of others `measure.limit` tells, or this many are taken.
ITEMS = {
    "gsm8k": 1319, "humaneval": 164, "mbpp": 500,
    "hellaswag": 10_042, "arc_challenge": 1172, "winogrande": 1267,
}  # fmt: skip
OTHER_ITEMS = 1000
# Tokens that an item's choices take, each with what comes before it; a test counts them.
CHOICE_TOKENS = {"hellaswag": 363, "arc_challenge": 180, "winogrande": 53}
# Longest answers that no key of `measure` decides; a test compares them with the tasks'.
NEW_TOKENS = {"micro_code": 64, "micro_math": 64}


# ----- the data -----


@dataclass(frozen=True)
class Survey:
    """What is known of the training rows.

    Attributes:
        epoch_tokens: Tokens of one epoch; None where it cannot be told.
        examples: Examples of one epoch; None where it cannot be told.
        document_tokens: Mean tokens of an example, weighed by tokens and cut to a row: how
            many others a token has in its own document.
        learnt: Share of tokens with a label.
        source: How it is known, in words.
        corpus_tokens: Tokens that are made once: an epoch, or of an endless set as many as the
            largest budget asks for; None where it cannot be told.
    """

    epoch_tokens: int | None
    examples: int | None
    document_tokens: float
    learnt: float
    source: str
    corpus_tokens: int | None = None

    def learnt_share(self, replay: float) -> float:
        """Share of tokens with a label, where so much is replayed: all of what is, at most."""
        return (1 - replay) * self.learnt + replay


def survey(
    recipe: Recipe, tokenizer: Path | None, data_dir: Path | None, epoch_tokens: int | None
) -> Survey:
    """Look at the first training rows, where they lie on this machine.

    Args:
        recipe: The recipe.
        tokenizer: tokenizer.json of the base, or None.
        data_dir: Data folder; None means `LAURA_DATA`, if set.
        epoch_tokens: What the user says an epoch holds; wins over counting.
    """
    row, source, counter = recipe.train.row_tokens, recipe.data.train, TokenCounter(tokenizer)
    corpus = epoch_tokens
    try:
        if is_endless(source, data_dir) and recipe.budget.tokens:
            corpus = recipe.budget.tokens[-1]
        here = source.source.startswith("builtin:") or source_file(source, data_dir) is not None
        looked = list(islice(stream_examples(source, data_dir), LOOKED_AT)) if here else []
        count = count_examples(source, data_dir) if here else 0
        endless = here and (isinf(count) or is_endless(source, data_dir))
    except (DataError, HubError) as error:
        words = f"the data cannot be read ({error})"
        return Survey(epoch_tokens, None, row, 1.0, words, corpus)
    sizes = [counter(example) for example in looked]
    total = sum(whole for whole, _ in sizes)
    if not total:
        absent = "the data is not on this machine: full rows, all learnt"
        return Survey(epoch_tokens, None, row, 1.0, absent, corpus)
    cut = [min(whole, row) for whole, _ in sizes]
    known, examples = epoch_tokens, None
    if not endless:
        held_out = recipe.data.validation_rows if recipe.data.validation is None else 0
        examples = max(1, int(count) - held_out)
        known = known or round(examples * total / len(sizes))
    return Survey(
        known,
        examples,
        sum(one * one for one in cut) / sum(cut),
        sum(answers for _, answers in sizes) / total if recipe.regime == "instruct" else 1.0,
        f"{len(sizes)} rows looked at, {counter.words}",
        corpus or known,
    )


class TokenCounter:
    """Counts tokens.

    Args:
        file: tokenizer.json; None where it is not here, and characters tell.

    Attributes:
        words: How it counts.
    """

    def __init__(self, file: Path | None) -> None:
        self.tokenizer: Any = None
        self.words = f"{CHARACTERS_A_TOKEN} characters a token"
        if file is not None and file.is_file():
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(str(file))
            self.words = "counted with the base's tokenizer, without the chat template's own tokens"

    def __call__(self, example: Example) -> tuple[int, int]:
        """Tokens of an example, and of its answers."""
        sizes = [(role, self._count(text)) for role, text in example.messages]
        sizes = sizes or [("assistant", self._count(example.text))]
        answers = sum(size for role, size in sizes if role == "assistant")
        return sum(size for _, size in sizes), answers

    def _count(self, text: str) -> int:
        if self.tokenizer is None:
            return max(1, len(text) // CHARACTERS_A_TOKEN)
        return max(1, len(self.tokenizer.encode(text, add_special_tokens=False).ids))


# ----- training -----


@dataclass(frozen=True)
class ArmWork:
    """What one arm takes in a whole study.

    Attributes:
        runs: Of the grid or search and of the further seeds; none where it was made elsewhere.
        longer: Runs that come on top where its list of rates grows; at most.
        models: Checkpoints that are measured.
        steps: Optimiser steps to each budget point of one run; None where unknown.
        tokens: Trained in all its runs, cooldown branches counted; None where unknown.
        flops: Of these.
        checkpoint_bytes: Weights that stay.
        resume_bytes: States of the runs that train together, while they do.
    """

    runs: int
    longer: int
    models: int
    steps: list[int] | None
    tokens: int | None
    flops: int | None
    checkpoint_bytes: int
    resume_bytes: int


def budget_tokens(
    recipe: Recipe, survey: Survey, replay: float = 0.0, answers: int = 1
) -> list[int] | None:
    """The budget points in tokens; None where an epoch's tokens are not known.

    Budgets in tokens count what is replayed, and every answer to a question; an epoch is a pass
    over the target, with so many answers to each, and replay comes on top: 1/(1 - replay) as many.
    """
    if recipe.budget.tokens is not None:
        return list(recipe.budget.tokens)
    if survey.epoch_tokens is None:
        return None
    each = answers * survey.epoch_tokens / (1 - replay)
    return [round(epochs * each) for epochs in recipe.budget.epochs or []]


def _apart(recipe: Recipe, points: list[int]) -> list[list[int]]:
    """Budget points of each run that one arm, rate and seed takes."""
    return [[point] for point in points] if separate(recipe) else [points]


def room_for_warmup(recipe: Recipe, steps: list[int]) -> int:
    """Most steps of warm-up after which each run still reaches its rate.

    Args:
        recipe: The recipe.
        steps: Of each budget point, rising.
    """
    hot = recipe.budget.points == "hot"
    return min(longest_warmup(plan_legs(recipe.train, run, hot)) for run in _apart(recipe, steps))


def trained_tokens(recipe: Recipe, points: list[int]) -> int:
    """Tokens that one arm, rate and seed trains: its runs, or a trunk with its branches.

    A trapezoidal schedule forks before each point and trains the last share of it again
    (Biderman et al. 2024: the last 20 % of each smaller budget).
    """
    if recipe.budget.points == "hot":
        return points[-1]
    step = recipe.train.batch_tokens
    total = 0
    for run in _apart(recipe, points):
        steps = [ceil(point / step) for point in run]
        total += sum(leg.end - leg.start for leg in plan_legs(recipe.train, steps)) * step
    return total


def work_of(shapes: Shapes, arm: Arm) -> TrainingWork:
    """Operations a token takes, counted from shapes as `flops.count_work` counts them."""
    each = shapes.active_elements
    below = first_trained(shapes, arm)
    if isinstance(arm, AdapterArm):
        rank = arm.rank if isinstance(arm, LoraArm) else 0
        block = arm.block_size if isinstance(arm, OftArm) else 0
        trained = shapes.through(
            (name, rank * (o + i) + block * i) for name, (o, i) in adapted_maps(shapes, arm)
        )
        frozen = (shapes.layers - below) * each + start_numbers(shapes, arm)
    else:
        count = shapes.layers if arm.layers is None else len(arm.layers)
        trained, frozen = count * each, (shapes.layers - below - count) * each
    return TrainingWork(
        frozen,
        trained,
        shapes.head_elements,
        trains_all(arm),
        shapes.queries * shapes.layers,
        below * each,
        shapes.queries * below,
        shapes.layers * each * arm.reads_base,
    )


def tries_of(recipe: Recipe) -> dict[str, int]:
    """Rates that each arm is tried at: its grid, or its search's trials.

    Which arm of a family a trial takes is known when it is asked for; here they are dealt
    evenly. A family of one arm with one rate has one trial, as `study/search.py` has it.
    """
    arms = {name: arm for name, arm in recipe.arms.items() if arm.external is None}
    if recipe.search.sampler == "grid":
        return {name: len(arm.learning_rates) for name, arm in arms.items()}
    tries: dict[str, int] = {}
    for family in families_of(recipe.arms, recipe.search.families):
        members = list(family.arms.values())
        alone = family.low == family.high and len(members) == 1
        trials = 1 if alone else recipe.search.trials
        for place, name in enumerate(members):
            tries[name] = len(range(place, trials, len(members)))
    return {name: tries[name] for name in arms}


def arm_work(recipe: Recipe, name: str, shapes: Shapes, survey: Survey) -> ArmWork:
    """What one arm takes: its tries with the seeds of the grid, its best rate with the others.

    Args:
        recipe: The recipe.
        name: One of its arms.
        shapes: The base's.
        survey: What is known of the data.
    """
    arm = recipe.arms[name]
    if arm.external is not None:
        return ArmWork(0, 0, len(arm.external), None, 0, 0, 0, 0)
    tries = tries_of(recipe)[name]
    often = len(grid_seeds(recipe.seeds, recipe.search))
    times = tries * often + len(further_seeds(recipe)) if tries else 0
    below, above = rates_beyond(arm, recipe.search)
    steps_beyond = min(recipe.search.extend, len(below) + len(above))
    kept = trained_bytes(arm, NUMBER_BYTES[recipe.base.dtype])
    if arm.of is not None:
        models = times * len(recipe.budget.listed)
        return ArmWork(0, 0, models, None, 0, 0, models * checkpoint_numbers(shapes, arm) * kept, 0)
    points = budget_tokens(recipe, survey, arm.replay, arm.answers_each)
    count, each = len(recipe.budget.listed), runs_each(recipe)
    tokens = flops = steps = None
    if points is not None:
        tokens = times * trained_tokens(recipe, points)
        labelled = round(tokens * survey.learnt_share(arm.replay))
        pairs = round(tokens * (survey.document_tokens + 1) / 2)
        flops = training_flops(work_of(shapes, arm), tokens, labelled, pairs)
        steps = [ceil(point / recipe.train.batch_tokens) for point in points]
    # A trunk's state waits for its next stretch while a branch writes its own.
    states = 2 if recipe.train.schedule == "trapezoidal" and count > 1 else 1
    moments = OPTIMISER_STATE[recipe.train.optimiser][0] + averages_kept(arm)
    state = trainable_parameters(shapes, arm) * kept * (1 + moments)
    state += buffer_numbers(shapes, arm) * FLOAT32
    return ArmWork(
        runs=times * each,
        longer=steps_beyond * often * each,
        models=times * count,
        steps=steps,
        tokens=tokens,
        flops=flops,
        checkpoint_bytes=times * count * checkpoint_numbers(shapes, arm) * kept,
        resume_bytes=states * state * lockstep_runs(recipe, name),
    )


# ----- all of it -----


def corpus_bytes(recipe: Recipe, shapes: Shapes, survey: Survey) -> int:
    """What the training tokens take on the disk (`data/corpus.py`); 0 where it cannot be told."""
    each = token_type(shapes.vocabulary).itemsize + (recipe.regime == "instruct")
    return each * (survey.corpus_tokens or 0) + EXAMPLE_BYTES * (survey.examples or 0)


def totals(
    recipe: Recipe, shapes: Shapes, survey: Survey, works: Sequence[ArmWork]
) -> dict[str, Any]:
    """Runs, tokens, operations and bytes on the disk of a whole study, by the work of its arms."""
    flops = [work.flops for work in works if work.flops is not None]
    whole = len(flops) == len(works)
    measured = 1 + sum(work.models for work in works)
    answers, written = answers_of(recipe, measured)
    read = measured * sum(
        CHOICE_TOKENS[name] * _items(recipe.measure.limit, name)
        for name in measured_tasks(recipe.measure)
        if name in CHOICE_TOKENS
    )
    disk = {
        "corpus": corpus_bytes(recipe, shapes, survey),
        "checkpoints": sum(work.checkpoint_bytes for work in works),
        "resume": max(work.resume_bytes for work in works),
    }
    return {
        "runs": sum(work.runs for work in works),
        "longer": sum(work.longer for work in works),
        "tokens": sum(work.tokens or 0 for work in works) if whole else None,
        "flops": sum(flops) if whole else None,
        "evaluation": {
            "models": measured,
            "answers": answers,
            "generated_tokens": written,
            "read_tokens": read,
            "flops": 2
            * (written + read)
            * (shapes.layers * shapes.active_elements + shapes.head_elements),
        },
        "disk": {**disk, "all": sum(disk.values())},
    }


def answers_of(recipe: Recipe, models: int) -> tuple[int, int]:
    """What a study has its models write, at most: how many answers, and tokens of all of them.

    Args:
        recipe: The recipe; its extras are measured too, and texts to replay are written.
        models: How many are measured, with the base.
    """
    section = recipe.measure
    found = []
    for name in measured_tasks(section):
        if TASKS[name].kind == "generation":
            samples = section.code_samples if TASKS[name].runs_code else 1
            found.append(_answers(section, name, models * samples, section.limit))
    for extra in section.extras.values():
        drawn = _extra_models(recipe, extra.at) * extra.samples
        found.append(_answers(section, extra.task, drawn, extra.limit or section.limit))
    if recipe.data.rewrite and (count := recipe.data.train.limit):
        found.append((count, count * recipe.data.rewrite.tokens))
    for source in recipe.data.replay:
        if source.is_sampled and source.count:
            found.append((source.count, source.count * source.tokens))
    return sum(count for count, _ in found), sum(tokens for _, tokens in found)


def _extra_models(recipe: Recipe, at: str) -> int:
    """Models that an extra is measured on, if every run ends well; see `study/extras.py`."""
    points = len(recipe.budget.listed) if at == "all" else 1
    most = len(recipe.seeds) * points
    made = (len(arm.external) if arm.external else most for arm in recipe.arms.values())
    return 1 + sum(min(most, count) for count in made)


def _answers(section: MeasureSection, task: str, each: int, limit: int | None) -> tuple[int, int]:
    count = each * _items(limit, task)
    own = section.code_tokens if TASKS[task].runs_code else section.gsm8k_tokens
    return count, count * NEW_TOKENS.get(task, own)


def _items(limit: int | None, task: str) -> int:
    """Items of a benchmark that are asked."""
    whole = ITEMS.get(task, OTHER_ITEMS)
    return min(limit or whole, whole)
