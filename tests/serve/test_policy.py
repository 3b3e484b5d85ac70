"""Which adapters a policy lets through: the interval's upper end decides."""

from __future__ import annotations

import json
from typing import Any

import pytest

from laura.results.errors import UsageError
from laura.results.schema import Record
from laura.serve.library import Policy, PolicyVerdict
from tests.test_record import VALUE


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


def test_without_a_bound_every_record_passes() -> None:
    assert Policy().judge(record(9.0, 8.0, 10.0)) == PolicyVerdict()


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
        ({"unrecorded": "ignore"}, "allowed are allow, warn, refuse"),
        ({"action": "allow"}, "allowed are warn, refuse"),
    ],
)
def test_a_policy_that_cannot_be_meant(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Policy(**choice)
