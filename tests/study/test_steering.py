"""A study that is steered while it goes on: stopped, a run skipped and taken back, more added."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laura.recipe.reading import parse_recipe, recipe_yaml, stored_recipe
from laura.results.errors import StoreError, UsageError
from laura.results.store import RunStore, StudyStore, read_json, write_text
from laura.study import steering
from laura.study.opening import open_study
from laura.study.steering import (
    ask_for_rate,
    ask_for_seed,
    ask_to_skip,
    ask_to_stop,
    read_steering,
)
from laura.study.workers import Crew
from tests.study.carried_out import command, compare, judgement

ONE_EACH = [
    "arms.full.learning_rates=[1e-3]",
    "arms.lora.learning_rates=[1e-2, 3e-2]",
    "budget.tokens=[1200]",
    "seeds=[0]",
]


@pytest.fixture(autouse=True)
def looked_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "LOOK_SECONDS", 0.0)


@pytest.fixture
def small(recipe_text: str) -> Any:
    return parse_recipe(recipe_text, ONE_EACH)


def weights(folder: Path, arm: str, rate: float) -> dict[str, bytes]:
    """Files of every checkpoint of an arm's run."""
    runs = [r for r in StudyStore(folder).runs() if (r.folder / "run.json").is_file()]
    (run,) = [
        r for r in runs
        if (known := read_json(r.folder / "run.json"))["arm"] == arm
        and known["learning_rate"] == rate
    ]  # fmt: skip
    return {p.parent.name: p.read_bytes() for p in run.folder.glob("checkpoints/*/*.safetensors")}


def when_trained(monkeypatch: pytest.MonkeyPatch, steps: int, act: Callable[[], None]) -> None:
    """Have something done once, as soon as so many steps of LoRA runs were written down."""
    left, append = [steps], RunStore.append_metrics

    def counted(self: RunStore, row: dict[str, Any]) -> None:
        append(self, row)
        if read_json(self.folder / "run.json")["arm"] == "lora":
            left[0] -= 1
            if left[0] == 0:
                act()

    monkeypatch.setattr(RunStore, "append_metrics", counted)


@pytest.mark.parametrize("cohort", [1, 2])
def test_a_skipped_run_keeps_its_state_and_goes_on_when_taken_back(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cohort: int
) -> None:
    small = small.model_copy(update={"train": small.train.model_copy(update={"cohort": cohort})})
    compare(small, study=tmp_path / "whole", device="cpu")
    study = tmp_path / "steered"
    with monkeypatch.context() as patched:
        skip = lambda: ask_to_skip(study, "lora", 1e-2, 0, True)  # noqa: E731
        when_trained(patched, 3, skip)
        compare(small, study=study, device="cpu")
    assert weights(study, "lora", 1e-2) == {}
    assert weights(study, "lora", 3e-2) == weights(tmp_path / "whole", "lora", 3e-2)
    judged = judgement(study)
    assert any("Skipped by hand: lora at 0.01, seed 0." in words for words in judged.caveats)
    ask_to_skip(study, "lora", 1e-2, 0, False)
    compare(small, study=study, device="cpu")
    assert weights(study, "lora", 1e-2) == weights(tmp_path / "whole", "lora", 1e-2)
    assert not any("Skipped" in words for words in judgement(study).caveats)


def test_what_is_added_and_taken_back_is_carried_out_by_the_command_that_runs(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "s"

    def ask() -> None:
        ask_to_skip(study, "lora", 3e-2, 0, True)
        ask_for_rate(study, "full", 2e-3, [1e-3])
        ask_for_seed(study, 7)

    real = Crew.carry_out

    def taking_back(self: Crew, specs: Any, bar: Any) -> None:
        real(self, specs, bar)
        ask_to_skip(study, "lora", 3e-2, 0, False)

    monkeypatch.setattr(Crew, "carry_out", taking_back)
    with monkeypatch.context() as patched:
        when_trained(patched, 2, ask)
        found = compare(small, study=study, device="cpu")
    runs = {(run["arm"], run["learning_rate"], run["seed"]) for run in found["runs"]}
    assert runs == {
        (arm, rate, seed)
        for arm, rate in [("full", 1e-3), ("full", 2e-3), ("lora", 1e-2), ("lora", 3e-2)]
        for seed in (0, 7)
    }
    assert {run["state"] for run in found["runs"]} == {"done"}
    # The recipe on record has it, and the command with the recipe as it was finds all done.
    assert stored_recipe(study / "recipe.yaml").seeds == [0, 7]
    assert compare(small, study=study, device="cpu") == found
    (caveat,) = [words for words in judgement(study).caveats if "Added" in words]
    assert "full at 0.002, seed 7" in caveat


def test_before_anything_is_measured_an_addition_is_a_recipe_like_another(
    small: Any, tmp_path: Path
) -> None:
    study = tmp_path / "s"
    with open_study(small, study, None, "cpu"):
        ask_for_rate(study, "full", 2e-3, [1e-3])
        # Further commands join with the recipe as it was given.
        with open_study(small, study, None, "cpu") as joined:
            assert joined.recipe.arms["full"].learning_rates == [1e-3, 2e-3]
            assert not joined.alone
    assert read_steering(study).rates[0].measured == 0


@pytest.mark.slow
def test_stop_ends_every_command_at_a_study_where_it_can_go_on(
    recipe_text: str, tmp_path: Path
) -> None:
    study, file = tmp_path / "s", tmp_path / "recipe.yaml"
    file.write_text(recipe_text)
    words = ("compare", file, "--out", study, "--device", "cpu", "--workers", "1")
    one = command(*words, "--set", "budget.tokens=[10_000_000]")
    started = [subprocess.Popen(**one, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    wait_for(lambda: len(list(study.glob("runs/*/metrics.jsonl"))) == 2)
    ask_to_stop(study, True)
    for process in started:
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130 and "the same command continues" in told
    assert len(list(study.glob("runs/*/resume/*/manifest.json"))) == 2
    with open_study(stored_recipe(study / "recipe.yaml"), study, None, "cpu"):
        assert read_steering(study).stop is None  # it does not outlive those it was made to


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_killed_commands_find_what_was_asked(small: Any, tmp_path: Path) -> None:
    """What a kill left is taken up by the next command, with the recipe as it was at first."""
    study = tmp_path / "s"
    with open_study(small, study, None, "cpu"):
        pass
    ask_for_seed(study, 3)
    ask_to_skip(study, "lora", 1e-2, 3, True)
    # As if killed between the two files.
    (study / "recipe.yaml").write_text(recipe_yaml(small))
    found = compare(small, study=study, device="cpu", workers=2)
    assert {run["seed"] for run in found["runs"]} == {0, 3}
    assert (0.01, 3) not in {(run["learning_rate"], run["seed"]) for run in found["runs"]}
    assert stored_recipe(study / "recipe.yaml").seeds == [0, 3]


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda s: ask_for_rate(s, "none", 1e-3, []), "no arm 'none'; the study has: full, lora"),
        (lambda s: ask_for_rate(s, "full", 0.0, []), "above 0 and at most 1, came 0"),
        (lambda s: ask_for_rate(s, "full", float("nan"), []), "above 0 and at most 1, came nan"),
        (lambda s: ask_for_rate(s, "full", 1e-3, []), "full is run at 0.001 already"),
        (lambda s: ask_for_rate(s, "full", 4e-3, [4e-3]), "full is run at 0.004 already"),
        (lambda s: ask_for_seed(s, 0), "seed 0 is used already"),
        (lambda s: ask_for_seed(s, -1), "from 0 to 2147483647, came -1"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    finished: Any, tmp_path: Path, ask: Callable[[Path], None], words: str
) -> None:
    study = tmp_path / "s"
    study.mkdir()
    shutil.copy(finished[1] / "recipe.yaml", study)
    with pytest.raises(UsageError, match=re.escape(words)):
        ask(study)
    assert read_steering(study) == steering.Steering()


def test_a_search_decides_by_itself(recipe_text: str, tmp_path: Path) -> None:
    recipe = parse_recipe(recipe_text, ["search={sampler: random, trials: 2}"])
    write_text(tmp_path / "recipe.yaml", recipe_yaml(recipe))
    with pytest.raises(UsageError, match=r"search\.pruner stops"):
        ask_to_skip(tmp_path, "full", 1e-3, 0, True)
    with pytest.raises(UsageError, match="those of its search"):
        ask_for_rate(tmp_path, "full", 2e-3, [])
    ask_for_seed(tmp_path, 5)


def test_a_damaged_file_stops_no_run_and_is_told_by_whoever_concludes(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "s"
    when_trained(monkeypatch, 2, lambda: write_text(study / "steering.json", "{"))
    with pytest.raises(StoreError, match=r"steering\.json is not JSON .* delete it"):
        compare(small, study=study, device="cpu")
    assert len(list(study.glob("runs/*/done.json"))) == 3


def test_rates_that_a_list_had_grown_by_stay_in_it(small: Any, tmp_path: Path) -> None:
    """A rate in between changes the steps of a list, and so what it could grow to."""
    study = tmp_path / "s"
    with open_study(small, study, None, "cpu"):
        ask_for_rate(study, "lora", 2e-2, [1e-2, 3e-2, 9e-2])
    assert stored_recipe(study / "recipe.yaml").arms["lora"].learning_rates == [
        1e-2, 3e-2, 9e-2, 2e-2,
    ]  # fmt: skip
