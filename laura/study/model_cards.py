"""The model card of weights that are handed over: what they learned and forgot. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from laura.models.model_card import model_card
from laura.results.schema import EstimatedTasks, Record, TaskScores
from laura.results.statistics import count
from laura.results.units import budget_text, rate_text
from laura.study.claims.answer import ends, signed

if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def record_card(record: Record, base: str) -> str:
    """The card of an adapter or a checkpoint, from its record.

    Args:
        record: Its `laura.json`.
        base: Hub id or folder of the base, as its configuration names it.
    """
    seeds = count(record.learning.seeds, "fresh seed" if record.confirmed else "seed")
    adapter = record.method == "lora"
    lines = [
        f"{'An adapter' if adapter else 'A model'} made by Laura of `{record.base.model}`: "
        f"{record.method} arm `{record.arm}`, learning rate {rate_text(record.learning_rate)}, "
        f"seed {record.seed}, {budget_text(record.budget)} {record.budget_unit} "
        f"({record.tokens:,} tokens).",
        *(f"**Note:** {warning}." for warning in record.warnings),
        f"## What it learned and forgot\n\nOver {seeds}, against the base:",
        "\n".join(
            [
                "| | | interval | tasks |",
                "|---|---|---|---|",
                _effect("learned", record.learning),
                _effect("forgotten", record.forgetting),
            ]
        ),
        "Of these very weights:",
        "\n".join(
            [
                "| task | unit | base | tuned | change |",
                "|---|---|---|---|---|",
                *(_row(scores) for scores in record.scores.values()),
            ]
        ),
        "`laura.json` beside the weights holds the recipe, versions and checksums.",
    ]
    title = f"{record.study}: {record.arm}"
    return model_card(base, title, "\n\n".join(lines), _results(record), adapter)


def _effect(name: str, found: EstimatedTasks) -> str:
    unit = "points" if found.unit == "share" else found.unit
    value, level = f"{signed(found.value, found.unit)} {unit}", f"{100 * found.level:.3g} %"
    return f"| {name} | {value} | {ends(found)} ({level}) | {', '.join(found.tasks)} |"


def _row(scores: TaskScores) -> str:
    base, change = scores.base, scores.change
    cells = [scores.title, scores.unit, f"{base.value:.4f}" if base else ""]
    cells.append(f"{scores.tuned.value:.4f} ± {scores.tuned.stderr:.4f}")
    cells.append(f"{change.value:+.4f} ± {change.stderr:.4f}" if change else "")
    return f"| {' | '.join(cells)} |"


def _results(record: Record) -> list[EvalResult]:
    """As the Hub shows them."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=task,
            dataset_name=scores.title,
            metric_type="accuracy" if scores.unit == "share" else "loss",
            metric_name=scores.unit,
            metric_value=scores.tuned.value,
        )
        for task, scores in record.scores.items()
    ]
