"""Are Laura's numbers lm-eval's numbers, item by item, on the same weights?

    python benchmarks/parity_lm_eval.py [MODEL] [--data-dir DIR] [--limit 200] [--tasks a,b]

MODEL is a folder or a name of the registry; rows come from DIR, from `LAURA_DATA`
or from the Hub. For the three multiple-choice tasks it prints whether every prompt
is the same text, the largest difference of a log-likelihood in nats (fp32), and
whether `acc` and `acc_norm` are the same on every item. For gsm8k (only when asked
for; it is slow) it compares prompts and grades. Needs lm-eval 0.4.13. Ends with 1
when something differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laura.data.sources import load_rows
from laura.engine.engine import Engine
from laura.evals import tasks
from laura.evals.scoring import choice_item
from laura.evals.tasks import gsm8k

CHOICE_TASKS = ("hellaswag", "arc_challenge", "winogrande")
FEWSHOT_SEED = 1234
PACKAGED = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "winogrande": "winogrande/default.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}


@dataclass(frozen=True)
class Parity:
    """How Laura and lm-eval agree on one task.

    Attributes:
        task: Name.
        items: Items compared.
        same_prompts: Every context and continuation is the same text.
        largest_nats: Largest difference of a log-likelihood; 0 for gsm8k.
        same_marks: Every metric is the same on every item, and every generated text.
        seconds: Wall time of Laura and of lm-eval.
    """

    task: str
    items: int
    same_prompts: bool
    largest_nats: float
    same_marks: bool
    seconds: tuple[float, float]


def reference_task(
    name: str, rows: list[dict[str, Any]], training: list[dict[str, Any]], scratch: Path,
    **changes: Any,
) -> Any:  # fmt: skip
    """lm-eval's own task object, read from its packaged YAML, over rows given here.

    Only where the rows come from is replaced; prompts, filters and metrics are
    lm-eval's. `changes` overrides further fields of the YAML.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    entry = tasks.find(name)
    files = {}
    for split, content in ((entry.split, rows), ("train", training)):
        if content:
            path = scratch / f"{name}.{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
            files[split] = str(path)
    config = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / PACKAGED[name]),
        "task": f"{name}_here",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(scratch / "cache")},
        "validation_split": "validation" if "validation" in files else None,
        "training_split": "train" if training else None,
        **changes,
    }
    folder = scratch / f"{name}.task"
    folder.mkdir(parents=True, exist_ok=True)
    # YAML is a superset of JSON.
    (folder / f"{name}.yaml").write_text(json.dumps(config), encoding="utf-8")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load([f"{name}_here"])["tasks"][f"{name}_here"]


def reference_samples(
    task: Any, model: Any, tokenizer: Any, limit: int, batch_size: int = 1
) -> list[dict[str, Any]]:
    """Run lm-eval's evaluator and give its samples in the order of the rows."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu")
    # What lm_eval.simple_evaluate sets before it calls this; it also reads every YAML of the
    # package and lists the machine's packages, which takes longer than the measurement.
    task.set_fewshot_seed(FEWSHOT_SEED)
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    found = evaluate(
        harness,
        {"tasks": {task.task_name: task}, "groups": {}, "group_map": {}},
        limit=limit,
        bootstrap_iters=0,
    )
    assert found is not None, "only rank 0 runs here"
    (samples,) = found["samples"].values()
    return sorted(samples, key=lambda sample: sample["doc_id"])


def compare_choices(
    name: str, engine: Engine, reference_model: Any, data_dir: Path | None, limit: int,
    scratch: Path,
) -> Parity:  # fmt: skip
    """Compare one multiple-choice task."""
    entry, module = tasks.find(name), tasks.load(name)
    rows = load_rows(name, entry.split, data_dir)[:limit]
    start = time.perf_counter()
    questions = [module.question(row, index) for index, row in enumerate(rows)]
    answers = iter(engine.score([r for question in questions for r in question.requests]))
    items = [
        choice_item(question, [next(answers) for _ in question.requests], module.METRICS,
                    entry.metric)
        for question in questions
    ]  # fmt: skip
    middle = time.perf_counter()
    reference = reference_task(name, rows, [], scratch)
    samples = reference_samples(reference, reference_model, engine.tokenizer, len(rows))
    end = time.perf_counter()
    theirs = [[tuple(pair) for pair in sample["arguments"]] for sample in samples]
    ours = [[(r.context, r.continuation) for r in question.requests] for question in questions]
    differences = [
        abs(mine - float(response[0][0]))
        for item, sample in zip(items, samples, strict=True)
        for mine, response in zip(item["loglikelihoods"], sample["resps"], strict=True)
    ]
    same = all(
        item[metric] == sample[metric]
        for item, sample in zip(items, samples, strict=True)
        for metric in module.METRICS
    )
    times = (middle - start, end - middle)
    return Parity(name, len(items), ours == theirs, max(differences), same, times)


def compare_gsm8k(
    engine: Engine, reference_model: Any, data_dir: Path | None, limit: int, scratch: Path,
    shots: int = 5, max_new_tokens: int = 256, batch_size: int = 1,
) -> Parity:  # fmt: skip
    """Compare prompts, outputs and grades of gsm8k with the first training rows as shots."""
    rows = load_rows("gsm8k", "test", data_dir)[:limit]
    training = load_rows("gsm8k", "train", data_dir)
    start = time.perf_counter()
    questions = gsm8k.questions(rows, training, shots, max_new_tokens)
    answers = engine.generate([question.requests[0] for question in questions])
    graded = [gsm8k.grade(q, a)[0] for q, a in zip(questions, answers, strict=True)]
    middle = time.perf_counter()
    generation = {
        "until": list(gsm8k.STOP), "do_sample": False, "temperature": 0.0,
        "max_gen_toks": max_new_tokens,
    }  # fmt: skip
    task = reference_task(
        "gsm8k", rows, training, scratch, num_fewshot=shots, generation_kwargs=generation,
        fewshot_config={"sampler": "first_n", "split": "train"},
    )  # fmt: skip
    samples = reference_samples(task, reference_model, engine.tokenizer, len(rows), batch_size)
    end = time.perf_counter()
    prompts, marks = [], []
    for sample in samples:  # two a question, one a filter
        index = sample["doc_id"]
        prompts.append(sample["arguments"][0][0] == questions[index].requests[0].prompt)
        strict = sample["filter"] == "strict-match"
        metric = "exact_match" if strict else "flexible_extract"
        same_text = sample["resps"][0][0] == answers[index].text
        marks.append(same_text and graded[index][metric] == sample["exact_match"])
    assert len(samples) == 2 * len(rows), "lm-eval grades every answer by two filters"
    times = (middle - start, end - middle)
    return Parity("gsm8k", len(rows), all(prompts), 0.0, all(marks), times)


def main() -> int:
    """Compare and print; 0 when all agree."""
    import torch
    from transformers import AutoModelForCausalLM

    from laura.models.load import load_base

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct-q4")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=1, help="lm-eval's, for gsm8k")
    parser.add_argument("--tasks", default=",".join(CHOICE_TASKS))
    arguments = parser.parse_args()
    base = load_base(arguments.model, device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(
        base.folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    engine = Engine(base.model, base.tokenizer, precision=torch.float32)
    agreed = True
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.tasks.split(","):
            if name == "gsm8k":
                found = compare_gsm8k(
                    engine, reference, arguments.data_dir, arguments.limit, Path(scratch),
                    batch_size=arguments.batch_size,
                )  # fmt: skip
            else:
                found = compare_choices(
                    name, engine, reference, arguments.data_dir, arguments.limit, Path(scratch)
                )
            agreed &= found.same_prompts and found.same_marks and found.largest_nats <= 1e-3
            sys.stdout.write(
                f"{found.task}: {found.items} items, prompts "
                f"{'equal' if found.same_prompts else 'DIFFER'}, largest difference "
                f"{found.largest_nats:.2e} nats, acc/acc_norm/match "
                f"{'identical' if found.same_marks else 'DIFFER'}, seconds Laura "
                f"{found.seconds[0]:.1f}, lm-eval {found.seconds[1]:.1f}\n"
            )
            sys.stdout.flush()
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
