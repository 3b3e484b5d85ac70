"""GGUF files become ordinary model folders: float32 safetensors, config, tokenizer.

The weights are exactly what the `gguf` library's own dequantisation gives, in
the order transformers expects. What we cannot represent (another architecture,
another pre-tokenizer, an unknown tensor) is refused by name: a model that is
almost right would spoil a comparison without anyone noticing.

transformers reads GGUF tokenizers, but ignores `tokenizer.ggml.pre`: with
SmolLM2 it does not separate digits reliably. So the table of pre-tokenizers
stands here, and an unknown one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from laura.models.cache import is_whole, locked, model_entry, write_entry
from laura.results.errors import ModelError
from laura.results.inputs import open_regular
from laura.results.progress import SILENT, Progress
from laura.results.store import disk_faults, file_hash, read_json, write_json

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

ROTARY_FACTORS = "rope_freqs.weight"


class GgufFile:
    """An opened GGUF file: its metadata and its tensors by name."""

    def __init__(self, path: Path) -> None:
        """Read the directory; a ModelError says if the file is damaged."""
        from gguf import GGUFReader

        self.path = path
        try:
            open_regular(path).close()
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
    save_tokenizer(file, folder)
    write_json(folder / "generation_config.json", _token_ids(file))
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


def _special_ids(file: GgufFile) -> dict[str, int]:
    """Ids of the special tokens that the file names, as transformers calls them."""
    keys = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    found = {ours: f"tokenizer.ggml.{theirs}_token_id" for ours, theirs in keys.items()}
    return {ours: int(file.value(key)) for ours, key in found.items() if file.has(key)}


def _token_ids(file: GgufFile) -> dict[str, int]:
    ids = _special_ids(file)
    return {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad") if name in ids}


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


def half_split(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder query or key rows from neighbouring pairs to half-split pairs.

    llama.cpp rotates rows 2i and 2i+1 of a head together, transformers rows i
    and i + D/2; this is the inverse of `permute` in `convert_hf_to_gguf.py`.
    Shape (heads * D, ...) in and out.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def _places(file: GgufFile, config: Any) -> dict[str, tuple[str, Any]]:
    """Of every tensor of the file: its name in transformers, and the empty parameter there."""
    import torch
    from gguf import MODEL_ARCH, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kind = MODEL_ARCH[file.architecture_name.upper()]
    theirs = get_tensor_name_map(kind, int(config.num_hidden_layers))
    known = {
        theirs.get_name(name, (".weight", ".bias")): (name, parameter)
        for name, parameter in model.named_parameters()
    }
    names = [name for name in file.tensors if name != ROTARY_FACTORS]
    strange = next((name for name in names if name not in known), None)
    if strange is not None:
        raise ModelError(
            f"{file.path}: tensor {strange} has no place in a {config.model_type} model of Laura "
            "(mixtures of experts and fused maps are not supported)"
        )
    return {name: known[name] for name in names}


def _write_weights(file: GgufFile, config: Any, folder: Path, progress: Progress) -> None:
    """Write float32 safetensors in shards, so that memory holds one shard at most."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.numpy import save_file

    places = _places(file, config)
    sources = {ours: name for name, (ours, _) in places.items()}
    heads = {"attn_q": int(config.num_attention_heads), "attn_k": int(config.num_key_value_heads)}
    interleaved = ARCHITECTURES[file.architecture_name].interleaved

    def array(ours: str) -> NDArray[np.float32]:
        name = sources[ours]
        values, part = file.array(name), name.split(".")[-2]
        return half_split(values, heads[part]) if interleaved and part in heads else values

    empty = dict(places.values())
    split = split_torch_state_dict_into_shards(empty, max_shard_size=SHARD_BYTES)
    with progress.bar(f"Dequantising {file.path.name}", len(empty), "tensors") as bar:
        for shard, names in split.filename_to_tensors.items():
            arrays = {}
            for name in names:
                arrays[name] = array(name)
                bar.advance()
            save_file(arrays, folder / shard, metadata={"format": "pt"})
            (folder / shard).chmod(0o644)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index)


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


# llama.cpp's token types
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6

# The regular expressions of the original tokenizer.json files, as in llama.cpp's llama-vocab.cpp.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_EXPRESSIONS = {"llama-bpe": _LLAMA3, "qwen2": _QWEN2}
PRE_TOKENIZERS = ("smollm", "gpt-2", *_EXPRESSIONS)


def save_tokenizer(file: GgufFile, folder: Path) -> None:
    """Write the tokenizer of a GGUF file's metadata into a model folder.

    Args:
        file: The GGUF file.
        folder: Receives tokenizer.json, tokenizer_config.json, chat_template.jinja.

    Raises:
        ModelError: a tokenizer model or pre-tokenizer that we do not know.
    """
    from transformers import PreTrainedTokenizerFast

    kind = str(file.value("tokenizer.ggml.model"))
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    if kind not in builders:
        raise ModelError(
            f"{file.path} has a tokenizer of model {kind!r}; allowed are {', '.join(builders)}"
        )
    tokens: list[str] = file.value("tokenizer.ggml.tokens")
    tokenizer = builders[kind](file, tokens)
    _mark_special(tokenizer, tokens, file.value("tokenizer.ggml.token_type", [1] * len(tokens)))
    special = {f"{name}_token": tokens[number] for name, number in _special_ids(file).items()}
    if "bos_token" in special and file.value("tokenizer.ggml.add_bos_token", kind == "llama"):
        _begin_with(tokenizer, special["bos_token"])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=int(file.value("ARCH.context_length")),
        clean_up_tokenization_spaces=False,
        **special,
    )
    if file.has("tokenizer.chat_template"):
        wrapped.chat_template = str(file.value("tokenizer.chat_template"))
    wrapped.save_pretrained(folder)
    # The name that every version of transformers knows; newer ones write their own.
    facts = read_json(folder / "tokenizer_config.json")
    write_json(
        folder / "tokenizer_config.json", {**facts, "tokenizer_class": "PreTrainedTokenizerFast"}
    )


def _byte_level(file: GgufFile, tokens: list[str]) -> Any:
    """GPT-2 style byte-level BPE with the file's pre-tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = str(file.value("tokenizer.ggml.pre", "none"))
    merges = [tuple(pair.split(" ", 1)) for pair in file.value("tokenizer.ggml.merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    # Llama 3 takes a word that is a token whole, without merging.
    model = models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe")
    tokenizer = Tokenizer(model)
    steps: list[Any]
    if pre == "gpt-2":
        steps = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        steps = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif pre in _EXPRESSIONS:
        split = pre_tokenizers.Split(Regex(_EXPRESSIONS[pre]), "isolated")
        steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        raise ModelError(
            f"{file.path} has the pre-tokenizer {pre!r}; allowed are {', '.join(PRE_TOKENIZERS)}. "
            "Use the model's original folder instead"
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(file: GgufFile, tokens: list[str]) -> Any:
    """SentencePiece BPE as in Llama 2: no pre-tokenizer, byte fallback, merges by score.

    A merge's rank is the score of the token that it makes, as in
    SentencePiece: any two tokens whose union is a token may merge.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = file.value("tokenizer.ggml.scores")
    numbers = {token: number for number, token in enumerate(tokens)}
    ranked = [
        (-scores[numbers[token]], numbers[token[:cut]], numbers[token[cut:]], token, cut)
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in numbers and token[cut:] in numbers
    ]
    merges = [(token[:cut], token[cut:]) for *_, token, cut in sorted(ranked)]
    unknown = tokens[int(file.value("tokenizer.ggml.unknown_token_id", 0) or 0)]
    model = models.BPE(numbers, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    if file.value("tokenizer.ggml.add_space_prefix", 1):
        steps.insert(0, normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if len(steps) == 2 else []),
        ]
    )
    return tokenizer


def _mark_special(tokenizer: Any, tokens: list[str], kinds: list[int]) -> None:
    """Take control tokens, and those the model's makers added, whole out of any text."""
    from tokenizers import AddedToken

    pairs = list(zip(tokens, kinds, strict=True))
    control = [AddedToken(t, special=True, normalized=False) for t, k in pairs if k == CONTROL]
    defined = [AddedToken(t, normalized=False) for t, k in pairs if k == USER_DEFINED]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(defined)


def _begin_with(tokenizer: Any, token: str) -> None:
    """Put the beginning token before every text."""
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token} $B",
        special_tokens=[(token, tokenizer.token_to_id(token))],
    )
