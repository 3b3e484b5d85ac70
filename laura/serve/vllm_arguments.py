"""Arguments of vLLM's own that whoever starts the server adds. No torch.

What Laura sets itself cannot be given: two answers to the same question would let one of
them lose silently. A few that Laura must know of as well are understood here: how long a
text may be, the number format, and how many sequences are in work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from laura.results.errors import UsageError

OPTION = "--vllm-argument"
_SOCKET = "vLLM listens on a private socket with a random key; --host and --port are the door's"
_SAMPLING = "answers are drawn as the request says, and by nothing else"
_TEXT = "texts become tokens in Laura, by the base's own tokenizer"
_PROMPTS = "prompts and answers are never logged"
_ONE = "one server has to know every adapter; start further replicas instead"
_ADAPTERS = "adapters come from --adapters, after they were checked"
_POSITIONS = "the base's config.json says it; the longest text is max-model-len"
# What may not be given, and why or what to use instead.
REFUSED = {
    "host": _SOCKET,
    "port": _SOCKET,
    "uds": _SOCKET,
    "api-key": _SOCKET,
    "ssl-keyfile": _SOCKET,
    "ssl-certfile": _SOCKET,
    "ssl-ca-certs": _SOCKET,
    "ssl-cert-reqs": _SOCKET,
    "ssl-ciphers": _SOCKET,
    "enable-ssl-refresh": _SOCKET,
    "root-path": _SOCKET,
    "grpc": _SOCKET,
    "grpc-port": _SOCKET,
    "model": "the model is BASE",
    "served-model-name": "clients know the base by its own name",
    "tokenizer": _TEXT,
    "skip-tokenizer-init": _TEXT,
    "hf-overrides": _POSITIONS,
    "enable-lora": _ADAPTERS,
    "lora-modules": _ADAPTERS,
    "default-mm-loras": _ADAPTERS,
    "lora-target-modules": "adapters may change every map of the layers",
    "max-lora-rank": "use --max-rank",
    "max-loras": "use --slots",
    "max-cpu-loras": "use --slots",
    "generation-config": _SAMPLING,
    "override-generation-config": _SAMPLING,
    "logits-processors": _SAMPLING,
    "logprobs-mode": "log-probabilities are the model's own",
    "tokens-only": "Laura asks for completions",
    "enable-prompt-tokens-details": "Laura counts what came from the cache",
    "disable-log-stats": "the numbers are at /metrics",
    "disable-uvicorn-access-log": "the door logs requests",
    "enable-log-requests": _PROMPTS,
    "enable-log-outputs": _PROMPTS,
    "enable-log-deltas": _PROMPTS,
    "api-server-count": _ONE,
    "headless": _ONE,
    "config": "a file could set what Laura sets; give each argument by itself",
}
LENGTH, FORMAT, RUNNING = "max-model-len", "dtype", "max-num-seqs"
FORMATS = {
    "float32": "float32",
    "float": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "half": "float16",
}
AUTOMATIC = ("auto", "-1")


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


def read_arguments(given: Sequence[str]) -> VllmArguments:
    """Sort what was given as NAME=VALUE, or as NAME for an argument without a value.

    Args:
        given: As on the command line. Hyphens before a name do not matter, and underscores
            in it are hyphens.

    Raises:
        UsageError: with every fault.
    """
    faults, found = list[str](), dict[str, str | None]()
    for text in given:
        name, equals, value = text.partition("=")
        name = _plain(name)
        fault = "came twice; give it once" if name in found else _fault(name)
        if fault:
            faults.append(f"{OPTION} {text}: {fault}")
        found[name] = value if equals else None
    known: dict[str, Any] = {}
    for name, reader in UNDERSTOOD.items():
        if name in found:
            value = found.pop(name) or ""
            known[name] = reader(value)
            if known[name] is None:
                faults.append(f"{OPTION} {name}={value}: {WANTED[name]}")
    if faults:
        raise UsageError("; ".join(faults))
    words = (f"--{name}" if value is None else f"--{name}={value}" for name, value in found.items())
    return VllmArguments(tuple(words), known.get(FORMAT), known.get(LENGTH), known.get(RUNNING))


def _plain(name: str) -> str:
    """A name as vLLM's help writes it; behind a dot comes a key of a JSON value."""
    first, dot, keys = name.strip().lstrip("-").partition(".")
    return first.replace("_", "-") + dot + keys


def _fault(name: str) -> str:
    """What speaks against an argument; empty for nothing."""
    first = name.partition(".")[0]
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", first):
        return "give NAME=VALUE, such as tensor-parallel-size=2, or NAME alone for a switch"
    first = first.removeprefix("no-")
    if first in REFUSED:
        return f"Laura sets this itself; {REFUSED[first]}"
    # vLLM takes the beginning of a name for the name.
    longer = [one for one in (*REFUSED, *UNDERSTOOD) if one.startswith(first) and one != first]
    return f"write names out; this is the beginning of {longer[0]}" if longer else ""


def _length(value: str) -> int | None:
    return 0 if value in AUTOMATIC else _count(value)


def _count(value: str) -> int | None:
    return int(value) if re.fullmatch(r"[1-9][0-9]{0,8}", value) else None


# None for what is no such value.
UNDERSTOOD: dict[str, Callable[[str], Any]] = {
    LENGTH: _length,
    FORMAT: FORMATS.get,
    RUNNING: _count,
}
WANTED = {
    LENGTH: "give a whole number of tokens, or auto for as many as there is memory for",
    FORMAT: f"allowed are {', '.join(FORMATS)}; leave it out for what suits the device",
    RUNNING: "give a whole number of sequences",
}
