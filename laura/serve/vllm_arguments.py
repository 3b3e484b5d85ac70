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
# What may not be given, by why or what to use instead.
_REASONS = {
    "Laura speaks with vLLM through pipes; --host and --port are the door's": (
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
