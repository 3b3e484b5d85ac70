"""Arms that differ in what they were held back by, in replay, in modules and rank."""

from __future__ import annotations

from laura.report.arms import adapted, families, modules, regularised, setting
from laura.report.blocks import Block, Figure
from laura.report.study import Study
from laura.report.tables import final_scores


def regularisers(study: Study) -> list[Block] | str:
    """Full finetuning held back by decay and dropout, beside LoRA."""
    arms = regularised(study.summary)
    if not arms:
        return (
            "no arm of full finetuning has weight decay or dropout; add one, such as "
            "`full-decay: {method: full, weight_decay: 0.1}`, also `attention_dropout`, "
            "`residual_dropout` or `weight_decay_toward: base`"
        )
    caption = "What holds each arm back, and its scores"
    return [Figure("regularisers"),
            final_scores(study.summary, "regularised", caption, "held back by", arms)]  # fmt: skip


def replay(study: Study) -> list[Block] | str:
    """What replay of source data saves, and what it costs."""
    arms = {
        arm.name: f"{100 * setting(arm, 'replay'):g} % of tokens"
        for alike in families(study.summary, "replay").values()
        for arm in sorted(alike, key=lambda arm: setting(arm, "replay"))
    }
    if not arms:
        return (
            "no two arms differ in replay alone; give the recipe `data.replay` and arms with "
            "several `replay` shares, such as `full-replay: {method: full, replay: 0.05}`"
        )
    caption = "Arms by their share of replay"
    return [Figure("replay"), final_scores(study.summary, "replayed", caption, "replay", arms)]


def variants(study: Study) -> list[Block] | str:
    """Which modules, which rank, which alpha."""
    if not adapted(study.summary):
        return (
            "no two arms of LoRA differ in rank, modules or alpha; add arms such as "
            "`lora-mlp: {method: lora, rank: 64, targets: mlp}`"
        )
    arms = {
        arm.name: f"rank {setting(arm, 'rank'):g}, alpha {setting(arm, 'alpha'):g}, {modules(arm)}"
        for arm in study.summary.arms
        if arm.method == "lora"
    }
    caption, heading = "Arms of LoRA by modules, rank and alpha", "modules and rank"
    return [Figure("ranks"), final_scores(study.summary, "variants-table", caption, heading, arms)]
