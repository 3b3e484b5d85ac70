"""The state of a run on disk: what is needed to go on, bit by bit.

Tensors are safetensors (never pickle), the folder is checksummed and appears
whole or not at all. They are whole however many devices a run is spread over, so any
other number can go on. Random numbers need no state: every step seeds its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from laura.results.errors import CheckpointError
from laura.results.store import check_folder, write_folder

STATE = "state.safetensors"


def state_tensors(
    parameters: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    whole: Callable[[str, Tensor], Tensor] = lambda _, tensor: tensor,
) -> dict[str, Tensor]:
    """What a run changes or was begun with and the optimiser's memory, in host memory.

    Args:
        parameters: Trained parameters by name, and the model's buffers.
        optimiser: Its state is kept per parameter.
        whole: Makes a tensor whole of which this process has a part; given the parameter's name.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"parameter/{name}"] = whole(name, parameter.detach()).cpu().contiguous()
        for key, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = whole(name, torch.as_tensor(value)).cpu().contiguous()
    return tensors


def write_state(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write what `state_tensors` gives.

    Args:
        folder: Replaced as a whole.
        tensors: Named `parameter/NAME`, or after what the optimiser calls it.
        facts: Small values to find again, such as the step.
    """
    write_folder(folder, lambda aside: save_file(tensors, aside / STATE), facts)


def read_state(folder: Path, names: Collection[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors that `write_state` wrote.

    Args:
        folder: The folder.
        names: Of all parameters and buffers.

    Raises:
        CheckpointError: damaged, or made by another run.
    """
    facts = check_folder(folder)
    tensors = load_file(folder / STATE)
    if {name.split("/", 1)[1] for name in tensors} != set(names):
        raise CheckpointError(
            f"{folder} holds other parameters than this run trains; delete the run's folder "
            "and give the same command again"
        )
    return facts, tensors


def restore(
    tensors: dict[str, Tensor], parameters: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> None:
    """Put what `read_state` gave into parameters, buffers and optimiser."""
    optimiser.state.clear()  # a state from before the first step holds none
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors.pop(f"parameter/{name}"))
    for full_name, tensor in tensors.items():
        key, name = full_name.split("/", 1)
        parameter = parameters[name]
        place = torch.device("cpu") if key == "step" and not _fused(optimiser) else parameter.device
        optimiser.state[parameter][key] = tensor.to(place)


def _fused(optimiser: torch.optim.Optimizer) -> bool:
    return bool(optimiser.defaults.get("fused"))
