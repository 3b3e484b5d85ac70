"""What noise does to the spectrum of a matrix: the control of the paper's figure S8.

    python scripts/noise_spectra.py --out docs/evidence/noise-spectra

A and B are square and independent standard normal. Left: singular values of A, c B and
A + c B at c = 0.1. Right: the mean absolute difference between the spectra of A and of
A + c B over c, with the lines c and c² for reference. So noise too small to be seen in the
spectrum of a weight is itself of full rank; a high rank alone says little of an update.
Writes noise_spectra.json, .svg and .png (Biderman et al. 2024, arXiv:2405.09673v2).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laura.results.store import write_bytes, write_json, write_text

SHOWN = 0.1
FACTORS = tuple(10 ** (exponent / 2) for exponent in range(-12, 1))
ENERGY = 0.9
COLOURS = ["#0072B2", "#D55E00", "#009E73"]

Spectrum = NDArray[np.float64]


def noise_spectra(size: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Both panels' numbers.

    Args:
        size: Rows and columns of A and B.
        seed: Of their entries.

    Returns:
        {"size", "seed", "shown": c, "spectra": {"A", "cB", "A + cB": singular values from the
        largest}, "rank": {...: directions that hold 90 % of the sum of squares},
        "difference": [{"c", "value": mean absolute difference of the spectra}]}.
    """
    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((2, size, size))
    alone, noise = _spectrum(a), _spectrum(b)
    spectra = {"A": alone, "cB": SHOWN * noise, "A + cB": _spectrum(a + SHOWN * b)}
    difference = [
        {"c": c, "value": float(np.abs(_spectrum(a + c * b) - alone).mean())} for c in FACTORS
    ]
    return {
        "size": size,
        "seed": seed,
        "shown": SHOWN,
        "spectra": {name: [float(x) for x in values] for name, values in spectra.items()},
        "rank": {name: _rank(values) for name, values in spectra.items()},
        "difference": difference,
    }


def _spectrum(matrix: Spectrum) -> Spectrum:
    return np.asarray(np.linalg.svd(matrix, compute_uv=False), dtype=np.float64)


def _rank(values: Spectrum) -> int:
    energy = np.cumsum(values**2)
    return int(np.searchsorted(energy, ENERGY * energy[-1])) + 1


def specification(found: dict[str, Any]) -> dict[str, Any]:
    """The figure as Vega-Lite: spectra left, differences right."""
    curves = [
        {"direction": place + 1, "value": value, "matrix": name}
        for name, values in found["spectra"].items()
        for place, value in enumerate(values)
    ]
    lines = [{**row, "line": "difference"} for row in found["difference"]]
    for name, power in (("c", 1), ("c²", 2)):
        lines += [{"c": c, "value": c**power, "line": name} for c in FACTORS]
    log = {"type": "log"}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "hconcat": [
            _panel(
                curves,
                {"field": "direction", "title": "direction"},
                {"field": "value", "title": "singular value"},
                "matrix",
                list(found["spectra"]),
            ),
            _panel(
                lines,
                {"field": "c", "title": "c", "scale": log, "axis": {"format": "~e"}},
                {
                    "field": "value",
                    "title": "mean absolute difference of the spectra",
                    "scale": log,
                    "axis": {"format": "~e"},
                },
                "line",
                ["difference", "c", "c²"],
            ),
        ],
        "resolve": {"scale": {"color": "independent"}},
        "background": "white",
    }


def _panel(
    rows: list[dict[str, Any]],
    x: dict[str, Any],
    y: dict[str, Any],
    name: str,
    order: list[str],
) -> dict[str, Any]:
    quantity = {"type": "quantitative"}
    scale = {"domain": order, "range": COLOURS}
    return {
        "data": {"values": rows},
        "mark": {"type": "line", "strokeWidth": 2},
        "width": 380,
        "height": 280,
        "encoding": {
            "x": {**quantity, **x},
            "y": {**quantity, **y},
            "color": {"field": name, "type": "nominal", "scale": scale, "title": None},
        },
    }


def write(found: dict[str, Any], folder: Path) -> None:
    """Write numbers and figure into a folder."""
    import vl_convert

    svg = vl_convert.vegalite_to_svg(specification(found))
    write_json(folder / "noise_spectra.json", found)
    write_text(folder / "noise_spectra.svg", svg)
    write_bytes(folder / "noise_spectra.png", vl_convert.svg_to_png(svg, scale=2))


def main() -> None:
    """Read the options, compute, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("noise-spectra"), metavar="DIR")
    parser.add_argument("--size", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args()
    found = noise_spectra(options.size, options.seed)
    write(found, options.out)
    shares = ", ".join(f"{name} {rank / options.size:.0%}" for name, rank in found["rank"].items())
    sys.stdout.write(f"90 % of the energy needs, of all directions: {shares}\n")
    for row in found["difference"]:
        sys.stdout.write(f"c {row['c']:.1e}: {row['value']:.2e}\n")


if __name__ == "__main__":
    main()
