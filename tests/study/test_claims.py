"""Every claim on studies whose truth is known: both verdicts, and each reason to be silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from laura.results.schema import (
    Analysis,
    CheckpointSpectra,
    CountDifference,
    DiversityRow,
    MatrixSpectra,
)
from laura.results.statistics import Estimate, holm
from laura.study.claims.judgement import judge, judge_claims
from laura.study.claims.settings import Setting
from laura.study.claims.table import CLAIMS
from tests.study.fabricated import (
    BEST_INSIDE,
    FULL,
    LORA,
    PAIR,
    claims,
    rebuilt,
    setting,
)

Settings = Callable[[], Sequence[Setting]]
SURE: dict[str, Any] = {"luck": 0.003, "items": 200}
FIVE = {"seeds": (0, 1, 2, 3, 4)}


def learns(full: float, lora: float, **own: Any) -> Sequence[Setting]:
    return [setting({"full": full, "lora": lora}, own={**FIVE, **own}, **SURE)]


def forgets(full: float, lora: float, name: str = "one", **more: Any) -> Setting:
    """Both learn alike; what each keeps is told."""
    more = {"name": name, **SURE, **more}
    return setting({"full": 0.7, "lora": 0.7}, {"full": full, "lora": lora}, **more)


def alike(items: int, **more: Any) -> Setting:
    """Arms without any difference, and without luck, measured on many items."""
    return setting({"full": 0.7, "lora": 0.7}, {"full": 0.7, "lora": 0.7}, items=items, luck=0.0,
                   own={**FIVE, "budgets": (2, 4)}, **more)  # fmt: skip


def two_domains(math: float, code: float) -> Sequence[Setting]:
    """LoRA's share of full's gain in each."""
    return [
        setting({"full": 0.7, "lora": 0.1 + 0.6 * share}, name=domain, number=number,
                own={**FIVE, "domain": domain}, **SURE)
        for number, (domain, share) in enumerate((("math", math), ("code", code)))
    ]  # fmt: skip


def two_losses(code: float, math: float) -> Sequence[Setting]:
    return [
        forgets(kept, kept, domain, number=number, own={"domain": domain})
        for number, (domain, kept) in enumerate((("code", code), ("math", math)))
    ]


def two_regimes(instruct: float, pretrain: float) -> Sequence[Setting]:
    return [
        setting({"full": level}, name=regime, number=number, own={"regime": regime}, **SURE)
        for number, (regime, level) in enumerate((("instruct", instruct), ("pretrain", pretrain)))
    ]


def regularised(lora: float, others: float, **more: Any) -> Setting:
    arms = {**PAIR, "decay": {**FULL, "weight_decay": 0.1},
            "dropout": {**FULL, "attention_dropout": 0.1}, **more.pop("arms", {})}  # fmt: skip
    kept = {name: lora if name == "lora" else others for name in arms}
    return setting(dict.fromkeys(arms, 0.7), {**kept, **more.pop("kept", {})}, arms=arms,
                   **SURE, **more)  # fmt: skip


def rates(factor: float, **more: Any) -> Sequence[Setting]:
    """Best rates inside both lists, so many times apart."""
    arms = {
        name: {**own, "learning_rates": [1e-4 * times * step for step in (0.5, 1, 2)]}
        for (name, own), times in zip(PAIR.items(), (1, factor), strict=True)
    }
    return [setting(arms=arms, own=FIVE, **more)]


def peaked(full: Sequence[float], lora: Sequence[float]) -> Sequence[Setting]:
    """Learning by rate, at every budget."""
    learnt = {"full": lambda place, budget: full[place], "lora": lambda place, budget: lora[place]}
    return [setting(learnt, **SURE)]


def modules(order: Sequence[float]) -> Sequence[Setting]:
    arms = {name: {**LORA, "targets": name} for name in ("all", "mlp", "attention")}
    return [setting(dict(zip(arms, order, strict=True)), arms=arms, own=FIVE, **SURE)]


def ranks(learnt: Mapping[int, float], kept: Mapping[int, float]) -> Sequence[Setting]:
    arms = {f"r{rank}": {"method": "lora", "rank": rank} for rank in learnt}
    sides = [{f"r{rank}": level for rank, level in side.items()} for side in (learnt, kept)]
    return [setting(*sides, arms=arms, own=FIVE, **SURE)]


def curves(full: Sequence[float], lora: Sequence[float], **own: Any) -> Sequence[Setting]:
    """Learning by budget."""
    learnt = {
        "full": lambda place, budget: full[budget],
        "lora": lambda place, budget: lora[budget],
    }
    return [setting(learnt, own={**FIVE, "budgets": (1, 2, 4, 8), **own}, **SURE)]


EARLY, LATE = (0.8, 0.7, 0.4, 0.3), (0.3, 0.4, 0.8, 0.5)
QUICK, SLOW = (0.2, 0.7, 0.75, 0.8), (0.12, 0.2, 0.4, 0.8)


def replayed(mixed: float, plain: float, **changes: Any) -> Sequence[Setting]:
    arms = {**PAIR, "mixed": {**FULL, "replay": 0.1, **changes}}
    kept = {"mixed": mixed, "full": plain, "lora": plain}
    return [setting(dict.fromkeys(arms, 0.7), kept, arms=arms, **SURE)]


OUTCOMES: dict[str, tuple[Settings, Settings]] = {
    "learns-less-code": (lambda: learns(0.7, 0.4), lambda: learns(0.4, 0.7)),
    "learns-less-elsewhere": (
        lambda: learns(0.7, 0.4, domain="math"),
        lambda: learns(0.4, 0.7, domain="math"),
    ),
    "narrows-gap-math": (lambda: two_domains(0.9, 0.3), lambda: two_domains(0.3, 0.9)),
    "forgets-less": (lambda: [forgets(0.4, 0.7)], lambda: [forgets(0.7, 0.4)]),
    "forgets-less-matched": (
        lambda: [forgets(0.3, 0.75, own=FIVE)],
        lambda: [forgets(0.75, 0.3, own=FIVE)],
    ),
    "same-tradeoff": (lambda: [alike(12_000)], lambda: [forgets(0.3, 0.75, own=FIVE)]),
    "stronger-regulariser": (lambda: [regularised(0.8, 0.4)], lambda: [regularised(0.4, 0.8)]),
    "rate-ten-times": (lambda: rates(10), lambda: rates(1)),
    "rate-sensitivity": (
        lambda: peaked((0.7, 0.72, 0.7), (0.3, 0.7, 0.3)),
        lambda: peaked((0.3, 0.7, 0.3), (0.7, 0.72, 0.7)),
    ),
    "targets-order": (lambda: modules((0.8, 0.55, 0.3)), lambda: modules((0.5, 0.8, 0.3))),
    "rank-moves-along": (
        lambda: ranks({4: 0.4, 16: 0.6, 64: 0.8}, {4: 0.8, 16: 0.6, 64: 0.4}),
        lambda: ranks({4: 0.4, 16: 0.6, 64: 0.8}, {4: 0.4, 16: 0.6, 64: 0.8}),
    ),
    "rank-16-balance": (
        lambda: ranks({16: 0.75, 64: 0.6}, {16: 0.8, 64: 0.6}),
        lambda: ranks({16: 0.5, 64: 0.8}, {16: 0.8, 64: 0.8}),
    ),
    "code-forgets-more": (lambda: two_losses(0.4, 0.7), lambda: two_losses(0.7, 0.4)),
    "instruct-over-pretrain": (lambda: two_regimes(0.7, 0.4), lambda: two_regimes(0.4, 0.7)),
    "sample-efficiency-math": (
        lambda: curves(QUICK, SLOW, domain="math"),
        lambda: curves(SLOW, QUICK, domain="math"),
    ),
    "lora-needs-longer": (lambda: curves(EARLY, LATE), lambda: curves(LATE, EARLY)),
    "four-epochs": (lambda: curves(EARLY, LATE), lambda: curves(LATE, EARLY)),
    "replay-mitigates": (lambda: replayed(0.8, 0.4), lambda: replayed(0.4, 0.8)),
}


@pytest.mark.parametrize("claim", OUTCOMES)
def test_each_verdict_on_scores_can_be_reached(claim: str) -> None:
    for verdict, made in zip(("supported", "contradicted"), OUTCOMES[claim], strict=True):
        found = claims(*made())[claim]
        assert found.verdict == found.alone == verdict, found.reason
        assert found.effect is not None and found.joint_p is not None
        low, high = found.effect.interval
        assert low < found.effect.value < high and found.effect.n and found.effect.seeds >= 3
        assert found.reason and not found.missing and not found.would_decide
        assert all(row.setting and row.arms and row.effect for row in found.evidence)


def test_every_claim_has_both_verdicts_in_these_tests() -> None:
    assert {claim.id for claim in CLAIMS} == {*OUTCOMES, *UPDATES, "keeps-diversity"}


# ----- from analysis.json -----


def matrix(layer: int, module: str, rank: int, width: int = 512) -> MatrixSpectra:
    return MatrixSpectra(
        name=f"{layer}.{module}", layer=layer, module=module, shape=(width, width),
        rank={"90": rank}, noise_rank={"90": 260.0},
    )  # fmt: skip


def spectra(
    first: Mapping[str, int], last: Mapping[str, int], middle: int = 0, seeds: int = 3,
    width: int = 512,
) -> Analysis:  # fmt: skip
    """Ranks by module at the first and the last budget; the middle layer has so many more."""
    rows = [
        CheckpointSpectra(
            run="r", arm="full", seed=seed, learning_rate=5e-4, budget=budget, step=1,
            matrices=[matrix(layer, name, value + seed + middle * (layer == 1), width)
                      for layer in (0, 1, 2) for name, value in ranks.items()],
        )
        for seed in range(seeds) for budget, ranks in ((1, first), (4, last))
    ]  # fmt: skip
    return Analysis(spectra=rows)


LOW, HIGH = {"q_proj": 40, "up_proj": 60}, {"q_proj": 300, "up_proj": 330}
UPDATES = {
    "full-high-rank": (spectra(LOW, HIGH), spectra(HIGH, LOW)),
    "rank-grows": (spectra(LOW, HIGH), spectra(HIGH, LOW)),
    "rank-by-module": (
        spectra(LOW, {"q_proj": 100, "up_proj": 200}),
        spectra(LOW, {"q_proj": 200, "up_proj": 100}),
    ),
    "rank-by-layer": (spectra(LOW, HIGH, middle=20), spectra(LOW, HIGH, middle=-20)),
}


def analysed(analysis: Analysis | None, **more: Any) -> Setting:
    arms = {"full": FULL, "lora": {"method": "lora", "rank": 2}}
    return setting(arms=arms, analysis=lambda evidence, draw: analysis or Analysis(), **more)


@pytest.mark.parametrize("claim", UPDATES)
def test_each_verdict_on_spectra_can_be_reached(claim: str) -> None:
    for verdict, analysis in zip(("supported", "contradicted"), UPDATES[claim], strict=True):
        assert claims(analysed(analysis))[claim].verdict == verdict
    thin = claims(analysed(spectra(LOW, HIGH, seeds=2)))[claim]
    assert thin.verdict == "undecided" and "2 seeds" in thin.reason and thin.missing
    none = claims(analysed(None))[claim]
    assert none.verdict == "undecided" and "no spectra" in none.reason


def test_ten_times_a_usual_rank_does_not_depend_on_the_ranks_of_the_recipe() -> None:
    found = claims(analysed(spectra(LOW, HIGH, width=160)))["full-high-rank"]
    assert found.verdict == "undecided" and "ten times rank 16" in found.reason
    near = {"q_proj": 100, "up_proj": 120}  # ten times rank 2, the recipe's, but not rank 16
    assert claims(analysed(spectra(LOW, near)))["full-high-rank"].verdict == "contradicted"


def test_updates_that_were_not_finite_or_have_no_noise_beside_them_are_left_out() -> None:
    analysis = spectra(LOW, HIGH)
    for row in analysis.spectra:
        row.matrices[0] = row.matrices[0].model_copy(update={"rank": None})
        row.matrices[1] = row.matrices[1].model_copy(update={"noise_rank": {}})
        row.matrices.append(matrix(0, "embed_tokens", 1))
    found = claims(analysed(analysis))
    assert found["rank-grows"].verdict == "supported"
    effect = found["rank-grows"].effect
    assert effect is not None and effect.n == 5
    assert found["rank-by-module"].effect is not None


def diversity(lora: float, full: float, prompts: int = 164, seeds: int = 3) -> Analysis:
    rows = [
        DiversityRow(
            extra="code", task="humaneval", arm=arm, run="r", seed=seed, learning_rate=5e-4,
            budget=4, samples=10, distinct=Estimate(value + 0.05 * seed, 0.1, prompts),
        )
        for arm, value in (("lora", lora), ("full", full)) for seed in range(seeds)
    ]  # fmt: skip
    base = rows[0].model_copy(update=dict.fromkeys(("arm", "learning_rate", "budget", "seed")))
    return Analysis(diversity=[*rows, base])


def test_diversity() -> None:
    def judged(analysis: Analysis) -> Any:
        return claims(analysed(analysis))["keeps-diversity"]

    assert judged(diversity(6, 4)).verdict == "supported"
    assert judged(diversity(4, 6)).verdict == "contradicted"
    assert judged(diversity(5, 5)).verdict == "undecided"
    assert "20 prompts" in judged(diversity(6, 4, prompts=20)).reason
    assert "2 seeds" in judged(diversity(6, 4, seeds=2)).reason
    narrow = diversity(6, 5.95)
    assert judged(narrow).verdict == "undecided"
    paired = CountDifference(extra="code", arms=("full", "lora"), budget=4, measure="distinct",
                             task="humaneval", difference=0.05, stderr=0.0001, n=164,
                             seeds=3)  # fmt: skip
    found = judged(narrow.model_copy(update={"diversity_differences": [paired]}))
    assert found.verdict == "supported" and found.effect.stderr == pytest.approx(0.0001)
    one_sided = diversity(6, 4)
    one_sided.diversity[:] = [row for row in one_sided.diversity if row.arm != "full"]
    assert "both arms" in judged(one_sided).reason


# ----- able to speak -----

ONE_RATE = {name: {**own, "learning_rates": [5e-4]} for name, own in PAIR.items()}
ON_SCORES = ("learns-less-code", "forgets-less", "forgets-less-matched", "same-tradeoff",
             "rate-sensitivity", "lora-needs-longer")  # fmt: skip
TUNED = (*ON_SCORES, "rate-ten-times", "four-epochs")


@pytest.mark.parametrize("number", [1, 2])
def test_arms_that_were_not_tuned_say_nothing(number: int) -> None:
    arms = {name: {**own, "learning_rates": [5e-4, 1e-3][:number]} for name, own in PAIR.items()}
    validation = dict.fromkeys(arms, (0.3, 0.4))
    found = claims(setting({"full": 0.8, "lora": 0.3}, {"full": 0.3, "lora": 0.8}, arms=arms,
                           validation=validation))  # fmt: skip
    for name in TUNED:
        assert found[name].verdict == "undecided" and found[name].p is None
        assert f"run at {number} rate" in found[name].reason, name
        assert found[name].missing == [found[name].reason]


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_say_nothing(seeds: int) -> None:
    own = {"seeds": list(range(seeds))}
    made = setting({"full": 0.8, "lora": 0.3}, {"full": 0.3, "lora": 0.8}, own=own)
    found = claims(made)
    for name in TUNED:
        assert found[name].verdict == "undecided" and found[name].p is None, name
        assert found[name].missing, name
    for name in ("learns-less-code", "forgets-less", "forgets-less-matched"):
        assert f"{seeds} seed" in found[name].reason and "3 are needed" in found[name].reason
    assert not any(claim.p is not None for claim in found.values())


def test_an_arm_that_learnt_nothing_has_not_forgotten_less() -> None:
    """Neither tuned, nor at the level of learning nothing that both have points at."""
    flat = {"full": lambda place, budget: (0.1, 0.7, 0.6)[place], "lora": 0.1}
    found = claims(setting(flat, {"full": 0.4, "lora": 0.85}, **SURE))
    for name in ("forgets-less", "forgets-less-matched", "same-tradeoff", "rate-sensitivity"):
        assert found[name].verdict == "undecided" and found[name].p is None, name
        assert "lora has not surely learnt anything" in found[name].reason, name
    assert found["learns-less-code"].verdict == "supported"  # that it can tell


def test_scores_at_guessing_and_at_the_ceiling_say_nothing() -> None:
    floor = {name: lambda place, budget: 0.25 for name in PAIR}
    found = claims(setting({"full": 0.7, "lora": 0.7}, floor, hardness=0.0, interaction=0.0))
    assert found["forgets-less"].p is None
    assert "both end at guessing (25.0 points)" in found["forgets-less"].reason

    low = claims(setting({"full": 0.7, "lora": 0.7}, floor, base_kept=0.25, hardness=0.0,
                         interaction=0.0))  # fmt: skip
    for name in ("forgets-less", "forgets-less-matched", "same-tradeoff"):
        assert low[name].p is None and "the base is no better than guessing" in low[name].reason

    top = {name: lambda place, budget: 1.0 for name in PAIR}
    found = claims(setting(top, hardness=0.0, interaction=0.0, luck=0.0))
    assert found["learns-less-code"].p is None
    assert "within 2 points of every answer right" in found["learns-less-code"].reason


def test_one_arm_at_guessing_is_told_and_still_compared() -> None:
    kept = {"full": lambda place, budget: 0.25, "lora": 0.8}
    made = setting({"full": 0.7, "lora": 0.7}, kept, hardness=0.0, interaction=0.0)
    found = claims(made)["forgets-less"]
    assert found.alone == "supported" and "full is at guessing" in found.reason
    assert any("full ends at guessing" in words for words in judge([made]).caveats)


def test_too_few_items_say_nothing() -> None:
    found = claims(setting({"full": 0.8, "lora": 0.3}, items=20))
    assert "20 items measured; 50 are needed" in found["learns-less-code"].reason
    assert "20 items measured; 50 are needed" in found["forgets-less"].reason


def test_a_best_rate_at_the_end_of_its_list_is_told_everywhere() -> None:
    ends = {"full": (0.34, 0.32, 0.30), "lora": BEST_INSIDE}
    made = forgets(0.3, 0.8, validation=ends)
    found = judge([made])
    by_id = {claim.id: claim for claim in found.claims}
    for name in ("learns-less-code", "forgets-less"):
        assert by_id[name].edge and by_id[name].evidence[0].edge
    assert found.comparisons[0].edge
    assert any("Edge: the best rate of full" in words for words in found.caveats)
    assert sum("[edge:" in words for words in found.sentences) == 3
    assert by_id["rate-ten-times"].p is None
    assert "at the end of its list may be as good" in by_id["rate-ten-times"].reason
    assert "at the end of its list" in by_id["rate-sensitivity"].reason
    inside = judge([forgets(0.4, 0.7)])
    assert not any("edge" in words.lower() for words in [*inside.sentences, *inside.caveats])


def test_what_needs_two_settings_says_so_with_one() -> None:
    found = claims(forgets(0.4, 0.7))
    for name in ("narrows-gap-math", "code-forgets-more", "instruct-over-pretrain"):
        assert found[name].p is None and "there is no pair of settings" in found[name].reason
    for name in ("learns-less-elsewhere", "sample-efficiency-math"):
        assert "there is no setting of" in found[name].reason
    assert "no setting of instruction finetuning" in (
        claims(forgets(0.4, 0.7, own={"regime": "pretrain"}))["four-epochs"].reason
    )


LACKING: dict[str, tuple[str, Settings, str]] = {
    "no full": ("forgets-less", lambda: [setting(arms={"lora": LORA})], "no arm of plain full"),
    "no lora": ("forgets-less", lambda: [setting(arms={"full": FULL})], "no arm of plain LoRA"),
    "no targets": ("targets-order", lambda: [forgets(0.4, 0.7)], "no rank at which"),
    "ranks too near": ("rank-moves-along", lambda: ranks({16: 0.7, 32: 0.7}, {16: 0.7, 32: 0.7}),
                       "less than a factor of four"),
    "no rank 16": ("rank-16-balance", lambda: ranks({4: 0.7, 64: 0.7}, {4: 0.7, 64: 0.7}),
                   "no LoRA arm of rank 16"),
    "no decay": ("stronger-regulariser", lambda: [forgets(0.4, 0.7)], "with weight decay and none"),
    "no replay": ("replay-mitigates", lambda: [forgets(0.4, 0.7)], "no arm with replay"),
    "two budgets": ("lora-needs-longer", lambda: [alike(100)], "fewer than three budget points"),
    "no peak": ("lora-needs-longer", lambda: curves(SLOW, SLOW), "neither has passed its peak"),
    "one side of four": ("four-epochs", lambda: learns(0.7, 0.4, budgets=(1, 2)), "both sides"),
    "at once": ("sample-efficiency-math", lambda: curves(EARLY, EARLY, domain="math"),
                "add smaller budgets"),
    "other measures": ("narrows-gap-math", lambda: [
        setting({"full": 0.7, "lora": 0.4}, name=domain, number=number,
                own={"domain": domain, "learning": learning}, **SURE)
        for number, (domain, learning) in enumerate(
            (("math", "target_loss"), ("code", "humaneval")))],
        "in nats per token in math and in share in code"),
    "other bases": ("code-forgets-more", lambda: [
        rebuilt(one, facts={**one.evidence.facts, "base": {"fingerprint": str(i)}})
        for i, one in enumerate(two_losses(0.4, 0.7))], "different bases"),
}  # fmt: skip


@pytest.mark.parametrize("case", LACKING)
def test_what_a_claim_lacks_is_told(case: str) -> None:
    claim, made, words = LACKING[case]
    found = claims(*made())[claim]
    assert found.verdict == found.alone == "undecided" and found.p is None
    assert words in found.reason and found.missing and found.effect is None


def test_lists_with_other_steps_cannot_be_compared_in_sensitivity() -> None:
    arms = {"full": FULL, "lora": {**LORA, "learning_rates": [1e-5, 1e-4, 1e-3]}}
    found = claims(setting({"full": 0.7, "lora": 0.7}, arms=arms))["rate-sensitivity"]
    assert found.p is None and "other steps" in found.reason


def test_replay_that_was_not_tuned_is_not_compared_with_what_was() -> None:
    (made,) = replayed(0.8, 0.4, learning_rates=[1e-3])
    found = claims(made)["replay-mitigates"]
    assert found.p is None and "mixed was run at 1 rate" in found.reason


def test_what_the_base_wrote_is_no_source_data() -> None:
    arms = {**PAIR, "mixed": {**FULL, "replay": 0.1}}
    own = setting(dict.fromkeys(arms, 0.7), {"mixed": 0.8}, arms=arms,
                  own={"replay": "{source: base_samples, count: 9}"})  # fmt: skip
    found = claims(own)["replay-mitigates"]
    assert found.p is None and "the base's own writing, not source data" in found.reason


@pytest.mark.parametrize("apart", [1.0, 10.0])
def test_no_list_of_rates_speaks_for_itself(apart: float) -> None:
    """Validation losses of pure noise: neither equal lists nor lists a decade apart decide."""
    spoke, studies = 0, 60
    flat = dict.fromkeys(PAIR, (0.3, 0.3, 0.3))
    arms = {name: {**own, "learning_rates": [1e-4 * times * step for step in (0.5, 1, 2)]}
            for (name, own), times in zip(PAIR.items(), (1, apart), strict=True)}  # fmt: skip
    for number in range(studies):
        made = setting(arms=arms, validation=flat, number=number, items=50,
                       own={"budgets": (1,), "forgetting": ("winogrande",)})  # fmt: skip
        look = next(claim.judge for claim in CLAIMS if claim.id == "rate-ten-times")
        spoke += look([made]).p is not None
    assert spoke <= 0.05 * studies


# ----- which arms speak -----


def test_arms_are_known_by_their_settings_not_their_names() -> None:
    swapped = {"lora": FULL, "full": LORA}
    found = claims(setting({"lora": 0.8, "full": 0.3}, arms=swapped))["learns-less-code"]
    assert found.alone == "supported" and found.evidence[0].arms == ["lora", "full"]


def test_the_highest_rank_on_all_modules_speaks_and_others_stand_beside_it() -> None:
    arms = {"full": FULL, "small": {"method": "lora", "rank": 4},
            "large": {"method": "lora", "rank": 64},
            "mlp": {"method": "lora", "rank": 99, "targets": "mlp"},
            "dora": {"method": "lora", "rank": 256, "dora": True},
            "frozen": {"method": "full", "layers": [0]}}  # fmt: skip
    made = setting(dict.fromkeys(arms, 0.7), {"large": 0.4, "small": 0.8}, arms=arms, **SURE)
    assert (made.full().name, made.lora().name) == ("full", "large")
    found = claims(made)["forgets-less"]
    assert [row.arms[1] for row in found.evidence] == ["large", "small", "mlp"]
    assert [row.decides for row in found.evidence] == [True, False, False]
    # A row beside it may say the opposite; only the first decides.
    assert found.effect == found.evidence[0].effect


def test_decay_toward_the_base_stands_beside_and_never_decides() -> None:
    toward = {"toward": {**FULL, "weight_decay": 0.1, "weight_decay_toward": "base"}}
    found = claims(regularised(0.8, 0.4, arms=toward, kept={"toward": 0.85}))
    claim = found["stronger-regulariser"]
    assert claim.verdict == "supported"
    beside = [row for row in claim.evidence if not row.decides]
    assert [row.arms[0] for row in beside] == ["toward"] and len(claim.evidence) == 3
    without = claims(regularised(0.8, 0.4))["stronger-regulariser"]
    assert without.verdict == "supported" and len(without.evidence) == 2


def test_one_part_that_fails_contradicts_and_all_must_hold() -> None:
    half = claims(regularised(0.7, 0.4, kept={"dropout": 0.85}))["stronger-regulariser"]
    assert half.verdict == "contradicted" and "a part does not hold" in half.reason
    unsure = claims(regularised(0.7, 0.4, kept={"dropout": 0.7}, number=1))["stronger-regulariser"]
    assert unsure.alone == "undecided" and "not every part is clear" in unsure.reason


# ----- several settings -----


def test_settings_are_judged_together_by_their_plain_mean() -> None:
    both = [forgets(0.4, 0.7, "first"), forgets(0.3, 0.75, "second", number=1)]
    found = claims(*both)["forgets-less"]
    values = [row.effect.value for row in found.evidence if row.effect]
    assert found.verdict == "supported" and len(values) == 2
    assert found.effect is not None and found.effect.value == pytest.approx(np.mean(values))
    silent = setting(arms={"full": FULL}, name="third")
    part = claims(*both, silent)["forgets-less"]
    assert part.verdict == "supported" and "1 of 3 settings cannot speak" in part.reason
    assert part.evidence[2].reason == "no arm of plain LoRA" and part.evidence[2].effect is None


def test_settings_that_surely_disagree_are_mixed() -> None:
    both = [forgets(0.3, 0.75, "first", own=FIVE), forgets(0.75, 0.3, "second", number=1, own=FIVE)]
    found = judge(both)
    by_id = {claim.id: claim for claim in found.claims}
    for name in ("forgets-less", "forgets-less-matched"):
        assert by_id[name].verdict == by_id[name].alone == "mixed"
        assert {row.verdict for row in by_id[name].evidence} == {"supported", "contradicted"}
    assert found.answer.startswith("Choose for each domain")


def test_disagreement_that_is_sure_on_one_side_only_is_undecided() -> None:
    """A mean that is surely above 0 is no "supported" where one setting surely is below it."""
    both = [forgets(0.05, 0.84, "first", own=FIVE),
            forgets(0.70, 0.62, "second", number=1, own=FIVE, items=400)]  # fmt: skip
    found = claims(*both)["forgets-less"]
    assert [row.verdict for row in found.evidence] == ["supported", "contradicted"]
    assert found.verdict in ("undecided", "mixed") and "disagree" in found.reason


def test_pairs_with_a_setting_in_common_do_not_count_its_seeds_twice() -> None:
    first, second = two_regimes(0.7, 0.4)
    again = Setting("copy", second.evidence, None, second._read)
    found = [claims(*own)["instruct-over-pretrain"] for own in ([first, second],
                                                               [first, second, again])]  # fmt: skip
    ends = [one.effect.interval for one in found if one.effect]
    assert ends[1] == pytest.approx(ends[0], abs=1e-9)


# ----- the joint verdict -----


def test_the_verdict_is_the_joint_one_and_the_single_one_stands_beside_it() -> None:
    parted = 0
    for number in range(6):
        made = setting({"full": 0.7, "lora": 0.62}, {"full": 0.6, "lora": 0.7}, number=number)
        found = judge_claims([made])
        tested = [claim for claim in found if claim.p is not None]
        joint = holm([claim.p or 0.0 for claim in tested])
        for claim, p in zip(tested, joint, strict=True):
            assert claim.joint_p == p and p >= (claim.p or 0.0)
            if p <= 0.05:
                assert claim.verdict == claim.alone != "undecided"
            else:
                assert claim.verdict == "undecided"
            parted += claim.verdict != claim.alone
            assert bool(claim.would_decide) == (claim.verdict == "undecided")
        assert judge([made]).tested == len(tested)
    assert parted, "no study tells the two verdicts apart, so nothing was tested"


# ----- rates chosen on one seed -----


def chosen_on_one(full: float, lora: float, everywhere: bool = False, **more: Any) -> Setting:
    """`search.seeds: first`, as it is carried out: the best rate with all seeds, the others
    with the first; or, `everywhere`, in a folder where all of them lie already."""
    rates = (2.5e-4, 5e-4, 1e-3) if everywhere else (5e-4,)
    fresh = [(name, rate, (1, 2)) for name in PAIR for rate in rates]
    more = {"own": {"search": "first", "budgets": (1, 2, 4)}, **SURE, **more}
    return setting({"full": 0.8, "lora": 0.4}, {"full": full, "lora": lora}, fresh=fresh, **more)


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("kept", [(0.3, 0.8), (0.8, 0.3)])
def test_rates_chosen_on_one_seed_suggest_at_most(
    kept: tuple[float, float], everywhere: bool
) -> None:
    found = judge([chosen_on_one(*kept, everywhere)])
    verdicts = {claim.id: claim.verdict for claim in found.claims}
    assert {*verdicts.values()} <= {"suggested", "undecided"}
    assert {claim.alone for claim in found.claims} <= {"suggested", "undecided"}
    assert verdicts["learns-less-code"] == "suggested"
    assert verdicts["forgets-less"] == ("suggested" if kept[0] < kept[1] else "undecided")
    assert not found.answer.startswith(("Choose LoRA", "Choose full", "Lower the rate before"))
    text = " ".join([*found.sentences, *found.others])
    assert "supported" not in text and "contradicted" not in text
    assert any("nothing here is more than suggested" in words for words in found.caveats)


def test_two_settings_of_which_one_chose_on_one_seed_suggest_at_most() -> None:
    sure = forgets(0.3, 0.8, "sure")
    found = claims(sure, chosen_on_one(0.3, 0.8, name="quick", number=1))
    assert found["forgets-less"].verdict == "suggested"
