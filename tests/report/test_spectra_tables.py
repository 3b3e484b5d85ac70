"""The terminal's tables of spectra: means by module, ranks by layer, warnings beneath."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from laura.report.spectra_tables import layer_rows, module_rows, spectra_tables


def matrix(layer: int, module: str, rank: int, **more: Any) -> dict[str, Any]:
    """One entry of `matrices`, as far as the tables read it."""
    return {
        "layer": layer,
        "module": module,
        "shape": [4096, 11008],
        "rank": {"90": rank},
        "noise_rank": {"90": 2000},
        "effective_rank": 1000.0 + layer,
        "stable_rank": 30.0,
        "relative_frobenius": 0.01,
        "intruders": None,
        **more,
    }


MATRICES = [
    matrix(0, "down_proj", 1000),
    matrix(0, "q_proj", 5, relative_frobenius=None),
    matrix(1, "down_proj", 2000),
]


def shown(answer: dict[str, Any]) -> str:
    """What a terminal of 80 columns shows."""
    file = io.StringIO()
    Console(file=file, width=80).print(spectra_tables(answer))
    return file.getvalue()


def test_means_by_module_and_ranks_by_layer() -> None:
    assert module_rows(MATRICES) == [
        ["down_proj", "4096x11008", "1,500", "75%", "1,000.5", "30.0", "1.00%"],
        ["q_proj", "4096x11008", "5", "0%", "1,000.0", "30.0", "–"],
    ]
    headings, rows = layer_rows(MATRICES)
    assert headings == ["layer", "down_proj", "q_proj"]
    assert rows == [["0", "1,000", "5"], ["1", "2,000", "–"]]


def test_a_terminal_shows_everything_whole() -> None:
    text = shown(
        {
            "tuned": "[red]folder[/]",
            "settings": {"intruders": True},
            "warnings": ["stored in bfloat16"],
            "matrices": [{**one, "intruders": 3} for one in MATRICES],
        }
    )
    assert "[red]folder[/]" in text and "Mind: stored in bfloat16" in text
    for word in ("module", "effective", "intruders", "4096x11008", "1,000.5", "3.0", "down_proj"):
        assert word in text
    assert "…" not in text
