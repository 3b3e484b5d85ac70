"""A study whose benchmarks vLLM answers, against the same study in process: over a stand-in of
vLLM, and over vLLM itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.recipe.reading import parse_recipe
from laura.recipe.sections import Recipe
from laura.results.errors import ModelError, StoreError, UsageError
from laura.results.store import StudyStore, read_json, read_lines_gz
from laura.results.task_result import TaskResult, samples_file
from laura.study import compare as comparing
from laura.study import workers
from tests.conftest import make_tiny_model, make_tiny_tokenizer
from tests.models import fake_vllm
from tests.models.test_vllm_engine import Fake, gone, require_vllm
from tests.study.carried_out import ROOT, compare, train
from tests.study.conftest import RECIPE, one_thread

BENCHMARKS = ("micro_math", "micro_pronouns")
LOSSES = ("validation_loss", "target_loss", "kl")


def recipe_on(model: Path, data: Path, *overrides: str) -> Recipe:
    """An arm of either kind at one rate and one seed; two benchmarks, two losses."""
    text = RECIPE.format(model=model, folder=data)
    text = text.replace("[1e-3, 3e-3]", "[1e-3]").replace("[1e-2, 3e-2]", "[1e-2]")
    return parse_recipe(text.replace("[600, 1200]", "[600]"), [
        "seeds=[0]", "measure.learning=[micro_math,target_loss]",
        "measure.forgetting=[micro_pronouns,kl]", "measure.limit=4", *overrides,
    ])  # fmt: skip


def carried_out(folder: Path, recipe: Recipe) -> dict[str, Any]:
    with one_thread():
        return compare(recipe, study=folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with heads that vLLM takes on a processor, and an output map of its own."""
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(hidden_size=128, tie_word_embeddings=False).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, model: Path, tiny_data: Path) -> Any:
    """Folder and summary of the study in process."""
    folder = tmp_path_factory.mktemp("here") / "study"
    return folder, carried_out(folder, recipe_on(model, tiny_data))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path / "fake", monkeypatch, model=True)


@pytest.fixture
def asking(model: Path, tiny_data: Path) -> Recipe:
    return recipe_on(model, tiny_data, "measure.engine=vllm")


def results(study: Path) -> Iterator[Path]:
    """Files of every model's results: the base's and each run's."""
    return (path.relative_to(study) for path in sorted(study.rglob("evals/**/*.json")))


def check_equal(ours: Path, theirs: Path, version: str, nats: float = 1e-4) -> None:
    """Losses to the bit; benchmarks by item, their log-likelihoods up to rounding."""
    names = list(results(ours))
    assert names == list(results(theirs)) and len(names) == 3 * 5
    for name in names:
        if name.stem in LOSSES:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
            continue
        one, other = TaskResult.read(ours / name), TaskResult.read(theirs / name)
        assert (other.version, other.model) == (f"{one.version}; vLLM {version}", one.model)
        for mine, other_item in zip(one.items, other.items, strict=True):
            if "loglikelihoods" in mine:
                found = other_item.pop("loglikelihoods")
                assert mine.pop("loglikelihoods") == pytest.approx(found, abs=nats)
            assert mine == other_item, name
        if name.stem == "micro_math":
            files = [samples_file(study / name) for study in (ours, theirs)]
            mine, found = (list(read_lines_gz(file)) for file in files)
            assert [row["text"] for row in mine] == [row["text"] for row in found]


def test_both_engines_find_the_same(here: Any, fake: Fake, asking: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    summary = carried_out(folder, asking)
    check_equal(here[0], folder, fake_vllm.VERSION)
    assert summary["points"] and len(summary["points"]) == len(here[1]["points"])
    assert read_json(folder / "study.json")["identity"]["engine version"] == fake_vllm.VERSION

    (start,) = fake.log("start")
    assert start["start"]["max_lora_rank"] == 8 and not start["start"]["enable_sleep_mode"]
    full, lora = (summary["points"][place]["run"] for place in (0, 1))
    loads = [Path(entry["weights"]) for entry in fake.log("weights")]
    assert full in loads[0].parts and loads[1:] == [Path(asking.base.model)]
    (load,) = fake.log("load")
    assert lora in Path(load["folder"]).parts and len(fake.log("unload")) == 1
    assert gone(fake.pids())

    assert carried_out(folder, asking) == summary
    assert len(fake.log("start")) == 1, "what stands is not asked again"
    fake.faults(version="0.33.0")
    with pytest.raises(StoreError, match="another engine version"):
        carried_out(folder, asking)
    with pytest.raises(StoreError, match="another measure"):
        carried_out(here[0], asking)


@pytest.mark.slow
def test_a_whole_model_whose_output_map_is_its_embedding_starts_it_anew(
    fake: Fake, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    for engine in ("laura", "vllm"):
        recipe = recipe_on(tiny_folder, tiny_data, f"measure.engine={engine}")
        carried_out(tmp_path / engine, recipe)
    check_equal(tmp_path / "laura", tmp_path / "vllm", fake_vllm.VERSION)
    models = [Path(entry["start"]["model"]) for entry in fake.log("start")]
    assert [models[0], models[2]] == [tiny_folder] * 2 and "checkpoints" in models[1].parts
    assert len(models) == 3 and not fake.log("weights") and gone(fake.pids())


@pytest.mark.slow
def test_a_run_whose_vllm_dies_goes_on(
    here: Any, fake: Fake, asking: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    fake.faults(die_after=8)
    with pytest.raises(ModelError, match="vLLM ended by signal SIGKILL"):
        carried_out(folder, asking)
    fake.faults()
    carried_out(folder, asking)
    check_equal(here[0], folder, fake_vllm.VERSION)
    assert gone(fake.pids())


def test_weights_that_vllm_cannot_exchange(fake: Fake, asking: Recipe, tmp_path: Path) -> None:
    fake.faults(stuck=True)
    with pytest.raises(ModelError, match=r"does not carry out weights .*: no such weights"):
        train(asking, arm="full", study=tmp_path / "study")
    assert gone(fake.pids())


@pytest.mark.slow
def test_each_worker_keeps_a_vllm(
    here: Any, fake: Fake, asking: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "threads", lambda: 1)
    monkeypatch.setenv("PYTHONPATH", f"{fake.place / 'site'}{os.pathsep}{ROOT}")
    folder = tmp_path / "study"
    with one_thread():
        compare(asking, study=folder, workers=2)
    check_equal(here[0], folder, fake_vllm.VERSION)
    assert len(fake.log("start")) == 3, "the base's ends before the workers' begin"
    assert gone(fake.pids())


def test_workers_do_not_share_a_gpu(
    asking: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparing._check_workers(asking, 3, "cpu", ray=False)
    monkeypatch.setattr(comparing, "pick_device", torch.device)
    monkeypatch.setattr(comparing, "worker_devices", lambda _: ["cuda:0", "cuda:1"])
    comparing._check_workers(asking, 2, "cuda", ray=False)
    comparing._check_workers(asking, 3, "cuda", ray=True)
    with pytest.raises(UsageError, match=r"--workers is 3, but .*vllm .*there are 2"):
        compare(asking, study=tmp_path / "study", workers=3, device="cuda")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["compare", "train", "evaluate"])
def test_vllm_that_is_missing_is_told_before_torch_loads(command: str, tmp_path: Path) -> None:
    recipe = {
        "name": "x",
        "base": {"model": "micro"},
        "data": {"train": "x"},
        "budget": {"epochs": [1]},
        "arms": {"full": {"method": "full", "learning_rates": [1e-4]}},
        "measure": {"learning": ["gsm8k"], "forgetting": ["hellaswag"], "engine": "vllm"},
    }
    given = {
        "compare": f"{recipe}",
        "train": f"{recipe}, arm='full'",
        "evaluate": "'micro', ['micro_math'], overrides=['measure.engine=vllm']",
    }[command]
    code = (
        "import sys, laura\n"
        f"try:\n    laura.{command}({given})\n"
        "except laura.LauraError as error:\n    print(type(error).__name__, error)\n"
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    wanted = {
        sys.executable: "MissingExtraError .* has no vLLM; install it in an environment",
        str(tmp_path / "nowhere"): "UsageError .*nowhere cannot be started .*LAURA_VLLM_PYTHON",
    }
    for python, words in wanted.items():
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LAURA_VLLM_PYTHON": python}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
            check=True, cwd=tmp_path,
        )  # fmt: skip
        told, modules = done.stdout.splitlines()
        assert modules == "set()" and re.match(words, told), told


@pytest.mark.slow
def test_vllm_itself(here: Any, tmp_path: Path, asking: Recipe) -> None:
    require_vllm()
    folder = tmp_path / "study"
    summary = carried_out(folder, asking)
    version = read_json(folder / "study.json")["identity"]["engine version"]
    check_equal(here[0], folder, version)
    assert len(summary["points"]) == 2
    store = StudyStore(folder)
    assert all(store.run(point["run"]).state == "done" for point in summary["points"])
