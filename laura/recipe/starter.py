"""The recipe that `laura init` writes: one to begin with, its values explained beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BENCHMARKS = ("hellaswag", "arc_challenge", "winogrande")
MICRO_TASKS = ("micro_facts", "micro_events", "micro_pronouns")
FEWEST_ROW_TOKENS = 128


@dataclass(frozen=True)
class Starter:
    """What a recipe is written from.

    Attributes:
        name: Of the study.
        base: The model before adaptation.
        train: The source that is learnt, as a recipe has it.
        test: The source that is measured on.
        source_text: Text that the base should still model well.
        epochs: Budget points.
        row_tokens: Length of a packed row, in tokens.
        validation_rows: Rows held out of `train`.
    """

    name: str
    base: str
    train: Mapping[str, Any]
    test: Mapping[str, Any]
    source_text: str
    epochs: Sequence[float]
    row_tokens: int
    validation_rows: int

    def text(self, file: str) -> str:
        """The recipe as YAML, which stands in `file`."""
        micro = self.base == "micro"
        lora, full = ("[8e-4, 2e-3, 5e-3]", "[3.2e-4, 8e-4, 2e-3]") if micro else (
            "[1e-4, 3e-4, 1e-3]", "[1e-5, 3e-5, 1e-4]"
        )  # fmt: skip
        small = "\n  batch_tokens: 512\n  rows_per_pass: 2" if micro else ""
        measured = ", ".join([*forgetting_tasks(self.base), "source_loss", "kl"])
        return f"""\
# LoRA against full finetuning on {self.train["source"]}: what is learnt, what is forgotten?
#   laura plan {file}       memory, time and disk
#   laura compare {file}    trains, measures and says; continues where it was stopped
name: {self.name}
base: {{model: {_flow(self.base)}}}
data:
  train: {_flow(self.train)}
  test: {_flow(self.test)}    # never trained on
  validation_rows: {self.validation_rows}    # held out of train; they choose the learning rate
  source_text: {_flow(self.source_text)}    # what the base should still model well
budget: {{epochs: {_flow(list(self.epochs))}}}    # measured after each
arms:
  # A list whose best rate lies at an end grows by itself.
  lora-r16: {{method: lora, rank: 16, learning_rates: {lora}}}
  full: {{method: full, learning_rates: {full}}}
train:
  schedule: trapezoidal    # one run and a short branch give every budget
  row_tokens: {self.row_tokens}    # rows of the data fit; documents do not see one another{small}
seeds: [0, 1, 2]    # fewer than three decide nothing
measure:
  learning: [target_loss]
  forgetting: [{measured}]
  limit: 300    # items of each benchmark; null for all
"""


def forgetting_tasks(base: str) -> tuple[str, ...]:
    """The benchmarks of what a base forgets: the micro laboratory's has a world of its own."""
    return MICRO_TASKS if base == "micro" else BENCHMARKS


def row_tokens(longest: int) -> int:
    """A packed row that holds the longest example: a power of two, with room for a template."""
    size = FEWEST_ROW_TOKENS
    while size < longest + FEWEST_ROW_TOKENS // 4:
        size *= 2
    return size


def _flow(value: Any) -> str:
    """A value on one line: JSON, which YAML 1.2 reads, with plain keys."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(one)}" for key, one in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
