"""What the authors of remedies claim, each judged where a study has the arms that it speaks of.

An arm with a remedy is compared with the plain arm that is equal in all but the remedy; its
strength aside, of several the largest. Of "forgets less" the question is the one at equal
learning unless the claim is about tuned models. Formulas and sources: docs/papers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np

from laura.analysis.tradeoff import explained
from laura.recipe.remedies import PLACES
from laura.results.statistics import MIN_SEEDS, TooThin, count, over_runs
from laura.study.claims.claimed import FRONT, PARTS, SEEDS, Claimed, Question, Scope
from laura.study.claims.outcomes import at_equal_learning, forgot_more, learnt_more
from laura.study.claims.settings import FORGETTING, UNUSED, Kind, Setting
from laura.study.claims.verdicts import Statement

Used = Mapping[str, Any]
ANY = object()  # whatever value that means "used"
EXPLAINED = 0.7  # the least of the shares that the paper tells


def learns_more(used: Used, than: Used, setting: Setting) -> list[Statement]:
    """Learning with the remedy minus without is above 0, tuned."""
    return _each(used, than, setting, lambda arm, other, part:
                 learnt_more(setting, arm, other, part=part))  # fmt: skip


def forgets_less_tuned(used: Used, than: Used, setting: Setting) -> list[Statement]:
    """Forgetting without the remedy minus with it is above 0, tuned."""
    return _each(used, than, setting, lambda arm, other, part:
                 forgot_more(setting, other, arm, part=part))  # fmt: skip


def forgets_less(used: Used, than: Used, setting: Setting) -> list[Statement]:
    """Forgetting without the remedy minus with it is above 0, at equal learning."""
    return _each(used, than, setting, lambda arm, other, part:
                 at_equal_learning(setting, other, arm, part=part))  # fmt: skip


def beats_all(used: Used, others: Mapping[str, Used], setting: Setting) -> list[Statement]:
    """Forgetting of each other arm minus that with the remedy is above 0, at equal learning.

    Of every kind the first arm of the recipe; the statement names all, so one that lacks
    leaves it unjudged.
    """
    wanted = {_words(used): used, **others}
    found = {name: [one for one in setting.arms if _is_only(one, own)]
             for name, own in wanted.items()}  # fmt: skip
    if missing := [name for name, arms in found.items() if not arms]:
        raise TooThin(f"no arm of {', '.join(missing)} alone")
    (arm, *_), *rest = found.values()
    return [at_equal_learning(setting, one, arm, part=name)
            for name, (one, *_) in zip(others, rest, strict=True)]  # fmt: skip


def divergence_predicts(setting: Setting) -> list[Statement]:
    """The share of forgetting that KL from the base explains, over all points of a seed, is .7.

    A line is fitted for each seed, and its R2 is one value of Student's t over seeds.
    """
    values = []
    for seed in setting.evidence.recipe.seeds:
        pairs = list(_divergences(setting, seed))
        share = explained(*zip(*pairs, strict=True)) if pairs else None
        if share is not None:
            values.append(share)
    if len(values) < MIN_SEEDS:
        raise TooThin(f"{count(len(values), 'seed')} with a divergence and forgetting at several "
                      f"points; {MIN_SEEDS} are needed")  # fmt: skip
    names = tuple(arm.name for arm in setting.arms)
    shares = over_runs(values, len(values))
    return [Statement(names, "forgetting that KL explains", shares, "R2", EXPLAINED)]


def _divergences(setting: Setting, seed: int) -> Iterator[tuple[float, float]]:
    """(nats, forgetting) of every point of a seed."""
    base = setting.base_scores(FORGETTING, [seed])
    for point in setting.evidence.points:
        kl = point.results.get("kl")
        if point.seed != seed or kl is None:
            continue
        try:
            own = setting.scores({seed: point.results}, FORGETTING, point.arm)
        except TooThin:
            continue
        lost = [float(base.tables[t].mean() - own.tables[t].mean()) for t in own.tables]
        yield kl.metrics["nats_per_token"].value, float(np.mean(lost))


def _each(
    used: Used, than: Used, setting: Setting, look: Callable[[Kind, Kind, str], Statement]
) -> list[Statement]:
    """A statement for each arm that has an arm beside it which differs in the remedy alone."""
    parts: dict[Kind, Kind] = {}
    for arm in (one for one in setting.arms if _matches(one, used)):
        for other in setting.arms:
            if _differ_alone(arm, other, used, than) and (
                other not in parts or _strength(arm, used) > _strength(parts[other], used)
            ):
                parts[other] = arm
    if not parts:
        beside = f"with {_words(than)}" if than else "without"
        raise TooThin(f"no arm with {_words(used)} beside the same arm {beside}")
    return [look(arm, other, other.name) for other, arm in parts.items()]


def _matches(arm: Kind, used: Used) -> bool:
    return all(
        arm.used(key) is not None if value is ANY else arm.used(key) == value
        for key, value in used.items()
    )


def _differ_alone(arm: Kind, other: Kind, used: Used, than: Used) -> bool:
    keys = used.keys() | than.keys()
    strengths = {f"{key}_{part}" for key in keys for part in ("strength", "samples", "tokens")}
    strengths |= {"weight_decay"} if "weight_decay_toward" in keys else set()
    strengths |= {"factor"} if "change" in keys else set()
    return _is_only(other, than) and arm.differs_in(other) <= keys | strengths


def _is_only(arm: Kind, used: Used) -> bool:
    """Whether an arm has this and nothing else that is more than plain."""
    more = {key for key in UNUSED if arm.used(key) is not None}
    return _matches(arm, used) and more == used.keys() & UNUSED.keys()


def _strength(arm: Kind, used: Used) -> float:
    """How much of the remedy an arm has; where it names no strength, the remedy's own."""
    total = arm.number("factor") + sum(map(arm.number, used))
    for place in used.keys() & PLACES.keys():
        given = arm.settings.get(f"{place}_strength")
        total += PLACES[place][arm.settings[place]].strength if given is None else float(given)
    return total


def _words(used: Used) -> str:
    return " and ".join(key if value is ANY else f"{key} {value}" for key, value in used.items())


# The question that each comparison asks, and the test that answers it.
_ASKED: dict[Callable[..., Any], tuple[Question, str]] = {
    learns_more: ("tuned", PARTS),
    forgets_less_tuned: ("tuned", PARTS),
    forgets_less: ("equal learning", FRONT),
    beats_all: ("equal learning", f"{FRONT}; every part must hold"),
}


def _claim(
    id: str, statement: str, source: str, look: Callable[..., list[Statement]], used: Used,
    than: Any = MappingProxyType({}), scope: Scope | None = None,
) -> Claimed:  # fmt: skip
    asked = partial(look, used, than)
    return Claimed(id, statement, source, *_ASKED[look], asked, scope or _having(used))


def _having(used: Used) -> Scope:
    return Scope(
        f"arm with {_words(used)}",
        lambda setting: any(_matches(arm, used) for arm in setting.arms),
    )


_OWN_REPLAY = Scope(
    "arm that replays what the base writes",
    lambda setting: setting.replays_itself and any(arm.number("replay") for arm in setting.arms),
)
_DFT, _KL, _LORA = {"token_weight": "dft"}, {"penalty": "kl"}, {"method": "lora"}
_WISE_FT = {"method": "full", "of": ANY, "change": "scale"}
_EMA, _FLOW, _PISSA = {"average": "ema"}, {"token_weight": "flow"}, {"init": "pissa"}
_CORDA, _MILORA = {"init": "corda"}, {"init": "milora"}
_L2SP = {"weight_decay_toward": "base"}
REMEDY_CLAIMS = (
    _claim("dft-learns-more", "DFT learns more than plain finetuning.",
           "Wu et al. 2025, arXiv:2508.05629", learns_more, _DFT),
    _claim("eaft-forgets-less", "At the same learning EAFT forgets less than plain finetuning.",
           "arXiv:2601.02151", forgets_less, {"token_weight": "eaft"}),
    _claim("talr-beats-others",
           "At the same learning TALR forgets less than L2-SP, LoRA, WiSE-FT and FLOW.",
           "Lin et al. 2025, arXiv:2509.20758", beats_all, {"token_weight": "talr"},
           {"L2-SP": _L2SP, "LoRA": _LORA, "WiSE-FT": _WISE_FT, "FLOW": _FLOW}),
    _claim("stm-forgets-less", "Tuned, STM forgets less than plain finetuning.",
           "arXiv:2501.14315", forgets_less_tuned, {"token_weight": "stm"}),
    _claim("flow-forgets-less", "Tuned, FLOW forgets less than plain finetuning.",
           "arXiv:2502.02797", forgets_less_tuned, _FLOW),
    Claimed("kl-predicts-forgetting",
            "KL from the base on the new task explains at least 70 % of what is forgotten.",
            "Shenfeld et al. 2025, arXiv:2509.04259", "equal learning", SEEDS,
            divergence_predicts, _having(_KL)),
    _claim("kl-forgets-less", "At the same learning a penalty of KL from the base forgets less.",
           "Shenfeld et al. 2025, arXiv:2509.04259", forgets_less, _KL),
    _claim("kl-reverse-forgets-less", "At the same learning a penalty of reverse KL forgets less.",
           "no paper's, beside kl-forgets-less", forgets_less, {"penalty": "kl_reverse"}),
    _claim("asft-forgets-less", "Tuned, ASFT forgets less than DFT.",
           "arXiv:2509.23753", forgets_less_tuned, {**_DFT, **_KL}, _DFT),
    _claim("clora-forgets-less", "At the same learning CLoRA's penalty forgets less than LoRA.",
           "arXiv:2410.16801", forgets_less, {"penalty": "clora"}),
    _claim("l2sp-forgets-less", "At the same learning L2-SP forgets less than plain finetuning.",
           "Li et al. 2018, arXiv:1802.01483", forgets_less, _L2SP),
    _claim("finch-forgets-less", "At the same learning FINCH forgets less than plain finetuning.",
           "arXiv:2605.20005", forgets_less, {"pace": "finch"}),
    _claim("ema-forgets-less", "At the same learning EMA forgets less than plain finetuning.",
           "arXiv:2508.00180", forgets_less, _EMA),
    _claim("bema-learns-more", "BEMA learns more than EMA.",
           "Block and Zhang 2025, arXiv:2508.00180", learns_more, {"average": "bema"}, _EMA),
    _claim("rslora-learns-more", "rsLoRA learns more than LoRA.",
           "Kalajdzievski 2023, arXiv:2312.03732", learns_more, {"rslora": True},
           {"rslora": False}),
    _claim("lora-plus-learns-more", "LoRA+ learns more than LoRA.",
           "Hayou et al. 2024, arXiv:2402.12354", learns_more, {"lora_plus_ratio": ANY}),
    _claim("dora-learns-more", "DoRA learns more than LoRA.",
           "Liu et al. 2024, arXiv:2402.09353", learns_more, {"dora": True}),
    _claim("pissa-learns-more", "PiSSA learns more than LoRA.",
           "Meng et al. 2024, arXiv:2404.02948", learns_more, _PISSA),
    _claim("milora-forgets-less", "Tuned, MiLoRA forgets less than PiSSA.",
           "Wang et al. 2024, arXiv:2406.09044", forgets_less_tuned, _MILORA, _PISSA),
    _claim("oplora-forgets-less", "At the same learning OPLoRA forgets less than LoRA.",
           "arXiv:2510.13003", forgets_less, {"protect": ANY}),
    _claim("lora-null-beats-others",
           "At the same learning LoRA-Null forgets less than CorDA and MiLoRA.",
           "Tang et al. 2025, arXiv:2503.02659", beats_all, {"init": "lora_null"},
           {"CorDA": _CORDA, "MiLoRA": _MILORA}),
    _claim("corda-forgets-less", "At the same learning CorDA forgets less than LoRA.",
           "Yang et al. 2024, arXiv:2406.05223", forgets_less, _CORDA),
    _claim("oft-forgets-less", "At the same learning OFT forgets less than LoRA.",
           "arXiv:2605.28819", beats_all, {"method": "oft"}, {"LoRA": _LORA}),
    _claim("scale-forgets-less",
           "At the same learning a scaled update forgets less than the whole one.",
           "arXiv:2605.28819", forgets_less, {"of": ANY, "change": "scale"}),
    _claim("intruders-forgets-less",
           "At the same learning scaled intruder dimensions forget less than the whole ones.",
           "Shuttleworth et al. 2024, arXiv:2410.21228", forgets_less,
           {"of": ANY, "change": "intruders"}),
    _claim("own-replay-forgets-less",
           "At the same learning replay of the base's own writing forgets less.",
           "arXiv:2505.13811", forgets_less, {"replay": ANY}, scope=_OWN_REPLAY),
    _claim("sdft-forgets-less",
           "At the same learning answers in the base's own words forget less than the data's.",
           "Yang et al. 2024, arXiv:2402.13669", forgets_less, {"rewritten": True}),
    _claim("on-policy-sdft-forgets-less",
           "At the same learning on-policy self-distillation forgets less than plain finetuning.",
           "Shenfeld et al. 2026, arXiv:2601.19897", forgets_less, {"policy": "sdft"}),
    _claim("grpo-forgets-less", "At the same learning GRPO forgets less than plain finetuning.",
           "arXiv:2605.28819", forgets_less, {"policy": "grpo"}),
)  # fmt: skip
