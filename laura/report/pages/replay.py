"""What replay of source data saves, and what it costs."""

from __future__ import annotations

from laura.report.arms import families, setting
from laura.report.blocks import Block, Figure, ReportPage
from laura.report.pages.parts import scores_table
from laura.report.study import Study


def missing(study: Study) -> str:
    """Why there is nothing to show."""
    if families(study.summary, "replay"):
        return ""
    return (
        "no two arms differ in replay alone; give the recipe `data.replay` and arms with several "
        "`replay` shares, such as `full-replay: {method: full, replay: 0.05}`"
    )


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    arms = {
        arm.name: f"{100 * setting(arm, 'replay'):g} % of tokens"
        for alike in families(study.summary, "replay").values()
        for arm in sorted(alike, key=lambda arm: setting(arm, "replay"))
    }
    table = scores_table(study.summary, "replayed", "Arms by their share of replay", "replay", arms)
    return [Figure("replay"), table]


PAGE = ReportPage("replay", "Replay", missing, blocks)
