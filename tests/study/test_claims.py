"""Claims judged by studies whose truth is known: every verdict, and how often it is wrong."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laura.study.effects import TooThin
from scipy import stats

from laura.errors import StoreError
from laura.store import SeriesStore
from laura.study.claims.judgement import (
    build_claims,
    read_analysis,
    read_study,
    write_series_claims,
)
from laura.study.claims.settings import LEARNING, Setting
from laura.study.claims.table import CLAIMS
from laura.study.claims.verdicts import holm
from tests.study.fabricated import (
    FULL,
    LEARN,
    LORA,
    World,
    forgetting,
    full,
    lora,
    math_and_code,
    targets,
)


def verdicts(*worlds: World, analysis: dict[str, Any] | None = None) -> dict[str, Any]:
    settings = [(f"s{i}", world.evidence(i), analysis) for i, world in enumerate(worlds)]
    found = build_claims(settings)
    json.dumps(found, allow_nan=False)
    return {claim["id"]: claim for claim in found["claims"]}


# Each claim, each verdict.

UP, DOWN = 0.75, 0.3
CURVE = {1: 0.3, 2: 0.5, 4: 0.8, 8: 0.5}  # peaks at 4


def curves(early: str, late: str) -> dict[Any, float]:
    """Two arms, one of which peaks four times as late."""
    first = {(LEARN, early, b): v for b, v in ((1, 0.8), (2, 0.5), (4, 0.35), (8, 0.3))}
    return {**first, **{(LEARN, late, b): CURVE[b] for b in CURVE}}


def ranks(learnt: tuple[float, float], kept: tuple[float, float]) -> World:
    arms = [lora("high", rank=64), lora("low", rank=4)]
    truth: dict[Any, float] = {(LEARN, "high"): learnt[0], (LEARN, "low"): learnt[1]}
    return World({**truth, **forgetting("high", kept[0]), **forgetting("low", kept[1])}, arms)


def regularised(lora_keeps: float, others: float) -> World:
    arms = [FULL, LORA, full("decay", weight_decay=0.1)]
    truth = {**forgetting("full", others), **forgetting("lora", lora_keeps)}
    return World({**truth, **forgetting("decay", others)}, arms)


def regimes(instruct: float, pretrain: float) -> tuple[World, World]:
    return (
        World({(LEARN, "full"): instruct}),
        World({(LEARN, "full"): pretrain}, regime="pretrain"),
    )


def rates(factor: float) -> World:
    """Best rates inside both lists, so many times apart; every seed ran every rate."""
    steps = (0.5, 1, 2)
    arms = [full("full", learning_rates=[1e-4 * s for s in steps]),
            lora("lora", learning_rates=[1e-4 * factor * s for s in steps])]  # fmt: skip
    losses = {(name, 1e-4 * f * s): abs(s - 1) for name, f in (("full", 1.0), ("lora", factor))
              for s in steps}  # fmt: skip
    return World({}, arms, losses=losses)


OUTCOMES: dict[str, dict[str, tuple[World, ...]]] = {
    "learns-less-code": {
        "supported": (World({(LEARN, "full"): UP, (LEARN, "lora"): DOWN}),),
        "contradicted": (World({(LEARN, "full"): DOWN, (LEARN, "lora"): UP}),),
    },
    "learns-less-elsewhere": {
        "supported": (World({("gsm8k", "full"): UP}, domain="math", learning="gsm8k"),),
        "contradicted": (World({("gsm8k", "full"): DOWN}, domain="math", learning="gsm8k"),),
    },
    "narrows-gap-math": {
        "supported": math_and_code(0.9, 0.3),
        "contradicted": math_and_code(0.3, 0.9),
    },
    "forgets-less": {
        "supported": (World({**forgetting("full", DOWN), **forgetting("lora", UP)}),),
        "contradicted": (World({**forgetting("full", UP), **forgetting("lora", DOWN)}),),
    },
    "rate-ten-times": {"supported": (rates(10),), "contradicted": (rates(1),)},
    "targets-order": {
        "supported": (targets((0.8, 0.5, 0.2)),),
        "contradicted": (targets((0.5, 0.8, 0.2)),),
    },
    "rank-moves-along": {
        "supported": (ranks((UP, DOWN), (DOWN, UP)),),
        "contradicted": (ranks((UP, DOWN), (UP, DOWN)),),
    },
    "instruct-over-pretrain": {
        "supported": regimes(UP, DOWN),
        "contradicted": regimes(DOWN, UP),
    },
    "lora-needs-longer": {
        "supported": (World(curves("full", "lora"), budgets=(1, 2, 4, 8), items=400),),
        "contradicted": (World(curves("lora", "full"), budgets=(1, 2, 4, 8), items=400),),
    },
    "four-epochs": {
        "supported": (World(curves("full", "lora"), budgets=(1, 2, 4, 8)),),
        "contradicted": (World(curves("lora", "full"), budgets=(1, 2, 4, 8)),),
    },
}


@pytest.mark.parametrize("claim", OUTCOMES)
def test_each_verdict_on_scores_can_be_reached(claim: str) -> None:
    for verdict, worlds in OUTCOMES[claim].items():
        found = verdicts(*worlds)[claim]
        assert found["verdict"] == verdict, found
        low, high = found["interval"]
        assert low < found["effect"] < high and found["n"] and found["seeds"] == 3
        assert found["reason"] and found["p"] <= 0.05
        for row in found["evidence"]:
            assert row["setting"] and row["arms"]
    nothing = World({}, (FULL,), learning="gsm8k")
    thin = verdicts(nothing)[claim]
    assert thin["verdict"] == "too thin" and thin["reason"] and thin["effect"] is None


def test_pairs_with_a_setting_in_common_do_not_count_its_seeds_twice() -> None:
    pair = [(f"s{i}", world.evidence(i), None) for i, world in enumerate(regimes(UP, DOWN))]
    again = [*pair, ("copy", pair[1][1], None)]  # the same runs, in a second pair
    ends = []
    for settings in (pair, again):
        claims = {claim["id"]: claim for claim in build_claims(settings)["claims"]}
        ends.append(claims["instruct-over-pretrain"]["interval"])
    assert ends[1] == pytest.approx(ends[0])


def test_fewer_than_three_seeds_or_fifty_items_are_too_thin() -> None:
    truth = {(LEARN, "full"): UP, (LEARN, "lora"): DOWN}
    two = verdicts(World(truth, seeds=(0, 1)))["learns-less-code"]
    assert two["verdict"] == "too thin" and "at most 2 seeds" in two["reason"]
    few = verdicts(World(truth, items=49))["learns-less-code"]
    assert few["verdict"] == "too thin" and "49 items measured; 50 are needed" in few["reason"]


def test_arms_are_known_by_their_settings_not_their_names() -> None:
    arms = [FULL.replace("full:", "lora:"), LORA.replace("lora:", "full:")]
    truth = {(LEARN, "lora"): UP, (LEARN, "full"): DOWN}
    claims = verdicts(World(truth, arms))
    found = claims["learns-less-code"]
    assert found["verdict"] == "supported" and found["evidence"][0]["arms"] == ["full", "lora"]
    assert "one rank only" in claims["rank-moves-along"]["reason"]


def test_the_highest_rank_speaks_for_lora_and_others_stand_beside_it() -> None:
    arms = [
        FULL,
        lora("small", rank=4),
        lora("large", rank=64),
        lora("mlp", rank=99, targets="mlp"),
    ]
    found = verdicts(World({}, arms))["forgets-less"]
    assert [row["arms"][0] for row in found["evidence"]] == ["large", "small", "mlp"]
    assert [row["decides"] for row in found["evidence"]] == [True, False, False]


# What the recipe cannot say at this version yet, put into arms as the recipes to come will.


def with_settings(world: World, **changes: dict[str, Any]) -> Setting:
    setting = Setting("s", world.evidence(1))
    kinds = [type(arm)(arm.name, {**arm.settings, **changes.get(arm.name, {})})
             for arm in setting.arms]  # fmt: skip
    setting.__dict__["arms"] = kinds
    return setting


@pytest.mark.parametrize(
    ("keeps", "verdict"), [((UP, DOWN), "supported"), ((DOWN, UP), "contradicted")]
)
def test_regularisers_and_replay(keeps: tuple[float, float], verdict: str) -> None:
    from laura.study.claims.outcomes import replay_mitigates, stronger_than_regularisers

    world = regularised(*keeps)
    world.arms = [*world.arms, full("drop")]
    world.truth = {**world.truth, **forgetting("drop", keeps[1])}
    setting = with_settings(world, drop={"attention_dropout": 0.1})
    found = stronger_than_regularisers([setting])
    assert found.verdict == verdict and len(found.evidence) == 2
    alone = stronger_than_regularisers([Setting("s", regularised(*keeps).evidence())])
    assert alone.verdict == "too thin" and "with dropout" in alone.reason

    truth = {**forgetting("mixed", keeps[0]), **forgetting("plain", keeps[1])}
    arms = [full("plain"), full("mixed"), full("other", weight_decay=0.1)]
    setting = with_settings(World(truth, arms), mixed={"replay": 0.1}, other={"replay": 0.5})
    found = replay_mitigates([setting])
    assert found.verdict == verdict
    # The arm with another weight decay is no pair of the plain one.
    assert [row["arms"] for row in found.evidence] == [["mixed", "plain"]]


def test_variants_do_not_speak_for_lora_or_full() -> None:
    world = World({}, [FULL, LORA, lora("dora", rank=99), full("frozen")])
    setting = with_settings(world, dora={"dora": True}, frozen={"layers": [0]})
    assert setting.lora().name == "lora" and setting.full().name == "full"
    setting = with_settings(world, lora={"init": "default", "lora_plus_ratio": 1.0, "layers": None})
    assert setting.lora().name == "dora"  # rank 99, and plain as far as its settings say
    assert not any(arm.is_variant for arm in setting.arms)


# Claims from analysis.json.


def matrices(rank: dict[str, int], layers: tuple[int, ...] = (0, 1, 2)) -> list[dict[str, Any]]:
    return [
        {"layer": layer, "module": module, "shape": [512, 512],
         "rank": {"90": value + (3 * (layer == 1))}, "noise_rank": {"90": 260}}
        for layer in layers for module, value in rank.items()
    ]  # fmt: skip


def spectra(
    first: dict[str, int], last: dict[str, int], middle: int = 0, seeds: int = 3
) -> dict[str, Any]:
    rows = []
    for seed in range(seeds):
        for budget, rank in ((1, first), (2, last)):
            found = matrices({name: value + seed for name, value in rank.items()})
            for matrix in found:
                matrix["rank"]["90"] += middle * (matrix["layer"] == 1)
            rows.append({"run": "r", "arm": "full", "seed": seed, "learning_rate": 1e-4,
                         "budget": budget, "step": 1, "matrices": found})  # fmt: skip
    return {"format": 1, "tradeoff": None, "spectra": rows, "diversity": []}


LOW, HIGH = {"q_proj": 20, "up_proj": 30}, {"q_proj": 200, "up_proj": 230}
SPECTRA = {
    "full-high-rank": (spectra(LOW, HIGH), spectra(HIGH, LOW)),
    "rank-grows": (spectra(LOW, HIGH), spectra(HIGH, LOW)),
    "rank-by-module": (
        spectra(LOW, {"q_proj": 100, "up_proj": 200}),
        spectra(LOW, {"q_proj": 200, "up_proj": 100}),
    ),
    "rank-by-layer": (spectra(LOW, HIGH, middle=20), spectra(LOW, HIGH, middle=-20)),
}


@pytest.mark.parametrize("claim", SPECTRA)
def test_each_verdict_on_spectra_can_be_reached(claim: str) -> None:
    world = World({}, (FULL, lora("lora", rank=8)), budgets=(1, 2))
    supported, contradicted = SPECTRA[claim]
    assert verdicts(world, analysis=supported)[claim]["verdict"] == "supported"
    assert verdicts(world, analysis=contradicted)[claim]["verdict"] == "contradicted"
    thin = verdicts(world, analysis=spectra(LOW, HIGH, seeds=2))[claim]
    assert thin["verdict"] == "too thin" and "2 seeds" in thin["reason"]
    none = verdicts(world)[claim]
    assert none["verdict"] == "too thin" and "no spectra" in none["reason"]


def test_matrices_too_small_for_ten_times_the_rank_say_nothing() -> None:
    world = World({}, (FULL, lora("lora", rank=64)), budgets=(1, 2))
    found = verdicts(world, analysis=spectra(LOW, HIGH))["full-high-rank"]
    assert found["verdict"] == "too thin" and "ten times rank 64" in found["reason"]


def test_an_update_that_is_not_finite_is_left_out() -> None:
    analysis = spectra(LOW, HIGH)
    for row in analysis["spectra"]:
        row["matrices"][0]["rank"] = None
        row["matrices"].append({"layer": None, "module": "embed_tokens", "shape": [9, 2],
                                "rank": {"90": 1}, "noise_rank": {"90": 1}})  # fmt: skip
    world = World({}, (FULL, lora("lora", rank=8)), budgets=(1, 2))
    found = verdicts(world, analysis=analysis)["rank-grows"]
    assert found["verdict"] == "supported" and found["n"] == 5


def matched(low: float, high: float, arms: list[str], seeds: int = 3) -> dict[str, Any]:
    row = {"arms": arms, "level": 0.5, "forgetting": [0.2, 0.1], "difference": (low + high) / 2,
           "interval": [low, high], "seeds": seeds, "n": 200, "curve": "best_rate"}  # fmt: skip
    others = [{**row, "level": 0.2, "interval": [-1, 1]}, {**row, "curve": "grid", "level": 0.9},
              {**row, "arms": ["full", "other"], "level": 0.95}]  # fmt: skip
    return {"format": 1, "tradeoff": {"matched": [*others, row]}}


def test_matched_learning_is_judged_by_an_interval_that_allows_for_few_seeds() -> None:
    def judged(*given: Any) -> dict[str, Any]:
        return verdicts(World({}), analysis=matched(*given))["forgets-less-matched"]

    found = judged(0.1, 0.16, ["full", "lora"])
    assert found["verdict"] == "supported" and found["effect"] == pytest.approx(0.13)
    reach = 0.03 / stats.norm.ppf(0.975) * math.sqrt(3 / 2) * stats.t.ppf(0.975, 2)
    assert found["interval"] == pytest.approx([0.13 - reach, 0.13 + reach])
    assert judged(0.1, 0.16, ["lora", "full"])["verdict"] == "contradicted"
    assert judged(0.01, 0.2, ["full", "lora"])["verdict"] == "too thin"
    assert "2 seeds" in judged(0.1, 0.16, ["full", "lora"], 2)["reason"]


def diversity(lora_distinct: float, full_distinct: float, n: int = 164) -> dict[str, Any]:
    rows = [
        {"extra": "code", "task": LEARN, "arm": arm, "run": "r", "seed": seed,
         "learning_rate": rate, "budget": 1, "samples": 10, "temperature": 0.8,
         "distinct": {"value": value + 0.1 * seed, "stderr": 0.1, "n": n}}
        for arm, rate, value in (("lora", 1e-3, lora_distinct), ("full", 1e-4, full_distinct))
        for seed in (0, 1, 2)
    ]  # fmt: skip
    rows.append({**rows[0], "arm": None, "learning_rate": None, "budget": None, "seed": None})
    return {"format": 1, "diversity": rows}


def test_diversity() -> None:
    def judged(analysis: dict[str, Any] | None) -> dict[str, Any]:
        return verdicts(World({}), analysis=analysis)["keeps-diversity"]

    assert judged(diversity(6, 4))["verdict"] == "supported"
    assert judged(diversity(4, 6))["verdict"] == "contradicted"
    assert judged(diversity(5, 5))["verdict"] == "too thin"
    assert "20 prompts" in judged(diversity(6, 4, n=20))["reason"]
    assert "no samples" in judged(None)["reason"]
    paired = {"extra": "code", "arms": ["full", "lora"], "budget": 1, "measure": "distinct"}
    narrow = {**diversity(6, 5.95), "diversity_differences": [{**paired, "stderr": 0.001}]}
    assert judged(diversity(6, 5.95))["verdict"] == "too thin"
    assert judged(narrow)["verdict"] == "supported"
    missing = diversity(6, 4)
    missing["diversity"] = [row for row in missing["diversity"] if row["arm"] != "full"]
    assert "both arms" in judged(missing)["reason"]


# Several settings, and what is missing.


def forgets(lora_keeps: float, full_keeps: float, **settings: Any) -> World:
    truth = {**forgetting("lora", lora_keeps), **forgetting("full", full_keeps)}
    return World(truth, **settings)


def test_settings_are_judged_together_and_each_is_shown() -> None:
    agree = verdicts(forgets(UP, DOWN), forgets(0.6, 0.5))["forgets-less"]
    assert agree["verdict"] == "supported"
    values = [row["value"] for row in agree["evidence"]]
    assert agree["effect"] == pytest.approx(np.mean(values)) and len(values) == 2
    against = verdicts(forgets(0.95, 0.05), forgets(0.45, 0.6, item_spread=0.05, items=600))
    found = against["forgets-less"]
    assert [row["verdict"] for row in found["evidence"]] == ["supported", "contradicted"]
    assert found["verdict"] == "too thin" and "disagree" in found["reason"]
    part = verdicts(forgets(UP, DOWN), World({}, (FULL,)))["forgets-less"]
    assert part["verdict"] == "supported" and "1 of 2 settings cannot speak" in part["reason"]
    assert part["evidence"][1]["reason"] == "no arm of plain LoRA"


def test_verdicts_among_all_that_were_tested() -> None:
    found = build_claims([("s", forgets(0.6, 0.5).evidence(1), None)])
    tested = [c for c in found["claims"] if c["p"] is not None]
    assert found["tested"] == len(tested) and len(found["claims"]) == len(CLAIMS)
    for claim, p in zip(tested, holm([c["p"] for c in tested]), strict=True):
        assert claim["holm"]["p"] == p
        assert claim["holm"]["verdict"] in (claim["verdict"], "too thin")
    assert all(c["holm"] == {"p": None, "verdict": "too thin"}
               for c in found["claims"] if c["p"] is None)  # fmt: skip


def test_failed_and_missing_runs_are_named_and_the_rest_is_judged() -> None:
    world = World(
        {**forgetting("lora", UP), **forgetting("full", DOWN)}, (FULL, LORA, lora("broken"))
    )
    evidence = world.evidence()
    evidence.runs[:] = [
        replace(run, state="diverged") if run.arm == "broken" else run for run in evidence.runs
    ]
    evidence.points[:] = [p for p in evidence.points if p.arm != "broken"]
    del evidence.points[0].results["humaneval"]
    found = build_claims([("s", evidence, None)])
    claims = {claim["id"]: claim for claim in found["claims"]}
    assert claims["forgets-less"]["verdict"] == "supported"
    assert claims["learns-less-code"]["verdict"] == "too thin"
    assert "2 seeds measured for everything compared" in claims["learns-less-code"]["reason"]
    assert "s: broken at 0.001, seed 1: diverged" in found["gaps"]
    assert "s: broken diverged in every run, so no best rate" in found["gaps"]


def test_items_that_differ_are_told(tmp_path: Path) -> None:
    evidence = World({}).evidence()
    del evidence.points[0].results[LEARN].items[0]
    setting = Setting("s", evidence)
    with pytest.raises(TooThin, match="different items"):
        setting.difference(setting.full(), setting.lora(), LEARNING, 1)


DAMAGES: dict[str, tuple[str, str, str]] = {
    "a record": ("runs/lora-0.01-1/run.json", "{", "run.json is not JSON"),
    "a record of nothing": ("runs/lora-0.01-1/run.json", '{"arm": "lora"}', "describe a run"),
    "a result": ("base/evals/gsm8k.json", "[]", "not a whole task result"),
    "a recipe": ("recipe.yaml", "name: 3", "recipe.yaml has"),
    "an analysis": ("analysis.json", '{"format": 1, "diversity": [3]}', "not a list of objects"),
    "the facts": ("study.json", "", "study.json is not JSON"),
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
    # That a run failed is known, whatever its record says.
    (series.setting("first").folder / "runs" / "full-0.001-2" / "done.json").unlink()
    (series.setting("first").folder / "runs" / "full-0.001-2" / "failed.json").write_text("{")
    file, text, words = DAMAGES[damage]
    (series.setting("hurt").folder / file).write_text(text)
    found = write_series_claims(series.folder)
    alone = build_claims([("first", *read_study(series.setting("first").folder)[1:])])
    assert found["claims"] == alone["claims"] and found["settings"] == alone["settings"]
    hurt, later, *others = found["gaps"]
    assert hurt.startswith("hurt: is left out, since ") and words in hurt
    assert str(tmp_path) not in hurt and later == "later: was not carried out"
    assert others == alone["gaps"] and "first: full at 0.001, seed 2: failed" in others


def test_folders_that_are_no_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no study"):
        read_study(tmp_path)
    for text, words in (("[]", "no analysis of format 1"), ('{"format": 2}', "format 1"),
                        ('{"format": 1, "spectra": [{}]}', "lacks arm, seed"),
                        ('{"format": 1, "diversity": [{"arm": null}]}', "diversity lacks extra"),
                        ('{"format": 1, "tradeoff": {"matched": [3]}}', "matched is not a list"),
                        ('{"format": 1, "tradeoff": 3}', "tradeoff is not an object")):  # fmt: skip
        (tmp_path / "analysis.json").write_text(text)
        with pytest.raises(StoreError, match=words):
            read_analysis(tmp_path)
