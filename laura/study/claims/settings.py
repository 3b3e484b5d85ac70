"""One setting as claims see it: its arms by what they are, its scores by arm and budget.

Arms are recognised by their settings, never by their names. Where a recipe has several
arms of one kind, the rule that chooses among them stands here and was fixed beforehand.

Three questions are never mixed (see `Setting.tuned`, `front.py`, `recommend.py`): what one
gets by tuning each arm on validation; what is forgotten at equal learning, over all rates
and budgets; what one configuration does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laura.models.targets import group_of
from laura.recipe.remedies import PLACES
from laura.recipe.sections import BASE_SAMPLES
from laura.results.schema import Analysis
from laura.results.statistics import (
    MIN_ITEMS,
    MIN_SEEDS,
    Contrast,
    TooThin,
    count,
    crossed,
)
from laura.results.task_result import RATIO_FIELDS, TaskResult
from laura.study.evidence import Evidence, Point, leading

LEARNING, FORGETTING = "learning", "forgetting"
DROPOUTS = ("attention_dropout", "residual_dropout")
# What makes an arm more than plain LoRA or plain full finetuning, and the value that means
# "not used". A recipe written before a key existed lacks it, which means the same.
UNUSED: dict[str, Any] = {
    "of": None, "rewritten": False, "replay": 0, "layers": None, "dora": False,
    "init": "default", "protect": 0,
    "lora_plus_ratio": 1, "weight_decay_toward": "zero", **dict.fromkeys(DROPOUTS, 0),
    **dict.fromkeys(PLACES),
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
        return group_of(given)

    def number(self, key: str) -> float:
        """A setting that is a number; 0 where the recipe has no such key."""
        value = self.settings.get(key)
        return float(value) if isinstance(value, int | float) else 0.0

    @property
    def is_variant(self) -> bool:
        """Whether it is more than plain LoRA or plain full finetuning."""
        return any(self.used(key) is not None for key in UNUSED)

    def differs_in(self, other: Kind) -> set[str]:
        """Settings in which two arms differ."""
        keys = self.settings.keys() | other.settings.keys()
        return {key for key in keys if self.used(key) != other.used(key)}

    def used(self, key: str) -> Any:
        """The value of a setting; None where it is absent, or has the value for "not used".

        A remedy of strength 0 is not used, and neither is its strength.
        """
        value, place = self.settings.get(key), key.removesuffix("_strength")
        if place in PLACES and self.settings.get(f"{place}_strength") == 0:
            return None
        return None if value == UNUSED.get(key) else value


@dataclass(frozen=True)
class Scores:
    """One measure of one arm (or the base) with several seeds, item by item.

    Attributes:
        tables: Task to (seeds, items), turned so that higher is better.
        items: Task to the indices of the items.
        bounded: Tasks whose items lie between 0 and 1.
        seeds: In the order of the rows.
    """

    tables: Mapping[str, NDArray[Any]]
    items: Mapping[str, tuple[int, ...]]
    bounded: frozenset[str]
    seeds: tuple[int, ...]

    def rows(self, seeds: Sequence[int]) -> Mapping[str, NDArray[Any]]:
        """The tables of some seeds, in their order."""
        places = [self.seeds.index(seed) for seed in seeds]
        return {task: table[places] for task, table in self.tables.items()}


@dataclass(frozen=True)
class Setting:
    """A study of one domain in one regime.

    Attributes:
        name: What it is called in the evidence.
        evidence: What its folder holds.
        analysis: Its analysis.json; None where there is none.
        known: What several statements ask for and takes long, such as fronts.
    """

    name: str
    evidence: Evidence
    analysis: Analysis | None = None
    _read: dict[int, tuple[tuple[int, ...], NDArray[Any], bool]] = field(
        default_factory=dict, repr=False, compare=False
    )
    known: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def domain(self) -> str:
        """`code`, `math`, or the recipe's own word."""
        word = self.evidence.recipe.domain.lower()
        return next((known for known in ("code", "math") if known in word), word)

    @property
    def regime(self) -> str:
        """`instruct` or `pretrain`."""
        return self.evidence.recipe.regime

    @property
    def suggests_only(self) -> bool:
        """Whether rates were chosen on one seed, so that no verdict is given."""
        return self.evidence.recipe.search.seeds_value == "first"

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
    def replays_itself(self) -> bool:
        """Whether what is replayed is written by the base, some of it or all."""
        return any(one.source == BASE_SAMPLES for one in self.evidence.recipe.data.replay)

    @property
    def tuned_arms(self) -> list[Kind]:
        """Those that have a best rate."""
        return [arm for arm in self.arms if self.evidence.best.get(arm.name)]

    @property
    def budgets(self) -> list[float]:
        """The recipe's budget points, rising."""
        budget = self.evidence.recipe.budget
        return [float(point) for point in budget.listed]

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
                abs(arm.number("alpha") / arm.rank - 2),
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

    @cached_property
    def _by_arm(self) -> dict[tuple[str, float], list[Point]]:
        found: dict[tuple[str, float], list[Point]] = {}
        for point in self.evidence.points:
            found.setdefault((point.arm, point.budget), []).append(point)
        return found

    def points(self, arm: Kind, budget: float) -> dict[int, Point]:
        """An arm's points at each seed's own best rate by validation."""
        own = self._by_arm.get((arm.name, budget), [])
        return {point.seed: point for point in own if self.evidence.is_chosen(point)}

    def configurations(self, arm: Kind) -> dict[tuple[float, float], dict[int, Point]]:
        """(rate, budget) to the points by seed: all that was measured of an arm."""
        found: dict[tuple[float, float], dict[int, Point]] = {}
        for budget in self.budgets:
            for point in self._by_arm.get((arm.name, budget), []):
                found.setdefault((point.learning_rate, budget), {})[point.seed] = point
        return found

    def common_budget(self, *arms: Kind) -> float:
        """The largest budget that all arms have reached with enough seeds.

        Raises:
            TooThin: an arm has no finished best rate, or there is no such budget.
        """
        for arm in arms:
            if not self.evidence.best.get(arm.name):
                raise TooThin(f"{arm.name} has no seed whose rates have all ended")
        fewest = {b: min(len(self.points(arm, b)) for arm in arms) for b in self.budgets}
        enough = [budget for budget, seeds in fewest.items() if seeds >= MIN_SEEDS]
        if not enough:
            most = count(max(fewest.values(), default=0), "seed")
            names = " and ".join(arm.name for arm in arms)
            raise TooThin(f"{names}: at most {most} at any budget; {MIN_SEEDS} are needed")
        return max(enough)

    def scores(
        self, results: Mapping[int, Mapping[str, TaskResult]], measure: str, who: str
    ) -> Scores:
        """A measure from results by seed and task; seeds with gaps are left out.

        Raises:
            TooThin: no seed has every task of the measure, or its items differ.
        """
        return self.scores_on(self.tasks(measure), results, f"{measure} of {who}")

    def scores_on(
        self, tasks: Sequence[str], results: Mapping[int, Mapping[str, TaskResult]], what: str
    ) -> Scores:
        """The scores on tasks from results by seed and task; seeds with gaps are left out.

        Args:
            tasks: Names of the results.
            results: By seed.
            what: What it is, in words.

        Raises:
            TooThin: as `scores`.
        """
        whole = {s: r for s, r in results.items() if all(task in r for task in tasks)}
        if not whole:
            raise TooThin(f"{what} was not measured ({', '.join(tasks)})")
        tables, items, bounded = {}, {}, set()
        for task in tasks:
            read = [self._items(own[task]) for own in whole.values()]
            if len({indices for indices, _, _ in read}) > 1:
                raise TooThin(f"{task} was measured on different items; measure both on the same")
            if not read[0][0]:
                raise TooThin(f"{what} holds no items of {task}; measure it again")
            tables[task] = np.stack([values for _, values, _ in read])
            items[task] = read[0][0]
            if all(within for _, _, within in read):
                bounded.add(task)
        return Scores(tables, items, frozenset(bounded), tuple(whole))

    def arm_scores(self, arm: Kind, budget: float, measure: str) -> Scores:
        """A measure of an arm at each seed's best rate.

        Raises:
            TooThin: as `scores`.
        """
        points = self.points(arm, budget)
        return self.scores({s: p.results for s, p in points.items()}, measure, arm.name)

    def base_scores(self, measure: str, seeds: Sequence[int] | None = None) -> Scores:
        """A measure of the base under every seed, which it has not; null: the recipe's seeds.

        Raises:
            TooThin: as `scores`.
        """
        results = dict.fromkeys(seeds or self.evidence.recipe.seeds, self.evidence.base)
        return self.scores(results, measure, "the base")

    def contrast(self, terms: Sequence[tuple[float, Scores]]) -> Contrast:
        """A weighted sum of scores, paired by seed and by item; see `combined`.

        Raises:
            TooThin: too few common seeds or items, or items differ.
        """
        return combined([(weight, own, "") for weight, own in terms])

    def difference(self, first: Kind, second: Kind, measure: str, budget: float) -> Contrast:
        """Score of the first arm minus that of the second, tuned; positive: the first is better.

        Raises:
            TooThin: as `contrast` and `scores`.
        """
        sides = [self.arm_scores(arm, budget, measure) for arm in (first, second)]
        return self.contrast([(1.0, sides[0]), (-1.0, sides[1])])

    def gain(self, arm: Kind, measure: str, budget: float) -> Contrast:
        """Score of an arm minus the base's, tuned; forgetting is minus its gain.

        Raises:
            TooThin: as `contrast` and `scores`.
        """
        tuned = self.arm_scores(arm, budget, measure)
        return self.contrast([(1.0, tuned), (-1.0, self.base_scores(measure))])

    def change(self, arm: Kind, measure: str, early: float, late: float) -> Contrast:
        """Score of an arm at a later budget minus that at an earlier one.

        Raises:
            TooThin: as `contrast` and `scores`.
        """
        sides = [self.arm_scores(arm, budget, measure) for budget in (late, early)]
        return self.contrast([(1.0, sides[0]), (-1.0, sides[1])])

    def remember(self, result: TaskResult, indices: tuple[int, ...], values: NDArray[Any]) -> None:
        """Take a result's items as given: shares of right, one an index, in order."""
        self._read[id(result)] = (indices, values, True)

    def _items(self, result: TaskResult) -> tuple[tuple[int, ...], NDArray[Any], bool]:
        """Indices and values of a result's items, higher better; whether they are bounded."""
        known = self._read.get(id(result))
        if known is None:
            metric = leading(result)
            sign = 1.0 if result.metrics[metric].higher_is_better else -1.0
            table = linearised(result, metric)
            indices = tuple(sorted(table))
            values = np.array([table[index] for index in indices])
            within = metric not in RATIO_FIELDS and bool(((values >= 0) & (values <= 1)).all())
            known = self._read[id(result)] = (indices, sign * values, within)
        return known


def combined(terms: Sequence[tuple[float, Scores, str]]) -> Contrast:
    """A weighted sum of scores, paired by seed and by item.

    Args:
        terms: Weight, scores, and where they were measured: items of one task in one place
            are the same ones and are paired; others are independent. A measure of several
            tasks is their plain mean.

    Raises:
        TooThin: too few common seeds, fewer than 50 items in all, or items differ.
    """
    seeds = sorted(set.intersection(*(set(own.seeds) for _, own, _ in terms)))
    if len(seeds) < MIN_SEEDS:
        few = count(len(seeds), "seed")
        raise TooThin(f"{few} measured for everything compared; {MIN_SEEDS} are needed")
    tables: dict[tuple[str, str], NDArray[Any]] = {}
    items: dict[tuple[str, str], tuple[int, ...]] = {}
    points: dict[tuple[str, str], float] = {}
    for weight, own, place in terms:
        share = weight / len(own.tables)
        for task, table in own.rows(seeds).items():
            key = (place, task)
            if items.setdefault(key, own.items[task]) != own.items[task]:
                raise TooThin(f"{task} was measured on different items; measure both on the same")
            tables[key] = tables.get(key, np.zeros_like(table)) + share * table
            point = abs(share) if task in own.bounded else 0.0
            points[key] = max(points.get(key, 0.0), point)
    n = sum(len(own) for own in items.values())
    if n < MIN_ITEMS or min(len(own) for own in items.values()) < 2:
        raise TooThin(f"{count(n, 'item')} measured; {MIN_ITEMS} are needed")
    return crossed(list(tables.values()), [points[key] for key in tables])


def linearised(result: TaskResult, metric: str) -> dict[int, float]:
    """Values an item whose mean is the score and whose spread gives its error.

    A ratio R = sum x / sum t becomes R + (x_i - R t_i) / mean t (Cochran 1977, 6.4); a mean
    is its items.
    """
    if metric not in RATIO_FIELDS:
        return result.values(metric)
    sums = result.sums(metric)
    below = sum(bottom for _, bottom in sums.values())
    ratio = sum(top for top, _ in sums.values()) / below
    average = below / len(sums)
    return {i: ratio + (top - ratio * bottom) / average for i, (top, bottom) in sums.items()}
