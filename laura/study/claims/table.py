"""The table of claims: one entry each, in the order they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from laura.study.claims import diversity, outcomes, pace, regimes, weights
from laura.study.claims.settings import Setting
from laura.study.claims.verdicts import Finding

Question = Literal["tuned", "equal learning", "updates", "search"]


@dataclass(frozen=True)
class Claimed:
    """A statement, and how it is looked at; the function's docstring says what is compared.

    Attributes:
        id: Short name.
        statement: What is claimed.
        source: Where it was claimed.
        question: Which of the judge's questions it asks; of updates and of the search apart.
        test: Which test judges it.
        look: Judges it over all settings.
    """

    id: str
    statement: str
    source: str
    question: Question
    test: str
    look: Callable[[Sequence[Setting]], Finding]


_PAPER, _FIRST = "Biderman et al. 2024, arXiv:2405.09673v2", "Biderman et al. 2024, version 1"
_PAIRED = "paired by item and seed, Student's t over seeds"
_PARTS = f"{_PAIRED}; every part must hold (intersection-union)"
_FRONT = "fronts over all rates, chosen on half of the items, told on the other; " + _PAIRED
_SEEDS = "Student's t over seeds"

CLAIMS: tuple[Claimed, ...] = (
    Claimed("learns-less-code", "LoRA learns less than full finetuning in code.",
            f"{_PAPER}, figure 1", "tuned", _PAIRED, outcomes.learns_less_in_code),
    Claimed("learns-less-elsewhere", "LoRA learns less than full finetuning outside code.",
            f"{_PAPER}, figure 1", "tuned", _PAIRED, outcomes.learns_less_elsewhere),
    Claimed("narrows-gap-math", "LoRA comes nearer to full finetuning in math than in code.",
            f"{_PAPER}, figure 1", "tuned", f"{_PAIRED}, of a ratio by the delta method",
            regimes.narrows_the_gap_in_math),
    Claimed("forgets-less", "Tuned for learning, LoRA forgets less than full finetuning.",
            f"{_PAPER}, figure 2", "tuned", _PAIRED, outcomes.forgets_less),
    Claimed("forgets-less-matched", "At the same learning LoRA forgets less than full finetuning.",
            f"{_PAPER}, figure 3", "equal learning", _FRONT,
            outcomes.forgets_less_at_equal_learning),
    Claimed("same-tradeoff", "LoRA and full finetuning lie on the same trade-off curve.",
            f"{_FIRST}, figure 3", "equal learning", f"{_FRONT}; two one-sided tests at 2 points",
            outcomes.same_tradeoff),
    Claimed("stronger-regulariser",
            "LoRA forgets less than full finetuning with weight decay or dropout.",
            f"{_PAPER}, figure 4", "tuned", _PARTS, outcomes.stronger_than_regularisers),
    Claimed("keeps-diversity", "LoRA keeps more distinct outputs than full finetuning.",
            f"{_PAPER}, figure 5", "tuned", f"{_SEEDS}, prompts' errors added",
            diversity.keeps_diversity),
    Claimed("full-high-rank",
            "Updates of full finetuning have at least ten times the rank of a usual LoRA (r = 16).",
            f"{_PAPER}, figure 6", "updates", _SEEDS, weights.full_is_high_rank),
    Claimed("rank-grows", "The rank of full finetuning's updates grows with data.",
            f"{_PAPER}, figure 6", "updates", _SEEDS, weights.rank_grows_with_data),
    Claimed("rank-by-module", "Updates of mlp modules have a higher rank than attention's.",
            f"{_PAPER}, figure 6", "updates", f"{_SEEDS}, ranks as a share of iid noise",
            weights.mlp_above_attention),
    Claimed("rank-by-layer", "Updates of the first and last layers have a lower rank.",
            f"{_PAPER}, figure 6", "updates", f"{_SEEDS}, ranks as a share of iid noise",
            weights.middle_layers_above_ends),
    Claimed("rate-ten-times",
            "LoRA's best learning rate is about ten times full finetuning's (3.2 to 32 times).",
            f"{_PAPER}, figure S1", "search",
            f"{_SEEDS}, where the best rate is surely inside both lists; their step added",
            pace.ten_times_the_rate),
    Claimed("rate-sensitivity", "LoRA is more sensitive to the learning rate.",
            f"{_PAPER}, figure S1", "search", _PAIRED, pace.more_sensitive_to_the_rate),
    Claimed("targets-order", "LoRA on all modules learns more than on mlp, and mlp than attention.",
            f"{_PAPER}, figure 7", "tuned", _PARTS, outcomes.all_above_mlp_above_attention),
    Claimed("rank-moves-along", "More rank learns more and forgets more.",
            f"{_PAPER}, figures 1 to 3", "tuned", f"slopes over ranks; {_PARTS}",
            outcomes.rank_moves_along),
    Claimed("rank-16-balance", "LoRA with r = 16 on all modules is a good balance.",
            f"{_FIRST}, section 6", "tuned", f"{_PARTS}, each not worse by 2 points",
            outcomes.rank_16_is_a_balance),
    Claimed("code-forgets-more", "Code makes a model forget more than mathematics does.",
            f"{_PAPER}, figure 2", "tuned", _PAIRED, regimes.code_forgets_more),
    Claimed("instruct-over-pretrain",
            "Instruction finetuning improves code more than continued pretraining.",
            f"{_PAPER}, figure 1", "tuned", _PAIRED, regimes.instruction_improves_more),
    Claimed("sample-efficiency-math",
            "In mathematics LoRA needs more training than full finetuning for the same learning.",
            f"{_FIRST}, figure 1", "tuned", _SEEDS, pace.less_sample_efficient_in_math),
    Claimed("lora-needs-longer", "LoRA reaches its own peak later than full finetuning.",
            f"{_PAPER}, figure 1", "tuned",
            f"{_SEEDS}, items by bootstrap, the step of the budgets added",
            pace.needs_more_epochs),
    Claimed("four-epochs", "LoRA still gains up to four epochs of instruction data.",
            f"{_PAPER}, figure 1; version 1's recipe", "tuned", _PAIRED,
            outcomes.four_epochs_or_more),
    Claimed("replay-mitigates", "Replay of source data lessens forgetting.",
            "Bethune et al. 2025, arXiv:2502.06042", "tuned", _PARTS, outcomes.replay_mitigates),
)  # fmt: skip
