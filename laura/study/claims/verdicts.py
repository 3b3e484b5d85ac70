"""From effects to a verdict: supported, contradicted, or too thin to say.

The rules, fixed before any result was seen:

- A statement is a direction ("the effect is above 0") or a range ("between 10^0.5 and
  10^1.5"). It is *supported* when the 95 % interval of the effect lies wholly inside what
  it states, *contradicted* when it lies wholly outside, and *too thin* otherwise.
- Fewer than three seeds, fewer than 50 items, or no arm of the kind: too thin, with the
  reason.
- A statement of several parts (all > mlp > attention) is supported when every part is,
  at the same level (an intersection-union test needs no correction, Berger 1982), and
  contradicted when any of its m parts is at a level corrected for m (Bonferroni).
- Several settings: where each has one effect in the same unit, their plain mean is
  judged; it speaks of these settings only. Should one of m settings by itself say the
  contrary (Bonferroni for m), the settings disagree and the claim is too thin. Otherwise
  (different units, or several parts) it must hold in every setting, as with parts.
- Settings that cannot speak are named, and left out.
- Every claim is also judged among all that could be tested (Holm 1979, familywise 5 %);
  that verdict stands beside the first and never replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from laura.study.claims.settings import Setting
from laura.study.effects import ALPHA, Effect, TooThin, mean_effect

SUPPORTED, CONTRADICTED, TOO_THIN = "supported", "contradicted", "too thin"


@dataclass(frozen=True)
class Piece:
    """One effect and what is stated of it.

    Attributes:
        arms: Names of the arms compared.
        what: The effect in words, such as "learning of full minus lora".
        effect: The effect.
        unit: Its unit.
        low: The statement says that the truth is above this,
        high: and below this.
        decides: Whether the verdict hangs on it; others are shown beside it.
    """

    arms: tuple[str, ...]
    what: str
    effect: Effect
    unit: str
    low: float = 0.0
    high: float = math.inf
    decides: bool = True

    @property
    def p_for(self) -> float:
        """One-sided p of the statement: small when the truth is surely inside."""
        above = self.effect.chance_below(self.low)
        return above if math.isinf(self.high) else max(above, self._chance_above(self.high))

    @property
    def p_against(self) -> float:
        """One-sided p of the contrary: small when the truth is surely outside."""
        below = self._chance_above(self.low)
        return below if math.isinf(self.high) else min(below, self.effect.chance_below(self.high))

    def _chance_above(self, threshold: float) -> float:
        return self.effect.scaled(-1.0).chance_below(-threshold)

    def to_json(self, setting: str) -> dict[str, Any]:
        """A row of a claim's evidence."""
        effect = self.effect
        return {
            "setting": setting,
            "arms": list(self.arms),
            "what": self.what,
            "value": effect.value,
            "unit": self.unit,
            "interval": list(effect.interval()),
            "n": effect.n,
            "seeds": effect.seeds,
            "p": two_sided(self.p_for, self.p_against),
            "verdict": verdict_of(self.p_for, self.p_against),
            "decides": self.decides,
        }


@dataclass(frozen=True)
class Finding:
    """What was found about one claim.

    Attributes:
        verdict: The verdict by its own interval.
        reason: Why, in plain words.
        p: Two-sided p, of the statement or its contrary; None when nothing was tested.
        toward: `supported` or `contradicted`, whichever side the p is of.
        effect: The effect judged; None where several were.
        unit: Its unit.
        evidence: Rows of claims.json.
    """

    verdict: str
    reason: str
    p: float | None = None
    toward: str = TOO_THIN
    effect: Effect | None = None
    unit: str = ""
    evidence: list[dict[str, Any]] = field(default_factory=list)


Look = Callable[[Setting], list[Piece]]


def verdict_of(p_for: float, p_against: float) -> str:
    """The verdict whose one-sided p is at most 2.5 %, as when a 95 % interval excludes."""
    if p_for <= ALPHA / 2:
        return SUPPORTED
    return CONTRADICTED if p_against <= ALPHA / 2 else TOO_THIN


def two_sided(p_for: float, p_against: float) -> float:
    """p of whichever side is surer, doubled for having looked at both."""
    return min(1.0, 2 * min(p_for, p_against))


def look_at_each(
    settings: Sequence[Setting],
    look: Look,
    wanted: Callable[[Setting], bool] = lambda setting: True,
    kind: str = "setting",
) -> Finding:
    """Judge a statement in each setting that it is about, and over all of them.

    Args:
        settings: All settings.
        look: Gives the effects of one setting; raises `TooThin` where it cannot.
        wanted: Which settings the statement is about.
        kind: How these are called where there are none.
    """
    chosen = [setting for setting in settings if wanted(setting)]
    if not chosen:
        return Finding(TOO_THIN, f"there is no {kind}")
    found: list[tuple[str, list[Piece]]] = []
    silent: list[tuple[str, str]] = []
    for setting in chosen:
        try:
            found.append((setting.name, look(setting)))
        except TooThin as reason:
            silent.append((setting.name, str(reason)))
    rows = [piece.to_json(name) for name, pieces in found for piece in pieces]
    rows += [thin_row(name, reason) for name, reason in silent]
    if not found:
        reasons = list(dict.fromkeys(reason for _, reason in silent))
        return Finding(TOO_THIN, "; ".join(reasons), evidence=rows)
    deciding = [[piece for piece in pieces if piece.decides] for _, pieces in found]
    judged = judge(deciding)
    left = f"; {len(silent)} of {len(chosen)} settings cannot speak" if silent else ""
    return Finding(
        judged.verdict, judged.reason + left, judged.p, judged.toward, judged.effect, judged.unit,
        rows,
    )  # fmt: skip


def judge(by_setting: Sequence[Sequence[Piece]], shared_runs: bool = False) -> Finding:
    """Verdict over the deciding pieces of several settings; see the module's docstring.

    Args:
        by_setting: The deciding pieces of each setting.
        shared_runs: Whether the same runs may stand in several pieces (see `mean_effect`).
    """
    pieces = [piece for own in by_setting for piece in own]
    alike = {(piece.unit, piece.low, piece.high) for piece in pieces}
    if len(pieces) == 1 or (len(alike) == 1 and all(len(own) == 1 for own in by_setting)):
        return _judge_mean(pieces, shared_runs)
    p_for = max(piece.p_for for piece in pieces)
    p_against = min(1.0, len(pieces) * min(piece.p_against for piece in pieces))
    verdict, weakest = verdict_of(p_for, p_against), max(pieces, key=lambda piece: piece.p_for)
    words = {
        SUPPORTED: f"all {len(pieces)} parts hold; weakest: {_told(weakest)}",
        CONTRADICTED: f"a part does not hold: {_told(weakest)}",
        TOO_THIN: f"not every part is clear; weakest: {_told(weakest)}",
    }
    effect = weakest.effect
    return Finding(verdict, words[verdict], two_sided(p_for, p_against), _toward(p_for, p_against),
                   effect, weakest.unit)  # fmt: skip


def _judge_mean(pieces: Sequence[Piece], shared_runs: bool) -> Finding:
    """One effect, or the mean of one effect over settings."""
    first, m = pieces[0], len(pieces)
    every = [piece.effect for piece in pieces]
    effect = first.effect if m == 1 else mean_effect(every, shared_runs)
    whole = Piece(first.arms, first.what, effect, first.unit, first.low, first.high)
    p_for, p_against = whole.p_for, whole.p_against
    verdict = verdict_of(p_for, p_against)
    told = _told(whole) + (f", mean of {m} settings" if m > 1 else "")
    contrary = {
        SUPPORTED: min(1.0, m * min(piece.p_against for piece in pieces)),
        CONTRADICTED: min(1.0, m * min(piece.p_for for piece in pieces)),
    }.get(verdict, 1.0)
    if m > 1 and contrary <= ALPHA / 2:
        return Finding(TOO_THIN, f"the settings disagree: {told}", 1.0, TOO_THIN, effect,
                       first.unit)  # fmt: skip
    direction = math.isinf(first.high)
    stated = f"{first.low:.3g}" if direction else f"the range {first.low:.3g} to {first.high:.3g}"
    thin = "holds both sides of" if direction else "is not clear of the ends of"
    ends = {
        SUPPORTED: f"{told}: the interval is {'above' if direction else 'inside'} {stated}",
        CONTRADICTED: f"{told}: the interval is {'below' if direction else 'outside'} {stated}",
        TOO_THIN: f"{told}: the interval {thin} {stated}",
    }
    return Finding(verdict, ends[verdict], two_sided(p_for, p_against), _toward(p_for, p_against),
                   effect, first.unit)  # fmt: skip


def _told(piece: Piece) -> str:
    # Adding 0 keeps a rounded nothing from having a minus.
    value, low, high = (n + 0.0 for n in (piece.effect.value, *piece.effect.interval()))
    return f"{piece.what} {value:+.3g} {piece.unit} ({low:+.3g} to {high:+.3g})"


def _toward(p_for: float, p_against: float) -> str:
    return SUPPORTED if p_for <= p_against else CONTRADICTED


def thin_row(setting: str, reason: str) -> dict[str, Any]:
    """Evidence of a setting that cannot speak."""
    return {
        "setting": setting, "arms": [], "what": "", "value": None, "unit": "", "interval": None,
        "n": 0, "seeds": 0, "p": None, "verdict": TOO_THIN, "decides": False, "reason": reason,
    }  # fmt: skip


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p of each: familywise over all that were tested.

    Formula: of m sorted p, the i-th becomes max over j <= i of min(1, (m - j + 1) p_j).

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    adjusted, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted
