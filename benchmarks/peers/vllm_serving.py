"""vLLM's side of `serving.py`, in an environment of its own; knows nothing of Laura.

vLLM answers a whole batch in one call of its engine's own Python interface; the time to the
first token comes from its own counters.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from serving_side import Way, carry_out, every_load

# Of the machine; what it takes of itself is nearly all, and it does not start beside others.
MEMORY_SHARE = 0.5


class Peer:
    """vLLM with all adapters known.

    Args:
        work: What `serving.py` wrote.
        way: Precision, adapters or base; nothing is drafted.
    """

    def __init__(self, work: dict[str, Any], way: Way) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.work, self.loras = work, []
        more: dict[str, Any] = {}
        if way.mixed:
            count = len(work["adapters"])
            more = {"enable_lora": True, "max_loras": count, "max_lora_rank": 16}
            self.loras = [
                LoRARequest(Path(folder).name, number + 1, folder)
                for number, folder in enumerate(work["adapters"])
            ]
        self.model = LLM(
            work["model"], dtype="float32" if way.precision == "fp32" else "bfloat16",
            max_model_len=1024, max_num_seqs=64, enforce_eager=True, seed=0,
            enable_prefix_caching=False, disable_log_stats=False,
            gpu_memory_utilization=MEMORY_SHARE, **more,
        )  # fmt: skip

    def together(self, prompts: list[list[int]]) -> dict[str, Any]:
        """One batch: seconds, new tokens, seconds until each first token."""
        from vllm import SamplingParams

        settings = SamplingParams(
            temperature=0.0, max_tokens=self.work["new_tokens"], ignore_eos=True
        )
        count = len(self.loras)
        loras = [self.loras[i % count] for i in range(len(prompts))] if count else None
        started = time.perf_counter()
        found = self.model.generate(
            [{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False,
            lora_request=loras,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "tokens": sum(len(one.outputs[0].token_ids) for one in found),
            "first": [_first(one, seconds) for one in found],
        }


def _first(one: Any, seconds: float) -> float:
    latency = getattr(one.metrics, "first_token_latency", None)
    return float(latency) if latency else seconds


def answer(work: dict[str, Any], way: Way) -> dict[str, Any]:
    """Every load: what it took."""
    return every_load(work["prompts"], Peer(work, way).together)


if __name__ == "__main__":
    carry_out(answer)
