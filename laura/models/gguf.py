"""GGUF files become ordinary model folders: float32 safetensors, config, tokenizer.

The weights are exactly what the `gguf` library's own dequantisation gives, in
the order transformers expects. What we cannot represent (another architecture,
another pre-tokenizer, an unknown tensor) is refused by name: a model that is
almost right would spoil a comparison without anyone noticing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laura.models.cache import is_whole, locked, model_entry, write_entry
from laura.models.gguf_tokenizer import save_tokenizer
from laura.results.errors import ModelError
from laura.results.progress import SILENT, Progress
from laura.results.store import disk_faults, file_hash, write_json

SHARD_BYTES = 4 * 1024**3


@dataclass(frozen=True)
class Architecture:
    """How one of GGUF's architectures is called and stored by transformers."""

    model_type: str
    """transformers' name; its config class fills in everything not in the file."""
    interleaved: bool
    """Query and key rows are stored for rotation of neighbouring pairs."""


ARCHITECTURES = {
    "llama": Architecture("llama", interleaved=True),
    "qwen2": Architecture("qwen2", interleaved=False),
    "qwen3": Architecture("qwen3", interleaved=False),
}

OUTER_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROTARY_FACTORS = "rope_freqs.weight"


class GgufFile:
    """An opened GGUF file: its metadata and its tensors by name."""

    def __init__(self, path: Path) -> None:
        """Read the directory; a ModelError says if the file is damaged."""
        from gguf import GGUFReader

        self.path = path
        try:
            reader = GGUFReader(path)
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise ModelError(
                f"{path} is not a whole GGUF file (truncated or damaged: {error}); "
                "download it again"
            ) from error
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror or error})") from error
        self._fields = reader.fields
        self.architecture_name = str(self.value("general.architecture"))

    def value(self, key: str, default: Any = None) -> Any:
        """Metadata under `key`; `ARCH.` stands for the architecture's own prefix.

        Raises:
            ModelError: the key is missing and there is no default.
        """
        if key.startswith("ARCH."):
            key = self.architecture_name + key.removeprefix("ARCH")
        if key in self._fields:
            return self._fields[key].contents()
        if default is None:
            raise ModelError(f"{self.path} lacks the metadata {key}; use a complete GGUF file")
        return default

    def has(self, key: str) -> bool:
        """Whether the file has this metadata."""
        return key.replace("ARCH", self.architecture_name, 1) in self._fields

    def array(self, name: str) -> NDArray[np.float32]:
        """A tensor's values, dequantised to float32; (out, in) for matrices."""
        from gguf import dequantize

        tensor = self.tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ModelError(
                f"{self.path}: tensor {name} has type {tensor.tensor_type.name}, which cannot be "
                "dequantised; use a GGUF of type F32, F16, BF16, Q8_0, Q4_0, Q4_1 or a K type"
            ) from error
        return np.ascontiguousarray(values, dtype=np.float32)


def convert(path: Path, folder: Path, progress: Progress = SILENT) -> None:
    """Write a GGUF model as a folder that plain transformers can load.

    Args:
        path: The .gguf file; its architecture is one of `ARCHITECTURES`.
        folder: An existing empty folder that receives the files.
        progress: Told about every tensor.

    Raises:
        ModelError: the file is damaged, or holds something that we cannot represent.
    """
    file = GgufFile(path)
    if file.architecture_name not in ARCHITECTURES:
        raise ModelError(
            f"{path} has architecture {file.architecture_name!r}; "
            f"allowed are {', '.join(ARCHITECTURES)}"
        )
    if int(file.value("split.count", 1)) > 1:
        raise ModelError(f"{path} is one part of several; join them with gguf-split --merge first")
    config = read_config(file)
    config.save_pretrained(folder)
    save_tokenizer(file.value, file.has, folder, path)
    _write_generation_config(file, folder)
    _write_weights(file, config, folder, progress)


def read_config(file: GgufFile) -> Any:
    """The transformers config that the metadata describes."""
    from transformers import AutoConfig

    heads = int(file.value("ARCH.attention.head_count"))
    width = int(file.value("ARCH.embedding_length"))
    biases = "blk.0.attn_q.bias" in file.tensors
    architecture = ARCHITECTURES[file.architecture_name]
    settings: dict[str, Any] = {
        "architectures": [architecture.model_type.capitalize() + "ForCausalLM"],
        "vocab_size": int(_tensor(file, "token_embd.weight").shape[1]),
        "hidden_size": width,
        "intermediate_size": int(file.value("ARCH.feed_forward_length")),
        "num_hidden_layers": int(file.value("ARCH.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.value("ARCH.attention.head_count_kv", heads)),
        "head_dim": int(file.value("ARCH.attention.key_length", width // heads)),
        "max_position_embeddings": int(file.value("ARCH.context_length")),
        "rms_norm_eps": _shortest(float(file.value("ARCH.attention.layer_norm_rms_epsilon"))),
        "rope_parameters": _rotation(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": "float32",
        **_token_ids(file),
    }
    if architecture.model_type == "llama":
        settings["attention_bias"] = biases
    return AutoConfig.for_model(architecture.model_type, **settings)


def _tensor(file: GgufFile, name: str) -> Any:
    if name not in file.tensors:
        raise ModelError(f"{file.path} lacks the tensor {name}; use a complete GGUF file")
    return file.tensors[name]


def _shortest(value: float) -> float:
    """The shortest decimal with the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _token_ids(file: GgufFile) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {
        f"{ours}_token_id": int(file.value(f"tokenizer.ggml.{theirs}_token_id"))
        for ours, theirs in names.items()
        if file.has(f"tokenizer.ggml.{theirs}_token_id")
    }


def _rotation(file: GgufFile) -> dict[str, Any]:
    """Parameters of the rotary embedding.

    Llama 3's stretched rotation stands in the file only as a vector of factors.
    Its one unknown is recovered, and the whole vector is then computed again
    and compared, so that any other stretching is refused.

    Source:
        `convert_hf_to_gguf.py` of ggml-org/llama.cpp (rope_freqs).
    """
    theta = float(file.value("ARCH.rope.freq_base", 10000.0))
    kind = str(file.value("ARCH.rope.scaling.type", "none"))
    if ROTARY_FACTORS in file.tensors:
        stretch: dict[str, Any] = {
            "factor": float(file.array(ROTARY_FACTORS).max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        factors = file.array(ROTARY_FACTORS)
        if not np.allclose(_llama3_factors(theta, factors.size, **stretch), factors, rtol=1e-4):
            raise ModelError(
                f"{file.path}: {ROTARY_FACTORS} is not Llama 3's; use the model's original folder"
            )
        return {"rope_type": "llama3", "rope_theta": theta, **stretch}
    if kind == "linear":
        return {
            "rope_type": "linear",
            "rope_theta": theta,
            "factor": float(file.value("ARCH.rope.scaling.factor")),
        }
    if kind != "none":
        raise ModelError(
            f"{file.path} stretches positions by {kind!r}; allowed are none and linear"
        )
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_factors(
    theta: float,
    pairs: int,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_max_position_embeddings: float,
) -> NDArray[np.float64]:
    """Divisor of each rotary frequency in Llama 3; (head_dim / 2,)."""
    turns = original_max_position_embeddings * theta ** (-np.arange(pairs) / pairs) / (2 * np.pi)
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    divisors: NDArray[np.float64] = 1 / ((1 - smooth) / factor + smooth)
    return divisors


def transformers_name(name: str) -> str | None:
    """A GGUF tensor's name in transformers, or None if we do not know the tensor."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        inner = LAYER_TENSORS.get(part)
        return f"model.layers.{layer}.{inner}.{kind}" if inner else None
    part, _, kind = name.rpartition(".")
    return f"{OUTER_TENSORS[part]}.{kind}" if part in OUTER_TENSORS else None


def half_split(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder query or key rows from neighbouring pairs to half-split pairs.

    llama.cpp rotates rows 2i and 2i+1 of a head together, transformers rows i
    and i + D/2; this is the inverse of `permute` in `convert_hf_to_gguf.py`.
    Shape (heads * D, ...) in and out.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def _arrays(file: GgufFile, config: Any) -> Iterator[tuple[str, NDArray[np.float32]]]:
    heads = {
        "attn_q": int(config.num_attention_heads),
        "attn_k": int(config.num_key_value_heads),
    }
    for name in file.tensors:
        if name == ROTARY_FACTORS:
            continue
        ours = transformers_name(name)
        if ours is None:
            raise ModelError(
                f"{file.path}: tensor {name} has no place in a {config.model_type} model of Laura "
                "(mixtures of experts and fused maps are not supported)"
            )
        array = file.array(name)
        part = name.split(".")[-2]
        if ARCHITECTURES[file.architecture_name].interleaved and part in heads:
            array = half_split(array, heads[part])
        yield ours, array


def _write_weights(file: GgufFile, config: Any, folder: Path, progress: Progress) -> None:
    """Write float32 safetensors in shards, so that memory holds one shard at most."""
    from safetensors.numpy import save_file

    shards: list[list[str]] = []
    pending: dict[str, NDArray[np.float32]] = {}
    total = 0

    def write_shard() -> None:
        shard = folder / f"shard-{len(shards)}"
        save_file(pending, shard, metadata={"format": "pt"})
        shard.chmod(0o644)
        shards.append(list(pending))
        pending.clear()

    with progress.bar(f"Dequantising {file.path.name}", len(file.tensors), "tensors") as bar:
        for name, array in _arrays(file, config):
            if sum(held.nbytes for held in pending.values()) + array.nbytes > SHARD_BYTES:
                write_shard()
            pending[name] = array
            total += array.nbytes
            bar.advance()
    write_shard()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    places: dict[str, str] = {}
    for number, names in enumerate(shards):
        shard = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / shard)
        places.update(dict.fromkeys(names, shard))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)


def _write_generation_config(file: GgufFile, folder: Path) -> None:
    write_json(folder / "generation_config.json", _token_ids(file))


def converted(path: Path, progress: Progress = SILENT) -> Path:
    """The cache's folder for a GGUF file, converted on first use.

    The entry is named by the file's stem and content, not by its place.

    Raises:
        ModelError: see `convert`.
        StoreError: the cache cannot be written.
    """
    with disk_faults(path):
        entry = model_entry(f"{path.stem}-{file_hash(path)[:12]}")
    if is_whole(entry):
        return entry
    with locked(entry, progress):
        if not is_whole(entry):
            facts = {"source": path.name, "gguf_sha256": file_hash(path)}
            write_entry(entry, lambda folder: convert(path, folder, progress), facts)
    return entry
