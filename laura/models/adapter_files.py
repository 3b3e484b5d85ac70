"""What the two files of a PEFT adapter may hold: checks that need no model.

Every reader of adapters goes through these, whether it reads a file it trusts at once
(`adapters.py`) or a stranger's piece by piece (`serve/adapter_checks.py`). What is read is
decided by the weights, so target lists, patterns and expressions of any PEFT version mean
what they meant there; what we cannot represent (biases, trained embeddings, ...) is refused
by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laura.models.lora import LoraSettings
from laura.results.errors import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
_KNOWN = re.compile(rf"{re.escape(PREFIX)}.+\.(lora_[AB]\.weight|{MAGNITUDE})")
# Fields whose non-empty value changes what the adapter computes, and that we do not have.
REFUSED = (
    "lora_bias",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "arrow_config",
    "monteclora_config",
    "velora_config",
    "kasa_config",
)
# Types of weights, as safetensors calls them.
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

Shape = tuple[int, ...]


def checked_config(config: Any, folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json, if it is a LoRA adapter that we can represent.

    Args:
        config: What the file holds.
        folder: For messages.

    Raises:
        AdapterError: it is something else; every field that is in the way is named.
    """
    if not isinstance(config, dict):
        raise AdapterError(f"{folder / CONFIG} holds no settings")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{folder} is a {kind} adapter; Laura reads LORA")
    refused = [name for name in REFUSED if config.get(name)]
    if config.get("bias", "none") != "none":
        refused.append(f"bias={config['bias']}")
    if str(config.get("init_lora_weights", True)).lower().startswith(("pissa", "olora", "corda")):
        refused.append(f"init_lora_weights={config['init_lora_weights']} (changes the base)")
    if refused:
        raise AdapterError(
            f"{folder} uses {', '.join(refused)}, which Laura cannot represent; "
            "merge it with PEFT and load the merged model instead"
        )
    return config


def missing_weights(folder: Path, pickled: bool) -> AdapterError:
    """What to say where there are no weights, or only pickled ones."""
    hint = f" ({PICKLED} is pickled and is not read)" if pickled else ""
    return AdapterError(f"{folder} has no {WEIGHTS}{hint}; save it with safetensors")


def check_names(names: Iterable[str], path: Path) -> None:
    """Check that a file of weights holds the tensors of LoRA or DoRA, and nothing else.

    Raises:
        AdapterError: it holds something else, or nothing.
    """
    names = list(names)
    wrong = [name for name in names if not _KNOWN.fullmatch(name)]
    if wrong or not names:
        found = ", ".join(wrong[:3]) or "nothing"
        raise AdapterError(f"{path} holds {found}; expected lora_A and lora_B only")


def check_kind(name: str, shape: Shape, known: bool, dtype: str, path: Path) -> None:
    """Check the number of dimensions and the type of a tensor.

    Args:
        name: Its name in the file.
        shape: Its shape.
        known: Whether its type is among `FLOATS`.
        dtype: What the type is called, for the message.
        path: The file, for the message.

    Raises:
        AdapterError: it is no matrix (or vector, for DoRA) of floating-point numbers.
    """
    expected = 1 if name.endswith(MAGNITUDE) else 2
    if len(shape) != expected:
        raise AdapterError(f"{path}: {name} has {len(shape)} dimensions, expected {expected}")
    if 0 in shape:
        raise AdapterError(f"{path}: {name} has shape {shape}, so it is empty; the rank is from 1")
    if not known:
        raise AdapterError(
            f"{path}: {name} is of type {dtype}; allowed are {', '.join(FLOATS)}; "
            "save it as float32"
        )


def peak(name: str, tensor: Tensor, path: Path) -> float:
    """Largest magnitude of a tensor, or of a piece of one.

    Raises:
        AdapterError: a number in it is NaN or infinite.
    """
    # NaN wins against every number, so the two ends tell of all.
    low, high = (float(end) for end in torch.aminmax(tensor))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise AdapterError(f"{path}: {name} is not finite; the training diverged")
    return max(-low, high)


def module_names(names: Iterable[str]) -> list[str]:
    """Full names of the modules whose tensors these are, sorted."""
    return sorted({name[len(PREFIX) :].rsplit(".lora_", 1)[0] for name in names})


def resolved(config: dict[str, Any], shapes: Mapping[str, Shape], folder: Path) -> LoraSettings:
    """Settings of an adapter, with targets, ranks and alphas by full module name.

    Args:
        config: As `checked_config` gives it.
        shapes: Shape of every tensor by its name in the file.
        folder: For messages.

    Raises:
        AdapterError: a setting is unusable, or the weights contradict it or one another.
    """
    names = module_names(shapes)
    dora, rslora = _flag(config, "use_dora", folder), _flag(config, "use_rslora", folder)
    rank, alpha = config.get("r"), _number(config.get("lora_alpha"), "lora_alpha", folder)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise _unusable("r", rank, "a whole number from 1", folder)
    # Only for training; a file of some other program may leave it out.
    dropout = _number(config.get("lora_dropout") or 0.0, "lora_dropout", folder)
    alpha_of = _alphas(config.get("alpha_pattern"), alpha, folder)
    alphas = {name: alpha_of(name) for name in names}
    numbers = {"lora_alpha": alpha, **{f"alpha of {name}": a for name, a in alphas.items()}}
    for key, value in numbers.items():
        if value <= 0:
            raise _unusable(key, value, "a number above 0", folder)
    ranks = {name: _rank(name, shapes, dora, folder) for name in names}
    return LoraSettings(
        rank=rank,
        alpha=alpha,
        targets=tuple(names),
        dropout=dropout,
        rslora=rslora,
        rank_pattern={n: r for n, r in ranks.items() if r != rank},
        alpha_pattern={n: a for n, a in alphas.items() if a != alpha},
        dora=dora,
    )


def _rank(name: str, shapes: Mapping[str, Shape], dora: bool, folder: Path) -> int:
    a, b = (shapes.get(f"{PREFIX}{name}.lora_{letter}.weight") for letter in "AB")
    if a is None or b is None or a[0] != b[1]:
        raise AdapterError(f"{folder}: lora_A and lora_B of {name} do not belong together")
    if dora != (f"{PREFIX}{name}.{MAGNITUDE}" in shapes):
        word = "no" if dora else "a"
        raise AdapterError(f"{folder} has use_dora: {dora}, but {word} {MAGNITUDE} of {name}")
    return a[0]


class _alphas:
    """Alpha of a module by its full name: the first pattern that fits, as PEFT matches."""

    def __init__(self, pattern: Any, default: float, folder: Path) -> None:
        if not isinstance(pattern or {}, dict):
            raise _unusable("alpha_pattern", pattern, "an object of alphas by name", folder)
        self.default, self.patterns = default, []
        for key, value in (pattern or {}).items():
            try:
                compiled = re.compile(rf"(.*\.)?({key})$")
            except (re.error, OverflowError, RecursionError) as error:
                allowed = "names or regular expressions"
                raise _unusable("alpha_pattern", key, allowed, folder) from error
            self.patterns.append((compiled, _number(value, "alpha_pattern", folder)))

    def __call__(self, name: str) -> float:
        return next((a for key, a in self.patterns if key.match(name)), self.default)


def _number(value: Any, key: str, folder: Path) -> float:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.inf
    if isinstance(value, bool) or not math.isfinite(number):
        raise _unusable(key, value, "a number", folder)
    return number


def _flag(config: dict[str, Any], key: str, folder: Path) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise _unusable(key, value, "true or false", folder)
    return bool(value)


def _unusable(key: str, value: Any, allowed: str, folder: Path) -> AdapterError:
    return AdapterError(f"{folder / CONFIG}: {key} {value!r:.60} is unusable; give {allowed}")


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every Linear of a model: its full name, and the (out, in) of its weight."""
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def check_modules(names: list[str], linears: Mapping[str, Shape], folder: Path) -> None:
    """Check that a base has the modules that an adapter changes.

    Raises:
        AdapterError: it lacks some of them.
    """
    missing = [name for name in names if name not in linears]
    if missing:
        raise AdapterError(
            f"{folder} was made for another base: {len(missing)} of the {len(names)} "
            f"modules it changes are not in this one, such as {missing[0]}"
        )


def check_shapes(
    settings: LoraSettings,
    shapes: Mapping[str, Shape],
    linears: Mapping[str, tuple[int, int]],
    folder: Path,
) -> None:
    """Check that an adapter's tensors have the shapes that a base needs.

    Args:
        settings: As `resolved` gives them; `check_modules` has passed their targets.
        shapes: Shape of every tensor by its name in the file.
        linears: (out, in) by full module name, as `linear_shapes` gives them.
        folder: For the message.

    Raises:
        AdapterError: a shape differs.
    """
    for name in settings.targets:
        (rank, _), (rows, columns) = settings.for_module(name), linears[name]
        needed: dict[str, Shape] = {
            "lora_A.weight": (rank, columns),
            "lora_B.weight": (rows, rank),
            MAGNITUDE: (rows,),
        }
        for key, shape in needed.items():
            found = shapes.get(f"{PREFIX}{name}.{key}", shape)
            if found != shape:
                raise AdapterError(
                    f"{folder}: {key.removesuffix('.weight')} of {name} has shape {found}, "
                    f"this base needs {shape}; the adapter was made for another base"
                )
