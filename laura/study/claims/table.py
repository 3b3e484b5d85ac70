"""The table of claims: one entry each, in the order they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from laura.study.claims import analysed, outcomes, pace, regimes, weights
from laura.study.claims.settings import Setting
from laura.study.claims.verdicts import Finding


@dataclass(frozen=True)
class Claim:
    """A statement, and how it is looked at; the function's docstring says what is compared.

    Attributes:
        id: Short name.
        statement: What is claimed.
        source: Where it was claimed.
        test: Which test judges it.
        look: Judges it over all settings.
    """

    id: str
    statement: str
    source: str
    test: str
    look: Callable[[Sequence[Setting]], Finding]


_PAPER = "Biderman et al. 2024, arXiv:2405.09673v2"
_PAIRED = "Student's t of a difference paired by item and seed, Satterthwaite's degrees of freedom"
_PARTS = f"{_PAIRED}; every part must hold (intersection-union)"
_WIDENED = "bootstrap over items and seeds, widened to Student's t for few seeds"
_SEEDS = "Student's t over seeds"

CLAIMS: tuple[Claim, ...] = (
    Claim("learns-less-code", "LoRA learns less than full finetuning in code.",
          f"{_PAPER}, figure 1", _PAIRED, outcomes.learns_less_in_code),
    Claim("learns-less-elsewhere", "LoRA learns less than full finetuning outside code.",
          f"{_PAPER}, figure 1", _PAIRED, outcomes.learns_less_elsewhere),
    Claim("narrows-gap-math", "LoRA comes nearer to full finetuning in math than in code.",
          f"{_PAPER}, figure 1", f"{_PAIRED}, of a ratio by the delta method",
          regimes.narrows_the_gap_in_math),
    Claim("forgets-less", "LoRA forgets less than full finetuning.",
          f"{_PAPER}, figure 2", _PAIRED, outcomes.forgets_less),
    Claim("forgets-less-matched", "At the same learning LoRA forgets less than full finetuning.",
          f"{_PAPER}, figure 3", _WIDENED,
          analysed.forgets_less_at_matched_learning),
    Claim("stronger-regulariser",
          "LoRA forgets less than full finetuning with weight decay or dropout.",
          f"{_PAPER}, figure 4", _PARTS, outcomes.stronger_than_regularisers),
    Claim("keeps-diversity", "LoRA keeps more distinct outputs than full finetuning.",
          f"{_PAPER}, figure 5", f"{_SEEDS}, prompts' errors added", analysed.keeps_diversity),
    Claim("full-high-rank",
          "Updates of full finetuning have at least ten times the rank of LoRA's.",
          f"{_PAPER}, figure 6", _SEEDS, weights.full_is_high_rank),
    Claim("rank-grows", "The rank of full finetuning's updates grows with data.",
          f"{_PAPER}, figure 6", _SEEDS, weights.rank_grows_with_data),
    Claim("rank-by-module", "Updates of mlp modules have a higher rank than attention's.",
          f"{_PAPER}, figure 6", f"{_SEEDS}, ranks as a share of iid noise",
          weights.mlp_above_attention),
    Claim("rank-by-layer", "Updates of the first and last layers have a lower rank.",
          f"{_PAPER}, figure 6", f"{_SEEDS}, ranks as a share of iid noise",
          weights.middle_layers_above_ends),
    Claim("rate-ten-times",
          "LoRA's best learning rate is about ten times full finetuning's (3.2 to 32 times).",
          f"{_PAPER}, figure S1",
          "Student's t over lists of rates, the step of the lists added",
          pace.ten_times_the_rate),
    Claim("targets-order", "LoRA on all modules learns more than on mlp, and mlp than attention.",
          f"{_PAPER}, figure 7", _PARTS, outcomes.all_above_mlp_above_attention),
    Claim("rank-moves-along", "More rank learns more and forgets more.",
          f"{_PAPER}, figures 1 to 3", _PARTS, outcomes.rank_moves_along),
    Claim("instruct-over-pretrain",
          "Instruction finetuning improves code more than continued pretraining.",
          f"{_PAPER}, figure 1", _PAIRED, regimes.instruction_improves_more),
    Claim("lora-needs-longer", "LoRA reaches its own peak later than full finetuning.",
          f"{_PAPER}, figure 1",
          f"{_SEEDS}, items by bootstrap, the step of the budgets added",
          pace.needs_more_epochs),
    Claim("four-epochs", "LoRA still gains up to four epochs of instruction data.",
          f"{_PAPER}, figure 1; version 1's recipe", _PAIRED, outcomes.four_epochs_or_more),
    Claim("replay-mitigates", "Replay of source data lessens forgetting.",
          "Bethune et al. 2025, arXiv:2502.06042", _PARTS, outcomes.replay_mitigates),
)  # fmt: skip
