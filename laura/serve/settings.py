"""What whoever starts the server decides. No torch, no web framework."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from laura.results.errors import UsageError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of the door; sizes in bytes, times in seconds."""

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
