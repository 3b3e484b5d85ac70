"""What the worker uses of vLLM, over transformers: the tests copy it to a folder as `vllm`.

Requests are answered one a step, the latest first, so that answers come out of order. The
environment variable FAKE_VLLM names a fault: "old", "die", "raise", "hang", "abort" or
"none"; it then answers without a model.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any

FAULT = os.environ.get("FAKE_VLLM", "")
__version__ = "0.31.4" if FAULT == "old" else "0.32.1.dev3"
print("libraries print what they like")
assert importlib.util.find_spec("gguf_tokenizer") is None, "the worker's folder is searched"
# The worker looks for parts in these modules; here they are all the same one.
for name in ("inputs", "lora.request", "platforms", "sampling_params"):
    sys.modules[f"vllm.{name}"] = sys.modules[__name__]

current_platform = SimpleNamespace(is_cpu=lambda: True)


class RequestOutputKind(Enum):
    FINAL_ONLY = 2


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
    skip_special_tokens: bool = True
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


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
    max_num_batched_tokens: int
    max_num_seqs: int
    generation_config: str
    disable_log_stats: bool
    enforce_eager: bool
    kv_cache_memory_bytes: int
    enable_lora: bool = False
    max_lora_rank: int = 16
    max_loras: int = 1
    lora_target_modules: list[str] | None = None


def tokens_input(token_ids: list[int]) -> dict[str, Any]:
    return {"type": "token", "prompt_token_ids": token_ids}


class LLMEngine:
    def __init__(self, arguments: EngineArgs) -> None:
        assert arguments.generation_config == "vllm" and arguments.enforce_eager
        assert arguments.max_num_seqs <= arguments.max_num_batched_tokens
        assert arguments.max_lora_rank in (1, 8, 16, 32, 64, 128, 256, 320, 512)
        assert arguments.hf_overrides["max_position_embeddings"] >= arguments.max_model_len
        self.arguments = arguments
        if not FAULT:
            self.load(arguments)
        self.waiting: list[tuple[Any, ...]] = []
        self.done = 0
        # Like vLLM's own processes: they go with a worker that ends, and outlive a killed one.
        self.helper = subprocess.Popen(["sleep", "300"])
        atexit.register(self.helper.kill)
        print("helper", self.helper.pid, file=sys.stderr, flush=True)

    def load(self, arguments: EngineArgs) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(arguments.model)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            arguments.model, dtype=getattr(torch, arguments.dtype), attn_implementation="eager"
        ).eval()

    @classmethod
    def from_engine_args(cls, arguments: EngineArgs) -> LLMEngine:
        return cls(arguments)

    def add_request(
        self, number: str, prompt: Any, params: SamplingParams, lora_request: Any = None
    ) -> None:
        length = len(prompt["prompt_token_ids"])
        if length + params.max_tokens > self.arguments.max_model_len:
            raise ValueError(f"{length} tokens are too many")
        self.waiting.append((number, prompt["prompt_token_ids"], params, lora_request))

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        if self.done and FAULT == "die":
            print("no memory left for it", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if self.done and FAULT == "raise":
            raise RuntimeError("the engine core is dead")
        if self.done and FAULT == "hang":
            time.sleep(300)
        self.done += 1
        number, prompt, params, lora = self.waiting.pop()
        # What vLLM 0.32 does on a processor: beside an adapter, the base answers as the last one.
        lora = lora or next((other for *_, other in reversed(self.waiting) if other), None)
        if FAULT:
            nats = [None, *({token: SimpleNamespace(logprob=-1.0)} for token in prompt[1:])]
            reason = "abort" if FAULT == "abort" else "length"
            return [finished(number, prompt, nats, [0], reason, None)]
        return [self.answer(number, prompt, params, lora)]

    def answer(self, number: str, prompt: list[int], params: SamplingParams, lora: Any) -> Any:
        model = self.model if lora is None else self.with_adapter(lora)
        prompt_logprobs = None
        if params.prompt_logprobs is not None:
            rows = logits_of(model, prompt).log_softmax(-1)
            prompt_logprobs = [None, *map(listed, rows, prompt[1:])]
        tokens, reason, entries = self.continuation(model, prompt, params)
        return finished(
            number,
            prompt,
            prompt_logprobs,
            tokens,
            reason,
            None if params.logprobs is None else entries,
        )

    def continuation(self, model: Any, prompt: list[int], params: SamplingParams) -> Any:
        import torch

        assert params.ignore_eos or params.max_tokens == 1
        draws = torch.Generator().manual_seed(params.seed or 0)
        tokens: list[int] = []
        entries = []
        while True:
            logits = logits_of(model, prompt + tokens)[-1]
            token = int(choose(logits, params, draws))
            tokens.append(token)
            entries.append(listed(logits.log_softmax(-1), token))
            text = self.tokenizer.decode(tokens, skip_special_tokens=params.skip_special_tokens)
            if token in params.stop_token_ids or any(stop in text for stop in params.stop):
                return tokens, "stop", entries
            if len(tokens) == params.max_tokens:
                return tokens, "length", entries

    def with_adapter(self, lora: LoRARequest) -> Any:
        from peft import PeftConfig, PeftModel
        from transformers import AutoModelForCausalLM

        assert self.arguments.enable_lora
        config = PeftConfig.from_pretrained(lora.lora_path)
        assert config.r <= self.arguments.max_lora_rank
        assert set(config.target_modules) <= set(self.arguments.lora_target_modules or ())
        plain = AutoModelForCausalLM.from_pretrained(
            self.arguments.model, attn_implementation="eager"
        )
        return PeftModel.from_pretrained(plain, lora.lora_path).eval()


def finished(
    number: str, prompt: list[int], read: Any, tokens: list[int], reason: str, entries: Any
) -> Any:
    new = SimpleNamespace(token_ids=tuple(tokens), finish_reason=reason, logprobs=entries)
    return SimpleNamespace(
        request_id=number,
        finished=True,
        prompt_token_ids=prompt,
        prompt_logprobs=read,
        outputs=[new],
    )


def logits_of(model: Any, tokens: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float()


def listed(nats: Any, token: int) -> dict[int, Any]:
    best = int(nats.argmax())
    return {i: SimpleNamespace(logprob=float(nats[i])) for i in (token, best)}


def choose(logits: Any, params: SamplingParams, draws: Any) -> Any:
    import torch

    if params.temperature == 0:
        return logits.argmax()
    shares, order = (logits / params.temperature).softmax(-1).sort(descending=True)
    if params.top_k:
        shares[params.top_k :] = 0
    shares[shares.cumsum(-1) - shares > params.top_p] = 0
    return order[torch.multinomial(shares, 1, generator=draws)]
