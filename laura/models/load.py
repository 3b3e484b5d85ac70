"""Loading a base: a model folder, a GGUF file, a named model or a Hub id.

What is loaded is a decoder whose layers have the Linear maps that LoRA replaces
and whose attention Laura may supply. Everything is checked before weights are
read, and no weight is ever silently left at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from laura.models import attention
from laura.models.device import pick_device
from laura.models.experts import stacked_experts
from laura.models.families import EXPERTS, FAMILIES, family_of
from laura.models.fetch import download, fetched, first_line
from laura.models.gguf import converted
from laura.models.layers import decoder_layers
from laura.models.lora import replace_module
from laura.models.nf4 import Nf4Linear, check_installed
from laura.models.registry import MODELS, HubModel, named_model
from laura.results.errors import ModelError, StoreError, UsageError
from laura.results.inputs import MOST_TOKENIZER_BYTES, open_regular, strange_kind
from laura.results.progress import SILENT, Progress
from laura.results.store import content_hash, disk_faults, file_hash, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS, WEIGHT_INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Left to itself, transformers asks at the terminal whether to run code of the folder.
STRANGERS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
TEXT_ENDINGS = (".json", ".jinja", ".model", ".txt")
# Written by whoever saved the folder last; they say nothing about the model.
INCIDENTAL = ("transformers_version", "_name_or_path", "use_cache")


@dataclass(frozen=True)
class Base:
    """A model before adaptation, with its tokenizer."""

    model: PreTrainedModel
    """In evaluation mode, attention "laura", without transformers' own cache."""
    tokenizer: PreTrainedTokenizerBase
    """Has an end token."""
    name: str
    """As the user gave it."""
    fingerprint: str
    """SHA-256 of weights and config, hexadecimal; independent of the folder's place."""
    folder: Path
    """Where config, safetensors and tokenizer lie."""

    def source(self) -> tuple[str, str | None]:
        """What any library loads it by: Hub id and commit, or its folder and None."""
        folder = self.folder.resolve()
        # The Hub's cache: models--OWNER--NAME/snapshots/COMMIT.
        repository = folder.parent.parent.name
        if folder.parent.name != "snapshots" or not repository.startswith("models--"):
            return str(folder), None
        return repository.removeprefix("models--").replace("--", "/"), folder.name


def load_base(
    name: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    quantization: Literal["nf4"] | None = None,
    device: str | None = None,
    progress: Progress = SILENT,
) -> Base:
    """Load a model and its tokenizer.

    Args:
        name: A folder, a .gguf file, a named model (see `registry`), or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        dtype: float32, bfloat16 or float16.
        quantization: nf4 to hold the linear maps of the decoder's layers in four bits.
        device: cpu, cuda, cuda:N or mps; None takes the best there is.
        progress: Told about downloads and conversions.

    Raises:
        ModelError: the model, its tokenizer or its files cannot be used.
        HubError: the Hub or the package index cannot be reached or refuses.
        UsageError: no such dtype or device.
        MissingExtraError: what quantises is not installed.
    """
    if quantization is not None:
        check_installed()
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown; allowed are {', '.join(DTYPES)}")
    place = pick_device(device)
    folder = resolve_model(name, revision, progress)
    check_model_folder(folder)
    with quiet_transformers():
        config, tokenizer = describe_model(folder)
        model = _read_weights(config, folder, DTYPES[dtype])
    if quantization is not None and stacked_experts(model):
        raise ModelError(
            f"{folder} is a {config.model_type!r} model, whose experts lie stacked; nf4 holds "
            "linear maps alone: leave quantization out"
        )
    if quantization is not None:
        hold_in_nf4(model, place)
    return Base(model.to(place).eval(), tokenizer, name, fingerprint(folder), folder)


def describe_model(folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Config and tokenizer of a model folder, checked before weights are read.

    Raises:
        ModelError: no model that Laura runs, or a tokenizer that does not fit it.
    """
    with quiet_transformers():
        config = _read_config(folder)
        _empty_decoder(config, folder)
        tokenizer = load_tokenizer(folder)
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{config.vocab_size} embeddings; use the tokenizer the model was trained with"
        )
    return config, tokenizer


def empty_model(folder: Path) -> Any:
    """The model of a folder on torch's meta device: its modules and shapes, no weights.

    Raises:
        ModelError: no model that Laura runs.
    """
    with quiet_transformers():
        return _empty_decoder(_read_config(folder), folder)


def resolve_model(name: str, revision: str | None = None, progress: Progress = SILENT) -> Path:
    """Find the folder a model's name stands for, downloading or converting as needed.

    A model on disk wins over a named model, a named model over a Hub id.

    Returns:
        A folder; `check_model_folder` tells whether it is complete.

    Raises:
        ModelError: nothing of this name, or a damaged GGUF file.
        HubError: it must be downloaded and cannot be.
    """
    if not name.strip():
        named_model(name)
    path = Path(name).expanduser()
    model = MODELS.get(name)
    # A study folder called as a named model is no model; only a model there hides the name.
    there = path.exists() if model is None else (path / "config.json").is_file()
    local = there or (model is None and _looks_like_path(name))
    if revision is not None and (local or not (model is None or isinstance(model, HubModel))):
        raise ModelError(
            f"revision {revision!r} was given, but {name} is no Hub id; leave the revision out"
        )
    if there and path.is_dir():
        return path
    if there:
        if path.suffix.lower() == ".gguf":
            return converted(path, progress)
        raise ModelError(f"{name} is neither a folder nor a .gguf file; give the model's folder")
    if local:
        raise ModelError(f"{name} does not exist; check the path of the model folder or .gguf file")
    if isinstance(model, HubModel):
        return download(model.repository, revision, progress)
    if model is None and name.count("/") == 1:
        return download(name, revision, progress)
    named_model(name)
    return fetched(name, progress)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.lower().endswith(".gguf") or "\\" in name


def check_model_folder(folder: Path) -> None:
    """Check that a folder holds config, whole weights and a tokenizer.

    Raises:
        ModelError: something is missing or damaged; every fault is listed.
    """
    faults = list(_strange_files(folder))
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter, not a model; give its base, and this folder as the adapter"
        )
    if not (folder / "config.json").is_file():
        faults.append("no config.json")
    if not (folder / WEIGHTS).is_file() and not (folder / WEIGHT_INDEX).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        faults.append(
            f"no model.safetensors (it has {pickled[0]}, but pickled weights can run code when "
            "opened and are not read; save the model as safetensors)"
            if pickled
            else "no model.safetensors"
        )
    else:
        faults += _weight_faults(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        faults.append("no tokenizer (tokenizer.json)")
    if faults:
        raise ModelError(
            f"{folder} is no usable model folder: {'; '.join(faults)}. "
            "Copy the missing files from where the model came from"
        )


def _strange_files(folder: Path) -> Iterator[str]:
    """Faults of files that would hold up, or fill the memory of, the library that opens them."""
    with disk_faults(folder):
        for path in sorted(folder.iterdir()):
            if not path.exists() or path.is_dir():
                continue
            facts = path.stat()
            if kind := strange_kind(facts):
                yield f"{path.name} is {kind}"
            elif path.suffix in TEXT_ENDINGS and facts.st_size > MOST_TOKENIZER_BYTES:
                allowed = f"allowed are {MOST_TOKENIZER_BYTES:,}"
                yield f"{path.name} has {facts.st_size:,} bytes, {allowed}"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, in order of name.

    Raises:
        ModelError: the index of the shards is damaged.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        places = read_json(folder / WEIGHT_INDEX)["weight_map"]
        return [folder / name for name in sorted(set(places.values()))]
    except (StoreError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / WEIGHT_INDEX} is damaged; copy it again") from error


def _weight_faults(folder: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    faults = []
    for path in weight_files(folder):
        try:
            open_regular(path).close()
            with safe_open(path, framework="pt"):
                pass
        except FileNotFoundError:
            faults.append(f"no {path.name}, which the index names")
        except (SafetensorError, OSError) as error:
            faults.append(f"{path.name} is truncated or damaged ({error})")
    return faults


def fingerprint(folder: Path) -> str:
    """SHA-256 over the content of weights and config (about a second per 1.5 GB).

    The same model gives the same value wherever it lies and whoever saved its config.
    """
    config = {
        key: value
        for key, value in read_json(folder / "config.json").items()
        if key not in INCIDENTAL
    }
    weights = {path.name: file_hash(path) for path in weight_files(folder)}
    return content_hash({"config": config, "weights": weights})


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer.

    Raises:
        ModelError: it cannot be read, or has no end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **STRANGERS)
    except Exception as error:  # the tokenizers library raises plain Exception
        _check_no_code(folder, "tokenizer_config.json")
        raise ModelError(
            f"the tokenizer in {folder} cannot be read ({first_line(error)}); copy tokenizer.json "
            "and tokenizer_config.json again from where the model came from"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer in {folder} has no end token, so answers could never end; "
            "set eos_token in its tokenizer_config.json"
        )
    return tokenizer


def _read_config(folder: Path) -> Any:
    """The folder's config, refused if its model needs what Laura does not do."""
    from transformers import AutoConfig

    try:
        raw = read_json(folder / "config.json")
        config = AutoConfig.from_pretrained(folder, **STRANGERS)
    except StoreError as error:
        raise ModelError(f"{folder / 'config.json'} is damaged; copy it again") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        _check_no_code(folder, "config.json")
        raise ModelError(
            f"{folder / 'config.json'} describes no model that transformers knows "
            f"({first_line(error)}); Laura runs {', '.join(FAMILIES)}"
        ) from error
    if "quantization_config" in raw:
        raise ModelError(f"{folder} is quantised; use the unquantised model, or a GGUF file of it")
    return config


def _check_no_code(folder: Path, name: str) -> None:
    """Say why a folder cannot be read where it needs code of its own.

    transformers would ask on the terminal whether to run it; Laura never does.
    """
    path = folder / name
    if path.is_file() and "auto_map" in read_json(path):
        raise ModelError(
            f"{folder} needs Python code that comes with it (auto_map in its {name}), and Laura "
            "never runs the code of a model folder; use a model whose type transformers knows"
        )


def _empty_decoder(config: Any, folder: Path) -> Any:
    """Build the model without memory and check its layers.

    Raises:
        ModelError: not a causal language model, or not one of Llama's kind.
    """
    from transformers import AutoModelForCausalLM

    attention.register()
    kind = f"{folder} is a {config.model_type!r} model"
    allowed = f"Laura runs {', '.join(FAMILIES)}, and what has layers like Llama's"
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention.NAME, trust_remote_code=False
            )
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"{kind}, which cannot be built as a causal language model "
            f"({first_line(error)}); {allowed}"
        ) from error
    if config.get_text_config() is not config:
        raise ModelError(f"{kind}, which reads more than text; save its language model by itself")
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) == 0:
        raise ModelError(f"{kind}, which has no list of decoder layers; {allowed}")
    for layer in layers:
        modules, family = dict(layer.named_modules()), family_of(config.model_type)
        missing = [n for n in family.maps if type(modules.get(n)) is not torch.nn.Linear]
        if family.experts is not None and not stacked_experts(layer):
            missing.append(EXPERTS)
        if missing:
            raise ModelError(f"{kind}, whose layers lack {', '.join(missing)}; {allowed}")
    if not type(model)._supports_attention_backend:
        raise ModelError(f"{kind}, whose attention cannot be supplied from outside; {allowed}")
    _check_attention(config, kind, allowed)
    return model


def _check_attention(config: Any, kind: str, allowed: str) -> None:
    """Refuse attention that is neither full nor sliding, or not causal."""
    unusual = set(getattr(config, "layer_types", None) or []) - {
        "full_attention",
        "sliding_attention",
    }
    if getattr(config, "use_bidirectional_attention", False):
        unusual.add("bidirectional attention")
    if unusual:
        raise ModelError(f"{kind}, whose layers have {', '.join(sorted(unusual))}; {allowed}")


def _read_weights(config: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The model with every weight read from the folder."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    config.use_cache = False
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention.NAME,
            use_safetensors=True,
            **STRANGERS,
            output_loading_info=True,
        )
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"the weights in {folder} do not fit its config.json ({first_line(error)}); "
            "copy both again from where the model came from"
        ) from error
    missing = sorted(report["missing_keys"])
    surplus = sorted(key for key in report["unexpected_keys"] if "rotary_emb" not in key)
    for keys, problem in ((missing, "lack"), (surplus, "hold, but its config.json does not know,")):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ModelError(
                f"the weights in {folder} {problem} {', '.join(keys[:3])}{more}; "
                "copy config.json and the safetensors again from where the model came from"
            )
    # We never pad. With a padding index, the end token, which many models also
    # pad with, would get no gradient where it is read.
    model.get_input_embeddings().padding_idx = None
    return model


def hold_in_nf4(model: Any, place: torch.device) -> None:
    """Quantise the maps of a model's layers where they will be, one after the other.

    The device never has the model whole.
    """
    for layer in decoder_layers(model):
        for name in family_of(model.config.model_type).maps:
            linear: Any = layer.get_submodule(name)
            replace_module(layer, name, Nf4Linear(linear.to(place)))
    for parameter in model.parameters():
        # Safetensors map their file: what is left would keep all that was read of it in memory.
        parameter.data = parameter.data.clone()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide transformers' own bars and remarks, and restore them afterwards."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
