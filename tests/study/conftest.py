"""A study that runs in seconds: the tiny model on a few made-up rows."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from laura.recipe.reading import parse_recipe
from laura.results.store import StudyStore
from tests.study.carried_out import compare

RECIPE = """
name: tiny
base: {{model: {model}}}
domain: sums
data:
  train: {{source: {folder}/train.jsonl}}
  validation_rows: 12
  test: {{source: {folder}/test.jsonl}}
  source_text: {{source: {folder}/text.jsonl}}
budget: {{tokens: [600, 1200]}}
arms:
  full: {{method: full, learning_rates: [1e-3, 3e-3]}}
  lora: {{method: lora, rank: 4, learning_rates: [1e-2, 3e-2]}}
train: {{batch_tokens: 128, row_tokens: 64, precision: fp32, checkpoint_minutes: 1.0e-6}}
search: {{extend: 0}}
seeds: [0, 1]
measure: {{learning: [target_loss], forgetting: [source_loss, kl], loss_documents: 10}}
"""


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums to learn, sums to test on, and plain sentences."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [(a, b) for a in range(1, 13) for b in range(1, 13)]
    random.Random(0).shuffle(pairs)
    rows = [{"prompt": f"{a} + {b}?", "completion": f"{a + b}"} for a, b in pairs]
    _write(folder / "train.jsonl", rows[:110])
    _write(folder / "test.jsonl", rows[110:])
    words = ["the cat sat on the mat", "a dog ran to it", "the dog ate an apple"]
    texts = [{"text": f"{words[i % 3]} and {words[(i + 1) % 3]} number {i}"} for i in range(12)]
    _write(folder / "text.jsonl", texts)
    return folder


@pytest.fixture
def recipe_text(tiny_folder: Path, tiny_data: Path) -> str:
    """The tiny recipe."""
    return RECIPE.format(model=tiny_folder, folder=tiny_data)


@contextmanager
def one_thread() -> Iterator[None]:
    """Whatever the machine, a run here rounds as one in a worker process does."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_data: Path) -> Any:
    """The tiny recipe, carried out in one process: for tests that only read it."""
    recipe = parse_recipe(RECIPE.format(model=tiny_folder, folder=tiny_data))
    folder = tmp_path_factory.mktemp("study") / "tiny"
    with one_thread():
        return recipe, folder, compare(recipe, study=folder)


def damaged_copy(folder: Path, summary: dict[str, Any], place: Path) -> Path:
    """A finished study with one checkpoint cut short and one of its measurements missing."""
    copy = place / "copy"
    shutil.copytree(folder, copy)
    point = summary["points"][0]
    run = StudyStore(copy).run(point["run"])
    run.evaluation(point["step"], "kl").unlink()
    weights = next(run.checkpoint(point["step"]).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-8])
    return copy


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
