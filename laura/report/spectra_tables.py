"""What `laura spectra` found, as tables for a terminal: by module, and by layer."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from laura.report.formats import ABSENT

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

ENERGY = "90"
HEADINGS = ("module", "shape", "rank", "noise", "effective", "stable", "norm")
NOTES = (
    "rank: directions that hold 90 % of the update's squared singular values; noise: that as a "
    "share of what independent noise of this shape needs; effective: Roy and Vetterli's rank; "
    "stable: energy over that of the first direction; norm: Frobenius, update over base. Means "
    "over layers."
)


def module_rows(matrices: Sequence[dict[str, Any]]) -> list[list[str]]:
    """One row a module type, means over its layers; intruders last, where they were counted."""
    rows = []
    for module, own in _by_module(matrices).items():
        shapes = {"x".join(map(str, one["shape"])) for one in own}
        norms = [x for one in own if (x := one["relative_frobenius"]) is not None]
        row = [
            module,
            ", ".join(sorted(shapes)),
            f"{fmean(one['rank'][ENERGY] for one in own):,.0f}",
            f"{fmean(one['rank'][ENERGY] / one['noise_rank'][ENERGY] for one in own):.0%}",
            f"{fmean(one['effective_rank'] for one in own):,.1f}",
            f"{fmean(one['stable_rank'] for one in own):,.1f}",
            f"{fmean(norms):.2%}" if norms else ABSENT,
        ]
        counts = [one["intruders"] for one in own if one["intruders"] is not None]
        rows.append([*row, f"{fmean(counts):.1f}"] if counts else row)
    return rows


def layer_rows(matrices: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and one row a layer: the update's rank at 90 % in every module."""
    modules = list(_by_module(matrices))
    layers: dict[int, dict[str, list[int]]] = {}
    for one in matrices:
        found = layers.setdefault(one["layer"], {})
        found.setdefault(one["module"], []).append(one["rank"][ENERGY])
    rows = [
        [str(layer), *(f"{fmean(own[m]):,.0f}" if m in own else ABSENT for m in modules)]
        for layer, own in sorted(layers.items())
    ]
    return ["layer", *modules], rows


def spectra_tables(answer: dict[str, Any]) -> RenderableType:
    """Both tables with the warnings beneath."""
    from rich.console import Group
    from rich.text import Text

    matrices = answer["matrices"]
    headings = [*HEADINGS, "intruders"] if answer["settings"]["intruders"] else list(HEADINGS)
    by_layer, rows = layer_rows(matrices)
    parts: list[RenderableType] = [
        _table(f"Updates of {answer['tuned']}, by module", headings, module_rows(matrices)),
        Text(NOTES, style="dim"),
        Text(),
        _table("Rank of the update at 90 %, by layer", by_layer, rows),
        *(Text(f"Mind: {warning}", style="yellow") for warning in answer["warnings"]),
    ]
    return Group(*parts)


def _by_module(matrices: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for one in matrices:
        found.setdefault(one["module"], []).append(one)
    return found


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    # Text, not str: a name may hold what rich would take for markup.
    table = Table(title=Text(title), title_justify="left", box=SIMPLE, collapse_padding=True)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
