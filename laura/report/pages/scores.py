"""Scores by task, tokens, rate and what arms differ in; every run."""

from __future__ import annotations

from functools import partial

from laura.recipe.tasks import DRIFT
from laura.report import formats
from laura.report.arms import adapted, families, modules, places, regularised, setting
from laura.report.blocks import (
    Block,
    Column,
    Figure,
    Prose,
    Subheading,
    TableCell,
    number,
    sorted_by,
    table,
    wide,
)
from laura.report.pages.overview import EDGE, effect_cell
from laura.report.study import STATE_WORDS, Study
from laura.report.tables import final_scores
from laura.results.schema import Area, Comparison, RunSpikes


def scores(study: Study) -> list[Block]:
    """Every score task by task, against tokens, and arms beside one another."""
    summary, judged, tradeoff = study.summary, study.judgement, study.analysis.tradeoff
    found: list[Block] = [Figure("forgetting_by_task"), Figure("learning_curves")]
    if {*summary.measure.learning, *summary.measure.forgetting} & {*DRIFT}:
        found.append(Figure("drift"))
    if study.analysis.drift_fit:
        caption = "How well a divergence from the base tells what was forgotten"
        columns = [
            Column("divergence", lambda row: summary.task(row.measure).title),
            wide("forgetting", lambda row: summary.task(row.forgetting).title),
            number("explained", lambda row: f"{row.r_squared:.2f}", "R², quadratic fit"),
            number("n", lambda row: str(row.n), "checkpoints"),
        ]
        fits = table("drift-table", caption, columns, study.analysis.drift_fit)
        found += [Subheading(caption, "drift"), fits]
    if judged is not None and judged.comparisons:
        found += _compared(judged.comparisons)
    if tradeoff is not None and tradeoff.area:
        found += _areas(tradeoff.area)
    return found


def _compared(rows: list[Comparison]) -> list[Block]:
    columns = [
        Column("arms", lambda row: " − ".join(row.arms), "first minus second"),
        number("learnt", lambda row: effect_cell(row.learning), "each at its best rate"),
        number("forgot", lambda row: effect_cell(row.forgetting), "each at its best rate"),
        number("forgot at equal learning", lambda row: effect_cell(row.equal_learning),
               "over all rates and budgets"),
        number("levels of learning", _levels, "that both reach"),
        number("seeds", partial(_fewest, "seeds")),
        number("n", partial(_fewest, "n")),
        wide("to bear in mind",
             lambda row: ". ".join(filter(None, (EDGE if row.edge else "", row.reason)))),
    ]  # fmt: skip
    text = (
        "Two questions. Each tuned: both arms at the rate that validation chose, seed by seed. At "
        "equal learning: the least that each forgets over all its rates and budgets, where both "
        "have learnt as much. Below zero under “forgot”, the first arm forgot less. Intervals "
        "hold the errors over seeds and items; one that holds zero tells nothing apart."
    )
    caption = "Two arms beside one another"
    compared = table("compared-table", caption, columns, rows, sorts=True)
    return [Subheading(caption, "compared"), compared, Prose(text, soft=True)]


def _levels(row: Comparison) -> str:
    if row.levels is None:
        return formats.ABSENT
    unit = row.learning.unit if row.learning is not None else ""
    return formats.ends(row.levels, lambda level: formats.points(level, unit))


def _fewest(name: str, row: Comparison) -> TableCell:
    """The fewest seeds, or items, behind the estimates of a row."""
    every = (row.learning, row.forgetting, row.equal_learning)
    return sorted_by(min((getattr(one, name) for one in every if one is not None), default=None))


def _areas(areas: dict[str, Area]) -> list[Block]:
    def area(one: tuple[str, Area]) -> TableCell:
        ends = formats.ends(one[1].interval, "{:.3f}".format)
        return TableCell(f"{one[1].value:.3f}", ends)

    caption = "Area under the trade-off of each arm"
    columns = [Column("arm", lambda one: one[0]), number("area", area, "95 % interval")]
    text = "Larger is better: more learnt for what was forgotten. It compares arms of one study."
    found = table("areas-table", caption, columns, areas.items())
    return [Subheading(caption, "areas"), found, Prose(text, soft=True)]


# ----- by learning rate -----


def learning_rate(study: Study) -> list[Block]:
    """Scores against learning rate, and how smoothly the runs at each rate trained."""
    spikes = study.analysis.spikes
    found: list[Block] = [Figure("learning_rates")]
    if not spikes:
        return found
    text = (
        "A spike is a stretch of steps whose training loss stands more than seven robust "
        "deviations above the median of the 32 steps before. Large ones mean that a rate is near "
        "the edge of what the arm bears; where the loss is near zero, small ones count as well."
    )
    some = sum(one.count > 0 for one in spikes)
    told = f"{some} of {len(spikes)} runs had one." if some else f"None in {len(spikes)} runs."
    found += [Subheading("Loss spikes", "spikes"), Prose(f"{told} {text}")]
    return [*found, _spikes(study)] if some else found


def _spikes(study: Study) -> Block:
    order = places(study.summary)
    best = {(arm.name, rate) for arm in study.summary.arms for rate in arm.best.values()}
    cells: dict[tuple[str, float], list[RunSpikes]] = {}
    for one in study.analysis.spikes:
        cells.setdefault((one.arm, one.learning_rate), []).append(one)
    rows = sorted(cells.items(), key=lambda row: (order.get(row[0][0], len(order)), row[0]))

    def often(own: list[RunSpikes]) -> TableCell:
        steps = sum(one.n for one in own)
        share = 1000 * sum(one.count for one in own) / steps if steps else None
        return sorted_by(share, "{:.2f}".format)

    def worst(own: list[RunSpikes]) -> TableCell:
        found = [one.worst for one in own if one.worst is not None]
        return sorted_by(max(found, default=None), "{:.2f}".format)

    columns = [
        Column("arm", lambda row: row[0][0], filter=True),
        number("rate", lambda row: sorted_by(row[0][1], formats.rate)),
        Column("best rate", lambda row: "yes" if row[0] in best else ""),
        number("runs", lambda row: sorted_by(len(row[1]))),
        number("spikes", lambda row: sorted_by(sum(one.count for one in row[1])), "all runs"),
        number("per 1,000 steps", lambda row: often(row[1])),
        number("largest rise", lambda row: worst(row[1]), "nats per token"),
    ]
    caption = "Loss spikes by arm and learning rate"
    return table("spikes-table", caption, columns, rows, sorts=True)


# ----- every run -----


def runs(study: Study) -> list[Block]:
    """Every run: to be filtered and sorted, with the losses they had."""
    budget_of = partial(formats.budget_of, study.summary)
    columns = [
        Column("run", lambda run: TableCell(run.id, code=True)),
        Column("arm", lambda run: run.arm, filter=True),
        number("rate", lambda run: sorted_by(run.learning_rate, formats.rate)),
        number("seed", lambda run: sorted_by(run.seed)),
        number("budget", lambda run: sorted_by(run.budget, budget_of)),
        Column("best rate", lambda run: "yes" if run.selected else ""),
        number("last loss", lambda run: sorted_by(
            run.loss_curve[-1][1] if run.loss_curve else None, "{:.3f}".format
        ), "nats per token"),
        Column("state", lambda run: TableCell(
            STATE_WORDS[run.state], tone="good" if run.state == "done" else "bad"
        ), filter=True),
        wide("reason", lambda run: run.reason),
    ]  # fmt: skip
    caption = "Every run of the study"
    every = table("runs-table", caption, columns, study.summary.runs, sorts=True)
    return [Subheading("All runs", "all-runs"), every, Figure("loss_curves")]


# ----- arms that differ in one thing -----


def regularisers(study: Study) -> list[Block] | str:
    """Full finetuning held back by decay and dropout, beside LoRA."""
    arms = regularised(study.summary)
    if not arms:
        return (
            "no arm of full finetuning has weight decay or dropout; add one, such as "
            "`full-decay: {method: full, weight_decay: 0.1}`, also `attention_dropout`, "
            "`residual_dropout` or `weight_decay_toward: base`"
        )
    caption = "What holds each arm back, and its scores"
    return [Figure("regularisers"),
            final_scores(study.summary, "regularised", caption, "held back by", arms)]  # fmt: skip


def replay(study: Study) -> list[Block] | str:
    """What replay of source data saves, and what it costs."""
    arms = {
        arm.name: f"{100 * setting(arm, 'replay'):g} % of tokens"
        for alike in families(study.summary, "replay").values()
        for arm in sorted(alike, key=lambda arm: setting(arm, "replay"))
    }
    if not arms:
        return (
            "no two arms differ in replay alone; give the recipe `data.replay` and arms with "
            "several `replay` shares, such as `full-replay: {method: full, replay: 0.05}`"
        )
    caption = "Arms by their share of replay"
    return [Figure("replay"), final_scores(study.summary, "replayed", caption, "replay", arms)]


def variants(study: Study) -> list[Block] | str:
    """Which modules, which rank, which alpha."""
    if not adapted(study.summary):
        return (
            "no two arms of LoRA differ in rank, modules or alpha; add arms such as "
            "`lora-mlp: {method: lora, rank: 64, targets: mlp}`"
        )
    arms = {
        arm.name: f"rank {setting(arm, 'rank'):g}, alpha {setting(arm, 'alpha'):g}, {modules(arm)}"
        for arm in study.summary.arms
        if arm.method == "lora"
    }
    caption, heading = "Arms of LoRA by modules, rank and alpha", "modules and rank"
    return [Figure("ranks"), final_scores(study.summary, "variants-table", caption, heading, arms)]
