"""The commands on models and this machine: `laura merge`, `sign`, `push`, `fetch`, `doctor`, ..."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from laura.cli.console import Console
from laura.cli.options import DATA, DEVICE, argument, option
from laura.results.errors import EXIT_USER


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """What is merged, and where to."""

    base: str = argument(metavar="BASE")
    """The model the adapter is for."""
    adapter: Path = argument(metavar="ADAPTER", exists=True, file_okay=False)
    """Adapter folder."""
    out: Path = argument(metavar="OUT")
    """Folder for the merged model, or a file NAME.gguf."""
    converter: Path | None = option(
        envvar="LAURA_GGUF_CONVERTER", metavar="PATH", show_default="the one on PATH"
    )
    """For a GGUF file: llama.cpp's convert_hf_to_gguf.py, or the folder it is in."""
    device: str | None = option(**DEVICE)


def merge(console: Console, options: MergeOptions) -> None:
    """Add an adapter's updates into the weights.

    Saves a model that needs no adapter, and says how far the merged model's
    logits are from the adapter's. A GGUF file is written by llama.cpp's own
    converter, in float32; llama-quantize makes it smaller.

    \b
    Example:
      laura merge smollm2-135m-instruct-q4 studies/demo/runs/ID/checkpoints/STEP merged
      laura merge smollm2-135m-instruct-q4 ADAPTER tuned.gguf --converter llama.cpp
    """
    from laura.study.workbench import merge_adapter

    answer = merge_adapter(**vars(options), progress=console.progress)
    lines = (
        f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in answer.items()
    )
    console.answer(answer, "\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class SignOptions:
    """What is signed, and by whom."""

    adapter: Path = argument(metavar="ADAPTER", exists=True, file_okay=False)
    """Adapter folder."""
    key: Path = option(default=MISSING, metavar="PRIVATE.pem")
    """Private key, on the curve P-256, P-384 or P-521."""


def sign(console: Console, options: SignOptions) -> None:
    """Sign an adapter's files and its record.

    Writes model.sig beside them, in the format of OpenSSF's model signing. `laura serve` and
    `laura gate` check it with --require-signature.

    \b
    Example:
      laura sign best --key private.pem
    """
    from laura.models.signatures import SIGNATURE, sign_folder

    signed = sign_folder(options.adapter, options.key)
    file = options.adapter / SIGNATURE
    words = f"{file} signs {len(signed)} files: {', '.join(signed)}"
    console.answer({"signature": str(file), "sha256": signed}, words)


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What is pushed, and where to."""

    folder: Path = argument(metavar="FOLDER", exists=True, file_okay=False)
    """Folder of an adapter or a whole model."""
    repository: str = argument(metavar="REPO")
    """OWNER/NAME on the Hub."""
    public: bool = option(default=False)
    """Let all read a repository that is new; by default it is private."""


def push(console: Console, options: PushOptions) -> None:
    """Put an adapter or a model onto the Hub, with its card.

    \b
    Example:
      laura push best our-org/support-lora
    """
    from laura.models.push import push as upload

    address = upload(**vars(options), progress=console.progress)
    console.answer({"url": address}, address)


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """What is fetched."""

    name: str = argument(metavar="NAME")
    """Name in the registry, or Hub id."""


def fetch(console: Console, options: FetchOptions) -> None:
    """Get a named model, with checksum.

    \b
    Example:
      laura fetch smollm2-135m-instruct-q4
    """
    from laura.models.fetch import fetch as fetch_model

    name, folder = options.name, fetch_model(options.name, console.progress)
    console.answer({"name": name, "folder": str(folder)}, f"{name} is at {folder}")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What is looked at besides."""

    network: bool = option(default=False)
    """Also ask whether the Hub can be reached."""
    vllm: str | None = option(metavar="BASE")
    """Also start vLLM with this base, and ask it and made-up adapters alone and together; a
    minute or two."""
    data_dir: Path | None = option(**DATA)


def doctor(console: Console, options: DoctorOptions) -> int | None:
    """Say what this machine can do and what is missing.

    Exits with 2 when something that every comparison needs is missing.

    \b
    Example:
      laura doctor --network
    """
    from laura.cli.doctor import examine

    findings = examine(**vars(options))
    usable = not any(finding.state == "missing" for finding in findings)
    value = {"usable": usable, "findings": [vars(finding) for finding in findings]}
    console.answer(value, "\n".join(finding.text() for finding in findings))
    return None if usable else EXIT_USER


def schema(console: Console) -> None:
    """Print the JSON Schema of a recipe, for editors.

    \b
    Example:
      laura schema > recipe.schema.json
      Then write this into the first line of a recipe:
      # yaml-language-server: $schema=recipe.schema.json
    """
    import json

    from laura.recipe.reading import recipe_schema

    text = recipe_schema()
    console.answer(json.loads(text), text)
