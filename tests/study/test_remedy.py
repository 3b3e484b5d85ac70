"""`laura remedy`: what is accepted, why the rest is refused, and adapters of the micro base."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import laura
from laura.models.adapters import attach, save_adapter
from laura.models.load import load_base
from laura.models.lora import LoraSettings, lora_layers
from laura.results.errors import AdapterError, UsageError
from laura.results.task_result import Metric, TaskResult
from laura.study.remedy import decide
from tests.study.carried_out import command

ITEMS = 400


def losses(task: str, level: float, odd: float = 0.0) -> TaskResult:
    """A loss of so many nats per token, with the luck of every item the same for all models."""
    luck = np.random.default_rng(0).normal(0, 0.2, ITEMS)
    own = np.random.default_rng(int(1e6 * level)).normal(0, 0.01, ITEMS)
    items = [
        {"index": i, "nats": 10 * float(level + luck[i] + own[i] + odd * (i % 2)), "tokens": 10}
        for i in range(ITEMS)
    ]
    metric = {"nats_per_token": Metric(level, 0.01, False)}
    return TaskResult(task, "1", "m", ITEMS, metric, items)


def models(
    odd: Mapping[str, float] | None = None, **levels: tuple[float, float]
) -> dict[str, dict[str, TaskResult]]:
    """Model to its losses on target and source; `odd` is added on the source's odd items."""
    given = {"base": (2.0, 1.0), "as_it_is": (1.0, 1.5), **levels}
    return {
        name.replace("_", "-"): {
            "target_loss": losses("target_loss", target),
            "source_loss": losses("source_loss", source, (odd or {}).get(name, 0.0)),
        }
        for name, (target, source) in given.items()
    }


def decided(**more: Any) -> Any:
    return decide(models(**more), ["source_loss"], 0.05)


def test_the_one_that_forgets_least_within_the_margin_is_taken() -> None:
    found = decided(mild=(0.99, 1.4), good=(1.01, 1.2), greedy=(1.5, 1.05))
    assert found.accepted and found.chosen == "good"
    assert found.allowed == pytest.approx(0.05, abs=0.01)
    assert found.kept is not None and found.kept.value == pytest.approx(0.3, abs=0.01)
    assert found.kept.n == ITEMS // 2
    assert "wins back 60 %" in found.answer and "loses 1" in found.answer
    assert [one.name for one in found.candidates] == ["mild", "good", "greedy"]


def test_what_was_chosen_by_luck_is_not_told_by_the_same_items() -> None:
    found = decided(odd={"lucky": 0.35}, lucky=(1.0, 1.3))
    assert not found.accepted and found.chosen == "lucky"
    assert "does not surely forget less" in found.answer


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"as_it_is": (2.1, 1.5), "one": (2.0, 1.2)}, "not surely learnt anything"),
        ({"as_it_is": (1.0, 0.9), "one": (1.0, 0.8)}, "nothing to mend"),
        ({"one": (1.5, 1.1), "two": (1.0, 1.6)}, "loses more than 5 %"),
        ({"one": (1.0495, 1.1)}, "may lose more than 5 %"),
    ],
)
def test_refusals_say_why(more: dict[str, Any], words: str) -> None:
    found = decided(**more)
    assert not found.accepted and words in found.answer, found.answer


def adapter(folder: Path, std: float, model: str = "micro") -> Path:
    base = load_base(model, device="cpu")
    settings = LoraSettings(rank=4, alpha=8.0)
    attach(base.model, settings, seed=0)
    with torch.no_grad():
        for layer in lora_layers(base.model).values():
            layer.B.normal_(std=std)
    save_adapter(base.model, folder, settings, model)
    return folder


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(*words), capture_output=True, text=True, check=False)


def test_a_broken_adapter_is_refused_and_what_stands_is_not_measured_again(tmp_path: Path) -> None:
    broken, out = adapter(tmp_path / "broken", 0.3), tmp_path / "out"
    given = ["remedy", "micro", "--adapter", str(broken), "--data", "micro-code:test",
             "--source-text", "micro-source", "--limit", "100", "--out", str(out),
             "--json"]  # fmt: skip
    first = run(given)
    assert first.returncode == 4, first.stderr
    answer = json.loads(first.stdout)
    assert not answer["accepted"] and "not surely learnt" in answer["answer"]
    assert len(answer["candidates"]) == 6 and not (out / "adapter").exists()
    assert json.loads((out / "remedy.json").read_text()) == answer
    times = {path: path.stat().st_mtime_ns for path in (out / "evals").rglob("*.json")}
    assert len(times) == 16 and run(given).returncode == 4
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_faults_are_told_before_anything_is_measured(tiny_folder: Path, tmp_path: Path) -> None:
    good = adapter(tmp_path / "good", 0.01)
    few = tmp_path / "few.jsonl"
    few.write_text('{"question": "a", "answer": "b"}\n' * 20)
    plain: dict[str, Any] = {"data": "micro-code:test", "source_text": "micro-source"}
    with pytest.raises(UsageError, match="at least 100 are needed"):
        laura.remedy("micro", good, **{**plain, "data": str(few)}, out=tmp_path / "a")
    with pytest.raises(UsageError, match="a share between 0 and 1"):
        laura.remedy("micro", good, **plain, margin=5, out=tmp_path / "b")
    with pytest.raises(UsageError, match="no task"):
        laura.remedy("micro", good, **plain, tasks=["nothing"], out=tmp_path / "c")
    other = adapter(tmp_path / "other", 0.01, str(tiny_folder))
    with pytest.raises(AdapterError, match="another base"):
        laura.remedy("micro", other, **plain, out=tmp_path / "d")


@pytest.mark.slow
def test_an_overshot_adapter_is_mended(tmp_path: Path) -> None:
    """Trained at a rate at which it forgets; its mended self keeps more on items never seen."""
    training = laura.train(
        "micro-small", "lora-r4", learning_rate=5e-3, seed=0, out=tmp_path / "study",
        overrides=["budget.tokens=[40000]", "arms.lora-r4.rank=16"],
    )  # fmt: skip
    made = Path(training.runs[0].checkpoints[-1])
    found = laura.remedy(
        "micro", made, data="micro-code:test", source_text="micro-source", limit=200,
        margin=0.1, out=tmp_path / "out",
    )  # fmt: skip
    assert found.accepted, found.answer
    assert found.unlearnt is not None and found.unlearnt.interval[1] <= found.allowed
    assert found.kept is not None and found.kept.interval[0] > 0
    scores = laura.evaluate(
        "micro", ["micro_facts"], out=tmp_path / "evals", limit=200,
        adapters={"before": made, "after": tmp_path / "out" / "adapter"},
    ).models  # fmt: skip
    before, after = (
        scores[name]["micro_facts"].metrics["acc"].value for name in ("before", "after")
    )
    assert after > before
