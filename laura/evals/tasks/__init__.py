"""The table of tasks: one file each beside this one, and one line each here.

Importing the table costs nothing (no torch); `load` imports a task's file.

A file of kind `choice` has `VERSION`, `METRICS` and `question(row, index)`;
one of kind `generation` has `METRICS`, `prepare(rows, ask)` and `grades(questions, answers)`,
and, where settings add metrics, `metrics(section)`, which names them all;
one of kind `loss` or `divergence` has `VERSION` and `METRICS`.

A task from elsewhere is such a file in any package and one line, before it is asked for:

    TASKS["mine"] = TaskEntry("my_package.my_task", "Mine, acc", "acc", "choice")

It is measured over the rows that its own function `rows()` gives.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Any, Literal

from laura.recipe.tasks import LM_EVAL_PRESETS
from laura.results.errors import UsageError

Kind = Literal["choice", "generation", "loss", "divergence"]


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a task without importing its file.

    Attributes:
        module: Dotted path of its file.
        title: Name for tables and charts.
        metric: The metric that leads: the one charts and verdicts use.
        kind: How it is measured.
        split: Split of the benchmark's rows that is measured; empty where documents are
            handed in, or the file gives the rows itself.
        runs_code: Whether what the model writes is run, which needs a sandbox.
        higher_is_better: Direction of the leading metric.
        unit: Unit of the leading metric: "share" or "nats per token".
    """

    module: str
    title: str
    metric: str
    kind: Kind
    split: str = ""
    runs_code: bool = False
    higher_is_better: bool = True
    unit: str = "share"


def _choice(file: str, title: str, split: str, metric: str = "acc_norm") -> TaskEntry:
    return TaskEntry(f"{__name__}.{file}", f"{title}, {metric}", metric, "choice", split)


def _written(file: str, title: str, metric: str, runs_code: bool = False) -> TaskEntry:
    """A task of the test split whose answers the model writes."""
    return TaskEntry(f"{__name__}.{file}", title, metric, "generation", "test", runs_code)


def _nats(file: str, title: str, kind: Literal["loss", "divergence"]) -> TaskEntry:
    """A task over documents."""
    return TaskEntry(
        f"{__name__}.{file}", title, "nats_per_token", kind,
        higher_is_better=False, unit="nats per token",
    )  # fmt: skip


TASKS: dict[str, TaskEntry] = {
    "hellaswag": _choice("hellaswag", "HellaSwag", "validation"),
    "arc_challenge": _choice("arc_challenge", "ARC-Challenge", "test"),
    "winogrande": _choice("winogrande", "WinoGrande", "validation", "acc"),
    "gsm8k": _written("gsm8k", "GSM8K, strict match", "exact_match"),
    "humaneval": _written("humaneval", "HumanEval, pass@1", "pass@1", runs_code=True),
    "mbpp": _written("mbpp", "MBPP, pass@1", "pass@1", runs_code=True),
    "micro_facts": _choice("arc_challenge", "Facts of the micro world", "test"),
    "micro_events": _choice("hellaswag", "Events of the micro world", "test"),
    "micro_pronouns": _choice("winogrande", "Pronouns of the micro world", "test", "acc"),
    "micro_math": _written("micro_math", "Micro word problems, strict match", "exact_match"),
    "micro_code": _written("micro_code", "Micro functions, pass@1", "pass@1"),
    "target_loss": _nats("heldout_loss", "Held-out loss, target domain", "loss"),
    "validation_loss": _nats("heldout_loss", "Validation loss, target domain", "loss"),
    "source_loss": _nats("heldout_loss", "Held-out loss, source text", "loss"),
    "kl": _nats("kl", "KL(base || tuned) on target inputs", "divergence"),
    "kl_reverse": _nats("kl", "KL(tuned || base) on target inputs", "divergence"),
    "kl_source": _nats("kl", "KL(base || tuned) on source text", "divergence"),
    "kl_reverse_source": _nats("kl", "KL(tuned || base) on source text", "divergence"),
}


def find(name: str) -> TaskEntry:
    """The entry of a task.

    Raises:
        UsageError: no such task; the message names the nearest.
    """
    if name in TASKS:
        return TASKS[name]
    known = [*TASKS, *LM_EVAL_PRESETS]
    near = difflib.get_close_matches(name.strip().lower().replace("-", "_"), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"there is no task {name!r}.{hint} Tasks: {', '.join(known)}")


def load(name: str) -> Any:
    """Import a task's file.

    Raises:
        UsageError: no such task.
    """
    return importlib.import_module(find(name).module)
