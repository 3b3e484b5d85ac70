"""What vLLM can represent of models and adapters."""

from __future__ import annotations

from typing import Any

from laura.models.load import LAYER_MAPS
from laura.models.lora import LoraSettings
from laura.results.errors import ModelError

# Values of vLLM's max_lora_rank.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Last parts of the names of the maps that adapters may change.
TARGETS = tuple(name.rsplit(".", 1)[-1] for name in LAYER_MAPS)


def adapter_fault(settings: LoraSettings) -> str:
    """What an adapter has that vLLM cannot represent; empty for nothing."""
    rank, strange = largest_rank(settings), sorted(changed_maps(settings) - set(TARGETS))
    faults = [
        "trained lengths (DoRA), vLLM takes plain LoRA" if settings.dora else "",
        f"rank {rank}, vLLM takes at most {RANKS[-1]}" if rank > RANKS[-1] else "",
        f"{', '.join(strange)}, vLLM takes the layers' maps" if strange else "",
    ]
    return next((fault for fault in faults if fault), "")


def largest_rank(settings: LoraSettings) -> int:
    """Largest rank of a module."""
    return max(settings.rank, *settings.rank_pattern.values(), 0)


def changed_maps(settings: LoraSettings) -> set[str]:
    """Last parts of the names of the maps that an adapter changes; targets are full names."""
    return {target.rsplit(".", 1)[-1] for target in settings.targets}


def longer_positions(config: Any, length: int) -> dict[str, int]:
    """What makes vLLM prepare positions up to `length`.

    Raises:
        ModelError: the rotation depends on the longest length, so it would change.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type"))
    if kind not in (None, "default", "linear", "llama3", "yarn"):
        raise ModelError(
            f"the model's rotary positions (rope_type {kind}) depend on the longest length, which "
            "vLLM has to be told otherwise than transformers; use the engine in process"
        )
    return {"max_position_embeddings": length}
