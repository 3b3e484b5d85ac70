"""The table of claims: one entry each, in the order they are told."""

from __future__ import annotations

from collections.abc import Sequence

from laura.study.claims import analysed, outcomes, pace
from laura.study.claims.claimed import FRONT, PAIRED, PARTS, SEEDS, Claimed, Scope
from laura.study.claims.remedies import REMEDY_CLAIMS
from laura.study.claims.settings import Setting

_PAPER, _FIRST = "Biderman et al. 2024, arXiv:2405.09673v2", "Biderman et al. 2024, version 1"
_CODE = Scope("setting of code", lambda s: s.domain == "code")
_ELSEWHERE = Scope("setting of a domain but code", lambda s: s.domain != "code")
_MATH = Scope("setting of math", lambda s: s.domain == "math")
_INSTRUCT = Scope("setting of instruction finetuning", lambda s: s.regime == "instruct")
_MATH_CODE = Scope(
    "pair of settings, math and code, in one regime",
    lambda a, b: (a.domain, b.domain) == ("math", "code") and a.regime == b.regime,
    pairs=True,
)
_CODE_MATH = Scope(
    "pair of settings, code and math, in one regime",
    lambda a, b: _MATH_CODE.wanted(b, a),
    pairs=True,
)
_REGIMES = Scope(
    "pair of settings of code, instruction and continued pretraining",
    lambda a, b: (
        a.domain == b.domain == "code" and (a.regime, b.regime) == ("instruct", "pretrain")
    ),
    pairs=True,
)

CLAIMS: tuple[Claimed, ...] = (
    Claimed("learns-less-code", "LoRA learns less than full finetuning in code.",
            f"{_PAPER}, figure 1", "tuned", PAIRED, outcomes.learns_less, _CODE),
    Claimed("learns-less-elsewhere", "LoRA learns less than full finetuning outside code.",
            f"{_PAPER}, figure 1", "tuned", PAIRED, outcomes.learns_less, _ELSEWHERE),
    Claimed("narrows-gap-math", "LoRA comes nearer to full finetuning in math than in code.",
            f"{_PAPER}, figure 1", "tuned", f"{PAIRED}, of a ratio by the delta method",
            outcomes.narrows_the_gap_in_math, _MATH_CODE),
    Claimed("forgets-less", "Tuned for learning, LoRA forgets less than full finetuning.",
            f"{_PAPER}, figure 2", "tuned", PAIRED, outcomes.forgets_less),
    Claimed("forgets-less-matched", "At the same learning LoRA forgets less than full finetuning.",
            f"{_PAPER}, figure 3", "equal learning", FRONT,
            outcomes.forgets_less_at_equal_learning),
    Claimed("same-tradeoff", "LoRA and full finetuning lie on the same trade-off curve.",
            f"{_FIRST}, figure 3", "equal learning", f"{FRONT}; two one-sided tests at 2 points",
            outcomes.same_tradeoff),
    Claimed("stronger-regulariser",
            "LoRA forgets less than full finetuning with weight decay or dropout.",
            f"{_PAPER}, figure 4", "tuned", PARTS, outcomes.stronger_than_regularisers),
    Claimed("keeps-diversity", "LoRA keeps more distinct outputs than full finetuning.",
            f"{_PAPER}, figure 5", "tuned", f"{SEEDS}, prompts' errors added",
            analysed.keeps_diversity),
    Claimed("full-high-rank",
            "Updates of full finetuning have at least ten times the rank of a usual LoRA (r = 16).",
            f"{_PAPER}, figure 6", "updates", SEEDS, analysed.full_is_high_rank),
    Claimed("rank-grows", "The rank of full finetuning's updates grows with data.",
            f"{_PAPER}, figure 6", "updates", SEEDS, analysed.rank_grows_with_data),
    Claimed("rank-by-module", "Updates of mlp modules have a higher rank than attention's.",
            f"{_PAPER}, figure 6", "updates", f"{SEEDS}, ranks as a share of iid noise",
            analysed.mlp_above_attention),
    Claimed("rank-by-layer", "Updates of the first and last layers have a lower rank.",
            f"{_PAPER}, figure 6", "updates", f"{SEEDS}, ranks as a share of iid noise",
            analysed.middle_layers_above_ends),
    Claimed("rate-ten-times",
            "LoRA's best learning rate is about ten times full finetuning's (3.2 to 32 times).",
            f"{_PAPER}, figure S1", "search",
            f"{SEEDS}, where the best rate is surely inside both lists; their step added",
            pace.ten_times_the_rate),
    Claimed("rate-sensitivity", "LoRA is more sensitive to the learning rate.",
            f"{_PAPER}, figure S1", "search", PAIRED, pace.more_sensitive_to_the_rate),
    Claimed("targets-order", "LoRA on all modules learns more than on mlp, and mlp than attention.",
            f"{_PAPER}, figure 7", "tuned", PARTS, outcomes.all_above_mlp_above_attention),
    Claimed("rank-moves-along", "More rank learns more and forgets more.",
            f"{_PAPER}, figures 1 to 3", "tuned", f"slopes over ranks; {PARTS}",
            outcomes.rank_moves_along),
    Claimed("rank-16-balance", "LoRA with r = 16 on all modules is a good balance.",
            f"{_FIRST}, section 6", "tuned", f"{PARTS}, each not worse by 2 points",
            outcomes.rank_16_is_a_balance),
    Claimed("code-forgets-more", "Code makes a model forget more than mathematics does.",
            f"{_PAPER}, figure 2", "tuned", PAIRED, outcomes.code_forgets_more,
            _CODE_MATH),
    Claimed("instruct-over-pretrain",
            "Instruction finetuning improves code more than continued pretraining.",
            f"{_PAPER}, figure 1", "tuned", PAIRED,
            outcomes.instruction_improves_more, _REGIMES),
    Claimed("sample-efficiency-math",
            "In mathematics LoRA needs more training than full finetuning for the same learning.",
            f"{_FIRST}, figure 1", "tuned", SEEDS,
            pace.less_sample_efficient_in_math, _MATH),
    Claimed("lora-needs-longer", "LoRA reaches its own peak later than full finetuning.",
            f"{_PAPER}, figure 1", "tuned",
            f"{SEEDS}, items by bootstrap, the step of the budgets added",
            pace.needs_more_epochs),
    Claimed("four-epochs", "LoRA still gains up to four epochs of instruction data.",
            f"{_PAPER}, figure 1; version 1's recipe", "tuned", PAIRED,
            outcomes.four_epochs_or_more, _INSTRUCT),
    Claimed("replay-mitigates", "Replay of source data lessens forgetting.",
            "Bethune et al. 2025, arXiv:2502.06042", "tuned", PARTS, outcomes.replay_mitigates),
)  # fmt: skip


def claims_on(settings: Sequence[Setting]) -> list[Claimed]:
    """The paper's claims, and those on the remedies that some setting has."""
    return [*CLAIMS, *(claim for claim in REMEDY_CLAIMS if claim.scope.groups(settings))]
