"""What this machine brings to a plan: memory that torch itself takes, and its rate of products.

Both are measured in a process of their own, since peak memory is a process's.

    python -m laura.study.plan_machine '{"device": null, "precision": "auto", ...}'
"""

from __future__ import annotations

import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laura.results.errors import StoreError, UsageError
from laura.study.plan_shapes import Shapes

REPEATS = 7
MOST_SECONDS = 2.0
MOST_TOKENS = 2048
TIME_LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Machine:
    """What was measured.

    Attributes:
        device: Its name.
        arithmetic_bytes: Of `train.precision` there; 2 for bf16, 4 for fp32.
        runtime: Bytes that a training takes besides the model: Python, torch, libraries. On a
            CUDA device what its context takes.
        flops_per_second: Median rate of matrix products of the base's shape.
        spread: Fastest product over slowest.
        cache_bytes: Most memory for keys and values of generation.
    """

    device: str
    arithmetic_bytes: int
    runtime: int
    flops_per_second: float
    spread: float
    cache_bytes: int


@functools.cache
def measure_machine(shapes: Shapes, device: str | None, precision: str) -> Machine:
    """Measure, in a process of its own (some seconds); what was measured is kept.

    Args:
        shapes: Of the base, whose products are timed.
        device: Device name; None for the best there is.
        precision: `train.precision`.

    Raises:
        UsageError: no such device here.
        StoreError: the process could not do its work.
    """
    order = {
        "device": device,
        "precision": precision,
        "wide": [shapes.width, shapes.feed_forward],
    }
    command = [sys.executable, "-W", "ignore", "-m", "laura.study.plan_machine", json.dumps(order)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIME_LIMIT_SECONDS, check=False
        )
        found = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    except (OSError, subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        raise StoreError(f"this machine could not be measured ({error}); {_ADVICE}") from error
    if "mistake" in found:
        raise UsageError(found["mistake"])
    if not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {done.returncode}"
        raise StoreError(f"this machine could not be measured ({reason}); {_ADVICE}")
    return Machine(**found)


_ADVICE = "give --gpus and --flops-per-second to plan without measuring it"


def _measure(order: dict[str, Any]) -> Machine:
    from laura.models.device import cache_budget, pick_device, resolve_precision

    device = pick_device(order["device"])
    dtype = resolve_precision(order["precision"], device)
    runtime = _runtime(str(device))
    rates = _rates(device, dtype, *order["wide"])
    return Machine(
        device=str(device),
        arithmetic_bytes=dtype.itemsize,
        runtime=runtime,
        flops_per_second=statistics.median(rates),
        spread=max(rates) / min(rates),
        cache_bytes=cache_budget(device),
    )


def _runtime(device_name: str) -> int:
    """Resident memory of this process when it has trained a step on the micro base.

    Training loads libraries as it goes (operators, kernels, the tokenizer's rules), so a
    process that only imports torch would not tell. The micro base itself takes 4 MB.
    """
    import torch

    from laura.data.packing import Row
    from laura.models.registry import MICRO_BASE
    from laura.recipe.sections import BaseSection, FullArm, TrainSection
    from laura.results.store import RunStore
    from laura.study.workbench import Workbench
    from laura.training.batches import BatchPlan
    from laura.training.run import train_runs

    section = TrainSection(row_tokens=16, batch_tokens=16, schedule="constant", warmup=0.0)
    row = Row([5] * 16, [7] * 16, list(range(16)), [16], [0])
    bench = Workbench(BaseSection(model=str(MICRO_BASE)), device_name)
    with (
        tempfile.TemporaryDirectory() as folder,
        bench.adapted(FullArm(method="full"), 0) as adapted,
    ):
        train_runs(
            adapted.model, [(RunStore(Path(folder)), 1e-6)], section, BatchPlan.of([[row]], [1]),
            seed=0, write_weights=lambda _: None,
        )  # fmt: skip
    device = torch.device(device_name)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free - torch.cuda.memory_reserved(device))
    return resident_bytes()


def resident_bytes() -> int:
    """Memory of this process that is in use now; its peak so far where the system tells no more."""
    import torch

    from laura.models.device import peak_memory_bytes

    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return peak_memory_bytes(torch.device("cpu"))


def _rates(device: Any, dtype: Any, inner: int, outer: int) -> list[float]:
    """Operations a second of products (T x C) by (C x F), after one that warms up."""
    import torch

    left = torch.randn(MOST_TOKENS, inner, device=device).to(dtype)
    right = torch.randn(outer, inner, device=device).to(dtype)
    rates: list[float] = []
    begun = time.perf_counter()
    while len(rates) <= REPEATS and (len(rates) < 3 or time.perf_counter() - begun < MOST_SECONDS):
        start = time.perf_counter()
        # Reading one number waits for a device that works on its own.
        float(torch.nn.functional.linear(left, right)[0, 0])
        rates.append(2 * MOST_TOKENS * inner * outer / (time.perf_counter() - start))
    return rates[1:]


def _main() -> None:
    from laura.results.errors import LauraError

    try:
        answer = asdict(_measure(json.loads(sys.argv[1])))
    except LauraError as error:
        answer = {"mistake": str(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    _main()
