"""Claims that set one setting beside another: code beside math, instruction beside pretraining."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from laura.study.claims.settings import LEARNING, Setting
from laura.study.claims.verdicts import TOO_THIN, Finding, Piece, judge, thin_row
from laura.study.effects import Effect, Term, TooThin, contrast


def narrows_the_gap_in_math(settings: Sequence[Setting]) -> Finding:
    """LoRA reaches a larger share of full's gain in math than in code, in the same regime.

    Effect: gain(LoRA) / gain(full) in math minus the same in code, by the delta method:
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


def _look_at_pairs(
    settings: Sequence[Setting],
    look: Callable[[Setting, Setting], Piece],
    wanted: Callable[[Setting, Setting], bool],
    kind: str,
) -> Finding:
    pairs = [(a, b) for a, b in itertools.permutations(settings, 2) if wanted(a, b)]
    if not pairs:
        return Finding(TOO_THIN, f"there is no {kind}")
    found: list[Piece] = []
    rows, reasons, spoke = [], [], []
    for first, second in pairs:
        name = f"{first.name} and {second.name}"
        try:
            piece = look(first, second)
        except TooThin as reason:
            reasons.append(str(reason))
            rows.append(thin_row(name, str(reason)))
            continue
        found.append(piece)
        spoke.append((first, second))
        rows.append(piece.to_json(name))
    if not found:
        return Finding(TOO_THIN, "; ".join(dict.fromkeys(reasons)), evidence=rows)
    # Two pairs with a setting in common hold the same runs.
    apart = len({id(one) for pair in spoke for one in pair}) == 2 * len(spoke)
    return replace(judge([[piece] for piece in found], not apart), evidence=rows)


def _share_difference(math: Setting, code: Setting) -> Piece:
    terms: list[Term] = []
    names: list[str] = []
    for setting, sign in ((math, 1.0), (code, -1.0)):
        full, lora = setting.full(), setting.lora()
        budget = setting.common_budget(full, lora)
        whole, part = (setting.gain(arm, LEARNING, budget) for arm in (full, lora))
        if not _surely_above_zero(whole):
            raise TooThin(f"{setting.name}: full finetuning did not surely learn")
        share = part.value / whole.value
        weights = {lora: 1 / whole.value, full: -share / whole.value}
        for arm, weight in weights.items():
            terms.append(setting.term(sign * weight, arm, budget, LEARNING))
            terms.append(setting.term(-sign * weight, None, budget, LEARNING))
        names += [lora.name, full.name]
    # The linear part gives the error; its value is 0 by construction, the shares' is not.
    error = contrast(terms)
    value = _share(math) - _share(code)
    effect = Effect(value, error.parts, error.n, error.seeds)
    return Piece(tuple(names), "share of full's gain, math minus code", effect, "share of gain")


def _share(setting: Setting) -> float:
    full, lora = setting.full(), setting.lora()
    budget = setting.common_budget(full, lora)
    return setting.gain(lora, LEARNING, budget).value / setting.gain(full, LEARNING, budget).value


def _surely_above_zero(effect: Effect) -> bool:
    return effect.interval()[0] > 0


def _regime_difference(instruct: Setting, pretrain: Setting) -> Piece:
    (task,) = instruct.tasks(LEARNING)
    if pretrain.tasks(LEARNING) != [task] or not instruct.evidence.measures[task].is_accuracy:
        raise TooThin("no accuracy leads the learning of both, so the regimes share no measure")
    bases = [s.evidence.facts["base"].get("fingerprint") for s in (instruct, pretrain)]
    if bases[0] != bases[1]:
        raise TooThin("the two settings have different bases")
    terms, names = [], []
    for setting, weight in ((instruct, 1.0), (pretrain, -1.0)):
        full = setting.full()
        term = setting.term(weight, full, setting.common_budget(full), LEARNING)
        terms.append(replace(term, place="both"))
        names.append(full.name)
    what = f"{task} of full, instruction minus continued pretraining"
    return Piece(tuple(names), what, contrast(terms), instruct.unit(LEARNING))
