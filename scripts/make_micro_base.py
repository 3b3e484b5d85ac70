"""Pretrain the micro laboratory's base and write it with its data (make micro-base).

    python scripts/make_micro_base.py                       the one that comes with Laura
    python scripts/make_micro_base.py --seed 1 --out DIR    another world, for --data-dir DIR/data

About six minutes on two cores; a stopped build continues.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from laura.cli.progress import open_progress
from laura.micro.settings import WorldSettings
from laura.study.micro_base import build_micro_base

ROOT = Path(__file__).resolve().parents[1]
BASE, DATA = ROOT / "laura" / "micro" / "base", ROOT / "laura" / "data" / "builtin" / "micro"


def main() -> None:
    """Build, and without --out put the result into the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder of the base; the package's own if absent")
    parser.add_argument(
        "--work", type=Path, help="folder of the stages, by which a build continues"
    )
    options = parser.parse_args()
    work = options.work or ROOT / "build" / f"micro-work-{options.seed}"
    out = options.out or ROOT / "build" / "micro-base"
    with open_progress() as progress:
        build_micro_base(out, work, WorldSettings(seed=options.seed), progress=progress)
    if options.out is None:
        for target, source in ((DATA, out / "data" / "micro"), (BASE, out)):
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("data"))


if __name__ == "__main__":
    main()
