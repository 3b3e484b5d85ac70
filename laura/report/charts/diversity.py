"""Distinct outputs among the samples of a prompt (Biderman et al. 2024, figure 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from laura.report.charts import style
from laura.report.charts.panel import Chart, Panel
from laura.report.study import Study
from laura.results.schema import DiversityRow, SampledRow, Summary
from laura.results.statistics import Estimate, over_seeds

BASE = "base"
S = TypeVar("S", bound=SampledRow)
KINDS = {"distinct": "all", "distinct_passed": "of those that pass",
         "distinct_failed": "of those that fail"}  # fmt: skip
TOOLTIPS = {
    "arm": "model",
    "kind": "samples",
    "value": "distinct outputs a prompt",
    "seeds": "seeds",
    "n": "prompts",
}


def by_model(found: Sequence[S], extra: str) -> dict[str, list[S]]:
    """The base and every arm at its largest budget, a list over seeds."""
    own = [one for one in found if one.extra == extra]
    last = {
        one.arm: max(other.budget or 0.0 for other in own if other.arm == one.arm) for one in own
    }
    models: dict[str, list[S]] = {}
    for one in own:
        if (one.budget or 0.0) == last[one.arm]:
            models.setdefault(one.arm or BASE, []).append(one)
    return models


def count(seeds: list[DiversityRow], name: str) -> Estimate | None:
    """A count over the seeds that have it."""
    own = [found for one in seeds if (found := getattr(one, name)) is not None]
    return over_seeds(own) if own else None


def extras(found: Sequence[SampledRow]) -> list[str]:
    """Names of the extras, in the order of the recipe."""
    return list(dict.fromkeys(one.extra for one in found))


def draw(study: Study) -> list[Panel]:
    """One panel for each extra."""
    found = study.analysis.diversity
    panels = [_panel(study.summary, extra, by_model(found, extra)) for extra in extras(found)]
    return [panel for panel in panels if panel is not None]


def _panel(summary: Summary, extra: str, models: dict[str, list[DiversityRow]]) -> Panel | None:
    import altair

    rows = []
    for model, seeds in models.items():
        for name, kind in KINDS.items():
            found = count(seeds, name)
            if found is not None:
                rows.append(
                    {
                        "arm": model,
                        "kind": kind,
                        "x": found.value,
                        "x_low": found.value - found.stderr,
                        "x_high": found.value + found.stderr,
                        "value": f"{found.value:.2f} ± {found.stderr:.2f}",
                        "seeds": str(len(seeds)),
                        "n": str(found.n),
                    }
                )
    if not rows:
        return None
    first = next(iter(models.values()))[0]
    y = altair.Y(
        "arm:N",
        title=None,
        scale=altair.Scale(domain=list(models), paddingInner=0.3, paddingOuter=0.2),
        axis=altair.Axis(labelLimit=150, grid=False, domain=False, ticks=False),
    )
    kinds = list(KINDS.values())
    offset = altair.YOffset("kind:N", scale=altair.Scale(domain=kinds))
    legend = altair.Legend(title=None, orient="bottom", columns=1)
    color = altair.Color(
        "kind:N", scale=altair.Scale(domain=kinds, range=style.PALETTE[:3]), legend=legend
    )
    shape = altair.Shape(
        "kind:N", scale=altair.Scale(domain=kinds, range=style.SHAPES[:3]), legend=legend
    )
    words = f"distinct outputs among {first.samples} samples of a prompt"
    x = altair.X("x:Q", title=words)
    drawn = style.chart(rows)
    layers = [
        drawn.mark_rule(strokeWidth=2, opacity=0.7).encode(
            x=altair.X("x_low:Q", title=words), x2="x_high:Q", y=y, yOffset=offset, color=color
        ),
        drawn.mark_point(filled=True, opacity=1, size=85).encode(
            x=x, y=y, yOffset=offset, color=color, shape=shape,
            tooltip=style.tooltips(**TOOLTIPS),
        ),
    ]  # fmt: skip
    heat = "" if first.temperature is None else f", temperature {first.temperature:g}"
    title = f"{summary.task(first.task).short_title}: distinct outputs"
    lines = [f"{first.samples} samples a prompt{heat}.", "Bars: ± 1 standard error."]
    text = f"Distinct outputs a prompt of {', '.join(models)}, all, passing and failing."
    height = max(140, len(models) * 66)
    return Panel(extra, style.titled(layers, title, *lines), text, height)


CHART = Chart(
    name="diversity",
    title="Diversity of the outputs",
    explanation=(
        "How many different texts a model writes to the same prompt, of all its samples, of "
        "those that pass and of those that fail. Finetuning narrows it; LoRA is said to keep "
        "more of the base's (figure 5 of Biderman et al. 2024). Counts of passing samples also "
        "grow with the share that passes."
    ),
    draw=draw,
)
