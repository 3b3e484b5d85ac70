"""The peers' side of `serving.py`: PEFT's or transformers' `generate` on a batch of prompts.

Knows nothing of Laura. With `--mixed` every prompt names its adapter (`adapter_names`);
without, the plain base answers. With `--drafts` transformers looks up what stood behind the
same tokens before (`prompt_lookup_num_tokens`), which it does for one prompt at a time only.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from serving_side import Way, carry_out, every_load

MOST_DRAFTED = 6  # as many as Laura


class Peer:
    """The model and its adapters.

    Args:
        work: What `serving.py` wrote.
        way: Precision, adapters or base, drafts or none.
    """

    def __init__(self, work: dict[str, Any], way: Way) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        dtype = torch.float32 if way.precision == "fp32" else torch.bfloat16
        self.work, self.names, self.drafts = work, [], way.drafts
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            work["model"], dtype=dtype, attn_implementation="sdpa"
        ).eval()
        for folder in work["adapters"] if way.mixed else []:
            self.names.append(Path(folder).name)
            if len(self.names) == 1:
                self.model = PeftModel.from_pretrained(
                    self.model, folder, self.names[0], autocast_adapter_dtype=False
                )
            else:
                self.model.load_adapter(folder, self.names[-1], autocast_adapter_dtype=False)
        self.model.eval()

    def together(self, prompts: list[list[int]]) -> dict[str, Any]:
        """One batch: seconds, new tokens, seconds until each first token."""
        import torch

        ids = torch.tensor(prompts)
        first: list[float] = []

        def note(input_ids: Any, scores: Any, **_: Any) -> Any:
            first.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

        more: dict[str, Any] = {}
        if self.names:
            names = [self.names[i % len(self.names)] for i in range(len(prompts))]
            more["adapter_names"] = names
        if self.drafts:
            more["prompt_lookup_num_tokens"] = MOST_DRAFTED
        limit = self.work["new_tokens"]
        started = time.perf_counter()
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                max_new_tokens=limit, min_new_tokens=limit, pad_token_id=0,
                stopping_criteria=[note], **more,
            )  # fmt: skip
        seconds = time.perf_counter() - started
        tokens = (found.shape[1] - ids.shape[1]) * len(prompts)
        return {"seconds": seconds, "tokens": tokens, "first": [first[0] - started] * len(prompts)}


def answer(work: dict[str, Any], way: Way) -> dict[str, Any]:
    """Every load: what it took."""
    loads = {load: runs for load, runs in work["prompts"].items() if load == "1" or not way.drafts}
    return every_load(loads, Peer(work, way).together)


if __name__ == "__main__":
    carry_out(answer)
