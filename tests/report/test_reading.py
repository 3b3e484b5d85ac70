from __future__ import annotations

import copy
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laura.errors import StoreError
from laura.report import formats
from laura.report.gaps import gaps
from laura.report.groups import final_groups, selected_groups
from laura.report.reading import MEAN, Task, parse_summary, read_summary
from laura.results.statistics import Estimate

Build = Callable[..., dict[str, Any]]
SHARE = Task("gsm8k", "GSM8K", "share", True, 200)
LOSS = Task("kl", "KL", "nats per token", False, 200)


def test_seeds_are_taken_together(build: Build) -> None:
    value = build()
    summary = parse_summary(value)
    group = final_groups(summary)[0]
    assert (group.arm, group.budget, group.seeds) == ("lora-r16", 80_000, [0, 1, 2])
    changes = [
        point["learning"]["gsm8k"]["change"]
        for point in value["points"]
        if point["arm"] == "lora-r16" and point["selected"] and point["budget"] == 80_000
    ]
    found = group.change("gsm8k")
    assert found is not None and found.value == pytest.approx(statistics.fmean(changes))
    expected = math.sqrt(0.012**2 + statistics.variance(changes) / 3)
    assert found.stderr == pytest.approx(expected)


def test_mean_of_the_base_is_the_plain_mean(build: Build) -> None:
    base = parse_summary(build()).base(MEAN)
    assert base is not None and base.value == pytest.approx((0.42 + 0.29 + 0.53) / 3)


def test_mean_counts_only_what_was_measured(build: Build) -> None:
    assert parse_summary(build(seeds=(0,))).task(MEAN).n == 600
    assert parse_summary(build(seeds=(0,), missing=("winogrande",))).task(MEAN).n == 400


def test_a_change_that_is_not_given_is_the_plain_difference(build: Build) -> None:
    value = build(seeds=(0,), budgets=(20_000,))
    for point in value["points"]:
        point["learning"] = {}
    summary = parse_summary(value)
    group = selected_groups(summary)[0]
    change, tuned, base = group.change("gsm8k"), group.value("gsm8k"), summary.base("gsm8k")
    assert change is not None and tuned is not None and base is not None
    assert change.value == pytest.approx(tuned.value - base.value)
    assert change.stderr == pytest.approx(math.hypot(tuned.stderr, base.stderr))


def test_arms_keep_their_order(build: Build) -> None:
    assert [group.arm for group in selected_groups(parse_summary(build()))] == (
        ["lora-r16"] * 3 + ["full"] * 3
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("points"), "points is missing"),
        (lambda s: s.update(name=3), "name is 3, text is needed"),
        (lambda s: s.update(format=2), "format 2, this Laura reads 1"),
        (lambda s: s["arms"][0].pop("name"), r"arms\[0\].name is missing"),
        (lambda s: s["points"][1].update(seed="x"), r"points\[1\].seed is 'x'"),
        (lambda s: s["points"][0]["scores"]["kl"].update(value=None), "scores.kl.value is missing"),
        (lambda s: s["points"][0].update(scores=[]), r"points\[0\].scores is \[\]"),
        (lambda s: s["runs"][0].update(learning_rate=math.nan), "learning_rate is nan"),
        (lambda s: s["verdict"].update(caveats=[1]), r"verdict.caveats\[0\] is 1"),
    ],
)
def test_damage_is_named(build: Build, damage: Callable[[Any], Any], message: str) -> None:
    value = copy.deepcopy(build(seeds=(0,)))
    damage(value)
    with pytest.raises(StoreError, match=message):
        parse_summary(value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 1', b"\xff\xfe", b"null"])
def test_a_file_that_is_not_a_summary(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"summary\.json"):
        read_summary(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_mutation_ends_in_a_traceback(data: st.DataObject) -> None:
    value: Any = json.loads(SMALL)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            place[key] = data.draw(JSON)
            break
        place = inner
    try:
        summary = parse_summary(value)
    except StoreError:
        return
    gaps(summary)
    [group.change(name) for group in selected_groups(summary) for name in summary.forgetting]


SMALL = """{"format": 1, "name": "s", "arms": [{"name": "a", "learning_rates": [1e-4],
 "best_learning_rate": 1e-4}], "base": {"model": "m", "scores": {"kl": {"value": 0, "stderr": 0}}},
 "measure": {"learning": ["gsm8k"], "forgetting": ["winogrande", "kl"]},
 "tasks": {"kl": {"title": "KL", "unit": "nats per token", "n": 3}},
 "budget": {"unit": "tokens", "points": [5]},
 "runs": [{"id": "x", "arm": "a", "learning_rate": 1e-4, "loss_curve": [[1, 2]]}],
 "points": [{"run": "x", "arm": "a", "learning_rate": 1e-4, "seed": 0, "budget": 5,
  "selected": true,
  "scores": {"winogrande": {"value": 0.5, "stderr": 0.1}},
  "forgetting": {"winogrande": {"change": 0.1, "stderr": 0.1}}}]}"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formats.rate(3e-4), "3e-4"),
        (formats.rate(2.5e-5), "2.5e-5"),
        (formats.rate(1.0), "1e0"),
        (formats.count(134_515_008), "135M"),
        (formats.count(999_700), "1M"),
        (formats.count(999.7), "1k"),
        (formats.count(512), "512"),
        (formats.memory(5 * 2**30), "5.00 GiB"),
        (formats.duration(59.96), "1 min 0 s"),
        (formats.duration(3725), "1 h 2 min"),
        (formats.budget(1, "epochs"), "1 epoch"),
        (formats.budget(20_000, "tokens"), "20k tokens"),
        (formats.value(Estimate(0.415, 0.035, 200), SHARE, True), "41.5 ± 3.5 %"),
        (formats.change(Estimate(-0.021, 0.007, 200), SHARE), "−2.1 ± 0.7"),
        (formats.change(Estimate(-0.0001, 0.007, 200), SHARE), "0.0 ± 0.7"),
        (formats.change(Estimate(0.12345, 0.00042, 200), LOSS), "+0.12345 ± 0.00042"),
        (formats.value(None, LOSS), "–"),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text == expected
