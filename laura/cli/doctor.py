"""What this machine can do, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from laura.results.text_table import terminal_width
from laura.results.units import memory_text

State = Literal["ok", "limited", "missing"]

GIB = 1024**3
LIBRARIES = (
    "torch", "transformers", "datasets", "safetensors", "gguf", "numpy", "pydantic", "altair",
    "vl-convert-python",
)  # fmt: skip
EXTRAS = ("lm-eval", "ray")
COMFORTABLE_MEMORY_BYTES = 8 * GIB
COMFORTABLE_DISK_BYTES = 10 * GIB
HUB_SECONDS = 10.0


@dataclass(frozen=True)
class DoctorFinding:
    """One thing looked at.

    Attributes:
        name: What was looked at.
        state: `ok`, `limited` (works, with the limit told), or `missing`.
        found: What is there.
        advice: What to do about it; empty when nothing need be done.
    """

    name: str
    state: State
    found: str
    advice: str = ""

    def text(self) -> str:
        """The finding in lines that fit a terminal, with its advice below."""
        mark = {"ok": "ok     ", "limited": "limited", "missing": "MISSING"}[self.state]
        advice = [f"{'':26}-> {self.advice}"] if self.advice else []
        return "\n".join(
            textwrap.fill(
                line, terminal_width(), subsequent_indent=" " * 26,
                break_long_words=False, break_on_hyphens=False,
            )
            for line in (f"{mark}  {self.name:<15}  {self.found}", *advice)
        )  # fmt: skip


# State, what is there, and where something is to be done about it, what.
Look = tuple[State, str] | tuple[State, str, str]


def examine(
    data_dir: Path | None = None, network: bool = False, vllm: str | None = None
) -> list[DoctorFinding]:
    """Look at everything a comparison needs; nothing is changed and nothing downloaded.

    Args:
        data_dir: Folder of local data; None means $LAURA_DATA.
        network: Whether to ask the Hub for a sign of life (waits up to ten seconds).
        vllm: A base to start vLLM with; None means that it is not looked at.
    """
    looks: dict[str, Callable[[], Look]] = {"python": _python, "libraries": _libraries}
    if importlib.util.find_spec("torch") is not None:
        looks |= {"devices": _devices, "bf16 arithmetic": _bf16, "gpu paths": _gpu_paths}
    looks |= {"cores": _cores, "memory": _memory, "disk": _disk, "cache": _cache}
    looks |= {"data": lambda: _data(data_dir), "sandbox": _sandbox}
    looks |= {f"extra {name}": partial(_extra, name) for name in EXTRAS}
    if network:
        looks["hub"] = _hub
    if vllm is not None:
        looks["vllm"] = lambda: _vllm(vllm)
    return [DoctorFinding(name, *look()) for name, look in looks.items()]


def _python() -> Look:
    return "ok", f"{platform.python_version()} on {platform.platform()}"


def _libraries() -> Look:
    versions, absent = [], []
    for name in LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        advice = f"python -m pip install {' '.join(absent)}"
        return "missing", f"without {', '.join(absent)}", advice
    return "ok", ", ".join(versions)


def _devices() -> Look:
    import torch

    found = [
        f"cuda:{index} {torch.cuda.get_device_name(index)}, "
        + memory_text(torch.cuda.get_device_properties(index).total_memory)
        for index in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        found.append("mps")
    if found:
        return "ok", "; ".join([*found, "cpu"])
    advice = (
        "enough for models of a few hundred million parameters; for larger ones use a machine "
        "with a GPU, and a torch built for it"
    )
    return "limited", "cpu only", advice


def _bf16() -> Look:
    from laura.models.device import has_bf16_arithmetic, pick_device

    device = pick_device()
    if has_bf16_arithmetic(device):
        return "ok", f"in hardware on {device.type}"
    advice = "nothing to do: precision auto trains in fp32 here, more slowly"
    return "limited", f"not in hardware on {device.type}", advice


def _gpu_paths() -> Look:
    """What `docs/scale.md`, One GPU, lists: the same way is used where it is not there."""
    import torch

    from laura.models.device import (
        gains_from_larger_passes,
        has_bf16_arithmetic,
        pick_device,
        varlen_attention,
    )

    device = pick_device()
    there = {
        "documents in one kernel": varlen_attention(device, torch.bfloat16, 128) is not None,
        "measuring in bf16": device.type == "cuda" and has_bf16_arithmetic(device),
        "pinned batches": device.type == "cuda",
        "passes shared by rates": gains_from_larger_passes(device),
    }
    words = [", ".join(name for name, one in there.items() if one is has) for has in (True, False)]
    pairs = zip(("with", "without"), words, strict=True)
    found = "; ".join(f"{word} {names}" for word, names in pairs if names)
    advice = "never run on a GPU by Laura's makers: make test-gpu tells whether they hold on yours"
    if device.type != "cuda":
        advice = "nothing to do: each has its way on other devices (docs/scale.md, One GPU)"
    return "ok" if all(there.values()) else "limited", found, advice


def _cores() -> Look:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    capped = os.environ.get("OMP_NUM_THREADS", "")
    if capped.isdigit() and int(capped) < cores:
        advice = "unset OMP_NUM_THREADS to use them all"
        return "limited", f"{cores}, capped to {capped}", advice
    return "ok", str(cores)


def _memory() -> Look:
    total, free = _memory_bytes()
    if total is None:
        return "limited", "unknown on this system"
    found = memory_text(total) + (f", {memory_text(free)} free" if free else "")
    if (free or total) < COMFORTABLE_MEMORY_BYTES:
        advice = (
            "full finetuning of a 135M model wants about 6 GiB; close other programs, or lower "
            "train.row_tokens"
        )
        return "limited", found, advice
    return "ok", found


def _memory_bytes() -> tuple[int | None, int | None]:
    """Total and available memory of the machine, in bytes, where the system tells."""
    facts = Path("/proc/meminfo")
    if facts.exists():
        lines = dict(line.split(":", 1) for line in facts.read_text().splitlines())
        total = int(lines["MemTotal"].split()[0]) * 1024
        return total, int(lines.get("MemAvailable", "0").split()[0]) * 1024 or None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (ValueError, OSError, AttributeError):
        return None, None


def _disk() -> Look:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found = f"{memory_text(free)} free at {here}"
    if not os.access(here, os.W_OK):
        return "limited", f"{here} may not be written", "give --out another folder"
    if free < COMFORTABLE_DISK_BYTES:
        advice = "checkpoints of full finetuning need room; free some, or give --out another disk"
        return "limited", found, advice
    return "ok", found


def _cache() -> Look:
    from laura.models.cache import cache_root

    root = cache_root()
    place = next(path for path in (root, *root.parents) if path.exists())
    if not os.access(place, os.W_OK):
        advice = "set LAURA_CACHE to a folder you may write"
        return "missing", f"{root} may not be written", advice
    models = sorted(p.name for p in (root / "models").glob("*") if not p.name.startswith("."))
    if not models:
        return "ok", f"{root}, empty", "laura fetch smollm2-135m-instruct-q4"
    return "ok", f"{root} with {', '.join(models)}"


def _data(data_dir: Path | None) -> Look:
    told = data_dir or (Path(chosen) if (chosen := os.environ.get("LAURA_DATA")) else None)
    advice = "give --data-dir or set LAURA_DATA; without it, data comes from the Hub"
    if told is None:
        return "limited", "no local data folder", advice
    if not told.is_dir():
        return "missing", f"{told} is not a folder", advice
    sets = sorted(path.name for path in told.iterdir() if path.is_dir())
    return "ok", f"{told} with {', '.join(sets) or 'nothing in it'}"


def _sandbox() -> Look:
    from laura.evals.sandbox import require_sandbox
    from laura.results.errors import SandboxError

    try:
        require_sandbox()
    except SandboxError as error:
        # Only tasks whose answers are programs want it.
        return "limited", "generated code can not be run", str(error)
    return "ok", "generated code runs confined"


def _hub() -> Look:
    from urllib.error import HTTPError
    from urllib.request import urlopen

    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not address.startswith(("http://", "https://")):
        advice = "let HF_ENDPOINT begin with https://, or unset it"
        return "missing", f"HF_ENDPOINT is {address}", advice
    try:
        with urlopen(address, timeout=HUB_SECONDS):
            return "ok", f"{address} answers"
    except HTTPError as error:
        return "ok", f"{address} answers ({error.code})"
    except OSError as error:
        advice = (
            "use local folders and --data-dir, or set HTTPS_PROXY or HF_ENDPOINT; "
            "smollm2-135m-instruct-q4 needs PyPI only"
        )
        reason = getattr(error, "reason", None) or error
        return "limited", f"{address} does not answer ({reason})", advice


def _vllm(base: str) -> Look:
    import torch

    from laura.engine.vllm import check_batches
    from laura.models.load import resolve_model
    from laura.results.errors import LauraError

    try:
        wrong = check_batches(resolve_model(base), torch.float32)
    except LauraError as error:
        # Only who names it as the engine wants it.
        return "limited", "cannot be used", str(error)
    if wrong:
        return "limited", wrong, "use Laura's own engine; another vLLM may do"
    return "ok", "answers base and adapters in company as alone"


def _extra(name: str) -> Look:
    if importlib.util.find_spec(name.replace("-", "_")):
        return "ok", metadata.version(name)
    return "limited", "not installed, and optional", f"python -m pip install 'laura-lab[{name}]'"
