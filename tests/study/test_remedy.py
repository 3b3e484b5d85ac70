"""`laura remedy`: what is accepted, why the rest is refused, and adapters of the micro base."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import laura
from laura.data.sources import load_examples
from laura.models.adapters import attach, save_adapter
from laura.models.load import load_base
from laura.models.lora import LoraSettings, lora_layers
from laura.models.oft import OftLinear
from laura.models.registry import MICRO_BASE
from laura.recipe.sections import BaseSection, MeasureSection, Source, TrainSection
from laura.results.errors import AdapterError, DataError, UsageError
from laura.results.progress import SILENT, Silent
from laura.results.schema import Polish, write_file
from laura.results.store import read_json
from laura.results.task_result import Metric, TaskResult
from laura.study import polish
from laura.study.polish import Polisher
from laura.study.remedy import decide
from laura.study.workbench import Workbench
from tests.models.peft_twin import WARNING
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


def adapter(folder: Path, std: float, model: str = "micro", block: int = 0) -> Path:
    base = load_base(model, device="cpu")
    settings = LoraSettings(rank=4, alpha=8.0)
    if block:
        settings = LoraSettings(rank=1, alpha=1.0, block_size=block)
    attach(base.model, settings, seed=0)
    with torch.no_grad():
        for layer in lora_layers(base.model).values():
            (layer.R if isinstance(layer, OftLinear) else layer.B).normal_(std=std)
    save_adapter(base.model, folder, settings, model)
    return folder


def polisher(
    out: Path, start: Path, minutes: float = 1.0, tokens: int = 0, seconds: float = 600.0
) -> Polisher:
    """One on the micro base; with a plan that stands, nothing is timed."""
    rows = load_examples(Source(source="micro-code", split="train", limit=60))
    section = MeasureSection(precision="fp32")
    bench = Workbench(BaseSection(model="micro"), "cpu")
    made = Polisher(bench, "as-it-is", start, rows, {}, minutes, "chat", section, out, SILENT)
    if tokens:
        plan = Polish(
            start="as-it-is", minutes=1, seconds=seconds, tokens={"polish-kl-0.1": tokens},
            replay=0.25, texts=4, learning_rate=polish.RATE, left_out=None,
        )  # fmt: skip
        write_file(made.folder / "plan.json", plan)
    return made


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short steps and few texts, in float32."""
    section = TrainSection(batch_tokens=256, row_tokens=256, precision="fp32")
    monkeypatch.setattr(polish, "TRAIN", section)
    monkeypatch.setattr(polish, "FEW_TEXTS", 4)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("block", [0, 8])
def test_a_polish_at_rate_0_is_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(polish, "RATE", 0.0)
    start = adapter(tmp_path / "start", 0.01, block=block)
    made, done = polisher(tmp_path, start, tokens=600).polish()
    assert done.tokens["polish-kl-0.1"] >= 600
    before, after = weights(start), weights(made["polish-kl-0.1"])
    assert before.keys() == after.keys() and any(v.any() for v in before.values())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.filterwarnings(WARNING)
@pytest.mark.usefixtures("short")
def test_a_step_is_that_of_peft_with_the_divergence_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans, plan_batches = [], polish.plan_batches
    monkeypatch.setattr(
        polish, "plan_batches", lambda *given: plans.append(plan_batches(*given)) or plans[0]
    )
    start = adapter(tmp_path / "start", 0.1)
    made, _ = polisher(tmp_path, start, tokens=100).polish()
    base = AutoModelForCausalLM.from_pretrained(MICRO_BASE, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, start)
    trained = {n: p.requires_grad_() for n, p in tuned.named_parameters() if "lora_" in n}
    rows = plans[0].batches[0]
    total, count = torch.zeros(()), 0
    for row in rows:
        first = 0
        for length in row.lengths:
            ids = torch.tensor([row.token_ids[first : first + length]])
            labels = torch.tensor(row.labels[first : first + length])
            first, kept = first + length, labels >= 0
            own = tuned(ids).logits[0].log_softmax(-1)[kept]
            with tuned.disable_adapter(), torch.no_grad():
                before = base(ids).logits[0].log_softmax(-1)[kept]
            told = own.gather(1, labels[kept, None]).sum()
            total = total - told + 0.1 * (before.exp() * (before - own)).sum()
            count += int(kept.sum())
    (total / count).backward()
    torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
    torch.optim.AdamW(trained.values(), polish.RATE, weight_decay=0.0).step()
    after = weights(made["polish-kl-0.1"])
    for name, parameter in trained.items():
        ours = after[name.replace(".default", "")]
        # The first step of Adam is the gradient's sign, which rounding turns where it is near 0.
        assert float((ours - parameter.detach()).abs().mean()) < 0.001 * polish.RATE, name


class Stopping(Silent):
    """Ctrl-C at the second step of training."""

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Any]:
        losses = itertools.count(1)

        def note(text: str) -> None:
            if title.startswith("polish") and next(losses) == 2:
                raise KeyboardInterrupt

        yield SimpleNamespace(advance=lambda amount=1.0: None, note=note)


@pytest.mark.usefixtures("short")
def test_a_polish_that_was_stopped_goes_on_as_the_same(tmp_path: Path) -> None:
    start = adapter(tmp_path / "start", 0.01)
    whole, _ = polisher(tmp_path / "whole", start, tokens=1000).polish()
    given = polisher(tmp_path / "stopped", start, tokens=1000)
    with pytest.raises(KeyboardInterrupt):
        replace(given, progress=Stopping()).polish()
    assert not list(given.folder.glob("*/done.json"))
    stopped, _ = polisher(tmp_path / "stopped", start, tokens=1000).polish()
    one, other = (weights(made["polish-kl-0.1"]) for made in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(*(one[name] for name in [*one][:2]))


@pytest.mark.usefixtures("short")
def test_a_polish_ends_with_its_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polish, "MOST_TEXTS", 8)
    monkeypatch.setattr(polish, "EPOCHS", 0.1)
    start = adapter(tmp_path / "start", 0.01)
    made, done = polisher(tmp_path / "a", start, tokens=5000, seconds=0.0).polish()
    assert 0 < done.tokens["polish-kl-0.1"] <= 256 and made["polish-kl-0.1"].is_dir()
    made, done = polisher(tmp_path / "b", start, minutes=0.001).polish()
    assert not made and "10 steps do not fit into 0.001 minutes" in (done.left_out or "")
    given = polisher(tmp_path / "c", start, minutes=2)
    made, done = given.polish()
    assert list(made) == ["polish-kl-0.03", "polish-kl-0.1"] and done.texts == 8
    plan = Polish.model_validate(read_json(given.folder / "plan.json"))
    assert 20 < plan.seconds < 60 and plan.tokens["polish-kl-0.1"] <= min(done.tokens.values())


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(**command(*words), capture_output=True, text=True, check=False)


def test_a_broken_adapter_is_refused_and_what_stands_is_not_measured_again(tmp_path: Path) -> None:
    broken, out = adapter(tmp_path / "broken", 0.3), tmp_path / "out"
    config = json.loads((broken / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "somebody/else"
    (broken / "adapter_config.json").write_text(json.dumps(config))
    given = ["remedy", "micro", "--adapter", str(broken), "--data", "micro-code:test",
             "--source-text", "micro-source", "--tasks", "source_loss", "--limit", "100",
             "--out", str(out), "--json"]  # fmt: skip
    first = run(given)
    assert first.returncode == 4, first.stderr
    assert "not verified" in first.stderr and "'somebody/else'" in first.stderr
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
    with pytest.raises(UsageError, match="no mean with tasks"):
        laura.remedy(
            "micro", good, **plain, tasks=["source_loss", "micro_facts"], out=tmp_path / "i"
        )
    with pytest.raises(UsageError, match="no task"):
        laura.remedy("micro", good, **plain, tasks=["nothing"], out=tmp_path / "c")
    for minutes in (-1, 1441, float("nan")):
        with pytest.raises(UsageError, match="give 0, for no training, to 1440"):
            laura.remedy("micro", good, **plain, minutes=minutes, out=tmp_path / "e")
    with pytest.raises(UsageError, match="train and minutes go together"):
        laura.remedy("micro", good, **plain, minutes=1, out=tmp_path / "f")
    with pytest.raises(UsageError, match="20 rows to polish on; give at least 50"):
        laura.remedy("micro", good, **plain, train=str(few), minutes=1, out=tmp_path / "g")
    with pytest.raises(DataError, match=r"train holds \d+ rows that are measured on"):
        laura.remedy("micro", good, **plain, train="micro-code:test", minutes=1, out=tmp_path / "h")
    assert not any((tmp_path / name).exists() for name in "abcefghi")
    for out in ("here", "good"):  # where the answer would be written over it
        inside = adapter(tmp_path / out / "adapter", 0.01) if out == "here" else good / "candidates"
        with pytest.raises(UsageError, match="is written anew; give another folder"):
            laura.remedy("micro", inside, **plain, out=tmp_path / out)
    assert weights(tmp_path / "here" / "adapter")
    other = adapter(tmp_path / "other", 0.01, str(tiny_folder))
    with pytest.raises(AdapterError, match="another base"):
        laura.remedy("micro", other, **plain, out=tmp_path / "d")


@pytest.mark.slow
def test_an_overshot_adapter_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained at a rate at which it forgets; its mended self keeps more on items never seen."""
    monkeypatch.setattr(polish, "EPOCHS", 0.03)
    monkeypatch.setattr(polish, "FEW_STEPS", 1)
    training = laura.train(
        "micro-small", "lora-r4", learning_rate=5e-3, seed=0, out=tmp_path / "study",
        overrides=["budget.tokens=[40000]", "arms.lora-r4.rank=16"],
    )  # fmt: skip
    made = Path(training.runs[0].checkpoints[-1])
    found = laura.remedy(
        "micro", made, data="micro-code:test", source_text="micro-source", limit=200,
        margin=0.1, train="micro-code:train", minutes=1, out=tmp_path / "out",
    )  # fmt: skip
    assert found.accepted, found.answer
    assert found.polish is not None and found.polish.tokens, found.polish
    assert set(found.polish.tokens) < {one.name for one in found.candidates}
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
