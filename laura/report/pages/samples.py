"""A few answers of the base and of every arm to the same questions."""

from __future__ import annotations

from laura.report.blocks import Answers, Block, Heading, Listing, Prose, ReportPage
from laura.report.side_by_side import Examples
from laura.report.study import Study


def missing(study: Study) -> str:
    """Why there is nothing to show."""
    if study.examples:
        return ""
    return (
        "no samples of the base and of an arm lie in the folder; they are in the study’s own "
        "folder (runs/ID/evals), which may have been left behind when the report was copied"
    )


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    found: list[Block] = [
        Prose(
            "Items on which the verdicts differ come first, so these show what training changed, "
            "not how often: the scores do that. `laura show` pages through all of them.",
            soft=True,
        )
    ]
    for place, examples in enumerate(study.examples):
        found += _task(examples, f"samples-{place}")
    return found


def _task(examples: Examples, anchor: str) -> list[Block]:
    told = f"The verdicts differ on {examples.differing} of {examples.common}."
    if examples.left_out:
        told += f" No room for {', '.join(examples.left_out)}."
    return [
        Heading(examples.title, anchor),
        Prose(told),
        Listing(list(examples.models.items())),
        *(Answers(item) for item in examples.items),
    ]


PAGE = ReportPage("samples", "Samples", missing, blocks)
