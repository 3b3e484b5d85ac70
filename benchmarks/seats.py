"""A study by one node of a Ray cluster, and by two.

    python benchmarks/seats.py                                   the grid of `micro`, one seed
    python benchmarks/seats.py --recipe micro-small --rounds 3   in a minute

What is measured and what is not: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

CLUSTER = """
import os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
for _ in range(int(sys.argv[1]) - 1):
    cluster.add_node(**small)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry out the study by one node and by two, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="micro")
    parser.add_argument("--set", nargs="*", default=["seeds=[0]", "search.extend=0"])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args(arguments)
    took: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for nodes, all_took in took.items():
            with cluster(nodes) as (address, started):
                seconds = study(options.recipe, options.set, address)
            all_took.append(seconds)
            print(f"{nodes} nodes: up in {started:.1f} s, study in {seconds:.1f} s", flush=True)
    one, two = (median(took[nodes]) for nodes in took)
    print(f"{options.recipe}: {one:.1f} s by one node, {two:.1f} by two, {one / two:.2f} times")


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[tuple[str, float]]:
    """Address of a cluster of nodes with a core each on this machine, and the seconds it took."""
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as place:
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CLUSTER, str(nodes)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"RAY_TMPDIR": place},
        )  # fmt: skip
        assert process.stdout is not None
        address = process.stdout.readline().split()[0]
        yield address, time.monotonic() - begun
        process.communicate(timeout=60)


def study(recipe: str, settings: Sequence[str], address: str) -> float:
    """Seconds of the whole command: start, the base's measurements, runs, verdict and report."""
    changes = [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        subprocess.run(
            [
                *(sys.executable, "-m", "laura", "compare", recipe, *changes),
                *("--out", str(Path(folder, "study")), "--ray", address),
            ],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
