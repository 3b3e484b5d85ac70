"""Records beside weights: what of them is shown, and whose a tuned base's must be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from laura.models.adapter_files import base_facts
from laura.results.errors import StoreError
from laura.results.schema import RECORD_FILE, Record
from laura.results.store import file_hash
from laura.serve.library import short_record
from tests.serve.houses import BASE, build
from tests.serve.page_server import RECORD
from tests.serve.test_app import ask
from tests.test_record import VALUE


@pytest.fixture
def winner(tiny_folder: Path, tmp_path: Path) -> Path:
    """A folder as `laura recommend --adapter` writes it where full finetuning won."""
    folder = tmp_path / "winner"
    shutil.copytree(tiny_folder, folder)
    weights = {path.name: file_hash(path) for path in sorted(folder.iterdir())}
    value = {**VALUE, "method": "full", "arm": "full", "weights": weights}
    (folder / RECORD_FILE).write_text(json.dumps(value))
    return folder


def test_what_is_recorded_of_a_tuned_base(winner: Path, tiny_folder: Path) -> None:
    record = base_facts(winner).record
    assert record is not None and record.method == "full"
    assert base_facts(tiny_folder).record is None


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_record_of_other_files_is_refused(winner: Path, name: str) -> None:
    with (winner / name).open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\n ")
    with pytest.raises(StoreError, match=f"belongs to other files: .* SHA-256 for {name}"):
        base_facts(winner)
    (winner / name).unlink()
    with pytest.raises(StoreError, match=name):
        base_facts(winner, fingerprint="known")


def test_models_tell_what_the_base_learned_and_forgot(micro_tokenizer: Any) -> None:
    house = build(micro_tokenizer)
    assert ask(house, "GET", f"/v1/models/{BASE}").json()["laura"]["record"] is None
    record = Record.model_validate_json(json.dumps(VALUE))
    house.library.base = replace(house.library.base, record=record)
    assert ask(house, "GET", "/v1/models").json()["data"][0]["laura"]["record"] == json.loads(
        json.dumps(short_record(record))
    )


def test_numbers_with_errors_base_and_verdicts() -> None:
    short = short_record(Record.model_validate_json(json.dumps(VALUE)))
    assert short is not None
    assert json.loads(json.dumps(short)) == short
    for name in ("base", "scores", "learning", "forgetting", "arm", "method", "learning_rate"):
        assert short[name] == VALUE[name]
    assert short["claims"] == {"forgets-less": "undecided"}
    assert not {"recipe", "weights", "versions"} & short.keys()
    # What the page's and the chat's tests show is of this form.
    assert short.keys() == RECORD.keys()
