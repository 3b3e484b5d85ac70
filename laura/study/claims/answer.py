"""What is concluded, in words: the answer, the sentences under it, the caveats. No torch.

Words come from the verdicts and from nowhere else: a sentence says that one arm forgot less
only where the joint verdict of the statement that says so allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from laura.results.schema import Claim, Comparison, Configured, Estimated, Verdict
from laura.results.statistics import ALPHA, LEVEL, MARGIN, TooThin, cached_quantile, count
from laura.results.units import budget_text, rate_text
from laura.study.choosing import search_caveats, why_none
from laura.study.claims.capability import learnt, off_floor
from laura.study.claims.front import equal_learning
from laura.study.claims.settings import FORGETTING, LEARNING, Kind, Setting
from laura.study.evidence import Point
from laura.study.runs import repeat_caveats

CONFIRM_SEEDS = 3  # the default of --confirm-seeds
STILL_LEARNT = 0.9  # of what the tuned configuration learnt
SHORT_REASON = 20  # words
# Statements whose parts are each of two arms, tuned, of which the first does more if they hold.
STATED = {"learnt": ("targets-order",), "forgot": ("stronger-regulariser", "replay-mitigates")}


# ----- numbers in words -----


def amount(value: float, unit: str) -> str:
    """A size without its sign: `6 points`, `35.5 points`, `0.213 nats per token`."""
    if unit == "share":
        return f"{points(value)} point{'' if points(value) == '1' else 's'}"
    return f"{abs(value):.3g} {unit}"


def points(value: float) -> str:
    """A share in points without its sign, one decimal and no `.0`."""
    return f"{abs(round(100 * value, 1)):g}"


def signed(value: float, unit: str) -> str:
    """A number with its sign, in points where it is a share: `-0.4`, `12`."""
    shown = round(100 * value, 1) if unit == "share" else float(f"{value:.3g}")
    return f"{shown + 0.0:g}"


def ends(effect: Estimated, turned: bool = False) -> str:
    """An interval in words: `3.1 to 34.5`."""
    low, high = effect.interval
    if turned:
        low, high = -high, -low
    return f"{signed(low, effect.unit)} to {signed(high, effect.unit)}"


# ----- two arms beside one another -----


def main_pair(setting: Setting) -> tuple[Kind, Kind] | None:
    """Plain full finetuning and the LoRA that stands for it; else the first two measured arms."""
    measured = setting.tuned_arms
    try:
        pair = setting.full(), setting.lora()
        if all(arm in measured for arm in pair):
            return pair
    except TooThin:
        pass
    return (measured[0], measured[1]) if len(measured) > 1 else None


def pairs_of(setting: Setting) -> list[tuple[Kind, Kind]]:
    """The main pair, then every other arm beside the main one of its own method."""
    main = main_pair(setting)
    if main is None:
        return []
    found = [main]
    for arm in setting.tuned_arms:
        if arm not in main:
            beside = next((one for one in main if one.method == arm.method), main[0])
            found.append((beside, arm))
    return found


def compare_pair(
    setting: Setting, first: Kind, second: Kind, level: float = LEVEL, together: int = 1
) -> Comparison:
    """Two arms, tuned and at equal learning; what cannot be told says why.

    Args:
        setting: The study.
        first: One arm.
        second: The other.
        level: Of the intervals.
        together: How many comparisons the joint interval is to hold for (Bonferroni).
    """
    found: dict[str, Estimated] = {}
    reasons, levels, joint, budget = [], None, None, None
    try:
        budget = setting.common_budget(first, second)
        more = setting.difference(first, second, LEARNING, budget)
        found["learning"] = Estimated.of(more, setting.unit(LEARNING), level)
        lost = setting.difference(second, first, FORGETTING, budget)
        found["forgetting"] = Estimated.of(lost, setting.unit(FORGETTING), level)
        learnt(setting, budget, first, second)
        off_floor(setting, budget, first, second)
    except TooThin as reason:
        reasons.append(str(reason))
    try:
        equal = equal_learning(setting, first, second)
        found["equal_learning"] = Estimated.of(equal.difference, setting.unit(FORGETTING), level)
        levels, joint = equal.levels, equal.difference.interval(1 - (1 - level) / together)
    except TooThin as reason:
        reasons.append(str(reason))
    edge = any(setting.evidence.edge(arm.name) for arm in (first, second))
    return Comparison(
        arms=(first.name, second.name), budget=budget, levels=levels, joint=joint,
        edge=edge,
        reason="; ".join(dict.fromkeys(reasons)), **found,
    )  # fmt: skip


# ----- the answer -----


class Advice(NamedTuple):
    """What to do, and how sure that is.

    Attributes:
        text: One sentence of at most 25 words.
        verdict: What it rests on; None where nothing could be compared.
        missing: What would decide or confirm it, in words.
        options: What `laura compare` is given for that; "" where no runs would do.
        runs: How many more runs these are.
        named: Configurations that the sentence names.
    """

    text: str
    verdict: Verdict | None = None
    missing: str = ""
    options: str = ""
    runs: int = 0
    named: tuple[Configured, ...] = ()


def answer_of(
    settings: Sequence[Setting],
    claims: Mapping[str, Claim],
    comparisons: Sequence[Comparison],
) -> Advice:
    """What to do, in one sentence, with its certainty.

    Args:
        settings: What was judged.
        claims: Every claim by its id.
        comparisons: Of a single study, the main pair first; empty for several.
    """
    if not settings:
        return Advice("Nothing was judged: no study could be read; see what is missing.")
    if len(settings) == 1 and not comparisons:
        return Advice(_alone(settings[0]))
    if len(settings) == 1 and not _methods_differ(settings[0]):
        return _of_pair(settings[0], comparisons[0], len(comparisons))
    return _of_methods(settings, claims)


def _methods_differ(setting: Setting) -> bool:
    pair = main_pair(setting)
    return pair is not None and {arm.method for arm in pair} == {"full", "lora"}


def _alone(setting: Setting) -> str:
    if measured := setting.tuned_arms:
        return (
            f"Add a second arm: only {measured[0].name} was measured, so nothing can be compared."
        )
    if all(run.state == "diverged" for run in setting.evidence.runs) and setting.evidence.runs:
        return "Lower the learning rates: every run diverged, so nothing can be compared."
    return "Give the same command again: no arm has finished all of its rates with any seed."


def _of_methods(settings: Sequence[Setting], claims: Mapping[str, Claim]) -> Advice:
    """By the joint verdicts of the two statements at equal learning."""
    matched, same = claims["forgets-less-matched"], claims["same-tradeoff"]
    if matched.verdict in ("undecided", "suggested") and same.verdict != "supported":
        gentle = _gentler(settings[0]) if len(settings) == 1 else None
        return gentle or _more_seeds(settings, matched)
    sure: Verdict = "mixed" if matched.verdict == "mixed" else "supported"
    return Advice(_decided(settings, matched, same), sure)


def _decided(settings: Sequence[Setting], matched: Claim, same: Claim) -> str:
    size = amount(matched.effect.value, matched.effect.unit) if matched.effect else ""
    at = f"at equal learning{_everywhere(settings)}"
    if matched.verdict == "supported":
        return f"Choose LoRA: {at} full finetuning forgot {size} more."
    if matched.verdict == "contradicted":
        return f"Choose full finetuning at a low rate: {at} LoRA forgot {size} more."
    if matched.verdict == "mixed":
        return (
            "Choose for each domain: at equal learning LoRA forgot less in some settings, more "
            "in others."
        )
    return (
        f"Choose by cost: {at} LoRA and full finetuning forgot the same within "
        f"{100 * MARGIN:g} points."
    )


def _more_seeds(settings: Sequence[Setting], matched: Claim) -> Advice:
    """The answer where nothing is decided, with the seeds that would decide it."""
    text = _undecided(matched)
    if matched.verdict == "suggested":
        size = amount(matched.effect.value, matched.effect.unit) if matched.effect else ""
        at = f"at equal learning{_everywhere(settings)}"
        text = f"Try LoRA first and confirm it: {at} full finetuning seems to forget {size} more."
    needed = re.match(r"about (\d+) seeds instead of", matched.would_decide)
    if needed is None or len(settings) > 1:
        return Advice(text, matched.verdict, matched.would_decide)
    recipe, seeds = settings[0].evidence.recipe, range(int(needed[1]))
    wanted = [*recipe.seeds, *(seed for seed in seeds if seed not in recipe.seeds)][: len(seeds)]
    each = sum(run.seed == recipe.seeds[0] for run in settings[0].evidence.runs)
    runs = max(0, len(wanted) - len(recipe.seeds)) * each
    options = f"--set seeds=[{','.join(map(str, wanted))}]" if runs else ""
    return Advice(text, matched.verdict, matched.would_decide, options, runs)


def _undecided(matched: Claim) -> str:
    effect = matched.effect
    if effect is None:
        words = (matched.missing or [matched.reason])[0].split()
        short = " ".join(words[:SHORT_REASON]) + ("…" if len(words) > SHORT_REASON else ".")
        return f"Run more before you choose: {short}"
    unit = "points" if effect.unit == "share" else effect.unit
    at = f"at equal learning full finetuning minus LoRA forgot {ends(effect)} {unit}"
    if matched.would_decide.startswith("about"):
        # What would decide it leads, since it is what to do.
        needed = matched.would_decide.removeprefix("about ").split(" instead")[0].split(" would")[0]
        return f"Run {needed} before you choose: {at}."
    return f"Undecided: {at}; add seeds and items, or choose by cost."


def _everywhere(settings: Sequence[Setting]) -> str:
    return "" if len(settings) == 1 else f", over {count(len(settings), 'setting')},"


class _Gentle(NamedTuple):
    """A lower rate: whether it is sure that it forgot less, how much less, and the words."""

    sure: bool
    saved: float
    words: str
    place: Configured


def _gentler(setting: Setting) -> Advice | None:
    """A lower rate at which a method kept its learning and forgot less by its mean."""
    pair = main_pair(setting)
    if pair is None or setting.suggests_only:
        return None
    if {setting.unit(FORGETTING), setting.unit(LEARNING)} != {"share"}:
        return None
    found: list[_Gentle] = []
    for arm in pair:
        try:
            found += _gentler_points(setting, arm)
        except TooThin:
            continue
    if not found:
        return None
    best = max(found, key=lambda one: one[:3])
    if best.saved <= MARGIN:
        return None
    lead = "Method undecided; try this"
    if best.sure:
        lead = "Lower the rate before you change the method"
    name, rate, seed = best.place.arm, best.place.learning_rate, setting.evidence.recipe.seeds[0]
    each = sum(
        (run.arm, run.learning_rate, run.seed) == (name, rate, seed)
        for run in setting.evidence.runs
    )
    return Advice(
        f"{lead}: {best.words}.",
        "suggested",
        f"The rate was picked after its score was seen: {CONFIRM_SEEDS} fresh seeds would tell",
        f"--confirm {name}@{rate:g}",
        CONFIRM_SEEDS * each,
        (best.place,),
    )


def _gentler_points(setting: Setting, arm: Kind) -> list[_Gentle]:
    """Each lower rate that kept what was learnt."""
    budget = setting.common_budget(arm)
    tuned = {m: setting.arm_scores(arm, budget, m) for m in (LEARNING, FORGETTING)}
    gain, lost = setting.gain(arm, LEARNING, budget), setting.gain(arm, FORGETTING, budget)
    best = set(setting.evidence.best[arm.name].values())
    places = setting.configurations(arm)
    level = 1 - ALPHA / max(1, len(places))  # any of them might have been told
    found = []
    for (learning_rate, at), by_seed in places.items():
        if at != budget or learning_rate >= max(best):
            continue
        if len(by_seed) < len(setting.points(arm, budget)):
            continue
        own = {m: setting.scores({s: p.results for s, p in by_seed.items()}, m, arm.name)
               for m in tuned}  # fmt: skip
        learning = setting.contrast([(1.0, own[LEARNING]), (-1.0, setting.base_scores(LEARNING))])
        saved = setting.contrast([(1.0, own[FORGETTING]), (-1.0, tuned[FORGETTING])])
        if learning.value >= STILL_LEARNT * gain.value:
            forgot = max(0.0, -lost.value - saved.value)
            words = (
                f"{arm.name} at {rate_text(learning_rate)} forgot {amount(forgot, 'share')} "
                f"instead of {points(lost.value)} and still learnt {points(learning.value)}"
            )
            place = Configured(arm=arm.name, learning_rate=learning_rate, budget=at)
            found.append(_Gentle(saved.interval(level)[0] > 0, saved.value, words, place))
    return found


def _of_pair(setting: Setting, found: Comparison, pairs: int) -> Advice:
    """Two arms of one method, or of others: by their own intervals, corrected for how many."""
    first, second = found.arms
    effect = found.equal_learning
    if effect is None:
        text = f"Run more before you choose between {first} and {second}; see what is missing."
        return Advice(text, missing=found.reason)
    word = _direction(effect, pairs)
    if setting.suggests_only or word == 0:
        text = (
            f"Choose between {first} and {second} by cost: at equal learning no difference in "
            "forgetting was shown."
        )
        return Advice(text, "undecided", found.reason)
    better, worse = (second, first) if word > 0 else (first, second)
    size = amount(effect.value, effect.unit)
    return Advice(f"Choose {better}: at equal learning {worse} forgot {size} more.", "supported")


def _direction(effect: Estimated, pairs: int) -> int:
    """1 or -1 where the sign is sure among three contrasts of every pair; 0 where it is not.

    The interval at the corrected level is the told one stretched by the quantiles' ratio of
    the fewest seeds, so it is too wide rather than too narrow.
    """
    freedom = max(1, effect.seeds - 1)
    share = 1 - ALPHA / (6 * pairs)
    stretch = cached_quantile(share, freedom) / cached_quantile(0.975, freedom)
    low, high = ((end - effect.value) * stretch + effect.value for end in effect.interval)
    return 1 if low > 0 else -1 if high < 0 else 0


# ----- sentences -----


def sentences_of(
    setting: Setting, claims: Mapping[str, Claim], comparisons: Sequence[Comparison]
) -> tuple[list[str], list[str]]:
    """What is said of the main pair, and of the other arms; of a series of tasks of each arm."""
    series = list(_series(setting))
    if not comparisons:
        return series, []
    told = [_figures(setting, comparisons[0]), *series]
    if _methods_differ(setting):
        learning = "learns-less-code" if setting.domain == "code" else "learns-less-elsewhere"
        told += [
            _by_claim(claims[learning], comparisons[0], "learnt"),
            _by_claim(claims["forgets-less"], comparisons[0], "forgot"),
            _by_claim(claims["forgets-less-matched"], comparisons[0], "forgot", True),
        ]
    else:
        told += _by_interval(setting, comparisons[0], len(comparisons), claims)
    others = []
    for one in comparisons[1:]:
        others += [_figures(setting, one), *_by_interval(setting, one, len(comparisons), claims)]
    return told, others


def _series(setting: Setting) -> Iterator[str]:
    """OP and BWT of each arm: numbers, no verdict."""
    for row in setting.analysis.stages if setting.analysis else ():
        found = row.overall, row.backward
        overall, backward = (f"{signed(e.value, e.unit)} points ({ends(e)})" for e in found)
        yield f"After {', '.join(row.settings)}: {row.arm} has OP {overall}, BWT {backward}."


def _figures(setting: Setting, found: Comparison) -> str:
    """What each arm of a pair learnt and forgot, tuned: numbers, no verdict."""
    kinds = {arm.name: arm for arm in setting.arms}
    parts = []
    budgets = setting.budgets if found.budget is None else [found.budget]
    seeds: list[int] = []
    for name in found.arms:
        arm = kinds[name]
        own = setting.points(arm, budgets[-1])
        seeds.append(len(own))
        changes = [_mean_change(setting, own, measure) for measure in (LEARNING, FORGETTING)]
        rates = sorted(set(setting.evidence.best.get(name, {}).values()))
        told = " or ".join(rate_text(value) for value in rates)
        words = []
        for verb, change, measure in (("learnt", changes[0], LEARNING),
                                      ("forgot", changes[1], FORGETTING)):  # fmt: skip
            if change is not None:
                shown = change if verb == "learnt" else -change
                sign = "-" if round(shown, 3) < 0 else ""
                words.append(f"{verb} {sign}{amount(shown, setting.unit(measure))}")
        parts.append(f"{name} (at {told}) {' and '.join(words) or 'was not measured'}")
    fewest = count(min(seeds), "seed")
    largest = budget_text(budgets[-1])
    return f"Each tuned on validation, {fewest}, budget {largest}: {'; '.join(parts)}."


def _mean_change(setting: Setting, own: Mapping[int, Point], measure: str) -> float | None:
    try:
        tuned = setting.scores({s: p.results for s, p in own.items()}, measure, "")
        base = setting.base_scores(measure)
    except TooThin:
        return None
    if tuned.items != base.items:
        return None
    values = [
        float(table.mean()) - float(base.tables[task].mean())
        for task, table in tuned.tables.items()
    ]
    return sum(values) / len(values)


def _by_claim(claim: Claim, pair: Comparison, verb: str, equal: bool = False) -> str:
    """A sentence on full and LoRA by the joint verdict of a statement; full is `pair.arms[0]`."""
    first, second = pair.arms
    effect = claim.effect
    where = "At equal learning" if equal else "Tuned"
    if effect is None:
        return f"{where}, nothing can be said of which {verb} more: {claim.reason}."
    size, told = amount(effect.value, effect.unit), ends(effect)
    more = f"{first} {verb} {size} more than {second} ({told})"
    if claim.verdict == "supported":
        return f"{where}, {more}: supported{_edge(claim.edge)}."
    if claim.verdict == "contradicted":
        turned = f"{second} {verb} {size} more than {first} ({ends(effect, turned=True)})"
        return f"{where}, {turned}: contradicted, that is{_edge(claim.edge)}."
    decide = f"; {claim.would_decide}" if claim.would_decide else ""
    if claim.verdict == "undecided" and claim.alone != "undecided":
        decide = f", clear by itself but not among all that were tested{decide}"
    return (
        f"{where}, which of the two {verb} more is {claim.verdict}: {first} minus {second} "
        f"{signed(effect.value, effect.unit)} ({told}){_edge(claim.edge)}{decide}."
    )


def _settled(claims: Mapping[str, Claim], verb: str) -> dict[frozenset[str], str]:
    """Two arms to the one that, tuned, did more by a statement's joint verdict; "" for neither.

    A sentence of its own correction beside such a verdict could say the opposite.
    """
    found: dict[frozenset[str], str] = {}
    for name in STATED[verb]:
        claim = claims[name]
        rows = [row for row in claim.evidence if row.decides and row.effect is not None]
        for row in rows:
            more, less = row.arms
            if claim.verdict == "supported":
                found[frozenset(row.arms)] = more
            elif len(rows) == 1:  # of several parts none is settled by itself
                found[frozenset(row.arms)] = less if claim.verdict == "contradicted" else ""
    return found


def _by_interval(
    setting: Setting, found: Comparison, pairs: int, claims: Mapping[str, Claim]
) -> list[str]:
    """Sentences on two arms, by their corrected intervals where no statement speaks of them."""
    told = []
    for verb, where, effect in (
        ("learnt", "Tuned", found.learning),
        ("forgot", "Tuned", found.forgetting),
        ("forgot", "At equal learning", found.equal_learning),
    ):
        if effect is None:
            continue
        word = 0 if setting.suggests_only else _direction(effect, pairs)
        settled = _settled(claims, verb) if where == "Tuned" else {}
        if frozenset(found.arms) in settled:
            word = {found.arms[0]: 1, found.arms[1]: -1}.get(settled[frozenset(found.arms)], 0)
        first, second = found.arms if word >= 0 else reversed(found.arms)
        size, interval = amount(effect.value, effect.unit), ends(effect, turned=word < 0)
        if word:
            told.append(
                f"{where}, {first} {verb} {size} more than {second} ({interval})"
                f"{_edge(found.edge)}."
            )
        else:
            low, high = effect.interval
            alone = (low > 0 or high < 0) and effect.seeds > 2 and not setting.suggests_only
            clear = ", clear by itself but not among all that were tested" if alone else ""
            told.append(
                f"{where}, {first} and {second} cannot be told apart in what they {verb}: "
                f"{signed(effect.value, effect.unit)} ({interval}){_edge(found.edge)}{clear}."
            )
    if found.reason:
        told.append(f"Of {' and '.join(found.arms)}: {found.reason}.")
    return told


def _edge(edge: bool) -> str:
    return " [edge: a best rate is at the end of its list]" if edge else ""


# ----- caveats -----


def caveats_of(setting: Setting) -> list[str]:
    """What must be borne in mind, in sentences."""
    evidence = setting.evidence
    recipe, caveats = evidence.recipe, []
    edges, single = [], []
    for name in recipe.arms:
        best = evidence.best.get(name)
        if not best:
            caveats.append(f"{name} {why_none(name, evidence)}, so it is not compared.")
        elif len(evidence.rates(name)) == 1:
            single.append(name)
        elif evidence.edge(name):
            edges.append(name)
    if single:
        were = "was" if len(single) == 1 else "were"
        caveats.append(f"{_listed(single)} {were} run at one learning rate only: not tuned.")
    if edges:
        caveats.append(
            f"Edge: the best rate of {_listed(edges)} is at the end of its list with some seed; a "
            "better one may lie beyond."
        )
    if setting.suggests_only:
        caveats.append(
            "The rates were chosen on one seed (search.seeds: first), so nothing here is more than "
            "suggested; with `search.seeds: all` every seed chooses its own."
        )
    if recipe.base.quantization is not None:
        caveats.append(
            f"Base and arms were measured with the base in {recipe.base.quantization}; on the "
            "unquantised base, as it is served, an adapter's scores differ."
        )
    caveats += search_caveats(evidence)
    seeds = [len(by_seed) for by_seed in evidence.best.values()]
    if seeds and min(seeds) < 3:
        caveats.append(
            f"{count(min(seeds), 'seed')} for some arm: with fewer than three nothing is clear."
        )
    diverged = sorted(
        {f"{run.arm} at {rate_text(run.learning_rate)}"
         for run in evidence.runs if run.state == "diverged"}
    )  # fmt: skip
    if diverged:
        caveats.append(f"Diverged: {', '.join(diverged)}.")
    caveats += repeat_caveats((point.arm, point.mix) for point in evidence.points)
    return caveats + _floors(setting)


def _floors(setting: Setting) -> list[str]:
    """Arms whose score of forgetting has reached guessing at the largest budget."""
    found = []
    for arm in setting.tuned_arms:
        try:
            if off_floor(setting, setting.common_budget(arm), arm):
                found.append(arm.name)
        except TooThin:
            continue
    return [
        f"{name} ends at guessing on the source tasks: it may have lost more than can be seen."
        for name in found
    ]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
