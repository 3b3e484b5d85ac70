"""Arms and their seeds taken together; which arms belong beside one another.

That is told from their settings, never from their names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from laura.recipe.remedies import PLACES
from laura.report import formats
from laura.report.samples.find import BASE
from laura.results.schema import ArmRow, PointRow, Summary
from laura.results.statistics import Estimate, over_seeds

DROPOUTS = ("attention_dropout", "residual_dropout")
MOST_DRAWN = 4  # arms that a chart with several lines for each can hold
# What a setting is where it is not used; any other is null, false or 0 there.
PLAIN = {"targets": "all", "init": "default", "lora_plus_ratio": 1, "weight_decay_toward": "zero"}
# What every arm of LoRA has, and what says nothing about how an arm was trained.
NO_VARIATION = {"rank", "alpha", "external"}


@dataclass(frozen=True)
class Group:
    """The seeds of one arm at one budget: at one rate, or each at its own best.

    Without points it is the base, or an arm that was not measured.
    """

    summary: Summary
    arm: str
    budget: float | None = None
    points: tuple[PointRow, ...] = ()

    @property
    def is_base(self) -> bool:
        """Whether it is the base, whose scores it has; an arm may be called so too."""
        return self.arm == BASE and not self.points

    @property
    def learning_rate(self) -> float:
        """The rate of a group at one rate; the first seed's where they differ."""
        return self.points[0].learning_rate

    @property
    def rate(self) -> str:
        """The rate in words, or the rates where seeds differ."""
        return formats.rates([point.learning_rate for point in self.points]) or formats.ABSENT

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest one tried."""
        edges = [arm.edge for arm in self.summary.arms if arm.name == self.arm]
        return bool(self.points) and any(edges)

    @property
    def marked_rate(self) -> str:
        """The rate, with a star at the end of the range."""
        return f"{self.rate} *" if self.at_edge else self.rate

    @property
    def tokens(self) -> float:
        """Tokens trained on, the mean over seeds."""
        return math.fsum(point.tokens for point in self.points) / len(self.points)

    @property
    def seeds(self) -> list[int]:
        """Seeds, rising."""
        return sorted({point.seed for point in self.points})

    @property
    def runs(self) -> str:
        """IDs of the runs, in the order of their seeds."""
        return ", ".join(p.run for p in sorted(self.points, key=lambda point: point.seed))

    @property
    def facts(self) -> dict[str, str]:
        """What a table says of every group."""
        return {
            "arm": self.arm,
            "rate": self.rate,
            "seeds": formats.seeds(self.seeds),
            "budget": formats.budget_of(self.summary, self.budget),
            "run": self.runs,
        }

    def value(self, name: str) -> Estimate | None:
        """Score over the seeds that have one; the base's own."""
        if self.is_base:
            return self.summary.base.scores.get(name)
        return self._over_seeds(lambda point: point.scores.get(name))

    def change(self, name: str) -> Estimate | None:
        """Tuned minus base over the seeds that have it."""
        return self._over_seeds(lambda point: self.summary.change(point, name))

    def _over_seeds(self, read: Callable[[PointRow], Estimate | None]) -> Estimate | None:
        found = [estimate for estimate in map(read, self.points) if estimate is not None]
        return over_seeds(found) if found else None


def places(summary: Summary) -> dict[str, int]:
    """The arms' order."""
    return {arm.name: place for place, arm in enumerate(summary.arms)}


def groups(summary: Summary, selected: bool = False) -> list[Group]:
    """Points by arm, rate and budget; ordered as the arms, then by these.

    Args:
        summary: The study.
        selected: Every arm with each seed at its own best rate, one group a budget.
    """
    found: dict[tuple[str, float, float], list[PointRow]] = {}
    for point in summary.points:
        if point.selected or not selected:
            rate = 0.0 if selected else point.learning_rate
            found.setdefault((point.arm, rate, point.budget), []).append(point)
    order = places(summary)
    keys = sorted(found, key=lambda key: (order.get(key[0], len(order)), key))
    return [Group(summary, key[0], key[2], tuple(found[key])) for key in keys]


def final_groups(summary: Summary) -> dict[str, Group]:
    """Every arm at its best learning rate and the largest budget it reached."""
    return {group.arm: group for group in groups(summary, selected=True)}


def setting(arm: ArmRow, name: str) -> float:
    """A setting that is a number; 0 where it is absent, null or no number."""
    value = arm.settings.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def remedies(arm: ArmRow) -> list[str]:
    """The remedies of `recipe/remedies.py` that an arm names, in words."""
    told = []
    for place in PLACES:
        if name := arm.settings.get(place):
            strength = arm.settings.get(f"{place}_strength")
            more = "" if strength is None else f" {strength:g}"
            told.append(f"{place.replace('_', ' ')} {formats.words(name)}{more}")
    return told


def regulariser(arm: ArmRow) -> str:
    """What holds an arm back, in words."""
    told = []
    if decay := setting(arm, "weight_decay"):
        base = arm.settings.get("weight_decay_toward") == "base"
        told.append(f"weight decay {decay:g} toward {'the base (L2-SP)' if base else 'zero'}")
    for name in (*DROPOUTS, "dropout"):
        if share := setting(arm, name):
            told.append(f"{name.replace('_', ' ')} {share:g}")
    told += remedies(arm)
    if arm.method == "lora":
        told.insert(0, f"low rank {setting(arm, 'rank'):g}")
    return ", ".join(told) or "nothing"


def regularised(summary: Summary) -> dict[str, str]:
    """Full finetuning that is held back and the plain arms beside it, and what holds each back.

    Empty where no arm of full finetuning decays its weights, drops activations or has a remedy.
    """
    held = {
        arm.name
        for arm in summary.arms
        if arm.method == "full"
        and any(arm.settings.get(name) for name in ("weight_decay", *PLACES, *DROPOUTS))
    }
    if not held:
        return {}
    beside = representatives(summary, [a.name for a in summary.arms if a.name not in held])
    return {arm.name: regulariser(arm) for arm in summary.arms if arm.name in {*held, *beside}}


def variations(arm: ArmRow) -> int:
    """In how many settings an arm is more than plain LoRA (alpha 2r) or plain full finetuning."""
    used = [
        name
        for name, value in arm.settings.items()
        if name not in NO_VARIATION and value and value != PLAIN.get(name)
    ]
    return len(used) + (setting(arm, "alpha") != 2 * setting(arm, "rank"))


def representatives(summary: Summary, names: Collection[str] | None = None) -> list[str]:
    """The arms that stand for all where a chart cannot hold every one, at most four.

    The plainest of each method, which is the one with the fewest variations; of LoRA the
    plainest by rank, evenly from the lowest to the highest.

    Args:
        summary: The study.
        names: Arms that there is something to draw of; None for every arm.

    Returns:
        Their names, in the study's order; all where there are at most four.
    """
    arms = [arm for arm in summary.arms if names is None or arm.name in names]
    if len(arms) <= MOST_DRAWN:
        return [arm.name for arm in arms]
    kept: list[ArmRow] = []
    for method in sorted({arm.method for arm in arms}, key=lambda method: method == "lora"):
        own = [arm for arm in arms if arm.method == method]
        fewest = min(map(variations, own))
        plain = [arm for arm in own if variations(arm) == fewest]
        if method == "lora":
            by_rank = sorted(plain, key=lambda arm: setting(arm, "rank"))
            most = min(MOST_DRAWN - len(kept), len(plain))
            step = (len(plain) - 1) / max(1, most - 1)
            kept += [by_rank[round(place * step)] for place in range(most)]
        else:
            kept.append(plain[0])
    chosen = {arm.name for arm in kept[:MOST_DRAWN]}
    return [arm.name for arm in arms if arm.name in chosen]


def who_is_drawn(
    drawn: Collection[str], every: Collection[str], whole: str, how: str = "Drawn are"
) -> str:
    """A sentence on the arms that stand for all; empty where all are drawn.

    Args:
        drawn: Their names, see `representatives`.
        every: Names of the arms that there is something to draw of.
        whole: What holds them all, such as "The table below has".
        how: How they are drawn.
    """
    if len(drawn) >= len(every):
        return ""
    return (
        f"{how} {', '.join(drawn)}: the plainest arms of each method, of LoRA by rank. "
        f"{whole} all {len(every)} arms."
    )


def families(summary: Summary, varied: str) -> dict[str, list[ArmRow]]:
    """Arms that differ in this setting alone, under a name of what they share.

    Families of one are left out, and arms whose settings vary in nothing.
    """
    alike: dict[str, list[ArmRow]] = {}
    for arm in summary.arms:
        own = {name: value for name, value in arm.settings.items() if name != varied}
        key = json.dumps([arm.method, own], sort_keys=True, default=str)
        alike.setdefault(key, []).append(arm)
    kept = [
        arms
        for arms in alike.values()
        if len({json.dumps(arm.settings.get(varied)) for arm in arms}) > 1
    ]
    named = {}
    for arms in kept:
        first = arms[0]
        others = [one[0].settings for one in kept if one[0].method == first.method]
        # What is the same for all families of a method says nothing.
        told = [
            f"{name.replace('_', ' ')} {formats.words(value)}"
            for name, value in first.settings.items()
            if name != varied and any(other.get(name) != value for other in others)
        ]
        named[", ".join([first.method, *told])] = arms
    return named


def modules(arm: ArmRow) -> str:
    """Which modules an arm of LoRA adapts, and what else is special about it, in words."""
    told = [formats.words(arm.settings.get("targets", "all"))]
    told += [name for name in ("rslora", "dora") if arm.settings.get(name) is True]
    if arm.settings.get("init") not in (None, "default"):
        told.append(formats.words(arm.settings["init"]))
    told += remedies(arm)
    if (alpha := setting(arm, "alpha")) != 2 * (rank := setting(arm, "rank")):
        told.append(f"alpha {alpha / rank:g}r")
    for name in ("protect", "lora_plus_ratio", "replay", "weight_decay", "dropout"):
        value = setting(arm, name)
        told += [f"{name.replace('_', ' ')} {value:g}"] if value not in (0, 1) else []
    return ", ".join(told)


def adapted(summary: Summary) -> dict[str, str]:
    """Arms of LoRA and their `modules`; empty where they differ neither in rank nor in these."""
    arms = [arm for arm in summary.arms if arm.method == "lora" and setting(arm, "rank")]
    told = {arm.name: modules(arm) for arm in arms}
    several = len({setting(arm, "rank") for arm in arms}) > 1 or len(set(told.values())) > 1
    return told if several else {}
