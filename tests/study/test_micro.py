"""The micro laboratory as it comes with Laura, through the commands, from end to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from laura.data.named import NAMED
from laura.data.sources import BUILTIN, load_examples, load_rows
from laura.errors import DataError, ModelError
from laura.evals.asking import Ask
from laura.evals.tasks import load
from laura.micro.settings import WorldSettings
from laura.micro.targets import DOMAINS, SPLITS, running_text
from laura.models.registry import MICRO_BASE
from laura.recipe import MeasureSection, Source
from laura.recipe_reading import read_recipe
from laura.shipped import find_recipe
from laura.store import file_hash, read_lines_gz
from laura.study.micro_base import STAGES, check_card, make_data
from laura.study.micro_check import Check, check_base, check_study

ROOT = Path(__file__).parents[2]
LARGEST_BYTES = 6_000_000


def laura(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "laura.cli", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small comparison by the command line, two workers: its folder and its answer."""
    folder = tmp_path_factory.mktemp("micro") / "study"
    done = laura("compare", "micro-small", "--out", str(folder), "--workers", "2", "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_the_shipped_base_is_small_and_its_card_fits() -> None:
    card = check_card(MICRO_BASE)
    assert card["world"] == asdict(WorldSettings())
    assert card["stages"] == json.loads(json.dumps([asdict(stage) for stage in STAGES]))
    assert (MICRO_BASE / "model.safetensors").stat().st_size <= LARGEST_BYTES


def test_the_shipped_data_is_what_the_code_makes() -> None:
    made = make_data(WorldSettings())
    folder = BUILTIN / "micro"
    assert sorted(made) == sorted(path.name.split(".")[0] for path in folder.iterdir())
    for name, rows in made.items():
        assert read_lines_gz(folder / f"{name}.jsonl.gz") == rows, name


def test_a_data_folder_wins_over_the_shipped_data(tmp_path: Path) -> None:
    (tmp_path / "micro").mkdir()
    shutil.copy(BUILTIN / "micro" / "math_validation.jsonl.gz", tmp_path / "micro")
    (tmp_path / "micro" / "math_validation.jsonl.gz").rename(
        tmp_path / "micro" / "math_test.jsonl.gz"
    )
    other = load_rows("micro_math", "test", tmp_path)
    assert other == load_rows("micro_math", "validation") != load_rows("micro_math", "test")
    # It is another world: what it lacks is not taken from ours.
    with pytest.raises(DataError, match=r"micro/code_test\.jsonl\.gz"):
        load_rows("micro_code", "test", tmp_path)
    with pytest.raises(DataError, match=r"micro/source\.jsonl\.gz"):
        load_examples(Source(source="micro-source"), tmp_path)
    assert load_rows("micro_code", "test", tmp_path.parent) == load_rows("micro_code", "test")


@pytest.mark.parametrize("domain", DOMAINS)
def test_both_forms_of_a_domain_hold_the_same_rows(domain: str) -> None:
    for split in SPLITS:
        pairs = load_examples(Source(source=f"micro-{domain}", split=split))
        texts = load_examples(Source(source=f"micro-{domain}-text", split=split))
        rows = load_rows(f"micro_{domain}", split)
        assert [text.text for text in texts] == [running_text(row) for row in rows]
        assert [pair.messages[1][1] for pair in pairs] == [
            row["answer" if domain == "math" else "canonical_solution"] for row in rows
        ]
    assert NAMED[f"micro-{domain}"].builtin


@pytest.mark.parametrize("domain", DOMAINS)
def test_text_prompts_begin_the_running_text_token_by_token(domain: str) -> None:
    """Else the model would be asked after a token that no text shows there."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MICRO_BASE)
    rows = load_rows(f"micro_{domain}", "test")[:100]
    ask = Ask(MeasureSection(micro_prompt="text"), lambda split: [], lambda: str)
    _, questions = load(f"micro_{domain}").prepare(rows, ask)
    for row, question in zip(rows, questions, strict=True):
        asked = tokenizer(question.request.prompt)["input_ids"]
        assert tokenizer(running_text(row))["input_ids"][: len(asked)] == asked


@pytest.mark.parametrize("name", ["micro", "micro-math", "micro-small"])
def test_the_recipes_are_sound_and_give_both_arms_as_many_rates(name: str) -> None:
    recipe = read_recipe(find_recipe(name))
    grids = [sorted(arm.learning_rates) for arm in recipe.arms.values()]
    assert len({len(grid) for grid in grids}) == 1
    steps = [b / a for grid in grids for a, b in pairwise(grid)]
    assert all(step == pytest.approx(2) for step in steps)


def test_a_comparison_ends_with_its_report_and_verdict(compared: Any) -> None:
    folder, answer = compared
    assert (folder / "report.html").is_file() and (folder / "figures" / "tradeoff.svg").is_file()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["base"]["scores"]["micro_facts"]["value"] > 0.7
    assert summary["base"]["scores"]["micro_code"]["value"] == 0
    for point in summary["points"]:
        assert point["learning"]["target_loss"]["change"] < -1
    assert answer["verdict"]["headline"]


def test_one_run_and_its_report_again(compared: Any, tmp_path: Path) -> None:
    folder, _ = compared
    shutil.copytree(folder, tmp_path / "study")
    trained = laura(
        "train", "micro-small", "--arm", "full", "--learning-rate", "1e-3", "--seed", "0",
        "--out", str(tmp_path / "study"), "--json",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "study" / "report.html").unlink()
    drawn = laura("report", str(tmp_path / "study"))
    assert drawn.returncode == 0 and (tmp_path / "study" / "report.html").is_file()


def test_a_checkpoint_and_an_adapter_are_evaluated(compared: Any, tmp_path: Path) -> None:
    folder, _ = compared
    points = json.loads((folder / "summary.json").read_text())["points"]
    for method in ("full", "lora-r4"):
        point = next(p for p in points if p["arm"] == method)
        place = folder / "runs" / point["run"] / "checkpoints" / f"{point['step']:08d}"
        model = [str(place)] if method == "full" else ["micro", "--adapter", str(place)]
        done = laura(
            "evaluate", *model, "--tasks", "micro_facts,micro_code", "--limit", "40",
            "--set", "measure.precision=auto", "--out", str(tmp_path / method), "--json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["micro_facts"]["metrics"]["acc_norm"]["value"]
        assert found == pytest.approx(point["scores"]["micro_facts"]["value"], abs=0.051)


def test_a_run_that_is_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    words = [
        "train", "micro-small", "--arm", "full", "--learning-rate", "1e-3", "--seed", "0",
        "--set", "measure.forgetting=[source_loss]", "--set", "measure.learning=[target_loss]",
        "--set", "train.checkpoint_minutes=1e-6",
    ]  # fmt: skip
    assert laura(*words, "--out", str(tmp_path / "whole")).returncode == 0
    command = [sys.executable, "-m", "laura.cli", *words, "--out", str(tmp_path / "stopped")]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list((tmp_path / "stopped").glob("runs/*/resume/*/*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert laura(*words, "--out", str(tmp_path / "stopped")).returncode == 0
    weights = [
        sorted(file_hash(path) for path in (tmp_path / name).rglob("model.safetensors"))
        for name in ("whole", "stopped")
    ]
    assert weights[0] == weights[1] and len(weights[0]) == 2


@pytest.mark.slow
def test_the_shipped_base_is_what_it_must_be() -> None:
    checks = check_base(MICRO_BASE)
    assert len(checks) == 6
    assert [check for check in checks if not check.holds] == []


def test_a_card_of_other_weights_stops_the_check(tmp_path: Path) -> None:
    shutil.copytree(MICRO_BASE, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    done = laura("micro", "check", "--base", str(tmp_path / "base"))
    assert done.returncode == 2
    assert "other weights" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(ModelError, match=r"no card\.json"):
        check_base(tmp_path)


def test_what_a_comparison_must_show_is_read_off_it(compared: Any, tmp_path: Path) -> None:
    folder, _ = compared
    checks = {check.what.split(": ")[1]: check for check in check_study(folder)}
    # Eight thousand tokens teach nothing, and no check may say they did.
    assert checks["full finetuning at its best, micro_code"].holds is False
    assert checks["minutes of the comparison"].holds is True
    (folder / "timing.json").unlink()
    again = {check.what.split(": ")[1]: check for check in check_study(folder)}
    assert again["minutes of the comparison"].holds is None
    [absent] = check_study(tmp_path / "none")
    assert absent == Check(absent.what, absent.found, "a finished comparison", None)
