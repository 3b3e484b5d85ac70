"""Claims that set one setting beside another: code beside math, instruction beside pretraining."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from laura.results.schema import ClaimRow
from laura.results.statistics import Contrast, TooThin
from laura.study.claims.capability import learnt, off_floor, tuned
from laura.study.claims.settings import FORGETTING, LEARNING, Kind, Scores, Setting, combined
from laura.study.claims.verdicts import Finding, Statement, judged, nothing


def narrows_the_gap_in_math(settings: Sequence[Setting]) -> Finding:
    """LoRA reaches a larger share of full's gain in math than in code, in the same regime.

    Contrast: gain(LoRA) / gain(full) in math minus the same in code, by the delta method:
    d(a / b) = (da - (a / b) db) / b. Needs full's gain to be surely above zero in both, or
    the share means nothing.
    """
    return _look_at_pairs(
        settings, _share_difference,
        lambda a, b: a.domain == "math" and b.domain == "code" and a.regime == b.regime,
        "pair of settings, math and code, in one regime",
    )  # fmt: skip


def instruction_improves_more(settings: Sequence[Setting]) -> Finding:
    """Learning score in code of full finetuning: instruction minus continued pretraining.

    The same task on the same items, and the same base; a held-out loss is not the same
    measure in both regimes, so the leading learning task must be an accuracy. The budgets
    are each setting's largest, as in the paper, and are not equal in tokens.
    """
    return _look_at_pairs(
        settings, _regime_difference,
        lambda a, b: a.domain == b.domain == "code"
        and (a.regime, b.regime) == ("instruct", "pretrain"),
        "pair of settings of code, instruction and continued pretraining",
    )  # fmt: skip


def code_forgets_more(settings: Sequence[Setting]) -> Finding:
    """Forgetting in code minus math, the mean of full and LoRA, tuned, in the same regime.

    The same source tasks on the same items, and the same base.
    """
    return _look_at_pairs(
        settings, _domain_difference,
        lambda a, b: a.domain == "code" and b.domain == "math" and a.regime == b.regime,
        "pair of settings, code and math, in one regime",
    )  # fmt: skip


def _look_at_pairs(
    settings: Sequence[Setting],
    look: Callable[[Setting, Setting], Statement],
    wanted: Callable[[Setting, Setting], bool],
    kind: str,
) -> Finding:
    pairs = [(a, b) for a, b in itertools.permutations(settings, 2) if wanted(a, b)]
    if not pairs:
        return nothing(f"there is no {kind}")
    found: list[tuple[str, list[Statement], list[Setting]]] = []
    silent = []
    for first, second in pairs:
        name = f"{first.name} and {second.name}"
        try:
            found.append((name, [look(first, second)], [first, second]))
        except TooThin as reason:
            silent.append(ClaimRow(setting=name, reason=str(reason)))
    # Two pairs with a setting in common hold the same runs.
    apart = len({id(one) for _, _, pair in found for one in pair}) == 2 * len(found)
    return judged(found, silent, not apart)


def _share_difference(math: Setting, code: Setting) -> Statement:
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
    return Statement(tuple(names), "share of full's gain, math minus code", effect, "share of gain")


def _share(setting: Setting) -> float:
    full, lora = setting.full(), setting.lora()
    budget = setting.common_budget(full, lora)
    return setting.gain(lora, LEARNING, budget).value / setting.gain(full, LEARNING, budget).value


def _same_base(first: Setting, second: Setting) -> None:
    bases = [s.evidence.facts["base"].get("fingerprint") for s in (first, second)]
    if bases[0] != bases[1]:
        raise TooThin("the two settings have different bases")


def _regime_difference(instruct: Setting, pretrain: Setting) -> Statement:
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
    return Statement(tuple(names), what, combined(terms), instruct.unit(LEARNING))


def _domain_difference(code: Setting, math: Setting) -> Statement:
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
    return Statement(tuple(names), what, combined(terms), code.unit(FORGETTING))
