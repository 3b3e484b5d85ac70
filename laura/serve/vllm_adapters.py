"""Adapters as vLLM gets them: from a private folder, in the plainest form.

vLLM never reads what a user can change. What was checked is written anew, with one rank for
all modules and the scale folded into B, so nothing depends on how vLLM reads patterns and
scales.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from laura.engine.vllm_limits import TARGETS, adapter_fault
from laura.models.adapter_files import CONFIG, PREFIX, WEIGHTS, linear_shapes
from laura.models.load import empty_model
from laura.results.errors import AdapterError
from laura.results.store import disk_faults, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from laura.models.lora import LoraSettings


def write_plain(settings: LoraSettings, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write a checked adapter for vLLM.

    Args:
        settings: Its settings, targets as full names.
        tensors: Its tensors by PEFT's names.
        folder: A new folder.

    Raises:
        AdapterError: vLLM cannot represent it.
        StoreError: the disk is full or not writable.
    """
    import torch

    fault = adapter_fault(settings)
    if fault:
        raise AdapterError(f"it has {fault}; merge it into its base, or use the engine in process")
    scales = {name: settings.for_module(name) for name in settings.targets}
    rank = max(own for own, _ in scales.values())
    plain: dict[str, Tensor] = {}
    for name, (own, scale) in scales.items():
        a_RI, b_OR = (tensors[f"{PREFIX}{name}.lora_{part}.weight"].float() for part in "AB")
        # Further rows and columns of zeros add exactly nothing.
        wide = torch.zeros(rank, a_RI.shape[1]), torch.zeros(b_OR.shape[0], rank)
        wide[0][:own], wide[1][:, :own] = a_RI, b_OR * scale
        plain[f"{PREFIX}{name}.lora_A.weight"], plain[f"{PREFIX}{name}.lora_B.weight"] = wide
    _write(plain, rank, folder)


def write_probes(model: Path, place: Path, count: int) -> dict[str, Path]:
    """Adapters of rank 1 that turn every answer of a base upside down, each its own way.

    Every map of every layer gets an update as strong as the map itself.

    Args:
        model: The base's folder; only shapes are read.
        place: Where a folder is made for each.
        count: How many.

    Returns:
        Their folders, by name.
    """
    import torch

    shapes = {
        module: shape
        for module, shape in linear_shapes(empty_model(model)).items()
        if module.rsplit(".", 1)[-1] in TARGETS
    }
    probes = {}
    for seed in range(count):
        name = f"probe@{seed}"
        draw = torch.Generator().manual_seed(seed)
        tensors = {}
        for module, (rows, columns) in shapes.items():
            a_RI = torch.randn(1, columns, generator=draw) / math.sqrt(columns)
            b_OR = torch.randn(rows, 1, generator=draw)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a_RI
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b_OR
        probes[name] = place / name
        _write(tensors, 1, probes[name])
    return probes


def _write(tensors: dict[str, Tensor], rank: int, folder: Path) -> None:
    """A PEFT folder whose updates are B A, nothing else."""
    from safetensors.torch import save_file

    modules = {name.split(".lora_")[0] for name in tensors}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
    with disk_faults(folder):
        folder.mkdir(parents=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)
