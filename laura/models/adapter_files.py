"""The one reader of PEFT adapters: what their two files may hold, checked before it is used.

A folder of one's own is read at once (`read_adapter`). A stranger's is read as if it meant
harm, in three steps, each on its own bytes:

- `outline` reads configuration, record and the header of the weights: names, shapes, ranks,
  base. A few thousand bytes, whatever the size of the weights.
- `read_through` reads everything once, in small pieces: every number is finite and small
  enough, the checksums are those of the record. It gives the digest of what it read.
- `read_checked` is for the engine: it reads both files into memory, once, and refuses what
  has another digest.

Nothing is unpickled or mapped into memory. What is read is decided by the weights, so target
lists, patterns and expressions of any PEFT version mean what they meant there; what we cannot
represent is refused by name. What was trained whole (biases, `modules_to_save`) and LoRA on the
output map cannot stand beside a base that others share: `read_whole` reads it, for
`adapters.fold`, which makes a model of its own of it.

The weights are safetensors: 8 bytes (length N of the header, little-endian), N bytes of JSON
(name -> dtype, shape, data_offsets; `__metadata__` of strings), and the data. Beyond what the
format says (https://github.com/huggingface/safetensors#format), the header is bounded, no name
may stand in it twice, and a tensor starts at a multiple of its element's size.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from laura.models.experts import expert_maps, is_experts_map, parted_factors
from laura.models.lora import LoraSettings
from laura.models.oft import OFT_R, oft_settings
from laura.models.safe_files import FileMark, OpenFolder, ReadOnce, changed, strict_json
from laura.models.signatures import SIGNATURE, PublicKey, check_signed
from laura.results.errors import AdapterError, StoreError
from laura.results.inputs import MOST_CONFIG_BYTES, MOST_HEADER_BYTES
from laura.results.schema import RECORD_FILE, Record, parse_record, read_record
from laura.results.store import content_hash, disk_faults, file_hash

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
_KNOWN = re.compile(rf"{re.escape(PREFIX)}.+\.(lora_[AB]\.weight|{MAGNITUDE}|{re.escape(OFT_R)})")
# Loss and engine read the weight of the output map, so there is no room beside it.
_OF_OUTPUT_MAP = re.compile(rf"{re.escape(PREFIX)}(lm_head|embed_out)\..+")
# Fields whose non-empty value changes what the adapter computes, and that we do not have.
REFUSED = (
    "lora_bias",
    "fan_in_fan_out",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "layer_replication",
    "arrow_config",
    "monteclora_config",
    "velora_config",
    "kasa_config",
    "coft",
    "block_share",
)
# Starts of PEFT that take a part out of the base's weights, which the adapter then is added to.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Types of weights, as safetensors calls them.
FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

Shape = tuple[int, ...]
METADATA = "__metadata__"
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
# So few numbers are looked at in this thread: torch's pool is busy with answers meanwhile, and
# waiting for it made checks many times slower.
PIECE_NUMBERS = 2**15
# Float16's largest number: no weight beyond it can be served in half precision, and an update
# whose entries come near it leaves no activation finite in any.
LARGEST = 65504.0
# Letters of a name, with the dots escaped or not: such a pattern takes no time to match.
PLAIN_PATTERN = re.compile(r"\^?(?:[\w.-]|\\\.)+\$?")
SINCE = "since it was checked"
ALONE = "`laura merge BASE ADAPTER OUT` makes a model of its own of what was trained whole"


@dataclass(frozen=True)
class BaseFacts:
    """What of a base decides which adapters fit it.

    Attributes:
        name: What it is called; no adapter may have this name.
        fingerprint: Hash of its weights and config, as `laura.json` records it; None where
            it is not known, and then no adapter's base can be verified.
        linears: (out, in) of every Linear by its full name.
        record: Its `laura.json`, where it is itself the outcome of a study; None otherwise.
    """

    name: str
    fingerprint: str | None
    linears: dict[str, tuple[int, int]]
    record: Record | None = None


@dataclass(frozen=True)
class Bounds:
    """What a server accepts.

    Attributes:
        max_rank: Largest rank of a module.
        max_bytes: Largest file of weights.
    """

    max_rank: int = 256
    max_bytes: int = 2 * 1024**3


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: its type as safetensors calls it, its shape, its bytes [begin, end)."""

    dtype: str
    shape: Shape
    begin: int
    end: int

    def view(self, data: bytearray) -> Tensor:
        """The tensor itself, in the file's data."""
        flat = torch.frombuffer(
            data, dtype=FLOATS[self.dtype], count=math.prod(self.shape), offset=self.begin
        )
        return flat.view(self.shape)


@dataclass(frozen=True)
class Outline:
    """What is known of an adapter before its weights are read.

    Attributes:
        settings: With targets, ranks and alphas by full module name.
        tensors: Where its tensors lie.
        record: Its `laura.json`; None where it has none.
        config_hash: SHA-256 of its configuration.
        bytes: Size of its weights.
        created: When its weights were last changed, seconds since 1970.
        warnings: What its users should know of its base.
        signed: SHA-256 of each file by its signature; None where none is required.
    """

    settings: LoraSettings
    tensors: dict[str, StoredTensor]
    record: Record | None
    config_hash: str
    bytes: int
    created: int
    warnings: tuple[str, ...]
    signed: dict[str, str] | None = None


# ----- reading a folder -----


def read_adapter(folder: Path) -> tuple[LoraSettings, dict[str, Tensor]]:
    """A PEFT adapter's settings, with full module names, and its weights by their names there.

    Raises:
        AdapterError: files are missing or damaged, or the adapter uses something that we
            cannot represent; that it does not fit a model is not looked at.
    """
    if not folder.is_dir():
        raise AdapterError(f"{folder} is not a folder; give the folder holding {CONFIG}")
    with OpenFolder(folder, folder, links=True) as opened:
        settings, tensors = _read(opened)
    for name, tensor in tensors.items():
        peak(name, tensor, folder / WEIGHTS)
    return settings, tensors


def trained_whole(folder: Path) -> list[str]:
    """What of an adapter of one's own cannot stand beside its base, by full name.

    Weights that were trained whole, and LoRA on the output map. Without any it is an adapter
    for `read_adapter`.

    Raises:
        AdapterError: no PEFT adapter, or a damaged one.
    """
    with OpenFolder(folder, folder, links=True) as opened:
        _check_weights(opened)
        with opened.opened(WEIGHTS, sys.maxsize) as file:
            names = read_header(file)
    return [name.removeprefix(PREFIX) for name in names if not _stands_beside(name)]


def read_whole(folder: Path) -> tuple[LoraSettings, dict[str, Tensor], dict[str, Tensor]]:
    """An adapter as `read_adapter` gives it, and the weights it holds whole.

    Returns:
        Settings, LoRA's weights by their names in the file, and by the names of the base's
        parameters what stands in their place.

    Raises:
        AdapterError: as `read_adapter`.
    """
    with OpenFolder(folder, folder, links=True) as opened:
        text, _ = _config_text(opened)
        config = _config(text, folder, whole=True)
        _check_weights(opened)
        with opened.opened(WEIGHTS, sys.maxsize) as file:
            stored = read_header(file)
            data = file.take(max((tensor.end for tensor in stored.values()), default=0))
            file.finish()
    lora = {name: tensor for name, tensor in stored.items() if _KNOWN.fullmatch(name)}
    _check_tensors(lora, folder / WEIGHTS, whole=True)
    _check_types(stored, folder / WEIGHTS)
    tensors = {name: tensor.view(data) for name, tensor in stored.items()}
    for name, tensor in tensors.items():
        peak(name, tensor, folder / WEIGHTS)
    whole = {
        # Within a module that PEFT has wrapped.
        name.removeprefix(PREFIX).replace(".base_layer.", "."): tensor
        for name, tensor in tensors.items()
        if name not in lora
    }
    beside = {name: tensors[name] for name in lora}
    if parameters := config.get("target_parameters"):
        beside = parted_factors(beside, parameters, config.get("r"))
    shapes = {name: tuple(tensor.shape) for name, tensor in beside.items()}
    return resolved(config, shapes, folder), beside, whole


def _stands_beside(name: str) -> bool:
    return bool(_KNOWN.fullmatch(name)) and not _OF_OUTPUT_MAP.fullmatch(name)


def read_settings(folder: Path) -> LoraSettings:
    """Settings of the adapter in a PEFT folder, its targets as full names.

    Raises:
        AdapterError: as `read_adapter`.
    """
    return read_adapter(folder)[0]


def read_checked(
    folder: Path, name: str, digest: str, size: int
) -> tuple[LoraSettings, dict[str, Tensor]]:
    """Read an adapter that was checked, if it is still the same.

    Args:
        folder: Its folder.
        name: What it is called in messages.
        digest: As `read_through` gave it.
        size: Bytes of its weights: any other size is refused before anything is taken.

    Returns:
        As `read_adapter`. The tensors are views of one buffer, which is all that is held.

    Raises:
        AdapterError: its bytes are not those that were checked.
        UnreadableError: it cannot be read now.
    """
    with OpenFolder(folder, Path(name)) as opened:
        return _read(opened, digest, size)


def _read(
    opened: OpenFolder, digest: str | None = None, size: int | None = None
) -> tuple[LoraSettings, dict[str, Tensor]]:
    text, config_hash = _config_text(opened)
    config = None
    if digest is None:  # else what does not fit has changed, whatever it is now
        config = _config(text, opened.label)
        _check_weights(opened)
    with opened.opened(WEIGHTS, sys.maxsize) as file:
        if size not in (None, file.size):
            raise changed(opened.label, SINCE)
        stored = read_header(file)
        _check_tensors(stored, file.label)
        data = file.take(max(tensor.end for tensor in stored.values()))
        weights_hash = file.finish()
    if digest not in (None, _digest(config_hash, weights_hash)):
        raise changed(opened.label, SINCE)
    config = config or _config(text, opened.label)
    tensors = {name: tensor.view(data) for name, tensor in stored.items()}
    if parameters := config.get("target_parameters"):
        tensors = parted_factors(tensors, parameters, config.get("r"))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return resolved(config, shapes, opened.label), tensors


def outline(
    opened: OpenFolder, base: BaseFacts, bounds: Bounds, key: PublicKey | None = None
) -> Outline:
    """Check all of a stranger's adapter but the numbers in its weights.

    Args:
        opened: Its folder.
        base: What it shall fit.
        bounds: What is accepted.
        key: Whose signature it must carry; None where it needs none.

    Raises:
        AdapterError: what is wrong with it, and what to do.
        UnreadableError: its files cannot be read now.
    """
    text, config_hash = _config_text(opened)
    config = _config(text, opened.label)
    if config.get("target_parameters"):
        raise AdapterError(
            f"{opened.label} changes experts, which this server's engine cannot serve; merge it "
            "into its base"
        )
    _check_weights(opened)
    record, record_hash = _record(opened)
    signed = None if key is None else _signed(opened, key)
    if signed is not None:
        check_signed(signed, {CONFIG: config_hash, RECORD_FILE: record_hash}, opened.label)
    warnings = _check_base(config, record, base, opened.label)
    with opened.opened(WEIGHTS, bounds.max_bytes) as file:
        tensors = read_header(file)
        settings = _settings(config, tensors, base, bounds, opened.label)
        size, created = file.size, int(file.changed)
    return Outline(settings, tensors, record, config_hash, size, created, warnings, signed)


def read_through(opened: OpenFolder, known: Outline, bounds: Bounds) -> str:
    """Read an adapter once, piece by piece, and check what `outline` did not.

    Args:
        opened: The adapter's folder.
        known: What `outline` found.
        bounds: As for `outline`.

    Returns:
        The digest of configuration and weights.

    Raises:
        AdapterError: a number is not finite or too large, or record or signature belong to other
            bytes.
        UnreadableError: the files changed in between, or cannot be read now.
    """
    path = opened.label / WEIGHTS
    with opened.opened(WEIGHTS, bounds.max_bytes) as file:
        if read_header(file) != known.tensors:
            raise changed(path)
        peaks = _peaks(file, known.tensors, path)
        weights_hash = file.finish()
    _, config_hash = opened.read(CONFIG, MOST_CONFIG_BYTES)
    if config_hash != known.config_hash:
        raise changed(opened.label)
    _check_sizes(peaks, known.settings, path)
    if known.signed is not None:
        check_signed(known.signed, {WEIGHTS: weights_hash}, opened.label)
    if known.record is not None:
        found = {CONFIG: config_hash, WEIGHTS: weights_hash}
        _check_record(known.record, found, opened.label)
    return _digest(config_hash, weights_hash)


def marks(opened: OpenFolder) -> tuple[FileMark | None, ...]:
    """What changes when one of an adapter's files changes."""
    return tuple(opened.mark(name) for name in (CONFIG, WEIGHTS, RECORD_FILE, SIGNATURE))


def signed_record(folder: Path, key: PublicKey) -> Record:
    """The record of an adapter of one's own, whose files are those that were signed.

    Raises:
        AdapterError: a file is not, or there is no record or no signature.
        StoreError: a file cannot be read.
    """
    with OpenFolder(folder, folder, links=True) as opened:
        signed = _signed(opened, key)
        record, record_hash = _record(opened)
        found = {name: file_hash(folder / name) for name in (CONFIG, WEIGHTS)}
        check_signed(signed, {**found, RECORD_FILE: record_hash}, folder)
    if record is None:
        raise AdapterError(f"{folder} has no {RECORD_FILE}; `laura recommend` writes one")
    _check_record(record, found, folder)
    return record


def base_facts(
    model_folder: Path, name: str | None = None, fingerprint: str | None = None
) -> BaseFacts:
    """Facts of a model folder; its weights are read for the fingerprint alone.

    Args:
        model_folder: A whole model folder (`models.load.resolve_model` finds it).
        name: What the user calls it; None for the folder's name.
        fingerprint: If it is known already (about a second per 1.5 GB otherwise).

    Raises:
        ModelError: no model that Laura runs.
        StoreError: the weights cannot be read, or its `laura.json` belongs to others.
    """
    from laura.models import load

    linears = linear_shapes(load.empty_model(model_folder))
    record = None
    if (model_folder / RECORD_FILE).is_file():
        record = read_record(model_folder)
        for file, checksum in record.weights.items():
            with disk_faults(model_folder / file):
                found = file_hash(model_folder / file)
            if found != checksum:
                raise StoreError(
                    f"{model_folder / RECORD_FILE} belongs to other files: it says another SHA-256 "
                    f"for {file}; write the folder again with `laura recommend STUDY --adapter "
                    "DIR`, or delete the record"
                )
    fingerprint = fingerprint or load.fingerprint(model_folder)
    return BaseFacts(name or model_folder.name, fingerprint, linears, record)


# ----- the header of the weights -----


def read_header(file: ReadOnce) -> dict[str, StoredTensor]:
    """Read a safetensors header; the next bytes of the file are then the data.

    Returns:
        Every tensor by name, in the order of its bytes. Types that are not among `FLOATS`
        have passed no check of their size.

    Raises:
        AdapterError: it is no safetensors file, or its header contradicts itself or the file.
    """
    if file.size < 8:
        _damaged(file.label, f"it has {file.size} bytes")
    start = bytes(file.take(8))
    length, allowed = int.from_bytes(start, "little"), min(file.size - 8, MOST_HEADER_BYTES)
    if length > allowed:
        if start.startswith(PICKLES):
            raise AdapterError(
                f"{file.label} is a pickle, which can run code when opened, and is not read; "
                "save it with safetensors"
            )
        _damaged(file.label, f"a header of {length} bytes, at most {allowed} are possible")
    header = strict_json(file.take(length), file.label)
    if not isinstance(header, dict):
        _damaged(file.label, "the header is no object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _damaged(file.label, f"{METADATA} holds something else than texts")
    tensors = {name: _stored_tensor(name, entry, file.label) for name, entry in header.items()}
    tensors = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    # They lie one behind the other, without gap or overlap, and fill the data.
    at = 0
    for name, tensor in tensors.items():
        if tensor.begin != at or tensor.end < at:
            word = "overlaps what is before it" if tensor.begin < at else "leaves a gap before it"
            _damaged(file.label, f"{name} {word}")
        at = tensor.end
    if at != file.size - 8 - length:
        _damaged(file.label, f"it has {file.size - 8 - length} bytes of data, its header says {at}")
    return tensors


def _stored_tensor(name: str, entry: Any, label: Path) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _damaged(label, f"the entry of {name} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _counts(shape) or not _counts(offsets):
        _damaged(label, f"the entry of {name} has values of a wrong type")
    if len(offsets) != 2:
        _damaged(label, f"{name} has {len(offsets)} offsets")
    tensor = StoredTensor(dtype, tuple(shape), *offsets)
    # The format's other types are told from nonsense by their names alone.
    if dtype in FLOATS:
        size, found = FLOATS[dtype].itemsize, tensor.end - tensor.begin
        if math.prod(shape) * size != found:
            _damaged(label, f"{name} has {found} bytes for shape {tensor.shape}")
        if tensor.begin % size:
            _damaged(label, f"{name} starts at byte {tensor.begin}, no multiple of {size}")
    return tensor


def _counts(values: Any) -> bool:
    # More dimensions than any tensor has would only make their product slow to compute.
    return (
        isinstance(values, list)
        and len(values) <= 8
        and all(type(value) is int and 0 <= value < 2**63 for value in values)
    )


def _damaged(label: Path, why: str) -> NoReturn:
    raise AdapterError(f"{label} is damaged ({why}); copy it again")


# ----- checks -----


def _config_text(opened: OpenFolder) -> tuple[bytes, str]:
    if opened.mark(CONFIG) is None:
        raise AdapterError(f"{opened.label} has no {CONFIG}; it is not a PEFT adapter folder")
    return opened.read(CONFIG, MOST_CONFIG_BYTES)


def _check_weights(opened: OpenFolder) -> None:
    if opened.mark(WEIGHTS) is None:
        pickled = opened.mark(PICKLED) is not None
        hint = f" ({PICKLED} is pickled and is not read)" if pickled else ""
        raise AdapterError(f"{opened.label} has no {WEIGHTS}{hint}; save it with safetensors")


def _config(text: bytes, label: Path, whole: bool = False) -> dict[str, Any]:
    """The content of adapter_config.json, if it is an adapter that we can represent.

    Args:
        text: The file.
        label: For messages.
        whole: Whether weights that were trained whole are welcome.
    """
    config = strict_json(text, label / CONFIG)
    if not isinstance(config, dict):
        raise AdapterError(f"{label / CONFIG} holds no settings")
    kind = config.get("peft_type")
    if kind not in ("LORA", "OFT"):
        raise AdapterError(f"{label} is a {kind} adapter; Laura reads LORA and OFT")
    refused = [name for name in REFUSED if config.get(name)]
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list) or not all(map(is_experts_map, parameters)):
        refused.append(f"target_parameters={parameters!r:.80}")
    elif parameters and (config.get("rank_pattern") or config.get("alpha_pattern")):
        refused.append("rank_pattern or alpha_pattern together with target_parameters")
    if refused:
        raise AdapterError(
            f"{label} uses {', '.join(refused)}, which Laura cannot represent; "
            "merge it with PEFT and load the merged model instead"
        )
    start = config.get("init_lora_weights", True)
    if str(start).lower().startswith(CHANGES_BASE):
        raise AdapterError(
            f"{label} was started with init_lora_weights={start}, which changes the base, so it "
            "fits no base as it is. Where it was trained, save it as a plain adapter (PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=START), not for loftq) "
            "or the whole model (merge_and_unload()), and give that"
        )
    kept = [f"bias={config['bias']}"] if config.get("bias", "none") != "none" else []
    kept += ["modules_to_save"] if config.get("modules_to_save") else []
    if kept and not whole:
        raise AdapterError(
            f"{label} uses {', '.join(kept)}, which cannot stand beside a base; {ALONE}"
        )
    return config


def _signed(opened: OpenFolder, key: PublicKey) -> dict[str, str]:
    if opened.mark(SIGNATURE) is None:
        raise AdapterError(
            f"{opened.label} has no {SIGNATURE}, and a signature is required; its maker signs it "
            "with `laura sign`"
        )
    text, _ = opened.read(SIGNATURE, MOST_CONFIG_BYTES)
    return key.signed_files(text, opened.label / SIGNATURE)


def _record(opened: OpenFolder) -> tuple[Record | None, str | None]:
    """The record and its SHA-256; nothing where there is none."""
    if opened.mark(RECORD_FILE) is None:
        return None, None
    text, checksum = opened.read(RECORD_FILE, MOST_CONFIG_BYTES)
    try:
        return parse_record(text, opened.label / RECORD_FILE), checksum
    except StoreError as error:
        raise AdapterError(
            f"{error!s:.400}, or delete it to have the adapter judged as one without a record"
        ) from error


def _check_base(
    config: dict[str, Any], record: Record | None, base: BaseFacts, label: Path
) -> tuple[str, ...]:
    named = config.get("base_model_name_or_path")
    if not isinstance(named, str | None):
        raise AdapterError(f"{label / CONFIG}: base_model_name_or_path is no text; give a name")
    if record is None:
        told = f"its configuration says {named[:100]!r}" if named else "nothing is said of it"
        return (f"its base is not verified, as it has no laura.json: {told}",)
    if base.fingerprint is None:
        blind = "its base is not verified, as the hash of the served base is not known"
        return (blind, *record.warnings)
    if record.base.fingerprint != base.fingerprint:
        raise AdapterError(
            f"{label} was made for another base: its laura.json names {record.base.model[:100]!r} "
            f"with hash {record.base.fingerprint[:12]}, this one has {base.fingerprint[:12]}; "
            "serve it on its own base"
        )
    return record.warnings


def _settings(
    config: dict[str, Any],
    tensors: dict[str, StoredTensor],
    base: BaseFacts,
    bounds: Bounds,
    label: Path,
) -> LoraSettings:
    """Settings, with the cheap checks first: none takes longer than the base is large."""
    path = label / WEIGHTS
    if len(tensors) > 3 * len(base.linears):
        raise AdapterError(
            f"{path} holds {len(tensors)} tensors, more than this base's {len(base.linears)} "
            "modules can have; it was made for another base"
        )
    _check_tensors(tensors, path)
    _check_patterns(config.get("alpha_pattern"), len(base.linears), label)
    settings = resolved(config, _shapes(tensors), label)
    if settings.dora:
        raise AdapterError(
            f"{label} has trained lengths (DoRA), which this server's engine cannot serve; merge "
            "it into its base"
        )
    word = "block size" if settings.block_size else "rank"
    for name in settings.targets:
        rank = settings.block_size or settings.for_module(name)[0]
        if rank > bounds.max_rank:
            raise AdapterError(
                f"{label}: {word} {rank} of {name} is above this server's limit of "
                f"{bounds.max_rank}; lower the rank or raise the limit"
            )
    check_fit(settings, _shapes(tensors), base.linears, label)
    return settings


def _check_patterns(patterns: Any, modules: int, label: Path) -> None:
    """Refuse patterns that could take for ever to match; `resolved` looks at all else."""
    if not isinstance(patterns, dict):
        return
    if len(patterns) > max(modules, 64):
        raise AdapterError(
            f"{label / CONFIG}: alpha_pattern has {len(patterns)} entries, more than the base's "
            f"{modules} modules; name each module once"
        )
    strange = next((key for key in patterns if not PLAIN_PATTERN.fullmatch(key)), None)
    if strange is not None or any(len(key) > 256 for key in patterns):
        raise AdapterError(
            f"{label / CONFIG}: alpha_pattern has {strange or 'a long key'!r:.80}; a server takes "
            "names, no expressions, as some take for ever to match; write the module names out"
        )


def _check_tensors(tensors: Mapping[str, StoredTensor], path: Path, whole: bool = False) -> None:
    """Check that the weights are matrices (and vectors, for DoRA) of LoRA, and nothing else.

    Args:
        tensors: By name.
        path: Of the file, for messages.
        whole: Whether they may belong to the output map.
    """
    wrong = [name for name in tensors if not (whole or _stands_beside(name))]
    if wrong or not tensors:
        found = ", ".join(wrong[:3]) or "nothing"
        raise AdapterError(f"{path} holds {found}; expected lora_A and lora_B only; {ALONE}")
    for name, tensor in tensors.items():
        shape, expected = tensor.shape, 1 if name.endswith(MAGNITUDE) else 2
        if len(shape) != expected:
            raise AdapterError(f"{path}: {name} has {len(shape)} dimensions, expected {expected}")
        if 0 in shape:
            raise AdapterError(
                f"{path}: {name} has shape {shape}, so it is empty; the rank is from 1"
            )
    _check_types(tensors, path)


def _check_types(tensors: Mapping[str, StoredTensor], path: Path) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise AdapterError(
                f"{path}: {name} is of type {tensor.dtype}; allowed are {', '.join(FLOATS)}; "
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


def _peaks(file: ReadOnce, tensors: dict[str, StoredTensor], path: Path) -> dict[str, float]:
    """Largest magnitude of each tensor, with one piece of the file in memory."""
    buffer = memoryview(bytearray(8 * PIECE_NUMBERS))
    peaks = dict.fromkeys(tensors, 0.0)
    for name, tensor in tensors.items():
        dtype, numbers = FLOATS[tensor.dtype], math.prod(tensor.shape)
        for begin in range(0, numbers, PIECE_NUMBERS):
            piece = buffer[: min(PIECE_NUMBERS, numbers - begin) * dtype.itemsize]
            file.fill(piece)
            peaks[name] = max(peaks[name], peak(name, torch.frombuffer(piece, dtype=dtype), path))
    return peaks


def _check_sizes(peaks: dict[str, float], settings: LoraSettings, path: Path) -> None:
    advice = "the training diverged, or the file is not what it says"
    for name, value in peaks.items():
        if value > LARGEST:
            raise AdapterError(f"{path}: {name} reaches {value:.3g}, above {LARGEST:g}; {advice}")
    for name in settings.targets:
        if size := settings.block_size:
            # Of PEFT's sum of powers; a rotation changes no length.
            q = peaks[f"{PREFIX}{name}.{OFT_R}"]
            reach = 2 * sum(size ** (k - 1) * q**k for k in range(1, settings.terms))
        else:
            rank, scale = settings.for_module(name)
            a, b = (peaks[f"{PREFIX}{name}.lora_{letter}.weight"] for letter in "AB")
            reach = scale * rank * a * b
        if reach > LARGEST:
            raise AdapterError(
                f"{path}: the update of {name} may reach {reach:.3g} (alpha included), above "
                f"{LARGEST:g}; {advice}"
            )


def _check_record(record: Record, found: dict[str, str], label: Path) -> None:
    for name, value in found.items():
        if record.weights.get(name) != value:
            said = "another SHA-256 for it" if name in record.weights else "nothing of it"
            raise AdapterError(
                f"{label}: {RECORD_FILE} belongs to other files: it says {said} ({name}); copy "
                "the folder again, or delete the record to have the adapter judged as one "
                "without"
            )


def _digest(config_hash: str, weights_hash: str) -> str:
    return content_hash({CONFIG: config_hash, WEIGHTS: weights_hash})


def _shapes(tensors: Mapping[str, StoredTensor]) -> dict[str, Shape]:
    return {name: tensor.shape for name, tensor in tensors.items()}


# ----- settings -----


def resolved(config: dict[str, Any], shapes: Mapping[str, Shape], folder: Path) -> LoraSettings:
    """Settings of an adapter, with targets, ranks and alphas by full module name.

    Args:
        config: The content of adapter_config.json.
        shapes: Shape of every tensor by its name in the file.
        folder: For messages.

    Raises:
        AdapterError: a setting is unusable, or the weights contradict it or one another.
    """
    if config.get("peft_type") == "OFT":
        return oft_settings(config, shapes, PREFIX, folder)
    names = sorted({name[len(PREFIX) :].rsplit(".lora_", 1)[0] for name in shapes})
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


def _alphas(pattern: Any, default: float, folder: Path) -> Callable[[str], float]:
    """Alpha of a module by its full name: the first pattern that fits, as PEFT matches."""
    if not isinstance(pattern or {}, dict):
        raise _unusable("alpha_pattern", pattern, "an object of alphas by name", folder)
    patterns: list[tuple[re.Pattern[str], float]] = []
    for key, value in (pattern or {}).items():
        try:
            compiled = re.compile(rf"(.*\.)?({key})$")
        except (re.error, OverflowError, RecursionError) as error:
            allowed = "names or regular expressions"
            raise _unusable("alpha_pattern", key, allowed, folder) from error
        patterns.append((compiled, _number(value, "alpha_pattern", folder)))
    return lambda name: next((a for key, a in patterns if key.match(name)), default)


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
    """Every Linear of a model, and map of an expert: full name, and (out, in) of its weight."""
    linears = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    return linears | expert_maps(model)


def check_fit(
    settings: LoraSettings,
    shapes: Mapping[str, Shape],
    linears: Mapping[str, tuple[int, int]],
    folder: Path,
) -> None:
    """Check that a base has the modules that an adapter changes, in the shapes that it has.

    Args:
        settings: As `resolved` gives them.
        shapes: Shape of every tensor by its name in the file.
        linears: (out, in) by full module name, as `linear_shapes` gives them.
        folder: For the message.

    Raises:
        AdapterError: a module is missing, or a shape differs.
    """
    missing = [name for name in settings.targets if name not in linears]
    if missing:
        raise AdapterError(
            f"{folder} was made for another base: {len(missing)} of the {len(settings.targets)} "
            f"modules it changes are not in this one, such as {missing[0]}"
        )
    for name in settings.targets:
        (rank, _), (rows, columns) = settings.for_module(name), linears[name]
        needed: dict[str, Shape] = {
            "lora_A.weight": (rank, columns),
            "lora_B.weight": (rows, rank),
            MAGNITUDE: (rows,),
        }
        if b := settings.block_size:
            if columns % b:
                raise AdapterError(
                    f"{folder}: blocks of {b} do not fill the {columns} inputs of {name}; the "
                    "adapter was made for another base"
                )
            needed = {OFT_R: (columns // b, b * (b - 1) // 2)}
        for key, shape in needed.items():
            found = shapes.get(f"{PREFIX}{name}.{key}", shape)
            if found != shape:
                raise AdapterError(
                    f"{folder}: {key.removesuffix('.weight')} of {name} has shape {found}, "
                    f"this base needs {shape}; the adapter was made for another base"
                )
