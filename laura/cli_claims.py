"""The command that judges the paper's statements by a study: `laura claims`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laura.cli_options import JsonOption
from laura.door import opened
from laura.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType


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
    lies on the claimed side, contradicted when it lies on the other; with fewer than three
    seeds or 50 items it is too thin. Several studies (code and math, instruct and
    pretrain) answer statements that one cannot.

    \b
    Example:
      laura claims studies/micro studies/micro-math
    """
    with opened(json) as desk:
        from laura.store import SeriesStore, write_json
        from laura.study.claims.judgement import (
            build_claims,
            judge_series,
            read_study,
            write_claims,
            write_series_claims,
        )

        series = len(studies) == 1 and bool(SeriesStore(studies[0]).settings())
        if len(studies) == 1 and out is None:
            found = (write_series_claims if series else write_claims)(studies[0])
        elif series and out is not None:
            found = judge_series(studies[0])
            write_json(out, found)
        else:
            found = build_claims(_named([read_study(folder) for folder in studies], studies))
            if out is not None:
                write_json(out, found)
        desk.answer(found, claims_table(found))


def claims_table(found: dict[str, Any]) -> RenderableType:
    """The claims with verdict, effect and interval, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    names = ", ".join(setting["name"] for setting in found["settings"])
    table = Table(title=Text(f"Claims, judged by {names}"), title_justify="left")
    for heading in ("claim", "verdict", "n", "seeds", "why"):
        table.add_column(heading, justify="right" if heading in ("n", "seeds") else "left")
    colours = {"supported": "green", "contradicted": "red", "too thin": "dim"}
    for claim in found["claims"]:
        verdict = claim["verdict"]
        # A verdict that does not hold among all that were tested is marked.
        mark = "" if claim["holm"]["verdict"] == verdict or verdict == "too thin" else " *"
        table.add_row(
            Text(claim["statement"]),
            Text(verdict + mark, style=colours[verdict]),
            str(claim["n"] or ""),
            str(claim["seeds"] or ""),
            Text(claim["reason"]),
        )
    notes = f"{found['tested']} of {len(found['claims'])} claims could be tested. Intervals: 95 %."
    if any(c["verdict"] not in ("too thin", c["holm"]["verdict"]) for c in found["claims"]):
        notes += " * not clear any more when all of them are counted (Holm, 5 %)."
    parts: list[RenderableType] = [table, Text(notes, style="dim")]
    if found["gaps"]:
        parts.append(Text("\nMissing", style="bold"))
        parts += [Text(f" - {gap}") for gap in found["gaps"]]
    return Group(*parts)


def _named(read: list[Any], folders: list[Path]) -> list[Any]:
    """Settings under names that differ: the recipes', or else the folders'.

    Raises:
        UsageError: a folder is given twice.
    """
    whole = [folder.resolve() for folder in folders]
    if len(set(whole)) < len(whole):
        raise UsageError("a study is named twice; name each once")
    if len({name for name, _, _ in read}) == len(read):
        return read
    return [
        (str(f), evidence, analysis)
        for f, (_, evidence, analysis) in zip(folders, read, strict=True)
    ]
