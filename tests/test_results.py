"""Writing, reading and comparing task results."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laura.results import store
from laura.results.errors import StoreError
from laura.results.task_result import Metric, TaskResult, change, samples_file, summarise


def _result(marks: list[int], model: str = "base", **changes: Any) -> TaskResult:
    items = [{"index": 10 + i, "correct": bool(m), "acc": m} for i, m in enumerate(marks)]
    fields: dict[str, Any] = {
        "task": "winogrande",
        "version": "1.0",
        "model": model,
        "n": len(items),
        "metrics": {"acc": summarise(items, "acc", True)},
        "items": items,
        "seconds": 1.5,
    }
    return TaskResult(**{**fields, **changes})


def _losses(nats: list[float], model: str) -> TaskResult:
    items = [{"index": i, "nats": x, "tokens": 5 + i, "bytes": 20 + i} for i, x in enumerate(nats)]
    metrics = {"nats_per_token": summarise(items, "nats_per_token", False)}
    return TaskResult("target_loss", "1", model, len(items), metrics, items, 0.0)


def test_file_has_the_agreed_form_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "base" / "evals" / "winogrande.json"
    result = _result([1, 0, 1])
    result.write(path)
    value = json.loads(path.read_text(encoding="utf-8"))
    assert list(value) == ["task", "version", "model", "n", "metrics", "items"]
    assert value["metrics"]["acc"] == {
        "value": pytest.approx(2 / 3),
        "stderr": pytest.approx(1 / 3),
        "higher_is_better": True,
    }
    assert value["items"][0] == {"index": 10, "correct": True, "acc": 1}
    assert TaskResult.read(path) == result
    assert TaskResult.read(path).seconds == 1.5
    path.with_suffix(".seconds").write_text("long")
    assert TaskResult.read(path).seconds == 0
    assert not samples_file(path).exists()


def test_samples_stand_beside(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.json"
    _result([1, 0]).write(path, samples=[{"index": 0, "text": "vier Ä"}])
    assert samples_file(path).name == "gsm8k.samples.jsonl.gz"
    assert store.read_lines_gz(samples_file(path)) == [{"index": 0, "text": "vier Ä"}]


def test_ratio_metrics_weigh_tokens() -> None:
    result = _losses([10.0, 30.0], "base")
    assert result.metrics["nats_per_token"].value == pytest.approx(40 / 11)
    assert result.sums("nats_per_byte") == {0: (10.0, 20.0), 1: (30.0, 21.0)}


def test_change_is_paired_by_index_not_by_place() -> None:
    base = _result([1, 0, 1, 0])
    tuned = _result([1, 1, 1, 0], "tuned")
    tuned.items.reverse()
    found = change(base, tuned, "acc")
    assert found.value == pytest.approx(0.25)
    assert found.stderr == pytest.approx(0.25)
    assert found.n == 4


def test_change_of_a_loss() -> None:
    found = change(_losses([10.0, 30.0], "base"), _losses([9.0, 28.0], "tuned"), "nats_per_token")
    assert found.value == pytest.approx(-3 / 11)


def test_change_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(StoreError, match=r"version 1\.0 on base cannot be compared"):
        change(_result([1, 0]), _result([1, 0], version="2.0"), "acc")
    with pytest.raises(StoreError, match="different items"):
        change(_result([1, 0]), _result([1, 0, 1]), "acc")
    with pytest.raises(StoreError, match="acc_norm = None"):
        change(_result([1, 0]), _result([1, 0]), "acc_norm")


DAMAGE: list[tuple[str, Any, str]] = [
    ("task", None, "task is not text"),
    ("version", 1, "version is not text"),
    ("n", 2, "n is 2 but there are 3 items"),
    ("n", True, "n is True"),
    ("metrics", {}, "at least one entry"),
    ("metrics", {"acc": 3}, "metric acc is not an object"),
    ("metrics", {"acc": {"value": math.nan, "stderr": 0, "higher_is_better": True}}, "finite"),
    ("metrics", {"acc": {"value": 10**400, "stderr": 0, "higher_is_better": True}}, "finite"),
    ("metrics", {"acc": {"value": 1, "stderr": -1, "higher_is_better": True}}, "negative"),
    ("metrics", {"acc": {"value": 1, "stderr": 0}}, "no direction"),
    ("items", {}, "items is not a list"),
    ("items", [1, 2, 3], "items is not a list"),
    ("items", [{}, {}, {}], "no index"),
    ("items", [{"index": 0}] * 3, "stands twice"),
]


@pytest.mark.parametrize(("field", "value", "message"), DAMAGE)
def test_damage_is_named(field: str, value: Any, message: str) -> None:
    damaged = _result([1, 0, 1]).to_json()
    damaged[field] = value
    with pytest.raises(StoreError, match=message):
        TaskResult.from_json(damaged, "winogrande.json")


def test_missing_fields_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="it holds list, not an object"):
        TaskResult.from_json([])
    with pytest.raises(StoreError, match="it lacks version, model, n, metrics, items"):
        TaskResult.from_json({"task": "gsm8k"})
    with pytest.raises(StoreError, match="does not exist"):
        TaskResult.read(tmp_path / "none.json")
    (tmp_path / "cut.json").write_text('{"task": "gs')
    with pytest.raises(StoreError, match="is not JSON"):
        TaskResult.read(tmp_path / "cut.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(["task", "version", "model", "n", "metrics", "items"]), JSON)
def test_any_other_value_is_read_or_refused_with_one_message(field: str, value: Any) -> None:
    changed = copy.deepcopy(_result([1, 0, 1]).to_json())
    changed[field] = value
    try:
        TaskResult.from_json(changed)
    except StoreError as error:
        assert "is not a whole task result" in str(error)


def test_metric_is_plain_data() -> None:
    assert Metric(0.5, 0.1, True) == Metric(value=0.5, stderr=0.1, higher_is_better=True)
