"""Claims about what arms learn and forget: differences of scores, paired by item and seed.

Each arm is taken at its own best rate by validation loss, at the largest budget that all
arms compared have reached with three seeds. Learning is the leading learning task;
forgetting is the mean of the accuracies, or else the first forgetting task. "LoRA" is the
plain arm on all modules with the highest rank, others are shown beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from laura.study.claims.settings import FORGETTING, LEARNING, Kind, Setting
from laura.study.claims.verdicts import Finding, Piece, look_at_each
from laura.study.effects import Effect, TooThin


def learns_less_in_code(settings: Sequence[Setting]) -> Finding:
    """Learning of full minus LoRA is above 0, in settings of code."""
    return look_at_each(settings, _learning_gap, lambda s: s.domain == "code", "setting of code")


def learns_less_elsewhere(settings: Sequence[Setting]) -> Finding:
    """Learning of full minus LoRA is above 0, in settings of other domains."""
    return look_at_each(
        settings, _learning_gap, lambda s: s.domain != "code", "setting of a domain but code"
    )


def forgets_less(settings: Sequence[Setting]) -> Finding:
    """Score of LoRA minus full on the forgetting tasks is above 0."""

    def look(setting: Setting) -> list[Piece]:
        return _against_full(setting, FORGETTING, 1.0, "forgetting of {full} minus {lora}")

    return look_at_each(settings, look)


def stronger_than_regularisers(settings: Sequence[Setting]) -> Finding:
    """LoRA forgets less than every regularised full arm there is.

    Full arms with weight decay above the plain one's (toward zero or the base) or with
    dropout, not trained on replay and with no layer frozen. The statement names both kinds,
    so without an arm of each it is too thin.
    """

    def look(setting: Setting) -> list[Piece]:
        lora, arms = setting.lora(), _regularised(setting)
        budget = setting.common_budget(lora, *arms)
        return [
            Piece((arm.name, lora.name), f"forgetting of {arm.name} minus {lora.name}",
                  setting.difference(lora, arm, FORGETTING, budget), setting.unit(FORGETTING))
            for arm in arms
        ]  # fmt: skip

    return look_at_each(settings, look)


def all_above_mlp_above_attention(settings: Sequence[Setting]) -> Finding:
    """Learning: all modules above mlp, and mlp above attention, at the highest common rank."""

    def look(setting: Setting) -> list[Piece]:
        ranks: dict[int, dict[str, Kind]] = {}
        for arm in setting.loras():
            if arm.targets:
                ranks.setdefault(arm.rank, {}).setdefault(arm.targets, arm)
        whole = {rank: by for rank, by in ranks.items() if len(by) == 3}
        if not whole:
            raise TooThin("no rank at which LoRA on all, mlp and attention modules was run")
        arms = whole[max(whole)]
        budget = setting.common_budget(*arms.values())
        return [
            Piece((arms[more].name, arms[less].name), f"learning of {more} minus {less} modules",
                  setting.difference(arms[more], arms[less], LEARNING, budget),
                  setting.unit(LEARNING))
            for more, less in (("all", "mlp"), ("mlp", "attention"))
        ]  # fmt: skip

    return look_at_each(settings, look)


def rank_moves_along(settings: Sequence[Setting]) -> Finding:
    """The highest rank learns more than the lowest, and forgets more; other settings equal."""

    def look(setting: Setting) -> list[Piece]:
        high = setting.lora()
        alike = [a for a in setting.loras() if a.differs_in(high) <= {"rank", "alpha"}]
        low = min(alike, key=lambda arm: arm.rank)
        if low.rank == high.rank:
            raise TooThin("LoRA was run at one rank only")
        budget = setting.common_budget(high, low)
        learnt = setting.difference(high, low, LEARNING, budget)
        forgot = setting.difference(high, low, FORGETTING, budget).scaled(-1.0)
        names, pair = (high.name, low.name), f"rank {high.rank} minus rank {low.rank}"
        return [
            Piece(names, f"learning of {pair}", learnt, setting.unit(LEARNING)),
            Piece(names, f"forgetting of {pair}", forgot, setting.unit(FORGETTING)),
        ]

    return look_at_each(settings, look)


def four_epochs_or_more(settings: Sequence[Setting]) -> Finding:
    """Learning of LoRA at the first point of four epochs or more, minus that at the last before.

    A contrast named beforehand: to look for the best epoch and then test it on the same
    items would find one too often.
    """

    def look(setting: Setting) -> list[Piece]:
        if setting.evidence.recipe.budget.epochs is None:
            raise TooThin("the budget is not in epochs")
        lora = setting.lora()
        before = [b for b in setting.budgets if b < 4]
        after = [b for b in setting.budgets if b >= 4]
        if not before or not after:
            raise TooThin("there are no budget points on both sides of four epochs")
        early, late = before[-1], after[0]
        effect = setting.change(lora, LEARNING, early, late)
        what = f"learning of {lora.name} at {late:g} epochs minus {early:g}"
        return [Piece((lora.name,), what, effect, setting.unit(LEARNING))]

    return look_at_each(
        settings, look, lambda s: s.regime == "instruct", "setting of instruction finetuning"
    )


def replay_mitigates(settings: Sequence[Setting]) -> Finding:
    """An arm with replay forgets less than the same arm without; the largest fraction of each."""

    def look(setting: Setting) -> list[Piece]:
        pieces = []
        for plain in (arm for arm in setting.arms if not arm.number("replay")):
            with_replay = [
                arm
                for arm in setting.arms
                if arm.number("replay") and arm.differs_in(plain) == {"replay"}
            ]
            if not with_replay:
                continue
            arm = max(with_replay, key=lambda one: one.number("replay"))
            budget = setting.common_budget(plain, arm)
            what = f"forgetting of {plain.name} minus {arm.name}"
            effect = setting.difference(arm, plain, FORGETTING, budget)
            pieces.append(Piece((arm.name, plain.name), what, effect, setting.unit(FORGETTING)))
        if not pieces:
            raise TooThin("no arm with replay beside the same arm without")
        return pieces

    return look_at_each(settings, look)


def _learning_gap(setting: Setting) -> list[Piece]:
    return _against_full(setting, LEARNING, -1.0, "learning of {full} minus {lora}")


def _against_full(setting: Setting, measure: str, sign: float, words: str) -> list[Piece]:
    """LoRA minus full, turned by `sign`; the highest rank decides, other arms are shown."""
    full, (chosen, *others) = setting.full(), setting.loras()

    def piece(lora: Kind, decides: bool) -> Piece:
        budget = setting.common_budget(full, lora)
        effect: Effect = setting.difference(lora, full, measure, budget).scaled(sign)
        what = words.format(full=full.name, lora=lora.name) + f" at {budget:,g}"
        return Piece((lora.name, full.name), what, effect, setting.unit(measure), decides=decides)

    pieces = [piece(chosen, True)]
    for lora in others:
        try:
            pieces.append(piece(lora, False))
        except TooThin:
            continue  # it decides nothing; what is missing is told among the gaps
    return pieces


def _regularised(setting: Setting) -> list[Kind]:
    plain = setting.full()
    found: dict[str, list[Kind]] = {"weight decay": [], "dropout": []}
    for arm in setting.arms:
        changed = arm.differs_in(plain)
        more = arm.number("weight_decay") > plain.number("weight_decay")
        if arm.method != "full" or not changed:
            continue
        if more and all("decay" in key for key in changed):
            found["weight decay"].append(arm)
        elif all("dropout" in key for key in changed):
            found["dropout"].append(arm)
    missing = [kind for kind, arms in found.items() if not arms]
    if missing:
        raise TooThin(f"no arm of full finetuning with {' and none with '.join(missing)}")
    return [arm for arms in found.values() for arm in arms]
