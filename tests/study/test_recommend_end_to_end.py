"""A micro study by the commands: claims, recommendation, weights with their record, scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from laura.cli import app as cli
from laura.results.schema import RECOMMENDATION_FILE, Recommendation, read_file, read_record
from laura.results.store import StudyStore, check_folder, file_hash, read_json
from laura.study.claims.table import CLAIMS

SETTINGS = (
    "seeds=[0,1,2]", "budget.tokens=[4000]", "measure.learning=[target_loss]", "measure.limit=60",
    "measure.loss_documents=60",
)  # fmt: skip
SMALL = [word for setting in SETTINGS for word in ("--set", setting)]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advice") / "study"
    made = run("compare", "micro-small", *SMALL, "--out", folder, "--workers", 1, "--json")
    assert made.exit_code == 0, made.stderr
    return folder


@pytest.mark.slow
def test_compare_writes_claims_and_they_can_be_made_again(study: Path) -> None:
    written = (study / "claims.json").read_bytes()
    found = json.loads(written)
    assert [claim["id"] for claim in found["claims"]] == [claim.id for claim in CLAIMS]
    pair = found["comparisons"][0]["forgetting"]
    assert pair["seeds"] == 3 and pair["n"] == 180 and pair["interval"]
    told = run("claims", study)
    assert told.exit_code == 0 and "could be tested" in told.stdout
    assert (study / "claims.json").read_bytes() == written
    (study / "claims.json").unlink()
    assert run("report", study, "--json").exit_code == 0
    assert (study / "claims.json").read_bytes() == written


@pytest.mark.slow
def test_two_studies_are_judged_together(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "other")
    both = json.loads(run("claims", study, tmp_path / "other", "--json").stdout)
    assert len(both["settings"]) == 2
    assert len({setting["name"] for setting in both["settings"]}) == 2
    twice = run("claims", study, study)
    assert twice.exit_code == 2 and "named twice" in twice.stderr


@pytest.mark.slow
def test_the_recommended_weights_come_with_their_record(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    answer = run("recommend", study, "--max-forgetting", "100%", "--arm", "lora-r4",
                 "--adapter", out, "--out", tmp_path / "ready.yaml", "--json")  # fmt: skip
    assert answer.exit_code == 0, answer.stderr
    chosen = json.loads(answer.stdout)["chosen"]
    advice = read_file(Recommendation, study / RECOMMENDATION_FILE)  # what the report will show
    assert advice.chosen is not None and advice.chosen.learning is not None
    assert list(advice.chosen.learning.interval) == chosen["learning"]["interval"]
    assert advice.asked.max_forgetting == 1 and advice.not_tried
    record, summary = read_record(out), read_json(study / "summary.json")
    point = next(p for p in summary["points"] if p["run"] == record.run)
    assert (record.arm, record.seed, record.step) == ("lora-r4", 0, point["step"])
    assert record.learning_rate == point["learning_rate"] == chosen["learning_rate"]
    assert record.base.fingerprint == summary["base"]["fingerprint"]
    assert record.scores["micro_facts"].tuned.value == point["scores"]["micro_facts"]["value"]
    assert list(record.learning.interval) == chosen["learning"]["interval"]
    assert record.versions["torch"] and len(record.claims) == len(CLAIMS)
    checkpoint = StudyStore(study).run(record.run).checkpoint(record.step)
    for name, known in record.weights.items():
        assert file_hash(out / name) == file_hash(checkpoint / name) == known
    check_folder(out)
    # What was written can be used: measured as an adapter, trained again as a recipe.
    from peft import PeftConfig

    assert PeftConfig.from_pretrained(out).r == 4
    again = run("recommend", study, "--max-forgetting", "100%", "--adapter", out, "--json")
    assert again.exit_code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    refused = run("recommend", study, "--max-forgetting", "100%", "--adapter", tmp_path / "mine")
    assert refused.exit_code == 2 and "holds something else" in refused.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


@pytest.mark.slow
def test_the_ready_recipe_trains(study: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "ready.yaml"
    wish = ["--max-forgetting", "100%", "--arm", "lora-r4", "--out", recipe, "--json"]
    assert run("recommend", study, *wish).exit_code == 0
    made = run("train", recipe, "--arm", "lora-r4", "--out", tmp_path / "again", "--json")
    assert made.exit_code == 0, made.stderr
    (trained,) = json.loads(made.stdout)["runs"]
    before: dict[str, Any] = read_json(study / "summary.json")
    # The same configuration is the same run, wherever it is trained.
    assert trained["id"] in {row["id"] for row in before["runs"]}


@pytest.mark.slow
def test_a_study_with_gaps_is_judged_and_they_are_named(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "gaps"
    shutil.copytree(study, copy)
    full = [r for r in read_json(study / "summary.json")["runs"] if r["arm"] == "full"]
    for run_of in full:
        folder = copy / "runs" / run_of["id"]
        if run_of["seed"] == 2:
            shutil.rmtree(folder)
        elif run_of["seed"] == 1:
            (folder / "done.json").unlink()
            (folder / "failed.json").write_text('{"kind": "failed", "reason": "power"}')
    found = json.loads(run("claims", copy, "--json").stdout)
    assert any("seed 1: failed" in gap for gap in found["gaps"])
    assert any("full has 1 of 3 seeds" in gap for gap in found["gaps"])
    forgets = next(c for c in found["claims"] if c["id"] == "forgets-less")
    assert forgets["verdict"] == "undecided" and forgets["missing"]
    assert "at most 1 seed" in found["comparisons"][0]["reason"]
    thin = run("gate", copy, "--max-forgetting", "100%", "--arm", "full")
    assert thin.exit_code == 2 and "neither passed nor failed" in " ".join(thin.stderr.split())
    shutil.rmtree(copy / "runs")
    empty = json.loads(run("claims", copy, "--json").stdout)
    assert {claim["verdict"] for claim in empty["claims"]} == {"undecided"}
    nothing = run("recommend", copy, "--max-forgetting", "100%")
    assert nothing.exit_code == 2
    assert "no configuration has both" in " ".join(nothing.stderr.split())


@pytest.mark.slow
def test_a_checkpoint_and_an_adapter_are_evaluated(study: Path, tmp_path: Path) -> None:
    points = read_json(study / "summary.json")["points"]
    for method in ("full", "lora-r4"):
        point = next(p for p in points if p["arm"] == method)
        place = study / "runs" / point["run"] / "checkpoints" / f"{point['step']:08d}"
        model = [str(place)] if method == "full" else ["micro", "--adapter", str(place)]
        done = run("evaluate", *model, "--tasks", "micro_facts,micro_code", "--limit", 60, "--set",
                   "measure.precision=auto", "--out", tmp_path / method, "--json")  # fmt: skip
        assert done.exit_code == 0, done.stderr
        answer = json.loads(done.stdout)
        answer = answer if method == "full" else answer[place.name]
        found = answer["micro_facts"]["metrics"]["acc_norm"]["value"]
        assert found == pytest.approx(point["scores"]["micro_facts"]["value"], abs=0.051)
