"""What the arms cost; arms, tasks, the recipe, and how to read the report."""

from __future__ import annotations

from laura.report import formats
from laura.report.blocks import (
    Block,
    Column,
    Fold,
    Listing,
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
from laura.report.study import Study
from laura.results.schema import Costs, NeededRow, Summary

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
        ends = formats.ends(row.interval, lambda end: formats.budget(end, row.unit))
        most = "at most " if row.at_most else ""
        return TableCell(most + formats.budget(row.needed, row.unit), ends, order=row.needed)

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
