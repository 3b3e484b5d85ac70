"""Recipes: every fault at once, with line and advice; nothing but a fault or a recipe comes out."""

from __future__ import annotations

import copy
import json
import math
import re
import string
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from laura.recipe.document import MOST_VALUES, YamlDocument, yaml_text
from laura.recipe.reading import (
    Series,
    parse_recipe,
    read_measure_section,
    read_recipe,
    read_study,
    recipe_schema,
    recipe_yaml,
)
from laura.recipe.sections import OftArm, Recipe
from laura.recipe.shipped import shipped_recipes
from laura.results.errors import RecipeError

GOOD = """\
name: demo
base:
  model: smollm2-135m
data:
  train: gsm8k
  test: {source: gsm8k, split: test, limit: 20}
  source_text: wikitext
budget: {tokens: [2e4, 40000]}
arms:
  lora: {method: lora, rank: 8, learning_rates: [1e-4, 1e-3]}
  full: {method: full, learning_rates: [1e-5, 1e-4]}
train:
  betas: [0.9, 0.95]
  batch_tokens: 4096
seeds: [0, 1]
"""


def loaded(text: str) -> Any:
    """What a reader of YAML 1.2 that is not ours makes of a text."""
    return YAML(typ="safe", pure=True).load(text)


def faults_of(text: str, overrides: tuple[str, ...] = ()) -> dict[str, str]:
    """Problem of each fault by path."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides)
    return {fault.path: fault.problem for fault in caught.value.faults}


def lines_of(text: str, overrides: tuple[str, ...] = ()) -> dict[str, int | None]:
    """Line of each fault by path."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides)
    return {fault.path: fault.line for fault in caught.value.faults}


def test_every_fault_at_once_with_line_and_advice() -> None:
    text = GOOD.replace("name: demo", "name: a b").replace("rank: 8", "rnk: 8")
    text = text.replace("batch_tokens: 4096", "batch_tokens: many\n  schedule: cosin")
    text = text.replace("seeds: [0, 1]", "seeds: [0, 0]\nmeasure: {learning: [gsm9k]}")
    faults = faults_of(text)
    assert set(faults) == {
        "name",
        "arms.lora.rnk",
        "train.batch_tokens",
        "train.schedule",
        "seeds",
        "measure.learning.0",
    }
    assert "did you mean rank?" in faults["arms.lora.rnk"]
    assert "learning_rates" in faults["arms.lora.rnk"], "says what is allowed"
    assert "many" in faults["train.batch_tokens"], "says what came"
    assert "'cosine', 'constant' or 'trapezoidal'" in faults["train.schedule"]
    assert "twice" in faults["seeds"], "a fault between values is told beside faults of types"
    lines = lines_of(text)
    assert (lines["name"], lines["arms.lora.rnk"]) == (1, 10)
    assert (lines["train.batch_tokens"], lines["train.schedule"]) == (14, 15)
    with pytest.raises(RecipeError) as caught:
        parse_recipe(GOOD.replace("batch_tokens", "batch_token"), source="mine.yaml")
    message = str(caught.value)
    assert message.startswith("mine.yaml has 1 mistake:\n")
    assert "train.batch_token (line 14): unknown key; did you mean batch_tokens?" in message


FULL = "{method: full, learning_rates: [1e-5, 1e-4]}"
TOKENS = "tokens: [2e4, 40000]"


@pytest.mark.parametrize(
    ("old", "new", "path", "words"),
    [
        (TOKENS, "tokens: [5, 4]", "budget.tokens", "rising"),
        (TOKENS, "tokens: []", "budget.tokens", "at least one"),
        (TOKENS, "tokens: [5], epochs: [1]", "budget", "either"),
        (TOKENS, "points: hot", "budget", "either"),
        (TOKENS, "epochs: [.inf]", "budget.epochs.0", "finite"),
        ("rank: 8", "rank: true", "arms.lora.rank", "integer"),
        ("rank: 8", "rank: 0", "arms.lora.rank", "greater"),
        ("rank: 8", "targets: []", "arms.lora.targets", "name a module"),
        ("rank: 8", "targets: mpl", "arms.lora.targets", "list, came 'mpl'"),
        ("rank: 8", "dora: true, init: pissa", "arms.lora.init", "choose one of the two"),
        ("rank: 8", "lora_plus_ratio: 0.5", "arms.lora.lora_plus_ratio", "or equal to 1"),
        ("rank: 8", "layers: [1, 1]", "arms.lora.layers", "names 1 twice"),
        ("rank: 8", "layers: [-1]", "arms.lora.layers.0", "greater than or equal to 0"),
        ("rank: 8", "residual_dropout: 1", "arms.lora.residual_dropout", "less than 1"),
        ("rank: 8", "alpha: .nan", "arms.lora.alpha", "finite"),
        ("rank: 8", "weight_decay_toward: base", "arms.lora.weight_decay_toward", "full arms only"),
        ("method: full", "method: full, weight_decay_toward: base", "arms.full.weight_decay_toward",
         "nothing decays"),
        ("method: full", "method: full, dora: true", "arms.full.dora", "lora arms only"),
        ("[1e-4, 1e-3]", "[1e-4, 1e-4]", "arms.lora.learning_rates", "twice"),
        ("[1e-4, 1e-3]", "[0]", "arms.lora.learning_rates.0", "greater than 0"),
        ("method: lora", "method: qlora", "arms.lora", "full, lora or oft"),
        (FULL, "{}", "arms.full", "needs a method"),
        (FULL, "", "arms.full", "section"),
        ("lora: {method", "a b: {method", "arms.a b", "letters, digits"),
        ("  source_text: wikitext\n", "", "data.source_text", "source_loss"),
        ("  test: {source: gsm8k, split: test, limit: 20}\n", "", "data.test", "kl, target_loss"),
        ("limit: 20", "limit: '20'", "data.test.limit", "integer"),
        ("batch_tokens: 4096", "batch_tokens: 512", "train.batch_tokens", "at least one row"),
        ("batch_tokens: 4096", "precision: fp16", "train.precision", "'auto', 'bf16' or 'fp32'"),
        ("betas: [0.9, 0.95]", "betas: [0.9]", "train.betas.1", "missing"),
        ("betas: [0.9, 0.95]", "warmup: 0.9\n  schedule: trapezoidal", "train.warmup", "steps"),
        ("seeds: [0, 1]", "  cohort: 4\nsearch:\n  sampler: tpe", "train.cohort",
         "leave it out, or set search.sampler: grid"),
        ("seeds: [0, 1]", "  cohort: 2\n  devices: 2", "train.devices", "trains on one device"),
        ("betas: [0.9, 0.95]", "devices: 5", "train.devices", "a step of 4096 tokens is 2 passes"),
        ("seeds: [0, 1]", "analysis: {intruders: true}", "analysis.intruders", "set it to final"),
        ("seeds: [0, 1]", "search: {sampler: tpe, seeds: all}", "search.seeds", "set search.seeds"),
        ("train:\n  betas", "train: 3\nx:\n  betas", "train", "section"),
        ("  model: smollm2-135m", "  revision: main", "base.model", "missing"),
        ("base:\n  model: smollm2-135m\n", "", "base", "missing"),
        ("seeds: [0, 1]", "seeds: []", "seeds", "at least 1"),
        ("seeds: [0, 1]", "seeds: [0]\nseeds: [1]", "seeds", "given twice"),
        ("seeds: [0, 1]", "1: 2", "1", "string"),
    ],
)  # fmt: skip
def test_each_mistake(old: str, new: str, path: str, words: str) -> None:
    assert old in GOOD
    faults = faults_of(GOOD.replace(old, new))
    assert words in faults[path], faults


def test_full_finetuning_of_bfloat16_weights_is_refused_with_all_other_faults() -> None:
    text = GOOD.replace("model: smollm2-135m", "model: smollm2-135m\n  dtype: bfloat16")
    faults = faults_of(text.replace("seeds: [0, 1]", "seeds: [0, 0]"))
    assert set(faults) == {"base.dtype", "seeds"}
    assert "full finetuning (arm full) loses every update below half" in faults["base.dtype"]
    assert "base.dtype: float32 with train.precision: bf16" in faults["base.dtype"]
    assert "LoRA arms alone, whose adapters are float32" in faults["base.dtype"]
    assert lines_of(text)["base.dtype"] == text.splitlines().index("  dtype: bfloat16") + 1
    alone = YamlDocument.parse(text, "x").data
    del alone["arms"]["full"]
    assert parse_recipe(yaml_text(alone)).base.dtype == "bfloat16"
    # Weights that were trained elsewhere are only measured here.
    made = "{method: full, external: [{model: x, learning_rate: 1e-5, budget: 2e4}]}"
    elsewhere = text.replace("{method: full, learning_rates: [1e-5, 1e-4]}", made)
    assert parse_recipe(elsewhere).base.dtype == "bfloat16"


def test_lora_beside_full_may_hold_its_base_in_bfloat16() -> None:
    text = GOOD.replace("rank: 8", "rank: 8, base_dtype: bfloat16")
    recipe = parse_recipe(text, ["train.precision=bf16"])
    assert recipe.base.dtype_under(recipe.arms["lora"]) == "bfloat16"
    assert recipe.base.dtype_under(recipe.arms["full"]) == recipe.base.dtype == "float32"
    plain = parse_recipe(GOOD).arms["lora"]
    assert "base_dtype" not in plain.identity() and "base_dtype" in recipe.arms["lora"].identity()
    faults = faults_of(text, ("train.precision=fp32", "base.quantization=nf4"))
    assert set(faults) == {"arms.lora.base_dtype", "base.quantization"}
    assert (
        "train.precision is fp32"
        in faults_of(text, ("train.precision=fp32",))["arms.lora.base_dtype"]
    )
    faults = faults_of(GOOD.replace("method: full", "method: full, base_dtype: bfloat16"))
    assert "lora and oft arms only" in faults["arms.full.base_dtype"]


def test_full_finetuning_of_a_quantised_base_is_refused_with_all_other_faults() -> None:
    held = "model: smollm2-135m\n  dtype: bfloat16\n  quantization: nf4"
    text = GOOD.replace("model: smollm2-135m", held).replace("seeds: [0, 1]", "seeds: [0, 0]")
    faults = faults_of(text)
    assert set(faults) == {"base.dtype", "base.quantization", "seeds"}
    assert "whole models (arm full) would differ" in faults["base.quantization"]
    line = text.splitlines().index("  quantization: nf4") + 1
    assert lines_of(text)["base.quantization"] == line
    # A whole model that was trained elsewhere has not such a base either.
    made = "{method: full, external: [{model: x, learning_rate: 1e-5, budget: 2e4}]}"
    assert "base.quantization" in faults_of(text.replace(FULL, made))
    alone = YamlDocument.parse(text.replace("[0, 0]", "[0, 1]"), "x").data
    del alone["arms"]["full"]
    assert parse_recipe(yaml_text(alone)).base.quantization == "nf4"
    assert "base in nf4 is not spread" in faults_of(text, ("train.devices=2",))["train.devices"]
    faults = faults_of(text, ("base.quantization=int4",))
    assert "'nf4'" in faults["base.quantization"] and "int4" in faults["base.quantization"]


def test_oft_is_refused_where_it_does_not_go_with_all_other_faults() -> None:
    text = GOOD.replace("{method: lora, rank: 8", "{method: oft, block_size: 16")
    arm = parse_recipe(text).arms["lora"]
    assert isinstance(arm, OftArm) and arm.block_size == 16 and not hasattr(arm, "rank")
    asked = ("base.quantization=nf4", "measure.engine=vllm", "arms.lora.penalty=clora")
    faults = faults_of(text, (*asked, "arms.lora.block_size=1", "arms.lora.targets=[]"))
    assert "greater than or equal to 2" in faults["arms.lora.block_size"]
    faults = faults_of(text, (*asked, "arms.lora.targets=[]"))
    assert {"arms.lora.method", "arms.lora.penalty", "arms.lora.targets"} <= set(faults)
    assert "there are none in full finetuning and in OFT" in faults["arms.lora.penalty"]
    for key, wanted in (("base.quantization=nf4", "not trained on a base in nf4"),
                        ("measure.engine=vllm", "vLLM (measure.engine) takes LoRA")):  # fmt: skip
        assert (
            wanted in faults_of(text, (key, "measure.forgetting=[hellaswag]"))["arms.lora.method"]
        )
    for key in ("rank: 8", "dora: true", "init: pissa", "dropout: 0.1", "protect: 4"):
        faults = faults_of(text.replace("block_size: 16", key))
        assert "lora arms only" in faults[f"arms.lora.{key.split(':')[0]}"]


def test_a_start_from_activations_asks_for_texts_and_one_device() -> None:
    text = GOOD.replace("rank: 8", "rank: 8, init: corda")
    faults = faults_of(text, ("train.devices=2",))
    assert set(faults) == {"arms.lora.init"}
    replay = "data.replay=[{source: base_samples, count: 256}]"
    assert (
        "set train.devices to 1" in faults_of(text, ("train.devices=2", replay))["arms.lora.init"]
    )
    assert "names no source" in faults_of(text)["arms.lora.init"]
    recipe = parse_recipe(text, [replay])
    assert recipe.arms["lora"].reads_activations and not recipe.arms["lora"].replay
    assert "is used by no arm" in faults_of(GOOD, (replay,))["data.replay"]
    assert not recipe.arms["full"].reads_activations


def test_what_vllm_cannot_measure_is_refused_with_all_other_faults() -> None:
    asked = ("measure.engine=vllm", "measure.forgetting=[hellaswag, kl]")
    assert parse_recipe(GOOD, asked).measure.engine == "vllm"
    assert "nothing is asked of it" in faults_of(GOOD, asked[:1])["measure.engine"]
    extra = ("measure.engine=vllm", "measure.extras={many: {task: gsm8k, samples: 4}}")
    assert parse_recipe(GOOD, extra).measure.extras

    faults = faults_of(
        GOOD, (*asked, "base.quantization=nf4", "arms.lora.dora=true", "seeds=[0,0]")
    )
    assert set(faults) == {"base.quantization", "measure.engine", "arms.lora.dora", "seeds"}
    assert "not in nf4 as it is trained on" in faults["measure.engine"]
    assert "vLLM (measure.engine) takes plain LoRA" in faults["arms.lora.dora"]

    arms = ("arms.lora.rank=300", "arms.lora.init=pissa", "arms.lora.targets=[lm_head, q_proj]")
    faults = faults_of(GOOD, (*asked, *arms))
    assert "rank 600, twice 300 by init: pissa" in faults["arms.lora.rank"]
    assert "names lm_head, and vLLM" in faults["arms.lora.targets"]
    assert "at most 512" in faults_of(GOOD, (*asked, "arms.lora.rank=513"))["arms.lora.rank"]
    assert parse_recipe(GOOD, (*asked, "arms.lora.rank=512")).arms

    alone = YamlDocument.parse(GOOD, "x").data
    del alone["arms"]["full"]
    low = (*asked, "base.dtype=bfloat16")
    for more, said in (((), "fp32 on most devices"), (("measure.precision=fp32",), "fp32")):
        problem = faults_of(yaml_text(alone), (*low, *more))["measure.precision"]
        assert f"is {said}, in which vLLM would hold weights that the base" in problem
    assert parse_recipe(yaml_text(alone), (*low, "measure.precision=bf16")).measure


def test_arms_at_one_shared_rate_need_consent() -> None:
    text = GOOD.replace("[1e-4, 1e-3]", "[1e-4]").replace("[1e-5, 1e-4]", "[1e-4]")
    assert "misleads" in faults_of(text)["arms"]
    parse_recipe(text, ["search.allow_shared_rate=true"])


def test_overrides() -> None:
    given = "train.batch_tokens=8192 data.train.limit=5 arms.lora.learning_rates=[2e-4] "
    given += "budget.tokens=[1e5] train.clip=null domain=mathematics"
    recipe = parse_recipe(GOOD, given.split())
    assert recipe.train.batch_tokens == 8192
    assert (recipe.data.train.source, recipe.data.train.limit) == ("gsm8k", 5)
    assert recipe.arms["lora"].learning_rates == [2e-4]
    assert recipe.budget.tokens == [100_000]
    assert recipe.train.clip is None
    assert recipe.domain == "mathematics"


def test_override_of_names_with_dots_and_of_aliases() -> None:
    text = GOOD.replace("  lora: {", "  lora.r8: &one {")
    text = text.replace("  full:", "  other: *one\n  full:")
    arms = parse_recipe(text, ["arms.other.rank=2", "arms.lora.r8.alpha=3"]).arms
    assert [getattr(arms[name], "rank", 0) for name in ("lora.r8", "other")] == [8, 2]
    assert [getattr(arms[name], "alpha", 0) for name in ("lora.r8", "other")] == [3, None]


def test_faults_of_overrides_do_not_blame_the_file() -> None:
    given_faults = ("train.batch_tokens=x", "train.nonsense=1", "no-equals", "name.x=1", "a=[")
    faults = faults_of(GOOD, given_faults)
    assert faults["train.batch_tokens"].endswith("(given by --set)")
    assert faults["train.nonsense"].endswith("(given by --set)")
    assert "takes section.key=value" in faults["--set"]
    assert "not a section" in faults["--set name.x"]
    assert "not YAML" in faults["--set a"]
    assert not any(lines_of(GOOD, given_faults).values())


def test_samples_of_programs_that_cannot_be_told_together() -> None:
    given = ["measure.code_samples=5", "measure.code_k=[1,10,100]", "base.dtype=float16"]
    faults = faults_of(GOOD, given)
    assert "names 10, 100, but pass@k needs at least k samples" in faults["measure.code_k"]
    assert "all 5 samples would be the same program" in faults["measure.code_temperature"]
    assert "base.dtype" in faults
    assert "names 1 twice" in faults_of(GOOD, ["measure.code_k=[1,1]"])["measure.code_k"]
    with pytest.raises(RecipeError, match=r"measure\.code_k.*at least k samples"):
        read_measure_section(["measure.code_k=[2]"])
    paper = ["measure.code_samples=50", "measure.code_temperature=0.2", "measure.code_k=[1,10]"]
    assert parse_recipe(GOOD, paper).measure == read_measure_section(paper)


def test_any_task_of_lm_eval_and_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAURA_DATA", raising=False)
    for name in ("here.yaml", "data/tasks/there.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    given = [
        "measure.learning=[here.yaml, target_loss]",
        "measure.forgetting=['lm_eval:piqa', tasks/there.py, hellaswag]",
    ]
    recipe = parse_recipe(GOOD, given, data_dir=tmp_path / "data")
    assert recipe.measure.learning == ["here.yaml", "target_loss"]
    assert recipe.measure.forgetting == ["lm_eval:piqa", "tasks/there.py", "hellaswag"]
    monkeypatch.setenv("LAURA_DATA", str(tmp_path / "data"))
    assert parse_recipe(GOOD, given) == recipe
    jsonschema.validate(loaded(recipe_yaml(recipe)), json.loads(recipe_schema()))
    monkeypatch.delenv("LAURA_DATA")
    assert "no such file from here" in faults_of(GOOD, tuple(given))["measure.forgetting.1"]


def test_every_fault_of_tasks_names_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a/mine.yaml", "b/mine.py", "a/gsm8k.py", "a b.yml", "mean.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    faults = faults_of(
        GOOD.replace("seeds: [0, 1]", "seeds: [0, 0]")
        + "measure:\n  learning: [gsm9k, absent.yaml, hellaswag, 3]\n"
        "  forgetting: ['lm_eval:', a/gsm8k.py, 'a b.yml', mean.yaml, helaswag]\n"
    )
    assert "did you mean gsm8k? allowed: gsm8k, " in faults["measure.learning.0"]
    assert faults["measure.learning.0"].endswith(
        "lm_eval:NAME, or the path of your own .yaml or .py file"
    )
    assert "'absent.yaml', and there is no such file" in faults["measure.learning.1"]
    assert "no task that can stand here, came 'hellaswag'" in faults["measure.learning.2"]
    assert "valid string, came 3" in faults["measure.learning.3"]
    assert "must be lm_eval:NAME" in faults["measure.forgetting.0"]
    assert "'gsm8k' is a task of Laura" in faults["measure.forgetting.1"]
    assert "'a b' cannot be a name" in faults["measure.forgetting.2"]
    assert "the mean of the tasks" in faults["measure.forgetting.3"]
    assert "did you mean hellaswag?" in faults["measure.forgetting.4"]
    assert "twice" in faults["seeds"]
    both = ("measure.learning=[a/mine.yaml]", "measure.forgetting=[b/mine.py]")
    assert "would both be called mine; rename" in faults_of(GOOD, both)["measure"]
    twice = ("measure.learning=['lm_eval:x']", "measure.forgetting=['lm_eval:x']")
    assert "a task twice" in faults_of(GOOD, twice)["measure"]


@pytest.mark.parametrize(
    ("name", "fits"),
    [("gsm8k", True), ("lm_eval:piqa", True), ("t/x.yml", True), ("gsm9k", False), (3, False)],
)
def test_schema_knows_tasks(name: Any, fits: bool) -> None:
    schema = json.loads(recipe_schema())
    data = {**loaded(GOOD.replace("2e4", "20000")), "measure": {"learning": [name]}}
    for arm in data["arms"].values():
        arm["learning_rates"] = [0.1]
    found = list(jsonschema.Draft202012Validator(schema).iter_errors(data))
    assert (not found) == fits


def test_measure_section_by_overrides() -> None:
    section = read_measure_section(["measure.limit=7", "measure.gsm8k_shots=0"])
    assert (section.limit, section.gsm8k_shots) == (7, 0)
    with pytest.raises(RecipeError, match=r"only measure\.key") as caught:
        read_measure_section(["train.clip=1", "measure.limit=0"])
    assert {fault.path for fault in caught.value.faults} == {"--set train", "measure.limit"}


def test_yaml_1_2() -> None:
    text = "a: [010, 1:30, no, 1e-4, 1e6, 0x1f, 0o17, 60_000, .5, ~, 1e999, '1e4']"
    told = YamlDocument.parse(text, "x").data["a"]
    assert told == [10, "1:30", "no", 1e-4, 10**6, 31, 15, 60_000, 0.5, None, math.inf, "1e4"]
    assert [type(one) for one in told[3:5]] == [float, int]
    recipe = parse_recipe(GOOD.replace("  full:", "  no:").replace("[0, 1]", "[010]"))
    assert list(recipe.arms) == ["lora", "no"] and recipe.seeds == [10]
    # Readers of YAML 1.1 or of 1.2 take these for text in quotes alone, and 1e-05 for text.
    words = ["no", "010", "08", "1:30", "1e5", "1_000", "~", "12e45", "2027-01-31"]
    written = yaml_text({"a": [*words, "plain"], "b": 1e-05})
    assert written.splitlines()[1:10] == [f"- '{word}'" for word in words]
    assert written.splitlines()[10:] == ["- plain", "b: 1.0e-05"]


def test_merged_sections_keep_their_lines() -> None:
    text = """\
a: &a {x: 1, y: 2}
b: &b
  x: 3
c:
  y: 4
  <<: [*b, *a]
d: {<<: *a, y: &z [5], z: *z}
"""
    document = YamlDocument.parse(text, "x")
    assert document.data["c"] == {"x": 3, "y": 4} and list(document.data["c"]) == ["x", "y"]
    assert document.data["d"] == {"x": 1, "y": [5], "z": [5]}
    assert [document.lines[path] for path in ("c.x", "c.y", "d.x", "d.z.0")] == [3, 5, 1, 7]


LINES = ["a: &a [x, x, x, x, x, x, x, x, x]"]
LINES += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in pairwise("abcdefghij")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "came nothing"),
        (b"- a\n", "came list"),
        (b"name: [", "not YAML"),
        (b"\xff\xfe", "cannot be read"),
        (b"name: \x00", "not YAML"),
        (b"a: !!python/object:os.system {}", "not YAML"),
        (b"a: !!bool perhaps", "not YAML"),
        (b"a: !!int ''", "not a whole number"),
        (b"a: 0x" + b"f" * 9000, "too large"),
        (b"a: " + b"9" * 9000, "not a whole number"),
        (b"a: 2020-99-99", "not YAML"),
        (b"? [a]\n: b", "not YAML"),
        (b"[" * 3000, "line 1.*nested more than 20 deep"),
        (b"x: 1\na: " + b"{b: " * 30, "line 2.*nested more than 20 deep"),
        (b"a: 1\nb: {<<: 3}", "line 2.*<< takes a section"),
        (b"a: *b", "undefined alias"),
        (b"a: 1\n---\nb: 2", "found another document"),
        # Here 010 was 8, and 1:30 was 90.
        (b"%YAML 1.1\n---\na: 1:30", "line 2.*%YAML 1.1 would change what numbers mean"),
        ("\n".join(LINES).encode(), f"line 1.*aliases stand for more than {MOST_VALUES:,}"),
        (b"a: &a {b: *a}", "aliases stand for .* themselves"),
        (b"a: &a {<<: *a}", "aliases stand for .* themselves"),
        (b"".join(b"k%d: 1\n" % n for n in range(100_000)), "line 5000.*more than 10,000 values"),
        (
            b"name: " + b"x" * 5 * 2**20,
            r"cannot be read \(.* has 5,242,886 bytes, allowed are 1,048,576",
        ),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=words):
        read_recipe(path)
    with pytest.raises(RecipeError, match=r"cannot be read \(No such file.*give the path"):
        read_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path)


def test_overrides_that_are_none_are_told_and_cost_nothing() -> None:
    """A path of 5,000 parts took minutes; the reason why a value is refused was not told."""
    wrong = [".".join("a" * 5000) + "=1", "a=[", "a=" + "[" * 3000, "a=" + "{b: 1}, " * 9]
    document = YamlDocument("--set", {})
    document.override(wrong)
    words = [
        "takes section.key=value, came 'a.a.",
        "not YAML: ",
        "nested more than 20 deep",
        "YAML:",
    ]
    assert len(document.faults) == len(words) and not document.data
    for fault, word in zip(document.faults, words, strict=True):
        assert word in fault.problem and len(str(fault)) < 300


def test_no_more_faults_are_told_than_can_be_read() -> None:
    with pytest.raises(RecipeError, match="and 2805 more") as caught:
        parse_recipe("".join(f"k{n}: 1\n" for n in range(3000)))
    assert len(caught.value.faults) == 3005 and len(str(caught.value)) < 50_000


def test_schema_refuses_what_we_refuse() -> None:
    schema = json.loads(recipe_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(loaded(GOOD))
    assert not validator.is_valid({"name": "x"})
    series = loaded(shipped_recipes()["micro/paper"].read_text(encoding="utf-8"))
    for wrong in ({"extra": 1}, {"settings": {}}, {"settings": {"a": 3}}, {"common": 3}):
        assert not validator.is_valid({**series, **wrong})


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_whole_and_fit_the_schema(name: str) -> None:
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    jsonschema.Draft202012Validator(json.loads(recipe_schema())).validate(loaded(text))
    read = read_study(shipped_recipes()[name])
    for recipe in read.settings.values() if isinstance(read, Series) else [read]:
        assert parse_recipe(recipe_yaml(recipe)) == recipe


def outcome(text: str, overrides: tuple[str, ...] = ()) -> Recipe | None:
    """The recipe, or None where faults were listed; anything else escapes."""
    try:
        recipe = parse_recipe(text, overrides)
    except RecipeError as error:
        assert error.faults and all(fault.problem and fault.path for fault in error.faults)
        assert len(str(error)) < 20_000
        return None
    assert parse_recipe(recipe_yaml(recipe)) == recipe
    return recipe


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(alphabet=string.printable, max_size=12)
    | st.sampled_from(["lora", "full", "gsm8k", "all", "auto", "", "1e-4", "."])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(alphabet="abmr._", max_size=6) | st.integers(), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a value."""
    children: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    return [
        found for key, below in children for found in [(*path, key), *places(below, (*path, key))]
    ]


PLAIN = loaded(recipe_yaml(parse_recipe(GOOD)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_recipes_never_escape(data: st.DataObject) -> None:
    mutant = copy.deepcopy(PLAIN)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(mutant)))
        parent = mutant
        for key in path[:-1]:
            parent = parent[key]
        match data.draw(st.sampled_from(["delete", "replace", "rename", "swap"])):
            case "delete":
                del parent[path[-1]]
            case "rename" if isinstance(parent, dict):
                parent[data.draw(st.text(alphabet="abct_", max_size=5))] = parent.pop(path[-1])
            case "swap":
                other = data.draw(st.sampled_from(list(PLAIN.values())))
                parent[path[-1]] = copy.deepcopy(other)
            case _:
                parent[path[-1]] = data.draw(values)
    outcome(yaml_text(mutant))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_mutated_text_never_escapes(data: st.DataObject) -> None:
    text = GOOD
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 8)))
        odd = [
            "&a ",
            "*a",
            "!!int ",
            "!!bool ",
            "<<: ",
            "? ",
            "|\n",
            "{",
            "]",
            "\t",
            "---\n",
            "1e999",
        ]
        pieces = st.text(max_size=4) | st.sampled_from(odd)
        text = text[:start] + data.draw(pieces) + text[end:]
    outcome(text)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_damaged_bytes_never_escape(tmp_path_factory: Any, noise: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(GOOD[:at].encode() + noise + GOOD[at:].encode())
    try:
        read_recipe(path)
    except RecipeError as error:
        assert error.faults


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from([".".join(map(str, path)) for path in places(PLAIN)])
        | st.text(alphabet="ab.= ", max_size=8),
        min_size=1,
        max_size=3,
    ),
    values,
)
def test_overrides_never_escape(paths: list[str], value: Any) -> None:
    shown = json.dumps(value) if isinstance(value, dict | list) else str(value)
    outcome(GOOD, tuple(f"{path}={shown}" for path in paths))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(min_value=1e-300, max_value=1.0))
def test_every_rate_survives_the_round_trip(rate: float) -> None:
    recipe = outcome(GOOD, (f"arms.full.learning_rates=[{rate!r}]",))
    assert recipe is not None and math.isclose(
        recipe.arms["full"].learning_rates[0], rate, rel_tol=0
    )


def test_the_written_reference_is_up_to_date() -> None:
    from scripts.write_recipe_reference import TARGET, reference

    assert TARGET.read_text(encoding="utf-8") == reference(), "say `make docs`"


def test_the_recipe_in_the_readme_is_whole() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    block = readme.split("```yaml\n")[1].split("```")[0]
    assert set(parse_recipe(block).arms) == {"lora", "full"}


def test_extras_that_cannot_be_told_together() -> None:
    given = [
        "measure.extras.gsm8k={task: gsm8k}",
        "measure.extras.many={task: humaneval, samples: 4, k: [1, 8]}",
        "measure.extras.twice={task: mbpp, k: [2, 2]}",
        "base.dtype=float16",
    ]
    faults = faults_of(GOOD, given)
    assert "is what a task's own result is called" in faults["measure.extras.gsm8k"]
    told = faults["measure.extras.many.k"]
    assert "names 8, but pass@k needs at least k samples and samples is 4" in told
    assert "names 2 twice" in faults["measure.extras.twice.k"]
    assert "base.dtype" in faults
    wrong = [
        "measure.extras.a={task: hellaswag, samples: 1, temperature: 0, sampels: 3}",
        "measure.extras.b={samples: 5}",
    ]
    faults = faults_of(GOOD, wrong)
    assert "hellaswag" in faults["measure.extras.a.task"]
    assert "greater than or equal to 2" in faults["measure.extras.a.samples"]
    assert "greater than 0" in faults["measure.extras.a.temperature"]
    assert "did you mean samples?" in faults["measure.extras.a.sampels"]
    assert "needed but missing" in faults["measure.extras.b.task"]
    assert read_measure_section(["measure.extras.a={task: mbpp}"]).extras["a"].samples == 50
    with pytest.raises(RecipeError, match=r"measure\.extras\.mean"):
        read_measure_section(["measure.extras.mean={task: mbpp}"])


def test_divergences_name_the_data_they_need() -> None:
    both = "measure.forgetting=[kl_reverse, kl_source, kl_reverse_source]"
    text = re.sub(r"  test: .*\n", "", re.sub(r"  source_text: .*\n", "", GOOD))
    faults = faults_of(text, ["measure.learning=[gsm8k]", both])
    assert faults["data.test"] == "is needed by measure: kl_reverse"
    assert "kl_reverse_source, kl_source" in faults["data.source_text"]


def test_dropout_over_several_devices_is_refused_in_every_arm_that_is_trained() -> None:
    text = GOOD.replace("rank: 8", "rank: 8, dropout: 0.1, residual_dropout: 0.2")
    text = text.replace("batch_tokens: 4096", "batch_tokens: 4096\n  devices: 2")
    faults = faults_of(text)
    assert faults.keys() == {"arms.lora.dropout", "arms.lora.residual_dropout"}
    assert "is 0.1, but train.devices is 2: each device would draw" in faults["arms.lora.dropout"]
