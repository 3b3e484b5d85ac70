"""The command that judges the paper's statements by a study: `laura claims`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from laura.cli.console import opened
from laura.cli.options import JsonOption
from laura.results.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from laura.results.schema import Judgement
    from laura.study.claims.settings import Setting


def claims(
    studies: Annotated[
        list[Path],
        typer.Argument(
            metavar="STUDY...", help="Study folder, or a series'; several are judged together."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="Where the JSON goes.",
            show_default="STUDY/claims.json; of several studies nowhere",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Judge the paper's statements by a study.

    A statement is supported when the 95 % interval of its effect, over items and seeds,
    lies inside what it says, contradicted when inside its opposite, mixed when settings
    disagree, and else undecided. Several studies (code and math, instruct and pretrain)
    answer statements that one cannot.

    \b
    Example:
      laura claims studies/micro studies/micro-math
    """
    with opened(json) as desk:
        from laura.results.schema import write_file
        from laura.results.store import SeriesStore
        from laura.study.claims.judgement import (
            judge,
            judge_series,
            read_setting,
            write_claims,
            write_series_claims,
        )

        series = len(studies) == 1 and bool(SeriesStore(studies[0]).settings())
        if len(studies) == 1 and out is None:
            found = (write_series_claims if series else write_claims)(studies[0])
        elif series and out is not None:
            found = judge_series(studies[0])
            write_file(out, found)
        else:
            found = judge(_named([read_setting(folder) for folder in studies], studies))
            if out is not None:
                write_file(out, found)
        desk.answer(found.model_dump(mode="json"), claims_table(found))


def claims_table(found: Judgement) -> RenderableType:
    """The claims with verdict, effect and interval, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from laura.report.formats import estimated
    from laura.report.pages.overview import EDGE, open_words

    names = ", ".join(setting.name for setting in found.settings)
    table = Table(title=Text(f"Claims, judged by {names}"), title_justify="left")
    for heading in ("claim", "verdict", "effect", "why"):
        table.add_column(heading)
    colours = {"supported": "green", "contradicted": "red", "mixed": "yellow"}
    tested = [claim for claim in found.claims if not claim.missing]
    for claim in tested:
        verdict = claim.verdict + (" (edge)" if claim.edge else "")
        why = ". ".join(part for part in (claim.reason.rstrip("."), open_words(claim)) if part)
        table.add_row(
            Text(claim.statement),
            Text(verdict, style=colours.get(claim.verdict, "dim")),
            Text(estimated(claim.effect) if claim.effect is not None else ""),
            Text(why),
        )
    notes = (
        f"{found.tested} of {len(found.claims)} claims could be tested; verdicts count all of "
        "them (Holm, 5 %). Intervals: 95 %."
    )
    if any(claim.edge for claim in found.claims):
        notes += f" {EDGE[0].upper()}{EDGE[1:]}."
    parts: list[RenderableType] = [Text(found.answer, style="bold"), Text(), table]
    parts.append(Text(notes, style="dim"))
    silent = [claim for claim in found.claims if claim.missing]
    if silent:
        parts.append(Text("\nWhat this design could not judge", style="bold"))
        parts += [Text(f" - {claim.id}: {'; '.join(claim.missing)}") for claim in silent]
    if found.gaps:
        parts.append(Text("\nMissing", style="bold"))
        parts += [Text(f" - {gap}") for gap in found.gaps]
    return Group(*parts)


def _named(read: list[Setting], folders: list[Path]) -> list[Setting]:
    """Settings under names that differ: the recipes', or else the folders'.

    Raises:
        UsageError: a folder is given twice.
    """
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise UsageError("a study is named twice; name each once")
    if len({one.name for one in read}) == len(read):
        return read
    return [replace(one, name=str(folder)) for folder, one in zip(folders, read, strict=True)]
