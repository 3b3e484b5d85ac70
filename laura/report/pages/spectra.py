"""What training did to the weights: ranks, spectra, intruders, shared subspaces."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from laura.report import formats
from laura.report.blocks import Block, Cell, Column, Figure, Heading, Notice, ReportPage, Table
from laura.report.charts.spectra import TABLE, at_best_rates
from laura.report.study import Study
from laura.results.schema import CheckpointSpectra, MatrixSpectra, SubspaceOverlap, Summary


def missing(study: Study) -> str:
    """Why there is nothing to show."""
    if study.analysis.spectra:
        return ""
    return (
        "the weights were not analysed; give the recipe `analysis: {spectra: final}` (or `all` "
        "for every budget) and the same `laura compare` again, finished runs are not repeated"
    )


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    found = at_best_rates(study)
    every: list[Block] = [Figure("spectra"), _sizes(study.summary, found)]
    warnings = list(dict.fromkeys(text for one in found for text in one.warnings))
    if warnings:
        every.append(Notice("To bear in mind", warnings))
    matrices = [matrix for one in found for matrix in one.matrices]
    if any(matrix.kept_values for matrix in matrices):
        every.append(Figure("singular_values"))
    if any(matrix.intruders is not None for matrix in matrices):
        every.append(Figure("intruders"))
    return [*every, *_overlaps(study)]


def _sizes(summary: Summary, found: list[CheckpointSpectra]) -> Table:
    cells: dict[tuple[str, float], list[MatrixSpectra]] = {}
    order = {arm.name: place for place, arm in enumerate(summary.arms)}
    for one in sorted(found, key=lambda one: (order.get(one.arm, len(order)), one.budget)):
        cells.setdefault((one.arm, one.budget), []).extend(one.matrices)
    columns = [
        Column("arm"),
        Column("budget", numeric=True),
        Column("matrices", "over all seeds", numeric=True),
        Column("rank at 90 %", "median", numeric=True),
        Column("as a share of noise’s", "median", numeric=True),
        Column("effective rank", "Roy-Vetterli, median", numeric=True),
        Column("norm", "of the base’s, median", numeric=True),
        Column("intruders", "a matrix, mean", numeric=True),
    ]
    rows = [
        [
            Cell(arm),
            Cell(formats.budget_of(summary, budget)),
            Cell(str(len(own))),
            Cell(_median(matrix.rank_kept for matrix in own)),
            Cell(_median(map(_of_noise, own))),
            Cell(_median(matrix.effective_rank for matrix in own)),
            Cell(_median(matrix.relative_frobenius for matrix in own)),
            Cell(_mean(matrix.intruders for matrix in own)),
        ]
        for (arm, budget), own in cells.items()
    ]
    return Table("update-sizes", TABLE, columns, rows)


def _of_noise(matrix: MatrixSpectra) -> float | None:
    """Rank of an update as a share of that of noise."""
    rank, noise = matrix.rank_kept, matrix.noise_kept
    return rank / noise if rank is not None and noise else None


def _median(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    return f"{statistics.median(found):.3g}" if found else formats.ABSENT


def _mean(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    return f"{math.fsum(found) / len(found):.2f}" if found else formats.ABSENT


def _overlaps(study: Study) -> list[Block]:
    # Where an update is zero it has no directions to compare.
    found = [one for one in study.analysis.subspaces if one.overlap is not None]
    if not found:
        return []
    runs = {run.id: run for run in study.summary.runs}
    cells: dict[tuple[tuple[str, str], str], list[SubspaceOverlap]] = {}
    for one in found:
        cells.setdefault((one.runs, one.name.rsplit(".", 1)[-1]), []).append(one)
    columns = [
        Column("runs"),
        Column("module"),
        Column("matrices", numeric=True),
        Column("directions", "most compared", numeric=True),
        Column("shared", "mean", numeric=True),
        Column("of random ones", "mean", numeric=True),
    ]
    rows = []
    for (pair, module), own in cells.items():
        told = [f"{runs[run].arm} (seed {runs[run].seed})" if run in runs else run for run in pair]
        rows.append(
            [
                Cell(" and ".join(told), title=" and ".join(pair)),
                Cell(module),
                Cell(str(len(own))),
                Cell(str(max(one.k for one in own))),
                Cell(_mean(one.overlap for one in own)),
                Cell(_mean(one.noise_overlap for one in own)),
            ]
        )
    caption = "Share of the leading directions that two updates have in common"
    return [Heading("Shared subspaces", "subspaces"), Table("overlaps", caption, columns, rows)]


PAGE = ReportPage("spectra", "Spectra", missing, blocks)
