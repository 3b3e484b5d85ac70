"""Where the time of the default comparison goes.

    python benchmarks/micro.py                  run it in a new folder, then tell
    python benchmarks/micro.py --study DIR      tell of a finished one

Seconds of every part are summed over all processes; what is left of the processes'
time is loading, waiting for the last run, and writing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any


def main() -> None:
    """Run the comparison where none is given, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, help="finished study folder")
    parser.add_argument("--recipe", default="micro", help="what is run without --study")
    options = parser.parse_args()
    if options.study:
        tell(options.study)
        return
    with tempfile.TemporaryDirectory() as place:
        study = Path(place) / "study"
        command = [sys.executable, "-m", "laura", "compare", options.recipe]
        subprocess.run([*command, "--out", str(study)], check=True, stdout=subprocess.DEVNULL)
        tell(study)


def tell(study: Path) -> None:
    """Print the table of a study."""
    timing, costs = read(study / "timing.json"), read(study / "cost.json")
    parts: Counter[str] = Counter()
    parts["training"] = sum(run["train_seconds"] for run in costs["runs"])
    for result in study.glob("runs/*/evals/*/*.json"):
        parts[f"measuring {result.stem}"] += read(result)["seconds"]
    base = sum(read(result)["seconds"] for result in study.glob("base/evals/*.json"))
    wall, workers = timing["seconds"], timing["workers"]
    total = (wall - base) * workers
    print(f"{timing['runs']} runs in {wall:.0f} s, {workers} at once; the base took {base:.0f} s\n")
    for name, seconds in [*parts.most_common(), ("the rest", total - parts.total())]:
        print(f"{name:<28}{seconds:8.0f} s{seconds / total:8.0%}")


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
