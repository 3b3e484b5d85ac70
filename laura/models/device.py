"""Every choice that depends on the processor: where to run, in which arithmetic."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import inspect
import os
import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from laura.results.errors import UsageError

# Rows up to which `linear` takes the other way.
FEW_ROWS = 512
# Of glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD (32 MiB is its highest), M_ARENA_MAX.
MALLOC_OPTIONS = ((-1, 2**30), (-3, 2**25), (-8, 1))


def pick_device(requested: str | None = None) -> torch.device:
    """The device to run on: the one asked for, else CUDA, MPS, CPU in this order.

    On CUDA products of float32 keep all its bits from then on, in the whole process: TF32 rounds
    their factors to ten, and fp32 in a recipe would not be what it says. torch leaves it off by
    itself, but NVIDIA's containers turn it on (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE).

    Raises:
        UsageError: the name is no device, or the machine does not have it.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if requested is None:
        requested = "cuda" if cuda else "mps" if mps else "cpu"
    try:
        device = torch.device(requested)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--device {requested!r} is none; use cpu, cuda, cuda:N or mps") from error
    present = {"cpu": True, "cuda": cuda, "mps": mps}.get(device.type, False)
    if device.type == "cuda" and device.index is not None:
        present = present and device.index < torch.cuda.device_count()
    if not present:
        raise UsageError(f"this machine has no {requested!r}; leave --device out or use cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
    return device


def spectral_device(requested: str | None = None) -> torch.device:
    """Where eigenvalues are computed: as `pick_device`, but not on MPS, which has no float64.

    Raises:
        UsageError: as `pick_device`.
    """
    device = pick_device(requested)
    return torch.device("cpu") if device.type == "mps" else device


def threads() -> int:
    """How many threads of the processor torch uses at once; OMP_NUM_THREADS bounds it."""
    return torch.get_num_threads()


@functools.cache
def varlen_attention(
    device: torch.device, dtype: torch.dtype, head_width: int
) -> Callable[..., Any] | None:
    """torch's attention over sequences of unlike lengths in one kernel; None where it has none.

    It is FlashAttention 2 (Dao 2023, arXiv:2307.08691): CUDA since Ampere, 16 bits, heads of whole
    eights up to 192 (above, not every card takes gradients), no dropout. An older torch's knows no
    scale, window or grouped heads. Never ran on a GPU.
    """
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)
    fits = dtype.itemsize == 2 and head_width % 8 == 0 and head_width <= 192
    able = torch.cuda.get_device_capability(device) >= (8, 0)
    return varlen_attn if known and fits and able else None


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the processor's on a device, without waiting for what the device is at.

    CUDA copies by itself from pinned memory alone; from any other the processor waits until all
    that it has launched is done.
    """
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def has_bf16_arithmetic(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run in hardware, not in emulation."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return bool(torch.backends.mps.is_macos_or_newer(14, 0))
    check = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    arm = sys.platform == "darwin" or os.uname().machine == "aarch64"
    return (arm or bool(check and check())) and has_bf16_kernels()


def has_bf16_kernels() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor at all, in hardware or emulated.

    On x86 that needs AVX-512 (BW, VL and DQ) or AVX-NE-CONVERT; a processor with AVX2 only has
    neither, and every operation of oneDNN on bfloat16 raises a RuntimeError there. torch's own
    products still work.
    """
    check = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and bool(check and check())


def packs_weights(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN packs weights of this number format here, so that products need no copy."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype != torch.bfloat16 or has_bf16_kernels()


def resolve_precision(precision: str | None, device: torch.device) -> torch.dtype:
    """Arithmetic for `auto`, `bf16` or `fp32`.

    Auto is bf16 where hardware has it; None is auto on CUDA, and fp32 elsewhere.
    """
    precision = precision or ("auto" if device.type == "cuda" else "fp32")
    if precision == "auto":
        return torch.bfloat16 if has_bf16_arithmetic(device) else torch.float32
    return {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision for a forward pass; does nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def arithmetic(x: Tensor) -> torch.dtype:
    """The type in which matrix products on `x` run: autocast's, or its own."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


def exact(device: torch.device) -> AbstractContextManager[object]:
    """No mixed precision within, for sums that must not be rounded."""
    return torch.autocast(device.type, enabled=False)


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`functional.linear`, by the way that is fast for few rows on a processor.

    There MKL's product of a few rows with a large matrix reaches a quarter of the
    memory's speed, and W xᵀ all of it, best with whole fours of rows (SmolLM2-135M,
    two rows, two cores: 59 ms a pass against 17). Training and other devices are left
    as they are.
    """
    rows = x.numel() // max(1, x.shape[-1])
    few = 0 < rows <= FEW_ROWS and x.device.type == "cpu" and x.dtype == torch.float32
    if not few or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return functional.linear(x, weight_OI, bias_O)
    padded = functional.pad(x.reshape(rows, -1), (0, 0, 0, -rows % 4))
    y = (weight_OI @ padded.t()).t()[:rows]
    y = y if bias_O is None else y + bias_O
    return y.reshape(*x.shape[:-1], -1)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for what is wanted next, in the whole process.

    It gives large pieces back to the system otherwise, and a pass, which wants the same ones
    again, spends up to half of its time on pages that are new (glibc; SmolLM2-135M, eight
    prompts of eight adapters in float32, two cores: 340 ms a pass, without this 350 to 770).
    Threads that start later share one heap, for the same reason. Does nothing elsewhere.
    """
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL("libc.so.6").mallopt
        for option, value in MALLOC_OPTIONS:
            set_option(option, value)


def reset_peak_memory(device: torch.device) -> None:
    """Start counting peak memory anew, where the system allows it."""
    empty_cache(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # What an evaluation before has freed would count as ours: hand it back first (glibc).
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    if Path("/proc/self/clear_refs").exists():
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory used so far: on the device for CUDA, else of this process (bytes)."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def empty_cache(device: torch.device) -> None:
    """Hand back what torch keeps of freed memory: another phase of work wants other sizes."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def worker_devices(requested: str | None = None) -> list[str | None]:
    """Where workers that run side by side go, in turn: each CUDA device where none was chosen."""
    if requested in (None, "cuda") and torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [requested]


def alone_on(device: torch.device) -> dict[str, str]:
    """Environment in which another process sees this GPU alone; nothing is said elsewhere."""
    if device.type != "cuda":
        return {}
    number = torch.cuda.current_device() if device.index is None else device.index
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {"CUDA_VISIBLE_DEVICES": visible.split(",")[number] if visible else str(number)}


def free_share(device: torch.device) -> float:
    """Share of a GPU's memory that another process may take, in whole hundredths.

    What is free, less five of them: contexts and workspaces of this process still grow.
    """
    empty_cache(device)
    free, total = torch.cuda.mem_get_info(device)
    return (100 * free // total - 5) / 100


def spread_devices(requested: str | None, count: int) -> list[str]:
    """Where the processes of one run over several devices go; a processor takes them all.

    Raises:
        UsageError: the machine has fewer devices, or they cannot work together.
    """
    device = pick_device(requested)
    if device.type == "cpu" or count == 1:
        return [str(device)] * count
    present = [str(name) for name in worker_devices(requested)] if device.type == "cuda" else []
    if len(present) < count:
        raise UsageError(
            f"train.devices is {count}, but a run can be spread over {len(present) or 1} here "
            f"({', '.join(present) or device}); lower it, leave --device out, or use --device cpu"
        )
    return present[:count]


def collectives(device: torch.device) -> str:
    """What processes on such devices talk by, for torch.distributed."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def total_memory_bytes(device: torch.device) -> int:
    """All memory a device has; of a processor the machine's, or what its control group may have."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
        whole = min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return whole


def cache_budget(device: torch.device) -> int:
    """Bytes for keys and values of generation: half of what a GPU has free, else 3 GiB."""
    empty_cache(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return 3 * 2**30


def gains_from_larger_passes(device: torch.device) -> bool:
    """Whether runs in lock-step go through the model in one pass, or one after another.

    A pass of a step's rows keeps a processor busy; an accelerator mostly waits for its
    launches.
    """
    return device.type != "cpu"


def looks_up_adapters(device: torch.device) -> bool:
    """Whether few tokens of an adapter are served by lookups, not by batched products.

    SmolLM2-135M, 16 adapters of rank 16, two tokens each, two cores: 15 ms a pass against
    19 in float32, 9 against 21 in bfloat16. A GPU reads the matrices at full speed in a
    product, and would go through a lookup's rows one by one.
    """
    return device.type == "cpu"


def free_rows(device: torch.device) -> int:
    """Rows that take as long as what every pass does besides: reading the weights.

    SmolLM2-135M, two cores, milliseconds a pass of 1, 8, 16, 32 rows: 40, 44, 57, 87 in float32,
    32, 39, 57, 104 in bfloat16. Elsewhere it was not measured: there drafts only fill up what
    takes as long as a row (engine/drafting.py).
    """
    return 12 if device.type == "cpu" else 0


def pass_tokens(device: torch.device) -> int:
    """Tokens of a pass that measures: what a processor's caches hold, more elsewhere.

    SmolLM2-135M, two cores: 50 HellaSwag items take 5.9 s in passes of 1,024 tokens,
    6.4 of 2,048 and 6.3 of 384.
    """
    return 1024 if device.type == "cpu" else 2048
