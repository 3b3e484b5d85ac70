"""Claims about what arms learn and forget: differences of scores, paired by item and seed.

Two questions, never mixed. *Tuned*: each arm at each seed's own best rate by validation, at
the largest budget that all arms compared have reached with three seeds. *Equal learning*:
the fronts over all rates and budgets (`front.py`). Learning is the leading learning task;
forgetting is the mean of the accuracies, or else the first forgetting task. "LoRA" is the
plain arm on all modules with the highest rank, others are shown beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from laura.results.statistics import MARGIN, TooThin
from laura.study.claims.capability import (
    below_ceiling,
    learnt,
    off_floor,
    off_floor_somewhere,
    tuned,
)
from laura.study.claims.front import equal_learning
from laura.study.claims.settings import DROPOUTS, FORGETTING, LEARNING, Kind, Setting
from laura.study.claims.verdicts import Finding, Statement, look_at_each

BALANCED_RANK = 16
DOUBLINGS = 2.0  # of the rank, between the lowest and the highest of a trend


def learns_less_in_code(settings: Sequence[Setting]) -> Finding:
    """Learning of full minus LoRA is above 0, tuned, in settings of code."""
    return look_at_each(settings, _learning_gap, lambda s: s.domain == "code", "setting of code")


def learns_less_elsewhere(settings: Sequence[Setting]) -> Finding:
    """Learning of full minus LoRA is above 0, tuned, in settings of other domains."""
    return look_at_each(
        settings, _learning_gap, lambda s: s.domain != "code", "setting of a domain but code"
    )


def forgets_less(settings: Sequence[Setting]) -> Finding:
    """Forgetting of full minus LoRA is above 0, tuned; both have learnt something."""

    def look(setting: Setting) -> list[Statement]:
        full, (chosen, *others) = setting.full(), setting.loras()
        parts = [_forgot_more(setting, full, chosen)]
        for lora in others:
            try:
                parts.append(_forgot_more(setting, full, lora, decides=False))
            except TooThin:
                continue  # it decides nothing; what is missing is told among the gaps
        return parts

    return look_at_each(settings, look)


def forgets_less_at_equal_learning(settings: Sequence[Setting]) -> Finding:
    """Forgetting of full minus LoRA at equal learning is above 0."""
    return look_at_each(settings, lambda setting: [_at_equal_learning(setting, 0.0, math.inf)])


def same_tradeoff(settings: Sequence[Setting]) -> Finding:
    """Forgetting of full minus LoRA at equal learning is within 2 points of 0."""

    def look(setting: Setting) -> list[Statement]:
        if setting.unit(FORGETTING) != "share":
            raise TooThin("forgetting is not a share of right answers, so points mean nothing")
        return [_at_equal_learning(setting, -MARGIN, MARGIN)]

    return look_at_each(settings, look)


def stronger_than_regularisers(settings: Sequence[Setting]) -> Finding:
    """LoRA forgets less than full with weight decay and than full with dropout, each tuned.

    Full arms with weight decay toward zero above the plain one's, or with dropout, not
    trained on replay and with no layer frozen. The statement names both kinds, so without
    an arm of each it cannot be judged. Decay toward the base (L2-SP) is not what it speaks
    of, and stands beside it.
    """

    def look(setting: Setting) -> list[Statement]:
        lora, plain = setting.lora(), setting.full()
        arms, beside = _regularised(setting, plain)
        parts = [_forgot_more(setting, arm, lora, part=arm.name) for arm in arms]
        for arm in beside:
            try:
                parts.append(_forgot_more(setting, arm, lora, decides=False))
            except TooThin:
                continue
        return parts

    return look_at_each(settings, look)


def all_above_mlp_above_attention(settings: Sequence[Setting]) -> Finding:
    """Learning, tuned: all modules above mlp, mlp above attention, at the highest common rank."""

    def look(setting: Setting) -> list[Statement]:
        ranks: dict[int, dict[str, Kind]] = {}
        for arm in setting.loras():
            if arm.targets:
                ranks.setdefault(arm.rank, {}).setdefault(arm.targets, arm)
        whole = {rank: by for rank, by in ranks.items() if len(by) == 3}
        if not whole:
            raise TooThin("no rank at which LoRA on all, mlp and attention modules was run")
        arms = whole[max(whole)]
        tuned(setting, *arms.values())
        budget = setting.common_budget(*arms.values())
        return [
            Statement((arms[more].name, arms[less].name),
                      f"learning of {more} minus {less} modules",
                      setting.difference(arms[more], arms[less], LEARNING, budget),
                      setting.unit(LEARNING), part=more)
            for more, less in (("all", "mlp"), ("mlp", "attention"))
        ]  # fmt: skip

    return look_at_each(settings, look)


def rank_moves_along(settings: Sequence[Setting]) -> Finding:
    """Learning and forgetting both rise with LoRA's rank: slopes a doubling, over all ranks.

    Least squares over the logarithms of the ranks of plain LoRA arms on all modules at one
    rule of alpha, tuned; a slope does not depend on where the list of ranks ends.
    """

    def look(setting: Setting) -> list[Statement]:
        high = setting.lora()
        arms = [a for a in setting.loras() if a.differs_in(high) <= {"rank", "alpha"}
                and a.number("alpha") / a.rank == high.number("alpha") / high.rank]  # fmt: skip
        logs = [math.log2(arm.rank) for arm in arms]
        if max(logs) - min(logs) < DOUBLINGS:
            raise TooThin("the ranks of LoRA are less than a factor of four apart")
        tuned(setting, *arms)
        budget = setting.common_budget(*arms)
        learnt(setting, budget, high)
        middle = sum(logs) / len(logs)
        below = sum((log - middle) ** 2 for log in logs)
        weights = [(log - middle) / below for log in logs]
        names = tuple(arm.name for arm in arms)
        parts = []
        for measure, sign in ((LEARNING, 1.0), (FORGETTING, -1.0)):
            slope = setting.contrast(
                [(sign * w, setting.arm_scores(a, budget, measure))
                 for w, a in zip(weights, arms, strict=True)]
            )  # fmt: skip
            what = f"{measure} a doubling of the rank"
            parts.append(Statement(names, what, slope, setting.unit(measure), part=measure))
        return parts

    return look_at_each(settings, look)


def rank_16_is_a_balance(settings: Sequence[Setting]) -> Finding:
    """LoRA with r = 16 on all modules learns no less than the highest rank, and forgets no more.

    Both by a margin of 2 points (non-inferiority), tuned, against the highest rank above 16.
    """

    def look(setting: Setting) -> list[Statement]:
        high = setting.lora()
        alike = [a for a in setting.loras() if a.differs_in(high) <= {"rank", "alpha"}]
        middle = [arm for arm in alike if arm.rank == BALANCED_RANK]
        if not middle or high.rank <= BALANCED_RANK:
            raise TooThin("no LoRA arm of rank 16 on all modules beside one of a higher rank")
        if {setting.unit(m) for m in (LEARNING, FORGETTING)} != {"share"}:
            raise TooThin("learning or forgetting is no share of right answers")
        arm = middle[0]
        tuned(setting, arm, high)
        budget = setting.common_budget(arm, high)
        learnt(setting, budget, arm, high)
        pair = f"{arm.name} minus {high.name}"
        less = setting.difference(arm, high, LEARNING, budget)
        kept = setting.difference(arm, high, FORGETTING, budget)
        return [
            Statement((arm.name, high.name), f"learning of {pair}", less, "share", -MARGIN,
                      part="learning"),
            Statement((arm.name, high.name), f"score kept of {pair}", kept, "share", -MARGIN,
                      part="forgetting"),
        ]  # fmt: skip

    return look_at_each(settings, look)


def four_epochs_or_more(settings: Sequence[Setting]) -> Finding:
    """Learning of LoRA at the first point of four epochs or more, minus that at the last before.

    A contrast named beforehand: to look for the best epoch and then test it on the same
    items would find one too often.
    """

    def look(setting: Setting) -> list[Statement]:
        if setting.evidence.recipe.budget.epochs is None:
            raise TooThin("the budget is not in epochs")
        lora = setting.lora()
        before = [b for b in setting.budgets if b < 4]
        after = [b for b in setting.budgets if b >= 4]
        if not before or not after:
            raise TooThin("there are no budget points on both sides of four epochs")
        tuned(setting, lora)
        early, late = before[-1], after[0]
        learnt(setting, late, lora)
        gained = setting.change(lora, LEARNING, early, late)
        what = f"learning of {lora.name} at {late:g} epochs minus {early:g}"
        return [Statement((lora.name,), what, gained, setting.unit(LEARNING))]

    return look_at_each(
        settings, look, lambda s: s.regime == "instruct", "setting of instruction finetuning"
    )


def replay_mitigates(settings: Sequence[Setting]) -> Finding:
    """Arms with replay forget less than the same arms without, each tuned with its own rates.

    Of each method the largest fraction. Both must have learnt something.
    """

    def look(setting: Setting) -> list[Statement]:
        parts = []
        for plain in (arm for arm in setting.arms if not arm.number("replay")):
            with_replay = [
                arm
                for arm in setting.arms
                if arm.number("replay") and arm.differs_in(plain) == {"replay"}
            ]
            if with_replay:
                arm = max(with_replay, key=lambda one: one.number("replay"))
                parts.append(_forgot_more(setting, plain, arm, part=plain.method))
        if not parts:
            raise TooThin("no arm with replay beside the same arm without")
        return parts

    return look_at_each(settings, look)


def _learning_gap(setting: Setting) -> list[Statement]:
    full, (chosen, *others) = setting.full(), setting.loras()
    tuned(setting, full, chosen)
    below_ceiling(setting, setting.common_budget(full, chosen), full, chosen)

    def gap(lora: Kind, decides: bool) -> Statement:
        budget = setting.common_budget(full, lora)
        more = setting.difference(full, lora, LEARNING, budget)
        what = f"learning of {full.name} minus {lora.name} at {budget:,g}"
        return Statement((full.name, lora.name), what, more, setting.unit(LEARNING),
                         decides=decides)  # fmt: skip

    parts = [gap(chosen, True)]
    for lora in others:
        try:
            parts.append(gap(lora, False))
        except TooThin:
            continue  # it decides nothing; what is missing is told among the gaps
    return parts


def _forgot_more(
    setting: Setting, first: Kind, second: Kind, *, part: str = "", decides: bool = True
) -> Statement:
    """Forgetting of the first arm minus the second's, each tuned."""
    tuned(setting, first, second)
    budget = setting.common_budget(first, second)
    learnt(setting, budget, first, second)
    floor = off_floor(setting, budget, first, second)
    more = setting.difference(second, first, FORGETTING, budget)
    what = f"forgetting of {first.name} minus {second.name} at {budget:,g}"
    if floor:
        what += f" ({floor} is at guessing and may have lost more)"
    return Statement((first.name, second.name), what, more, setting.unit(FORGETTING),
                     decides=decides, part=part)  # fmt: skip


def _at_equal_learning(setting: Setting, low: float, high: float) -> Statement:
    full, lora = setting.full(), setting.lora()
    tuned(setting, full, lora)
    found = equal_learning(setting, full, lora)
    off_floor(setting, max(setting.budgets))
    off_floor_somewhere(setting, full, lora)
    what = f"forgetting of {full.name} minus {lora.name} at equal learning"
    return Statement((full.name, lora.name), what, found.difference, setting.unit(FORGETTING),
                     low, high)  # fmt: skip


def _regularised(setting: Setting, plain: Kind) -> tuple[list[Kind], list[Kind]]:
    """Full arms with weight decay toward zero and with dropout, and those toward the base."""
    found: dict[str, list[Kind]] = {"weight decay": [], "dropout": []}
    beside = []
    for arm in setting.arms:
        changed = arm.differs_in(plain)
        if arm.method != "full" or not changed:
            continue
        if changed == {"weight_decay"} and arm.number("weight_decay") > plain.number(
            "weight_decay"
        ):
            found["weight decay"].append(arm)
        elif changed <= {*DROPOUTS}:
            found["dropout"].append(arm)
        elif changed == {"weight_decay", "weight_decay_toward"}:
            beside.append(arm)
    missing = [kind for kind, arms in found.items() if not arms]
    if missing:
        raise TooThin(f"no arm of full finetuning with {' and none with '.join(missing)}")
    return [arm for arms in found.values() for arm in arms], beside
