"""Claims on remedies: both verdicts of each, the arms that are taken, and that none is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from laura.recipe.remedies import PLACES
from laura.results.schema import Claim
from laura.results.task_result import Metric, TaskResult
from laura.study.claims.judgement import judge
from laura.study.claims.remedies import REMEDY_CLAIMS
from laura.study.claims.settings import Setting
from tests.study.fabricated import FULL, LORA, PAIR, claims, rebuilt, setting

FIVE = {"seeds": (0, 1, 2, 3, 4)}
SURE: dict[str, Any] = {"luck": 0.003, "items": 200, "own": FIVE}
Arms = Mapping[str, Mapping[str, Any]]
DFT, PISSA = {"token_weight": "dft"}, {"init": "pissa"}
# Claim to the arm that has the remedy, and the arm that it is set beside.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dft-learns-more": ({**FULL, **DFT}, FULL),
    "eaft-forgets-less": ({**LORA, "token_weight": "eaft"}, LORA),
    "stm-forgets-less": ({**FULL, "token_weight": "stm"}, FULL),
    "flow-forgets-less": ({**FULL, "token_weight": "flow"}, FULL),
    "kl-forgets-less": ({**LORA, "penalty": "kl"}, LORA),
    "kl-reverse-forgets-less": ({**FULL, "penalty": "kl_reverse"}, FULL),
    "asft-forgets-less": ({**FULL, **DFT, "penalty": "kl"}, {**FULL, **DFT}),
    "clora-forgets-less": ({**LORA, "penalty": "clora"}, LORA),
    "l2sp-forgets-less": ({**FULL, "weight_decay": 0.01, "weight_decay_toward": "base"}, FULL),
    "finch-forgets-less": ({**FULL, "pace": "finch"}, FULL),
    "ema-forgets-less": ({**FULL, "average": "ema"}, FULL),
    "bema-learns-more": ({**FULL, "average": "bema"}, {**FULL, "average": "ema"}),
    "rslora-learns-more": ({**LORA, "rslora": True}, LORA),
    "lora-plus-learns-more": ({**LORA, "lora_plus_ratio": 4.0}, LORA),
    "dora-learns-more": ({**LORA, "dora": True}, LORA),
    "pissa-learns-more": ({**LORA, **PISSA}, LORA),
    "milora-forgets-less": ({**LORA, "init": "milora"}, {**LORA, **PISSA}),
    "oplora-forgets-less": ({**LORA, "protect": 8}, LORA),
    "corda-forgets-less": ({**LORA, "init": "corda"}, LORA),
    "oft-forgets-less": ({"method": "oft"}, LORA),
    "sdft-forgets-less": ({**LORA, "rewritten": True}, LORA),
    "on-policy-sdft-forgets-less": ({**LORA, "policy": "sdft"}, LORA),
    "grpo-forgets-less": ({**FULL, "policy": "grpo", "policy_samples": 4}, FULL),
}
NULL = {"null": {**LORA, "init": "lora_null"}, "corda": {**LORA, "init": "corda"},
        "milora": {**LORA, "init": "milora"}}  # fmt: skip
OTHERS: Arms = {
    "l2sp": {**FULL, "weight_decay": 0.01, "weight_decay_toward": "base"},
    "lora": LORA,
    "full": {**FULL, "after": {"scale": [0.5]}},
    "flow": {**FULL, "token_weight": "flow"},
}


def judged(arms: Arms, learnt: Mapping[str, float], kept: Mapping[str, float]) -> dict[str, Claim]:
    return claims(setting(learnt, kept, arms=arms, **SURE))


@pytest.mark.parametrize("claim", PAIRS)
def test_each_claim_on_a_remedy_can_be_supported_and_contradicted(claim: str) -> None:
    arms = dict(zip(("with", "beside"), PAIRS[claim], strict=True))
    levels = [{"with": high, "beside": low} for high, low in ((0.75, 0.3), (0.3, 0.75))]
    alike = {"with": 0.7, "beside": 0.7}
    learns = claim.endswith("learns-more")
    for verdict, level in zip(("supported", "contradicted"), levels, strict=True):
        found = judged(arms, *((level, alike) if learns else (alike, level)))[claim]
        assert found.verdict == verdict, found.reason
        assert {name for row in found.evidence for name in row.arms} == set(arms)


@pytest.mark.parametrize(("verdict", "kept"), [("supported", 0.75), ("contradicted", 0.3)])
def test_one_that_beats_four_others_needs_them_all(verdict: str, kept: float) -> None:
    arms = {"talr": {**FULL, "token_weight": "talr"}, **OTHERS}
    names = [*arms, "full-scale-0.5"]
    levels = {**dict.fromkeys(names, 1.05 - kept), "talr": kept}
    found = judged(arms, dict.fromkeys(names, 0.7), levels)["talr-beats-others"]
    assert found.verdict == verdict and len(found.evidence) == 4
    fewer = {name: own for name, own in arms.items() if name != "full"}
    silent = judged(fewer, dict.fromkeys(fewer, 0.7), levels)["talr-beats-others"]
    assert silent.missing == ["no arm of WiSE-FT alone"]


@pytest.mark.parametrize(("verdict", "kept"), [("supported", 0.75), ("contradicted", 0.3)])
def test_lora_null_beside_two_others(verdict: str, kept: float) -> None:
    levels = {"null": kept, "corda": 1.05 - kept, "milora": 1.05 - kept}
    found = judged(NULL, dict.fromkeys(NULL, 0.7), levels)["lora-null-beats-others"]
    assert found.verdict == verdict and len(found.evidence) == 2


@pytest.mark.parametrize("change", ["scale", "intruders"])
@pytest.mark.parametrize(("verdict", "kept"), [("supported", 0.75), ("contradicted", 0.3)])
def test_what_is_done_after_training_beside_what_was_trained(
    change: str, verdict: str, kept: float
) -> None:
    """Of several factors the one nearest to the whole."""
    arms = {"lora": {**LORA, "after": {change: [0.4, 0.8]}}}
    levels = {"lora": 1.05 - kept, f"lora-{change}-0.8": kept}
    learnt = dict.fromkeys(["lora", *(f"lora-{change}-{f}" for f in (0.4, 0.8))], 0.7)
    found = judged(arms, learnt, levels)[f"{change}-forgets-less"]
    assert found.verdict == verdict, found.reason
    assert [row.arms for row in found.evidence] == [["lora", f"lora-{change}-0.8"]]


@pytest.mark.parametrize(("verdict", "follows"), [("supported", True), ("contradicted", False)])
def test_a_divergence_that_predicts_forgetting(verdict: str, follows: bool) -> None:
    found = claims(diverging(follows))["kl-predicts-forgetting"]
    assert found.verdict == verdict, found.reason
    assert found.effect is not None and found.effect.unit == "R2"


def diverging(follows: bool) -> Setting:
    """KL of each point as what it forgot, or as nothing that it did."""
    arms = {**PAIR, "kl": {**LORA, "penalty": "kl"}}
    made = setting(dict.fromkeys(arms, 0.7), {"full": 0.3, "lora": 0.6, "kl": 0.8}, arms=arms,
                   **SURE)  # fmt: skip
    points = []
    for place, point in enumerate(made.evidence.points):
        lost = sum(
            made._items(made.evidence.base[t])[1].mean() - made._items(point.results[t])[1].mean()
            for t in made.evidence.accuracies
        )
        nats = 1 + lost if follows else 1 + (place * 7 % 11) / 11
        metric = Metric(float(nats), 0.0, False)
        point.results["kl"] = TaskResult("kl", "1", "m", 1, {"nats_per_token": metric}, [])
        points.append(point)
    return rebuilt(made, points=points)


def test_studies_without_a_remedy_are_not_asked_of_it() -> None:
    asked = claims(setting()).keys()
    assert not asked & {claim.id for claim in REMEDY_CLAIMS}
    asked = claims(setting(arms={**PAIR, "dft": {**FULL, **DFT}})).keys()
    assert asked & {claim.id for claim in REMEDY_CLAIMS} == {"dft-learns-more"}


def test_an_arm_that_differs_in_more_than_the_remedy_is_no_comparison() -> None:
    arms = {"lora": LORA, "dft": {"method": "lora", "rank": 8, **DFT}}
    found = judged(arms, {}, {})["dft-learns-more"]
    assert found.missing == ["no arm with token_weight dft beside the same arm without"]


@pytest.mark.parametrize(
    ("strengths", "pairs"),
    [
        ((0.1, 0.3), [["lora", "kl-0.3"]]),
        ((0.03, None), [["lora", "kl-None"]]),
        ((None, 0), [["lora", "kl-None"], ["kl-0", "kl-None"]]),
    ],
)
def test_of_several_strengths_the_largest_is_compared(
    strengths: tuple[float | None, ...], pairs: list[list[str]]
) -> None:
    """Where none is given it is the remedy's own, 0.1 here; with 0 an arm is plain."""
    strong = {f"kl-{at}": {**LORA, "penalty": "kl", "penalty_strength": at} for at in strengths}
    arms = {"lora": LORA, **strong}
    found = judged(arms, dict.fromkeys(arms, 0.7), {})["kl-forgets-less"]
    assert [row.arms for row in found.evidence] == pairs


def test_a_strength_of_0_is_the_plain_arm() -> None:
    arms = {
        "plain": {**LORA, "penalty": "kl", "penalty_strength": 0},
        "kl": {**LORA, "penalty": "kl"},
    }
    found = judged(arms, dict.fromkeys(arms, 0.7), {"plain": 0.3, "kl": 0.75})["kl-forgets-less"]
    assert found.verdict == "supported", found.reason
    assert [row.arms for row in found.evidence] == [["plain", "kl"]]


@pytest.mark.parametrize(("verdict", "kept"), [("supported", 0.75), ("contradicted", 0.3)])
def test_replay_of_what_the_base_writes(verdict: str, kept: float) -> None:
    arms: Arms = {"lora": LORA, "mixed": {**LORA, "replay": 0.1}}
    levels = {"lora": 1.05 - kept, "mixed": kept}
    ours = {**FIVE, "replay": "{source: base_samples, count: 9}"}
    made = setting(dict.fromkeys(arms, 0.7), levels, arms=arms, **{**SURE, "own": ours})
    found = claims(made)["own-replay-forgets-less"]
    assert found.verdict == verdict, found.reason
    theirs = setting(dict.fromkeys(arms, 0.7), levels, arms=arms, **SURE)
    assert "own-replay-forgets-less" not in claims(theirs)


def test_every_comparison_has_a_joint_interval_that_holds_its_own() -> None:
    arms: Arms = {**PAIR, **{f"r{rank}": {"method": "lora", "rank": rank} for rank in (2, 4, 8)}}
    found = judge([setting(dict.fromkeys(arms, 0.7), arms=arms, **SURE)]).comparisons
    assert len(found) == 4
    for one in found:
        assert one.joint is not None and one.equal_learning is not None
        low, high = one.equal_learning.interval
        assert one.joint[0] < low < high < one.joint[1]


def test_every_remedy_has_a_claim_and_a_line_in_the_papers() -> None:
    text = (Path(__file__).parents[2] / "docs/papers.md").read_text()
    for place, table in PLACES.items():
        for name in table:
            arm = {**LORA, place: name}
            made = setting(arms={**PAIR, "arm": arm})
            assert any(claim.scope.groups([made]) for claim in REMEDY_CLAIMS), name
            assert f"| `{name}` |" in text
    for claim in REMEDY_CLAIMS:
        assert f"`{claim.id}`" in text, claim.id
    assert {claim.id for claim in REMEDY_CLAIMS} == {
        *PAIRS, "talr-beats-others", "kl-predicts-forgetting", "lora-null-beats-others",
        "scale-forgets-less", "intruders-forgets-less", "own-replay-forgets-less",
    }  # fmt: skip
