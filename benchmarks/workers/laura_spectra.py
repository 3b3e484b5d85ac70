"""Laura's side of `spectra.py`: the spectrum of every update, read from files."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from costs import measured


def main() -> None:
    """Measure every matrix and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--tuned", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    import torch

    from laura.analysis.spectra import spectrum
    from laura.analysis.weights import StoredModel, open_tuned

    place = torch.device("cpu")
    base = StoredModel(arguments.base)
    tuned = open_tuned(base, arguments.tuned)
    spectrum(torch.randn(64, 96))  # the libraries load what they need

    def work() -> dict[str, Any]:
        found = {}
        for name in base.matrices:
            start = time.perf_counter()
            facts = spectrum(tuned.read_update(name, place), name).facts()
            found[name] = {
                "seconds": time.perf_counter() - start,
                "rank": facts["rank"],
                "effective_rank": facts["effective_rank"],
            }
        return found

    _, before = measured(lambda: None)
    found, cost = measured(work)
    taken = cost["peak_memory_bytes"] - before["peak_memory_bytes"]
    arguments.output.write_text(json.dumps({"matrices": found, "peak_bytes": taken}))


if __name__ == "__main__":
    main()
