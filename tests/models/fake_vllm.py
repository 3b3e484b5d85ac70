"""What the worker uses of vLLM: the tests copy it to a folder as the package `vllm`.

A step makes one token of every request in the batch, the latest first, so that answers come
out of order. With FAKE_VLLM_MODEL set the answers are transformers' own; else a token follows
from the tokens before it and from a number that each adapter's weights give (the base's is 0),
so a test knows every answer and sees who gave it. What was chosen after some tokens by some
name is kept, as vLLM keeps keys and values, until that is reset.

FAKE_VLLM names a folder. `faults.json` in it is read again and again and says how to
misbehave; `log.jsonl` tells what happened. Faults:
    version     what it calls itself
    gpu         it computes on no processor: base and adapters may share a batch
    exit        ends at its start, with an error
    slow        seconds before it is ready
    refuse      adapters are not loaded
    stuck       weights are not exchanged, memory is not given back
    unwanted    requests are not taken
    die_after   steps until it kills itself
    raise_after steps until one fails
    mute        a step does not come back
    reason      with which requests end, at once
    reads       most tokens of a text, where as many were wanted as there is memory for
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VERSION = "0.32.1.dev3"
END, FIRST, COUNT = 2, 3, 370
STEP_SECONDS = 0.002
PLACE = Path(os.environ.get("FAKE_VLLM", "."))


def faults() -> dict[str, Any]:
    try:
        return dict(json.loads((PLACE / "faults.json").read_text()))
    except FileNotFoundError:
        return {}


def log(**what: Any) -> None:
    with (PLACE / "log.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\n")


def shift_of(b_sum: float) -> int:
    """The number of an adapter, from the sum of all its B matrices."""
    return 1 + int(abs(b_sum) * 1000) % 9973


def next_token(tokens: list[int], shift: int) -> int:
    """What follows: often the end token, after every run of about twenty."""
    value = sum((i + 1) * token for i, token in enumerate(tokens[-4:])) * 7 + shift * 13
    return END if value % 23 == 5 else FIRST + (value + len(tokens)) % COUNT


def nats(tokens: list[int], token: int, shift: int) -> float:
    """Log-probability of a token after others."""
    value = (sum(tokens[-3:]) + 31 * token + 17 * shift) % 1009
    return -0.01 - value / 100


class Arithmetic:
    """Answers without a model."""

    def load(self, folder: str) -> int:
        from safetensors.numpy import load_file

        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        return shift_of(
            sum(float(v.sum()) for key, v in sorted(tensors.items()) if "lora_B" in key)
        )

    def scores(self, before: list[int], token: int, adapter: Any, count: int) -> dict[int, Any]:
        """The token and the likeliest others of a few."""
        likely = sorted(range(FIRST, FIRST + 50), key=lambda one: -nats(before, one, adapter or 0))
        found = [token, *likely[:count]]
        return {one: SimpleNamespace(logprob=nats(before, one, adapter or 0)) for one in found}

    def read(self, prompt: list[int], adapter: Any, count: int) -> list[dict[int, Any]]:
        """The scores of a prompt's tokens, from the second one on."""
        places = range(1, len(prompt))
        return [self.scores(prompt[:i], prompt[i], adapter, count) for i in places]

    def choose(self, tokens: list[int], adapter: Any, request: Request) -> int:
        return next_token(tokens, adapter or 0)

    def text(self, tokens: list[int]) -> str:
        raise NotImplementedError


class Transformers:
    """Answers of a model folder; adapters by PEFT."""

    def __init__(self, arguments: EngineArgs) -> None:
        import torch
        from transformers import AutoTokenizer

        self.arguments, self.dtype = arguments, getattr(torch, arguments.dtype)
        self.folder = arguments.model
        self.tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        self.base = self.plain()

    def plain(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.dtype, attn_implementation="eager"
        ).eval()

    def exchange(self, folder: str) -> None:
        """As vLLM 0.32 does on a processor: an output map that is the embedding too stays."""
        self.folder, before = folder, self.base.lm_head.weight
        self.base = self.plain()
        if self.base.config.tie_word_embeddings:
            self.base.lm_head.weight = before

    def load(self, folder: str) -> Any:
        from peft import PeftConfig, PeftModel

        config = PeftConfig.from_pretrained(folder)
        assert config.r <= self.arguments.max_lora_rank
        assert set(config.target_modules) <= set(self.arguments.lora_target_modules)
        return PeftModel.from_pretrained(self.plain(), folder).eval()

    def logits(self, tokens: list[int], adapter: Any) -> Any:
        import torch

        with torch.no_grad():
            return (adapter or self.base)(torch.tensor([tokens])).logits[0].float()

    def scores(self, before: list[int], token: int, adapter: Any, count: int) -> dict[int, Any]:
        return self.listed(self.logits(before, adapter)[-1], token, count)

    def listed(self, logits: Any, token: int, count: int) -> dict[int, Any]:
        found = logits.log_softmax(-1)
        best = found.topk(count).indices.tolist()
        return {i: SimpleNamespace(logprob=float(found[i])) for i in (token, *best)}

    def read(self, prompt: list[int], adapter: Any, count: int) -> list[dict[int, Any]]:
        rows = zip(self.logits(prompt, adapter), prompt[1:], strict=False)
        return [self.listed(row, token, count) for row, token in rows]

    def choose(self, tokens: list[int], adapter: Any, request: Request) -> int:
        import torch

        params, logits = request.params, self.logits(tokens, adapter)[-1]
        if params.temperature == 0:
            return int(logits.argmax())
        if request.draws is None:
            request.draws = torch.Generator().manual_seed(params.seed or 0)
        shares, order = (logits / params.temperature).softmax(-1).sort(descending=True)
        if params.top_k:
            shares[params.top_k :] = 0
        shares[shares.cumsum(-1) - shares > params.top_p] = 0
        return int(order[torch.multinomial(shares, 1, generator=request.draws)])

    def text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))


class RequestOutputKind(Enum):
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class StructuredOutputsParams:
    """Of a pattern only the length is kept to here."""

    json: str | None = None
    regex: str | None = None


@dataclass
class SamplingParams:
    max_tokens: int
    temperature: float
    detokenize: bool
    output_kind: RequestOutputKind
    prompt_logprobs: int | None = None
    logprobs: int | None = None
    stop: list[str] = field(default_factory=list)
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    min_tokens: int = 0
    skip_special_tokens: bool = True
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    structured_outputs: StructuredOutputsParams | None = None


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class EngineArgs:
    model: str
    dtype: str
    max_model_len: int
    hf_overrides: dict[str, Any]
    max_num_seqs: int
    generation_config: str
    disable_log_stats: bool
    enforce_eager: bool
    kv_cache_memory_bytes: int | None
    tensor_parallel_size: int
    max_num_batched_tokens: int = 2048
    enable_lora: bool = False
    max_lora_rank: int = 16
    max_loras: int = 1
    max_cpu_loras: int | None = None
    enable_sleep_mode: bool = False
    gpu_memory_utilization: float = 0.9
    lora_target_modules: list[str] = field(default_factory=list)
    structured_outputs_config: str | None = None

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser.add_argument("--dtype")
        parser.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
        parser.add_argument("--kv-cache-memory-bytes", type=int)
        parser.add_argument("--tensor-parallel-size", type=int, default=1)
        parser.add_argument("--structured-outputs-config")
        return parser

    @classmethod
    def from_cli_args(cls, given: argparse.Namespace) -> EngineArgs:
        return cls(**vars(given))


def tokens_input(token_ids: list[int], *, cache_salt: str | None = None) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": token_ids, "cache_salt": cache_salt}


@dataclass
class Request:
    number: str
    prompt: list[int]
    params: SamplingParams
    lora: LoRARequest | None
    tokens: list[int] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    read: list[Any] | None = None
    draws: Any = None

    @property
    def name(self) -> str:
        return self.lora.lora_name if self.lora else "base"


class LLMEngine:
    def __init__(self, arguments: EngineArgs) -> None:
        assert arguments.generation_config == "vllm"
        assert arguments.max_num_seqs <= arguments.max_num_batched_tokens
        assert arguments.max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        length, wrong = arguments.max_model_len, faults()
        if "max_position_embeddings" in arguments.hf_overrides:
            assert arguments.hf_overrides["max_position_embeddings"] >= length
        log(
            start=vars(arguments), pid=os.getpid(), temporary=tempfile.gettempdir(),
            visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        )  # fmt: skip
        if wrong.get("exit"):
            print("ERROR 11-25 [core.py:1] ValueError: no memory left for it", file=sys.stderr)
            sys.exit(3)
        time.sleep(wrong.get("slow", 0))
        self.arguments, self.done = arguments, 0
        self.model_config = SimpleNamespace(
            max_model_len=wrong.get("reads", 512) if length == -1 else length
        )
        self.model: Any = Arithmetic()
        if os.environ.get("FAKE_VLLM_MODEL"):
            self.model = Transformers(arguments)
        self.adapters: dict[int, Any] = {}
        self.kept: dict[Any, int] = {}
        self.asleep = False
        self.waiting: list[Request] = []
        self.batch: list[Request] = []
        self.logged: list[str] = []
        # Like vLLM's own: it goes with a worker that ends, and outlives a killed one.
        core = multiprocessing.get_context("spawn").Process(
            target=time.sleep, args=(300,), name="EngineCore", daemon=True
        )
        core.start()
        log(core=core.pid)

    @classmethod
    def from_engine_args(cls, arguments: EngineArgs) -> LLMEngine:
        return cls(arguments)

    def add_lora(self, lora: LoRARequest) -> bool:
        if faults().get("refuse"):
            raise RuntimeError("Call to add_lora method failed: as told")
        self.adapters[lora.lora_int_id] = self.model.load(lora.lora_path)
        log(load=lora.lora_name, folder=lora.lora_path, loaded=len(self.adapters))
        return True

    def remove_lora(self, number: int) -> bool:
        log(unload=number)
        del self.adapters[number]
        return True

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        assert method == "reload_weights" and not self.asleep
        if faults().get("stuck"):
            raise RuntimeError("no such weights")
        self.model.exchange(kwargs["weights_path"])
        log(weights=kwargs["weights_path"])

    def reset_prefix_cache(self) -> bool:
        self.kept.clear()
        return True

    def sleep(self, level: int) -> None:
        assert self.arguments.enable_sleep_mode and level == 1 and not self.asleep
        assert not self.has_unfinished_requests()
        if faults().get("stuck"):
            raise RuntimeError("memory is held")
        self.asleep = True
        self.kept.clear()
        log(asleep=True)

    def wake_up(self) -> None:
        assert self.asleep
        self.asleep = False
        log(asleep=False)

    def add_request(
        self, number: str, prompt: Any, params: SamplingParams, lora_request: Any = None
    ) -> None:
        assert not self.asleep
        length = len(prompt["prompt_token_ids"])
        if length + params.max_tokens > self.model_config.max_model_len:
            raise ValueError(f"{length} tokens are too many")
        if faults().get("unwanted"):
            raise RuntimeError("as told")
        assert lora_request is None or lora_request.lora_int_id in self.adapters
        log(add=number, salt=prompt["cache_salt"])
        self.waiting.append(Request(number, prompt["prompt_token_ids"], params, lora_request))

    def abort_request(self, numbers: list[str]) -> None:
        for request in [*self.waiting, *self.batch]:
            if request.number in numbers:
                log(abort=request.name, new=len(request.tokens))
                (self.waiting if request in self.waiting else self.batch).remove(request)

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting or self.batch)

    def step(self) -> list[Any]:
        wrong = faults()
        self.done += 1
        if self.done > wrong.get("die_after", self.done):
            print("no memory left for it", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.done > wrong.get("raise_after", self.done):
            raise RuntimeError("the engine core is dead")
        while faults().get("mute"):
            time.sleep(0.05)
        free = self.arguments.max_num_seqs - len(self.batch)
        self.batch, self.waiting = self.batch + self.waiting[:free], self.waiting[free:]
        names = sorted({request.name for request in self.batch})
        if names != self.logged:
            log(batch=names)
            self.logged = names
        time.sleep(STEP_SECONDS)
        told = [self.write(request, wrong) for request in reversed(self.batch)]
        ended = {output.request_id for output in told if output and output.finished}
        self.batch = [request for request in self.batch if request.number not in ended]
        return [output for output in told if output]

    def write(self, request: Request, wrong: dict[str, Any]) -> Any:
        """One new token; and all of a prompt's scores beside the first."""
        params, prompt, lora = request.params, request.prompt, request.lora
        if not wrong.get("gpu"):
            # What vLLM 0.32 does on a processor: beside an adapter, the base answers as the last.
            lora = lora or next((other.lora for other in self.batch[::-1] if other.lora), None)
        adapter = self.adapters[lora.lora_int_id] if lora else None
        if params.prompt_logprobs is not None and not request.tokens:
            request.read = [None, *self.model.read(prompt, adapter, params.prompt_logprobs)]
        tokens = [*prompt, *request.tokens]
        chosen = (lora and lora.lora_name, *tokens)
        if params.temperature == 0 and chosen in self.kept:
            token = self.kept[chosen]
        else:
            token = self.kept[chosen] = self.model.choose(tokens, adapter, request)
        if params.structured_outputs is not None:
            assert json.loads(self.arguments.structured_outputs_config)["backend"] == "guidance"
            held = params.structured_outputs.regex
            token = FIRST if len(request.tokens) < len(held) else END
        if len(request.tokens) < params.min_tokens and token in params.stop_token_ids:
            token = FIRST
        request.tokens.append(token)
        if params.logprobs is not None:
            request.scores.append(self.model.scores(tokens, token, adapter, params.logprobs))
        assert params.ignore_eos or params.max_tokens == 1
        stopped = token in params.stop_token_ids or (
            params.detokenize and any(s in self.model.text(request.tokens) for s in params.stop)
        )
        reason = "stop" if stopped else None
        if not stopped and len(request.tokens) == params.max_tokens:
            reason = "length"
        return output(request, wrong.get("reason", reason))


def output(request: Request, reason: str | None) -> Any:
    """What vLLM tells of a request after a step; three tokens are said to come from a cache."""
    delta = request.params.output_kind is RequestOutputKind.DELTA
    if not delta and reason is None:
        return None
    first = -1 if delta else 0
    new = SimpleNamespace(
        token_ids=request.tokens[first:],
        finish_reason=reason,
        logprobs=request.scores[first:] if request.params.logprobs is not None else None,
    )
    read = request.read
    if delta and read:
        request.read = []
    return SimpleNamespace(
        request_id=request.number,
        finished=reason is not None,
        prompt_token_ids=request.prompt,
        prompt_logprobs=read,
        num_cached_tokens=min(3, len(request.prompt)),
        outputs=[new],
    )


if __name__ == "vllm":
    FlexibleArgumentParser = argparse.ArgumentParser
    current_platform = SimpleNamespace(is_cpu=lambda: not faults().get("gpu"))
    __version__ = importlib.import_module("vllm._version").__version__
    print("libraries print what they like")
    assert importlib.util.find_spec("vllm_worker") is None, "the worker's folder is searched"
    # The worker looks for parts in these modules; here they are all the same one.
    for name in (
        "inputs", "lora.request", "platforms", "sampling_params", "utils.argparse_utils"
    ):  # fmt: skip
        sys.modules[f"vllm.{name}"] = sys.modules[__name__]
