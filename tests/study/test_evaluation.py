"""`laura evaluate` on a base and adapters: killed, started again, and against one at a time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from laura.api import Evaluation
from laura.cli.measurement import adapter_names, scores_text
from laura.engine.engine import Engine
from laura.engine.forecast import Pace, forecast, measure_pace
from laura.engine.requests import GenerateRequest, ScoreRequest
from laura.models.adapters import attach, save_adapter
from laura.models.load import load_base
from laura.models.lora import LoraSettings, detach, lora_layers
from laura.recipe.reading import read_measure_section
from laura.recipe.sections import MeasureSection
from laura.results.errors import RecipeError, StoreError, UsageError
from laura.results.task_result import TaskResult
from laura.study.evaluation import evaluate_model
from tests.models import peft_twin
from tests.study.carried_out import command, finish, kill_at_random

RANKS = (2, 4, 8, 16)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four adapters on the micro base, each of another rank."""
    base = load_base("micro", device="cpu")
    made = []
    for rank in RANKS:
        settings = LoraSettings(rank=rank, alpha=2.0 * rank)
        attach(base.model, settings, seed=rank)
        with torch.no_grad():
            for layer in lora_layers(base.model).values():
                layer.B.normal_(std=0.05)
        made.append(tmp_path_factory.mktemp("adapters") / f"rank{rank}")
        save_adapter(base.model, made[-1], settings, "micro")
        detach(base.model)
    return made


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file but the wall times, and what a kill left of one that was written aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".seconds" and not path.name.startswith(".")
    }


def unfinished_bytes(folder: Path) -> int:
    """How much is kept of tasks under way; 0 where one has just ended."""
    try:
        return sum(path.stat().st_size for path in folder.rglob("*.jsonl"))
    except FileNotFoundError:
        return 0


def measured(out: Path, adapters: list[Path], **changes: Any) -> dict[str, Any]:
    section = MeasureSection(**{"limit": 12, **changes})
    names = {path.name: path for path in adapters}
    tasks = ["micro_pronouns", "micro_math"]
    return evaluate_model("micro", adapters=names, tasks=tasks, section=section, out=out)


def test_adapters_in_one_pass_equal_each_alone(adapters: list[Path], tmp_path: Path) -> None:
    together = measured(tmp_path / "all", adapters[:2])
    assert list(together) == ["base", "rank2", "rank4"]
    alone = measured(tmp_path / "none", [])
    for task, found in alone.items():
        assert together["base"][task]["metrics"] == found["metrics"]
    for path in adapters[:2]:
        apart = measured(tmp_path / path.name, [path])[path.name]
        for task, found in together[path.name].items():
            assert found["metrics"] == apart[task]["metrics"]
            assert "change" in found["metrics"][next(iter(found["metrics"]))]
            one = TaskResult.read(tmp_path / "all" / path.name / f"{task}.json")
            other = TaskResult.read(tmp_path / path.name / path.name / f"{task}.json")
            assert one.model == other.model
            assert re.fullmatch(rf"micro@[0-9a-f]{{8}} \+ {path.name}@[0-9a-f]{{8}}", one.model)
            for mine, theirs in zip(one.items, other.items, strict=True):
                if "loglikelihoods" in mine:
                    assert mine.pop("loglikelihoods") == pytest.approx(
                        theirs.pop("loglikelihoods"), abs=1e-4
                    )
                assert mine == theirs
    text = "".join(map(scores_text, Evaluation(models=together).models.values()))
    assert "95%" in text


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings:UserWarning")
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer:UserWarning")
@pytest.mark.filterwarnings(peft_twin.WARNING)
def test_an_adapter_with_a_trained_output_map_is_measured_as_a_model_of_its_own(
    adapters: list[Path], tmp_path: Path
) -> None:
    """As the model that PEFT itself makes of it."""
    base = load_base("micro", device="cpu")
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], bias="all")
    whole = get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in whole.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    whole.save_pretrained(tmp_path / "whole")
    by_peft = whole.merge_and_unload()
    by_peft.save_pretrained(tmp_path / "merged")
    base.tokenizer.save_pretrained(tmp_path / "merged")

    found = measured(tmp_path / "out", [adapters[0], tmp_path / "whole"])
    assert list(found) == ["base", "rank2", "whole"]
    expected = evaluate_model(
        str(tmp_path / "merged"),
        tasks=list(found["whole"]),
        section=MeasureSection(limit=12),
        out=tmp_path / "ours",
    )
    for task, one in found["whole"].items():
        for name, metric in one["metrics"].items():
            assert metric.pop("change")
            assert metric == expected[task]["metrics"][name]
        result = TaskResult.read(Path(one["file"]))
        assert re.fullmatch(r"micro \+ whole@[0-9a-f]{8}", result.model)
        assert result.items != TaskResult.read(Path(found["base"][task]["file"])).items


def test_what_is_asked_for_twice_stands(adapters: list[Path], tmp_path: Path) -> None:
    first = measured(tmp_path, adapters[:1])
    before = files_of(tmp_path)
    assert measured(tmp_path, adapters[:1]) == first
    # Nor where its base lies now, which its configuration names.
    moved = tmp_path / "moved" / adapters[0].name
    shutil.copytree(adapters[0], moved)
    config = moved / "adapter_config.json"
    config.write_text(config.read_text().replace('"micro"', '"/elsewhere"'))
    assert measured(tmp_path, [moved]) == first
    # Another adapter joins: what stands is not touched.
    joined = measured(tmp_path, adapters[:2])
    after = files_of(tmp_path)
    assert {name: after[name] for name in before} == before
    assert joined["rank2"] == first["rank2"]


def test_results_of_other_weights_are_not_taken(adapters: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "mine"
    shutil.copytree(adapters[0], place)
    measured(tmp_path / "out", [place])
    shutil.rmtree(place)
    shutil.copytree(adapters[1], place)
    with pytest.raises(StoreError, match=r"mine@.*wanted is .*mine@.*another folder with --out"):
        measured(tmp_path / "out", [place])


def test_results_of_other_arithmetic_are_measured_again(tmp_path: Path) -> None:
    exact = measured(tmp_path, [], precision="fp32")
    version = TaskResult.read(tmp_path / "micro_pronouns.json").version
    low = measured(tmp_path, [], precision="bf16")
    again = TaskResult.read(tmp_path / "micro_pronouns.json")
    assert again.version == f"{version}; bf16"
    assert low["micro_pronouns"]["n"] == exact["micro_pronouns"]["n"]


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_files(
    adapters: list[Path], tmp_path: Path
) -> None:
    words = ["evaluate", "micro", "--limit", 60, "--tasks", "micro_facts,micro_math,micro_code"]
    for path in adapters:
        words += ["--adapter", path]
    whole = subprocess.run(
        **command(*words, "--out", tmp_path / "whole"), capture_output=True, text=True, check=False
    )
    assert whole.returncode == 0, whole.stderr
    assert "This takes at most about" in whole.stderr and whole.stdout.count("rank16") == 1
    expected, folder = files_of(tmp_path / "whole"), tmp_path / "killed"
    assert len(expected) == 5 * 3 * 2
    kept, kills = 0, 0
    for seed in range(3):
        begun = partial(lambda before: unfinished_bytes(folder) > before + 1_000, kept)
        kills += kill_at_random([command(*words, "--out", folder)], begun, seed, 0.5)
        kept = unfinished_bytes(folder)
    finish(command(*words, "--out", folder))
    assert kills >= 2
    assert files_of(folder) == expected


def test_adapters_are_named_by_as_much_of_their_path_as_is_needed(tmp_path: Path) -> None:
    for name in ("a/checkpoints/10", "b/checkpoints/10", "c"):
        (tmp_path / name).mkdir(parents=True)
    given = [str(tmp_path / name) for name in ("a/checkpoints/10", "b/checkpoints/10")]
    named = adapter_names(given)
    assert list(named) == ["a-checkpoints-10", "b-checkpoints-10"]
    assert list(adapter_names([str(tmp_path / "c"), f"mine={given[0]}"])) == ["mine", "c"]
    (tmp_path / "lr=1e-4").mkdir()
    assert list(adapter_names([f"{tmp_path}/lr=1e-4/"])) == ["lr=1e-4"]
    assert list(adapter_names(["/tmp", "/var/tmp"])) == ["tmp", "var-tmp"]
    with pytest.raises(UsageError, match="cannot be one"):
        adapter_names([f"..={tmp_path}"])
    with pytest.raises(UsageError, match=r"there is no folder .*none; give DIR or NAME=DIR"):
        adapter_names([str(tmp_path / "none")])
    with pytest.raises(UsageError, match="twice"):
        adapter_names([given[0], given[0]])
    with pytest.raises(UsageError, match="'base' is taken or cannot be one"):
        adapter_names([f"base={given[0]}"])


def test_presets_fill_in_what_is_not_given() -> None:
    paper = read_measure_section(["measure.preset=paper", "measure.code_samples=20"])
    assert (paper.code_samples, paper.code_temperature, paper.code_top_p) == (20, 0.2, 0.95)
    assert (paper.gsm8k_shots, paper.gsm8k_sampler, paper.limit) == (5, "sampled", None)
    assert paper.forgetting == ["hellaswag", "arc_challenge", "winogrande"]
    quick = read_measure_section(["measure.preset=quick"])
    assert (quick.limit, quick.subset, quick.code_samples) == (200, "random", 1)
    assert MeasureSection.model_validate(quick.model_dump()) == quick
    with pytest.raises(RecipeError, match="preset"):
        read_measure_section(["measure.preset=papre"])


def test_forecast_counts_what_is_shared_once(tiny_model: Any, tiny_tokenizer: Any) -> None:
    engine = Engine(tiny_model, tiny_tokenizer)
    context = "the cat sat on a mat and the dog ran to it " * 4
    scores = [ScoreRequest(context, f" {word}") for word in ("a", "the", "apple", "many")]
    read = len(tiny_tokenizer.encode(context))
    pace = Pace(0.001, 0.01)
    found = forecast(engine, scores, 3, pace)
    assert 3 * read <= found.read <= 3 * (read + 12)
    assert found.seconds == pytest.approx(found.read * 0.001)
    written = forecast(engine, [GenerateRequest(context, (), 9)] * 5, 1, pace)
    assert (written.read, written.written) == (read, 45)
    assert written.seconds == pytest.approx(read * 0.001 + 0.45)
    read_tokens: list[int] = []
    states = engine.runner.states
    engine.runner.states = lambda inputs: (  # type: ignore[method-assign]
        read_tokens.append(inputs["input_ids"].shape[1]),
        states(inputs),
    )[1]
    real = measure_pace(engine)
    assert 0 < real.read < 0.1 and 0 < real.written < 0.1
    assert min(read_tokens) > 150, "a token's time is that of a full pass"


def test_what_needs_a_recipe_and_what_is_mistyped_is_said_first(tmp_path: Path) -> None:
    section = MeasureSection()
    for task, words in (
        ("kl", "kl needs a recipe"),
        ("target_loss", "target_loss needs a recipe"),
        ("hellaswagg", "Did you mean 'hellaswag'"),
    ):
        with pytest.raises(UsageError, match=words):
            evaluate_model("absent-model", tasks=[task], section=section, out=tmp_path)
    assert json.dumps(list(tmp_path.iterdir())) == "[]"
