"""A whole comparison on the tiny model: what it writes, and that killing it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from laura.recipe.reading import parse_recipe
from laura.results.errors import RecipeError, StoreError, UsageError
from laura.results.store import StudyStore, read_json
from laura.results.task_result import TaskResult
from tests.study.carried_out import (
    command,
    compare,
    finish,
    judgement,
    kill_at_random,
    stamps,
    train,
    write_summary,
)
from tests.study.conftest import RECIPE, one_thread


def test_every_rate_is_run_with_every_seed_and_each_seed_has_its_best(finished: Any) -> None:
    _, folder, summary = finished
    for arm, rates in (("full", [1e-3, 3e-3]), ("lora", [1e-2, 3e-2])):
        points = [p for p in summary["points"] if p["arm"] == arm]
        # two rates x two seeds x two budgets, and a choice for each seed
        assert len(points) == 8
        for seed in (0, 1):
            own = [p for p in points if p["seed"] == seed]
            last = [p for p in own if p["budget"] == 1200]
            assert sorted(p["learning_rate"] for p in last) == rates
            best = min(last, key=lambda p: p["scores"]["validation_loss"]["value"])["learning_rate"]
            assert all(p["selected"] == (p["learning_rate"] == best) for p in own)
    judged = judgement(folder)
    assert judged.answer and judged.caveats


def test_changes_are_taken_against_the_base_item_by_item(finished: Any) -> None:
    _, folder, summary = finished
    store = StudyStore(folder)
    base = TaskResult.read(store.base_evaluation("target_loss"))
    assert summary["base"]["scores"]["kl"]["value"] == 0
    for point in summary["points"]:
        tuned = TaskResult.read(store.run(point["run"]).evaluation(point["step"], "target_loss"))
        totals = [
            sum(i["nats"] for i in r.items) / sum(i["tokens"] for i in r.items)
            for r in (base, tuned)
        ]
        change = point["changes"]["target_loss"]
        assert change["value"] == pytest.approx(totals[1] - totals[0])
        assert change["stderr"] > 0
        assert point["scores"]["target_loss"]["n"] == len(base.items) == 10
        assert point["changes"]["kl"]["value"] > 0

    base = max(p.stat().st_mtime_ns for p in (folder / "base" / "evals").glob("*.json"))
    assert base < min(p.stat().st_mtime_ns for p in folder.glob("runs/*/run.json"))


def test_a_second_call_repeats_nothing_and_the_summary_can_be_rebuilt(finished: Any) -> None:
    recipe, folder, summary = finished
    before = stamps(folder)
    again = compare(recipe, study=folder)
    assert again == summary and before == stamps(folder)
    (folder / "summary.json").unlink()
    assert write_summary(StudyStore(folder), recipe) == summary


def test_checkpoints_load_in_transformers_and_peft(finished: Any) -> None:
    from peft import PeftConfig
    from transformers import AutoModelForCausalLM

    _, folder, summary = finished
    for point in summary["points"][:1] + summary["points"][-1:]:
        checkpoint = StudyStore(folder).run(point["run"]).checkpoint(point["step"])
        if point["arm"] == "full":
            assert AutoModelForCausalLM.from_pretrained(checkpoint).num_parameters() > 0
        else:
            assert PeftConfig.from_pretrained(checkpoint).r == 4


def test_one_run_by_itself_is_the_run_of_the_comparison(finished: Any, tmp_path: Path) -> None:
    recipe, _, summary = finished
    with pytest.raises(UsageError, match="several rates"):
        train(recipe, arm="lora", study=tmp_path / "one")
    with pytest.raises(UsageError, match="no arm 'lroa'"):
        train(recipe, arm="lroa", study=tmp_path / "one")
    with one_thread():
        made = train(recipe, arm="lora", learning_rate=0.01, study=tmp_path / "one")
    known = {p["run"]: p for p in summary["points"]}
    for point in made["summary"]["points"]:
        assert point["scores"] == known[point["run"]]["scores"]


def test_another_base_data_or_measure_is_refused(finished: Any) -> None:
    recipe, folder, _ = finished
    other = recipe.model_copy(
        update={"measure": recipe.measure.model_copy(update={"loss_documents": 9})}
    )
    with pytest.raises(StoreError, match="another measure"):
        compare(other, study=folder)
    held = recipe.base.model_copy(update={"dtype": "bfloat16"})
    other = recipe.model_copy(update={"base": held})
    with pytest.raises(StoreError, match="another dtype"):
        compare(other, study=folder)


def test_a_warmup_longer_than_the_run_is_told_before_anything_is_measured(
    recipe_text: str, tmp_path: Path
) -> None:
    # 600 tokens, at most 128 a step: the shorter of the two runs takes about five steps.
    recipe = parse_recipe(recipe_text, ["train.warmup_steps=8"])
    with pytest.raises(RecipeError, match=r"train\.warmup_steps: is 8, but a run of [56] steps"):
        compare(recipe, study=tmp_path / "study")
    assert not (tmp_path / "study" / "base").exists()


@pytest.mark.slow
def test_killed_at_random_moments_gives_the_same_summary(
    finished: Any, tiny_folder: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Five SIGKILLs at random moments, then the same command to its end."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(model=tiny_folder, folder=tiny_data))
    _, _, summary = finished
    study = tmp_path / "study"
    one = command("compare", tmp_path / "recipe.yaml", "--out", study)
    # Not only start-up is hit.
    assert kill_at_random([one] * 5, (study / "study.json").exists, 1, 2.0) == 5
    finish(one)
    assert read_json(study / "summary.json") == summary


def test_runs_of_an_arm_that_was_changed_since_do_not_count(
    recipe_text: str, tmp_path: Path
) -> None:
    short = ("arms.full.learning_rates=[1e-3]", "arms.lora.learning_rates=[1e-2]", "seeds=[0]")
    study = tmp_path / "study"
    first = compare(parse_recipe(recipe_text, short), study=study)
    changed = compare(parse_recipe(recipe_text, (*short, "arms.lora.rank=2")), study=study)
    runs = {
        s: {r["id"] for r in s_["runs"] if r["arm"] == "lora"}
        for s, s_ in (("first", first), ("changed", changed))
    }
    assert len(runs["first"]) == len(runs["changed"]) and not runs["first"] & runs["changed"]
    assert compare(parse_recipe(recipe_text, short), study=study) == first


def test_a_list_grows_round_by_round_and_a_second_command_comes_to_the_same(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates far too low: the best is always the highest. Killed within the second round."""
    from laura.study import session

    text = recipe_text.replace("extend: 0", "extend: 2").replace("[1e-3, 3e-3]", "[1e-6, 2e-6]")
    recipe = parse_recipe(text, ["budget.tokens=[300]", "arms.lora.learning_rates=[1e-2]"])
    whole = compare(recipe, study=tmp_path / "whole")
    full = next(arm for arm in whole["arms"] if arm["name"] == "full")
    assert full["rates"] == [1e-6, 2e-6, 4e-6, 8e-6] and full["edge"]
    runs = {(r["learning_rate"], r["seed"]) for r in whole["runs"] if r["arm"] == "full"}
    assert runs == {(rate, seed) for rate in full["rates"] for seed in (0, 1)}
    real, begun = session.Session.carry_out, []

    def killed(self: Any, specs: Any, points: int | None = None) -> list[str]:
        begun.append(specs[0].learning_rate)
        if begun.count(8e-6) == 2:
            raise KeyboardInterrupt
        return real(self, specs, points)

    monkeypatch.setattr(session.Session, "carry_out", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(recipe, study=tmp_path / "again")
    monkeypatch.undo()
    assert compare(recipe, study=tmp_path / "again") == whole
    assert len(list((tmp_path / "again" / "runs").iterdir())) == len(whole["runs"])


def test_a_configuration_is_confirmed_with_fresh_seeds(
    recipe_text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laura.study import session
    from laura.study.summary import gather

    recipe = parse_recipe(recipe_text, ["seeds=[1]", "budget.tokens=[300, 600]"])
    study = tmp_path / "study"
    plain = compare(recipe, study=study)
    real, begun = session.Session.carry_out, []

    def killed(self: Any, specs: Any, points: int | None = None) -> list[str]:
        begun.append((specs[0].arm, specs[0].learning_rate, specs[0].seed))
        if len(begun) == 3:
            raise KeyboardInterrupt
        return real(self, specs, points)

    monkeypatch.setattr(session.Session, "carry_out", killed)
    asked = {"confirm": [("lora", 1e-2)], "confirm_seeds": 2}
    with pytest.raises(KeyboardInterrupt):
        compare(recipe, study=study, **asked)
    monkeypatch.undo()
    confirmed = compare(recipe, study=study, **asked)
    # Nothing of the study itself is changed by it.
    assert {**confirmed, "runs": [], "points": []} == {**plain, "runs": [], "points": []}
    assert (confirmed["runs"], confirmed["points"]) == (plain["runs"], plain["points"])
    assert begun[0] == ("lora", 1e-2, 0)
    fresh = gather(StudyStore(study), recipe).confirming
    assert [(p.arm, p.learning_rate, p.seed, p.budget) for p in fresh] == [
        ("lora", 1e-2, seed, budget) for seed in (0, 2) for budget in (300, 600)
    ]  # fmt: skip
    assert all({"target_loss", "validation_loss"} <= p.results.keys() for p in fresh)
    costs = {row["seed"] for row in read_json(study / "cost.json")["runs"]}
    assert costs == {0, 1, 2}
    before = stamps(study)
    assert compare(recipe, study=study, **asked) == confirmed
    assert before == stamps(study)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("lroa@1e-2", "no such arm; it has full, lora"),
        ("lora@5e-2", "lora is run at 0.00333, 0.01, 0.03, 0.09; give one of these"),
        ("lora", "wants an arm and a learning rate, as in"),
        ("@1e-2", "wants an arm and a learning rate, as in"),
        ("lora@nan", "give one of these"),
        ("lora@0.09", "lora was run at 0.01, 0.03; confirm one of these"),
        ("made@1e-3", "made elsewhere, so none can be added"),
    ],
)
def test_what_cannot_be_confirmed_is_told(
    asked: str, words: str, recipe_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from laura.study import runs as confirming
    from laura.study.evidence import Point
    from laura.study.summary import evidence_of
    from tests.study.test_choosing import measured, run_of

    made = "arms.made={method: lora, external: [{model: x, budget: 600, learning_rate: 1e-3}]}"
    recipe = parse_recipe(recipe_text, [made, "search.extend=1"])
    with pytest.raises(UsageError, match=words):
        wanted = confirming.read_configurations([asked])
        confirming.check_configurations(wanted, 3, recipe)
        run = run_of("lora", 1e-2, 0, "done")
        points = [Point(run.record, 1200, 9, 9, 9, {"validation_loss": measured(1.0)})]
        confirming.check_run(wanted, evidence_of(recipe, {}, {}, [run], points).choices)


def test_fresh_seeds_are_the_smallest_that_the_recipe_has_not(recipe_text: str) -> None:
    from laura.study.runs import check_configurations, fresh_seeds

    recipe = parse_recipe(recipe_text, ["seeds=[1, 3, 0]"])
    assert fresh_seeds(recipe, 4) == [2, 4, 5, 6]
    with pytest.raises(UsageError, match="at least 1, came 0"):
        check_configurations([("lora", 1e-2)], 0, recipe)


def test_a_damaged_checkpoint_is_named_and_finished_runs_stay(
    finished: Any, tmp_path: Path
) -> None:
    from laura.results.errors import CheckpointError
    from tests.study.conftest import damaged_copy

    recipe, folder, summary = finished
    copy = damaged_copy(folder, summary, tmp_path)
    with pytest.raises(CheckpointError, match=r"SHA-256.*give the same command again"):
        compare(recipe, study=copy)
