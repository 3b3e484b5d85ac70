"""What a study says: every change with its error, and an interval where tasks are averaged."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from laura.recipe import Recipe
from laura.recipe_reading import parse_recipe
from laura.results.task_result import TaskResult, summarise
from laura.study.summary import Evidence, Point
from laura.study.verdict import build_verdict, compare_means

RECIPE = """
name: fabricated
base: {model: m}
data: {train: gsm8k, source_text: wikitext}
budget: {epochs: [1]}
arms:
  full: {method: full, learning_rates: [1e-4]}
  lora: {method: lora, learning_rates: [1e-3]}
seeds: [0, 1]
measure:
  learning: [gsm8k]
  forgetting: [hellaswag, arc_challenge, winogrande, source_loss]
"""
SIZES = {"hellaswag": 120, "arc_challenge": 80, "winogrande": 60, "gsm8k": 100}
METRICS = {"hellaswag": "acc_norm", "arc_challenge": "acc_norm", "winogrande": "acc",
           "gsm8k": "exact_match"}  # fmt: skip
SHARE = {"base": 0.6, "full": 0.45, "lora": 0.55}


def result(task: str, model: str, draw: np.random.Generator) -> TaskResult:
    items: list[dict[str, Any]]
    if task == "source_loss":
        metric, higher = "nats_per_token", False
        items = [{"index": i, "nats": float(draw.normal(60, 5)), "tokens": 20 + i, "bytes": 99}
                 for i in range(30)]  # fmt: skip
    else:
        metric, higher = METRICS[task], True
        items = [{"index": i, metric: int(draw.random() < SHARE[model])}
                 for i in range(SIZES[task])]  # fmt: skip
    metrics = {metric: summarise(items, metric, higher)}
    return TaskResult(task, "1", model, len(items), metrics, items, 1.0)


@pytest.fixture
def evidence() -> Evidence:
    draw = np.random.default_rng(3)
    recipe: Recipe = parse_recipe(RECIPE)
    tasks = [*SIZES, "source_loss"]
    points = [
        Point(
            {"id": f"{arm}-{seed}", "arm": arm, "learning_rate": rate, "seed": seed},
            1, 10, 1000, 500, {task: result(task, arm, draw) for task in tasks},
        )
        for arm, rate in (("full", 1e-4), ("lora", 1e-3))
        for seed in (0, 1)
    ]  # fmt: skip
    base = {task: result(task, "base", draw) for task in tasks}
    facts = {"base": {"model": "m"}, "trainable_parameters": {"full": 9, "lora": 1}}
    return Evidence(recipe, facts, base, [], points, {"full": 1e-4, "lora": 1e-3})


def item_values(points: list[Any], task: str) -> np.ndarray:
    """Mean over seeds, one an item."""
    tables = [[item[METRICS[task]] for item in point[task].items] for point in points]
    return np.array(tables, dtype=float).mean(axis=0)


def scipy_interval(differences: list[np.ndarray]) -> tuple[float, float]:
    found = stats.bootstrap(
        differences, lambda *parts, axis: sum(p.mean(axis=axis) for p in parts) / len(parts),
        n_resamples=10_000, method="percentile", rng=5,
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


GENERAL = ("hellaswag", "arc_challenge", "winogrande")


def test_arms_are_compared_with_an_interval_over_items(evidence: Evidence) -> None:
    full, lora = evidence.points[:2], evidence.points[2:]
    found = compare_means(full, lora, evidence)
    assert found is not None and found.interval is not None
    differences = [
        item_values([p.results for p in full], t) - item_values([p.results for p in lora], t)
        for t in GENERAL
    ]
    assert found.value == pytest.approx(np.mean([d.mean() for d in differences]))
    low, high = scipy_interval(differences)
    assert found.interval.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.interval.high == pytest.approx(high, abs=0.05 * (high - low))
    words = f"n={found.n}; full minus lora, 95% over items {found.interval.low:+.3f} to "
    assert words + f"{found.interval.high:+.3f}" in build_verdict(evidence)["headline"]


def test_every_change_in_a_sentence_has_its_error(evidence: Evidence) -> None:
    sentences = build_verdict(evidence)["sentences"]
    number = r"[+-]\d\.\d{3}"
    change = rf"\d\.\d{{3}} to \d\.\d{{3}}, change {number} ± \d\.\d{{3}}"
    over_items = rf"{change} \(95% over items {number} to {number}\)"
    for name, sentence in zip(("full", "lora"), sentences, strict=True):
        assert sentence.startswith(f"{name} at its best rate ")
        assert re.search(rf"GSM8K, strict match {over_items};", sentence), sentence
        assert re.search(rf"source text {change};", sentence), sentence
        assert re.search(rf"mean of 3 general tasks {over_items}\.", sentence), sentence
    before = evidence.base["gsm8k"].metrics["exact_match"].value
    after = np.mean([p.results["gsm8k"].metrics["exact_match"].value for p in evidence.points[:2]])
    assert f"{before:.3f} to {after:.3f}, change {after - before:+.3f}" in sentences[0]


def test_what_was_not_measured_is_not_told(evidence: Evidence) -> None:
    for point in evidence.points[:2]:
        del point.results["winogrande"], point.results["gsm8k"]
    verdict = build_verdict(evidence)
    assert "general tasks" not in verdict["sentences"][0]
    assert "GSM8K" not in verdict["sentences"][0] and "source text" in verdict["sentences"][0]
    assert "general tasks" in verdict["sentences"][1]


def test_many_arms_are_told_beside_the_two_that_stand_for_the_methods(evidence: Evidence) -> None:
    many = """arms:
  lora-r4: {method: lora, rank: 4, learning_rates: [1e-3, 2e-3]}
  decay: {method: full, weight_decay: 0.1, learning_rates: [1e-4]}
  full: {method: full, learning_rates: [1e-4]}
  lora-mlp: {method: lora, rank: 64, targets: mlp, learning_rates: [1e-3, 2e-3]}
  lora: {method: lora, rank: 64, learning_rates: [1e-3]}
"""
    text = RECIPE.replace(RECIPE[RECIPE.index("arms:") : RECIPE.index("seeds:")], many)
    points = [
        replace(point, run={**point.run, "arm": arm})
        for arm, like in (("lora-r4", 2), ("decay", 0), ("full", 0), ("lora-mlp", 2), ("lora", 2))
        for point in evidence.points[like : like + 2]
    ]
    best = dict.fromkeys(("lora-r4", "lora-mlp", "lora"), 1e-3) | {"decay": 1e-4, "full": 1e-4}
    facts = {**evidence.facts, "trainable_parameters": dict.fromkeys(best, 1)}
    crowd = Evidence(parse_recipe(text), facts, evidence.base, [], points, best)
    verdict = build_verdict(crowd)
    two = Evidence(evidence.recipe, evidence.facts, evidence.base, [], evidence.points,
                   evidence.best)  # fmt: skip
    assert verdict["headline"] == build_verdict(two)["headline"]
    assert verdict["sentences"] == build_verdict(two)["sentences"]
    assert build_verdict(two)["others"] == []
    told = [words.split(" at its best")[0] for words in verdict["others"][::2]]
    assert told == ["lora-r4", "decay", "lora-mlp"]
    for name, beside, words in zip(told, ("lora", "full", "lora"), verdict["others"][1::2],
                                   strict=True):  # fmt: skip
        assert f"In learning, {beside} and {name} cannot be told apart" in words
    [single] = [words for words in verdict["caveats"] if "one learning rate" in words]
    assert single == "decay, full and lora were tried at one learning rate only."
    edges = "The best rates of lora-r4 (0.001) and lora-mlp (0.001) are at the edge of their grids"
    assert any(words.startswith(edges) for words in verdict["caveats"])


def test_arms_without_a_plain_pair_are_told_in_their_order(evidence: Evidence) -> None:
    text = RECIPE.replace("lora: {method: lora,", "lora: {method: lora, dora: true,")
    odd = replace(evidence, recipe=parse_recipe(text))
    verdict = build_verdict(odd)
    assert [words.split()[0] for words in verdict["sentences"]] == ["full", "lora"]
    assert "full minus lora" in verdict["headline"] and verdict["others"] == []
