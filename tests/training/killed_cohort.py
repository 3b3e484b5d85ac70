"""A tiny cohort with dropout that kills its own process after the n-th progress report.

Arguments: folder, optimiser, schedule, n (0: is left to finish), rates.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training.killed_run import Killer
from tests.training.test_cohort import adapted, together
from tests.training.test_loop import make_plan, make_section


def main() -> None:
    """Train, or die trying."""
    folder, optimiser, schedule, kill_at, *rates = sys.argv[1:]
    section = make_section(optimiser=optimiser, schedule=schedule, checkpoint_minutes=1e-9)
    plan = make_plan(section, (600, 1200))
    together(
        Path(folder), section, plan, tuple(map(float, rates)),
        model=adapted(dropout=0.1), progress=Killer(int(kill_at)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
