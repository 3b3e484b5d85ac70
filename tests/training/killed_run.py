"""A tiny LoRA run that kills its own process after the n-th progress report.

Arguments: folder, optimiser, schedule, n (0: is left to finish).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from laura.models.adapters import attach
from laura.models.lora import LoraSettings
from laura.results.progress import Silent
from tests.conftest import make_tiny_model
from tests.training.test_loop import make_plan, make_section, train


class Killer(Silent):
    """Counts reports and sends SIGKILL at the chosen one."""

    def __init__(self, kill_at: int) -> None:
        self.left = kill_at

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Killer]:
        """Be the bar as well."""
        yield self

    def advance(self, amount: float = 1.0) -> None:
        """Count one report; the first of a leg comes before any step."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def note(self, text: str) -> None:
        """Nothing to show."""


def main() -> None:
    """Train, or die trying."""
    folder, optimiser, schedule, kill_at = sys.argv[1:]
    section = make_section(optimiser=optimiser, schedule=schedule, checkpoint_minutes=1e-9)
    plan = make_plan(section, (600, 1200))
    model = make_tiny_model()
    attach(model, LoraSettings(rank=4, dropout=0.1), seed=7)
    train(model, Path(folder), section, plan, progress=Killer(int(kill_at)))


if __name__ == "__main__":
    main()
