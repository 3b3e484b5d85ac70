"""Tokens a second and peak memory of every arm in every setting of a series, as Markdown.

    laura compare paper/throughput
    python scripts/throughput_table.py studies/paper-throughput

Reads each setting's cost.json: the median step's tokens a second, and the largest peak of
the arm's runs in GB (10⁹ bytes): of the device on a GPU; on a CPU of the whole process,
which also holds what the runs before have left, so there it does not tell the arms apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from laura.results.schema import COST_FILE, ArmCost, Costs, read_optional
from laura.results.store import SeriesStore


def tables(series: Path) -> str:
    """Both tables: an arm a row, a setting a column.

    Args:
        series: Folder of a series that was carried out.
    """
    found = {
        name: costs
        for name, study in SeriesStore(series).settings().items()
        if (costs := read_optional(Costs, study.folder / COST_FILE)) is not None
    }
    if not found:
        raise SystemExit(f"{series} holds no cost.json of a setting; run laura compare first")
    speed = _table("tokens/s", found, lambda cost: cost.tokens_per_second, "{:,.0f}", 1)
    peak = _table("peak GB", found, lambda cost: cost.peak_memory_bytes, "{:.2f}", 1e9)
    return f"{speed}\n{peak}"


def _table(
    title: str,
    found: dict[str, Costs],
    value: Callable[[ArmCost], float | None],
    shown: str,
    unit: float,
) -> str:
    arms = list(dict.fromkeys(cost.arm for costs in found.values() for cost in costs.arms))
    lines = [f"| {title} | {' | '.join(found)} |", "|---" + "|---:" * len(found) + "|"]
    for arm in arms:
        cells = []
        for costs in found.values():
            number = next((value(cost) for cost in costs.arms if cost.arm == arm), None)
            cells.append("-" if number is None else shown.format(number / unit))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables of the series that was named."""
    if len(sys.argv) != 2:
        raise SystemExit((__doc__ or "").strip())
    sys.stdout.write(tables(Path(sys.argv[1])))


if __name__ == "__main__":
    main()
