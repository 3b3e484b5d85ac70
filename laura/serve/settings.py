"""What whoever starts the server decides. No torch, no web framework."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from laura.results.errors import UsageError
from laura.serve.vllm_arguments import FORMAT, NO_ARGUMENTS, OPTION, VllmArguments

LOOPBACK = "127.0.0.1"
EngineName = Literal["inprocess", "vllm"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of the HTTP server; sizes in bytes, times in seconds."""

    base: str
    """Name of the base in `/v1/models` and in requests."""
    host: str = LOOPBACK
    """Address to listen at."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    body_bytes: int = 4 << 20
    """Largest body of a request."""
    body_seconds: float = 30.0
    """A body must have come whole within this time."""
    request_seconds: float = 600.0
    """An answer must have been given whole within this time, waiting included."""
    heartbeat_seconds: float = 10.0
    """A stream in which nothing happens says that it lives this often."""
    grace_seconds: float = 30.0
    """A stopping server lets running answers go on for this long."""
    default_new_tokens: int = 512
    """Most new tokens of a chat's answer that names no limit itself."""
    prompt_tokens: int | None = None
    """Longest prompt; None for as much as the model reads."""
    new_tokens: int | None = None
    """Most new tokens that may be asked for; None for as much as the model reads."""
    sequences: int = 128
    """Most answers of one request: prompts times n."""


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


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a server that listens at this address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, has_tenants: bool) -> None:
    """Refuse to open a server without keys to other machines.

    Raises:
        UsageError: the address is no loopback address and there is no tenants file.
    """
    if not has_tenants and not is_loopback(host):
        raise UsageError(
            f"--host {host} would let other machines in, and without --tenants FILE nobody needs "
            f"a key. Make keys with `laura tenants add NAME --file tenants.yaml`, or leave --host "
            f"out to serve this machine alone ({LOOPBACK})"
        )
