"""One setting as claims see it: its arms by what they are, its points by arm and budget.

Arms are recognised by their settings, never by their names. Where a recipe has several
arms of one kind, the rule that chooses among them stands here and was fixed beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from laura.results.task_result import TaskResult
from laura.study.effects import MIN_SEEDS, Effect, Term, TooThin, contrast, count
from laura.study.measures import leading
from laura.study.summary import Evidence, Point

LEARNING, FORGETTING = "learning", "forgetting"
GROUPS = {
    "attention": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "mlp": {"gate_proj", "up_proj", "down_proj"},
}
GROUPS["all"] = GROUPS["attention"] | GROUPS["mlp"]
DROPOUTS = ("attention_dropout", "residual_dropout")
# What makes an arm more than plain LoRA or plain full finetuning, and the value that means
# "not used". A recipe written before a key existed lacks it, which means the same.
UNUSED: dict[str, Any] = {
    "replay": 0, "layers": None, "dora": False, "init": "default", "lora_plus_ratio": 1,
    "weight_decay_toward": "zero", **dict.fromkeys(DROPOUTS, 0),
}  # fmt: skip
NOT_COMPARED = {"learning_rates", "grid"}


@dataclass(frozen=True, eq=False)
class Kind:
    """An arm by its settings.

    Attributes:
        name: Its name in the recipe, for words only.
        settings: All its settings but the learning rates.
    """

    name: str
    settings: Mapping[str, Any]

    @property
    def method(self) -> str:
        """`lora`, `full`, or a method that no claim is about."""
        return str(self.settings["method"])

    @property
    def rank(self) -> int:
        """Rank of the updates; 0 for full finetuning."""
        return int(self.settings.get("rank") or 0)

    @property
    def targets(self) -> str:
        """`all`, `mlp`, `attention`, or "" for another choice of modules."""
        given = self.settings.get("targets", "")
        if isinstance(given, str):
            return given
        return next((name for name, group in GROUPS.items() if set(given) == group), "")

    def number(self, key: str) -> float:
        """A setting that is a number; 0 where the recipe has no such key."""
        value = self.settings.get(key)
        return float(value) if isinstance(value, int | float) else 0.0

    @property
    def is_variant(self) -> bool:
        """Whether it is more than plain LoRA or plain full finetuning."""
        return any(self._used(key) is not None for key in UNUSED)

    def differs_in(self, other: Kind) -> set[str]:
        """Settings in which two arms differ."""
        keys = self.settings.keys() | other.settings.keys()
        return {key for key in keys if self._used(key) != other._used(key)}

    def _used(self, key: str) -> Any:
        """The value of a setting; None where it is absent, or has the value for "not used"."""
        value = self.settings.get(key)
        return None if value == UNUSED.get(key) else value


@dataclass(frozen=True)
class Setting:
    """A study of one domain in one regime.

    Attributes:
        name: What it is called in the evidence.
        evidence: What its folder holds.
        analysis: Its analysis.json; empty where there is none.
    """

    name: str
    evidence: Evidence
    analysis: Mapping[str, Any] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        """`code`, `math`, or the recipe's own word."""
        word = self.evidence.recipe.domain.lower()
        return next((known for known in ("code", "math") if known in word), word)

    @property
    def regime(self) -> str:
        """`instruct` or `pretrain`."""
        return self.evidence.recipe.regime

    @cached_property
    def arms(self) -> list[Kind]:
        """Every arm, in the recipe's order."""
        found = []
        for name, arm in self.evidence.recipe.arms.items():
            dumped = arm.model_dump(mode="json")
            if getattr(arm, "alpha_value", None) is not None:
                dumped["alpha"] = arm.alpha_value  # type: ignore[union-attr]
            kept = {key: value for key, value in dumped.items() if key not in NOT_COMPARED}
            found.append(Kind(name, kept))
        return found

    @property
    def budgets(self) -> list[float]:
        """The recipe's budget points, rising."""
        budget = self.evidence.recipe.budget
        return [float(point) for point in budget.tokens or budget.epochs or []]

    def full(self) -> Kind:
        """Plain full finetuning: no dropout, no variant, the least weight decay there is.

        Raises:
            TooThin: there is no such arm.
        """
        found = [arm for arm in self.arms if arm.method == "full" and not arm.is_variant]
        if not found:
            raise TooThin("no arm of plain full finetuning")
        return min(found, key=lambda arm: arm.number("weight_decay"))

    def loras(self) -> list[Kind]:
        """Plain LoRA arms, the highest rank first; at one rank those on all modules first.

        Raises:
            TooThin: there is none.
        """
        found = [arm for arm in self.arms if arm.method == "lora" and not arm.is_variant]
        if not found:
            raise TooThin("no arm of plain LoRA")
        return sorted(
            found,
            key=lambda arm: (
                arm.targets != "all",
                -arm.rank,
                bool(arm.settings.get("rslora")),
                arm.number("dropout"),
                arm.number("weight_decay"),
            ),
        )

    def lora(self) -> Kind:
        """The plain LoRA arm that stands for LoRA: all modules, the highest rank.

        It is the one most like full finetuning, so the hardest to tell from it.

        Raises:
            TooThin: there is none.
        """
        return self.loras()[0]

    def tasks(self, measure: str) -> list[str]:
        """Tasks of a measure: the leading learning task, or what forgetting is judged by.

        Forgetting is the mean of the accuracies; without any, the first forgetting task.
        """
        if measure == LEARNING:
            return self.evidence.learning[:1]
        return self.evidence.accuracies or self.evidence.forgetting[:1]

    def unit(self, measure: str) -> str:
        """Unit of a measure, such as `share`."""
        return self.evidence.measures[self.tasks(measure)[0]].unit

    def points(self, arm: Kind, budget: float) -> dict[int, Point]:
        """An arm's points at each seed's best rate by validation loss, one a seed."""
        return {
            point.seed: point
            for point in self.evidence.points
            if point.arm == arm.name and point.budget == budget and self.evidence.is_chosen(point)
        }

    def common_budget(self, *arms: Kind) -> float:
        """The largest budget that all arms have reached with enough seeds.

        Raises:
            TooThin: an arm has no finished best rate, or there is no such budget.
        """
        for arm in arms:
            if arm.name not in self.evidence.best:
                raise TooThin(f"{arm.name} has no finished run at the largest budget")
        fewest = {b: min(len(self.points(arm, b)) for arm in arms) for b in self.budgets}
        enough = [budget for budget, seeds in fewest.items() if seeds >= MIN_SEEDS]
        if not enough:
            most = count(max(fewest.values(), default=0), "seed")
            names = " and ".join(arm.name for arm in arms)
            raise TooThin(f"{names}: at most {most} at any budget; {MIN_SEEDS} are needed")
        return max(enough)

    def term(self, weight: float, arm: Kind | None, budget: float, measure: str) -> Term:
        """The score of an arm (None: the base) at a budget, for a contrast; higher is better.

        Raises:
            TooThin: the measure was not measured there.
        """
        if arm is None:
            return self.scores(weight, self.base_results, measure, "the base")
        points = self.points(arm, budget)
        return self.scores(weight, {s: p.results for s, p in points.items()}, measure, arm.name)

    @property
    def base_results(self) -> dict[int, Mapping[str, TaskResult]]:
        """The base's results under every seed: a base has none of its own."""
        return dict.fromkeys(self.evidence.recipe.seeds, self.evidence.base)

    def scores(
        self, weight: float, results: Mapping[int, Mapping[str, TaskResult]], measure: str, who: str
    ) -> Term:
        """A term of a contrast from results by seed and task; seeds with gaps are left out.

        Raises:
            TooThin: no seed has every task of the measure.
        """
        tasks = self.tasks(measure)
        whole = {s: r for s, r in results.items() if all(task in r for task in tasks)}
        if not whole:
            raise TooThin(f"{measure} of {who} was not measured ({', '.join(tasks)})")
        first = next(iter(whole.values()))
        signs = {}
        for task in tasks:
            metric = leading(first[task])
            signs[task] = (metric, 1.0 if first[task].metrics[metric].higher_is_better else -1.0)
        return Term(weight, whole, signs, self.name)

    def difference(self, first: Kind, second: Kind, measure: str, budget: float) -> Effect:
        """Score of the first arm minus that of the second; positive: the first is better.

        Raises:
            TooThin: as `contrast` and `term`.
        """
        return contrast(
            [self.term(1.0, first, budget, measure), self.term(-1.0, second, budget, measure)]
        )

    def gain(self, arm: Kind, measure: str, budget: float) -> Effect:
        """Score of an arm minus the base's; forgetting is minus its gain.

        Raises:
            TooThin: as `contrast` and `term`.
        """
        return contrast(
            [self.term(1.0, arm, budget, measure), self.term(-1.0, None, budget, measure)]
        )

    def change(self, arm: Kind, measure: str, early: float, late: float) -> Effect:
        """Score of an arm at a later budget minus that at an earlier one.

        Raises:
            TooThin: as `contrast` and `term`.
        """
        return contrast([self.term(1.0, arm, late, measure), self.term(-1.0, arm, early, measure)])
