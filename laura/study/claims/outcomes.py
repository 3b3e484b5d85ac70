"""Claims about what arms learn and forget: differences of scores, paired by item and seed.

Two questions, never mixed. *Tuned*: each arm at each seed's own best rate by validation, at
the largest budget that all arms compared have reached with three seeds. *Equal learning*:
the fronts over all rates and budgets (`front.py`). Learning is the leading learning task;
forgetting is the mean of the accuracies, or else the first forgetting task. "LoRA" is the
plain arm on all modules with the highest rank, others are shown beside it. The last three
set one setting beside another: code beside math, instruction beside pretraining.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from laura.results.statistics import MARGIN, Contrast, TooThin
from laura.results.units import budget_text
from laura.study.claims.capability import (
    below_ceiling,
    learnt,
    off_floor,
    off_floor_somewhere,
    tuned,
)
from laura.study.claims.front import equal_learning
from laura.study.claims.settings import (
    DROPOUTS,
    FORGETTING,
    LEARNING,
    Kind,
    Scores,
    Setting,
    combined,
)
from laura.study.claims.verdicts import Statement

BALANCED_RANK = 16
DOUBLINGS = 2.0  # of the rank, between the lowest and the highest of a trend


def learns_less(setting: Setting) -> list[Statement]:
    """Learning of full minus LoRA is above 0, tuned."""
    full, (chosen, *others) = setting.full(), setting.loras()
    return [
        learnt_more(setting, full, chosen),
        *_beside(others, lambda lora: learnt_more(setting, full, lora)),
    ]


def forgets_less(setting: Setting) -> list[Statement]:
    """Forgetting of full minus LoRA is above 0, tuned; both have learnt something."""
    full, (chosen, *others) = setting.full(), setting.loras()
    return [
        forgot_more(setting, full, chosen),
        *_beside(others, lambda lora: forgot_more(setting, full, lora)),
    ]


def forgets_less_at_equal_learning(setting: Setting) -> list[Statement]:
    """Forgetting of full minus LoRA at equal learning is above 0."""
    return [at_equal_learning(setting, setting.full(), setting.lora())]


def same_tradeoff(setting: Setting) -> list[Statement]:
    """Forgetting of full minus LoRA at equal learning is within 2 points of 0."""
    if setting.unit(FORGETTING) != "share":
        raise TooThin("forgetting is not a share of right answers, so points mean nothing")
    return [at_equal_learning(setting, setting.full(), setting.lora(), -MARGIN, MARGIN)]


def stronger_than_regularisers(setting: Setting) -> list[Statement]:
    """LoRA forgets less than full with weight decay and than full with dropout, each tuned.

    Full arms with weight decay toward zero above the plain one's, or with dropout, not
    trained on replay and with no layer frozen. The statement names both kinds, so without
    an arm of each it cannot be judged. Decay toward the base (L2-SP) is not what it speaks
    of, and stands beside it.
    """
    lora, plain = setting.lora(), setting.full()
    arms, beside = _regularised(setting, plain)
    return [
        *(forgot_more(setting, arm, lora, part=arm.name) for arm in arms),
        *_beside(beside, lambda arm: forgot_more(setting, arm, lora)),
    ]


def all_above_mlp_above_attention(setting: Setting) -> list[Statement]:
    """Learning, tuned: all modules above mlp, mlp above attention, at the highest common rank."""
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


def rank_moves_along(setting: Setting) -> list[Statement]:
    """Learning and forgetting both rise with LoRA's rank: slopes a doubling, over all ranks.

    Least squares over the logarithms of the ranks of plain LoRA arms on all modules at one
    rule of alpha, tuned; a slope does not depend on where the list of ranks ends.
    """
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


def rank_16_is_a_balance(setting: Setting) -> list[Statement]:
    """LoRA with r = 16 on all modules learns no less than the highest rank, and forgets no more.

    Both by a margin of 2 points (non-inferiority), tuned, against the highest rank above 16.
    """
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


def four_epochs_or_more(setting: Setting) -> list[Statement]:
    """Learning of LoRA at the first point of four epochs or more, minus that at the last before.

    A contrast named beforehand: to look for the best epoch and then test it on the same
    items would find one too often.
    """
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


def replay_mitigates(setting: Setting) -> list[Statement]:
    """Arms with replay forget less than the same arms without, each tuned with its own rates.

    Of each method the largest fraction. Both must have learnt something.
    """
    if setting.replays_itself:
        raise TooThin("what is replayed is the base's own writing, not source data")
    parts = []
    for plain in (arm for arm in setting.arms if not arm.number("replay")):
        with_replay = [
            arm
            for arm in setting.arms
            if arm.number("replay") and arm.differs_in(plain) == {"replay"}
        ]
        if with_replay:
            arm = max(with_replay, key=lambda one: one.number("replay"))
            parts.append(forgot_more(setting, plain, arm, part=plain.method))
    if not parts:
        raise TooThin("no arm with replay beside the same arm without")
    return parts


def narrows_the_gap_in_math(math: Setting, code: Setting) -> list[Statement]:
    """LoRA reaches a larger share of full's gain in math than in code, in the same regime.

    Contrast: gain(LoRA) / gain(full) in math minus the same in code, by the delta method:
    d(a / b) = (da - (a / b) db) / b. Needs full's gain to be surely above zero in both, or
    the share means nothing; and learning led by measures of one unit, since a share of what
    a loss can fall by is near one long before an accuracy rises.
    """
    units = [setting.unit(LEARNING) for setting in (math, code)]
    if units[0] != units[1]:
        raise TooThin(f"learning is in {units[0]} in math and in {units[1]} in code")
    terms: list[tuple[float, Scores, str]] = []
    names: list[str] = []
    for setting, sign in ((math, 1.0), (code, -1.0)):
        full, lora = setting.full(), setting.lora()
        tuned(setting, full, lora)
        budget = setting.common_budget(full, lora)
        whole, part = (setting.gain(arm, LEARNING, budget) for arm in (full, lora))
        if whole.interval()[0] <= 0:
            raise TooThin(f"{setting.name}: full finetuning did not surely learn")
        share = part.value / whole.value
        base = setting.base_scores(LEARNING)
        for arm, weight in ((lora, 1 / whole.value), (full, -share / whole.value)):
            own = setting.arm_scores(arm, budget, LEARNING)
            terms.append((sign * weight, own, setting.name))
            terms.append((-sign * weight, base, setting.name))
        names += [lora.name, full.name]
    # The linear part gives the error; its value is 0 by construction, the shares' is not.
    error = combined(terms)
    value = _share(math) - _share(code)
    effect = Contrast(value, error.parts, error.n, error.seeds)
    return [
        Statement(tuple(names), "share of full's gain, math minus code", effect, "share of gain")
    ]


def _share(setting: Setting) -> float:
    full, lora = setting.full(), setting.lora()
    budget = setting.common_budget(full, lora)
    return setting.gain(lora, LEARNING, budget).value / setting.gain(full, LEARNING, budget).value


def _same_base(first: Setting, second: Setting) -> None:
    bases = [s.evidence.facts["base"].get("fingerprint") for s in (first, second)]
    if bases[0] != bases[1]:
        raise TooThin("the two settings have different bases")


def instruction_improves_more(instruct: Setting, pretrain: Setting) -> list[Statement]:
    """Learning score in code of full finetuning: instruction minus continued pretraining.

    The same task on the same items, and the same base; a held-out loss is not the same
    measure in both regimes, so the leading learning task must be an accuracy. The budgets
    are each setting's largest, as in the paper, and are not equal in tokens.
    """
    (task,) = instruct.tasks(LEARNING)
    if pretrain.tasks(LEARNING) != [task] or not instruct.evidence.measures[task].is_accuracy:
        raise TooThin("no accuracy leads the learning of both, so the regimes share no measure")
    _same_base(instruct, pretrain)
    terms, names = [], []
    for setting, weight in ((instruct, 1.0), (pretrain, -1.0)):
        full = setting.full()
        tuned(setting, full)
        own = setting.arm_scores(full, setting.common_budget(full), LEARNING)
        terms.append((weight, own, "both"))
        names.append(full.name)
    what = f"{task} of full, instruction minus continued pretraining"
    return [Statement(tuple(names), what, combined(terms), instruct.unit(LEARNING))]


def code_forgets_more(code: Setting, math: Setting) -> list[Statement]:
    """Forgetting in code minus math, the mean of full and LoRA, tuned, in the same regime.

    The same source tasks on the same items, and the same base.
    """
    if code.tasks(FORGETTING) != math.tasks(FORGETTING):
        raise TooThin("the two settings measure forgetting by different tasks")
    _same_base(code, math)
    terms: list[tuple[float, Scores, str]] = []
    names: list[str] = []
    for setting, sign in ((code, -1.0), (math, 1.0)):
        arms: list[Kind] = [setting.full(), setting.lora()]
        tuned(setting, *arms)
        budget = setting.common_budget(*arms)
        learnt(setting, budget, *arms)
        off_floor(setting, budget, *arms)
        for arm in arms:
            terms.append((sign / 2, setting.arm_scores(arm, budget, FORGETTING), "both"))
            names.append(arm.name)
    what = "forgetting, code minus math, mean of full and LoRA"
    return [Statement(tuple(names), what, combined(terms), code.unit(FORGETTING))]


def _beside(arms: Sequence[Kind], look: Callable[[Kind], Statement]) -> Iterator[Statement]:
    """Statements on arms that decide nothing; what is missing of them is told among the gaps."""
    for arm in arms:
        try:
            yield replace(look(arm), decides=False)
        except TooThin:
            continue


def forgot_more(setting: Setting, first: Kind, second: Kind, *, part: str = "") -> Statement:
    """Forgetting of the first arm minus the second's, each tuned."""
    tuned(setting, first, second)
    budget = setting.common_budget(first, second)
    learnt(setting, budget, first, second)
    floor = off_floor(setting, budget, first, second)
    more = setting.difference(second, first, FORGETTING, budget)
    what = f"forgetting of {first.name} minus {second.name} at {budget_text(budget)}"
    if floor:
        what += f" ({floor} is at guessing and may have lost more)"
    return Statement((first.name, second.name), what, more, setting.unit(FORGETTING),
                     part=part)  # fmt: skip


def at_equal_learning(
    setting: Setting,
    first: Kind,
    second: Kind,
    low: float = 0.0,
    high: float = math.inf,
    *,
    part: str = "",
) -> Statement:
    """Forgetting of the first arm minus the second's at equal learning."""
    tuned(setting, first, second)
    found = equal_learning(setting, first, second)
    off_floor(setting, max(setting.budgets))
    off_floor_somewhere(setting, first, second)
    what = f"forgetting of {first.name} minus {second.name} at equal learning"
    return Statement((first.name, second.name), what, found.difference, setting.unit(FORGETTING),
                     low, high, part=part)  # fmt: skip


def learnt_more(setting: Setting, first: Kind, second: Kind, *, part: str = "") -> Statement:
    """Learning of the first arm minus the second's, each tuned."""
    tuned(setting, first, second)
    budget = setting.common_budget(first, second)
    below_ceiling(setting, budget, first, second)
    more = setting.difference(first, second, LEARNING, budget)
    what = f"learning of {first.name} minus {second.name} at {budget_text(budget)}"
    return Statement((first.name, second.name), what, more, setting.unit(LEARNING), part=part)


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
