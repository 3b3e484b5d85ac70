"""Reading a study: the summary, what lies beside it, what is missing, numbers as text."""

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
from pydantic import ValidationError

from laura.report import formats
from laura.report.arms import final_groups, groups
from laura.report.figures import CHARTS
from laura.report.html import PAGES
from laura.report.samples.show import MOST_CHARACTERS, MOST_ITEMS, MOST_MODELS
from laura.report.study import Study, gaps, read_study, read_summary
from laura.report.tables import measured, score_cell, score_rows
from laura.results.errors import StoreError, UsageError
from laura.results.schema import (
    Analysis,
    Costs,
    Judgement,
    Recommendation,
    Summary,
    TaskFacts,
    read_file,
    write_file,
)
from laura.results.statistics import Estimate
from laura.results.store import read_lines_gz, write_lines_gz
from tests.report.gallery import write_gallery

Build = Callable[..., dict[str, Any]]
SHARE = TaskFacts(name="gsm8k", title="GSM8K", unit="share", higher_is_better=True, n=200)
LOSS = TaskFacts(name="kl", title="KL", unit="nats per token", higher_is_better=False, n=200)


def test_seeds_are_taken_together(build: Build) -> None:
    value = build()
    summary = Summary.model_validate(value)
    group = final_groups(summary)["lora-r16"]
    assert (group.arm, group.budget, group.seeds) == ("lora-r16", 80_000, [0, 1, 2])
    changes = [
        point["changes"]["gsm8k"]["value"]
        for point in value["points"]
        if point["arm"] == "lora-r16" and point["selected"] and point["budget"] == 80_000
    ]
    found = group.change("gsm8k")
    assert found is not None and found.value == pytest.approx(statistics.fmean(changes))
    expected = math.sqrt(0.012**2 + statistics.variance(changes) / 3)
    assert found.stderr == pytest.approx(expected)


def at_their_own_rates(build: Build) -> Summary:
    """Seeds 0 and 2 of LoRA choose 3e-4, seed 1 chooses 1e-3."""
    value = build(budgets=(20_000,), arms={"lora": ("lora", [3e-4, 1e-3], 3e-4)}, diverged=())
    for row in (*value["points"], *value["runs"]):
        if row["seed"] == 1:
            row["learning_rate"] = 1e-3
    value["arms"][0]["best"] = {"0": 3e-4, "1": 1e-3, "2": 3e-4}
    return Summary.model_validate(value)


def test_seeds_at_rates_of_their_own_are_one_group(build: Build) -> None:
    summary = at_their_own_rates(build)
    [group] = groups(summary, selected=True)
    assert group.seeds == [0, 1, 2] and group.rate == "3e-4 (2 seeds), 1e-3"
    rates = {(group.learning_rate, group.rate): group.seeds for group in groups(summary)}
    assert rates == {(3e-4, "3e-4"): [0, 2], (1e-3, "1e-3"): [0, 1]}
    for chart in CHARTS:
        chart.draw(Study(summary))
    row = score_rows(summary)[-1]
    assert (row.arm, row.rate, row.seeds) == ("lora", "3e-4 (2 seeds), 1e-3", [0, 1, 2])


def test_a_change_that_is_not_given_is_the_plain_difference(build: Build) -> None:
    value = build(seeds=(0,), budgets=(20_000,))
    for point in value["points"]:
        del point["changes"]["gsm8k"]
    summary = Summary.model_validate(value)
    group = groups(summary, selected=True)[0]
    change, tuned, base = (
        group.change("gsm8k"),
        group.value("gsm8k"),
        summary.base.scores.get("gsm8k"),
    )
    assert change is not None and tuned is not None and base is not None
    assert change.value == pytest.approx(tuned.value - base.value)
    assert change.stderr == pytest.approx(math.hypot(tuned.stderr, base.stderr))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("points"), "points: Field required"),
        (lambda s: s.update(name=3), "name: Input should be a valid string"),
        (lambda s: s.update(format=3), "format: Input should be 2"),
        (lambda s: s["arms"][0].pop("name"), r"arms\.0\.name: Field required"),
        (
            lambda s: s["points"][1].update(seed="x"),
            r"points\.1\.seed: Input should be a valid int",
        ),
        (lambda s: s["points"][0]["scores"]["kl"].update(value=None), r"scores\.kl\.value"),
        (lambda s: s["points"][0]["scores"]["kl"].update(stderr=-1), r"stderr -1 and n 200 must"),
        (lambda s: s["points"][0].update(scores=[]), r"points\.0\.scores"),
        (lambda s: s["runs"][0].update(learning_rate=math.nan), "learning_rate: .* finite number"),
        (lambda s: s["arms"][0].update(surprise=1), "surprise: Extra inputs"),
        (lambda s: s["tasks"].pop("kl"), "tasks lacks kl"),
        (lambda s: s.update(name=3, domain=[]), r"name: .*; domain: "),  # all at once
    ],
)
def test_damage_is_named(
    build: Build, damage: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    value = copy.deepcopy(build(seeds=(0,)))
    damage(value)
    (tmp_path / "summary.json").write_text(json.dumps(value))
    with pytest.raises(StoreError, match=f"is damaged: .*{message}"):
        read_summary(tmp_path)


@pytest.mark.parametrize("old", [1, None])
def test_an_older_format_is_one_line_with_the_command(
    build: Build, old: Any, tmp_path: Path
) -> None:
    value = build(seeds=(0,))
    value["format"] = old
    if old is None:
        del value["format"]
    (tmp_path / "summary.json").write_text(json.dumps(value))
    (tmp_path / "recipe.yaml").write_text("name: s")
    with pytest.raises(UsageError, match=r"older format; `laura compare .*recipe\.yaml") as told:
        read_summary(tmp_path)
    assert "\n" not in str(told.value) and f"--out {tmp_path}" in str(told.value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 2', b"\xff\xfe", b"null"])
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
        summary = Summary.model_validate(value)
    except ValidationError:
        return
    gaps(summary)
    measures = summary.measure.forgetting
    [group.change(name) for group in groups(summary, selected=True) for name in measures]
    [score_cell(task, row) for row in score_rows(summary) for task in measured(summary)]


SMALL = """{"format": 2, "name": "s", "arms": [{"name": "a", "method": "lora", "rates": [1e-4],
 "best": {"0": 1e-4}}], "base": {"model": "m", "fingerprint": "f",
 "scores": {"kl": {"value": 0, "stderr": 0, "n": 3}}},
 "measure": {"learning": ["gsm8k"], "forgetting": ["winogrande", "kl"]},
 "tasks": {"kl": {"name": "kl", "title": "KL", "unit": "nats per token",
   "higher_is_better": false, "n": 3},
  "gsm8k": {"name": "gsm8k", "title": "G", "unit": "share", "higher_is_better": true},
  "winogrande": {"name": "winogrande", "title": "W", "unit": "share", "higher_is_better": true}},
 "budget": {"unit": "tokens", "points": [5]},
 "runs": [{"id": "x", "arm": "a", "learning_rate": 1e-4, "seed": 0, "state": "done",
  "loss_curve": [[1, 2]]}],
 "points": [{"run": "x", "arm": "a", "learning_rate": 1e-4, "seed": 0, "budget": 5, "tokens": 5,
  "step": 1, "selected": true,
  "scores": {"winogrande": {"value": 0.5, "stderr": 0.1, "n": 3}},
  "changes": {"winogrande": {"value": 0.1, "stderr": 0.1, "n": 3}}}]}"""


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
        (formats.moved(Estimate(-0.355, 0.02, 200), SHARE, False), "35.5 ± 2.0"),
        (formats.moved(Estimate(0.93, 0.02, 200), SHARE, True), "93.0 ± 2.0"),
        (formats.moved(Estimate(0.25, 0.1, 9), LOSS, False), "0.250 ± 0.100"),
        (formats.moved(Estimate(-0.25, 0.1, 9), LOSS, True), "0.250 ± 0.100"),
        (formats.moved(None, LOSS, True), "–"),
        (formats.rates([1e-3, 2e-3, 1e-3]), "1e-3 (2 seeds), 2e-3"),
        (formats.rates([1e-3, 1e-3]), "1e-3"),
        (formats.points(-0.355, "share"), "−35.5 points"),
        (formats.points(-0.0001, "share"), "0.0 points"),
        (formats.points(0.0213, "log10"), "+0.0213 log10"),
        (formats.budget(2.375, "epochs"), "2.375 epochs"),
        (formats.budget(60_000, "tokens"), "60k tokens"),
        (formats.budget(60_010, "tokens"), "60,010 tokens"),
        (formats.budget(1_234_567, "tokens"), "1,234,567 tokens"),
        (formats.budget(1.00001, "epochs"), "1.00001 epochs"),
        (formats.words({"torch": "2.13", "numpy": "2.4"}), "torch 2.13, numpy 2.4"),
        (formats.ends((1.0, 2.0), "{:g}".format), "1 to 2"),
        (formats.ends((1.0, None), "{:g}".format), "1 or more"),
        (formats.ends((None, 2.0), "{:g}".format), "2 or less"),
        (formats.ends((None, None), "{:g}".format) + formats.ends(None, str), ""),
    ],
)
def test_numbers_as_text(text: str, expected: str) -> None:
    assert text == expected


# ----- what lies beside the summary -----


@pytest.fixture
def folder(tmp_path: Path, builder: Any) -> Path:
    write_gallery(builder, tmp_path / "study")
    return tmp_path / "study"


KINDS = {
    "analysis": Analysis, "claims": Judgement, "recommendation": Recommendation, "cost": Costs,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("analysis", {"format": 3}, "format: Input should be 2"),
        ("analysis", {"format": 2, "spectra": [{"run": "a"}]}, r"spectra\.0\.arm: Field required"),
        ("analysis", {"format": 2, "efficiency": [{"interval": [1]}]}, r"efficiency\.0\.interval"),
        ("claims", {"format": 2, "answer": "a", "claims": [{"id": "a"}]}, r"claims\.0\.verdict"),
        ("recommendation", {"format": 2, "chosen": {}}, "answer: Field required.*chosen"),
        ("cost", {"format": 2, "runs": [{"id": "x"}]}, r"runs\.0\.arm: Field required"),
    ],
)
def test_damage_names_the_field(tmp_path: Path, name: str, value: Any, fault: str) -> None:
    (tmp_path / f"{name}.json").write_text(json.dumps(value))
    with pytest.raises(StoreError, match=f"is damaged: .*{fault}"):
        read_file(KINDS[name], tmp_path / f"{name}.json")


@pytest.mark.parametrize("name", KINDS)
def test_every_file_is_read_as_it_was_written(folder: Path, tmp_path: Path, name: str) -> None:
    read = read_file(KINDS[name], folder / f"{name}.json")
    write_file(tmp_path / "again.json", read)
    assert read_file(KINDS[name], tmp_path / "again.json") == read
    before = json.loads((folder / f"{name}.json").read_text())
    after = json.loads((tmp_path / "again.json").read_text())
    assert before.keys() <= after.keys()
    with pytest.raises(UsageError, match="older format"):
        (tmp_path / "again.json").write_text(json.dumps({**after, "format": 1}))
        read_file(KINDS[name], tmp_path / "again.json")


def test_what_is_not_there_is_empty(folder: Path) -> None:
    for name in KINDS:
        (folder / f"{name}.json").unlink()
    study = read_study(folder)
    assert study.analysis == Analysis() and study.faults == []
    assert study.judgement is None and study.recommendation is None and study.costs is None
    assert "laura claims" in study.answer


def test_files_of_an_older_format_beside_the_summary_become_sentences(folder: Path) -> None:
    (folder / "claims.json").write_text('{"format": 1, "claims": []}')
    [fault] = read_study(folder).faults
    assert "Claims are not shown" in fault and "laura compare" in fault


def test_damage_beside_the_summary_becomes_a_sentence(folder: Path) -> None:
    for name in ("analysis", "claims", "recommendation", "cost"):
        (folder / f"{name}.json").write_text("{")
    [samples] = (folder / "base" / "evals").glob("*.gz")
    samples.write_bytes(b"no gzip")
    study = read_study(folder)
    told = " ".join(study.faults)
    assert len(study.faults) == 5
    for what in ("Analyses", "Claims", "Recommendations", "Costs", "Samples"):
        assert f"{what} are not shown" in told
    missing = {page.name for page in PAGES if isinstance(page.blocks(study), str)}
    assert missing == {"spectra", "diversity", "cost", "claims", "samples"}


def test_forgotten_samples_come_first_and_are_bounded(full_study: Study) -> None:
    [examples] = full_study.examples
    assert len(examples.items) == MOST_ITEMS and len(examples.models) == MOST_MODELS
    assert examples.left_out == ["lora-alpha"]
    # Right where 2 divides the base's index, 3 the arms': they differ where one of them does.
    assert examples.differing == sum((i % 2 == 0) != (i % 3 == 0) for i in range(20))
    assert [item.heading for item in examples.items] == [f"item {i}" for i in (2, 4, 8, 10, 14, 16)]
    for item in examples.items:
        assert {answer.passed for answer in item.answers} == {True, False}
        for text in (text for answer in item.answers for text in answer.texts):
            assert len(text.text) <= MOST_CHARACTERS + 2
            assert "\u202e" not in text.text


def test_samples_without_verdicts_are_shown_too(folder: Path) -> None:
    for file in folder.rglob("*.samples.jsonl.gz"):
        rows = [{k: v for k, v in row.items() if k != "passed"} for row in read_lines_gz(file)]
        write_lines_gz(file, rows)
    for file in folder.rglob("evals/**/gsm8k.json"):
        value = json.loads(file.read_text())
        value["items"] = [{"index": item["index"], "exact_match": 0.5} for item in value["items"]]
        file.write_text(json.dumps(value))
    [examples] = read_study(folder).examples
    assert examples.differing == 0 and len(examples.items) == MOST_ITEMS


def test_a_folder_without_runs_has_no_samples(folder: Path) -> None:
    (folder / "runs").rename(folder / "elsewhere")
    study = read_study(folder)
    assert study.examples == [] and study.faults == []


def test_what_was_not_measured_everywhere_is_named_with_its_places(builder: Any) -> None:
    value = builder(budgets=(20_000, 80_000)).build()
    for place, point in enumerate(value["points"][:4]):
        for table in (point["scores"], point["changes"]):
            del table["winogrande"]
        point["budget"] = (20_000, 80_000)[place % 2]
    value["points"] = [p for p in value["points"] if (p["arm"], p["budget"]) != ("full", 80_000)]
    value["runs"][0] |= {"state": "open", "reason": ""}
    told = gaps(Summary.model_validate(value))
    assert told[0].startswith("lora-r16 at learning rate 1e-4: not finished, seed 0, 20k tokens")
    assert "Arm full was not measured at 80k tokens." in told
    [task] = [sentence for sentence in told if sentence.startswith("WinoGrande, acc was not")]
    assert "for lora-r16 at 1e-4, seed 0, 20k tokens; " in task
    mean = "Source tasks: HellaSwag, ARC-Challenge, WinoGrande"
    assert task.endswith(f" and 1 more. There, “{mean}” has no mean.")
