"""vLLM's side of `serving.py`, in an environment of its own; knows nothing of Laura.

vLLM answers a whole batch in one call of its engine's own Python interface; the time to the
first token comes from its own counters.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any


class Peer:
    """vLLM with all adapters known.

    Args:
        work: What `serving.py` wrote.
        precision: fp32 or bf16.
        mixed: Whether the adapters answer, or the base.
    """

    def __init__(self, work: dict[str, Any], precision: str, mixed: bool) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.work, self.loras = work, []
        more: dict[str, Any] = {}
        if mixed:
            count = len(work["adapters"])
            more = {"enable_lora": True, "max_loras": count, "max_lora_rank": 16}
            self.loras = [
                LoRARequest(Path(folder).name, number + 1, folder)
                for number, folder in enumerate(work["adapters"])
            ]
        self.model = LLM(
            work["model"], dtype="float32" if precision == "fp32" else "bfloat16",
            max_model_len=1024, max_num_seqs=64, enforce_eager=True, seed=0,
            enable_prefix_caching=False, disable_log_stats=False, **more,
        )  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Every load: what it took."""
        result: dict[str, Any] = {}
        for load, runs in self.work["prompts"].items():
            self.together(runs[0])
            result[load] = [self.together(prompts) for prompts in runs[1:]]
        return result

    def together(self, prompts: list[list[int]]) -> dict[str, Any]:
        """One batch: seconds, new tokens, seconds until each first token."""
        from vllm import SamplingParams

        settings = SamplingParams(
            temperature=0.0, max_tokens=self.work["new_tokens"], ignore_eos=True
        )
        loras = [self.loras[i % len(self.loras)] for i in range(len(prompts))]
        started = time.perf_counter()
        found = self.model.generate(
            [{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False,
            lora_request=loras or None,
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


def main() -> None:
    """Read the command line, do the work, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--mixed", action="store_true")
    options = parser.parse_args()
    work = json.loads(Path(options.work).read_text())
    result = Peer(work, options.precision, options.mixed).run()
    Path(options.output).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
