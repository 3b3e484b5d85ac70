"""docs/papers.md names every remedy there is, with its file and its strength."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from laura.recipe.remedies import AFTER, PLACES
from laura.recipe.sections import LoraArm

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> dict[str, str]:
    """The rows of a section's table, by the name in their first cell."""
    (section,) = re.findall(rf"^## `{heading}`.*?(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return dict(re.findall(r"^\| `(\w+)` \| (.*)$", section, re.MULTILINE))


@pytest.mark.parametrize("place", PLACES)
def test_every_remedy_stands_on_the_page_with_its_file_and_strength(place: str) -> None:
    rows = rows_of(place)
    assert set(rows) == set(PLACES[place])
    for name, remedy in PLACES[place].items():
        file = remedy.file.replace(".", "/") + ".py"
        assert (ROOT / file).is_file() and f"`{file}`" in rows[name]
        assert re.search(rf"\ba = [^;|]*?{remedy.strength:g}\b", rows[name]), name


def test_every_kind_of_lora_stands_there() -> None:
    for name in get_args(LoraArm.model_fields["init"].annotation):
        assert name == "default" or f"| `init: {name}` |" in PAGE
    for key in ("rslora: true", "dora: true", "lora_plus_ratio", "protect: k", "method: oft"):
        assert f"| `{key}` |" in PAGE


def test_data_and_everything_after_training_stand_there() -> None:
    assert set(rows_of("after")) == set(AFTER)
    assert set(rows_of("data")) == {"replay", "rewritten"}


def test_every_file_it_names_is_there() -> None:
    files = re.findall(r"`(laura/[\w/]+\.py)`", PAGE)
    assert files and all((ROOT / file).is_file() for file in files)
