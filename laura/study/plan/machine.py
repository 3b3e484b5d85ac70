"""What this machine brings to a plan: memory that torch itself takes, and its rate of products.

Both are measured in a process of their own, since what this one holds already is not known.
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.results.errors import StoreError
from laura.study.plan.shapes import Shapes

REPEATS = 7
MOST_SECONDS = 2.0
MOST_TOKENS = 2048
CUDA_CONTEXT = 2**29  # bytes that a process takes on a GPU before any tensor; never measured here


@dataclass(frozen=True)
class Machine:
    """What was measured, or is taken of a machine that is not here.

    Attributes:
        device: Its name.
        arithmetic_bytes: Of `train.precision` there; 2 for bf16, 4 for fp32.
        runtime: Bytes that a training takes besides the model: Python, torch, libraries. On a
            CUDA device what its context takes.
        flops_per_second: Median rate of matrix products of the base's shape.
        spread: Fastest product over slowest.
        cache_bytes: Most memory for keys and values of generation.
        threads: Processes that tokenise there; 0 where it is not known.
        memory: All bytes of the device; 0 where it is not known.
    """

    device: str
    arithmetic_bytes: int
    runtime: int = 0
    flops_per_second: float = 0.0
    spread: float = 1.0
    cache_bytes: int = 0
    threads: int = 0
    memory: int = 0

    @property
    def kind(self) -> str:
        """`cpu`, `cuda` or `mps`."""
        return self.device.split(":")[0]


def absent_gpu(precision: str) -> Machine:
    """A GPU that is not here; precision `auto` is taken as bf16."""
    return Machine("cuda", 4 if precision == "fp32" else 2, CUDA_CONTEXT)


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
    quiet: Any = {"initializer": warnings.simplefilter, "initargs": ("ignore",)}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **quiet) as pool:
        try:
            return pool.submit(_measure, device, precision, shapes).result()
        except (OSError, BrokenProcessPool) as error:
            raise StoreError(
                f"this machine could not be measured ({error}); give --devices and "
                "--flops-per-second to plan without measuring it"
            ) from error


def _measure(device_name: str | None, precision: str, shapes: Shapes) -> Machine:
    from laura.models.device import (
        cache_budget,
        pick_device,
        resolve_precision,
        threads,
        total_memory_bytes,
    )

    device = pick_device(device_name)
    dtype = resolve_precision(precision, device)
    runtime = _runtime(str(device))
    rates = _rates(device, dtype, shapes.width, shapes.feed_forward)
    return Machine(
        device=str(device),
        arithmetic_bytes=dtype.itemsize,
        runtime=runtime,
        flops_per_second=statistics.median(rates),
        spread=max(rates) / min(rates),
        cache_bytes=cache_budget(device),
        threads=threads(),
        memory=total_memory_bytes(device),
    )


def _runtime(device_name: str) -> int:
    """Resident memory of this process when it has trained a step on the micro base.

    Training loads libraries as it goes (operators, kernels, the tokenizer's rules), so a
    process that only imports torch would not tell. The micro base itself takes 4 MB.
    """
    import torch

    from laura.data.packing import Row
    from laura.models.device import peak_memory_bytes
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
