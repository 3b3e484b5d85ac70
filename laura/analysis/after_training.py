"""What can be done to a finished adapter without training it: scale it, or its intruders.

Both write an adapter in PEFT's format beside the old one, with its settings.

Shapes: O outputs, I inputs, R rank of the adapter, k intruders.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from laura.analysis.subspaces import leading_directions, similarities
from laura.analysis.weights import StoredAdapter, StoredModel
from laura.models.adapter_files import CONFIG, PREFIX, WEIGHTS, read_adapter
from laura.results.errors import AdapterError
from laura.results.store import disk_faults

LEADING, UNLIKE = 10, 0.5  # PEFT's: directions looked at, and the cosine below which one intrudes


def write_scaled(adapter: Path, out: Path, factor: float) -> None:
    """The adapter whose update is `factor` times as large: theta_0 + factor (theta - theta_0).

    Source: Wortsman et al. 2021, arXiv:2109.01903 (WiSE-FT), of an update instead of weights.

    Raises:
        AdapterError: it cannot be read, or has trained lengths (DoRA), so it is no sum.
    """
    settings, tensors = read_adapter(adapter)
    if settings.dora:
        raise AdapterError(
            f"{adapter} has trained lengths (DoRA): its update does not scale; take a LoRA adapter"
        )
    _write(adapter, out, {
        name: tensor * factor if name.endswith("lora_B.weight") else tensor
        for name, tensor in tensors.items()
    })  # fmt: skip


def write_less_intruding(
    base: StoredModel, adapter: Path, out: Path, factor: float, device: torch.device,
    tell: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """The adapter whose intruder dimensions are `factor` times as large, at its own rank.

    W + (factor - 1) sum of sigma u v^T over the intruders of the tuned W, its difference from the
    base cut back to rank R by SVD. An intruder is one of the ten leading directions u of W whose
    cosine with every direction of the base is below .5.

    Args:
        base: What it was trained on.
        adapter: Its folder.
        out: A new folder.
        factor: 0 to 1.
        device: Where to compute.
        tell: Called after every matrix.

    Returns:
        How many intruders there were.

    Raises:
        AdapterError: it cannot be read, does not fit the base, or has trained lengths.

    Source:
        Shuttleworth et al. 2024, arXiv:2410.21228; PEFT's `reduce_intruder_dimension`.
    """
    opened = StoredAdapter(base, adapter)
    tensors, found = read_adapter(adapter)[1], 0
    for name in opened.settings.targets:
        factors = opened.factors(name, device)
        if factors is None:
            raise AdapterError(f"{adapter} has trained lengths (DoRA); take a LoRA adapter")
        tuned_OI = opened.read(name, device)
        unlike = similarities(base.read(name, device), tuned_OI, LEADING) < UNLIKE
        if bool(unlike.any()):
            found += int(unlike.sum())
            u_Ok = leading_directions(tuned_OI, LEADING)[:, unlike.to(device)].float()
            rank, scale = opened.settings.for_module(name)
            b_OR, a_RI = _cut(
                torch.cat([factors[0], (factor - 1) * u_Ok], dim=1),
                torch.cat([factors[1], u_Ok.T @ tuned_OI]),
                rank,
            )
            tensors[f"{PREFIX}{name}.lora_A.weight"] = a_RI
            tensors[f"{PREFIX}{name}.lora_B.weight"] = b_OR / scale
        tell()
    _write(adapter, out, tensors)
    return found


def _cut(left_OK: Tensor, right_KI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors of the best approximation of a product at a rank, each with half of its size."""
    q_OK, upper = torch.linalg.qr(left_OK.double())
    p_IK, lower = torch.linalg.qr(right_KI.double().T)
    u_KK, values_K, vt_KK = torch.linalg.svd(upper @ lower.T)
    half_R = values_K[:rank].sqrt()
    return (q_OK @ u_KK[:, :rank] * half_R).float(), (
        half_R[:, None] * vt_KK[:rank] @ p_IK.T
    ).float()


def _write(adapter: Path, out: Path, tensors: dict[str, Tensor]) -> None:
    with disk_faults(out):
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(adapter / CONFIG, out / CONFIG)
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in tensors.items()},
            out / WEIGHTS,
            metadata={"format": "pt"},
        )
