"""The runner: what it measures, keeps, reuses and refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from laura.engine.requests import (
    GenerateAnswer,
    GenerateRequest,
    ScoreAnswer,
    ScoreRequest,
    TokenDocument,
)
from laura.evals.runner import Material, evaluate
from laura.recipe.sections import MeasureSection
from laura.results import store
from laura.results.errors import DataError, StoreError, UsageError
from laura.results.task_result import TaskResult, change, samples_file

ROWS = {
    ("winogrande", "validation"): [
        {"sentence": f"{i} because _ left.", "option1": "Ann", "option2": "Bo", "answer": "1"}
        for i in range(6)
    ],
    ("gsm8k", "test"): [{"question": f"{i}?", "answer": f"It is\n#### {i}"} for i in range(4)],
    ("gsm8k", "train"): [{"question": f"T{i}?", "answer": f"#### {i}"} for i in range(5)],
}


class FakeEngine:
    """Prefers the first choice for even rows, answers every question with 2."""

    def __init__(self, context_tokens: int = 10_000) -> None:
        self.calls: list[str] = []
        self.progress: Any = None
        self.encoder = SimpleNamespace(context_tokens=context_tokens)

    def tokenizer(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def score(
        self, requests: Sequence[ScoreRequest], known: Any = None, found: Any = None
    ) -> list[ScoreAnswer]:
        self.calls.append("score")
        with self.progress.bar("scoring", len(requests), "documents"):
            pass
        return [
            ScoreAnswer(-1.0 if ("Ann" in r.context) == (int(r.context[0]) % 2 == 0) else -2.0,
                        False, 2)
            for r in requests
        ]  # fmt: skip

    def generate(
        self, requests: Sequence[GenerateRequest], known: Any = None, found: Any = None
    ) -> list[GenerateAnswer]:
        self.calls.append("generate")
        return [GenerateAnswer(" I think\n#### 2", 5, "stop") for _ in requests]

    def document_losses(
        self, documents: Sequence[TokenDocument], adapter: str | None = None
    ) -> list[list[float]]:
        self.calls.append("losses")
        return [[2.0] * sum(d.supervised[1:]) for d in documents]

    def document_divergences(
        self,
        documents: Sequence[TokenDocument],
        reference: object,
        adapter: str | None = None,
        directions: Sequence[str] = ("forward",),
    ) -> dict[str, list[list[float]]]:
        self.calls.append(f"divergences from {reference}")
        nats = {"forward": 0.25, "reverse": 0.5}
        return {way: [[nats[way]] * sum(d.supervised[1:]) for d in documents] for way in directions}


class Listener:
    """Remembers titles and lines."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        self.lines: list[str] = []

    @contextmanager
    def bar(self, title: str, total: float, unit: str = "") -> Iterator[Any]:
        self.titles.append(title)
        yield None

    def say(self, text: str) -> None:
        self.lines.append(text)


DOCUMENTS = [
    TokenDocument([1, 2, 3, 4], [True, False, True, True], 9, 11),
    TokenDocument([1, 2, 3], [True, True, True], 7, 12),
]


def _material(**changes: Any) -> Material:
    fields: dict[str, Any] = {
        "section": MeasureSection(limit=4, gsm8k_shots=2),
        "rows": lambda name, split: ROWS[name, split],
        "documents": {name: DOCUMENTS for name in ("target_loss", "source_loss", "kl")},
    }
    return Material(**{**fields, **changes})


def _run(
    folder: Path, names: Sequence[str], engine: Any = None, material: Material | None = None,
    **options: Any,
) -> dict[str, TaskResult]:  # fmt: skip
    return evaluate(
        engine or FakeEngine(),
        names,
        material or _material(),
        model_name=options.pop("model_name", "base"),
        out=lambda task: folder / f"{task}.json",
        **options,
    )


def test_all_kinds_are_measured_and_written(tmp_path: Path) -> None:
    names = ["winogrande", "gsm8k", "target_loss", "source_loss", "kl"]
    results = _run(tmp_path, names, material=_material(reference="base weights"))
    assert list(results) == names
    assert {name: TaskResult.read(tmp_path / f"{name}.json") for name in names} == results
    assert results["winogrande"].metrics["acc"].value == 0.5
    assert results["winogrande"].n == 4
    assert results["gsm8k"].metrics["exact_match"].value == 0.25
    assert results["gsm8k"].version == "3.0; 2 shots, first; 256 new tokens"
    samples = store.read_lines_gz(samples_file(tmp_path / "gsm8k.json"))
    assert [sample["index"] for sample in samples] == [0, 1, 2, 3]
    assert samples[0]["prompt"].count("Question:") == 3
    loss = results["target_loss"].metrics
    assert loss["nats_per_token"].value == 2.0
    assert loss["nats_per_byte"].value == 8 / 16
    assert not loss["nats_per_token"].higher_is_better
    assert results["target_loss"].items[0] == {"index": 11, "nats": 4.0, "tokens": 2, "bytes": 9}
    assert results["kl"].metrics["nats_per_token"].value == 0.25


def test_the_base_diverges_from_itself_by_nothing(tmp_path: Path) -> None:
    engine = FakeEngine()
    base = _run(tmp_path / "base", ["kl"], engine)["kl"]
    assert engine.calls == []
    assert (base.metrics["nats_per_token"].value, base.metrics["nats_per_token"].stderr) == (0, 0)
    tuned = _run(tmp_path / "tuned", ["kl"], engine, _material(reference="base"))["kl"]
    assert change(base, tuned, "nats_per_token").value == 0.25


def test_both_directions_of_a_divergence_take_one_pass(tmp_path: Path) -> None:
    names = ["kl_reverse_source", "kl", "kl_source", "kl_reverse"]
    engine = FakeEngine()
    section = MeasureSection(forgetting=names)
    material = _material(
        section=section, reference="base", documents=dict.fromkeys(names, DOCUMENTS)
    )
    results = _run(tmp_path, names, engine, material)
    assert len(engine.calls) == 2 and not material.drift
    values = [result.metrics["nats_per_token"].value for result in results.values()]
    assert values == [0.5, 0.25, 0.25, 0.5]
    # Asked alone, the other direction is not computed.
    alone = _material(
        section=MeasureSection(forgetting=["kl_reverse"]),
        reference="base",
        documents={"kl_reverse": DOCUMENTS},
    )
    assert _run(tmp_path / "alone", ["kl_reverse"], engine, alone)["kl_reverse"].n == 2
    assert not alone.drift


def test_what_stands_is_not_measured_again(tmp_path: Path) -> None:
    engine, listener = FakeEngine(), Listener()
    first = _run(tmp_path, ["winogrande", "target_loss"], engine)
    again = _run(tmp_path, ["winogrande", "target_loss", "gsm8k"], engine, progress=listener)
    assert engine.calls == ["score", "losses", "generate"]
    assert again["winogrande"] == first["winogrande"]
    assert listener.lines == []


def test_other_items_are_measured_again_and_said(tmp_path: Path) -> None:
    engine, listener = FakeEngine(), Listener()
    _run(tmp_path, ["winogrande", "gsm8k", "target_loss"], engine)
    wider = _material(
        section=MeasureSection(limit=None, gsm8k_shots=1),
        documents={"target_loss": [*DOCUMENTS[:1], TokenDocument([1, 2], [True, True], 7, 12)]},
    )
    results = _run(
        tmp_path, ["winogrande", "gsm8k", "target_loss"], engine, wider, progress=listener
    )
    assert results["winogrande"].n == 6
    assert engine.calls == ["score", "generate", "losses"] * 2
    assert len(listener.lines) == 3
    assert "covers 4 items in version '1.0', wanted are 6 in '1.0'" in listener.lines[0]


def test_results_of_another_model_are_not_overwritten(tmp_path: Path) -> None:
    _run(tmp_path, ["winogrande"])
    with pytest.raises(StoreError, match="holds winogrande of base, wanted is winogrande of tuned"):
        _run(tmp_path, ["winogrande"], model_name="tuned")


def test_items_cut_to_the_context_are_marked(tmp_path: Path) -> None:
    prompt = len(b"Question: 0?\nAnswer:")
    engine = FakeEngine(context_tokens=256 + prompt - 1)
    nothing = _material(section=MeasureSection(gsm8k_shots=0))
    results = _run(tmp_path / "cut", ["gsm8k", "winogrande"], engine, nothing)
    assert all(item["truncated"] for item in results["gsm8k"].items)
    assert not any("truncated" in item for item in results["winogrande"].items)
    roomy = FakeEngine(context_tokens=256 + prompt)
    results = _run(tmp_path / "whole", ["gsm8k"], roomy, nothing)
    assert not any("truncated" in item for item in results["gsm8k"].items)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    engine = FakeEngine()
    with pytest.raises(UsageError, match="Did you mean 'winogrande'"):
        _run(tmp_path, ["target_loss", "winograd"], engine)
    with pytest.raises(DataError, match=r"source_loss needs documents.*give data\.source_text"):
        _run(tmp_path, ["source_loss"], engine, _material(documents={}))
    with pytest.raises(DataError, match=r"winogrande has 1 item\(s\), a standard error needs"):
        _run(tmp_path, ["winogrande"], engine, _material(rows=lambda *key: ROWS[key][:1]))
    with pytest.raises(DataError, match=r"winogrande: row 0 .* needs 'sentence' as text"):
        _run(tmp_path, ["winogrande"], engine, _material(rows=lambda *_: [{}, {}]))
    assert engine.calls == []
    assert list(tmp_path.iterdir()) == []
    empty = [TokenDocument([1, 2], [True, False], 0, i) for i in range(2)]
    with pytest.raises(DataError, match="target_loss cannot be summed up"):
        _run(tmp_path, ["target_loss"], engine, _material(documents={"target_loss": empty}))
