"""Whether the judge keeps its error rates: simulated studies of known truth, judged for real.

    python scripts/calibrate.py [--studies 500] [--out docs/evidence/calibration]

Each world says what is true; each study drawn from it goes through what a study folder goes
through: the choice of the rates, every claim, the headline, recommend and gate. Told are the
share of studies with a false verdict for each claim, the share of intervals that hold the
truth, and the power for true differences of 2, 5 and 10 points.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from laura.recipe.reading import parse_recipe
from laura.recipe.sections import Recipe
from laura.results.schema import (
    Analysis,
    CheckpointSpectra,
    Constraint,
    CountDifference,
    DiversityRow,
    MatrixSpectra,
)
from laura.results.statistics import Estimate
from laura.study.claims.judgement import judge
from laura.study.claims.settings import Setting
from laura.study.claims.simulated import SimulatedWorld, simulate
from laura.study.evidence import Evidence
from laura.study.recommend import decide

# As measured in the micro study: learning, source score lost and validation loss at four rates.
LEARNT, LOST = (0.60, 0.90, 0.93, 0.88), (0.06, 0.13, 0.36, 0.50)
DOUBT, CERTAIN = (0.36, 0.300, 0.300, 0.34), (0.36, 0.30, 0.34, 0.40)
SHARE = (0.55, 0.8, 1.0)  # of it at each budget
FLOOR = 0.25
ALL = frozenset({"supported", "contradicted", "mixed"})
CLAIM_BOUND, UPPER_BOUND, COVERAGE = 0.05, 0.075, (0.93, 0.97)

RECIPE = """
name: simulated
base: {{model: m}}
domain: {domain}
regime: {regime}
data: {{train: gsm8k, source_text: wikitext{replay}}}
budget: {{epochs: {budgets}}}
arms:
{arms}
seeds: {seeds}
measure: {{learning: [humaneval], forgetting: [hellaswag, winogrande, arc_challenge]}}
search: {{seeds: {search}}}
"""


def recipe(
    arms: Arms,
    seeds: int = 3,
    budgets: Sequence[float] = (1, 2, 4),
    domain: str = "code",
    regime: str = "instruct",
    search: str = "all",
) -> Recipe:
    """A recipe of these arms; those without rates get four."""
    rates = [2.5e-4, 5e-4, 1e-3, 2e-3]
    lines = [
        f"  {name}: {json.dumps({'learning_rates': rates, **own})}" for name, own in arms.items()
    ]
    replay = (
        ", replay: [{source: base_samples, count: 9}]"
        if any("replay" in a for a in arms.values())
        else ""
    )
    text = RECIPE.format(
        domain=domain, regime=regime, budgets=list(budgets), arms="\n".join(lines),
        seeds=list(range(seeds)), search=search, replay=replay,
    )  # fmt: skip
    return parse_recipe(text, ["search.allow_shared_rate=true"])


Arms = Mapping[str, Mapping[str, Any]]
FULL: Arms = {"full": {"method": "full"}}
LORA: Arms = {"lora": {"method": "lora", "rank": 16}}
PAIR: Arms = {**FULL, **LORA}
MANY: Arms = {
    **FULL,
    "lora-r4": {"method": "lora", "rank": 4},
    "lora-r16": {"method": "lora", "rank": 16},
    "lora-r64": {"method": "lora", "rank": 64},
    "lora-mlp": {"method": "lora", "rank": 16, "targets": "mlp"},
    "lora-attention": {"method": "lora", "rank": 16, "targets": "attention"},
    "full-decay": {"method": "full", "weight_decay": 0.1},
    "full-dropout": {"method": "full", "attention_dropout": 0.1},
    "full-replay": {"method": "full", "replay": 0.25},
    "lora-replay": {"method": "lora", "rank": 64, "replay": 0.25},
}


@dataclass(frozen=True)
class Case:
    """A world, and what would be a mistake in it.

    Attributes:
        name: Short name.
        words: What is true.
        worlds: One a setting, by name.
        false: Claim to the verdicts that are false there; a claim that is absent: any.
        truth: What every comparison's interval should hold (learning, forgetting, at equal
            learning); None where it is not zero.
        bound: A bound on forgetting that no configuration truly keeps, for recommend and gate.
    """

    name: str
    words: str
    worlds: Mapping[str, SimulatedWorld]
    false: Mapping[str, frozenset[str]] = field(default_factory=dict)
    truth: float | None = 0.0
    bound: float | None = None


def world(
    own: Recipe,
    *,
    learnt: Callable[[str, int], float] = lambda arm, place: LEARNT[place],
    lost: Callable[[str, int], float] = lambda arm, place: LOST[place],
    validation: Callable[[str, int], float] = lambda arm, place: DOUBT[place],
    **more: Any,
) -> SimulatedWorld:
    """A world from what is true of an arm at a place of its list, at the largest budget."""
    shares = SHARE[-len(own.budget.epochs or []) :]
    return SimulatedWorld(
        own,
        learnt=lambda arm, r, b: 0.1 + (learnt(arm, r) - 0.1) * shares[b],
        kept=lambda arm, r, b: 0.85 - lost(arm, r) * shares[b],
        validation=lambda arm, r, b: validation(arm, r),
        **more,
    )


def _certain(arm: str, place: int) -> float:
    """A validation loss that leaves no doubt which rate is best."""
    return CERTAIN[place]


def _more(who: str, difference: float) -> Callable[[str, int], float]:
    """As measured, and one arm loses so much more at every rate."""
    return lambda arm, place: LOST[place] + (difference if arm == who else 0.0)


def _half_steps(table: Sequence[float]) -> Callable[[str, int], float]:
    """LoRA's list has half steps, full's has whole ones: the same truth at the same rate."""
    return lambda arm, place: (
        table[place] if arm == "full" else float(np.interp(place / 2, range(len(table)), table))
    )


def _null_analysis(evidence: Evidence, draw: np.random.Generator) -> Analysis:
    """Spectra and diversity without any difference: ranks and counts are luck."""
    spectra, rows = [], []
    for point in evidence.points:
        if not evidence.is_chosen(point):
            continue
        who = point.whose
        if point.arm == "full":
            luck = draw.normal(0, 5)
            matrices = [
                MatrixSpectra(
                    name=f"{layer}.{module}", layer=layer, module=module, shape=(512, 512),
                    # The border of "ten times a usual rank", whose logarithm has no bias.
                    rank={"90": round(160 * 10 ** (draw.normal(0, 0.02) + luck / 500))},
                    noise_rank={"90": 300.0},
                )
                for layer in range(4) for module in ("q_proj", "o_proj", "up_proj", "down_proj")
            ]  # fmt: skip
            spectra.append(CheckpointSpectra(**who, step=point.step, matrices=matrices))
        if point.budget == max(evidence.recipe.budget.epochs or []):
            distinct = Estimate(10 + draw.normal(0, 0.5), 0.3, 64)
            rows.append(DiversityRow(**who, extra="samples", task="humaneval", samples=20,
                                     distinct=distinct))  # fmt: skip
    differences: list[CountDifference] = []
    return Analysis(spectra=spectra, diversity=rows, diversity_differences=differences)


@lru_cache
def cases() -> tuple[Case, ...]:
    """Every world of the calibration."""
    found = []
    # Identical arms are not ten times apart, and these worlds do gain after four epochs.
    same_rate = {"rate-ten-times": frozenset({"supported", "mixed"}),
                 "four-epochs": frozenset({"contradicted", "mixed"})}  # fmt: skip
    same = {**same_rate, "same-tradeoff": frozenset({"contradicted", "mixed"})}
    for seeds in (2, 3, 5):
        own = recipe(PAIR, seeds)
        found.append(Case(f"doubt-{seeds}", f"identical arms, the choice in doubt, {seeds} seeds",
                          {"one": world(own)}, same, bound=LOST[0] * SHARE[0]))  # fmt: skip
    own = recipe(PAIR)
    certain = world(own, validation=lambda arm, r: CERTAIN[r])
    found.append(Case("certain-3", "identical arms, the choice certain, 3 seeds",
                      {"one": certain}, same, bound=LOST[0] * SHARE[0]))  # fmt: skip
    one: Arms = {name: {**arm, "learning_rates": [5e-4]} for name, arm in PAIR.items()}
    for luck in (0.0, 0.03, 0.1):
        single = world(recipe(one), learnt=lambda arm, r: 0.6, lost=lambda arm, r: 0.2, luck=luck)
        found.append(Case(f"one-rate-{luck:g}", f"identical arms at one rate, run luck {luck:g}",
                          {"one": single}, same, bound=0.2 * SHARE[0]))  # fmt: skip
    nothing = world(
        own,
        learnt=lambda arm, r: 0.1 if arm == "lora" else LEARNT[r],
        lost=lambda arm, r: 0.0 if arm == "lora" else LOST[r],
    )
    # What is true there: full learns more, and at no rate does LoRA reach what full does.
    odd = {"learns-less-code": frozenset({"contradicted", "mixed"}), "rate-sensitivity": frozenset(
        {"supported", "mixed"}), "lora-needs-longer": frozenset(), "four-epochs": ALL,
        **same_rate}  # fmt: skip
    found.append(Case("learnt-nothing", "LoRA learns nothing and forgets nothing",
                      {"one": nothing}, odd, truth=None))  # fmt: skip
    chance = world(own, lost=lambda arm, r: 0.85 - FLOOR, luck=0.01)
    found.append(Case("at-chance", "identical arms, the source scores end at guessing",
                      {"one": chance}, same, bound=0.3))  # fmt: skip
    lists: Arms = {**FULL, "lora": {**LORA["lora"], "learning_rates":
             [2.5e-4, 3.5e-4, 5e-4, 7.1e-4, 1e-3, 1.4e-3, 2e-3]}}  # fmt: skip
    unequal = world(recipe(lists), learnt=_half_steps(LEARNT), lost=_half_steps(LOST),
                    validation=_half_steps(DOUBT))  # fmt: skip
    found.append(Case("unequal-lists", "identical arms, four rates against seven in half steps",
                      {"one": unequal}, same, bound=LOST[0] * SHARE[0]))  # fmt: skip
    apart = {
        "first": world(own, validation=_certain, lost=_more("full", 0.2)),
        "second": world(own, validation=_certain, lost=_more("lora", 0.2)),
    }
    decided = frozenset({"supported", "contradicted"})
    found.append(Case("disagree", "in one setting LoRA forgets 20 points less, in the other more",
                      apart, {**same_rate, "forgets-less": decided, "forgets-less-matched": decided,
                              "same-tradeoff": ALL}, truth=None))  # fmt: skip
    border = world(own, validation=lambda arm, r: CERTAIN[r], luck=0.005,
                   lost=lambda arm, r: 0.2 + (0.02 / np.mean(SHARE[1:]) if arm == "full" else 0.0),
                   learnt=lambda arm, r: LEARNT[r])  # fmt: skip
    found.append(Case("border", "full forgets the margin of 2 points more at equal learning",
                      {"one": border}, {"same-tradeoff": frozenset({"supported", "mixed"}),
                                        "forgets-less": frozenset({"contradicted"}),
                                        "forgets-less-matched": frozenset({"contradicted"}),
                                        **same_rate}, truth=None))  # fmt: skip
    return (*found, _everything())


def _everything() -> Case:
    """Every claim in its null: ten arms in code, the pair in math and by pretraining."""
    learnt, lost = (0.7, 0.75, 0.7, 0.65), (0.15, 0.2, 0.25, 0.3)

    def level(own: Recipe, shares: Sequence[float]) -> SimulatedWorld:
        # In code no budget gains or loses: "four epochs" and "longer" have their null there.
        return SimulatedWorld(own, learnt=lambda arm, r, b: 0.1 + (learnt[r] - 0.1) * shares[b],
                     kept=lambda arm, r, b: 0.85 - lost[r] * shares[b],
                     validation=lambda arm, r, b: CERTAIN[r], analysis=_null_analysis,
                     items=60)  # fmt: skip

    settings = {
        "code": level(recipe(MANY, budgets=(2, 4)), (1.0, 1.0)),
        "math": level(recipe(PAIR, domain="math"), (0.3, 1.0, 1.0)),
        "pretrain": level(recipe(PAIR, regime="pretrain", budgets=(4,)), (1.0,)),
    }
    false = {
        "rate-ten-times": frozenset({"supported", "mixed"}),
        "same-tradeoff": frozenset({"contradicted", "mixed"}),
        "rank-16-balance": frozenset({"contradicted", "mixed"}),
    }
    return Case("everything", "every claim in its null: ten arms, three settings", settings, false)


# ----- judging -----


@dataclass
class Tally:
    """What came out of a number of studies."""

    studies: int = 0
    false: Counter[str] = field(default_factory=Counter)
    alone: Counter[str] = field(default_factory=Counter)
    spoke: Counter[str] = field(default_factory=Counter)
    inside: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    headline: int = 0
    kept: int = 0

    def add(self, other: Tally) -> None:
        """Take another's counts in."""
        self.studies += other.studies
        self.headline += other.headline
        self.kept += other.kept
        for name in ("false", "alone", "spoke", "inside", "told"):
            getattr(self, name).update(getattr(other, name))


def judge_one(case: Case, draw: np.random.Generator) -> Tally:
    """Draw a study of a case and judge it."""
    settings = [simulate(own, draw, name) for name, own in case.worlds.items()]
    found, tally = judge(settings), Tally(1)
    for claim in found.claims:
        wrong = case.false.get(claim.id, ALL)
        tally.false[claim.id] += claim.verdict in wrong
        tally.alone[claim.id] += claim.alone in wrong
        tally.spoke[claim.id] += claim.p is not None
    if case.truth is not None:
        pairs = found.comparisons or [c for s in settings for c in judge([s]).comparisons]
        for pair in pairs[:1]:
            for name in ("learning", "forgetting", "equal_learning"):
                effect = getattr(pair, name)
                if effect is not None:
                    tally.told[name] += 1
                    tally.inside[name] += effect.interval[0] <= case.truth <= effect.interval[1]
    wrong = case.false.get("forgets-less-matched", ALL)
    chosen = found.answer.startswith(("Choose LoRA", "Choose full"))
    tally.headline += chosen and bool(wrong & {"supported", "contradicted"})
    if case.bound is not None:
        tally.kept += _keeps(settings[0], case.bound)
    return tally


def _keeps(setting: Setting, bound: float) -> bool:
    """Whether recommend, and so gate, says that a bound is kept which nothing truly keeps."""
    found = decide(setting, Constraint(max_forgetting=bound * 0.999), {}, Path("study"))
    return found.state == "recommended" or found.sure is not None


def run_case(job: tuple[str, int, int]) -> tuple[str, Tally]:
    """So many studies of a case, from a seed of its own."""
    name, studies, start = job
    case = next(one for one in cases() if one.name == name)
    tally = Tally()
    for number in range(start, start + studies):
        tally.add(judge_one(case, np.random.default_rng([zlib.crc32(name.encode()), number])))
    return name, tally


# ----- power -----


def power_world(difference: float, seeds: int, items: int) -> SimulatedWorld:
    """Full forgets so much more than LoRA at every rate; what else is as measured."""
    own = recipe(PAIR, seeds, budgets=(1, 2))
    return world(own, validation=_certain, items=items, luck=0.01,
                 lost=lambda arm, r: 0.6 * LOST[r] + difference * (arm == "full"))  # fmt: skip


def run_power(job: tuple[float, int, int, int]) -> tuple[tuple[float, int, int], list[int]]:
    """How often each of the two statements on forgetting is supported jointly."""
    difference, seeds, items, studies = job
    own, counts = power_world(difference, seeds, items), [0, 0]
    for number in range(studies):
        draw = np.random.default_rng([int(1000 * difference), seeds, items, number])
        claims = {claim.id: claim.verdict for claim in judge([simulate(own, draw)]).claims}
        counts[0] += claims["forgets-less"] == "supported"
        counts[1] += claims["forgets-less-matched"] == "supported"
    return (difference, seeds, items), counts


# ----- telling -----


def upper(count: int, n: int) -> float:
    """Upper end of the one-sided 97.5 % interval of a share (Wilson)."""
    z, p = 1.96, count / n
    return (p + z * z / (2 * n) + z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (
        1 + z * z / n
    )


def faults(tallies: Mapping[str, Tally]) -> list[str]:
    """Every bound that was not kept."""
    found = []
    for name, tally in tallies.items():
        n = tally.studies
        told = {**tally.false, "headline": tally.headline, "recommend and gate": tally.kept}
        for what, count in told.items():
            if count / n > CLAIM_BOUND and upper(count, n) > UPPER_BOUND:
                found.append(f"{name}: {what} is false in {100 * count / n:.1f} % of {n} studies")
        for what, count in tally.told.items():
            share = tally.inside[what] / count
            spread = 1.96 * math.sqrt(0.05 * 0.95 / count)
            if not COVERAGE[0] - spread <= share <= COVERAGE[1] + spread:
                found.append(f"{name}: intervals of {what} hold the truth in {100 * share:.1f} %")
    return found


def report(tallies: Mapping[str, Tally], power: Mapping[tuple[float, int, int], list[int]],
           studies: int) -> str:  # fmt: skip
    """The tables, as Markdown."""
    words = {case.name: case.words for case in cases()}
    lines = ["| world | studies | worst false claim, joint | by its own interval | headline | "
             "recommend, gate | intervals hold: learning | forgetting | at equal learning |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, tally in tallies.items():
        n = tally.studies
        joint, alone = (max(t.items(), key=lambda one: one[1]) for t in (tally.false, tally.alone))
        cells = [f"{name}: {words[name]}", str(n)]
        cells += [
            f"{100 * count / n:.1f} % ({what})" if count else "0" for what, count in (joint, alone)
        ]
        cells += [f"{100 * tally.headline / n:.1f} %", f"{100 * tally.kept / n:.1f} %"]
        for what in ("learning", "forgetting", "equal_learning"):
            told = tally.told[what]
            cells.append(f"{100 * tally.inside[what] / told:.1f} %" if told else "–")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "False joint verdicts of each claim, in percent of the studies (– where it could "
              "not speak in any):", "", f"| claim | {' | '.join(tallies)} |",
              f"|---|{'---|' * len(tallies)}"]  # fmt: skip
    for claim in next(iter(tallies.values())).false:
        cells = [
            f"{100 * t.false[claim] / t.studies:.1f}" if t.spoke[claim] else "–"
            for t in tallies.values()
        ]
        lines.append(f"| {claim} | {' | '.join(cells)} |")
    if power:
        lines += ["", "Power: how often the joint verdict is \"supported\" where full forgets more "
                  "by so many points at every rate (choice certain, run luck 1 point, two "
                  "budgets), tuned / at equal learning, in percent:", "",
                  "| seeds | questions a task | 2 points | 5 points | 10 points |",
                  "|---|---|---|---|---|"]  # fmt: skip
        each = max(1, studies // 10)
        for seeds, items in dict.fromkeys((s, i) for _, s, i in power):
            cells = []
            for difference in (0.02, 0.05, 0.1):
                counts = power[difference, seeds, items]
                cells.append(" / ".join(f"{100 * count / each:.0f}" for count in counts))
            lines.append(f"| {seeds} | {items} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def calibrate(
    studies: int, names: Sequence[str] = (), with_power: bool = True
) -> tuple[dict[str, Tally], dict[tuple[float, int, int], list[int]]]:
    """Judge so many studies of each case, side by side on all processors."""
    chosen = [case.name for case in cases() if not names or case.name in names]
    step = 25
    jobs = [(name, min(step, studies - s), s) for name in chosen for s in range(0, studies, step)]
    grid = [(d, k, i, max(1, studies // 10)) for k in (3, 5, 10) for i in (100, 300)
            for d in (0.02, 0.05, 0.1)]  # fmt: skip
    tallies: dict[str, Tally] = {name: Tally() for name in chosen}
    power = {}
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for done, (name, tally) in enumerate(pool.imap_unordered(run_case, jobs), 1):
            tallies[name].add(tally)
            print(f"\r{done} of {len(jobs)} batches", end="", file=sys.stderr, flush=True)
        if with_power:
            power = dict(pool.imap_unordered(run_power, grid))
    print(file=sys.stderr)
    return tallies, dict(sorted(power.items(), key=lambda one: one[0][1:] + one[0][:1]))


def main() -> None:
    """Calibrate, print the tables, and fail where a bound is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--studies", type=int, default=500, help="studies of each world")
    parser.add_argument("--world", action="append", default=[], help="only this one; repeatable")
    parser.add_argument("--out", type=Path, help="write the tables there as well")
    given = parser.parse_args()
    start = time.monotonic()
    tallies, power = calibrate(given.studies, given.world, not given.world)
    text = report(tallies, power, given.studies)
    print(text)
    print(f"{time.monotonic() - start:.0f} s on {os.cpu_count()} processors")
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    broken = faults(tallies)
    for fault in broken:
        print(f"NOT KEPT: {fault}")
    raise SystemExit(1 if broken else 0)


if __name__ == "__main__":
    main()
