"""Pretrain a base of the micro laboratory and write it with its data.

    python scripts/make_micro_base.py --seed 1 --out DIR

About six minutes on two cores; a stopped build continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from laura.bars import open_progress
from laura.micro.settings import WorldSettings
from laura.study.micro_base import build_micro_base

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Build, showing progress."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "micro-base")
    parser.add_argument(
        "--work", type=Path, help="folder of the stages, by which a build continues"
    )
    options = parser.parse_args()
    work = options.work or ROOT / "build" / f"micro-work-{options.seed}"
    with open_progress() as progress:
        build_micro_base(options.out, work, WorldSettings(seed=options.seed), progress=progress)


if __name__ == "__main__":
    main()
