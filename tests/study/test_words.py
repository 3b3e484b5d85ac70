"""What is said in words: 25 of them, by the verdicts, and nowhere two that contradict."""

from __future__ import annotations

import io
import json
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from laura.cli.decision import claims_table, recommendation_text
from laura.report.blocks import Document, Figure
from laura.report.html import document_text, lay_out
from laura.report.study import Study
from laura.report.tables import summary_table
from laura.results.schema import Constraint, Judgement, Recommendation
from laura.results.units import rate_text
from laura.study.claims.judgement import judge
from laura.study.claims.settings import Setting
from laura.study.recommend import answer_of as advice_of
from laura.study.recommend import decide, recommendation_of
from laura.study.summary import build_summary
from tests.study.fabricated import FULL, LORA, PAIR, RATES, filled, rebuilt, setting

Said = dict[tuple[str, str, frozenset[str]], set[str]]
"""When ("Tuned", "At equal learning"), verb and pair, to who did more: an arm, or "" for nobody."""

FURTHER: dict[str, dict[str, Any]] = {
    "lora-r64": {"method": "lora", "rank": 64},
    "lora-mlp": {**LORA, "targets": "mlp"},
    "lora-attention": {**LORA, "targets": "attention"},
    "decay": {**FULL, "weight_decay": 0.1},
    "dropout": {**FULL, "attention_dropout": 0.1},
    "toward": {**FULL, "weight_decay": 0.1, "weight_decay_toward": "base"},
    "mixed": {**FULL, "replay": 0.1},
    "lora-mixed": {**LORA, "replay": 0.1},
    "dora": {**LORA, "dora": True},
}
# What a statement says of each of its deciding rows, whose first arm does more if it holds.
ROWS = {
    "learns-less-code": ("Tuned", "learnt"),
    "learns-less-elsewhere": ("Tuned", "learnt"),
    "forgets-less": ("Tuned", "forgot"),
    "forgets-less-matched": ("At equal learning", "forgot"),
    "stronger-regulariser": ("Tuned", "forgot"),
    "targets-order": ("Tuned", "learnt"),
    "replay-mitigates": ("Tuned", "forgot"),
}


# ----- studies -----


def random_settings(draw: np.random.Generator) -> list[Setting]:
    """One to three studies of random arms, rates, budgets, seeds and truths."""
    number = int(draw.choice([1, 1, 1, 1, 2, 3]))
    names = list(FURTHER)
    arms = {**PAIR} if draw.random() < 0.85 else {"lora": LORA}
    arms |= {name: FURTHER[name] for name in draw.permutation(names)[: draw.integers(0, 5)]}
    found = []
    for place in range(number):
        count = int(draw.choice([1, 3, 3, 3, 3, 3, 4]))
        rates = [2.5e-4 * 2**step for step in range(count)]
        seeds = list(range(draw.choice([1, 2, 3, 3, 5, 5, 8])))
        search = str(draw.choice(["all", "all", "all", "first"]))
        apart = draw.choice([0.0, 0.03, 0.15], 2)
        sides = [{name: np.clip(0.6 + own * draw.normal(), 0.1, 0.99) for name in arms}
                 for own in apart]  # fmt: skip
        learnt, kept = sides
        losses = {name: list(0.3 + draw.choice([0.001, 0.05]) * draw.random(count))
                  for name in arms}  # fmt: skip
        fresh = [(name, rate, seeds[1:]) for name in arms for rate in rates]
        found.append(setting(
            {name: _grown(level, count) for name, level in learnt.items()},
            {name: _lost(level, count) for name, level in kept.items()},
            arms={name: {**own, "learning_rates": rates} for name, own in arms.items()},
            validation=losses, name=f"s{place}", number=int(draw.integers(1 << 30)),
            fresh=fresh if search == "first" and draw.random() < 0.7 else (),
            luck=float(draw.choice([0.0, 0.005, 0.03])), items=int(draw.choice([40, 80, 150])),
            own={"seeds": seeds, "budgets": [(4,), (2, 4), (1, 2, 4)][draw.integers(3)],
                 "search": search, "domain": str(draw.choice(["code", "math", "law"])),
                 "regime": str(draw.choice(["instruct", "pretrain"])),
                 "forgetting": [("winogrande",), ("hellaswag", "winogrande")][draw.integers(2)]},
        ))  # fmt: skip
    return found


def _grown(level: float, count: int) -> Callable[[int, int], float]:
    return lambda place, budget: (
        0.1 + (level - 0.1) * (1 - 0.1 * abs(place - 1)) * (0.7 + 0.1 * budget)
    )


def _lost(level: float, count: int) -> Callable[[int, int], float]:
    return lambda place, budget: 0.85 - (0.85 - level) * (0.5 + 0.3 * place) * (0.7 + 0.1 * budget)


# ----- reading what is said -----


def shown(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=4000, record=False)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def report_text(one: Setting, judged: Judgement, advice: Recommendation | None) -> str:
    """Page and terminal table of a study, as the commands draw them, but for the charts."""
    study = Study(build_summary(filled(one).evidence), judgement=judged, recommendation=advice)
    pages, absent = lay_out(study, "md")
    pages = [replace(page, blocks=[block for block in page.blocks if not isinstance(block, Figure)])
             for page in pages]  # fmt: skip
    page = document_text(Document("study", "", study.answer, [], pages, absent, ""), {})
    return shown(summary_table(study)) + re.sub(r"\\(.)", r"\1", page)


def read(text: str, said: Said, methods: dict[str, str]) -> None:
    """Take in every sentence that says who learnt or forgot more, or that nobody was shown to."""

    def note(when: str, verb: str, pair: Sequence[str], more: str) -> None:
        names = [methods.get(name, name) for name in pair]
        said.setdefault((when, verb, frozenset(names)), set()).add(methods.get(more, more))

    when = r"(Tuned|At equal learning), "
    for found in re.finditer(when + r"(\S+) (learnt|forgot) [\d.e-]+ points? more than (\S+) \(",
                             text):  # fmt: skip
        note(found[1], found[3], (found[2], found[4]), found[2])
    for found in re.finditer(
        when + r"(\S+) and (\S+) cannot be told apart in what they (learnt|forgot)", text
    ):
        note(found[1], found[4], (found[2], found[3]), "")
    for found in re.finditer(
        when + r"which of the two (learnt|forgot) more is (\w+): (\S+) minus (\S+) ", text
    ):
        assert found[3] in ("undecided", "mixed", "suggested")
        note(found[1], found[2], (found[4], found[5]), "")


ANSWERS: list[tuple[str, str]] = [
    ("LoRA", r"^Choose LoRA: at equal learning.* full finetuning forgot [\d.]+ points? more\.$"),
    ("full", r"^Choose full finetuning at a low rate: at equal learning.* LoRA forgot [\d.]+ "
             r"points? more\.$"),
    ("mixed", r"^Choose for each domain: at equal learning LoRA forgot less in some settings, "
              r"more in others\.$"),
    ("same", r"^Choose by cost: at equal learning.* forgot the same within 2 points\.$"),
    ("gentler", r"^(Lower the rate before you change the method|Method undecided; try this): "
            r"\S+ at \S+ forgot [\d.]+ points? "
            r"instead of [\d.]+ and still learnt [\d.]+\.$"),
    ("suggested", r"^Try LoRA first and confirm it: .* seems to forget [\d.]+ points? more\.$"),
    ("run", r"^Run (about )?\d+ seeds.* before you choose: at equal learning full finetuning minus "
            r"LoRA forgot \S+ to \S+ points\.$"),
    ("undecided", r"^Undecided: at equal learning full finetuning minus LoRA forgot \S+ to \S+ "
                  r"points; add seeds and items, or choose by cost\.$"),
    ("missing", r"^Run more before you choose: .*[.…]$"),
    ("pair", r"^Choose (\S+): at equal learning (\S+) forgot [\d.]+ points? more\.$"),
    ("cost", r"^Choose between (\S+) and (\S+) by cost: at equal learning no difference in "
             r"forgetting was shown\.$"),
    ("pair missing", r"^Run more before you choose between \S+ and \S+; see what is missing\.$"),
    ("alone", r"^Add a second arm: only \S+ was measured, so nothing can be compared\.$"),
    ("diverged", r"^Lower the learning rates: every run diverged, so nothing can be compared\.$"),
    ("again", r"^Give the same command again: no arm has finished all of its rates with any "
              r"seed\.$"),
    ("none", r"^Nothing was judged: no study could be read; see what is missing\.$"),
]  # fmt: skip


# How sure each branch is; of the others nothing was compared.
CERTAIN = {
    "LoRA": "supported", "full": "supported", "same": "supported", "pair": "supported",
    "mixed": "mixed", "gentler": "suggested", "suggested": "suggested", "run": "undecided",
    "undecided": "undecided", "missing": "undecided", "cost": "undecided",
}  # fmt: skip


def branch(answer: str) -> str:
    """Which of its branches an answer is from; all of its words are known."""
    assert len(answer.split()) <= 25, answer
    assert answer.endswith((".", "…")) and not answer.endswith("…."), answer
    found = [name for name, pattern in ANSWERS if re.match(pattern, answer)]
    assert found, f"no answer is written so: {answer}"
    return found[0]


def read_answer(answer: str, found: Judgement, said: Said) -> str:
    """The branch of an answer, and what it says of two arms."""
    kind = branch(answer)
    claims = {claim.id: claim for claim in found.claims}
    matched = claims["forgets-less-matched"].verdict
    wanted = {"LoRA": "supported", "full": "contradicted", "mixed": "mixed",
              "suggested": "suggested"}  # fmt: skip
    if kind in wanted:
        assert matched == wanted[kind], answer
    elif kind in ("same", "run", "undecided", "missing"):
        assert matched == "undecided", answer
        assert (claims["same-tradeoff"].verdict == "supported") == (kind == "same"), answer
    assert found.verdict == CERTAIN.get(kind), answer
    read_next_step(kind, found)
    if kind in ("pair", "cost"):
        first, second = re.findall(r"(?:Choose |between |learning |and )(\S+?):? ", answer)[:2]
        pair = frozenset((first, second))
        if kind == "pair":
            assert {*found.comparisons[0].arms} == pair
        more = second if kind == "pair" else ""
        said.setdefault(("At equal learning", "forgot", pair), set()).add(more)
    return kind


def read_next_step(kind: str, found: Judgement) -> None:
    """What would decide the answer: what it names once more, or as many seeds as it says."""
    if kind == "gentler":
        [one] = found.named
        assert f"{one.arm} at {rate_text(one.learning_rate)} forgot" in found.answer
        assert found.options == f"--confirm {one.arm}@{one.learning_rate:g}"
        assert found.more_runs >= 3 and "fresh seeds" in found.missing
    elif found.options:
        seeds = found.options.removeprefix("--set seeds=[").removesuffix("]").split(",")
        assert len(seeds) == len({*seeds}) == int(re.findall(r"\d+", found.missing)[0])
        assert found.more_runs > 0 and kind in ("run", "suggested")
    else:
        assert found.more_runs == 0 and not found.named


def read_claims(found: Judgement, said: Said) -> None:
    """What the joint verdicts say of two arms, where one study was judged."""
    for claim in found.claims:
        rows = [row for row in claim.evidence if row.decides and row.effect]
        if claim.id not in ROWS or not rows:
            continue
        when, verb = ROWS[claim.id]
        for row in rows:
            key = (when, verb, frozenset(row.arms))
            if claim.verdict == "supported":
                said.setdefault(key, set()).add(row.arms[0])
            elif len(rows) == 1:
                more = row.arms[1] if claim.verdict == "contradicted" else ""
                said.setdefault(key, set()).add(more)


def check(draw: np.random.Generator, with_report: bool) -> str:
    """Judge a random study by every output; the branch of its answer."""
    settings = random_settings(draw)
    found = judge(settings)
    said: Said = {}
    kind = read_answer(found.answer, found, said)
    text = "\n".join([*found.sentences, *found.others])
    if len(settings) == 1:
        (one,) = settings
        read_claims(found, said)
        bound = Constraint(max_forgetting=float(draw.choice([0.01, 0.05, 0.2])))
        decision = decide(one, bound, {}, Path("study"))
        advice = recommendation_of(decision, Path("ready.yaml"), None)
        assert len(advice_of(decision).split()) <= 25
        if advice.chosen is not None:
            text += recommendation_text(advice)
        if with_report:
            text += report_text(one, found, advice)
    text += shown(claims_table(found))
    read(text, said, {})
    for key, words in said.items():
        assert len(words) == 1, (key, words, text)
    for claim in found.claims:
        assert claim.verdict in (claim.alone, "undecided")
    first = [one.suggests_only for one in settings]
    if all(first):
        assert {claim.verdict for claim in found.claims} <= {"suggested", "undecided"}
        assert kind not in ("LoRA", "full", "mixed", "same", "gentler", "pair")
    json.dumps(found.model_dump(mode="json"), allow_nan=False)
    return kind


def many(studies: int, start: int = 0, report_every: int = 10) -> Counter[str]:
    """So many random studies; how often each branch of the answer was reached."""
    found: Counter[str] = Counter()
    for number in range(start, start + studies):
        found[check(np.random.default_rng([11, number]), number % report_every == 0)] += 1
    return found


def _pair(full: float, lora: float, luck: float = 0.003, **own: Any) -> Setting:
    """Both learn alike; what each keeps is told."""
    alike = {"full": 0.7, "lora": 0.7}
    return setting(alike, {"full": full, "lora": lora}, luck=luck, items=200, own={**FIVE, **own})


def _ranks(first: float, second: float, **own: Any) -> Setting:
    arms = {"small": {"method": "lora", "rank": 4}, "large": {"method": "lora", "rank": 64}}
    levels = {"small": first, "large": second}
    return setting(dict.fromkeys(arms, 0.7), levels, arms=arms, luck=0.003, items=200,
                   own={**FIVE, **own})  # fmt: skip


def _without_runs(state: str) -> Setting:
    made = _pair(0.5, 0.5)
    runs = [replace(run, state=state) for run in made.evidence.runs]
    return rebuilt(made, runs=runs, points=[])


def _gentle() -> Setting:
    learnt, kept = (0.68, 0.7, 0.5), (0.84, 0.6, 0.5)
    return setting(dict.fromkeys(PAIR, lambda place, budget: learnt[place]),
                   dict.fromkeys(PAIR, lambda place, budget: kept[place]),
                   luck=0.01, own={**FIVE, "budgets": (4,)})  # fmt: skip


def _on_one_seed() -> Setting:
    fresh = [(name, rate, (1, 2, 3, 4)) for name in PAIR for rate in RATES]
    return setting(dict.fromkeys(PAIR, 0.7), {"full": 0.3, "lora": 0.75}, luck=0.003, items=200,
                   fresh=fresh, own={**FIVE, "search": "first"})  # fmt: skip


FIVE: dict[str, Any] = {"seeds": (0, 1, 2, 3, 4)}
BRANCHES: dict[str, Callable[[], list[Setting]]] = {
    "LoRA": lambda: [_pair(0.3, 0.75)],
    "full": lambda: [_pair(0.75, 0.3)],
    "mixed": lambda: [replace(_pair(*kept), name=str(kept)) for kept in ((0.3, 0.75), (0.75, 0.3))],
    "same": lambda: [setting(dict.fromkeys(PAIR, 0.7), dict.fromkeys(PAIR, 0.7), items=12_000,
                             luck=0.0, own={**FIVE, "budgets": (2, 4)})],
    "gentler": lambda: [_gentle()],
    "suggested": lambda: [_on_one_seed()],
    "run": lambda: [_pair(0.82, 0.84, luck=0.02, seeds=(0, 1, 2))],
    "undecided": lambda: [setting(dict.fromkeys(PAIR, 0.7), dict.fromkeys(PAIR, 0.84), luck=0.02,
                                  number=1)],
    "missing": lambda: [_pair(0.3, 0.75, seeds=(0, 1))],
    "pair": lambda: [_ranks(0.3, 0.75)],
    "cost": lambda: [_ranks(0.8, 0.8)],
    "pair missing": lambda: [_ranks(0.3, 0.75, seeds=(0, 1))],
    "alone": lambda: [setting(arms={"full": FULL})],
    "diverged": lambda: [_without_runs("diverged")],
    "again": lambda: [_without_runs("open")],
    "none": list,
}  # fmt: skip


def test_every_branch_is_listed() -> None:
    assert {*BRANCHES} == {name for name, _ in ANSWERS}


@pytest.mark.parametrize("name", BRANCHES)
def test_each_branch_of_the_answer_is_reached_and_fits_the_verdict(name: str) -> None:
    found = judge(BRANCHES[name]())
    assert read_answer(found.answer, found, {}) == name, found.answer


def test_no_two_sentences_of_a_study_contradict() -> None:
    found = many(60)
    assert len(found) >= 5, found


def test_arms_beside_the_main_pair_are_told_by_the_statement_that_speaks_of_them() -> None:
    """Where the correction over pairs and the joint one over statements part."""
    arms = {**PAIR, "mixed": FURTHER["mixed"], "lora-mlp": FURTHER["lora-mlp"],
            "lora-attention": FURTHER["lora-attention"]}  # fmt: skip
    decided = 0
    for number in range(30, 45):
        gap = 0.03 + 0.002 * (number % 30)
        one = setting({**dict.fromkeys(arms, 0.6), "lora-mlp": 0.6 - gap,
                       "lora-attention": 0.6 - 2 * gap},
                      {**dict.fromkeys(arms, 0.5), "mixed": 0.5 + gap}, arms=arms, number=number,
                      own={"seeds": list(range(5))}, luck=0.005)  # fmt: skip
        found = judge([one])
        said: Said = {}
        read_claims(found, said)
        read("\n".join([*found.sentences, *found.others]), said, {})
        assert all(len(words) == 1 for words in said.values()), said
        decided += said["Tuned", "forgot", frozenset(("full", "mixed"))] == {"full"}
    assert 0 < decided < 15


@pytest.mark.slow
def test_no_two_sentences_of_two_thousand_studies_contradict() -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.starmap(many, [(100, 1000 + 100 * part, 50) for part in range(20)])
    assert sum(parts, Counter()).total() == 2000
