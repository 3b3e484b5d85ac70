"""Recommendations from studies of known truth, and every way of refusing one."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from typer.testing import CliRunner, Result

from laura import cli
from laura.cli_recommend import memory_bytes
from laura.errors import EvidenceError, UsageError
from laura.recipe_reading import parse_recipe, recipe_yaml
from laura.study import recommend as module
from laura.study.handover import decision_json, write_recipe
from laura.study.recommend import Decision, Wish, recommend
from tests.study.fabricated import FULL, LEARN, LORA, World, forgetting, full, lora

# Full learns most and forgets most; the small LoRA least of both.
TRUTH: dict[Any, float] = {
    (LEARN, "base"): 0.2, (LEARN, "full"): 0.8, (LEARN, "lora"): 0.7, (LEARN, "small"): 0.5,
    "hellaswag": 0.7, "winogrande": 0.7,
    **forgetting("full", 0.4), **forgetting("lora", 0.6), **forgetting("small", 0.69),
}  # fmt: skip
ARMS = (FULL, LORA, lora("small", rank=2))


def world(**changes: Any) -> World:
    settings = {"arms": ARMS, "items": 1000, "seed_spread": 0.005, "item_spread": 0.1, **changes}
    return World(settings.pop("truth", TRUTH), **settings)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a fabricated study where `recommend` reads a folder; gives the folder."""

    def put(made: World, memory: dict[str, int] | None = None, chance: int = 1) -> Path:
        evidence = made.evidence(chance)
        monkeypatch.setattr(module, "read_study", lambda folder: ("fabricated", evidence, None))
        if memory is not None:
            rows = [
                {"id": run.id, "train_seconds": 60.0, "flops": 1e12, "tokens_per_second": 9.0,
                 "peak_memory_bytes": memory[run.arm]}
                for run in evidence.runs
            ]  # fmt: skip
            (tmp_path / "cost.json").write_text(json.dumps({"runs": rows}))
        (tmp_path / "recipe.yaml").write_text(recipe_yaml(evidence.recipe))
        return tmp_path

    return put


def chosen(decision: Decision) -> str:
    assert decision.chosen is not None
    return decision.chosen.arm.name


def test_the_most_is_learnt_within_the_bound(study: Any) -> None:
    folder = study(world())
    assert chosen(recommend(folder, Wish(max_forgetting=0.5))) == "full"
    within = recommend(folder, Wish(max_forgetting=0.2))
    assert chosen(within) == "lora"
    assert [(one.arm.name, why.split(" 0.2")[0]) for one, why in within.others] == [
        ("full", "it forgets more than"), ("small", "it learns less")
    ]  # fmt: skip
    assert chosen(recommend(folder, Wish(max_forgetting=0.07))) == "small"
    assert chosen(recommend(folder, Wish(min_learning=0.35))) == "lora"
    assert chosen(recommend(folder, Wish(min_learning=0.2))) == "small"
    assert chosen(recommend(folder, Wish(max_forgetting=0.5, arm="small"))) == "small"


def test_both_bounds_together_and_none_that_keeps_them(study: Any) -> None:
    folder = study(world())
    both = recommend(folder, Wish(max_forgetting=0.2, min_learning=0.35))
    assert chosen(both) == "lora" and both.level == pytest.approx(1 - 0.05 / 6)
    none = recommend(folder, Wish(max_forgetting=0.05, min_learning=0.5))
    assert none.state == "not met" and none.chosen is None and len(none.others) == 3
    assert "none of the 3 configurations" in module.not_met_text(none)


def test_the_bound_holds_for_the_upper_end_of_an_interval_that_allows_for_the_choice(
    study: Any,
) -> None:
    folder = study(world())
    decision = recommend(folder, Wish(max_forgetting=0.5))
    one = next(one for one, _ in decision.others if one.arm.name == "lora")
    reach = stats.t.ppf(1 - 0.05 / 6 / 2, one.forgetting.freedom) * one.forgetting.stderr
    upper = one.forgetting.value + reach
    assert one.forgetting.interval(decision.level)[1] == pytest.approx(upper)
    assert chosen(recommend(folder, Wish(max_forgetting=upper + 1e-6))) == "lora"
    tighter = recommend(folder, Wish(max_forgetting=upper - 1e-6))
    assert chosen(tighter) == "small"
    assert "may forget more than" in dict((o.arm.name, w) for o, w in tighter.others)["lora"]


def test_intervals_of_both_sides_are_told_so_both_are_counted(study: Any) -> None:
    learnt = recommend(study(world()), Wish(min_learning=0.1))
    assert learnt.level == pytest.approx(1 - 0.05 / (2 * learnt.candidates))


def test_bounds_that_are_not_kept_are_seldom_recommended(study: Any) -> None:
    """Five equal configurations forget exactly the bound: choosing must not help them in."""
    arms = [full(f"arm{i}") for i in range(5)]
    truth: dict[Any, float] = {(LEARN, "base"): 0.2, LEARN: 0.6, "hellaswag": 0.6,
                               "winogrande": 0.6, **forgetting("base", 0.7)}  # fmt: skip
    wrong, draws = 0, 40
    for chance in range(draws):
        made = World(truth, arms, items=60, seed_spread=0.02, item_spread=0, hardness_spread=0)
        folder = study(made, chance=chance)
        wrong += recommend(folder, Wish(max_forgetting=0.1)).state == "recommended"
    # At most 2.5 % of such studies: 99.9 % of forty stay below this.
    assert wrong <= stats.binom.ppf(0.999, draws, 0.025)


def test_what_has_learnt_nothing_is_not_recommended(study: Any) -> None:
    folder = study(world(truth={(LEARN, "base"): 0.3, LEARN: 0.3}))
    nothing = recommend(folder, Wish(max_forgetting=0.5))
    assert nothing.state == "not met"
    assert all("may have learnt nothing" in why for _, why in nothing.others)
    assert recommend(folder, Wish(max_forgetting=0.5, min_learning=-0.5)).state == "recommended"


def test_items_that_all_came_out_alike_do_not_prove_that_nothing_is_forgotten(study: Any) -> None:
    """0 of 60 may hide 5 % (rule of three), so a bound of 1 % is not shown to be kept."""
    settings: dict[str, Any] = {"item_spread": 0, "seed_spread": 0, "hardness_spread": 0}
    truth = {(LEARN, "base"): 0.0, LEARN: 1.0, "hellaswag": 1.0}
    folder = study(world(truth=truth, items=60, forgetting="hellaswag", **settings))
    decision = recommend(folder, Wish(max_forgetting=0.01))
    assert decision.state == "not met" and "may forget more" in decision.others[0][1]
    assert decision.others[0][0].forgetting.value == 0
    assert recommend(folder, Wish(max_forgetting=0.08)).state == "recommended"


def test_memory_is_kept_and_cost_is_told(study: Any) -> None:
    sizes = {"full": 20 * 10**9, "lora": 15 * 10**9, "small": 10**9}
    folder = study(world(), sizes)
    decision = recommend(folder, Wish(max_forgetting=0.5, memory_bytes=16 * 10**9))
    assert chosen(decision) == "lora" and decision.candidates == 2
    cost = decision_json(decision)["chosen"]["cost"]
    assert cost["peak_memory_bytes"] == 15 * 10**9 and cost["train_seconds"] == 60
    with pytest.raises(EvidenceError, match=r"within 0\.5 GB; the least was 1 GB with small"):
        recommend(folder, Wish(max_forgetting=0.5, memory_bytes=5 * 10**8))
    (folder / "cost.json").unlink()
    with pytest.raises(EvidenceError, match="was not measured, so --memory cannot be kept"):
        recommend(folder, Wish(max_forgetting=0.5, memory_bytes=10**9))


def test_too_few_seeds_or_items_are_refused_with_what_to_run(study: Any) -> None:
    folder = study(world(seeds=(5, 6)))
    with pytest.raises(EvidenceError, match=r"2 seeds measured.*3 are needed") as caught:
        recommend(folder, Wish(max_forgetting=0.5))
    words = shlex.split(str(caught.value).split("Run: ")[1])
    assert words[:2] == ["laura", "compare"] and words[-1] == "seeds=[5, 6, 0]"
    assert parse_recipe(Path(words[2]).read_text(), [words[-1], "search.allow_shared_rate=true"])
    assert chosen(recommend(folder, Wish(max_forgetting=0.5, seeds=2))) == "full"
    with pytest.raises(EvidenceError, match=r"40 items measured.*larger measure\.limit"):
        recommend(study(world(items=40, forgetting="hellaswag")), Wish(max_forgetting=0.5))


def test_what_was_not_tried_is_told(study: Any) -> None:
    rates = [1e-4, 1e-3]
    arms = [full("full", learning_rates=rates), lora("lora", rank=4)]
    losses = {("full", 1e-4): 2.0, ("full", 1e-3): 1.0}
    made = world(arms=arms, losses=losses, grid_seeds="first")
    told = "\n".join(recommend(study(made), Wish(max_forgetting=0.5)).not_tried)
    for words in ("none above 0.001 was tried", "lora was tried at the one learning rate",
                  "No budget above 1", "rank 4 only", "on all modules only", "Replay",
                  "full at 0.0001, budget 1, was not considered: 1 seed"):  # fmt: skip
        assert words in told


def test_the_recipe_is_ready_and_has_a_name_of_its_own(study: Any, tmp_path: Path) -> None:
    made = world(budgets=(1, 2))
    decision = recommend(study(made), Wish(max_forgetting=0.5))
    write_recipe(decision, tmp_path / "ready.yaml")
    ready = parse_recipe((tmp_path / "ready.yaml").read_text())
    assert list(ready.arms) == ["full"] and ready.arms["full"].learning_rates == [1e-4]
    assert decision.chosen is not None and ready.budget.epochs == [decision.chosen.budget]
    assert ready.name == "fabricated-recommended" and ready.seeds == [0, 1, 2]


def test_impossible_wishes_are_told(study: Any) -> None:
    folder = study(world())
    for wish, words in (
        (Wish(), "say what is wanted"),
        (Wish(max_forgetting=float("nan")), "finite number"),
        (Wish(max_forgetting=0.1, seeds=1), "2 or more"),
        (Wish(max_forgetting=0.1, arm="lroa"), "no arm 'lroa'; it has: full, lora, small"),
    ):
        with pytest.raises(UsageError, match=words):
            recommend(folder, wish)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GB", 16 * 10**9), ("16 gib", 16 * 2**30), ("1.5G", 15 * 10**8), ("900", 900),
     ("800MB", 8 * 10**8)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert memory_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "-1GB", "0", "16XB", "nan", "1e9"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="16GB"):
        memory_bytes(text)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(one) for one in arguments])


def test_the_gate_has_an_exit_code_for_each_ending(study: Any, tmp_path: Path) -> None:
    folder = study(world())
    passed = run("gate", folder, "--max-forgetting", 0.2, "--json")
    assert passed.exit_code == 0 and json.loads(passed.stdout)["passed"] is True
    failed = run("gate", folder, "--max-forgetting", 0.001, "--json")
    value = json.loads(failed.stdout)
    assert failed.exit_code == 4 and value["passed"] is False and value["state"] == "not met"
    assert len(value["alternatives"]) == 3 and "not passed: none of the 3" in value["reason"]
    mistaken = run("gate", folder, "--json")
    assert mistaken.exit_code == 2 and "say what is wanted" in mistaken.stdout
    thin = run("gate", study(world(seeds=(0,))), "--max-forgetting", 0.2)
    assert thin.exit_code == 2 and "too thin" in thin.stderr
    assert not (tmp_path / "recommended.yaml").exists()


def test_the_command_answers_people_and_machines(study: Any, tmp_path: Path) -> None:
    folder = study(world())
    told = run("recommend", folder, "--max-forgetting", 0.2)
    assert told.exit_code == 0, told.stderr
    for words in ("Take lora, learning rate 0.001, budget 1, 3 seeds", "Nearest alternatives",
                  "Not tried", "Chosen among 3 configurations"):  # fmt: skip
        assert words in told.stdout
    assert (tmp_path / "recommended.yaml").is_file()
    value = json.loads(run("recommend", folder, "--max-forgetting", 0.2, "--json").stdout)
    assert value["chosen"]["arm"] == "lora" and value["chosen"]["learning"]["seeds"] == 3
    refused = run("recommend", folder, "--max-forgetting", 0.0)
    assert refused.exit_code == 2 and "Nearest: small" in refused.stderr


def test_folders_that_are_no_study(tmp_path: Path) -> None:
    for command in ("recommend", "gate"):
        found = run(command, tmp_path / "none", "--max-forgetting", 0.2)
        assert found.exit_code == 2 and "holds no study" in found.stderr
    assert run("claims", tmp_path / "none").exit_code == 2
