"""What was found: the first page, the claims, scores by task, tokens and rate, every run."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

from laura.recipe.tasks import DRIFT
from laura.report import formats
from laura.report.arms import adapted, families, modules, places, regularised, setting
from laura.report.blocks import (
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
    Tone,
    number,
    sorted_by,
    table,
    wide,
)
from laura.report.study import STATE_WORDS, Study
from laura.report.tables import final_scores, measured, score_column, score_rows, seed_count
from laura.results.schema import (
    VERDICTS,
    Area,
    Candidate,
    Claim,
    ClaimRow,
    Comparison,
    Constraint,
    Estimated,
    Judgement,
    Recommendation,
    RunSpikes,
    Summary,
    Tradeoff,
)

TONES: dict[str, Tone] = {
    "supported": "good",
    "contradicted": "bad",
    "mixed": "bad",
    "suggested": "soft",
    "undecided": "soft",
}
EDGE = "edge: a best rate lies at the end of its list"


def overview(study: Study) -> list[Block]:
    """What stands under the answer."""
    judged = study.judgement
    found: list[Block] = [] if judged is None else _judged(judged)
    if study.gaps:
        found.append(Notice("What is missing", study.gaps, warns=True))
    if judged is not None and judged.claims:
        found += _claims_in_short(judged.claims)
    return [*found, Figure("tradeoff"), *numbers(study)]


def numbers(study: Study) -> list[Block]:
    """What was recommended, the front, the items that turned, every arm at its best rate."""
    tradeoff, judged, found = study.analysis.tradeoff, study.judgement, list[Block]()
    if judged is not None and judged.others:
        found.append(Fold("The other arms, one by one", list(map(Prose, judged.others))))
    if study.recommendation is not None:
        found += _recommended(study.recommendation, study.summary)
    if tradeoff is not None and tradeoff.front:
        found.append(_front(tradeoff, study.summary))
    found += _stages(study)
    found += _turned(study, final=True)
    if study.analysis.gaps:
        unsaid = Notice("Gaps", study.analysis.gaps)
        found.append(Fold("What the analyses could not say", [unsaid]))
    arms = Subheading("Arms at their best learning rate", "arms")
    return [*found, arms, *_arms(study.summary)]


def _judged(judged: Judgement) -> list[Block]:
    found: list[Block] = [Prose(sentence) for sentence in judged.sentences]
    if judged.missing:
        found.append(Prose(f"{judged.missing[0].upper()}{judged.missing[1:]}."))
    if judged.caveats:
        found.append(Notice("Caveats", judged.caveats))
    return found


def _claims_in_short(claims: list[Claim]) -> list[Block]:
    told = counted(claims)
    text = "; ".join(f"{verdict} {told[verdict]}" for verdict in VERDICTS if told[verdict])
    found: list[Block] = [
        Subheading("The paper’s claims in short", "claims-in-short"),
        Prose(f"Of {len(claims)} statements, this study finds: {text}."),
    ]
    found += [Prose(_in_short(claim)) for claim in claims if claim.verdict != "undecided"]
    left = [claim for claim in claims if claim.verdict == "undecided"]
    if left:
        items = [(claim.statement, _in_short(claim, named=False)) for claim in left]
        found.append(Fold("Undecided, and what would decide it", [Listing(items)]))
    return found


def _in_short(claim: Claim, named: bool = True) -> str:
    """Verdict, statement, effect, and what limits it."""
    effect = formats.estimated(claim.effect) if claim.effect is not None else ""
    parts = [f"{claim.verdict.capitalize()}: {claim.statement} {effect}".strip()]
    if not named:
        parts = [claim.reason, effect]
    parts += [EDGE if claim.edge else "", open_words(claim)]
    return " ".join(f"{part[0].upper()}{part[1:].rstrip('.')}." for part in parts if part)


def _front(tradeoff: Tradeoff, summary: Summary) -> Table:
    """The Pareto points by arm, rate and budget."""
    up, right = (summary.task(name) for name in (tradeoff.learning, tradeoff.forgetting))
    budget_of = partial(formats.budget_of, summary)
    columns = [
        Column("arm", lambda one: TableCell(one.arm, title=", ".join(one.runs))),
        number("rate", lambda one: sorted_by(one.learning_rate, formats.rate)),
        number("budget", lambda one: sorted_by(one.budget, budget_of)),
        number("learnt", lambda one: sorted_by(one.learning, lambda v: formats.amount(v, up)),
               f"{up.short_title}, {formats.change_unit(up)}"),
        number("forgot", lambda one: sorted_by(one.forgetting, lambda v: formats.amount(v, right)),
               f"{right.short_title}, {formats.change_unit(right)}"),
        number("seeds", lambda one: sorted_by(len(one.seeds))),
    ]  # fmt: skip
    caption = "The Pareto front: no configuration run learnt more and forgot less than these"
    return table("front-table", caption, columns, tradeoff.front, sorts=True)


def _arms(summary: Summary) -> list[Block]:
    rows = score_rows(summary)
    columns = [
        Column("arm", lambda row: row.arm),
        number("rate", lambda row: TableCell(row.marked_rate, title=row.runs)),
        number("budget", lambda row: row.facts["budget"]),
        number("seeds", seed_count),
        *(score_column(summary, task, counted=True) for task in measured(summary)),
    ]
    text = (
        "First line: score; second line: how much was learnt or forgot against the base on the "
        "same items (points for shares). ± is one standard error."
    )
    if any(row.at_edge for row in rows):
        text += " * The best rate is the lowest or highest one tried; a better one may lie outside."
    caption = "Scores of the base, and of every arm at its best rate, one line a budget"
    return [table("arms-table", caption, columns, rows), Prose(text, soft=True)]


def _percent(share: float) -> str:
    return f"{100 * share + 0.0:.1f}".replace("-", "−")


def _share_cell(found: Estimated) -> TableCell:
    """A share in percent, its interval below."""
    return sorted_by(found.value, _percent, formats.ends(found.interval, _percent))


def _stages(study: Study) -> list[Block]:
    """Of a series of tasks: the scores after each stage, and what is left of them at the end."""
    rows, summary = study.analysis.stages, study.summary
    if not rows:
        return []

    names, settings = rows[0].tasks, rows[0].settings

    def score(task: int, after: int) -> Column:
        heading = f"{summary.task(names[task]).short_title}, %"
        note = f"after {settings[after]}"
        return number(heading, lambda row: sorted_by(row.scores[after][task], _percent), note)

    columns = [
        Column("arm", lambda row: row.arm),
        *(score(i, t) for i in range(len(names)) for t in range(i, len(settings))),
        number("OP, %", lambda row: _share_cell(row.overall), "all tasks at the end"),
        number("BWT, points", lambda row: _share_cell(row.backward), "end minus when learnt"),
        number("seeds", lambda row: sorted_by(row.overall.seeds)),
    ]
    caption = "The tasks of the series, each from when it was learnt"
    text = (
        "OP: overall performance, the mean score over all tasks after the last stage. BWT: "
        "backward transfer, the mean over the tasks but the last of the score at the end minus "
        "that right after the task was learnt; below 0 something was forgotten. Intervals: 95 %, "
        "over seeds and items."
    )
    found = table("stages-table", caption, columns, rows)
    return [Subheading(caption, "series"), found, Prose(text, soft=True)]


def _turned(study: Study, final: bool) -> list[Block]:
    """Items that turned; `final` keeps one row an arm, the mean at the largest budget."""
    rows, summary = study.analysis.transitions, study.summary
    if final and rows:
        budget, task = max(row.budget for row in rows), rows[0].task
        rows = [row for row in rows if (row.budget, row.task) == (budget, task)]
    if not rows:
        return []

    columns = [
        Column("arm", lambda row: row.arm, filter=True),
        Column("task", lambda row: summary.task(row.task).short_title, filter=True),
        number("budget", lambda row: sorted_by(row.budget, partial(formats.budget_of, summary))),
        number("forgotten, %", lambda row: _share_cell(row.forgotten), "right, then wrong"),
        number("gained, %", lambda row: _share_cell(row.gained), "wrong, then right"),
        number("luck, %", lambda row: sorted_by(row.luck, _percent), "of either, by guessing"),
        number("n", lambda row: sorted_by(row.forgotten.n)),
        number("seeds", lambda row: sorted_by(row.forgotten.seeds)),
    ]
    text = (
        "A mean hides questions that were lost where others were gained. Luck is what answers "
        "guessed anew would give of either: only what is beyond it was surely known and lost."
    )
    caption = "Questions that went from right to wrong, and back"
    if final:
        caption += ", at the largest budget"
    name = "turned" if final else "turned-all"
    found = table(name, caption, columns, rows, sorts=not final)
    return [Subheading(caption, f"{name}-questions"), found, Prose(text, soft=True)]


# ----- the recommendation -----


def _recommended(found: Recommendation, summary: Summary) -> list[Block]:
    asked = _asked(found.asked, found.measures)
    said = [f"Asked for: {asked}." if asked else "", found.answer]
    if found.chosen is not None:
        said.append(
            f"Chosen among {found.candidates} configurations; the intervals allow for that."
        )
    if found.confirm:
        said.append(f"To confirm it: `{found.confirm}`.")
    result: list[Block] = [
        Subheading("Recommendation", "recommendation"),
        Prose(" ".join(part for part in said if part)),
    ]
    rows = [*([found.chosen] if found.chosen else []), *found.alternatives]
    if rows:
        result.append(_choices(found, rows, summary))
    if found.not_tried:
        result.append(Notice("Not tried", found.not_tried))
    return result


def _asked(asked: Constraint, measures: dict[str, dict[str, Any]]) -> str:
    """What was asked for, in words."""
    told = []
    for words, bound, side in (
        ("forget at most", asked.max_forgetting, "forgetting"),
        ("learn at least", asked.min_learning, "learning"),
    ):
        if bound is not None:
            unit = str(measures.get(side, {}).get("unit", ""))
            told.append(f"{words} {formats.points(bound, unit).removeprefix('+')}")
    if asked.memory_bytes is not None:
        told.append(f"peak memory at most {formats.memory(asked.memory_bytes)}")
    if asked.arm is not None:
        told.append(f"arm {asked.arm}")
    return ", ".join(told)


def _choices(found: Recommendation, rows: list[Candidate], summary: Summary) -> Table:
    def what(one: Candidate) -> str:
        rate, budget = formats.rate(one.learning_rate), formats.budget_of(summary, one.budget)
        return f"{one.arm}, learning rate {rate}, {budget}"

    def side(effect: Estimated | None, mean: float, name: str) -> TableCell:
        """A side with its interval; its mean alone where seeds are too few for one."""
        if effect is None:
            unit = str(found.measures.get(name, {}).get("unit", ""))
            return TableCell(formats.points(mean, unit).removeprefix("+"))
        shown = formats.points(effect.value, effect.unit).removeprefix("+")
        return TableCell(shown, f"{formats.interval(effect)}, n = {effect.n}")

    def why_not(one: Candidate) -> TableCell:
        good = found.state == "recommended"
        chosen = TableCell(found.state, tone="good" if good else "soft")
        return chosen if one is found.chosen else TableCell(one.why_not)

    columns = [
        wide("configuration", what),
        number("learnt", lambda one: side(one.learning, one.learnt, "learning"), "interval"),
        number("forgot", lambda one: side(one.forgetting, one.forgot, "forgetting"), "interval"),
        number("seeds", lambda one: str(len(one.seeds))),
        number("tokens", lambda one: formats.count(one.cost.get("tokens"))),
        number("training time", lambda one: formats.duration(one.cost.get("train_seconds"))),
        number("peak memory", lambda one: formats.memory(one.cost.get("peak_memory_bytes"))),
        wide("why not", why_not),
    ]
    caption = "The recommended configuration and the nearest alternatives"
    return table("recommended", caption, columns, rows)


# ----- the claims -----


def claims(study: Study) -> list[Block] | str:
    """The statements of the paper, and what this study says about each."""
    if study.judgement is None or not study.judgement.claims:
        return "the claims were not judged; `laura claims STUDY` does it from the folder alone"
    return claims_blocks(study.judgement.claims)


def claims_blocks(claims: list[Claim]) -> list[Block]:
    """The table of claims, and the evidence for each that has some."""
    text = (
        "Supported: the 95 % interval lies inside what the statement says. Contradicted: "
        "inside its opposite. Mixed: established in some settings, its opposite in others. "
        "Suggested: what was run can hint at it and no more. Undecided: the rest, with what "
        "would decide it. The verdict counts all statements that were tested (Holm, 5 %); "
        "what each says alone stands beside it. None was tuned to agree."
    )
    columns = [
        wide("claim", lambda claim: TableCell(claim.statement, title=claim.id)),
        Column("verdict", _verdict, "all counted", filter=True),
        Column("alone", lambda claim: claim.alone),
        *effect_columns(),
        wide("why", lambda claim: claim.reason),
        wide("could not say, would decide", open_words),
        wide("test", lambda claim: claim.test),
        wide("source", lambda claim: claim.source),
    ]
    every = table("claims-table", "Claims and their verdicts", columns, claims, sorts=True)
    return [Prose(text), every, *(
        Fold(f"Evidence: {claim.statement}", [_evidence(claim)])
        for claim in claims if any(row.effect is not None for row in claim.evidence)
    )]  # fmt: skip


def counted(claims: list[Claim]) -> Counter[str]:
    """How many claims have each joint verdict."""
    return Counter(claim.verdict for claim in claims)


def open_words(claim: Claim) -> str:
    """Why a claim's design could not have spoken, and what would decide it."""
    told = []
    missing = "; ".join(claim.missing)
    if missing:
        # Where nothing was tested the reason is what is missing, and is not told twice.
        told.append(
            "this design could not say" + ("" if missing == claim.reason else f": {missing}")
        )
    if claim.would_decide:
        told.append(f"would decide: {claim.would_decide}")
    return ". ".join(one[0].upper() + one[1:].rstrip(".") for one in told)


def effect_cell(effect: Estimated | None) -> TableCell:
    """An estimate with its interval."""
    if effect is None:
        return TableCell(formats.ABSENT)
    return sorted_by(
        effect.value, lambda value: formats.points(value, effect.unit), formats.interval(effect)
    )


def effect_columns() -> list[Column]:
    """A row's estimate with its interval, its items and its seeds."""
    return [
        number("effect", lambda row: effect_cell(row.effect), "interval"),
        number("n", lambda row: sorted_by(row.effect and row.effect.n)),
        number("seeds", lambda row: sorted_by(row.effect and row.effect.seeds)),
    ]


def _verdict(row: Claim | ClaimRow) -> TableCell:
    return TableCell(row.verdict, "edge" if row.edge else "", tone=TONES[row.verdict])


def _evidence(claim: Claim) -> Table:
    columns = [
        Column("setting", lambda row: row.setting),
        Column("arms", lambda row: ", ".join(row.arms) or formats.ABSENT),
        wide("what", lambda row: row.what),
        *effect_columns(),
        Column("verdict", _verdict),
        Column("decides", lambda row: "yes" if row.decides else ""),
        wide("why", lambda row: row.reason),
    ]
    caption = f"Evidence: {claim.statement}"
    return table(f"evidence-{claim.id}", caption, columns, claim.evidence)


# ----- scores task by task, against tokens, by learning rate; every run -----


def scores(study: Study) -> list[Block]:
    """Every score task by task, against tokens, and arms beside one another."""
    summary, judged, tradeoff = study.summary, study.judgement, study.analysis.tradeoff
    found: list[Block] = [Figure("forgetting_by_task"), *_turned(study, final=False)]
    found.append(Figure("learning_curves"))
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
        number("interval with all others", _joint, "at which those of all rows hold together"),
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


def _joint(row: Comparison) -> str:
    if row.joint is None or row.equal_learning is None:
        return formats.ABSENT
    unit = row.equal_learning.unit
    return formats.ends(row.joint, lambda end: formats.points(end, unit, with_unit=False))


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
