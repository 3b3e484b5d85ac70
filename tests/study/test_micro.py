"""What comes with Laura of the micro laboratory: sound, small, and what the code makes."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest

from laura.data.named import NAMED
from laura.data.sources import BUILTIN, load_examples, load_rows
from laura.evals.scoring import TaskSettings
from laura.evals.tasks import load
from laura.micro.settings import WorldSettings
from laura.micro.targets import DOMAINS, SPLITS, running_text
from laura.models.registry import MICRO_BASE
from laura.recipe.reading import read_recipe
from laura.recipe.sections import MeasureSection, Source
from laura.recipe.shipped import find_recipe
from laura.results.errors import DataError, ModelError
from laura.results.store import read_lines_gz
from scripts.check_micro import check_base, check_card
from scripts.make_micro_base import STAGES, make_data

LARGEST_BYTES = 6_000_000


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
    ask = TaskSettings(MeasureSection(micro_prompt="text"), lambda split: [], lambda: str)
    _, questions = load(f"micro_{domain}").prepare(rows, ask)
    for row, question in zip(rows, questions, strict=True):
        asked = tokenizer(question.requests[0].prompt)["input_ids"]
        assert tokenizer(running_text(row))["input_ids"][: len(asked)] == asked


@pytest.mark.parametrize("name", ["micro", "micro-math", "micro-small"])
def test_the_recipes_are_sound_and_give_both_arms_as_many_rates(name: str) -> None:
    recipe = read_recipe(find_recipe(name))
    grids = [sorted(arm.learning_rates) for arm in recipe.arms.values()]
    assert len({len(grid) for grid in grids}) == 1
    steps = [b / a for grid in grids for a, b in pairwise(grid)]
    # Equal steps, or how much a step off costs could not be compared.
    assert all(step == pytest.approx(2.5) for step in steps)


@pytest.mark.slow
def test_the_shipped_base_is_what_it_must_be() -> None:
    checks = check_base(MICRO_BASE)
    assert len(checks) == 6
    assert [check for check in checks if not check.holds] == []


def test_a_card_of_other_weights_stops_the_check(tmp_path: Path) -> None:
    shutil.copytree(MICRO_BASE, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ModelError, match="other weights"):
        check_base(tmp_path / "base")
    card = json.loads((MICRO_BASE / "card.json").read_text())
    shutil.copytree(MICRO_BASE, tmp_path / "old")
    (tmp_path / "old" / "card.json").write_text(json.dumps({**card, "world": {"scripts": 9}}))
    with pytest.raises(ModelError, match=r"no world that this version of Laura makes.*scripts"):
        check_base(tmp_path / "old")
    with pytest.raises(ModelError, match=r"no card\.json"):
        check_base(tmp_path)
