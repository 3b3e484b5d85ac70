"""Adapters as PEFT writes them, and each answer computed alone by transformers and PEFT.

Nothing of Laura stands in here: what a server answers under load is held against it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Kind:
    """What an adapter is like: its rank, or OFT's block size, what it changes, how strongly."""

    rank: int
    targets: tuple[str, ...] = ALL
    spread: float = 0.3
    block_size: int = 0


def write_adapters(base: Path, folder: Path, kinds: Mapping[str, Kind]) -> None:
    """An adapter of each kind, by its name, with random updates that change answers."""
    import peft
    from transformers import AutoModelForCausalLM

    for seed, (name, kind) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        config: Any = peft.LoraConfig(
            r=kind.rank, lora_alpha=2 * kind.rank, target_modules=list(kind.targets)
        )
        if kind.block_size:
            config = peft.OFTConfig(
                oft_block_size=kind.block_size, target_modules=list(kind.targets)
            )
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT's and transformers' own future
            tuned = peft.get_peft_model(model, config)
            for key, value in tuned.named_parameters():
                if "lora_B" in key:
                    torch.nn.init.normal_(value, std=kind.spread / kind.rank**0.5)
                if "oft_R" in key:
                    torch.nn.init.normal_(value, std=kind.spread / kind.block_size**0.5)
            tuned.save_pretrained(folder / name)


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        text: What was written, without the end token.
        tokens: How many tokens, the end token included.
        finish: "stop" or "length", as in OpenAI's API.
        margin: Least distance of the two most likely tokens at any step, in nats. Where it
            is tiny, which one is taken is a matter of rounding.
    """

    text: str
    tokens: int
    finish: str
    margin: float


class Alone:
    """The base with all its adapters, asked one at a time, by transformers' `generate`.

    Args:
        base: Folder of the base.
        adapters: Folder of the adapters.
        names: Which of them.
    """

    def __init__(self, base: Path, adapters: Path, names: Sequence[str]) -> None:
        import peft
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model: Any = peft.PeftModel.from_pretrained(
                model, adapters / names[0], adapter_name=names[0]
            )
            for name in names[1:]:
                self.model.load_adapter(adapters / name, adapter_name=name)
        self.model.eval()

    def chat(self, name: str | None, messages: list[dict[str, str]], limit: int) -> Answer:
        """What follows a conversation, through the base's template."""
        text = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        return self.complete(name, text, limit)

    @torch.no_grad()
    def complete(self, name: str | None, text: str, limit: int) -> Answer:
        """What follows a text; `name` is the adapter, None the base."""
        ids = torch.tensor([self.tokenizer.encode(text, add_special_tokens=False)])
        if name is not None:
            self.model.set_adapter(name)
        with self.model.disable_adapter() if name is None else nullcontext():
            found = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=False,
                use_cache=True,
                output_logits=True,
                return_dict_in_generate=True,
            )
        fresh = found.sequences[0, ids.shape[1] :].tolist()
        best = torch.cat(found.logits).log_softmax(-1).topk(2).values
        ended = fresh[-1] == self.tokenizer.eos_token_id
        return Answer(
            self.tokenizer.decode(fresh, skip_special_tokens=True),
            len(fresh),
            "stop" if ended else "length",
            float((best[:, 0] - best[:, 1]).min()),
        )
