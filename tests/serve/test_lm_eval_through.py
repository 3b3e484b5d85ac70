"""`lm_eval --model local-completions` through a server scores what `laura evaluate` scores.

ARC-Challenge with lm-eval's own task file, on the real small model and an adapter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from laura.data.sources import load_rows
from tests.serve.alone import Kind, write_adapters
from tests.serve.real_server import ENVIRONMENT, serving

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity", reason="lm-eval's clients need lm_eval[api]")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BASE, ADAPTER = "smollm2-135m-instruct-q4", "science"
ITEMS = int(os.environ.get("LAURA_ARC_ITEMS", "16"))


def run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def measured(adapters: Path, data: Path, out: Path) -> dict[str, Any]:
    """What `laura evaluate` says of base and adapter, by name."""
    run(
        "laura", "evaluate", BASE, "--adapter", f"{ADAPTER}={adapters / ADAPTER}",
        "--tasks", "arc_challenge", "--limit", str(ITEMS), "--data-dir", str(data),
        "--out", str(out), "--set", "measure.precision=fp32", "--device", "cpu", "--json",
    )  # fmt: skip
    files = {path.parent.name: path for path in out.rglob("arc_challenge.json")}
    return {name: json.loads(path.read_text("utf-8")) for name, path in files.items()}


def write_task(folder: Path, rows: list[dict[str, Any]]) -> str:
    """lm-eval's own ARC-Challenge, over rows on this disk instead of the Hub's."""
    import lm_eval

    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "include": str(Path(lm_eval.__file__).parent / "tasks" / "arc" / "arc_challenge.yaml"),
        "task": "arc_challenge_here",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {"test": str(data)},
            "cache_dir": str(folder / "cache"),
        },
        "training_split": None,
        "validation_split": None,
    }
    (folder / "task.yaml").write_text(json.dumps(config))  # JSON is YAML
    return "arc_challenge_here"


def through(url: str, model: str, tokenizer: Path, task: tuple[str, Path], out: Path) -> Any:
    """lm-eval's results for a model of a server, and its samples in the order of the rows."""
    run(
        "lm_eval", "--model", "local-completions", "--tasks", task[0], "--include_path",
        str(task[1]), "--output_path", str(out), "--log_samples", "--model_args",
        f"model={model},base_url={url}/v1/completions,tokenizer={tokenizer},max_length=2048",
    )  # fmt: skip
    (results,), (samples,) = out.rglob("results_*.json"), out.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    rows.sort(key=lambda row: row["doc_id"])
    return json.loads(results.read_text("utf-8"))["results"][task[0]], rows


def test_arc_challenge_for_base_and_adapter(
    smollm2_folder: Path, shared_data: Path, tmp_path: Path
) -> None:
    adapters, tasks = tmp_path / "adapters", tmp_path / "tasks"
    write_adapters(smollm2_folder, adapters, {ADAPTER: Kind(8, spread=0.2)})
    here = measured(adapters, shared_data, tmp_path / "evals")
    rows = load_rows("arc_challenge", "test", shared_data)
    tasks.mkdir()
    ours = here[next(name for name in here if name != ADAPTER)]
    task = write_task(tasks, [rows[item["index"]] for item in ours["items"]]), tasks
    words = (BASE, "--adapters", str(adapters), "--precision", "fp32", "--device", "cpu")
    with serving(*words) as server:
        for model, own in ((BASE, ours), (ADAPTER, here[ADAPTER])):
            results, samples = through(
                server.url, model, smollm2_folder, task, tmp_path / f"out-{model}"
            )
            check(model, own, results, samples)
    answers = [[item["loglikelihoods"] for item in one["items"]] for one in here.values()]
    assert answers[0] != answers[1], "the adapter changes nothing"


def check(model: str, own: dict[str, Any], results: Any, samples: list[Any]) -> None:
    """The same score, from the same choices, from the same log-likelihoods."""
    found = {name: results[f"{name},none"] for name in ("acc", "acc_norm")}
    largest = 0.0
    for item, sample in zip(own["items"], samples, strict=True):
        theirs = [float(one[0][0]) for one in sample["resps"]]
        pairs = zip(item["loglikelihoods"], theirs, strict=True)
        largest = max(largest, *(abs(a - b) for a, b in pairs))
        for name in ("acc", "acc_norm"):
            assert item[name] == sample[name], (model, item["index"], name)
    print(json.dumps({"model": model, "n": own["n"], "largest nats": largest, **found}))
    assert found == {name: pytest.approx(own["metrics"][name]["value"]) for name in found}
    assert largest < 2e-3
