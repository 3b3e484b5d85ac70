"""The peer of `spectra.py`: one torch.linalg.svdvals a matrix; knows nothing of Laura."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from costs import measured
from safetensors import safe_open


def ranks(values: torch.Tensor) -> tuple[dict[str, int], float]:
    """Ranks at 50, 90 and 99 % of the sum of squares, and Roy and Vetterli's."""
    values = values.double()
    energy = values.square().cumsum(0) / values.square().sum()
    found = {f"{share}": int((energy < share / 100).sum()) + 1 for share in (50, 90, 99)}
    shares = values / values.sum()
    return found, float(torch.special.entr(shares).sum().exp())


def main() -> None:
    """Measure the matrices that are asked for and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--tuned", type=Path, required=True)
    parser.add_argument("--double", action="store_true", help="in float64")
    parser.add_argument("--only", default="", help="names with commas")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.linalg.svdvals(torch.randn(64, 96))

    def work() -> dict[str, Any]:
        found = {}
        with (
            safe_open(arguments.base / "model.safetensors", "pt") as base,
            safe_open(arguments.tuned / "model.safetensors", "pt") as tuned,
        ):
            wanted = {f"{name}.weight" for name in arguments.only.split(",") if name}
            for key in sorted(wanted or base.keys()):
                start = time.perf_counter()
                update = tuned.get_tensor(key).float() - base.get_tensor(key).float()
                if arguments.double:
                    update = update.double()
                rank, effective = ranks(torch.linalg.svdvals(update))
                found[key.removesuffix(".weight")] = {
                    "seconds": time.perf_counter() - start,
                    "rank": rank,
                    "effective_rank": effective,
                }
        return found

    _, before = measured(lambda: None)
    found, cost = measured(work)
    taken = cost["peak_memory_bytes"] - before["peak_memory_bytes"]
    arguments.output.write_text(json.dumps({"matrices": found, "peak_bytes": taken}))


if __name__ == "__main__":
    main()
