"""Everything that `laura serve` puts together before it listens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from laura.models.load import check_model_folder, resolve_model
from laura.results.errors import UsageError
from laura.results.progress import Progress
from laura.serve.bases import base_facts
from laura.serve.library import Library
from laura.serve.policy import Policy
from laura.serve.vllm_arguments import FORMAT, NO_ARGUMENTS, OPTION, VllmArguments

if TYPE_CHECKING:
    from laura.serve.engines import ServingEngine

EngineName = Literal["inprocess", "vllm"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What is served, and with how much of the machine.

    Attributes:
        base: Registry name, folder, GGUF file or Hub id.
        kind: In this process, or a vLLM server that is started.
        slots: Adapters in memory at the same time; 0 where none is served.
        max_rank: Largest rank of an adapter.
        queue: Most sequences that wait.
        precision: fp32, bf16, or auto for what suits the device.
        device: As in `laura evaluate`; None for the best.
        drafts: Whether answers are drafted ahead.
        arguments: Further ones of vLLM's server.

    Raises:
        UsageError: settings that are not for this kind, or say two things.
    """

    base: str
    kind: EngineName = "inprocess"
    slots: int = 16
    max_rank: int = 64
    queue: int = 512
    precision: Precision = "auto"
    device: str | None = None
    drafts: bool = True
    arguments: VllmArguments = NO_ARGUMENTS

    def __post_init__(self) -> None:
        """Refuse what would have no effect."""
        if self.kind == "inprocess" and self.arguments != NO_ARGUMENTS:
            raise UsageError(f"{OPTION} is for --engine vllm")
        if self.kind == "vllm" and self.device is not None:
            raise UsageError("--device is for --engine inprocess; vLLM chooses its device itself")
        if self.kind == "vllm" and not self.drafts:
            raise UsageError("--no-drafts is for --engine inprocess; vLLM drafts nothing by itself")
        if self.arguments.precision is not None and self.precision != "auto":
            raise UsageError(f"give either --precision or {OPTION} {FORMAT}, not both")


def model_name(base: str) -> str:
    """What clients call a base: its name, or the name of its folder or file."""
    path = Path(base).expanduser()
    return path.resolve().name.removesuffix(".gguf") if path.exists() else base


def open_base(base: str, progress: Progress) -> Path:
    """The base's folder, fetched or converted if need be.

    Raises:
        ModelError: nothing of this name, or an unusable folder.
        HubError: it must be downloaded and cannot be.
    """
    folder = resolve_model(base, progress=progress)
    check_model_folder(folder)
    return folder


def open_library(
    folder: Path, adapters: Path | None, settings: EngineSettings, policy: Policy, fingerprint: str
) -> Library:
    """The adapters of a folder that fit a base.

    Args:
        folder: The base's.
        adapters: Theirs; None for a server of the base alone.
        settings: Of the engine.
        policy: What their records must say.
        fingerprint: Hash of the base's weights.

    Raises:
        StoreError: the folder cannot be read.
    """
    base = base_facts(folder, model_name(settings.base), fingerprint)
    return Library(adapters, base, max_rank=settings.max_rank, policy=policy)


def open_engine(folder: Path, settings: EngineSettings) -> ServingEngine:
    """The engine, not started yet.

    Raises:
        UsageError: a device that there is not, or arguments that do not fit the base.
    """
    each = max(1, settings.queue // 2)  # no tenant may fill the queue alone
    if settings.kind == "vllm":
        from laura.serve.vllm import VllmServed

        return VllmServed(
            folder,
            precision=settings.precision,
            slots=settings.slots,
            max_rank=settings.max_rank,
            most_waiting=settings.queue,
            most_waiting_per_tenant=each,
            arguments=settings.arguments,
        )
    from laura.serve.inprocess import open_inprocess

    return open_inprocess(
        str(folder),
        device=settings.device,
        precision=settings.precision,
        slots=max(1, settings.slots),
        max_rank=settings.max_rank,
        drafts=settings.drafts,
        most_waiting=settings.queue,
        most_waiting_per_tenant=each,
    )
