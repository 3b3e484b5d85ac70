"""What the processor can, what follows from it, and what is asked of the C library's memory."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from laura.models import device
from laura.models.device import (
    alone_on,
    cache_budget,
    free_share,
    has_bf16_arithmetic,
    packs_weights,
    pick_device,
    resolve_precision,
    spread_devices,
    total_memory_bytes,
    varlen_attention,
    worker_devices,
)
from laura.results.errors import UsageError

PROGRAM = """
import resource, sys, torch
from laura.models.device import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def work():
    return [torch.ones(n * 2**18) for n in (1, 9, 17, 25, 3)]  # megabytes
for _ in range(10):  # until the heap has found its shape
    pieces = work(); del pieces
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    pieces = work(); del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(way: str) -> int:
    """Pages that five rounds of the same pieces of memory had to be given anew."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep it or not")
def test_memory_that_is_freed_is_there_for_what_comes_next() -> None:
    assert new_pages("kept") < 0.05 * 5 * 55 * 2**20 / 4096 < new_pages("plain")


@pytest.mark.parametrize("hardware", [False, True])
@pytest.mark.parametrize("kernels", [False, True])
def test_auto_is_bf16_only_where_hardware_and_kernels_are(
    monkeypatch: pytest.MonkeyPatch, hardware: bool, kernels: bool
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(device.sys, "platform", "linux")
    monkeypatch.setattr(device.os, "uname", lambda: os.uname_result(["Linux", *"abc", "x86_64"]))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: hardware, raising=False)
    monkeypatch.setattr(device, "has_bf16_kernels", lambda: kernels)
    assert has_bf16_arithmetic(cpu) is (hardware and kernels)
    expected = torch.bfloat16 if hardware and kernels else torch.float32
    assert resolve_precision("auto", cpu) == expected
    assert resolve_precision("bf16", cpu) == torch.bfloat16
    assert packs_weights(cpu, torch.bfloat16) is kernels
    assert packs_weights(cpu, torch.float32)
    assert not packs_weights(torch.device("meta"), torch.float32)


# Serving, measuring and a step of training, all in bf16; oneDNN itself refuses bf16 where it is
# told to use nothing beyond AVX2.
BF16_PROGRAM = """
import sys, torch
from laura.models.device import autocast, has_bf16_arithmetic, resolve_precision
from laura.engine.scheduler import TokenSequence
from laura.engine.engine import Engine
from laura.engine.model_runner import FusedRunner
from laura.engine.scheduler import Scheduler
from laura.engine.requests import GenerateRequest, ScoreRequest
from tests.conftest import make_tiny_model, make_tiny_tokenizer
cpu, tokenizer = torch.device("cpu"), make_tiny_tokenizer()
bf16 = resolve_precision("bf16", cpu)
model = make_tiny_model()
live = Scheduler(FusedRunner(model, bf16), tokenizer, cache_bytes=2**25)
live.add(TokenSequence("t", tuple(tokenizer.encode("the dog ran")), 8, ignore_end=True))
told = sum(len(live.step()) for _ in range(8))
engine = Engine(model, tokenizer, bf16)
engine.score([ScoreRequest("the dog", " ran")])
engine.generate([GenerateRequest("the dog", (), 8)])
model.train()
with autocast(cpu, bf16):
    loss = model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss
loss.backward()
kernels = torch.ops.mkldnn._is_mkldnn_bf16_supported()
print(told, kernels, has_bf16_arithmetic(cpu), resolve_precision("auto", cpu))
"""


@pytest.mark.slow
def test_bf16_works_on_a_processor_with_avx2_only() -> None:
    root = Path(__file__).resolve().parents[2]
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    paths = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", BF16_PROGRAM],
        env={**os.environ, **limits, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told, kernels, hardware, auto = done.stdout.split()
    assert told == "8"
    if platform.machine() == "x86_64":
        assert (kernels, hardware, auto) == ("False", "False", "torch.float32")


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A machine whose torch says that it has such a card."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    return torch.device("cuda")


def test_documents_have_a_kernel_where_torch_has_one_for_them(
    ampere: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, bf16 = varlen_attention.__wrapped__, torch.bfloat16
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters:
        assert kernel(ampere, bf16, 64) is varlen.varlen_attn
        assert kernel(ampere, torch.float16, 128) is varlen.varlen_attn
    assert kernel(ampere, torch.float32, 64) is None
    assert kernel(ampere, bf16, 60) is kernel(ampere, bf16, 256) is None
    assert kernel(torch.device("cpu"), bf16, 64) is kernel(torch.device("mps"), bf16, 64) is None
    # As torch 2.10 has it, which could not be told the scale.
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, key, value, is_causal: None)
    assert kernel(ampere, bf16, 64) is None
    monkeypatch.undo()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert kernel(ampere, bf16, 64) is None


def test_float32_means_float32_on_cuda(
    ampere: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    assert pick_device("cpu").type == "cpu" and not told
    assert pick_device("cuda").type == pick_device().type == "cuda"
    assert told == ["highest"] * 2


def test_measuring_is_bf16_by_default_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_bf16_arithmetic", lambda place: True)
    found = {kind: resolve_precision(None, torch.device(kind)) for kind in ("cpu", "mps", "cuda")}
    assert found == {"cpu": torch.float32, "mps": torch.float32, "cuda": torch.bfloat16}
    monkeypatch.setattr(device, "has_bf16_arithmetic", lambda place: False)
    assert resolve_precision(None, torch.device("cuda")) == torch.float32


def test_workers_go_to_one_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_devices() == [None] and worker_devices("cpu") == ["cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert worker_devices() == worker_devices("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert worker_devices("cuda:1") == ["cuda:1"] and worker_devices("cpu") == ["cpu"]


def test_another_process_gets_one_gpu_and_what_is_free_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (699, 1000))
    assert alone_on(torch.device("cpu")) == {}
    for visible, numbers in (("", "12"), ("4,5,7", "57")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        for name, number in zip(("cuda:1", "cuda"), numbers, strict=True):
            assert alone_on(torch.device(name)) == {"CUDA_VISIBLE_DEVICES": number}
    assert free_share(torch.device("cuda:1")) == 0.64


def test_a_run_is_spread_over_no_more_devices_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert spread_devices("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert spread_devices(None, 2) == spread_devices("cuda", 2) == ["cuda:0", "cuda:1"]
    assert spread_devices("cuda:1", 1) == ["cuda:1"]
    with pytest.raises(UsageError, match=r"train\.devices is 3, but .* 2 here \(cuda:0, cuda:1\)"):
        spread_devices(None, 3)
    with pytest.raises(UsageError, match=r"over 1 here \(cuda:1\); lower it"):
        spread_devices("cuda:1", 2)


def test_what_torch_keeps_is_given_back_before_memory_is_shared_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a training the driver's free memory tells nothing of what torch only keeps."""
    free = [2**30]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(8 * 2**30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 2**34))
    assert cache_budget(torch.device("cuda")) == 4 * 2**30
    assert cache_budget(torch.device("cpu")) == 3 * 2**30


def test_memory_of_this_machine() -> None:
    whole = total_memory_bytes(torch.device("cpu"))
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 2**28 < whole <= total
