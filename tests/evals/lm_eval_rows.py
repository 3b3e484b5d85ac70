"""Tasks of lm-eval over a few local rows, one of each kind, and lm-eval run on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = "the cat sat on a mat and the dog ran to it with an apple question answer what how many"


def write_task(folder: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> str:
    """A task YAML over local rows, found through lm-eval's include path; its name."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    whole = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": files,
        "test_split": "test",
        "metadata": {"version": 2.0},
        **config,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(whole), encoding="utf-8")  # JSON is YAML
    return name


def write_tasks(folder: Path) -> list[str]:
    """One task of each of lm-eval's kinds of output."""
    words = WORDS.split()
    choices = [
        {"q": " ".join(words[i : i + 9]), "options": [words[i], words[-i - 1], "a mat and it"],
         "gold": i % 3}
        for i in range(7)
    ]  # fmt: skip
    # An empty context, spaces at a context's end, and a context longer than the model reads.
    pairs = [
        {"q": context, "a": after}
        for context in ("", "the cat  ", "what", "the dog ran to it " * 200)
        for after in (" sat", "on a mat", " Äpfel")
    ]
    texts = [{"t": "the cat"}, {"t": WORDS}, {"t": f"{WORDS} " * 60}, {"t": "x"}]
    prompts = [{"q": " ".join(words[i:]), "a": words[i]} for i in range(0, 12, 2)]
    mean = {"aggregation": "mean", "higher_is_better": True}
    generation = {"max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    return [
        write_task(
            folder, "here_choice", choices, output_type="multiple_choice", doc_to_text="{{q}}",
            doc_to_choice="options", doc_to_target="gold",
            metric_list=[{"metric": "acc", **mean}, {"metric": "acc_norm", **mean}],
        ),
        write_task(
            folder, "here_pairs", pairs, output_type="loglikelihood", doc_to_text="{{q}}",
            doc_to_target="{{a}}",
            metric_list=[
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", **mean},
            ],
        ),
        write_task(
            folder, "here_rolling", texts, output_type="loglikelihood_rolling", doc_to_text="",
            doc_to_target="{{t}}",
            metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        ),
        write_task(
            folder, "here_generate", prompts, output_type="generate_until", doc_to_text="{{q}}",
            doc_to_target="{{a}}",
            generation_kwargs={"until": ["\n\n", "e"], **generation},
            metric_list=[{"metric": "exact_match", **mean}],
        ),
    ]  # fmt: skip


def evaluated(model: Any, tasks: list[str], folder: Path, **options: Any) -> dict[str, Any]:
    """lm-eval's results, samples by document."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **options)
    assert found is not None
    for samples in found["samples"].values():
        samples.sort(key=lambda sample: sample["doc_id"])
    return dict(found)


def plain_model(folder: Path) -> Any:
    """The same weights with transformers' own attention."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def plain(folder: Path) -> Any:
    """lm-eval's own model on the same weights."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    return HFLM(
        pretrained=plain_model(folder), tokenizer=AutoTokenizer.from_pretrained(folder),
        batch_size=1, device="cpu",
    )  # fmt: skip
