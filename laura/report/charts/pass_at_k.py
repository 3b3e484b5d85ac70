"""pass@k against k, the base and one line an arm (Biderman et al. 2024, figure S9)."""

from __future__ import annotations

from laura.report.arms import who_is_drawn
from laura.report.charts import series, style
from laura.report.charts.diversity import BASE, by_model, extras
from laura.report.charts.panel import Chart, Panel
from laura.report.study import Study
from laura.results.schema import PassAtKRow, Summary
from laura.results.statistics import Estimate, over_seeds

TOOLTIPS = {"series": "model", "x_text": "k", "value": "pass@k", "seeds": "seeds", "n": "n"}


def draw(study: Study) -> list[Panel]:
    """One panel for each extra that has more than one k."""
    arms = [BASE, *style.coloured(study.summary)]
    found = [
        one for one in study.analysis.pass_at_k if len(one.at_k) > 1 and (one.arm or BASE) in arms
    ]
    return [_panel(study.summary, extra, by_model(found, extra)) for extra in extras(found)]


def _note(study: Study) -> str:
    sampled = {one.arm for one in study.analysis.pass_at_k if one.arm}
    drawn = [name for name in style.coloured(study.summary) if name in sampled]
    return who_is_drawn(drawn, sampled, "The table below has")


def at_k(seeds: list[PassAtKRow]) -> dict[int, Estimate]:
    """pass@k over the seeds, by k."""
    every: dict[int, list[Estimate]] = {}
    for one in seeds:
        for k, found in one.at_k.items():
            every.setdefault(k, []).append(found)
    return {k: over_seeds(found) for k, found in sorted(every.items())}


def _panel(summary: Summary, extra: str, models: dict[str, list[PassAtKRow]]) -> Panel:
    import altair

    rows = [
        {
            "series": model,
            "x": k,
            "x_text": f"{k:g}",
            "y": 100 * found.value,
            "y_low": 100 * (found.value - found.stderr),
            "y_high": 100 * (found.value + found.stderr),
            "value": f"{100 * found.value:.1f} ± {100 * found.stderr:.1f} %",
            "seeds": str(len(seeds)),
            "n": f"{found.n} prompts",
        }
        for model, seeds in models.items()
        for k, found in at_k(seeds).items()
    ]
    first = next(iter(models.values()))[0]
    ks = [k for seeds in models.values() for k in at_k(seeds)]
    x = series.listed_axis("x", "k (log scale)", ks, log=True)
    y = altair.Y("y:Q", title="pass@k (%)", scale=altair.Scale(zero=False, padding=10))
    places = {name: place for place, name in enumerate(style.coloured(summary))}
    palette = [style.GREY if model == BASE else style.hue(places[model]) for model in models]
    layers = series.lines(rows, list(models), x, y, tooltips=TOOLTIPS, palette=palette)
    heat = "" if first.temperature is None else f", temperature {first.temperature:g}"
    title = f"{summary.task(first.task).short_title}: pass@k"
    lines = [f"{first.samples} samples a prompt{heat}. Bars: ± 1 standard error."]
    text = f"pass@k against k on a logarithmic axis, of {', '.join(models)}."
    return Panel(extra, style.titled(layers, title, *lines), text)


CHART = Chart(
    name="pass_at_k",
    title="pass@k",
    explanation=(
        "The chance that at least one of k samples passes (the unbiased estimate of Chen et al. "
        "2021). Where the lines of two models cross, the one that is better at k = 1 has lost "
        "answers that the other still finds among many."
    ),
    draw=draw,
    note=_note,
)
