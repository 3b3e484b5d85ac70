"""The paper's recipes: its hyper-parameters, and every setting carried out on a tiny Llama.

The rows have the Hub's own fields, under the names the recipes use. What a recipe says of
regime, template, schedule, optimiser, decay, precision, budget points and arms is carried
out as shipped; only sizes (budgets, rows, batches, ranks, rates tried) and measures are small.
"""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from laura.recipe.reading import Series, parse_recipe, read_study, recipe_yaml
from laura.recipe.sections import FullArm, LoraArm, Recipe
from laura.recipe.shipped import shipped_recipes
from laura.results.errors import LauraError
from laura.results.store import StudyStore, read_json
from laura.training.schedules import plan_legs
from tests.study.carried_out import compare

# Biderman et al. 2024, arXiv:2405.09673v2: length, sequences a step, rates of full, of r <= 64 and
# of r = 256, weight decay.
PAPER = {
    "code-pretrain": (4096, 192, 1e-5, 1e-5, 1e-5, 1e-6),
    "math-pretrain": (4096, 192, 1e-5, 4e-5, 4e-5, 0.0),
    "code-instruct": (4096, 192, 5e-5, 2e-4, 1e-4, 0.0),
    "math-instruct": (1024, 768, 1e-5, 1e-4, 5e-5, 0.0),
    "tulu": (4096, 192, 5e-6, 1e-4, 1e-4, 0.0),
}
BILLION = 10**9
CODE_EPOCH_TOKENS, CODE_EPOCH_STEPS = 72.97e6, 193

WORDS = "the dog ran to it and the cat sat on a mat with an apple"


@functools.cache
def settings_of(name: str) -> dict[str, Recipe]:
    found = read_study(shipped_recipes()[f"paper/{name}"])
    return found.settings if isinstance(found, Series) else {"": found}


NAMES = sorted(n.removeprefix("paper/") for n in shipped_recipes() if n.startswith("paper/"))
TRAINED = [
    (name, setting)
    for name in NAMES
    if name not in {"all", "released"}
    for setting in [*settings_of(name)][:1]
]


@pytest.mark.parametrize("name", PAPER)
def test_the_hyper_parameters_are_the_papers(name: str) -> None:
    recipe = settings_of(name)[""]
    length, sequences, full, low, high, decay = PAPER[name]
    train = recipe.train
    assert recipe.base.model == "meta-llama/Llama-2-7b-hf" and recipe.seeds == [0]
    assert (train.optimiser, train.beta_values) == ("lion", (0.9, 0.95))
    assert train.decay_rule == "composer"
    assert (train.precision, train.clip, train.row_tokens) == ("bf16", 1.0, length)
    # The paper's 32 GPUs took 6 or 24 sequences at once; a pass changes memory, not the numbers.
    assert train.rows_per_pass * train.row_tokens == 4096
    if name == "code-instruct":  # as many steps and tokens as in half-full rows
        step = train.batch_tokens // length * length
        assert CODE_EPOCH_TOKENS / step == pytest.approx(CODE_EPOCH_STEPS, abs=1)
    else:
        assert train.batch_tokens == sequences * length
    rates = {"full": full, "lora-r16": low, "lora-r64": low, "lora-r256": high}
    assert {arm: own.learning_rates for arm, own in recipe.arms.items()} == {
        arm: [rate] for arm, rate in rates.items()
    }
    for arm in recipe.arms.values():
        assert arm.weight_decay == decay
        if isinstance(arm, LoraArm):
            assert (arm.alpha_value, arm.targets, arm.dropout) == (2 * arm.rank, "all", 0.05)
    if recipe.regime == "instruct":
        assert (train.schedule, train.warmup, train.final_factor) == ("cosine", 0.1, 0.01)
        epochs = [2, 4, 6] if name == "tulu" else [1, 2, 4, 8, 16]
        assert recipe.budget.epochs == epochs
        assert recipe.budget.points == ("hot" if name == "tulu" else "separate")
    measure = recipe.measure
    assert measure.forgetting == ["hellaswag", "arc_challenge", "winogrande"]
    assert (measure.code_samples, measure.code_temperature, measure.code_top_p) == (50, 0.2, 0.95)
    assert (measure.gsm8k_shots, measure.limit) == (5, None)


@pytest.mark.parametrize("name", ["code-pretrain", "math-pretrain"])
def test_continued_pretraining_has_the_papers_trunk_and_cooldowns(name: str) -> None:
    recipe = settings_of(name)[""]
    budgets = [BILLION // 4, BILLION // 2, *(n * BILLION for n in (1, 2, 4, 8, 16, 20))]
    assert recipe.budget.tokens == budgets
    legs = plan_legs(recipe.train, [round(b / recipe.train.batch_tokens) for b in budgets])
    assert [leg.end for leg in legs if leg.cooldown] == [
        318, 636, 1272, 2543, 5086, 10173, 20345, 25431,
    ]  # fmt: skip
    assert (legs[-1].end - legs[-1].start, legs[0].warmup) == (5086, 1000)


LLAMA_MAPS = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}


def test_what_the_other_recipes_vary_is_what_the_paper_varies() -> None:
    decay = {
        name: (arm.weight_decay, arm.attention_dropout)
        for name, arm in settings_of("regularisers")[""].arms.items()
        if isinstance(arm, FullArm) and arm.weight_decay_toward == "zero"
    }
    assert set(decay.values()) == {(0.0, None), (5e-5, None), (1e-4, None), (0.0, 0.05), (0.0, 0.1)}
    modules = [a for a in settings_of("modules")[""].arms.values() if isinstance(a, LoraArm)]
    assert {(a.targets, a.rank, a.alpha_value / a.rank) for a in modules} == {
        (group, rank, 2) for group in ("all", "mlp", "attention") for rank in (16, 64, 256)
    }
    alphas = [a for a in settings_of("alpha")["code"].arms.values() if isinstance(a, LoraArm)]
    assert [(a.rank, a.alpha) for a in alphas] == [(256, 32), (256, 256), (256, 512)]
    for recipe in settings_of("learning-rates").values():
        arm = recipe.arms["lora-r64"]
        assert isinstance(arm, LoraArm) and (arm.rank, arm.alpha) == (64, 32)
        assert LLAMA_MAPS - set(arm.targets) == {"gate_proj"}
    for name in ("code", "math"):
        lower, higher = settings_of("spikes")[name].arms["lora-r256"].learning_rates
        assert higher == 2 * lower == PAPER[f"{name}-instruct"][3]


def rows_of_the_hub(number: int) -> dict[str, dict[str, Any]]:
    """Row `number` of each named set, with the fields it has on the Hub."""
    question, answer = f"what is {number} and {number}?", f"{WORDS} {2 * number}"
    talk = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": f"and {number}?"},
        {"role": "assistant", "content": f"{answer}\n"},
    ]
    system = [{"role": "system", "content": "be the dog"}] if number % 3 == 0 else []
    function = f"def f(x):\n    return x + {number}\n"
    return {
        "metamathqa": {
            "type": "GSM_AnsAug",
            "query": question,
            "original_question": question,
            "response": f"{answer}\nThe answer is: {2 * number}",
        },
        "magicoder-evol-instruct": {
            "instruction": question,
            "response": f"```python\n{function}```",
        },
        "starcoder-python": {
            "max_stars_repo_path": f"src/f{number}.py",
            "max_stars_repo_name": "a/b",
            "max_stars_count": number,
            "id": str(number),
            "content": function,
        },
        "openwebmath": {
            "url": "http://a.org/q",
            "text": f"## {question}\n\n$x^2 = {number}$ {WORDS}",
            "date": "2020-01-01 00:00:00",
            "metadata": "{}",
        },
        "tulu-v2-mix": {
            "dataset": "sharegpt",
            "id": f"sharegpt_{number}",
            "messages": [*system, *talk],
        },
    }


@pytest.fixture(scope="module")
def hub_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a few rows of every set, and rows to measure losses on."""
    folder = tmp_path_factory.mktemp("hub")
    rows = [rows_of_the_hub(number) for number in range(20)]
    for name in rows[0]:
        (folder / name).mkdir()
        lines = "".join(json.dumps(row[name]) + "\n" for row in rows)
        (folder / name / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for regime, row in (("instruct", {"prompt": "how many?", "completion": f"{WORDS} nine"}),
                        ("pretrain", {"text": f"how many? {WORDS} nine"})):  # fmt: skip
        (folder / f"{regime}.jsonl").write_text((json.dumps(row) + "\n") * 3, encoding="utf-8")
    return folder


def made_small(recipe: Recipe, model: Path) -> dict[str, Any]:
    """A recipe for the tiny model: fewer tokens, rates and directions, cheap measures."""
    data = dict(yaml.safe_load(recipe_yaml(recipe)))
    data["base"] = {**data["base"], "model": str(model)}
    data["data"] |= {"validation_rows": 4, "test": f"{recipe.regime}.jsonl",
                     "source_text": {"source": "builtin:plain-text", "limit": 3}}  # fmt: skip
    train, rows = recipe.train, min(2, recipe.train.batch_tokens // recipe.train.row_tokens)
    data["train"] |= {"row_tokens": 64, "batch_tokens": 64 * rows,
                      "rows_per_pass": min(2, train.rows_per_pass)}  # fmt: skip
    if train.warmup_steps is not None:  # as in the paper, past the two smallest budgets of 2, 4, 8
        data["train"]["warmup_steps"] = 5
    if recipe.budget.tokens:
        count = min(3, len(recipe.budget.tokens))
        data["budget"]["tokens"] = [256 * 2**n for n in range(count)]
    elif len(recipe.arms) <= 4:
        data["budget"]["epochs"] = [1, 2][: len(recipe.budget.epochs or [])]
    else:
        data["budget"]["epochs"] = [1]
    for arm in data["arms"].values():
        if arm["method"] == "lora":
            rank = max(1, arm["rank"] // 16)  # the tiny keys and values have 32 directions
            arm["alpha"] = arm["alpha"] and arm["alpha"] * rank / arm["rank"]
            arm["rank"] = rank
        arm["learning_rates"] = arm["learning_rates"][:2]
        for point in arm["external"] or ():
            point["budget"] = (data["budget"]["tokens"] or data["budget"]["epochs"])[-1]
    data["measure"] = {"learning": ["target_loss"], "forgetting": ["source_loss"],
                       "loss_documents": 2, "loss_tokens": 32}  # fmt: skip
    return data


@pytest.mark.slow
@pytest.mark.parametrize(("name", "setting"), TRAINED)
def test_it_is_carried_out(
    name: str, setting: str, hub_data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    shipped = settings_of(name)[setting]
    recipe = parse_recipe(
        yaml.safe_dump(made_small(shipped, tiny_folder), sort_keys=False), data_dir=hub_data
    )
    same = ("regime", "seeds", "search", "analysis")
    assert all(getattr(recipe, key) == getattr(shipped, key) for key in same)
    summary = compare(recipe, study=tmp_path / "study", data_dir=hub_data, device="cpu")
    assert {run["state"] for run in summary["runs"]} == {"done"}
    points = recipe.budget.tokens or recipe.budget.epochs or []
    grid = {(arm, rate, point) for arm, own in recipe.arms.items() for rate in own.learning_rates
            for point in points}  # fmt: skip
    measured = {(p["arm"], p["learning_rate"], p["budget"]) for p in summary["points"]}
    assert measured == grid and list(recipe.arms) == list(shipped.arms)
    analysis = read_json(tmp_path / "study" / "analysis.json")
    assert bool(analysis["spectra"]) == (recipe.analysis.spectra != "none")
    assert len(analysis["spikes"]) == len(summary["runs"])
    store = StudyStore(tmp_path / "study")
    if recipe.train.schedule == "trapezoidal":
        legs = {row["leg"] for row in store.run(summary["runs"][0]["id"]).metrics()}
        assert {f"branch-{n}" for n in range(1, len(points) + 1)} < legs
    elif recipe.budget.points == "hot":
        assert len(summary["runs"]) == len(recipe.arms)


@pytest.mark.parametrize("setting", settings_of("released"))
def test_without_the_hub_it_says_which_checkpoint_is_missing(
    setting: str, hub_data: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    data = made_small(settings_of("released")[setting], tiny_folder)
    recipe = parse_recipe(yaml.safe_dump(data, sort_keys=False), data_dir=hub_data)
    with pytest.raises(LauraError, match="LoRA-TMLR-2024/"):
        compare(recipe, study=tmp_path / "study", data_dir=hub_data, device="cpu")
