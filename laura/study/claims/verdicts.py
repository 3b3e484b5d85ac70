"""From contrasts to a verdict: supported, contradicted, mixed, suggested, undecided.

The rules, fixed before any result was seen:

- A statement is a direction ("above 0") or a range ("within 2 points of 0"). It is
  *supported* when the 95 % interval lies inside what it states, *contradicted* when it lies
  inside the opposite, *mixed* when some settings establish it and others its opposite, and
  *undecided* otherwise, with what would decide it.
- "The same" is a range: two one-sided tests at a margin (2 points), never a missed difference.
- A statement of several parts (all > mlp > attention) is supported when every part is,
  at the same level (an intersection-union test needs no correction, Berger 1982), and
  contradicted when any of its m parts is at a level corrected for m (Bonferroni). Parts that
  the statement does not speak of stand beside it and never decide.
- Several settings: the plain mean of each part is judged, and speaks of these settings only.
  *Mixed* is when each side is established in a setting of m by itself (Bonferroni for m).
- A setting whose design could not have given either answer does not vote; it says why.
- Rates chosen on one seed: never more than *suggested*.
- The joint verdict over all statements that were tested (Holm 1979, familywise 5 %) is the
  verdict; the one by the statement's own interval stands beside it in the table only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from laura.results.schema import ClaimRow, Estimated, Verdict
from laura.results.statistics import ALPHA, Contrast, TooThin, mean_contrast
from laura.study.claims.settings import Setting

MOST_SEEDS, MOST_ITEMS = 50, 8  # beyond so many seeds, or times the items, nobody goes


@dataclass(frozen=True)
class Statement:
    """A contrast and what is stated of it.

    Attributes:
        arms: Names of the arms compared.
        what: The contrast in words, such as "learning of full minus lora".
        contrast: The contrast.
        unit: Its unit.
        low: The statement says that the truth is above this,
        high: and below this.
        decides: Whether the verdict hangs on it; others are shown beside it.
        part: Which part of the statement it is: the same one in every setting.
    """

    arms: tuple[str, ...]
    what: str
    contrast: Contrast
    unit: str
    low: float = 0.0
    high: float = math.inf
    decides: bool = True
    part: str = ""

    @property
    def p_for(self) -> float:
        """One-sided p of the statement: small when the truth is surely inside."""
        above = self.contrast.chance_below(self.low)
        return above if math.isinf(self.high) else max(above, self._chance_above(self.high))

    @property
    def p_against(self) -> float:
        """One-sided p of the opposite: small when the truth is surely outside."""
        below = self._chance_above(self.low)
        if math.isinf(self.high):
            return below
        return min(1.0, below, self.contrast.chance_below(self.high))

    def _chance_above(self, threshold: float) -> float:
        return self.contrast.scaled(-1.0).chance_below(-threshold)


@dataclass(frozen=True)
class Finding:
    """What was found about one claim.

    Attributes:
        verdict: The verdict by its own interval.
        reason: Why, in plain words.
        p: Two-sided p, of whichever verdict it is nearest to; None when nothing was tested.
        toward: That verdict.
        statement: What was judged; None where there was nothing.
        rows: What each setting says.
        missing: Why no setting could speak; empty where one could.
        edge: Whether an arm's best rate is at the end of its list.
    """

    verdict: Verdict
    reason: str
    p: float | None = None
    toward: Verdict = "undecided"
    statement: Statement | None = None
    rows: list[ClaimRow] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    edge: bool = False


def verdict_of(p_for: float, p_against: float) -> Verdict:
    """The verdict whose one-sided p is at most 2.5 %, as when a 95 % interval excludes."""
    if p_for <= ALPHA / 2:
        return "supported"
    return "contradicted" if p_against <= ALPHA / 2 else "undecided"


def look_at(
    groups: Sequence[tuple[Setting, ...]], look: Callable[..., Sequence[Statement]], kind: str
) -> Finding:
    """Judge a statement in each setting, or pair of settings, and over all of them.

    Args:
        groups: What the statement is about: settings, or pairs of them.
        look: Gives the contrasts of one; raises `TooThin` where it cannot speak.
        kind: How these are called where there are none.
    """
    rows: list[ClaimRow] = []
    silent: list[ClaimRow] = []
    deciding: list[list[Statement]] = []
    spoken: list[Setting] = []
    for group in groups:
        name = " and ".join(setting.name for setting in group)
        try:
            parts = look(*group)
        except TooThin as thin:
            silent.append(ClaimRow(setting=name, reason=str(thin)))
            continue
        rows += [_row(name, one, group) for one in parts]
        deciding.append([one for one in parts if one.decides])
        spoken += group
    rows += silent
    if not deciding:
        reason = "; ".join(dict.fromkeys(row.reason for row in silent)) or f"there is no {kind}"
        return Finding("undecided", reason, rows=rows, missing=[reason])
    # Two pairs with a setting in common hold the same runs, and so do stages of one series.
    shared = len({id(setting) for setting in spoken}) < len(spoken)
    shared |= any(setting.evidence.recipe.continues for setting in spoken)
    told = _judge(deciding, shared)
    verdict, toward, reason = told.verdict, told.toward, told.reason
    if silent:
        reason += f"; {len(silent)} of {len(groups)} settings cannot speak"
    edge = any(row.edge and row.decides for row in rows)
    if any(setting.suggests_only for setting in spoken):
        verdict, toward = (_suggested(word) for word in (verdict, toward))
        reason = f"the rates were chosen on one seed, so this is no more than suggested: {reason}"
    return Finding(verdict, reason, told.p, toward, told.statement, rows, edge=edge)


def _suggested(word: Verdict) -> Verdict:
    return "suggested" if word == "supported" else "undecided"


def _row(name: str, one: Statement, settings: Sequence[Setting]) -> ClaimRow:
    return ClaimRow(
        setting=name,
        arms=list(one.arms),
        what=one.what,
        effect=Estimated.of(one.contrast, one.unit),
        verdict=verdict_of(one.p_for, one.p_against),
        decides=one.decides,
        edge=any(s.evidence.edge(a) for s in settings for a in one.arms if a in s.evidence.best),
    )


def _judge(by_setting: Sequence[Sequence[Statement]], shared_runs: bool) -> Finding:
    """The verdict over the deciding parts of each setting."""
    m = len(by_setting)
    each = [_sides(parts) for parts in by_setting]
    p_mixed = 2 * m * max(min(p for p, _ in each), min(p for _, p in each)) if m > 1 else 1.0
    parts = _means(by_setting, shared_runs)
    p_for, p_against = _sides(parts)
    verdict = verdict_of(p_for, p_against)
    weakest = max(parts, key=lambda one: one.p_for)
    if verdict == "contradicted":
        weakest = min(parts, key=lambda one: one.p_against)
    over = f", mean of {m} settings" if m > 1 else ""
    if p_mixed <= ALPHA:
        return Finding("mixed", f"the settings disagree, each surely: {told(weakest)}{over}",
                       p_mixed, "mixed", weakest)  # fmt: skip
    contrary = {"supported": m * min(p for _, p in each),
                "contradicted": m * min(p for p, _ in each)}.get(verdict, 1.0)  # fmt: skip
    if m > 1 and contrary <= ALPHA / 2:
        return Finding("undecided", f"the settings disagree: {told(weakest)}{over}", 1.0,
                       "undecided", weakest)  # fmt: skip
    reason = f"{told(weakest)}{over}"
    if len(parts) > 1:
        reason = {"supported": f"all {len(parts)} parts hold; weakest: ",
                  "contradicted": "a part does not hold: "}.get(
                      verdict, "not every part is clear; weakest: ") + reason  # fmt: skip
    toward: Verdict = "supported" if p_for <= p_against else "contradicted"
    return Finding(verdict, reason, min(1.0, 2 * min(p_for, p_against)), toward, weakest)


def _sides(parts: Sequence[Statement]) -> tuple[float, float]:
    """One-sided p of all parts holding, and of one not holding."""
    against = min(1.0, len(parts) * min(one.p_against for one in parts))
    return max(one.p_for for one in parts), against


def _means(by_setting: Sequence[Sequence[Statement]], shared_runs: bool) -> list[Statement]:
    """Each part's mean over the settings that have it."""
    found: dict[tuple[str, str, float, float], list[Statement]] = {}
    for parts in by_setting:
        for one in parts:
            found.setdefault((one.part, one.unit, one.low, one.high), []).append(one)
    return [
        own[0]
        if len(own) == 1
        else Statement(own[0].arms, own[0].what,
                       mean_contrast([one.contrast for one in own], shared_runs),
                       own[0].unit, own[0].low, own[0].high, part=own[0].part)
        for own in found.values()
    ]  # fmt: skip


def told(one: Statement) -> str:
    """A statement's contrast in words: `forgetting of full minus lora +3.1 points (...)`."""
    points = one.unit == "share"
    factor, unit = (100.0, "points") if points else (1.0, one.unit)
    low, high = one.contrast.interval()
    # Adding 0 keeps a rounded nothing from having a minus.
    value, low, high = (round(n * factor, 1 if points else 3) + 0.0
                        for n in (one.contrast.value, low, high))  # fmt: skip
    return f"{one.what} {value:+g} {unit} ({low:+g} to {high:+g})"


def would_decide(one: Statement, tests: int) -> str:
    """What would decide an undecided statement if its contrast is as it looks.

    Args:
        one: The statement.
        tests: How many are tested together; the level is Bonferroni's.
    """
    level = 1 - ALPHA / max(1, tests)
    own = one.contrast.seeds
    for times in (1, 2, 4, MOST_ITEMS):
        larger = one.contrast if times == 1 else one.contrast.with_items(times)
        seeds = _fewest_seeds(one, larger, level)
        if seeds is None or (times == 1 and seeds <= own):
            continue
        if times == 1:
            return f"about {seeds} seeds instead of {own} would decide it"
        return f"about {seeds} seeds and {times} times the items would decide it"
    return (
        f"neither {MOST_SEEDS} seeds nor {MOST_ITEMS} times the items would decide it: the truth "
        "is too near the border"
    )


def _fewest_seeds(one: Statement, contrast: Contrast, level: float) -> int | None:
    """The fewest seeds with which a contrast would be clear; None where the most are too few."""
    low, high = max(2, contrast.seeds), MOST_SEEDS
    if not _is_clear(one, contrast.with_seeds(high), level):
        return None
    while low < high:  # more seeds only narrow the interval
        middle = (low + high) // 2
        clear = _is_clear(one, contrast.with_seeds(middle), level)
        low, high = (low, middle) if clear else (middle + 1, high)
    return low


def _is_clear(one: Statement, contrast: Contrast, level: float) -> bool:
    low, high = contrast.interval(level)
    inside = low > one.low and high < one.high
    return inside or high < one.low or low > one.high
