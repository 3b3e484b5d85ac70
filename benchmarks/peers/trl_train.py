"""One training of the peer, TRL's SFTTrainer with PEFT, timed step by step.

Runs in the peer's own environment and knows nothing of Laura. The work, token
ids and labels grouped into steps, comes from a file that Laura's side reads
too, so that both train on the same tokens. Everything else is the peer's own:
collation, packing, masks, loss, optimiser. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

LAYOUTS = ("padding", "packing", "padding_free")


def peak_memory_bytes() -> int:
    """Most resident memory this process ever had (VmHWM of Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM; the benchmark needs Linux")


def passes_per_step(options: argparse.Namespace, work: dict[str, Any]) -> int:
    """Forward and backward passes of one optimiser step."""
    return int(work["examples_per_step"]) if options.accumulate == "all" else 1


def settings(options: argparse.Namespace, work: dict[str, Any], folder: str) -> dict[str, Any]:
    """SFTConfig's arguments: the fastest ones, and only documented ones.

    Gradient checkpointing, TRL's default, saves memory but computes the forward
    pass twice; `--checkpointing` turns it on again.
    """
    layout: dict[str, Any] = {
        "padding": {"per_device_train_batch_size": work["examples_per_step"], "max_length": 2048},
        "padding_free": {
            "per_device_train_batch_size": work["examples_per_step"],
            "padding_free": True,
            "max_length": None,
        },
        "packing": {
            "per_device_train_batch_size": 1,
            "packing": True,
            "packing_strategy": "bfd",
            "max_length": work["tokens_per_step"],
        },
    }[options.layout]
    passes = passes_per_step(options, work)
    layout["per_device_train_batch_size"] //= passes
    layout["gradient_accumulation_steps"] = passes
    return {
        "output_dir": folder,
        "use_cpu": True,
        "bf16": options.precision == "bf16",
        "max_steps": options.warmup + options.steps,
        "learning_rate": work["learning_rate"][options.method],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "gradient_checkpointing": options.checkpointing,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **layout,
    }


def train(options: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    """Train and time; seconds are from the end of one step to the end of the next."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []
    core_ends: list[float] = []
    tokens: list[int] = []
    losses: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc,unused-ignore]
        """Notes when each optimiser step has ended."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())
            core_ends.append(time.process_time())

    class Counted(SFTTrainer):  # type: ignore[misc,unused-ignore]
        """Counts the tokens that are not padding as they go in."""

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            mask = inputs.get("attention_mask")
            tokens.append(int(inputs["input_ids"].numel() if mask is None else mask.sum()))
            loss = super().training_step(model, inputs, *rest, **named)
            losses.append(float(loss))
            return loss

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(
        work["model"], dtype=getattr(torch, options.weights), attn_implementation=options.attention
    )
    model.config.use_cache = False
    adapter = LoraConfig(
        r=work["rank"], lora_alpha=2 * work["rank"], lora_dropout=0.0,
        target_modules=work["targets"], task_type="CAUSAL_LM",
    )  # fmt: skip
    rows = Dataset.from_list([row for step in work["steps"] for row in step])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Counted(
            model=model,
            args=SFTConfig(**settings(options, work, folder)),
            train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(work["model"]),
            peft_config=adapter if options.method == "lora" else None,
            callbacks=[Clock()],
        )
        before = peak_memory_bytes()
        trainer.train()
    passes = passes_per_step(options, work)
    grouped = [sum(tokens[at : at + passes]) for at in range(0, len(tokens), passes)]
    loss_sums = [sum(losses[at : at + passes]) for at in range(0, len(losses), passes)]
    first = max(options.warmup, 1)
    return {
        "seconds": [ends[at] - ends[at - 1] for at in range(first, len(ends))],
        "core_seconds": [core_ends[at] - core_ends[at - 1] for at in range(first, len(ends))],
        "tokens": grouped[first : len(ends)],
        # Each pass is already divided by the labels of the whole step.
        "losses": loss_sums,
        "peak_memory_bytes": peak_memory_bytes(),
        "loaded_memory_bytes": before,
        "trainable_parameters": sum(
            p.numel() for p in trainer.model.parameters() if p.requires_grad
        ),
    }


def main() -> None:
    """Read the work, train, write what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--method", choices=("lora", "full"), required=True)
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--weights", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--accumulate", choices=("no", "all"), default="no")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.disable(logging.WARNING)
    work = json.loads(Path(options.work).read_text())
    Path(options.output).write_text(json.dumps(train(options, work)))


if __name__ == "__main__":
    main()
