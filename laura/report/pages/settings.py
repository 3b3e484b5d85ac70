"""Arms, tasks, the recipe, and how to read the report."""

from __future__ import annotations

from laura.report import formats
from laura.report.arms import words
from laura.report.blocks import (
    Block,
    Cell,
    Column,
    Fold,
    Heading,
    Listing,
    Prose,
    ReportPage,
    Source,
    Table,
    always,
)
from laura.report.study import Study
from laura.results.schema import Summary

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


def blocks(study: Study) -> list[Block]:
    """What stands on the page."""
    summary = study.summary
    reading = list(READING)
    if summary.budget.mode in MODES:
        reading.append(("Budgets", MODES[summary.budget.mode]))
    recipe: Block = Prose("The study folder holds no readable recipe.yaml.", soft=True)
    if study.recipe:
        recipe = Fold("The recipe (recipe.yaml)", [Source(study.recipe)])
    return [
        Heading("How to read this", "reading"),
        Listing(reading),
        Heading("Arms", "arms-tried"),
        _arms(summary),
        Heading("What was measured", "tasks"),
        _tasks(summary),
        recipe,
    ]


def _arms(summary: Summary) -> Table:
    columns = [
        Column("arm"),
        Column("method"),
        Column("settings", wide=True),
        Column("trained parameters", numeric=True),
        Column("rates tried", wide=True),
        Column("best", numeric=True),
    ]
    rows = [
        [
            Cell(arm.name),
            Cell(arm.method),
            Cell(", ".join(f"{name} {words(value)}" for name, value in arm.settings.items())),
            Cell(formats.count(arm.trainable_parameters)),
            Cell(", ".join(formats.rate(rate) for rate in arm.rates)),
            Cell(formats.rates(list(arm.best.values())) if arm.best else formats.ABSENT),
        ]
        for arm in summary.arms
    ]
    return Table("arms-settings", "Arms and their settings", columns, rows)


def _tasks(summary: Summary) -> Table:
    columns = [
        Column("measured"),
        Column("side"),
        Column("unit"),
        Column("better"),
        Column("n", numeric=True),
        Column("base", numeric=True),
    ]
    rows = []
    for side, names in (
        ("learning", summary.measure.learning),
        ("forgetting", summary.measure.forgetting),
    ):
        for task in map(summary.task, names):
            rows.append(
                [
                    Cell(task.title, title=task.name),
                    Cell(side),
                    Cell("share, shown in %" if task.is_share else task.unit),
                    Cell("higher" if task.higher_is_better else "lower"),
                    Cell(str(task.n) if task.n else formats.ABSENT),
                    Cell(formats.value(summary.base.scores.get(task.name), task, True)),
                ]
            )
    return Table("tasks-table", "What was measured, and on how much", columns, rows)


PAGE = ReportPage("settings", "Data and settings", always, blocks)
