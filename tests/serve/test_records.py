"""Records beside weights: what of them is shown, and whose a tuned base's must be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from laura.models.adapter_files import base_facts
from laura.results.errors import StoreError, UsageError
from laura.results.schema import RECORD_FILE, Record
from laura.results.store import file_hash
from laura.serve.library import Policy, PolicyVerdict, short_record
from tests.serve.houses import BASE, build
from tests.serve.page_server import RECORD
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
    assert house.request("GET", f"/v1/models/{BASE}").json()["laura"]["record"] is None
    record = Record.model_validate_json(json.dumps(VALUE))
    house.library.base = replace(house.library.base, record=record)
    assert house.request("GET", "/v1/models").json()["data"][0]["laura"]["record"] == json.loads(
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


def record(value: float, low: float, high: float) -> Record:
    forgetting = {**VALUE["forgetting"], "value": value, "interval": [low, high]}
    return Record.model_validate_json(json.dumps({**VALUE, "forgetting": forgetting}))


def test_the_upper_end_is_held_against_the_bound_and_not_the_value_alone() -> None:
    policy = Policy(max_forgetting=0.05)
    assert policy.judge(record(0.02, 0.0, 0.05)) == PolicyVerdict()
    assert policy.judge(record(-0.02, -0.03, -0.01)) == PolicyVerdict()
    assert policy.judge(record(0.02, -0.02, 0.06)).refused == (
        "it may have forgotten more than --max-forgetting 0.05 allows: the upper end of the "
        "interval, +0.06, is above it (forgetting +0.02 share, 95.0% interval -0.02 to +0.06, "
        "on hellaswag)"
    )
    found = policy.judge(record(0.2, 0.1, 0.3))
    assert found.refused is not None and found.warnings == ()
    assert found.refused.startswith("it forgot more than --max-forgetting 0.05 allows: the upper")


def test_a_bound_of_zero_and_below_is_a_bound() -> None:
    assert Policy(max_forgetting=0.0).judge(record(0.0, -0.01, 0.01)).refused
    assert Policy(max_forgetting=0.0).judge(record(-0.02, -0.04, 0.0)) == PolicyVerdict()
    assert Policy(max_forgetting=-0.01).judge(record(-0.02, -0.04, 0.0)).refused


def test_a_broken_bound_may_be_a_warning() -> None:
    found = Policy(max_forgetting=0.05, action="warn").judge(record(0.2, 0.1, 0.3))
    assert found.refused is None
    (warning,) = found.warnings
    assert "the upper end of the interval, +0.3, is above it" in warning


@pytest.mark.parametrize("interval", [(0.3, 0.4), (0.0, 0.1), (0.3, 0.1)])
@pytest.mark.parametrize("policy", [Policy(), Policy(action="warn"), Policy(max_forgetting=9)])
def test_a_record_that_contradicts_itself_is_refused_always(
    interval: tuple[float, float], policy: Policy
) -> None:
    refused = policy.judge(record(0.2, *interval)).refused
    assert refused is not None and "its laura.json contradicts itself" in refused


def test_an_unrecorded_adapter() -> None:
    assert Policy(unrecorded="allow").judge(None) == PolicyVerdict()
    (warning,) = Policy().judge(None).warnings
    assert warning == "it has no laura.json, so what it learned and forgot is not known"
    bounded = Policy(max_forgetting=0.1).judge(None)
    assert bounded.refused is None
    assert "--max-forgetting 0.1 cannot be checked" in bounded.warnings[0]
    refused = Policy(max_forgetting=0.1, unrecorded="refuse").judge(None).refused
    assert refused is not None and "laura recommend STUDY --adapter DIR" in refused


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"max_forgetting": float("nan")}, "give a finite number"),
        ({"max_forgetting": float("inf")}, "give a finite number"),
    ],
)
def test_a_policy_that_cannot_be_meant(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Policy(**choice)
