"""What whoever starts the server decides. No torch, no web framework.

Arguments of vLLM's own may be added. What Laura sets itself cannot be given: two answers to the
same question would let one of them lose silently. A few that Laura must know of as well are
understood here: how long a text may be, the number format, and how many sequences are in work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from laura.results.errors import UsageError

LOOPBACK = "127.0.0.1"
EngineName = Literal["inprocess", "vllm", "pool"]
Precision = Literal["auto", "fp32", "bf16"]


OPTION = "--vllm-argument"
# What may not be given, by why or what to use instead.
_REASONS = {
    "Laura speaks with vLLM through pipes; --host and --port are Laura's server's": (
        "host port uds api-key ssl-keyfile ssl-certfile ssl-ca-certs ssl-cert-reqs ssl-ciphers "
        "enable-ssl-refresh root-path grpc grpc-port disable-uvicorn-access-log "
        "enable-prompt-tokens-details tokens-only"
    ),
    "the model is BASE": "model",
    "clients know the base by its own name": "served-model-name",
    "texts become tokens in Laura, by the base's own tokenizer": "tokenizer skip-tokenizer-init",
    "the base's config.json says it; the longest text is max-model-len": "hf-overrides",
    "adapters come from --adapters, after they were checked": (
        "enable-lora lora-modules default-mm-loras"
    ),
    "adapters may change every map of the layers": "lora-target-modules",
    "use --max-rank": "max-lora-rank",
    "use --slots": "max-loras max-cpu-loras",
    "answers are drawn as the request says, and by nothing else": (
        "generation-config override-generation-config logits-processors"
    ),
    "log-probabilities are the model's own": "logprobs-mode",
    "the code of a model folder is never run": "trust-remote-code",
    "the numbers are at /metrics": "disable-log-stats",
    "prompts and answers are never logged": (
        "enable-log-requests enable-log-outputs enable-log-deltas"
    ),
    "one engine has to know every adapter; start further replicas instead": (
        "api-server-count headless"
    ),
    "a file could set what Laura sets; give each argument by itself": "config",
}
REFUSED = {name: reason for reason, names in _REASONS.items() for name in names.split()}
LENGTH, FORMAT, RUNNING = "max-model-len", "dtype", "max-num-seqs"
FORMATS = {
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
}


@dataclass(frozen=True)
class VllmArguments:
    """What was added, sorted.

    Attributes:
        words: Handed on as they are.
        precision: float32, bfloat16 or float16; None where nothing was said.
        context_tokens: Most tokens of prompt and answer together; 0 for as many as there is
            memory for, None where nothing was said.
        most_running: Most sequences in work; None where nothing was said.
    """

    words: tuple[str, ...] = ()
    precision: str | None = None
    context_tokens: int | None = None
    most_running: int | None = None


NO_ARGUMENTS = VllmArguments()


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Settings of the HTTP server; sizes in bytes, times in seconds."""

    base: str
    """Name of the base in `/v1/models` and in requests."""
    host: str = LOOPBACK
    """Address to listen at."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    connections: int = 1000
    """Most connections at once; fewer where the process may not open so many files."""
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
    cors_origins: tuple[str, ...] = ()
    """Sites whose pages may ask from a browser, as browsers write them: http://host:port."""

    def __post_init__(self) -> None:
        """Refuse what no browser would send, and all sites at once."""
        for origin in self.cors_origins:
            if not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", origin):
                raise UsageError(
                    f"--cors-origin {origin}: give one site as browsers write it, such as "
                    "https://app.example or http://localhost:3000, in small letters and without "
                    "a path"
                )


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What is served, and with how much of the machine.

    Attributes:
        base: Registry name, folder, GGUF file or Hub id.
        kind: In this process, a vLLM server that is started, or a pool of engines elsewhere.
        slots: Adapters in memory at the same time; 0 where none is served.
        max_rank: Largest rank of an adapter.
        queue: Most sequences that wait.
        precision: fp32, bf16, or auto for what suits the device.
        device: As in `laura evaluate`; None for the best.
        drafts: Whether answers are drafted ahead.
        arguments: Further ones of vLLM's server.
        backends: Addresses of the pool's engines, http://HOST:PORT.
        key: That they want.

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
    backends: tuple[str, ...] = ()
    key: str = field(default="", repr=False)

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


def read_arguments(given: Sequence[str]) -> VllmArguments:
    """Sort what was given as NAME=VALUE, or as NAME for an argument without a value.

    Args:
        given: As on the command line. Hyphens before a name do not matter, and underscores
            in it are hyphens.

    Raises:
        UsageError: with every fault.
    """
    faults, words, known, seen = list[str](), list[str](), dict[str, Any](), set[str]()
    for text in given:
        name, equals, value = text.partition("=")
        # As vLLM's help writes it; behind a dot comes a key of a JSON value.
        first, dot, keys = name.strip().lstrip("-").partition(".")
        first = first.replace("_", "-")
        name = first + dot + keys
        if name in seen:
            faults.append(f"{OPTION} {text}: came twice; give it once")
        elif fault := _fault(first):
            faults.append(f"{OPTION} {text}: {fault}")
        elif name in UNDERSTOOD:
            reader, wanted = UNDERSTOOD[name]
            known[name] = reader(value)
            if known[name] is None:
                faults.append(f"{OPTION} {name}={value}: {wanted}")
        else:
            words.append(f"--{name}{equals}{value}")
        seen.add(name)
    if faults:
        raise UsageError("; ".join(faults))
    return VllmArguments(tuple(words), known.get(FORMAT), known.get(LENGTH), known.get(RUNNING))


def _fault(first: str) -> str:
    """What speaks against an argument of this name; empty for nothing."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", first):
        return "give NAME=VALUE, such as tensor-parallel-size=2, or NAME alone for a switch"
    first = first.removeprefix("no-")
    if first in REFUSED:
        return f"Laura sets this itself; {REFUSED[first]}"
    # vLLM takes the beginning of a name for the name.
    longer = [one for one in (*REFUSED, *UNDERSTOOD) if one.startswith(first) and one != first]
    return f"write names out; this is the beginning of {longer[0]}" if longer else ""


def _count(value: str) -> int | None:
    return int(value) if re.fullmatch(r"[1-9][0-9]{0,8}", value) else None


# How a value is read, with None for what is none, and what to give instead.
UNDERSTOOD: dict[str, tuple[Callable[[str], Any], str]] = {
    LENGTH: (
        lambda value: 0 if value in ("auto", "-1") else _count(value),
        "give a whole number of tokens, or auto for as many as there is memory for",
    ),
    FORMAT: (
        FORMATS.get,
        f"allowed are {', '.join(FORMATS)}; leave it out for what suits the device",
    ),
    RUNNING: (_count, "give a whole number of sequences"),
}
