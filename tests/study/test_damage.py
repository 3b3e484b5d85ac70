"""Damaged and thin studies: the judge says what is missing, and never stops with an exception."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st

from laura.results.errors import EvidenceError, StoreError, UsageError
from laura.results.schema import Constraint
from laura.results.store import SeriesStore
from laura.results.task_result import VALIDATION
from laura.study.claims.judgement import (
    judge,
    read_analysis,
    read_setting,
    write_series_claims,
)
from laura.study.claims.settings import Setting
from laura.study.recommend import answer_of, decide, recommendation_of
from tests.study.fabricated import FULL, LORA, PAIR, rebuilt, setting
from tests.study.test_words import branch

ARMS: dict[str, dict[str, Any]] = {
    **PAIR,
    "lora-r64": {"method": "lora", "rank": 64},
    "mlp": {**LORA, "targets": "mlp"},
    "attention": {**LORA, "targets": "attention"},
    "decay": {**FULL, "weight_decay": 0.1},
    "dropout": {**FULL, "attention_dropout": 0.1},
    "mixed": {**FULL, "replay": 0.1},
}


STATES = ("done", "done", "done", "diverged", "failed", "open", "gone")


@lru_cache
def whole(domain: str, regime: str) -> Setting:
    learnt, kept = dict.fromkeys(ARMS, 0.7), dict.fromkeys(ARMS, 0.7)
    return setting(learnt, kept, arms=ARMS, items=60, name=f"{domain}-{regime}",
                   fresh=[("full", 5e-4, (3, 4, 5))],
                   own={"domain": domain, "regime": regime})  # fmt: skip


def concluded(*made: Setting) -> None:
    """Everything is said, in its form, and nothing is sure that was not tested."""
    found = judge(made)
    json.dumps(found.model_dump(mode="json"), allow_nan=False)
    branch(found.answer)
    for claim in found.claims:
        assert claim.reason
        if claim.p is None:
            assert claim.verdict == claim.alone == "undecided" and claim.missing
    for one in made:
        for bounds in ({"max_forgetting": 0.2}, {"min_learning": 0.1}):
            try:
                decision = decide(one, Constraint(**bounds), {}, Path("study"))
            except EvidenceError as error:
                assert "again" in str(error)
                continue
            assert len(answer_of(decision).split()) <= 25
            recommendation_of(decision, None, None)


def damaged(old: Setting, chance: np.random.Generator) -> Setting:
    """Runs that diverged, stopped or are missing; results, validation, seeds or items that are."""
    was = old.evidence
    share = chance.choice([0.0, 0.05, 0.3, 0.9, 1.0])
    lost_arms = set(chance.permutation(list(ARMS))[: chance.integers(0, 4)])
    lost_seeds = set(chance.permutation(3)[: chance.choice([0, 0, 0, 1, 2])].tolist())
    lost_tasks = {*chance.permutation(["humaneval", "hellaswag", VALIDATION])
                  [: chance.choice([0, 0, 0, 1])]}  # fmt: skip
    what = chance.choice(["runs", "results", "items", "budgets"])
    runs, points, kinds = [], [], {}
    for run in (*was.runs, *was.confirming_runs):
        state = str(chance.choice(STATES)) if chance.random() < share and what == "runs" else "done"
        if run.arm in lost_arms:
            state = "diverged"
        if run.seed in lost_seeds:
            state = "gone"
        kinds[run.run_id] = state
        if state != "gone":
            runs.append(replace(run, state=state))
    read = dict(old._read)
    for point in (*was.points, *was.confirming):
        hit = chance.random() < share
        if kinds[point.run_id] in ("gone", "diverged") or (hit and what == "budgets"):
            continue
        results = {t: r for t, r in point.results.items() if t not in lost_tasks}
        if hit and what == "results" and results:
            results.pop(list(results)[chance.integers(len(results))])
        if hit and what == "items":
            for task in [t for t in results if t != VALIDATION]:
                results[task] = copy.copy(results[task])
                indices, values, within = read[id(point.results[task])]
                keep = int(chance.choice([0, 1, 30, 59]))
                read[id(results[task])] = (indices[:keep], values[:keep], within)
        points.append(replace(point, results=results))
    base = {t: r for t, r in was.base.items() if t not in lost_tasks or chance.random() < 0.5}
    made = rebuilt(old, runs=runs, points=points, base=base)
    made._read.update(read)
    # What the copies stand for must live as long as the setting.
    made.known["kept"] = points
    return made


@few(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 32))
def test_any_damage_ends_in_a_judgement(number: int) -> None:
    chance = np.random.default_rng(number)
    places = [("code", "instruct"), ("math", "instruct"), ("code", "pretrain")]
    chosen = chance.permutation(3)[: chance.choice([1, 1, 1, 2])]
    concluded(*[damaged(whole(*places[place]), chance) for place in chosen])


def test_every_run_diverged() -> None:
    old = whole("code", "instruct")
    runs = [replace(run, state="diverged") for run in old.evidence.runs]
    made = rebuilt(old, runs=runs, points=[])
    concluded(made)
    found = judge([made])
    assert found.answer.startswith("Lower the learning rates: every run diverged")
    assert found.tested == 0 and len(found.gaps) >= len(runs)
    assert "one: full at 0.00025, seed 0: diverged".replace("one", made.name) in found.gaps


def test_nothing_was_run_and_nothing_was_measured_on_the_base() -> None:
    old = whole("code", "instruct")
    for changes in ({"runs": [], "points": []}, {"base": {}}, {"base": {}, "points": []}):
        made = rebuilt(old, **changes)
        concluded(made)
        if not made.evidence.points:
            assert judge([made]).tested == 0
    assert judge([]).answer.startswith("Nothing was judged")


def test_an_arm_without_a_finished_rate_is_told_and_the_others_are_judged() -> None:
    old = whole("code", "instruct")
    last = [run for run in old.evidence.runs if (run.arm, run.learning_rate) == ("mixed", 1e-3)]
    gone = {run.run_id for run in last}
    made = rebuilt(
        old,
        runs=[run for run in old.evidence.runs if run.run_id not in gone],
        points=[point for point in old.evidence.points if point.run_id not in gone],
    )
    concluded(made)
    found = judge([made])
    claims = {claim.id: claim for claim in found.claims}
    assert "mixed has no seed whose rates have all ended" in claims["replay-mitigates"].reason
    assert claims["forgets-less"].effect is not None
    assert any("mixed has no seed that every rate was run with" in told for told in found.caveats)
    assert f"{made.name}: mixed has 0 of 3 seeds with every rate ended" in found.gaps
    assert all("mixed" not in one.arms for one in found.comparisons)


@pytest.mark.parametrize("items", [2, 3])
def test_few_items(items: int) -> None:
    concluded(setting({"full": 0.7}, arms=ARMS, items=items))


def test_one_seed_one_rate_one_budget_one_arm() -> None:
    own = {"seeds": [0], "budgets": (1,)}
    one = {"full": {**FULL, "learning_rates": [1e-4]}}
    concluded(setting(arms=one, validation={"full": (0.3,)}, own=own))
    concluded(setting(arms=ARMS, own=own))


# ----- files -----

DAMAGES: dict[str, tuple[str, str]] = {
    "a record": ("runs/lora-0.01-1/run.json", "{"),
    "a record of nothing": ("runs/lora-0.01-1/run.json", '{"arm": "lora"}'),
    "a result": ("base/evals/gsm8k.json", "[]"),
    "a recipe": ("recipe.yaml", "name: 3"),
    "an analysis": ("analysis.json", '{"format": 2, "diversity": [3]}'),
    "the facts": ("study.json", ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_setting_of_a_series_is_a_gap_and_the_others_are_judged(
    damage: str, tmp_path: Path
) -> None:
    from tests.study.test_findings import Made

    series = SeriesStore(tmp_path / "series")
    series.write("both", ["first", "hurt", "later"])
    for name in ("first", "hurt"):
        Made(series.setting(name).folder).write()
    file, text = DAMAGES[damage]
    (series.setting("hurt").folder / file).write_text(text)
    found = write_series_claims(series.folder)
    first = read_setting(series.setting("first").folder)
    alone = judge([Setting("first", first.evidence, first.analysis)])
    assert found.claims == alone.claims and found.settings == alone.settings
    hurt, later, *others = found.gaps
    assert hurt.startswith("hurt: is left out, since ") and Path(file).name in hurt
    assert str(tmp_path) not in hurt and later == "later: was not carried out"
    assert others == alone.gaps


def test_folders_that_are_no_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no study"):
        read_setting(tmp_path)
    assert read_analysis(tmp_path) is None
    for text in ("[]", "{", '{"format": 2, "spectra": [{}]}', '{"format": 2, "tradeoff": 3}'):
        (tmp_path / "analysis.json").write_text(text)
        with pytest.raises((StoreError, UsageError), match=r"analysis\.json"):
            read_analysis(tmp_path)
