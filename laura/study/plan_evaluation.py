"""Memory of measuring, and the files it leaves, counted from shapes and settings. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from laura.evals.tasks import TASKS
from laura.recipe.sections import Arm, LoraArm, MeasureSection, Recipe
from laura.study.plan_arms import FLOAT32, adapter_numbers
from laura.study.plan_memory import CHUNK_POSITIONS
from laura.study.plan_shapes import Shapes

# The same numbers as in models/decoding.py and device.pass_tokens, which need torch.
MOST_ROWS = 256
PASS_TOKENS = {"cpu": 1024}
OTHER_PASS_TOKENS = 2048
# Items of whole benchmarks; of others `measure.limit` tells, or this many are taken.
ITEMS = {"gsm8k": 1319, "humaneval": 164, "mbpp": 500}
OTHER_ITEMS = 1000
# Longest answers that no key of `measure` decides; a test compares them with the tasks'.
NEW_TOKENS = {"micro_code": 64, "micro_math": 64}
CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True)
class EvaluationParts:
    """Bytes of a process that measures, by part.

    Attributes:
        runtime: The process without a model.
        weights: The tuned model, beside a full arm's the base too, and their copies in the
            pass's arithmetic.
        adapter: A and B as they are saved, DoRA's lengths, and their copies.
        cache: Most keys and values of generation.
        logits: Logits and what is made of them.
        working: One layer of one pass.
        peak: Of all of them.
    """

    runtime: int
    weights: int
    adapter: int
    cache: int
    logits: int
    working: int
    peak: int


def measured_tasks(section: MeasureSection) -> list[str]:
    """Laura's own tasks among those a recipe names."""
    return [name for name in (*section.learning, *section.forgetting) if name in TASKS]


def cache_row_bytes(shapes: Shapes, tokens: int, number: int) -> int:
    """Keys and values of one row of `tokens` tokens, as `key_values.Geometry` counts them."""
    return 2 * shapes.layers * shapes.keys * tokens * number


def evaluation_parts(
    shapes: Shapes,
    arm: Arm,
    section: MeasureSection,
    *,
    weight_bytes: int,
    arithmetic_bytes: int,
    device: str,
    cache_bytes: int,
    runtime: int = 0,
    devices: int = 1,
) -> EvaluationParts:
    """Memory of measuring a tuned model of one arm.

    A full arm's model stands beside the base, which stays loaded and is `kl`'s reference. In
    mixed precision every matrix has a copy in the pass's arithmetic (`lowered_weights`), the
    output map only where texts are scored. Keys and values take as much as they may, but no
    more than 256 rows of the whole context. Logits are float32: a chunk of 128 places, one
    each for what is asked of it (divergence: two distributions, and three made of them), or
    one place for each of 256 answers (drawn ones: probabilities and their order besides).

    Args:
        shapes: The base's.
        arm: Which is measured.
        section: The recipe's `measure`.
        weight_bytes: Of `base.dtype`.
        arithmetic_bytes: Of `measure.precision`, resolved.
        device: Its name; it decides how long a pass is.
        cache_bytes: Most memory for keys and values.
        runtime: Bytes of the process without a model.
        devices: Weights are spread over so many.
    """
    e, w = arithmetic_bytes, weight_bytes
    kinds = {TASKS[name].kind for name in measured_tasks(section)}
    kinds |= {TASKS[extra.task].kind for extra in section.extras.values()}
    models = 1 if isinstance(arm, LoraArm) else 2
    lowered = 0 if e == w else e * (shapes.map_elements + shapes.head_elements)
    weights = -(-models * (shapes.parameters * w + lowered) // devices)
    adapter = 0
    if isinstance(arm, LoraArm):
        adapter = adapter_numbers(shapes, arm) * (FLOAT32 + (e if e != FLOAT32 else 0))
    generates = "generation" in kinds
    most = MOST_ROWS * cache_row_bytes(shapes, shapes.context, w if e == FLOAT32 else e)
    cache = min(cache_bytes, most) if generates else 0
    chunk = shapes.vocabulary * FLOAT32
    logits = chunk * CHUNK_POSITIONS * (5 if "divergence" in kinds else 2)
    if generates:
        drawn = section.code_samples > 1 or section.code_temperature > 0 or bool(section.extras)
        logits = max(logits, chunk * MOST_ROWS * (5 if drawn else 1))
    layer = 2 * shapes.width * w
    layer += (shapes.width + shapes.queries + 2 * shapes.keys + 3 * shapes.feed_forward) * e
    working = PASS_TOKENS.get(device.split(":")[0], OTHER_PASS_TOKENS) * layer
    peak = runtime + weights + adapter + cache + logits + working
    return EvaluationParts(runtime, weights, adapter, cache, logits, working, peak)


@dataclass(frozen=True)
class Answers:
    """What a study has its models write, at most.

    Attributes:
        answers: How many.
        tokens: Of all of them.
    """

    answers: int = 0
    tokens: int = 0

    @property
    def sample_bytes(self) -> int:
        """Bytes of the files that keep them, before gzip."""
        return self.tokens * CHARACTERS_A_TOKEN

    def __add__(self, other: Answers) -> Answers:
        return Answers(self.answers + other.answers, self.tokens + other.tokens)


def answers_of(recipe: Recipe, models: int) -> Answers:
    """All answers of a study: of every measured model, of the extras, and texts to replay.

    Args:
        recipe: The recipe.
        models: How many are measured, with the base.
    """
    section, total = recipe.measure, Answers()
    for name in measured_tasks(section):
        if TASKS[name].kind == "generation":
            samples = section.code_samples if TASKS[name].runs_code else 1
            total += _answers(section, name, models * samples, section.limit)
    for extra in section.extras.values():
        drawn = extra_models(recipe, extra.at) * extra.samples
        total += _answers(section, extra.task, drawn, extra.limit or section.limit)
    for source in recipe.data.replay:
        if source.is_sampled and source.count:
            total += Answers(source.count, source.count * source.tokens)
    return total


def extra_models(recipe: Recipe, at: str) -> int:
    """Models that an extra is measured on, if every run ends well; see `study/extras.py`."""
    points = len(recipe.budget.tokens or recipe.budget.epochs or []) if at == "all" else 1
    most = len(recipe.seeds) * points
    made = (len(arm.external) if arm.external else most for arm in recipe.arms.values())
    return 1 + sum(min(most, count) for count in made)


def _answers(section: MeasureSection, task: str, each: int, limit: int | None) -> Answers:
    whole = ITEMS.get(task, OTHER_ITEMS)
    count = each * min(limit or whole, whole)
    own = section.code_tokens if TASKS[task].runs_code else section.gsm8k_tokens
    return Answers(count, count * NEW_TOKENS.get(task, own))
