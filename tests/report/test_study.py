"""Reading what lies beside summary.json: analyses, claims, recommendations, samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from laura.report import formats
from laura.report.pages import PAGES
from laura.report.side_by_side import MOST_CHARACTERS, MOST_ITEMS, MOST_MODELS
from laura.report.study import Study, read_study
from laura.results.errors import StoreError, UsageError
from laura.results.schema import (
    Analysis,
    Costs,
    Judgement,
    Recommendation,
    read_file,
    write_file,
)
from laura.results.store import read_lines_gz, write_lines_gz
from tests.report.gallery import write_gallery


@pytest.fixture
def folder(tmp_path: Path, builder: Any) -> Path:
    write_gallery(builder, tmp_path / "study")
    return tmp_path / "study"


def test_every_part_of_an_analysis_is_read(full_study: Study) -> None:
    found = full_study.analysis
    assert found.tradeoff is not None and len(found.tradeoff.front) == 3
    assert [row.needed for row in found.efficiency] == [20_000.0, 42_000.0, None]
    assert found.efficiency[1].interval == (30_000.0, None)  # open: beyond the last budget
    assert {one.arm for one in found.diversity} == {None, "full", "lora-r16"}
    assert [one.arms for one in found.diversity_differences] == [
        ("full", None), ("lora-r16", None)
    ]  # fmt: skip
    assert list(found.pass_at_k[0].at_k) == [1, 4, 16]
    assert len(found.spectra) == 2 * 2 * 2 and found.spectra[0].matrices[0].noise_kept == 400
    assert sum(one.count for one in found.spikes) == 2 and found.spikes[0].n == 40
    assert [one.k for one in found.subspaces if one.overlap is not None] == [8, 8]


def test_intervals_in_words() -> None:
    show = "{:g}".format
    assert formats.ends((1.0, 2.0), show) == "1 to 2"
    assert formats.ends((1.0, None), show) == "1 or more"
    assert formats.ends((None, 2.0), show) == "2 or less"
    assert formats.ends((None, None), show) == formats.ends(None, show) == ""


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
    missing = {page.name for page in PAGES if page.missing(study)}
    assert missing == {"spectra", "diversity", "cost", "claims", "samples"}


def test_samples_differ_first_and_are_bounded(full_study: Study) -> None:
    [examples] = full_study.examples
    assert len(examples.items) == MOST_ITEMS and len(examples.models) == MOST_MODELS
    assert examples.left_out == ["lora-alpha"]
    # Right where 2 divides the base's index, 3 the arms': they differ where one of them does.
    assert examples.differing == sum((i % 2 == 0) != (i % 3 == 0) for i in range(20))
    assert [item.heading for item in examples.items] == [f"item {i}" for i in (2, 3, 4, 8, 9, 10)]
    for item in examples.items:
        assert {answer.passed for answer in item.answers} == {True, False}
        for block in (block for answer in item.answers for block in answer.blocks):
            assert len(block.text) <= MOST_CHARACTERS + 2
            assert "\u202e" not in block.text


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
