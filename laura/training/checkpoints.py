"""The state of a run on disk: what is needed to go on, bit by bit.

Tensors are safetensors (never pickle), the folder is checksummed and appears
whole or not at all. Random numbers need no state: every step seeds its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from laura.results.errors import CheckpointError
from laura.results.store import check_folder, write_folder

STATE = "state.safetensors"


def save_state(
    folder: Path,
    parameters: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    facts: dict[str, Any],
) -> None:
    """Write what a run changes or was begun with, and the optimiser's memory.

    Args:
        folder: Replaced as a whole.
        parameters: Trained parameters by name, and the model's buffers.
        optimiser: Its state is kept per parameter.
        facts: Small values to find again, such as the step.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value).cpu().contiguous()
    write_folder(folder, lambda aside: save_file(tensors, aside / STATE), facts)


def load_state(
    folder: Path, parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> dict[str, Any]:
    """Restore what `save_state` wrote; returns its facts.

    Raises:
        CheckpointError: damaged, or made by another run.
    """
    facts = check_folder(folder)
    tensors = load_file(folder / STATE)
    names = {name.split("/", 1)[1] for name in tensors}
    if names != set(parameters):
        raise CheckpointError(
            f"{folder} holds other parameters than this run trains; delete the run's folder "
            "and give the same command again"
        )
    optimiser.state.clear()  # a state from before the first step holds none
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors.pop(f"parameter/{name}"))
    for full_name, tensor in tensors.items():
        key, name = full_name.split("/", 1)
        parameter = parameters[name]
        place = torch.device("cpu") if key == "step" and not _fused(optimiser) else parameter.device
        optimiser.state[parameter][key] = tensor.to(place)
    return facts


def _fused(optimiser: torch.optim.Optimizer) -> bool:
    return bool(optimiser.defaults.get("fused"))
