"""An engine from outside: a class that scores and generates; tasks cannot tell it from ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from laura.engine.engine import Engine
from laura.engine.requests import (
    FORGET,
    GenerateAnswer,
    GenerateRequest,
    ScoreAnswer,
    ScoreRequest,
)
from laura.evals.runner import Material, evaluate
from laura.recipe.sections import MeasureSection
from laura.results.progress import SILENT
from laura.results.store import read_lines_gz
from laura.results.task_result import samples_file
from tests.evals.test_runner import ROWS


class PlainEngine:
    """transformers' own forward pass, a request at a time, every token from the beginning."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer, self.progress = model, tokenizer, SILENT
        self.encoder = SimpleNamespace(context_tokens=512)

    def _logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = self.model(torch.tensor([ids])).logits[0]
        return found

    def score(
        self,
        requests: Sequence[ScoreRequest],
        *,
        known: Mapping[int, ScoreAnswer] | None = None,
        found: Any = FORGET,
    ) -> list[ScoreAnswer]:
        answers = dict(known or {})
        for number, one in enumerate(requests):
            if number not in answers:
                before = self.tokenizer(one.context)["input_ids"]
                ids = self.tokenizer(one.context + one.continuation)["input_ids"]
                logits = self._logits(ids)[len(before) - 1 : -1]
                targets = torch.tensor(ids[len(before) :])
                nats = logits.log_softmax(-1).gather(1, targets[:, None]).sum()
                greedy = bool((logits.argmax(-1) == targets).all())
                answers[number] = ScoreAnswer(float(nats), greedy, len(targets))
                found(number, answers[number])
        return [answers[number] for number in range(len(requests))]

    def generate(
        self,
        requests: Sequence[GenerateRequest],
        *,
        known: Mapping[int, GenerateAnswer] | None = None,
        found: Any = FORGET,
    ) -> list[GenerateAnswer]:
        answers = dict(known or {})
        for number, one in enumerate(requests):
            if number not in answers:
                answers[number] = self._continued(one)
                found(number, answers[number])
        return [answers[number] for number in range(len(requests))]

    def _continued(self, one: GenerateRequest) -> GenerateAnswer:
        ids = self.tokenizer(one.prompt)["input_ids"]
        made: list[int] = []
        while len(made) < one.max_new_tokens:
            token = int(self._logits([*ids, *made])[-1].argmax())
            if token == self.tokenizer.eos_token_id:
                return GenerateAnswer(self.tokenizer.decode(made), len(made) + 1, "end")
            made.append(token)
            text = self.tokenizer.decode(made)
            stops = [text.index(stop) for stop in one.stop if stop in text]
            if stops:
                return GenerateAnswer(text[: min(stops)], len(made), "stop")
        return GenerateAnswer(self.tokenizer.decode(made), len(made), "length")


def test_an_engine_from_outside_measures_what_ours_does(
    tiny_model: Any, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    material = Material(
        section=MeasureSection(limit=4, gsm8k_shots=1, gsm8k_tokens=12),
        rows=lambda name, split: ROWS[name, split],
        documents={},
    )
    engines = {
        "outside": PlainEngine(tiny_model, tiny_tokenizer),
        "ours": Engine(tiny_model, tiny_tokenizer),
    }
    found, texts = {}, {}
    for name, engine in engines.items():
        folder = tmp_path / name
        found[name] = evaluate(
            engine,  # type: ignore[arg-type]
            ["winogrande", "gsm8k"],
            material,
            model_name="tiny",
            out=lambda task, folder=folder: folder / f"{task}.json",
        )
        rows = read_lines_gz(samples_file(folder / "gsm8k.json"))
        texts[name] = [(row["text"], row["tokens"], row["finish"]) for row in rows]
    assert texts["outside"] == texts["ours"]
    for task in ("winogrande", "gsm8k"):
        outside, ours = (found[name][task] for name in engines)
        assert outside.version == ours.version and outside.metrics == ours.metrics
    for one, other in zip(*(found[name]["winogrande"].items for name in engines), strict=True):
        assert one["loglikelihoods"] == pytest.approx(other["loglikelihoods"], abs=1e-3)
