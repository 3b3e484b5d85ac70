"""A recipe: what is compared, on which data, and how it is measured.

Every key and its default stand here once. Each part of Laura receives its own section, never
the whole recipe. What two sections must agree on is in `checks.py`, reading YAML in
`reading.py`.

Learning-rate ranges and alpha = 2r follow Biderman et al. 2024, arXiv:2405.09673; they are
ranges to search, not constants. An arm with a `grid` stands for one arm a combination of its
values: they are written out as the recipe is validated, so that everything after that knows
plain arms only.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import reprlib
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from laura.recipe.remedies import PENALTIES, PLACES, Remedy, check_remedy, remedy_schema
from laura.recipe.tasks import (
    FORGETTING,
    LEARNING,
    NAME_PATTERN,
    TAKEN,
    check_task,
    result_name,
    task_schema,
)

Place = tuple[str | int, ...]


def short(value: object) -> str:
    """A value as it came, in at most about sixty characters."""
    try:
        text = _REPR.repr(value)
    except ValueError:
        return "a number too long to show"
    return text if len(text) <= 60 else text[:57] + "..."


_REPR = reprlib.Repr()
_REPR.maxstring, _REPR.maxother, _REPR.maxlevel, _REPR.maxlong = 60, 60, 3, 40


def twice(values: Iterable[Hashable]) -> str:
    """What is wrong with a list that names a value twice; empty where none does."""
    seen = set()
    for value in values:
        if value in seen:
            return f"names {value} twice; keep one"
        seen.add(value)
    return ""


Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
TokenWeightName = Annotated[
    str,
    AfterValidator(functools.partial(check_remedy, place="token_weight")),
    WithJsonSchema(remedy_schema("token_weight")),
]
PenaltyName = Annotated[
    str,
    AfterValidator(functools.partial(check_remedy, place="penalty")),
    WithJsonSchema(remedy_schema("penalty")),
]
PolicyName = Annotated[
    str,
    AfterValidator(functools.partial(check_remedy, place="policy")),
    WithJsonSchema(remedy_schema("policy")),
]
PaceName = Annotated[
    str,
    AfterValidator(functools.partial(check_remedy, place="pace")),
    WithJsonSchema(remedy_schema("pace")),
]
AverageName = Annotated[
    str,
    AfterValidator(functools.partial(check_remedy, place="average")),
    WithJsonSchema(remedy_schema("average")),
]


class Section(BaseModel):
    """A frozen part of a recipe; unknown keys, wrong types and infinities are faults.

    What a key means stands below it and becomes its description in the reference and in
    the JSON Schema.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    later: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after the first studies; see `identity`."""

    def identity(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """What tells this section from another one, as JSON values.

        A field of `later` counts only where it is not at its default, so that runs which
        were made before the field existed keep their IDs.
        """
        fields = type(self).model_fields
        unset = {name for name in self.later if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude={*exclude, *unset})

    def faults(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together: the key, dotted, and the reason.

        They are told by `checks.py` and do not keep the section from being made.
        """
        return ()


def refuse(faults: Mapping[Place, str]) -> NoReturn:
    """Refuse a section from within its validator, each fault at its own key.

    Raises:
        ValidationError: always; pydantic adds the way to the section.
    """
    details: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError("fault", "{problem}", {"problem": problem}),
            "loc": place,
            "input": None,
        }
        for place, problem in faults.items()
    ]
    raise ValidationError.from_exception_data("section", details)


# ----- arms -----

MOST_ARMS = 200
MOST_NAME = 64  # of tasks.NAME_PATTERN
NOT_IN_GRIDS = ("external", "grid", "learning_rates", "method", "after", "of", "change", "factor")
AfterName = Literal["scale", "intruders"]
Factor = Annotated[float, Field(ge=0, lt=1)]


class ExternalPoint(Section):
    """A checkpoint or adapter that was trained elsewhere."""

    model: str = Field(min_length=1)
    """Folder or Hub id of the checkpoint, or of the PEFT adapter."""
    revision: str | None = None
    """Hub branch, tag or commit; null for main."""
    budget: Positive
    """The point of `budget` it has reached."""
    learning_rate: Rate
    """The peak rate it was trained at."""
    seed: Seed = 0
    """The seed it was trained with."""


class AnyArm(Section):
    """What all arms have in common."""

    later = frozenset(
        {"external", "layers", "attention_dropout", "residual_dropout", "replay"}
        | {"of", "change", "factor", "rewritten", "policy_samples", "policy_tokens"}
        | {key for place in PLACES for key in (place, f"{place}_strength")}
    )

    external: list[ExternalPoint] | None = Field(None, min_length=1)
    """Checkpoints made elsewhere (TRL, Axolotl, Unsloth, ...): they are measured, nothing is
    trained. The arm's other settings say how they were made; those that the files show are
    checked."""
    replay: Share = 0.0
    """Share of all training tokens that come from `data.replay`, the target's being the rest;
    give several arms different shares to sweep it."""
    rewritten: bool = False
    """Learn the answers as the base writes them, where they are right; see `data.rewrite`."""
    grid: dict[str, list[Any]] | None = Field(None, exclude=True)
    """Lists of values for other keys of the arm, as in `rank: [4, 16]`: makes an arm of every
    combination, with names such as `lora-rank-4`."""
    after: dict[AfterName, list[Factor]] | None = Field(None, min_length=1, exclude=True)
    """What is done to the arm's checkpoints after training, as in `scale: [0.4, 0.7]`; each value
    is measured as an arm of its own, `lora-scale-0.4`, and trains nothing. `scale`: the way from
    the base is made so long; `intruders`: leading directions that the base has not are."""
    of: str | None = None
    """Of an arm that `after` made: the arm whose checkpoints it changes."""
    change: AfterName | None = None
    """Of an arm that `after` made: how it changes them."""
    factor: Factor | None = None
    """Of an arm that `after` made: how much of it is left."""
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    """Decoder layers that are adapted or trained, counted from 0; null: all. With `full`,
    embeddings, last norm and output map then stay frozen too."""
    attention_dropout: Share | None = None
    """Dropout on the attention weights while training; null: as the base's config has it, which
    is 0 for Llama."""
    residual_dropout: Share = 0.0
    """Dropout on what each attention and each MLP block adds to the residual stream, while
    training."""
    token_weight: TokenWeightName | None = None
    """How much each token counts in the gradient: `dft`: as the model believes it; `talr`: so too,
    1 in the mean of a step; `eaft`: as the model is unsure; `stm`: not, where it surprises the
    base; `flow`: as the base finds its example easy; null: all alike. Logged and measured losses
    stay plain cross-entropy."""
    token_weight_strength: NotNegative | None = None
    """Strength of the token weight, 0 for none: the power of `dft`, `eaft`, `talr` and `flow`, and
    for `stm` the least probability under the base. Null: the paper's, docs/papers.md."""
    penalty: PenaltyName | None = None
    """What is added to the loss: `kl`: KL(base || model) at the supervised tokens; `kl_reverse`:
    KL(model || base) there; `clora`: what LoRA's factors have in a random subspace; null:
    nothing. Logged and measured losses do not hold it."""
    penalty_strength: NotNegative | None = None
    """Factor of the penalty, 0 for none; null: the paper's, docs/papers.md."""
    policy: PolicyName | None = None
    """Learn the answers that the model itself writes, as it stands before each step, instead of
    the data's: `sdft`: at each token toward what the base says that is told the data's answer;
    `grpo`: more, the better the grader of the leading learning task finds it among the answers to
    one question; null: the data's. Never run on a GPU."""
    policy_strength: NotNegative | None = None
    """Factor of what is followed, 0 for the data's answers; null: 1."""
    policy_samples: Count | None = None
    """Answers to each question; null: 8 with `grpo`, 1 with `sdft`."""
    policy_tokens: Count | None = None
    """Most tokens of such an answer; null: 256."""
    pace: PaceName | None = None
    """Factor of the scheduled rate by the loss of the step: `finch`: the lower, the more a step
    surprises; null: none."""
    pace_strength: NotNegative | None = None
    """Power of the loss by which the rate falls, 0 for none; null: docs/papers.md."""
    average: AverageName | None = None
    """What is kept instead of the last weights: `ema`: their moving average; `bema`: one that is
    corrected for its lag; null: the last weights."""
    average_strength: NotNegative | None = None
    """The decay of `ema`, the power of `bema`, 0 for no average; null: docs/papers.md."""

    @model_validator(mode="before")
    @classmethod
    def _rates_of_others(cls, value: Any) -> Any:
        """The rates of checkpoints made elsewhere stand with them."""
        points = value.get("external") if isinstance(value, dict) else None
        if not points or "learning_rates" in value or not isinstance(points, list):
            return value
        rates = [point.get("learning_rate") for point in points if isinstance(point, dict)]
        known = sorted({rate for rate in rates if isinstance(rate, int | float)})
        return {**value, "learning_rates": known} if known else value

    @field_validator("grid", mode="before")
    @classmethod
    def _values_of_keys(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict) or not value:
            came = "an empty section" if value == {} else short(value)
            raise ValueError(f"must hold lists of values, as in rank: [4, 16], came {came}")
        known = _grid_of(cls).model_validate(value).model_dump(exclude_unset=True)
        return {key: known[key] for key in value}

    @property
    def rates_made(self) -> set[float]:
        """The rates of checkpoints made elsewhere."""
        return {point.learning_rate for point in self.external or []}

    @property
    def is_trained(self) -> bool:
        """Whether runs train it: it was neither made elsewhere nor of another arm's checkpoints."""
        return self.external is None and self.of is None

    def unchangeable(self, change: str) -> str:
        """Why its checkpoints cannot be changed so after training; empty where they can."""
        if self.external is not None:
            return "its checkpoints were made elsewhere"
        if getattr(self, "dora", False):
            return "with dora the result is no adapter: lengths of rows are no sum"
        if change == "intruders" and not isinstance(self, FullArm | LoraArm):
            return "a rotation has no rank that the result could go back to"
        return ""

    def remedy(self, place: str) -> tuple[Remedy, float] | None:
        """The remedy that is used at a place of `PLACES`, and its strength; None for none."""
        name, strength = getattr(self, place), getattr(self, f"{place}_strength")
        if name is None or strength == 0:
            return None
        found = PLACES[place][name]
        return found, found.strength if strength is None else strength

    @property
    def answers_each(self) -> int:
        """Answers that are learnt to each question: the data's one, or the model's own."""
        found = self.remedy("policy")
        return 1 if found is None else self.policy_samples or found[0].samples

    @property
    def reads_base(self) -> bool:
        """Whether training asks what the base makes of the same tokens."""
        used = [found[0] for found in map(self.remedy, PLACES) if found]
        return any(remedy.reads_base for remedy in used)

    @property
    def reads_activations(self) -> bool:
        """Whether training starts from the base's activations on `data.replay`."""
        return False

    def faults(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together."""
        for key in ("learning_rates", "layers"):
            if problem := twice(getattr(self, key) or []):
                yield key, problem
        for place, table in PLACES.items():
            name, strength = getattr(self, place), getattr(self, f"{place}_strength")
            if name is None and strength is not None:
                problem = f"is {strength:g}, but the arm has no {place}; name one, or leave it out"
                yield f"{place}_strength", problem
            elif name is not None and (strength or 0) > table[name].most:
                problem = f"is {strength:g}, at most {table[name].most:g} with {place}: {name}"
                yield f"{place}_strength", problem
            if name is not None and table[name].lora_only and not isinstance(self, LoraArm):
                problem = f"is {name}, which holds LoRA's factors back; there are none"
                yield place, f"{problem} in full finetuning and in OFT: leave it out"
        weight, penalty = self.remedy("token_weight"), self.remedy("penalty")
        if weight and weight[0].normalised and penalty and penalty[0].reads_base:
            problem = f"is {self.penalty}, which would be divided by the mean weight of a step "
            problem += f"with token_weight: {self.token_weight}"
            yield "penalty", f"{problem}; take dft, or leave one of the two out"
        yield from self._policy_faults()

    def _policy_faults(self) -> Iterable[tuple[str, str]]:
        """What says how the data's answers are learnt, beside a policy that learns others."""
        for key in ("policy_samples", "policy_tokens") if self.policy is None else ():
            if getattr(self, key) is not None:
                yield key, "is given, but the arm has no policy; name one, or leave it out"
        if (found := self.remedy("policy")) is None:
            return
        words = f"does not go with policy: {self.policy}, which learns the model's own answers"
        for key in ("token_weight", "pace", "rewritten", "replay"):
            if getattr(self, key):
                yield key, f"{words}; leave one of the two out"
        penalty = self.remedy("penalty")
        if found[0].reads_base and penalty and penalty[0].reads_base:
            yield "penalty", f"is {self.penalty}, but policy: {self.policy} is a divergence itself"
        if not found[0].reads_base and self.answers_each < 2:
            yield "policy_samples", "is 1, and an answer is graded against others; give 2 or more"


class FullArm(AnyArm):
    """Full finetuning: every weight is trained, or every weight of some layers."""

    later = AnyArm.later | {"weight_decay_toward"}

    method: Literal["full"]
    """full"""
    learning_rates: list[Rate] = Field([1e-5, 3e-5, 1e-4], min_length=1)
    """Rates to try, about a tenth of LoRA's."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of the weights; see `train.weight_decay_rule`."""
    weight_decay_toward: Literal["zero", "base"] = "zero"
    """Where decay pulls the weights: to zero, or back to the base (L2-SP), which holds a second
    copy of the trained weights in memory."""

    def faults(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together."""
        yield from super().faults()
        if self.weight_decay_toward == "base" and not self.weight_decay:
            yield (
                "weight_decay_toward",
                "is base, but nothing decays while weight_decay is 0; give it a value, such as "
                "1e-4, or leave weight_decay_toward out",
            )


class AdapterArm(AnyArm):
    """What arms have in common that leave the base's weights alone."""

    later = AnyArm.later | {"base_dtype"}

    targets: Literal["all", "mlp", "attention"] | list[str] = "all"
    """Linear maps that get an update: a group, or module names."""
    weight_decay: NotNegative = 0.0
    """Decoupled decay of what is trained toward zero: toward the base, but with any `init` but
    `default` away from it."""
    base_dtype: Literal["bfloat16"] | None = None
    """Type the frozen weights are held in while this arm is trained; null: `base.dtype`, in which
    every arm is measured. Saves memory where `base.dtype` is float32 for the sake of full arms."""

    def faults(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together."""
        yield from super().faults()
        if self.targets == []:
            yield "targets", "is empty; name a module or use all, mlp, attention"


class LoraArm(AdapterArm):
    """LoRA: low-rank updates beside frozen weights."""

    later = AdapterArm.later | {"lora_plus_ratio", "init", "dora", "protect"}

    method: Literal["lora"]
    """lora"""
    learning_rates: list[Rate] = Field([1e-4, 3e-4, 1e-3], min_length=1)
    """Rates to try, about ten times full's."""
    rank: Count = 16
    """Rank r of every update."""
    alpha: Positive | None = None
    """Scale numerator; null means 2r."""
    rslora: bool = False
    """Scale by alpha/sqrt(r) instead of alpha/r."""
    dropout: Share = 0.0
    """Dropout on the input of the update."""
    lora_plus_ratio: float = Field(1.0, ge=1)
    """LoRA+: rate of B as a multiple of A's; 1 is plain LoRA."""
    init: Literal["default", "pissa", "milora", "lora_null", "corda"] = "default"
    """How A and B start: `default`: A random, B zero; `pissa`: with the r leading singular
    directions of the weight, which is frozen without them; `milora`: with the r last ones;
    `lora_null`: where the base's activations on 256 rows of `data.replay` are least; `corda`: at
    the last directions of weight and activations. But for the first, a checkpoint is a plain
    adapter on the base, of rank 2r."""
    dora: bool = False
    """DoRA: the length of every row of the weight is trained."""
    protect: int = Field(0, ge=0)
    """OPLoRA: so many leading singular directions of each weight, on both sides, are left alone by
    the update."""

    @property
    def reads_activations(self) -> bool:
        """Whether training starts from the base's activations on `data.replay`."""
        return self.init in ("lora_null", "corda") and self.external is None

    @property
    def file_rank(self) -> int:
        """Rank of what is saved."""
        return self.rank * (1 if self.init == "default" else 2)

    @property
    def alpha_value(self) -> float:
        """Alpha with the rule alpha = 2r filled in (Biderman et al. 2024)."""
        return 2.0 * self.rank if self.alpha is None else self.alpha

    def faults(self) -> Iterable[tuple[str, str]]:
        """Values that do not go together."""
        yield from super().faults()
        if self.dora and self.init != "default":
            yield (
                "init",
                f"is {self.init}, which does not go with dora: PEFT's conversion to an adapter on "
                "the base loses the trained lengths; choose one of the two",
            )
        if self.init != "default" and self.penalty and PENALTIES[self.penalty].lora_only:
            problem = f"is {self.penalty}, which holds back A and B, but with init: {self.init}"
            yield "penalty", f"{problem} these begin as parts of the weight; choose one of the two"
        if self.protect and (self.dora or self.init != "default"):
            other = "dora" if self.dora else f"init: {self.init}"
            yield (
                "protect",
                f"is {self.protect}, which does not go with {other}: what it keeps would be "
                "changed by the other way of starting or stretching; choose one of the two",
            )


class OftArm(AdapterArm):
    """OFT: the inputs of frozen weights are rotated, block by block."""

    method: Literal["oft"]
    """oft"""
    learning_rates: list[Rate] = Field([3e-4, 1e-3, 3e-3], min_length=1)
    """Rates to try."""
    block_size: int = Field(32, ge=2)
    """Inputs that are rotated together; divides the inputs of every target."""


Arm = Annotated[FullArm | LoraArm | OftArm, Field(discriminator="method")]
METHODS: dict[str, type[AnyArm]] = {"full": FullArm, "lora": LoraArm, "oft": OftArm}


def _named_once(values: list[Any]) -> list[Any]:
    """Values whose names as parts of an arm's are different."""
    if problem := twice(map(value_words, values)):
        raise ValueError(problem)
    return values


@functools.cache
def _grid_of(kind: type[AnyArm]) -> type[Section]:
    """The grid of a kind of arm as a section: to each key a list of what the key may be."""
    lists: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name not in NOT_IN_GRIDS:
            one: Any = Annotated[field.annotation, Field(), *field.metadata]
            several = Annotated[list[one], Field(min_length=1), AfterValidator(_named_once)]
            lists[name] = (several, None)
    return create_model(f"{kind.__name__}Grid", __base__=Section, **lists)


def write_out_grids(arms: Mapping[str, Arm]) -> tuple[dict[str, Arm], dict[str, list[str]]]:
    """Plain arms, and for each arm that had a grid the names of those it stood for.

    Raises:
        ValidationError: every fault of what the grids make, each where the grid is written.
    """
    plain: dict[str, Arm] = {}
    families: dict[str, list[str]] = {}
    faults: dict[Place, str] = {}
    for name, arm in arms.items():
        if arm.grid is None:
            plain[name] = arm
            continue
        for key in arm.model_fields_set.intersection(arm.grid):
            faults[name, "grid", key] = "stands beside the grid too; keep one of them"
        count = math.prod(map(len, arm.grid.values()))
        if count > MOST_ARMS:
            faults[name, "grid"] = f"makes {count:,} arms, at most {MOST_ARMS}; shorten its lists"
            continue
        families[name] = []
        for values in itertools.product(*arm.grid.values()):
            chosen = dict(zip(arm.grid, values, strict=True))
            made = "-".join([name, *(f"{key}-{value_words(chosen[key])}" for key in chosen)])
            if len(made) > MOST_NAME:
                problem = f"the name {made}, at most {MOST_NAME} characters; shorten the arm's"
                faults.setdefault((name, "grid"), f"makes {problem}")
            elif made in arms or made in plain:
                problem = f"an arm called {made}, and there is another of that name; rename one"
                faults.setdefault((name, "grid"), f"makes {problem}")
            plain[made] = arm.model_copy(update={**chosen, "grid": None})
            families[name].append(made)
    where = {member: name for name, members in families.items() for member in members}
    changed: dict[str, dict[str, Arm]] = {}
    for name, arm in plain.items():
        written = where.get(name, name)
        changed[name] = _write_out_after(name, arm, written, faults)
        for other in changed[name].keys() & (plain.keys() | arms.keys()):
            problem = f"makes an arm called {other}, and there is another of that name; rename one"
            faults[written, "after"] = problem
    if faults:
        refuse({("arms", *place): problem for place, problem in faults.items()})
    whole: dict[str, Arm] = {}
    for name, arm in plain.items():
        whole |= {name: arm.model_copy(update={"after": None}), **changed[name]}
    return whole, families


def _write_out_after(name: str, arm: Arm, where: str, faults: dict[Place, str]) -> dict[str, Arm]:
    """The arms that are made of an arm's checkpoints, by name; `where` it was written is told."""
    found: dict[str, Arm] = {}
    for change, factors in (arm.after or {}).items():
        if problem := arm.unchangeable(change) or twice(factors):
            faults[where, "after", change] = f"cannot be: {problem}"
        for factor in factors:
            made = f"{name}-{change}-{value_words(factor)}"
            if len(made) > MOST_NAME:
                problem = f"the name {made}, at most {MOST_NAME} characters; shorten the arm's"
                faults.setdefault((where, "after"), f"makes {problem}")
            told = {"after": None, "of": name, "change": change, "factor": factor}
            found[made] = arm.model_copy(update=told)
    return found


def value_words(value: Any) -> str:
    """A setting's value as it stands in an arm's name: 16, 0.05, mlp, q_proj.v_proj."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ".".join(map(value_words, value))
    return re.sub(r"[^A-Za-z0-9._-]", "-", str(value).removesuffix(".0"))


# ----- what is measured -----

LearningTask = Annotated[
    str,
    AfterValidator(functools.partial(check_task, known=LEARNING)),
    WithJsonSchema(task_schema(LEARNING)),
]
ForgettingTask = Annotated[
    str,
    AfterValidator(functools.partial(check_task, known=FORGETTING)),
    WithJsonSchema(task_schema(FORGETTING)),
]
TopP = Annotated[float, Field(gt=0, le=1)]
MOST_SAMPLES = 10_000

# Values of keys that a preset stands for; what the recipe says itself wins.
PRESETS: dict[str, dict[str, Any]] = {
    # Biderman et al. 2024, arXiv:2405.09673, and the harnesses it names (lm-eval, BigCode).
    "paper": {
        "forgetting": ["hellaswag", "arc_challenge", "winogrande"],
        "limit": None,
        "gsm8k_shots": 5,
        "gsm8k_prompt": "plain",
        "gsm8k_sampler": "sampled",
        "gsm8k_tokens": 256,
        "code_prompt": "plain",
        "code_samples": 50,
        "code_temperature": 0.2,
        "code_top_p": 0.95,
        "code_tokens": 512,
        "code_k": [1],
        "precision": "fp32",
    },
    "quick": {
        "forgetting": ["hellaswag", "arc_challenge", "winogrande"],
        "limit": 200,
        "subset": "random",
        "gsm8k_sampler": "first",
        "code_samples": 1,
        "code_temperature": 0.0,
    },
}


class Extra(Section):
    """Several samples of every answer of a generation task; defaults are the paper's."""

    task: Literal["humaneval", "mbpp", "micro_code", "gsm8k", "micro_math"]
    """What is answered, asked as the `measure` section says."""
    samples: int = Field(50, ge=2, le=MOST_SAMPLES)
    """Answers drawn to every item, with the same seeds for all."""
    temperature: Positive = 0.2
    """The paper draws 50 at 0.2 for diversity, 256 at 0.8 for pass@k."""
    top_p: TopP = 0.95
    """Share of likely tokens that is drawn from; 1 for all."""
    k: list[Count] = Field([1])
    """pass@k for these k, each at most `samples`; 1 is always told."""
    at: Literal["last", "all"] = "last"
    """Budget points: the largest, or all, of every seed at the best rate."""
    limit: int | None = Field(None, ge=2)
    """Items; null for `measure.limit`."""

    def code_settings(self) -> dict[str, Any]:
        """The keys of the `measure` section that say the same for tasks of programs."""
        return {
            "code_samples": self.samples,
            "code_temperature": self.temperature,
            "code_top_p": self.top_p,
            "code_k": list(self.k),
        }

    def faults(self) -> Iterable[tuple[str, str]]:
        """A k for which too few samples are drawn."""
        return _k_faults(self.k, "k", self.samples, "samples")


class MeasureSection(Section):
    """What is measured at every budget point, on the base first."""

    later = frozenset({"lm_eval_prompt"})

    preset: Literal["paper", "quick"] | None = None
    """Values for the keys below that are not given. `paper`: whole benchmarks; HumanEval 50
    samples at T=0.2, top-p 0.95; GSM8K 5-shot greedy; forgetting is the mean of HellaSwag,
    ARC-Challenge and WinoGrande. `quick`: the same 200 random items of each every time, one greedy
    program; a share of 200 has a standard error of up to 3.5 points."""
    learning: list[LearningTask] = Field(["target_loss"], min_length=1)
    """Target scores; the first one leads. Also `lm_eval:NAME`, any task of lm-eval, and the path
    of your own task file (.yaml, .py), from the working directory or the data folder."""
    forgetting: list[ForgettingTask] = Field(["source_loss", "kl"], min_length=1)
    """Scores of what the base could do; their shares of right answers are averaged. Also
    `lm_eval:NAME`, any task of lm-eval, and the path of your own task file (.yaml, .py), from the
    working directory or the data folder."""
    limit: int | None = Field(200, ge=2)
    """Items of each benchmark; null for all."""
    subset: Literal["first", "random"] = "first"
    """Which items `limit` leaves: the first, or random ones, the same every time."""
    loss_documents: int = Field(200, ge=2)
    """Documents of each held-out loss."""
    loss_tokens: int = Field(512, ge=8)
    """A held-out document is cut to this many tokens."""
    gsm8k_shots: int = Field(5, ge=0, le=8)
    """Worked examples before a GSM8K question."""
    gsm8k_prompt: Literal["plain", "chat"] = "plain"
    """`plain`: lm-eval's prompt, `Question: ...` and `Answer:`; `chat`: the question alone in the
    model's chat template, as instruct training shows it, worked examples as earlier turns."""
    gsm8k_sampler: Literal["first", "sampled"] = "first"
    """`first`: the same first training rows for every question (lm-eval's `sampler: first_n`),
    read once; `sampled`: lm-eval's default, others for every question."""
    gsm8k_tokens: Count = 256
    """New tokens allowed for a GSM8K answer."""
    code_prompt: Literal["plain", "chat"] = "plain"
    """How humaneval and mbpp are asked. `plain`: lm-eval's prompts, continued; `chat`: the task in
    the model's chat template, code taken out of the answer."""
    code_samples: int = Field(1, ge=1, le=MOST_SAMPLES)
    """Programs drawn for every task of humaneval and mbpp."""
    code_temperature: float = Field(0.0, ge=0)
    """0 writes the most likely program; the paper draws 50 at 0.2."""
    code_top_p: TopP = 0.95
    """Share of likely tokens programs are drawn from; 1 for all."""
    code_k: list[Count] = Field([1])
    """pass@k for these k, each at most `code_samples`; 1 is always told."""
    code_tokens: Count = 512
    """New tokens allowed for a program."""
    mbpp_shots: int = Field(3, ge=0, le=9)
    """Worked examples before an MBPP task: its prompt rows 2, 3, ..."""
    micro_prompt: Literal["chat", "text"] = "chat"
    """How micro_math and micro_code are asked. `chat`: in the model's chat template, as instruct
    training shows them; `text`: as they stand in running text."""
    extras: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Extra] = Field({})
    """Further measurements by name, for diversity and pass@k: several samples of every answer, on
    the base and on each arm's best rate, after everything else. They may be added to a study that
    stands."""
    engine: Literal["laura", "vllm"] = "laura"
    """What answers benchmarks and extras: Laura's own engine, or vLLM in a process of its own
    (LAURA_VLLM_PYTHON names the Python that has it). Losses and divergences of a comparison are
    measured by Laura's own always."""
    precision: Literal["auto", "bf16", "fp32"] | None = None
    """Arithmetic of the evaluation; fp32 matches lm-eval to 1e-3 nats. auto: bf16 where the
    processor has bf16 arithmetic. Null: so on a GPU (CUDA), fp32 elsewhere. A study is measured in
    one; where it would be another, its folder is refused."""
    lm_eval_prompt: Literal["plain", "chat"] = "plain"
    """How lm-eval's tasks, ifeval and refusals are asked. `plain`: lm-eval's prompts; `chat`: these
    in the model's chat template, which instruct models need there."""
    lm_eval_include: str | None = None
    """Folder of your own lm-eval task files, for tasks named `lm_eval:NAME`; they win over
    lm-eval's."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        known = isinstance(value, dict) and isinstance(value.get("preset"), str)
        return {**PRESETS.get(value["preset"], {}), **value} if known else value

    def faults(self) -> Iterable[tuple[str, str]]:
        """Samples that cannot be told together, and results of one name."""
        samples = self.code_samples
        yield from _k_faults(self.code_k, "code_k", samples, "measure.code_samples")
        if samples > 1 and self.code_temperature == 0:
            yield (
                "code_temperature",
                f"is 0, so all {samples} samples would be the same program; give a temperature "
                "above 0, such as 0.2, or measure.code_samples: 1",
            )
        by_result: dict[str, list[str]] = {}
        for task in (*self.learning, *self.forgetting):
            by_result.setdefault(result_name(task), []).append(task)
        taken = {*TAKEN, "mean", *by_result}
        for name in filter(taken.__contains__, self.extras):
            problem = "is what a task's own result is called; give it another name"
            yield f"extras.{name}", problem
        for name, alike in by_result.items():
            if len(alike) > len(set(alike)):
                yield "", "names a task twice"
            elif len(alike) > 1:
                yield "", f"{' and '.join(alike)} would both be called {name}; rename a file"


def pass_names(k: Iterable[int]) -> tuple[str, ...]:
    """Names of the metrics pass@k, rising; 1 is always among them."""
    return tuple(f"pass@{one}" for one in sorted({1, *k}))


def _k_faults(
    k: Sequence[int], key: str, samples: int, samples_key: str
) -> Iterable[tuple[str, str]]:
    if problem := twice(k):
        yield key, problem
    too_large = [str(one) for one in k if one > samples]
    if too_large:
        yield (
            key,
            f"names {', '.join(too_large)}, but pass@k needs at least k samples and "
            f"{samples_key} is {samples}; draw more or leave it out",
        )


# ----- how rates are chosen -----


class SearchSection(Section):
    """How learning rates are chosen, and the values of an arm's `grid`."""

    sampler: Literal["grid", "random", "tpe"] = "grid"
    """`grid`: every rate of every arm is run. `random`, `tpe` (Optuna's): rates are drawn between
    the lowest and the highest of `learning_rates`, evenly in their logarithm or where earlier
    trials did well, and with them the values of the arm's grid."""
    seeds: Literal["all", "first"] | None = None
    """`all`: every rate of every arm is run with every seed, and the best is chosen for each seed
    by itself, so that the luck of the choice is in the error. `first`: every rate with the first
    seed, the others at the rate that is best there; cheaper, but then no verdict says more than
    `suggested`. Null: all for grid, first for a search."""
    extend: int = Field(3, ge=0)
    """A grid's list of rates whose best (with any seed) lies at its end grows there by the ratio
    of the last two, at most so many rates at both ends together; 0: never. Lists of one rate and
    checkpoints made elsewhere stay as they are."""
    trials: Count = 20
    """Trials of each arm, or of each family of arms a grid makes."""
    seed: Seed = 0
    """Seed of the sampler."""
    pruner: Literal["none", "median", "hyperband"] = "none"
    """Stops a trial whose validation loss at an early budget point is worse than the median's, or
    drops out of Hyperband's round; needs several budget points."""
    objective: Literal["validation_loss", "learning"] | None = None
    """What the best rate is best at. `validation_loss`: on held-out rows that no score is told
    on. `learning`: the change of the leading learning score itself, which flatters the arm chosen
    by it. Null: validation_loss for grid, learning for a search."""
    max_forgetting: NotNegative | None = None
    """A rate is chosen only if the arm forgot at most so much: the fall of the mean of the
    forgetting accuracies (0.05 is five points), or where none is measured, how much worse the
    first forgetting score became. Null for no bound."""
    families: dict[str, list[str]] = Field({})
    """Arms that are searched together; a `grid` writes this by itself."""
    allow_shared_rate: bool = False
    """Accept arms compared at one and the same rate. It misleads: the best LoRA rate is about ten
    times the best full rate."""

    @property
    def objective_value(self) -> str:
        """The objective with its default filled in."""
        return self.objective or ("validation_loss" if self.sampler == "grid" else "learning")

    @property
    def seeds_value(self) -> Literal["all", "first"]:
        """Which seeds every rate is run with, the default filled in."""
        return self.seeds or ("all" if self.sampler == "grid" else "first")

    def faults(self) -> Iterable[tuple[str, str]]:
        """Seeds that a search cannot be run with."""
        if self.seeds == "all" and self.sampler != "grid":
            yield (
                "seeds",
                f"is all, but search.sampler is {self.sampler}, whose trials are drawn by what the "
                "first seed came to and so stand for no other; set search.seeds: first, or leave "
                "it out, or set search.sampler: grid",
            )


# ----- base, data, budget, training, analysis -----

BASE_SAMPLES = "base_samples"
SAMPLED_ONLY = ("count", "tokens", "temperature", "prompts", "prompt_tokens")
READ_ONLY = ("split", "subset", "limit", "streaming", "columns", "bad_rows")


class BaseSection(Section):
    """The model before adaptation."""

    model: str = Field(min_length=1)
    """Registry name, Hub id, folder, or GGUF file; of which families: `guide.md`, Models."""
    revision: str | None = None
    """Hub branch, tag or commit; null for main."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the weights are held in; full finetuning needs float32."""
    quantization: Literal["nf4"] | None = None
    """`nf4`: the linear maps of all layers are held in four bits, frozen (QLoRA), under LoRA arms;
    base and arms are measured so. Needs `laura-lab[quantization]`. Null: as `dtype` says."""

    def dtype_under(self, arm: Arm) -> str:
        """Type the weights are held in while an arm is trained."""
        return (arm.base_dtype if isinstance(arm, AdapterArm) else None) or self.dtype


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])]


class ColumnsSection(Section):
    """Which fields of a row hold what: `messages`, or `prompt` and `completion`, or `text`."""

    messages: str | None = None
    """A conversation: a list of {role, content} or {from, value}."""
    prompt: Names = []
    """What is asked; several are joined by a blank line, those behind the first may be absent."""
    completion: str | None = None
    """What is answered."""
    system: str | None = None
    """A system message; null: `system`, where a row has it."""
    text: str | None = None
    """Running text."""

    def faults(self) -> Iterable[tuple[str, str]]:
        """Exactly one of the three."""
        ways = [
            self.messages is not None,
            bool(self.prompt or self.completion),
            self.text is not None,
        ]
        if sum(ways) != 1 or bool(self.prompt) != bool(self.completion):
            yield "", "must name messages, or prompt and completion, or text"


class Source(Section):
    """Where rows come from; a plain string is short for `{source: ...}`."""

    later = frozenset({"columns", "bad_rows", "streaming"})

    source: str = Field(min_length=1)
    """Named set, file (JSON Lines, JSON array, CSV, Parquet), folder or pattern of such files
    (`corpus/train-*.parquet`), or Hub data set id."""
    split: str | None = None
    """Split, where the source has several; null for the set's own default."""
    subset: str | None = None
    """Hub configuration name, where there are several."""
    limit: Count | None = None
    """Use at most this many rows; null for all."""
    streaming: bool = False
    """Read row by row, in order, and only as far as the largest of `budget.tokens` needs: of the
    Hub without downloading the set, of files without reading all of them."""
    columns: ColumnsSection | None = None
    """Which columns hold what, where the rows do not tell by their names."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What becomes of rows that do not fit: `refuse` stops and lists them, `skip` leaves them out
    and says how many."""

    @property
    def rows(self) -> tuple[str, str | None, str | None]:
        """What tells rows apart whatever their number; `limit` takes the first of the same."""
        return self.source, self.split, self.subset


def _source_from_text(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


SourceField = Annotated[
    Source, BeforeValidator(_source_from_text, json_schema_input_type=str | Source)
]


class ReplaySource(Source):
    """What is replayed; `base_samples` are texts that the base itself writes before training."""

    source: str = Field(min_length=1)
    """As for any source, or `base_samples`. A text is learnt on every token, of a conversation
    what `regime` says."""
    weight: Positive = 1.0
    """Share of the replay tokens, relative to the weights of the other sources; they need not sum
    to 1."""
    count: Count | None = None
    """`base_samples`: texts to draw, one of each seed from 0; needed."""
    tokens: Count = 256
    """`base_samples`: most new tokens of a text."""
    temperature: float = Field(1.0, ge=0.01)
    """`base_samples`: logits are divided by it."""
    prompts: SourceField | None = None
    """`base_samples`: rows that are continued, used in turn: the beginning of a text, or what a
    conversation asks; null starts from nothing but the begin token."""
    prompt_tokens: Count = 16
    """`base_samples`: so many tokens of a text in `prompts` are given."""

    @property
    def is_sampled(self) -> bool:
        """Whether the base writes it."""
        return self.source == BASE_SAMPLES

    def faults(self) -> Iterable[tuple[str, str]]:
        """Keys of the other kind of source, and a missing count."""
        kind = "does not apply to" if self.is_sampled else "is only for"
        for name in READ_ONLY if self.is_sampled else SAMPLED_ONLY:
            if getattr(self, name) != type(self).model_fields[name].default:
                yield name, f"{kind} source: {BASE_SAMPLES}; leave it out"
        if self.is_sampled and self.count is None:
            yield "count", "is needed: how many texts the base shall write, such as 1000"


ReplayField = Annotated[
    ReplaySource, BeforeValidator(_source_from_text, json_schema_input_type=str | ReplaySource)
]


class RewriteSection(Section):
    """How the base writes the training answers in its own words (SDFT)."""

    task: Literal["gsm8k", "mbpp", "micro_math", "micro_code"]
    """The benchmark that `train` is the training split of; its grader says which answers are
    kept, and the others stay as they were."""
    tokens: Count = 256
    """Most tokens of an answer."""


class DataSection(Section):
    """What is learnt, and the text that losses are measured on."""

    train: SourceField
    """Rows to learn from."""
    validation: SourceField | None = None
    """Rows that choose the learning rate; null holds rows out of `train`."""
    validation_rows: Count = 200
    """Rows held out of `train` when `validation` is null."""
    test: SourceField | None = None
    """Target-domain rows for `target_loss` and `kl`; never trained on."""
    source_text: SourceField | None = None
    """Text the base already models well, for `source_loss`."""
    template: Literal["chat", "plain"] = "chat"
    """`chat`: the model's own chat template; `plain`: question, blank, answer."""
    overlong: Literal["error", "drop", "truncate"] = "error"
    """What happens to an example longer than `train.row_tokens`."""
    rewrite: RewriteSection | None = None
    """How the base rewrites the answers of `train` for the arms that set `rewritten`."""
    replay: list[ReplayField] = Field([])
    """Rows mixed among those of `train` in the arms that set `replay`, row by row and counted in
    tokens; never the same as what is measured on."""
    replay_exhausted: Literal["repeat", "error"] = "repeat"
    """When a replay source has too few tokens for a budget: begin it again, which run.json and the
    verdict tell, or stop before training."""

    def faults(self) -> Iterable[tuple[str, str]]:
        """Replay sources that are named twice, or that are measured on."""
        measured = [(name, getattr(self, name)) for name in ("validation", "test", "source_text")]
        names = {source.rows: name for name, source in measured if source}
        seen: set[ReplaySource] = set()
        for number, source in enumerate(self.replay):
            same = source.model_copy(update={"weight": 1.0})
            if same in seen:
                yield f"replay.{number}", "names a source twice; keep one, with the weights added"
            seen.add(same)
            for read, key in ((source, ""), (source.prompts, ".prompts")):
                if read is not None and read.rows in names:
                    yield (
                        f"replay.{number}{key}",
                        f"is data.{names[read.rows]}, and what is measured must not be learnt; "
                        "choose another split or source",
                    )


class BudgetSection(Section):
    """How long each run trains; a checkpoint is measured at each point of the list."""

    tokens: list[Count] | None = None
    """Training tokens, rising: all that pass through the model, target and replay together (an
    arm with `replay: 0.25` reads 3/4 of them from `train`)."""
    epochs: list[Positive] | None = None
    """Passes over the rows of `train`, rising; needs a finite source. Replay comes on top."""
    points: Literal["separate", "hot"] = "separate"
    """`separate`: every point has its own complete schedule (a run of its own with cosine, a
    cooldown branch off one trunk with trapezoidal; constant needs none). `hot`: points are
    snapshots of the longest run, not cooled down."""

    @property
    def listed(self) -> Sequence[float]:
        """The points, in tokens or in epochs."""
        return self.tokens or self.epochs or []

    @field_validator("tokens", "epochs")
    @classmethod
    def _rising(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and (not value or sorted(set(value)) != value):
            raise ValueError(f"must be a rising list with at least one point, came {short(value)}")
        return value

    def faults(self) -> Iterable[tuple[str, str]]:
        """Neither or both of the two units."""
        if (self.tokens is None) == (self.epochs is None):
            yield "", "give either tokens or epochs, one of the two"


class TrainSection(Section):
    """The loop's settings, the same for every arm."""

    later = frozenset({"weight_decay_rule", "cohort", "warmup_steps", "recompute", "devices"})

    optimiser: Literal["adamw", "lion"] = "adamw"
    """AdamW (fused) or decoupled Lion."""
    betas: Annotated[tuple[Share, Share], Field(strict=False)] | None = None
    """Null: 0.9, 0.999 for adamw and 0.9, 0.95 for lion."""
    epsilon: Positive = 1e-8
    """AdamW's epsilon."""
    weight_decay_rule: Literal["pytorch", "composer"] | None = None
    """`pytorch`: a step takes off weight_decay × rate; `composer`, as the paper's library:
    weight_decay × rate / peak rate, so the rate's height does not matter. Null: pytorch for adamw,
    composer for lion."""
    schedule: Literal["cosine", "constant", "trapezoidal"] = "cosine"
    """Rate over time."""
    warmup: Share = 0.1
    """Share of the run spent warming up linearly."""
    warmup_steps: int | None = Field(None, ge=0)
    """Optimiser steps of warm-up, instead of the share `warmup`; a trapezoidal budget that ends
    before them cools down from the rate it has reached. A run that would never reach its rate is
    refused."""
    cooldown: Share = 0.2
    """Last share of a trapezoidal budget, falling to zero."""
    final_factor: Share = 0.01
    """Cosine ends at this share of the peak rate."""
    batch_tokens: int = Field(2048, ge=8)
    """Tokens of one optimiser step."""
    row_tokens: int = Field(1024, ge=8)
    """Tokens of one packed row; also the longest example."""
    rows_per_pass: Count = 2
    """Rows that go through the model together; smaller needs less memory."""
    recompute: bool = False
    """Keep of each layer only what it reads, and pass it once more for its gradient (gradient
    checkpointing): far less memory, about a third more work, not a bit of the result changes."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast where the processor has bf16 arithmetic."""
    clip: Positive | None = 1.0
    """Largest gradient norm; null for no clipping."""
    cohort: Count = 1
    """LoRA runs that differ in the learning rate alone are trained in lock-step on one copy of the
    base, at most so many together. On a GPU they share their passes, and the activations of all of
    them are in memory at once. A search has no such runs."""
    devices: Count = 1
    """Devices over which one run is spread, each with a process of its own: weights, and in full
    finetuning gradients and optimiser too, are shared out among them (FSDP), and so are the passes
    of a step. On a processor they are processes. The result is the same up to rounding."""
    checkpoint_minutes: Positive = 10.0
    """A resumable checkpoint at least so often."""
    validate_every: Count | None = None
    """Steps between validation losses; null: only at budget points."""

    @property
    def beta_values(self) -> tuple[float, float]:
        """Betas with the optimiser's default filled in."""
        return self.betas or ((0.9, 0.999) if self.optimiser == "adamw" else (0.9, 0.95))

    @property
    def decay_rule(self) -> Literal["pytorch", "composer"]:
        """The rule of weight decay with the optimiser's own filled in."""
        return self.weight_decay_rule or ("pytorch" if self.optimiser == "adamw" else "composer")

    def faults(self) -> Iterable[tuple[str, str]]:
        """A step that is shorter than a row, and a schedule without a middle."""
        if self.batch_tokens < self.row_tokens:
            problem = f"{self.batch_tokens} < row_tokens {self.row_tokens}"
            yield "batch_tokens", f"must hold at least one row: {problem}"
        if self.devices > 1:
            yield from self._spread_faults()
        if self.warmup + (self.cooldown if self.schedule == "trapezoidal" else 0) >= 1:
            yield "warmup", "warm-up and cooldown together must leave some steps between"

    def _spread_faults(self) -> Iterable[tuple[str, str]]:
        rows = -(-self.batch_tokens // self.row_tokens)
        passes = -(-rows // self.rows_per_pass)
        if self.cohort > 1:
            problem = f"is {self.devices}, but a cohort (train.cohort: {self.cohort}) trains on one"
            yield "devices", f"{problem} device; leave one of the two out"
        if passes < self.devices:
            step = f"{passes} pass{'es' * (passes > 1)} (train.rows_per_pass: {self.rows_per_pass})"
            yield (
                "devices",
                f"is {self.devices}, but a step of {self.batch_tokens} tokens is {step}, so that "
                "some would never have work; lower it or train.rows_per_pass, or raise "
                "train.batch_tokens",
            )


class AnalysisSection(Section):
    """What is read out of saved weights, after the last run."""

    spectra: Literal["none", "final", "all"] = "none"
    """Rank and spectrum of every matrix's update, in the runs at each arm's best rate. `final`: at
    the last budget; `all`: at every budget point."""
    intruders: bool = False
    """Also count intruder dimensions (Shuttleworth et al. 2024); takes longer."""
    intruder_k: Count = 10
    """Leading directions of a tuned matrix that may be intruders."""
    intruder_eps: float = Field(0.5, gt=0, le=1)
    """A direction is an intruder if its absolute cosine with every direction of the base is below
    this."""
    subspace_k: Count | None = 8
    """Leading directions of the updates of the best lora and the best full arm that are compared,
    matrix by matrix; null for no comparison."""
    leading_k: Count | None = None
    """Leading singular directions of the base in which the energy of every update is told (OPLoRA);
    takes longer. Null for none."""
    movement: bool = False
    """Also how far hidden states moved from the base's, on the test's and the source's texts: CKA
    and Procrustes distance of every layer, CSD of every map."""

    def faults(self) -> Iterable[tuple[str, str]]:
        """What would be told nowhere."""
        for key in ("intruders", "leading_k", "movement") if self.spectra == "none" else ():
            if getattr(self, key):
                problem = "are counted" if key == "intruders" else "is measured"
                yield (
                    key,
                    f"{problem} where spectra are taken, and analysis.spectra is none; set it to "
                    "final or all",
                )


class Recipe(Section):
    """A whole comparison."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the study and of its folder."""
    continues: str | None = Field(None, pattern=NAME_PATTERN)
    """Of a setting of a series: an earlier one, where each arm and seed goes on from the checkpoint
    that was chosen there; null: every run begins from the base."""
    base: BaseSection
    domain: str = Field("target", min_length=1)
    """Target domain, used in words and charts."""
    regime: Literal["instruct", "pretrain"] = "instruct"
    """instruct: loss on answers only; pretrain: loss on every token."""
    data: DataSection
    budget: BudgetSection
    arms: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Arm] = Field(min_length=1)
    """Name of each arm, and its settings."""
    train: TrainSection = Field(default_factory=TrainSection)
    search: SearchSection = Field(default_factory=SearchSection)
    seeds: list[Seed] = Field([0, 1, 2], min_length=1)
    """Seeds of data order and initial weights; `search.seeds` says which of them every rate is run
    with. With fewer than three nothing is clear."""
    measure: MeasureSection = Field(default_factory=MeasureSection)
    analysis: AnalysisSection = Field(default_factory=AnalysisSection)

    def faults(self) -> Iterable[tuple[str, str]]:
        """A seed that is named twice."""
        if problem := twice(self.seeds):
            yield "seeds", problem

    @model_validator(mode="after")
    def _without_grids(self) -> Self:
        arms, families = write_out_grids(self.arms)
        named_too = [name for name in families if name in self.search.families]
        if named_too:
            problem = "is a family already, made by the arm's grid; leave it out"
            refuse({("search", "families", name): problem for name in named_too})
        if not families and arms.keys() == self.arms.keys():
            return self
        search = self.search.model_copy(update={"families": {**self.search.families, **families}})
        return self.model_copy(update={"arms": arms, "search": search})
