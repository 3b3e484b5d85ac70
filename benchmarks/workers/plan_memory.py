"""Peak memory of one short training, measured in a process of its own; see `plan_memory.py`.

Every row is full: documents of `--document` tokens one after the other, of which the second
half is learnt. What is measured is `train_runs` with a base from `Workbench`, as a study has it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any


def rows(options: argparse.Namespace, vocabulary: int) -> list[list[Any]]:
    """Rows of each step, full to the last token."""
    from laura.data.packing import Row

    source = random.Random(0)

    def row() -> Row:
        made = Row([], [], [], [], [])
        while len(made.token_ids) < options.row_tokens:
            length = min(options.document, options.row_tokens - len(made.token_ids))
            ids = [source.randrange(vocabulary) for _ in range(length)]
            learnt = [*ids[1:], -100]
            made.token_ids.extend(ids)
            made.labels.extend(t if i >= length // 2 else -100 for i, t in enumerate(learnt))
            made.positions.extend(range(length))
            made.lengths.append(length)
            made.examples.append(0)
        return made

    count = options.passes * options.rows_per_pass
    return [[row() for _ in range(count)] for _ in range(options.steps)]


def arm_of(rank: int, targets: str, more: dict[str, Any]) -> Any:
    """The arm that is trained; rank 0 is full finetuning."""
    from laura.recipe.sections import FullArm, LoraArm

    if not rank:
        return FullArm.model_validate({"method": "full", **more})
    return LoraArm.model_validate({"method": "lora", "rank": rank, "targets": targets, **more})


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train `--steps` steps; what the last one's row of metrics says."""
    from laura.models.device import peak_memory_bytes, pick_device
    from laura.recipe.sections import BaseSection, TrainSection
    from laura.results.store import RunStore
    from laura.study.workbench import Workbench
    from laura.training.batches import BatchPlan
    from laura.training.remedies import objective_of
    from laura.training.run import train_runs

    section = TrainSection(
        optimiser=options.optimiser,
        schedule="constant",
        warmup=0.0,
        row_tokens=options.row_tokens,
        batch_tokens=options.row_tokens * options.rows_per_pass * options.passes,
        rows_per_pass=options.rows_per_pass,
        precision=options.precision,
        recompute=options.recompute,
    )
    arm = arm_of(options.rank, options.targets, json.loads(options.more))
    quantization = "nf4" if options.quantised else None
    base = BaseSection(model=options.model, dtype=options.dtype, quantization=quantization)
    bench = Workbench(base, options.device)
    with tempfile.TemporaryDirectory() as folder, bench.adapted(arm, seed=0) as adapted:
        device = pick_device(options.device)
        loaded = peak_memory_bytes(device)
        batches = rows(options, adapted.model.config.vocab_size)
        run = RunStore(Path(folder))
        train_runs(
            adapted.model, [(run, 1e-6)], section, BatchPlan.of(batches, [len(batches)]),
            rule=adapted.rule, objective=objective_of(arm), seed=0, write_weights=lambda _: None,
        )  # fmt: skip
        last = run.metrics()[-1]
    kept = ("peak_memory_bytes", "seconds", "flops", "tokens")
    return {"loaded_memory_bytes": loaded, **{key: last[key] for key in kept}}


def main() -> None:
    """Read the options, train, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct-q4")
    parser.add_argument("--rank", type=int, default=0, help="of LoRA; 0 is full finetuning")
    parser.add_argument("--targets", default="all")
    parser.add_argument("--more", default="{}", help="further settings of the arm, as JSON")
    parser.add_argument("--row-tokens", type=int, default=1024)
    parser.add_argument("--rows-per-pass", type=int, default=2)
    parser.add_argument("--passes", type=int, default=2, help="of one optimiser step")
    parser.add_argument("--document", type=int, default=256)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--optimiser", choices=("adamw", "lion"), default="adamw")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--recompute", type=lambda text: text == "True", default=False)
    parser.add_argument("--quantised", type=lambda text: text == "True", default=False)
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    Path(options.output).write_text(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
