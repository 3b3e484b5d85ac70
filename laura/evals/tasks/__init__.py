"""The table of tasks: one file each beside this one, and one line each here.

Importing the table costs nothing (no torch); `load` imports a task's file.

A file of kind `choice` has `VERSION`, `METRICS` and `question(row, index)`;
one of kind `generation` has `METRICS`, `prepare(rows, ask)` and `grades(questions, answers)`,
and, where settings add metrics, `metrics(section)`, which names them all;
one of kind `loss` or `divergence` has `VERSION`, `METRICS` and `items`.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Any, Literal

from laura.results.errors import UsageError

Kind = Literal["choice", "generation", "loss", "divergence"]
Unit = Literal["share", "nats per token"]


@dataclass(frozen=True)
class TaskEntry:
    """What is known of a task without importing its file.

    Attributes:
        module: Dotted path of its file.
        title: Name for tables and charts.
        unit: Unit of the leading metric.
        metric: The metric that leads: the one charts and verdicts use.
        higher_is_better: Direction of the leading metric.
        kind: How it is measured.
        split: Split of the data that is measured; empty where documents are
            handed in.
        runs_code: Whether what the model writes is run, which needs a sandbox.
    """

    module: str
    title: str
    unit: Unit
    metric: str
    higher_is_better: bool
    kind: Kind
    split: str = ""
    runs_code: bool = False


_HERE = "laura.evals.tasks"

TASKS: dict[str, TaskEntry] = {
    "hellaswag": TaskEntry(
        f"{_HERE}.hellaswag", "HellaSwag, acc_norm", "share", "acc_norm", True, "choice",
        "validation",
    ),
    "arc_challenge": TaskEntry(
        f"{_HERE}.arc_challenge", "ARC-Challenge, acc_norm", "share", "acc_norm", True, "choice",
        "test",
    ),
    "winogrande": TaskEntry(
        f"{_HERE}.winogrande", "WinoGrande, acc", "share", "acc", True, "choice", "validation"
    ),
    "gsm8k": TaskEntry(
        f"{_HERE}.gsm8k", "GSM8K, strict match", "share", "exact_match", True, "generation", "test"
    ),
    "humaneval": TaskEntry(
        f"{_HERE}.humaneval", "HumanEval, pass@1", "share", "pass@1", True, "generation", "test",
        runs_code=True,
    ),
    "mbpp": TaskEntry(
        f"{_HERE}.mbpp", "MBPP, pass@1", "share", "pass@1", True, "generation", "test",
        runs_code=True,
    ),
    "micro_facts": TaskEntry(
        f"{_HERE}.arc_challenge", "Facts of the micro world, acc_norm", "share", "acc_norm", True,
        "choice", "test",
    ),
    "micro_events": TaskEntry(
        f"{_HERE}.hellaswag", "Events of the micro world, acc_norm", "share", "acc_norm", True,
        "choice", "test",
    ),
    "micro_pronouns": TaskEntry(
        f"{_HERE}.winogrande", "Pronouns of the micro world, acc", "share", "acc", True, "choice",
        "test",
    ),
    "micro_math": TaskEntry(
        f"{_HERE}.micro_math", "Micro word problems, strict match", "share", "exact_match", True,
        "generation", "test",
    ),
    "micro_code": TaskEntry(
        f"{_HERE}.micro_code", "Micro functions, pass@1", "share", "pass@1", True, "generation",
        "test",
    ),
    "target_loss": TaskEntry(
        f"{_HERE}.heldout_loss", "Held-out loss, target domain", "nats per token",
        "nats_per_token", False, "loss",
    ),
    "validation_loss": TaskEntry(
        f"{_HERE}.heldout_loss", "Validation loss, target domain", "nats per token",
        "nats_per_token", False, "loss",
    ),
    "source_loss": TaskEntry(
        f"{_HERE}.heldout_loss", "Held-out loss, source text", "nats per token",
        "nats_per_token", False, "loss",
    ),
    "kl": TaskEntry(
        f"{_HERE}.kl", "KL(base || tuned) on target inputs", "nats per token",
        "nats_per_token", False, "divergence",
    ),
    "kl_reverse": TaskEntry(
        f"{_HERE}.kl", "KL(tuned || base) on target inputs", "nats per token",
        "nats_per_token", False, "divergence",
    ),
    "kl_source": TaskEntry(
        f"{_HERE}.kl", "KL(base || tuned) on source text", "nats per token",
        "nats_per_token", False, "divergence",
    ),
    "kl_reverse_source": TaskEntry(
        f"{_HERE}.kl", "KL(tuned || base) on source text", "nats per token",
        "nats_per_token", False, "divergence",
    ),
}  # fmt: skip


def find(name: str) -> TaskEntry:
    """The entry of a task.

    Raises:
        UsageError: no such task; the message names the nearest.
    """
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name.strip().lower().replace("-", "_"), TASKS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"there is no task {name!r}.{hint} Tasks: {', '.join(TASKS)}")


def load(name: str) -> Any:
    """Import a task's file.

    Raises:
        UsageError: no such task.
    """
    return importlib.import_module(find(name).module)
