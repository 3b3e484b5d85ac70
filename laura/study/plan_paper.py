"""The paper's own memory model, and its tables S14 to S16. No torch.

Model state only, in bytes: no activations and no mixed precision, everything float32 but a
frozen base in bf16. Psi is the base's parameters, p the adapter's as a share of them, N GPUs.

    Adam, full            4 Psi weights + 4 Psi gradients + 8 Psi moments = 16 Psi
    Lion, full            4 Psi + 4 Psi + 4 Psi                           = 12 Psi
    Adam, LoRA            2 Psi + 16 p Psi
    Lion, LoRA            2 Psi + 12 p Psi
    FSDP                  any of these / N a GPU

Source: Biderman et al. 2024, arXiv:2405.09673v2, appendix H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

# Bytes that one trained number takes: itself, its gradient, and what the optimiser keeps of it.
TRAINED_BYTES = {"adam": 4 + 4 + 8, "lion": 4 + 4 + 4}
SHARE = 0.01
# Base parameters and numbers of GPUs of tables S14, S15 and S16.
TABLES: dict[str, tuple[float, tuple[int, ...]]] = {
    "7B": (7e9, (1, 8, 16, 32, 64)),
    "70B": (70e9, (1, 8, 16, 32, 64)),
    "405B": (405e9, (1, 8, 16, 32, 64, 128, 256)),
}


def state_bytes(
    parameters: float,
    optimiser: Literal["adam", "lion"],
    share: float | None = None,
    devices: int = 1,
    base_bytes: int = 2,
) -> float:
    """Bytes of model state on each device.

    Args:
        parameters: Psi.
        optimiser: Which moments are kept.
        share: p, for LoRA; None for full finetuning.
        devices: N.
        base_bytes: A number of LoRA's frozen base: 2 in the tables (bf16), 4 for float32.

    Example:
        7e9 with adam gives 112e9; with share 0.01 15.12e9, or 29.12e9 with base_bytes 4.
    """
    trained = TRAINED_BYTES[optimiser]
    if share is None:
        return trained * parameters / devices
    return (base_bytes + trained * share) * parameters / devices


def paper_rows(
    parameters: float, devices: Sequence[int], share: float = SHARE
) -> list[dict[str, Any]]:
    """The four rows of a table: {"case", "bytes": [a device, for each N]}."""
    cases: list[tuple[str, Literal["adam", "lion"], float | None]] = [
        ("Adam", "adam", None),
        ("Adam+LoRA", "adam", share),
        ("Lion", "lion", None),
        ("Lion+LoRA", "lion", share),
    ]
    return [
        {"case": case, "bytes": [state_bytes(parameters, kind, part, n) for n in devices]}
        for case, kind, part in cases
    ]
