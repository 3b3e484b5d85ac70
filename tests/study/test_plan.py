"""The plan's work against the paper's tables, transformers, counts by hand, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from laura.cli import app as cli
from laura.data.corpus import write_corpus
from laura.data.examples import Example
from laura.data.sources import load_rows
from laura.evals.tasks import TASKS, load, micro_code, micro_math
from laura.models.adapters import attach
from laura.models.lora import LoraSettings
from laura.models.registry import MICRO_BASE
from laura.recipe.reading import parse_recipe
from laura.recipe.sections import Arm, FullArm, LoraArm, Recipe
from laura.results.errors import RecipeError
from laura.study import extras
from laura.study.material import ExampleEncoder
from laura.study.plan import work
from laura.study.plan.memory import trainable_parameters
from laura.study.plan.misfits import refuse_arms
from laura.study.plan.planning import announcement, plan
from laura.study.plan.shapes import shapes_from, shapes_of
from laura.study.plan.text import paper_rows, plan_line, plan_text
from laura.study.plan.work import (
    Survey,
    arm_work,
    budget_tokens,
    trained_tokens,
    tries_of,
    work_of,
)
from laura.training.flops import count_work
from tests.models.families import KINDS, make_family, settings_of

LLAMA_2_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_3_8B = {
    **LLAMA_2_7B, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192,
}  # fmt: skip
# Tables S14, S15, S16 as printed.
PRINTED = {
    "7B": {
        "Adam": "112 14 7 3.5 1.75",
        "Adam+LoRA": "15.12 1.89 0.945 0.4725 0.236",
        "Lion": "84 10.5 5.25 2.625 1.3125",
        "Lion+LoRA": "14.84 1.855 0.9275 0.464 0.232",
    },
    "70B": {
        "Adam": "1120 140 70 35 17.5",
        "Adam+LoRA": "151.2 18.9 9.45 4.725 2.36",
        "Lion": "840 105 52.5 26.25 13.125",
        "Lion+LoRA": "148.4 18.55 9.275 4.64 2.32",
    },
    "405B": {
        "Adam": "6480 810 405 202.5 101.25 50.625 25.3",
        "Adam+LoRA": "874.8 109.35 54.65 27.34 13.67 6.83 3.42",
        "Lion": "4860 607.5 303.75 151.875 75.94 37.97 18.98",
        "Lion+LoRA": "858.6 107.325 53.66 26.83 13.42 6.71 3.35",
    },
}
# 874.8 / 16 is 54.675; the paper prints 54.65.
SLIPS = {("405B", "Adam+LoRA", "54.65"): 54.675}


@pytest.mark.parametrize("size", PRINTED)
def test_every_number_of_the_papers_tables(size: str) -> None:
    devices = [1, 8, 16, 32, 64, 128, 256][: len(PRINTED[size]["Adam"].split())]
    parameters = float(size.removesuffix("B")) * 1e9
    rows = {row["case"]: row["bytes"] for row in paper_rows(parameters, devices)}
    for case, line in PRINTED[size].items():
        words = line.split()
        for word, size_bytes in zip(words, rows[case], strict=True):
            decimals = len(word.partition(".")[2])
            printed = SLIPS.get((size, case, word), float(word))
            # Some are rounded, some cut.
            assert abs(size_bytes / 1e9 - printed) < 10**-decimals, (case, word)


@pytest.mark.parametrize(
    ("targets", "millions"),
    [
        ("all", (39.98, 159.9, 639.6)),
        ("mlp", (23.20, 92.80, 371.2)),
        ("attention", (16.78, 67.11, 268.4)),
    ],
)
def test_lora_on_llama_2_7b_from_its_config(targets: Any, millions: tuple[float, ...]) -> None:
    shapes = shapes_from(LLAMA_2_7B, "config.json")
    assert shapes.parameters == 6_738_415_616
    for rank, expected in zip((16, 64, 256), millions, strict=True):
        arm = LoraArm(method="lora", rank=rank, targets=targets)
        assert trainable_parameters(shapes, arm) / 1e6 == pytest.approx(expected, rel=5e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
        {"model_type": "mistral", "head_dim": 8},
        {"model_type": "qwen2"},
        {"model_type": "qwen3", "attention_bias": True, "head_dim": None},
    ],
)
def test_parameters_are_those_of_transformers(changes: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300,
        "tie_word_embeddings": True,
    }  # fmt: skip
    settings |= changes
    settings = {key: value for key, value in settings.items() if value is not None}
    kind = str(settings["model_type"])
    config = AutoConfig.for_model(**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shapes_from(settings, kind).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["all", "mlp", "attention", "full"])
def test_every_family_is_counted_as_it_stands(kind: str, targets: Any) -> None:
    shapes, model = shapes_from(settings_of(kind), kind), make_family(kind)
    assert shapes.parameters == sum(p.numel() for p in model.parameters())
    arm: Arm = FullArm(method="full")
    if targets != "full":
        arm = LoraArm(method="lora", rank=4, targets=targets, layers=[1])
        attach(model, LoraSettings(rank=4, alpha=8, targets=targets, layers=(1,)), seed=0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable_parameters(shapes, arm) == trained
    assert work_of(shapes, arm) == count_work(model)


def test_what_experts_cannot_have_is_told_with_all_else() -> None:
    arms = {
        "plain": {"method": "lora", "rank": 4, "learning_rates": [1e-3]},
        "dropped": {"method": "lora", "rank": 4, "learning_rates": [1e-3], "dropout": 0.1},
        "lengths": {
            "method": "lora", "rank": 4, "learning_rates": [1e-3], "dora": True,
            "targets": "attention",
        },
    }  # fmt: skip
    recipe = micro_recipe(arms=arms, base={"model": "micro", "quantization": "nf4"})
    with pytest.raises(RecipeError) as told:
        refuse_arms(recipe, shapes_from(settings_of("mixtral"), "mixtral"))
    assert [fault.path for fault in told.value.faults] == [
        "arms.dropped.targets",
        "base.quantization",
    ]


def test_a_token_goes_through_some_experts() -> None:
    mixtral = {
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    shapes = shapes_from(mixtral, "mixtral")
    # Jiang et al. 2024, arXiv:2401.04088: 47B parameters, of which a token uses 13B.
    assert round(shapes.parameters / 1e9) == 47
    used = shapes.parameters - shapes.map_elements + shapes.layers * shapes.active_elements
    assert round(used / 1e9) == 13


def micro_recipe(**changes: Any) -> Recipe:
    """A recipe on the micro base, read as a file is: grids are written out."""
    data: dict[str, Any] = {
        "name": "p", "base": {"model": "micro"}, "data": {"train": {"source": "micro-code"}},
        "budget": {"tokens": [10_000, 40_000]}, "seeds": [0, 1],
        "arms": {
            "full": {"method": "full", "learning_rates": [1e-5, 1e-4]},
            "lora": {"method": "lora", "learning_rates": [1e-4, 3e-4, 1e-3]},
        },
        "train": {"batch_tokens": 512, "row_tokens": 256},
        "measure": {"learning": ["micro_code"], "forgetting": ["micro_facts"]},
    }  # fmt: skip
    return parse_recipe(json.dumps({**data, **changes}))


def test_tokens_of_schedules() -> None:
    step = 1000
    cosine = micro_recipe(train={"batch_tokens": step, "row_tokens": 500})
    assert trained_tokens(cosine, [1_000_000, 4_000_000]) == 5_000_000
    hot = {"tokens": [1_000_000, 4_000_000], "points": "hot"}
    assert trained_tokens(micro_recipe(budget=hot), [1_000_000, 4_000_000]) == 4_000_000
    forked = micro_recipe(
        train={"batch_tokens": step, "row_tokens": 500, "schedule": "trapezoidal"}
    )
    # A trunk up to the last fork, and the last fifth of each budget.
    assert trained_tokens(forked, [1_000_000, 4_000_000]) == 3_200_000 + 1_000_000


def test_runs_are_the_grid_and_the_further_seeds() -> None:
    shapes = shapes_from(LLAMA_2_7B, "config.json")
    known = Survey(None, None, 1024, 1.0, "")
    recipe = micro_recipe()
    full = arm_work(recipe, "full", shapes, known)
    lora = arm_work(recipe, "lora", shapes, known)
    # rates x 2 seeds x 2 budgets that are runs of their own
    assert (full.runs, lora.runs) == (8, 12)
    assert full.checkpoint_bytes == 8 * 4 * shapes.parameters
    assert lora.checkpoint_bytes == 12 * 4 * 39_976_960
    assert full.resume_bytes == 3 * 4 * shapes.parameters
    # A list may grow by three rates, each with 2 seeds at 2 budgets; but by none above 1.
    assert (full.longer, lora.longer) == (12, 12)
    arms = {"x": {"method": "full", "learning_rates": [0.3, 0.9]}}
    for extend, rates in ((3, 3), (1, 1), (0, 0)):
        grown = micro_recipe(arms=arms, search={"extend": extend})
        assert arm_work(grown, "x", shapes, known).longer == rates * 2 * 2
    first = micro_recipe(search={"seeds": "first"})
    # (rates + a seed) x 2 budgets, and three rates more with the first seed
    works = [arm_work(first, name, shapes, known) for name in ("full", "lora")]
    assert [(work.runs, work.longer) for work in works] == [(6, 6), (8, 6)]


def test_runs_that_may_come_on_top_are_told_beside_those_that_are_counted() -> None:
    recipe = micro_recipe()
    found = plan(recipe, devices=[1])
    assert (found["totals"]["runs"], found["totals"]["longer"]) == (20, 24)
    assert "Not counted: up to 24 more runs, where a best rate is at the end" in plan_text(found)
    assert "20 runs (and up to 24 more)" in plan_line(found["totals"], {})
    short = plan(micro_recipe(search={"extend": 0}), devices=[1])
    assert "Not counted" not in plan_text(short) and "20 runs, " in plan_line(short["totals"], {})


def test_a_plan_for_devices_needs_config_json_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_7B))
    recipe = micro_recipe(base={"model": str(tmp_path)})
    found = plan(recipe, devices=[1, 8], flops_per_second=2e14)
    full = found["arms"][0]["devices"]
    assert full[1]["training"]["gradients"] * 8 == full[0]["training"]["gradients"]
    assert full[1]["seconds"][0] * 8 == pytest.approx(full[0]["seconds"][0])
    least = 6 * 6.5e9 * found["arms"][0]["tokens"] / 2e14
    assert full[0]["seconds"][0] == pytest.approx(least, rel=0.05)
    without = plan(recipe, devices=[1])
    assert without["totals"]["seconds"] is None


@pytest.mark.parametrize(
    ("name", "address", "parameters"),
    [
        ("llama-2-7b", "meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B", 1_235_814_400),
    ],
)
def test_a_base_behind_a_licence_is_planned_without_network(
    name: str, address: str, parameters: int
) -> None:
    bases = [micro_recipe(base={"model": model}).base for model in (name, address)]
    assert shapes_of(bases[0]) == shapes_of(bases[1])
    assert shapes_of(bases[0]).parameters == parameters


@pytest.mark.parametrize("name", work.CHOICE_TOKENS)
def test_tokens_of_choices_are_those_of_the_sets(name: str, shared_data: Path) -> None:
    task = load(name)
    rows = load_rows(name, TASKS[name].split, shared_data)
    assert len(rows) == work.ITEMS[name]
    asked = [one for place, row in enumerate(rows) for one in task.question(row, place).requests]
    letters = sum(len(one.context + one.continuation) for one in asked)
    tokens = letters / work.CHARACTERS_A_TOKEN / len(rows)
    assert work.CHOICE_TOKENS[name] == pytest.approx(tokens, rel=0.01)


def test_time_of_measuring_is_that_of_what_is_read_and_written() -> None:
    measure = {"learning": ["gsm8k"], "forgetting": ["hellaswag"], "gsm8k_tokens": 100}
    measure["limit"] = 50
    recipe = micro_recipe(base={"model": "llama-2-7b"}, measure=measure)
    found = plan(recipe, devices=[8], flops_per_second=1e14)["totals"]["evaluation"]
    models = 1 + 20  # the base, and 2 and 3 rates with 2 seeds at 2 budgets
    tokens = models * 50 * (100 + work.CHOICE_TOKENS["hellaswag"])
    assert found["generated_tokens"] + found["read_tokens"] == tokens
    assert found["seconds"][0] == pytest.approx(2 * 6.6e9 * tokens / 1e14, rel=0.01)


@pytest.mark.parametrize("regime", ["pretrain", "instruct"])
def test_the_corpus_takes_what_the_plan_says(
    tmp_path: Path, tiny_tokenizer: Any, regime: Any
) -> None:
    encoder = ExampleEncoder(tiny_tokenizer, "chat", regime)
    rows = [Example(i, (("user", "How many?"), ("assistant", "a cat " * i))) for i in range(1, 99)]
    corpus = write_corpus(
        tmp_path, {}, iter(rows), encoder.to_learn, vocabulary=512, masked=regime == "instruct"
    )
    tokens = sum(len(item.token_ids) for item in corpus)
    known = Survey(tokens, len(rows), 64, 1.0, "", corpus_tokens=tokens)
    written = sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    shapes = shapes_from({**LLAMA_2_7B, "vocab_size": 512}, "config.json")
    assert work.corpus_bytes(micro_recipe(regime=regime), shapes, known) == written


def test_an_endless_set_is_tokenised_as_far_as_the_largest_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LAURA_DATA", raising=False)
    data = {"train": "c4", "validation_rows": 10}
    recipe = micro_recipe(regime="pretrain", data=data, budget={"tokens": [1_000_000, 20 * 10**9]})
    found = plan(recipe, devices=[1])
    assert found["data"]["corpus_tokens"] == 20 * 10**9
    assert found["totals"]["disk"]["corpus"] == 40 * 10**9
    hours = 20e9 / work.TOKENISED_A_SECOND / 3600
    told = plan_text(found)
    assert f"Tokenising 20 G tokens, once: about {int(hours)}:" in told
    assert "corpus 37.3 GiB" in told
    assert "Tokenising" not in plan_text(plan(micro_recipe(), devices=[1]))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["plan", *arguments])


def recipe_file(folder: Path, **changes: Any) -> str:
    path = folder / "p.yaml"
    path.write_text(json.dumps(micro_recipe(**changes).model_dump(mode="json")))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--devices", "0"], "from 1 to 100000, came 0"),
        (["--devices", "8,8"], "different numbers"),
        (["--devices", "many"], "whole numbers"),
        (["--devices", "1000000000"], "came 1000000000"),
        (["--devices", "1", "--flops-per-second", "-3"], "from 1e6 to 1e21"),
        (["--devices", "1", "--device-memory", "80"], "wants a size, as in 80GB"),
        (["--devices", "1", "--device-memory", "0GiB"], "wants a size, as in 80GB"),
        (["--devices", "1", "--set", "base.model=no/such"], "config.json only"),
        (["--devices", "1", "--set", "base.model=smollm2-360m"], "config.json only"),
        (["--devices", "1", "--set", "base.model=./absent"], "config.json only"),
        (["--devices", "1", "--set", "base.model=absent"], "is no model"),
    ],
)
def test_what_cannot_be_planned(tmp_path: Path, arguments: list[str], words: str) -> None:
    ended = run(recipe_file(tmp_path), *arguments)
    assert ended.exit_code == 2
    assert words in " ".join(ended.stderr.split()) and "Traceback" not in ended.stderr


def test_every_arm_that_does_not_fit_is_told(tmp_path: Path) -> None:
    arms = {
        "wide": {"method": "lora", "rank": 200},
        "odd": {"method": "lora", "targets": ["q_proj", "query"]},
    }
    ended = run(recipe_file(tmp_path, arms=arms), "--devices", "1", "--json")
    assert ended.exit_code == 2
    faults = json.loads(ended.stdout)["error"]["faults"]
    assert [fault["path"] for fault in faults] == ["arms.wide.rank", "arms.odd.targets"]
    assert "at most 128" in faults[0]["problem"] and "query" in faults[1]["problem"]


def test_faults_of_a_recipe_come_first_and_together(tmp_path: Path) -> None:
    ended = run(recipe_file(tmp_path), "--set", "seeds=[]", "--set", "train.clip=-1")
    assert ended.exit_code == 2 and "2 mistakes" in ended.stderr
    for text in ("-1", "7e9,2", "x", "1,2,3"):
        assert run("--table", text).exit_code == 2
    assert run().exit_code == 2


def test_the_table_for_any_number(tmp_path: Path) -> None:
    ended = run("--table", "7e9,0.0949", "--devices", "1,2", "--json")
    rows = json.loads(ended.stdout)["rows"]
    assert rows[1]["bytes"][1] == pytest.approx((2 + 16 * 0.0949) * 7e9 / 2)
    told = run("--table", "7e9").stdout
    assert "in GB of 10^9 bytes" in told.splitlines()[0] and "  15.12  " in told


@pytest.mark.slow
def test_this_machine_is_measured(tmp_path: Path) -> None:
    ended = run(recipe_file(tmp_path), "--device", "cpu", "--json")
    assert ended.exit_code == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert 1e8 < found["machine"]["runtime"] < 2e9
    assert found["totals"]["seconds"][0] > 0


# ----- what a recipe can ask for besides plain arms -----

KNOWN = Survey(100_000, 1000, 64, 0.5, "")


def test_an_external_arm_is_measured_only() -> None:
    made = [
        {"model": "there", "budget": point, "learning_rate": 1e-4} for point in (10_000, 40_000)
    ]
    arms = {
        "full": {"method": "full", "external": made},
        "lora": {"method": "lora", "learning_rates": [1e-4, 3e-4]},
    }
    recipe = micro_recipe(arms=arms)
    found = plan(recipe, devices=[1])
    full, lora = found["arms"]
    assert (full["runs"], full["models"], full["tokens"], full["checkpoint_bytes"]) == (0, 2, 0, 0)
    assert full["devices"][0]["training"] is None
    assert full["devices"][0]["evaluation"]["peak"] > 0
    # The base, two made elsewhere, and 2 rates x 2 seeds at 2 points.
    assert found["totals"]["evaluation"]["models"] == 1 + 2 + 8
    assert found["totals"]["runs"] == lora["runs"] == 8 and full["longer"] == 0


def test_replay_comes_on_top_of_epochs_and_within_tokens() -> None:
    epochs = micro_recipe(budget={"epochs": [1, 3]})
    assert budget_tokens(epochs, KNOWN, 0.25) == [133_333, 400_000]
    assert budget_tokens(epochs, KNOWN, answers=8) == [800_000, 2_400_000]
    assert budget_tokens(micro_recipe(), KNOWN, 0.25) == [10_000, 40_000]
    arms = {
        "plain": {"method": "full", "learning_rates": [1e-4]},
        "more": {"method": "full", "learning_rates": [1e-4], "replay": 0.5},
    }
    data = {
        "train": {"source": "micro-code"},
        "replay": [{"source": "base_samples", "count": 30, "tokens": 20}],
    }
    found = plan(micro_recipe(arms=arms, data=data, budget={"epochs": [1, 3]}), devices=[1])
    plain, more = found["arms"]
    assert more["tokens"] == pytest.approx(2 * plain["tokens"], rel=0.01)
    alone = micro_recipe(arms={"plain": arms["plain"]}, budget={"epochs": [1, 3]})
    without = plan(alone, devices=[1])
    answers = found["totals"]["evaluation"]["answers"]
    models = found["totals"]["evaluation"]["models"]
    each = (without["totals"]["evaluation"]["answers"]) // without["totals"]["evaluation"]["models"]
    assert answers == models * each + 30


def test_a_search_has_its_trials_whatever_the_grid() -> None:
    arms = {
        "lora": {
            "method": "lora", "learning_rates": [1e-4, 1e-3], "grid": {"rank": [4, 8, 16]},
        },
        "full": {"method": "full", "learning_rates": [1e-5, 1e-4]},
        "fixed": {"method": "full", "learning_rates": [1e-4], "weight_decay": 0.1},
    }  # fmt: skip
    search = {"sampler": "tpe", "trials": 10}
    recipe = micro_recipe(arms=arms, search=search)
    assert tries_of(recipe) == {
        "lora-rank-4": 4, "lora-rank-8": 3, "lora-rank-16": 3, "full": 10, "fixed": 1,
    }  # fmt: skip
    shapes = shapes_of(recipe.base)
    # A try more for the second seed, at two budget points that are runs of their own.
    assert arm_work(recipe, "full", shapes, KNOWN).runs == (10 + 1) * 2
    grid = tries_of(micro_recipe(arms=arms))
    assert grid == {"lora-rank-4": 2, "lora-rank-8": 2, "lora-rank-16": 2, "full": 2, "fixed": 1}


def test_a_warmup_longer_than_the_shortest_run_is_told() -> None:
    def told(steps: int) -> bool:
        train = {"batch_tokens": 512, "row_tokens": 256, "warmup_steps": steps}
        notes = plan(micro_recipe(train=train), devices=[1])["notes"]
        return any("warmup_steps is" in note and "will refuse" in note for note in notes)

    # 10,000 tokens are twenty steps of 512.
    assert told(21) and not told(20)


def test_extras_are_counted_where_they_are_measured() -> None:
    bare = plan(micro_recipe(), devices=[1])["totals"]["evaluation"]
    measure = micro_recipe().measure.model_dump(mode="json") | {
        "extras": {
            "last": {"task": "micro_code", "samples": 20, "limit": 10},
            "every": {"task": "micro_math", "samples": 5, "limit": 8, "at": "all"},
        }
    }
    recipe = micro_recipe(measure=measure)
    more = plan(recipe, devices=[1])["totals"]["evaluation"]
    # The base, and of each of 2 arms 2 seeds, at the last or at both points.
    last, every = (1 + 2 * 2) * 20 * 10, (1 + 2 * 2 * 2) * 5 * 8
    assert more["answers"] - bare["answers"] == last + every
    assert more["generated_tokens"] - bare["generated_tokens"] == 64 * (last + every)
    assert extras.most_jobs(recipe) == work._extra_models(recipe, "all")
    told = {"micro_code": micro_code.NEW_TOKENS, "micro_math": micro_math.NEW_TOKENS}
    assert told == work.NEW_TOKENS


def test_a_comparison_announces_what_is_trained_only() -> None:
    made = [{"model": "there", "budget": 40_000, "learning_rate": 1e-4}]
    arms = {"full": {"method": "full", "external": made}}
    base = SimpleNamespace(folder=MICRO_BASE, model=SimpleNamespace(dtype=torch.float32))

    def told(recipe: Recipe) -> str:
        bench = SimpleNamespace(base=base, device_name="cpu")
        session: Any = SimpleNamespace(
            recipe=recipe, bench=bench, epoch_tokens=1000, data=SimpleNamespace(train=[1, 2])
        )
        return announcement(session)

    assert "nothing is trained" in told(micro_recipe(arms=arms))
    words = told(micro_recipe())  # (2 + 3 rates) x 2 seeds at 2 points
    assert "memory beside torch's own full" in words and "20 runs (and up to 24 more)" in words


@pytest.mark.parametrize(
    ("arm", "path", "words"),
    [
        ({"method": "full", "layers": [1, 99]}, "layers", "names 99"),
        ({"method": "lora", "layers": [99]}, "layers", "numbered 0 to"),
        ({"method": "lora", "layers": [0], "targets": ["layers.1.mlp.up_proj"]}, "layers", "none"),
        ({"method": "lora", "protect": 128}, "protect", "at most 127"),
    ],
)
def test_what_the_base_lacks(tmp_path: Path, arm: dict[str, Any], path: str, words: str) -> None:
    file = tmp_path / "p.yaml"
    data = micro_recipe().model_dump(mode="json") | {"arms": {"x": arm}}
    file.write_text(json.dumps(data))
    ended = CliRunner().invoke(cli.app, ["plan", str(file), "--devices", "1", "--json"])
    assert ended.exit_code == 2
    fault = json.loads(ended.stdout)["error"]["faults"][0]
    assert fault["path"] == f"arms.x.{path}" and words in fault["problem"]


def test_nothing_is_drawn_or_trained_where_an_arm_does_not_fit(tmp_path: Path) -> None:
    data = micro_recipe().model_dump(mode="json")
    data["data"]["replay"] = [{"source": "base_samples", "count": 3000}]
    data["arms"] = {
        "good": {"method": "lora", "replay": 0.1},
        "wide": {"method": "lora", "rank": 100_000},
        "bare": {"method": "lora", "protect": 5000},
        "odd": {"method": "oft", "block_size": 7},
    }
    file, out = tmp_path / "p.yaml", tmp_path / "out"
    file.write_text(json.dumps(data))
    ended = CliRunner().invoke(cli.app, ["compare", str(file), "--out", str(out), "--json"])
    assert ended.exit_code == 2, ended.stderr
    faults = {one["path"] for one in json.loads(ended.stdout)["error"]["faults"]}
    assert faults == {"arms.wide.rank", "arms.bare.protect", "arms.odd.block_size"}
    assert not (out / "replay").exists() and not (out / "runs").exists()


def series_file(folder: Path) -> str:
    """A series of two settings."""
    common = micro_recipe().model_dump(mode="json")
    del common["name"], common["budget"]
    budgets = {"one": {"tokens": [5000]}, "two": {"epochs": [1]}}
    settings = {name: {"budget": budget} for name, budget in budgets.items()}
    settings["two"]["data"] = {"train": {"source": "nowhere/at-all"}}
    file = folder / "s.yaml"
    file.write_text(json.dumps({"name": "s", "common": common, "settings": settings}))
    return str(file)


def test_a_series_is_planned_setting_by_setting_and_as_a_whole(tmp_path: Path) -> None:
    def planned(*more: str) -> Any:
        command = ["plan", series_file(tmp_path), "--devices", "1", "--flops-per-second", "1e12"]
        return CliRunner().invoke(cli.app, [*command, *more])

    found = json.loads(planned("--json").stdout)
    one, two = (found["settings"][name]["totals"] for name in ("one", "two"))
    total = found["totals"]
    assert total["runs"] == one["runs"] + two["runs"]
    assert total["unknown"] == ["two"] and two["flops"] is None
    assert (total["flops"], total["seconds"]) == (one["flops"], one["seconds"])
    assert total["disk"]["resume"] == max(one["disk"]["resume"], two["disk"]["resume"])
    ended = planned()
    assert "all settings together" in ended.stdout and "training of two" in ended.stdout
    refused = planned("--epoch-tokens", "1000")
    assert refused.exit_code == 2 and "--setting" in refused.stderr
    alone = json.loads(planned("--setting", "two", "--epoch-tokens", "1000", "--json").stdout)
    assert list(alone["settings"]) == ["two"] and alone["totals"]["flops"] > 0
    assert planned("--setting", "three").exit_code == 2
