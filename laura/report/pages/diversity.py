"""How varied the outputs are, and pass@k."""

from __future__ import annotations

from laura.report import formats
from laura.report.blocks import Block, Cell, Column, Figure, ReportPage, Table
from laura.report.charts.diversity import by_model, count, extras
from laura.report.charts.pass_at_k import at_k
from laura.report.study import Study

COUNTS = {
    "distinct": "distinct",
    "distinct_passed": "distinct that pass",
    "distinct_failed": "distinct that fail",
    "self_bleu": "self-BLEU",
    "answer_entropy": "answer entropy",
}


def missing(study: Study) -> str:
    """Why there is nothing to show."""
    if study.analysis.diversity or study.analysis.pass_at_k:
        return ""
    return (
        "no task was sampled several times; give the recipe `measure.extras` (see docs/recipe.md) "
        "and the same `laura compare` again, finished runs are not repeated"
    )


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    found: list[Block] = []
    if study.analysis.diversity:
        found.append(Figure("diversity"))
        found += [_counts(study, extra) for extra in extras(study.analysis.diversity)]
    if study.analysis.diversity_differences:
        found.append(_differences(study))
    if any(len(one.at_k) > 1 for one in study.analysis.pass_at_k):
        found.append(Figure("pass_at_k"))
    return [*found, *(_passes(study, extra) for extra in extras(study.analysis.pass_at_k))]


def _counts(study: Study, extra: str) -> Table:
    models = by_model(study.analysis.diversity, extra)
    first = next(iter(models.values()))[0]
    columns = [Column("model"), Column("seeds", numeric=True), Column("prompts", numeric=True)]
    columns += [Column(heading, numeric=True) for heading in COUNTS.values()]
    rows = []
    for model, seeds in models.items():
        found = {name: count(seeds, name) for name in COUNTS}
        n = max((one.n for one in found.values() if one), default=0)
        cells = [
            Cell(f"{one.value:.3g} ± {one.stderr:.2g}" if one else formats.ABSENT)
            for one in found.values()
        ]
        drawn = str(len(seeds)) if seeds[0].arm else formats.ABSENT
        rows.append([Cell(model), Cell(drawn), Cell(str(n)), *cells])
    title = study.summary.task(first.task).title
    caption = f"{title}: {first.samples} samples a prompt ({extra}), at the largest budget"
    return Table(f"counts-{extra}", caption, columns, rows)


def _differences(study: Study) -> Table:
    columns = [
        Column("models"),
        Column("samples", filter=True),
        Column("budget", filter=True),
        Column("measure", filter=True),
        Column("difference", "first minus second", numeric=True),
        Column("prompts", numeric=True),
        Column("seeds", numeric=True),
    ]
    rows = [
        [
            Cell(" − ".join(name or "base" for name in row.arms)),
            Cell(row.extra),
            Cell(formats.budget_of(study.summary, row.budget)),
            Cell(row.measure.replace("_", " ")),
            Cell(f"{formats.signed(row.difference)} ± {row.stderr:.2g}", order=row.difference),
            Cell(str(row.n), order=row.n),
            Cell(str(row.seeds), order=row.seeds),
        ]
        for row in study.analysis.diversity_differences
    ]
    caption = "Differences of counts, paired by prompt (rarefied: among as many samples of both)"
    return Table("diversity-differences", caption, columns, rows, interactive=True)


def _passes(study: Study, extra: str) -> Table:
    models = by_model(study.analysis.pass_at_k, extra)
    first = next(iter(models.values()))[0]
    found = {model: at_k(seeds) for model, seeds in models.items()}
    ks = sorted({k for own in found.values() for k in own})
    columns = [Column("model"), *(Column(f"pass@{k:g}", "%", numeric=True) for k in ks)]
    rows = [
        [
            Cell(model),
            *(
                Cell(f"{100 * own[k].value:.1f} ± {100 * own[k].stderr:.1f}" if k in own else "–")
                for k in ks
            ),
        ]
        for model, own in found.items()
    ]
    title = study.summary.task(first.task).title
    caption = f"{title}: pass@k of {first.samples} samples a prompt ({extra})"
    return Table(f"passes-{extra}", caption, columns, rows)


PAGE = ReportPage("diversity", "Diversity and pass@k", missing, blocks)
