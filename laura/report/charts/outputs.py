"""Many samples of a prompt: distinct outputs, and pass@k (Biderman et al. 2024, figures 5, S9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import altair

from laura.report.arms import who_is_drawn
from laura.report.charts import style
from laura.report.charts.style import ChartPanel, Row, chart_of
from laura.report.samples.find import BASE
from laura.report.study import Study
from laura.results.schema import DiversityRow, PassAtKRow, SampledRow
from laura.results.statistics import Estimate, over_seeds

S = TypeVar("S", bound=SampledRow)
Sampled = dict[str, dict[str, list[S]]]
"""Extra of the recipe to model to its rows, one a seed."""

KINDS = {"distinct": "all", "distinct_passed": "of those that pass",
         "distinct_failed": "of those that fail"}  # fmt: skip
TOOLTIPS = {"arm": "model", "kind": "samples", "value": "distinct outputs a prompt",
            "seeds": "seeds", "n": "prompts"}  # fmt: skip
PASS_TOOLTIPS = {"series": "model", "x_text": "k", "value": "pass@k", "seeds": "seeds", "n": "n"}


def by_model(found: Sequence[S]) -> Sampled[S]:
    """By extra, in the order of the recipe: the base and every arm at its largest budget."""
    last: dict[tuple[str, str | None], float] = {}
    for one in found:
        key = (one.extra, one.arm)
        last[key] = max(last.get(key, 0.0), one.budget or 0.0)
    models: Sampled[S] = {}
    for one in found:
        own = models.setdefault(one.extra, {})
        if (one.budget or 0.0) == last[one.extra, one.arm]:
            own.setdefault(one.arm or BASE, []).append(one)
    return models


def count(seeds: list[DiversityRow], name: str) -> Estimate | None:
    """A count over the seeds that have it."""
    own = [found for one in seeds if (found := getattr(one, name)) is not None]
    return over_seeds(own) if own else None


def at_k(seeds: list[PassAtKRow]) -> dict[int, Estimate]:
    """pass@k over the seeds, by k."""
    every: dict[int, list[Estimate]] = {}
    for one in seeds:
        for k, found in one.at_k.items():
            every.setdefault(k, []).append(found)
    return {k: over_seeds(found) for k, found in sorted(every.items())}


def _drawn(first: SampledRow) -> str:
    heat = "" if first.temperature is None else f", temperature {first.temperature:g}"
    return f"{first.samples} samples a prompt{heat}."


@chart_of("Diversity of the outputs")
def diversity(study: Study) -> list[ChartPanel]:
    """How many different texts a model writes to the same prompt, of all its samples, of those that
    pass and of those that fail. Finetuning narrows it; LoRA is said to keep more of the base's
    (figure 5 of Biderman et al. 2024). Counts of passing samples also grow with the share that
    passes.
    """
    # One panel for each extra.
    panels = []
    for extra, models in by_model(study.analysis.diversity).items():
        rows: list[Row] = [
            {"arm": model, "kind": kind, **style.spread("x", found), "seeds": str(len(seeds)),
             "value": f"{found.value:.2f} ± {found.stderr:.2f}", "n": str(found.n)}
            for model, seeds in models.items()
            for name, kind in KINDS.items()
            if (found := count(seeds, name)) is not None
        ]  # fmt: skip
        if not rows:
            continue
        first = next(iter(models.values()))[0]
        kinds = list(KINDS.values())
        legend = altair.Legend(title=None, orient="bottom", columns=1)
        named = {kind: place for place, kind in enumerate(kinds)}
        apart = style.told_apart("kind", named, key=legend)
        x = altair.X("x:Q", title=f"distinct outputs among {first.samples} samples of a prompt")
        y = style.rows_axis("arm", models, 0.3)
        offset = altair.YOffset("kind:N", scale=altair.Scale(domain=kinds))
        layers = style.dots(rows, x, y, offset, *apart, TOOLTIPS)
        title = f"{study.summary.task(first.task).short_title}: distinct outputs"
        drawing = style.titled(layers, title, _drawn(first), style.BARS)
        words = f"Distinct outputs a prompt of {', '.join(models)}, all, passing and failing."
        panels.append(ChartPanel(extra, drawing, words, max(140, len(models) * 66)))
    return panels


def _passes_note(study: Study) -> str:
    sampled = {one.arm for one in study.analysis.pass_at_k if one.arm}
    drawn = [name for name in style.coloured(study.summary) if name in sampled]
    return who_is_drawn(drawn, sampled, "The table below has")


@chart_of("pass@k", _passes_note)
def pass_at_k(study: Study) -> list[ChartPanel]:
    """The chance that at least one of k samples passes (the unbiased estimate of Chen et al. 2021).
    Where the lines of two models cross, the one that is better at k = 1 has lost answers that
    the other still finds among many.
    """
    # One panel for each extra that has more than one k: the base and one line an arm.
    summary, panels = study.summary, []
    places = {name: place for place, name in enumerate(style.coloured(summary))}
    found = [
        one
        for one in study.analysis.pass_at_k
        if len(one.at_k) > 1 and (one.arm is None or one.arm in places)
    ]
    for extra, models in by_model(found).items():
        rows = [
            {"series": model, "x": k, "x_text": f"{k:g}", **style.spread("y", found, 100.0),
             "value": f"{100 * found.value:.1f} ± {100 * found.stderr:.1f} %",
             "seeds": str(len(seeds)), "n": f"{found.n} prompts"}
            for model, seeds in models.items()
            for k, found in at_k(seeds).items()
        ]  # fmt: skip
        first = next(iter(models.values()))[0]
        colors = [style.GREY if model == BASE else style.hue(places[model]) for model in models]
        color, shape = style.told_apart("series", {m: at for at, m in enumerate(models)}, colors)
        x = style.listed_axis("k (log scale)", [row["x"] for row in rows])
        y = altair.Y("y:Q", title="pass@k (%)", scale=altair.Scale(zero=False, padding=10))
        layers = style.lines(rows, x, y, color, shape, PASS_TOOLTIPS)
        title = f"{summary.task(first.task).short_title}: pass@k"
        drawing = style.titled(layers, title, f"{_drawn(first)} {style.BARS}")
        words = f"pass@k against k on a logarithmic axis, of {', '.join(models)}."
        panels.append(ChartPanel(extra, drawing, words))
    return panels
