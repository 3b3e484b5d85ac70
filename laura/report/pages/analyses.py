"""What was analysed and under which settings: weights, outputs, samples, costs, the recipe."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from statistics import fmean, median

from laura.report import formats
from laura.report.arms import places
from laura.report.blocks import (
    AnswerColumns,
    Block,
    Column,
    Figure,
    Fold,
    Listing,
    Notice,
    Prose,
    Subheading,
    Table,
    TableCell,
    Verbatim,
    number,
    sorted_by,
    table,
    wide,
)
from laura.report.charts.analyses import TABLE, at_best_rates, at_k, by_model, count
from laura.report.formats import ABSENT
from laura.report.study import Study
from laura.results.schema import (
    CheckpointSpectra,
    Costs,
    LayerMovement,
    MatrixSpectra,
    NeededRow,
    SubspaceOverlap,
    Summary,
)
from laura.results.statistics import Estimate

COUNTS = {
    "distinct": "distinct",
    "distinct_passed": "distinct that pass",
    "distinct_failed": "distinct that fail",
    "self_bleu": "self-BLEU",
    "answer_entropy": "answer entropy",
}


def spectra(study: Study) -> list[Block] | str:
    """Ranks, spectra, intruders, shared subspaces, movement."""
    if not study.analysis.spectra:
        return (
            "the weights were not analysed; give the recipe `analysis: {spectra: final}` (or `all` "
            "for every budget) and the same `laura compare` again, finished runs are not repeated"
        )
    found = at_best_rates(study)
    every: list[Block] = [Figure("spectra"), _sizes(study.summary, found)]
    warnings = list(dict.fromkeys(text for one in found for text in one.warnings))
    if warnings:
        every.append(Notice("To bear in mind", warnings))
    if any(matrix.intruders is not None for one in found for matrix in one.matrices):
        every.append(Figure("intruders"))
    return [*every, *_overlaps(study), *_movement(study)]


def _sizes(summary: Summary, found: list[CheckpointSpectra]) -> Block:
    order = places(summary)
    cells: dict[tuple[str, float], list[MatrixSpectra]] = {}
    for one in sorted(found, key=lambda one: (order.get(one.arm, len(order)), one.budget)):
        cells.setdefault((one.arm, one.budget), []).extend(one.matrices)

    def of_noise(matrix: MatrixSpectra) -> float | None:
        """Rank of an update as a share of that of noise."""
        rank, noise = matrix.rank_kept, matrix.noise_kept
        return rank / noise if rank is not None and noise else None

    columns = [
        Column("arm", lambda row: row[0][0]),
        number("budget", lambda row: formats.budget_of(summary, row[0][1])),
        number("matrices", lambda row: str(len(row[1])), "over all seeds"),
        number("rank at 90 %", lambda row: _median(m.rank_kept for m in row[1]), "median"),
        number("as a share of noise’s", lambda row: _median(map(of_noise, row[1])), "median"),
        number("effective rank", lambda row: _median(m.effective_rank for m in row[1]),
               "Roy-Vetterli, median"),
        number("norm", lambda row: _median(m.relative_frobenius for m in row[1]),
               "of the base’s, median"),
        number("intruders", lambda row: _mean(m.intruders for m in row[1]), "a matrix, mean"),
        number("in the base’s leading directions",
               lambda row: _mean((m.leading_energy or {}).get("both") for m in row[1]),
               "share of its energy, mean"),
    ]  # fmt: skip
    return table("update-sizes", TABLE, columns, cells.items())


def _median(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    return f"{median(found):.3g}" if found else ABSENT


def _mean(values: Iterable[float | None]) -> str:
    found = [value for value in values if value is not None]
    return f"{fmean(found):.2f}" if found else ABSENT


def _overlaps(study: Study) -> list[Block]:
    runs = {run.id: f"{run.arm} (seed {run.seed})" for run in study.summary.runs}
    cells: dict[tuple[tuple[str, str], str], list[SubspaceOverlap]] = {}
    for one in study.analysis.subspaces:
        # Where an update is zero it has no directions to compare.
        if one.overlap is not None:
            cells.setdefault((one.runs, one.name.rsplit(".", 1)[-1]), []).append(one)
    if not cells:
        return []

    def pair(names: tuple[str, str]) -> TableCell:
        told = " and ".join(runs.get(name, name) for name in names)
        return TableCell(told, title=" and ".join(names))

    columns = [
        Column("runs", lambda row: pair(row[0][0])),
        Column("module", lambda row: row[0][1]),
        number("matrices", lambda row: str(len(row[1]))),
        number("directions", lambda row: str(max(one.k for one in row[1])), "most compared"),
        number("shared", lambda row: _mean(one.overlap for one in row[1]), "mean"),
        number("of random ones", lambda row: _mean(o.noise_overlap for o in row[1]), "mean"),
    ]
    caption = "Share of the leading directions that two updates have in common"
    found = table("overlaps", caption, columns, cells.items())
    return [Subheading("Shared subspaces", "subspaces"), found]


def _movement(study: Study) -> list[Block]:
    order = places(study.summary)
    best = {(one.run, one.step) for one in at_best_rates(study)}
    cells: dict[tuple[str, float, str], list[LayerMovement]] = {}
    for one in sorted(
        study.analysis.movement, key=lambda one: (order.get(one.arm, len(order)), one.budget)
    ):
        if (one.run, one.step) in best:
            cells.setdefault((one.arm, one.budget, one.text), []).extend(one.layers)
    if not cells:
        return []
    columns = [
        Column("arm", lambda row: row[0][0]),
        number("budget", lambda row: formats.budget_of(study.summary, row[0][1])),
        Column("text", lambda row: row[0][2]),
        number("CKA", lambda row: f"{fmean(one.cka for one in row[1]):.5f}", "mean"),
        number("least", lambda row: f"{min(one.cka for one in row[1]):.5f}", "CKA of a layer"),
        number("Procrustes", lambda row: f"{fmean(one.procrustes for one in row[1]):.3g}", "mean"),
        number("CSD", lambda row: f"{fmean(v for one in row[1] for v in one.csd.values()):.2%}",
               "mean over maps"),
    ]  # fmt: skip
    caption = "How far hidden states moved from the base’s, over layers and seeds"
    found = table("movement-table", caption, columns, cells.items())
    return [Subheading("Movement of representations", "movement"), found]


# ----- many samples of a prompt -----


def diversity(study: Study) -> list[Block] | str:
    """How varied the outputs are, and pass@k."""
    analysis = study.analysis
    if not (analysis.diversity or analysis.pass_at_k):
        return (
            "no task was sampled several times; give the recipe `measure.extras` (see "
            "docs/recipe.md) and the same `laura compare` again, finished runs are not repeated"
        )
    found: list[Block] = []
    if analysis.diversity:
        found += [Figure("diversity"), *_counts(study)]
    if analysis.diversity_differences:
        found.append(_differences(study))
    if any(len(one.at_k) > 1 for one in analysis.pass_at_k):
        found.append(Figure("pass_at_k"))
    return [*found, *_passes(study)]


def _counts(study: Study) -> list[Block]:
    columns = [
        Column("model", lambda row: row[0]),
        number("seeds", lambda row: str(len(row[1])) if row[1][0].arm else ABSENT),
        number("prompts", lambda row: str(max((one.n for one in row[2].values()), default=0))),
    ]
    for name, heading in COUNTS.items():
        columns.append(number(heading, partial(_plus_minus, name)))
    blocks: list[Block] = []
    for extra, models in by_model(study.analysis.diversity).items():
        rows = [
            (model, seeds, {name: one for name in COUNTS if (one := count(seeds, name))})
            for model, seeds in models.items()
        ]
        first = rows[0][1][0]
        title, drawn = study.summary.task(first.task).title, f"{first.samples} samples a prompt"
        caption = f"{title}: {drawn} ({extra}), at the largest budget"
        blocks.append(table(f"counts-{extra}", caption, columns, rows))
    return blocks


def _plus_minus(name: str, row: tuple[str, list[object], dict[str, Estimate]]) -> str:
    one = row[2].get(name)
    return f"{one.value:.3g} ± {one.stderr:.2g}" if one else ABSENT


def _differences(study: Study) -> Block:
    budget_of = partial(formats.budget_of, study.summary)
    columns = [
        Column("models", lambda row: " − ".join(name or "base" for name in row.arms)),
        Column("samples", lambda row: row.extra, filter=True),
        Column("budget", lambda row: budget_of(row.budget), filter=True),
        Column("measure", lambda row: row.measure.replace("_", " "), filter=True),
        number("difference", lambda row: sorted_by(
            row.difference, lambda value: f"{formats.signed(value)} ± {row.stderr:.2g}"
        ), "first minus second"),
        number("prompts", lambda row: sorted_by(row.n)),
        number("seeds", lambda row: sorted_by(row.seeds)),
    ]  # fmt: skip
    caption = "Differences of counts, paired by prompt (rarefied: among as many samples of both)"
    rows = study.analysis.diversity_differences
    return table("diversity-differences", caption, columns, rows, sorts=True)


def _passes(study: Study) -> list[Block]:
    blocks: list[Block] = []
    for extra, models in by_model(study.analysis.pass_at_k).items():
        found = {model: at_k(seeds) for model, seeds in models.items()}
        columns = [Column("model", lambda row: row[0])]
        for k in sorted({k for own in found.values() for k in own}):
            columns.append(number(f"pass@{k:g}", partial(_passed, k), "%"))
        first = next(iter(models.values()))[0]
        title = study.summary.task(first.task).title
        caption = f"{title}: pass@k of {first.samples} samples a prompt ({extra})"
        blocks.append(table(f"passes-{extra}", caption, columns, found.items()))
    return blocks


def _passed(k: int, row: tuple[str, dict[int, Estimate]]) -> str:
    one = row[1].get(k)
    return f"{100 * one.value:.1f} ± {100 * one.stderr:.1f}" if one else ABSENT


# ----- answers to the same questions -----


def samples(study: Study) -> list[Block] | str:
    """A few answers of the base and of every arm to the same questions."""
    if not study.examples:
        return (
            "no samples of the base and of an arm lie in the folder; they are in the study’s own "
            "folder (runs/ID/evals), which may have been left behind when the report was copied"
        )
    text = (
        "Items that were forgotten come first, then others on which the verdicts differ, so these "
        "show what training changed, not how often: the scores do that. `laura show` pages through "
        "all of them, `--forgotten` and `--gained` through these alone."
    )
    found: list[Block] = [Prose(text, soft=True)]
    for place, own in enumerate(study.examples):
        told = f"The verdicts differ on {own.differing} of {own.common}."
        told += f" No room for {', '.join(own.left_out)}." if own.left_out else ""
        found += [Subheading(own.title, f"samples-{place}"), Prose(told)]
        found += [Listing(list(own.models.items())), *map(AnswerColumns, own.items)]
    return found


# ----- costs, settings, how to read the report -----


READING = (
    ("Learning", "is how much better the target scores became, forgetting how much worse what "
     "the base could do before: above zero, something was learnt, or lost. Both are measured by "
     "the same function, before and after."),
    ("±", "is one standard error: if the measurement were repeated with other questions or "
     "documents, about two results in three would fall within it. Differences smaller than two "
     "standard errors should not be relied on. With several seeds it also holds the spread "
     "between seeds; the items are the same for every seed, so more seeds do not shrink their "
     "share."),
    ("Change", "is paired: the same items before and after, which makes its error smaller than "
     "that of the scores themselves."),
    ("n", "is the number of questions, or of documents for losses."),
    ("Best learning rate", "is chosen for each arm and seed on validation loss, which is not "
     "among the scores reported."),
    ("Nats per token", "say how surprised the model is by the text; lower is better."),
    ("KL", "says how far the tuned model’s predictions have moved from the base’s; zero is the "
     "base."),
)  # fmt: skip
MODES = {
    "hot": "are snapshots of the longest run before its learning rate has come down (“hot”); a "
    "run that ends there would do somewhat better.",
    "separate": "have a complete learning-rate schedule each.",
}


def cost(study: Study) -> list[Block] | str:
    """What the arms cost, and how far each gets with how much."""
    if study.costs is None and not study.analysis.efficiency:
        return (
            "the folder has no readable cost.json; `laura compare` writes it when a run has ended"
        )
    found: list[Block] = [] if study.costs is None else _costs(study.costs)
    return [*found, *_needed(study)] if study.analysis.efficiency else found


def _costs(costs: Costs) -> list[Block]:
    columns = [
        Column("arm", lambda arm: arm.arm),
        number("runs", lambda arm: sorted_by(arm.runs)),
        number("tokens per second", lambda arm: sorted_by(arm.tokens_per_second, formats.count),
               "median"),
        number("peak memory", lambda arm: sorted_by(arm.peak_memory_bytes, formats.memory),
               "largest"),
        number("training FLOPs", lambda arm: sorted_by(arm.flops, formats.count), "all runs"),
        number("training time", lambda arm: sorted_by(arm.train_seconds, formats.duration),
               "all runs"),
    ]  # fmt: skip
    told = []
    if costs.evaluation_seconds is not None:
        told.append(f"Evaluation took {formats.duration(costs.evaluation_seconds)}.")
    if costs.machine:
        parts = "; ".join(f"{name} {formats.words(own)}" for name, own in costs.machine.items())
        told.append(f"Machine: {parts}.")
    caption = "What each arm cost on this machine"
    return [
        Subheading("Costs on this machine", "costs"),
        table("costs-table", caption, columns, costs.arms, sorts=True),
        *([Prose(" ".join(told), soft=True)] if told else []),
    ]


def _needed(study: Study) -> list[Block]:
    task, unit = study.summary.task, study.analysis.efficiency[0].unit

    def level(row: NeededRow) -> TableCell:
        shown = f"{formats.amount(row.level, task(row.task))} {formats.unit(task(row.task))}"
        return sorted_by(row.level, lambda value: shown)

    def amount(row: NeededRow) -> TableCell:
        if row.needed is None:
            return TableCell("not reached")

        def about(value: float) -> str:
            return formats.budget(float(f"{value:.3g}"), row.unit)

        most = "at most " if row.at_most else ""
        ends = formats.ends(row.interval, about)
        return TableCell(most + about(row.needed), ends, order=row.needed)

    columns = [
        Column("arm", lambda row: row.arm),
        Column("task", lambda row: task(row.task).short_title, filter=True),
        number("level", level),
        number(f"{unit} needed", amount, "95 % interval"),
    ]
    text = (
        "Read off each arm’s curve at its best rate, between the budgets that were measured. "
        "“At most” where the first budget was already beyond the level; “not reached” where the "
        "last was short of it."
    )
    caption = f"{unit.capitalize()} that each arm needs to reach a level"
    rows = table("efficiency-table", caption, columns, study.analysis.efficiency, sorts=True)
    return [Subheading("Sample efficiency", "efficiency"), rows, Prose(text, soft=True)]


# ----- data and settings -----


def settings(study: Study) -> list[Block]:
    """Arms, tasks, the recipe, and how to read the report."""
    summary = study.summary
    reading = list(READING)
    if summary.budget.mode in MODES:
        reading.append(("Budgets", MODES[summary.budget.mode]))
    recipe: Block = Prose("The study folder holds no readable recipe.yaml.", soft=True)
    if study.recipe:
        recipe = Fold("The recipe (recipe.yaml)", [Verbatim(study.recipe)])
    return [
        Subheading("How to read this", "reading"),
        Listing(reading),
        Subheading("Arms", "arms-tried"),
        _arms(summary),
        Subheading("What was measured", "tasks"),
        _tasks(summary),
        recipe,
    ]


def _arms(summary: Summary) -> Table:
    columns = [
        Column("arm", lambda arm: arm.name),
        Column("method", lambda arm: arm.method),
        wide("settings", lambda arm: ", ".join(
            f"{name} {formats.words(value)}" for name, value in arm.settings.items()
        )),
        number("trained parameters", lambda arm: formats.count(arm.trainable_parameters)),
        wide("rates tried", lambda arm: ", ".join(map(formats.rate, arm.rates))),
        number("best", lambda arm: formats.rates(list(arm.best.values())) or formats.ABSENT),
    ]  # fmt: skip
    return table("arms-settings", "Arms and their settings", columns, summary.arms)


def _tasks(summary: Summary) -> Table:
    base, measure = summary.base.scores, summary.measure
    columns = [
        Column("measured", lambda row: TableCell(row[1].title, title=row[1].name)),
        Column("side", lambda row: row[0]),
        Column("unit", lambda row: "share, shown in %" if row[1].is_share else row[1].unit),
        Column("better", lambda row: "higher" if row[1].higher_is_better else "lower"),
        number("n", lambda row: str(row[1].n or formats.ABSENT)),
        number("base", lambda row: formats.value(base.get(row[1].name), row[1], True)),
    ]
    sides = (("learning", measure.learning), ("forgetting", measure.forgetting))
    rows = [(side, summary.task(name)) for side, names in sides for name in names]
    caption = "What was measured, and on how much"
    return table("tasks-table", caption, columns, rows)
