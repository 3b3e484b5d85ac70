"""laura.json: what is written reads back equal; what is damaged is told whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laura.results.errors import StoreError
from laura.results.schema import RECORD_FILE, Record, read_record, write_record

VALUE: dict[str, Any] = {
    "format": 2,
    "study": "s",
    "base": {"model": "m", "fingerprint": "abc", "parameters": 9, "quantization": None},
    "recipe": {"name": "s", "train": {"betas": None}},
    "arm": "lora", "method": "lora", "learning_rate": 1e-3, "seed": 0, "budget": 2.0,
    "budget_unit": "epochs", "tokens": 1000, "step": 10, "run": "r",
    "scores": {"gsm8k": {"title": "GSM8K", "unit": "share", "higher_is_better": True,
                         "base": None, "tuned": {"value": 0.5, "stderr": 0.1, "n": 9},
                         "change": None}},
    "confirmed": True,
    "learning": {"tasks": ["gsm8k"], "unit": "share", "value": 0.2, "stderr": 0.01,
                 "interval": [0.1, 0.3], "level": 0.95, "n": 100, "seeds": 3},
    "forgetting": {"tasks": ["hellaswag"], "unit": "share", "value": 0.2, "stderr": 0.01,
                   "interval": [0.1, 0.3], "level": 0.95, "n": 100, "seeds": 3},
    "claims": [{"id": "forgets-less", "statement": "x", "verdict": "undecided", "reason": "y"}],
    "versions": {"torch": "2"},
    "weights": {"adapter_model.safetensors": "00"},
}  # fmt: skip


def test_a_record_reads_back_equal(tmp_path: Path) -> None:
    record = Record.model_validate_json(json.dumps(VALUE))
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert json.loads((tmp_path / RECORD_FILE).read_text()) == VALUE
    assert record.warnings == ()


def test_a_record_of_a_quantised_base_warns_whoever_serves_it() -> None:
    changed = {**VALUE, "base": {**VALUE["base"], "quantization": "nf4"}}
    (warning,) = Record.model_validate_json(json.dumps(changed)).warnings
    assert "measured on its base in nf4" in warning and "unquantised" in warning


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, "format: Input should be 2"),
        ({"learning_rate": -1.0, "surprise": 1}, r"learning_rate.*greater than 0.*surprise"),
        ({"claims": [{**VALUE["claims"][0], "verdict": "true"}]}, "claims.0.verdict"),
        ({"budget": "two"}, "budget: Input should be a valid number"),
        ({"learning": {**VALUE["learning"], "stderr": -1.0}}, "learning.stderr: .*greater than or"),
    ],
)
def test_every_fault_is_told(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps({**VALUE, **change}))
    with pytest.raises(StoreError, match=f"(?s)no record of format 2.*{words}"):
        read_record(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", '{"format": 2', '{"learning": NaN}', "\xff"])
def test_what_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match="no record of format 2"):
        read_record(tmp_path)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        read_record(tmp_path)
