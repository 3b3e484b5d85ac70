"""Studies with a known truth: scores are drawn item by item from means that a test sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from laura.recipe import Recipe
from laura.recipe_reading import parse_recipe
from laura.results.task_result import TaskResult, summarise
from laura.study.summary import Evidence, Point, RunFacts, evidence_of

HEAD = """
name: fabricated
base: {{model: m}}
domain: {domain}
regime: {regime}
data: {{train: gsm8k, source_text: wikitext}}
budget: {{epochs: {budgets}}}
arms:
{arms}
seeds: {seeds}
measure:
  learning: [{learning}]
  forgetting: [{forgetting}]
"""
FULL = "  full: {method: full, learning_rates: [1e-4]}"
LORA = "  lora: {method: lora, rank: 16, learning_rates: [1e-3]}"
METRIC = {"gsm8k": "exact_match", "hellaswag": "acc_norm", "winogrande": "acc",
          "humaneval": "pass@1", "arc_challenge": "acc_norm"}  # fmt: skip


LEARN, KEEP = "humaneval", ("hellaswag", "winogrande")


@dataclass
class World:
    """What is true of a fabricated study.

    Attributes:
        truth: (task, arm or "base", budget) to the chance that an item is right; a key
            without budget, or without arm, stands for all.
        seed_spread: Standard deviation of a run's own luck, added to every item's chance.
        item_spread: How much items differ in what an arm does to them.
        grid_seeds: `search.seeds`.
        hardness_spread: How much harder one item is than another, for every arm.
    """

    truth: Mapping[Any, float]
    arms: Sequence[str] = (FULL, LORA)
    budgets: Sequence[float] = (1,)
    seeds: Sequence[int] = (0, 1, 2)
    items: int = 200
    domain: str = "code"
    regime: str = "instruct"
    learning: str = "humaneval"
    forgetting: str = "hellaswag, winogrande"
    seed_spread: float = 0.02
    item_spread: float = 0.2
    hardness_spread: float = 0.3
    losses: Mapping[tuple[str, float], float] = field(default_factory=dict)
    grid_seeds: str = "all"

    def evidence(self, chance: int = 0) -> Evidence:
        """Draw the study."""
        draw = np.random.default_rng(chance)
        recipe = parse_recipe(
            HEAD.format(
                domain=self.domain, regime=self.regime, budgets=list(self.budgets),
                arms="\n".join(self.arms), seeds=list(self.seeds), learning=self.learning,
                forgetting=self.forgetting,
            ),
            ["search.allow_shared_rate=true", f"search.seeds={self.grid_seeds}"],
        )  # fmt: skip
        tasks = [name.strip() for name in f"{self.learning}, {self.forgetting}".split(",")]
        easy = {(task, who): draw.normal(0, self.item_spread, self.items) for task in tasks
                for who in ["base", *recipe.arms]}  # fmt: skip
        hard = {task: draw.normal(0, self.hardness_spread, self.items) for task in tasks}

        def result(task: str, who: str, budget: float) -> TaskResult:
            known = self.truth
            mean = known.get((task, who, budget), known.get((task, who), known.get(task, 0.5)))
            luck = 0.0 if who == "base" else draw.normal(0, self.seed_spread)
            chances = np.clip(mean + luck + easy[task, who] + hard[task], 0, 1)
            name = METRIC[task]
            items: list[dict[str, Any]] = [
                {"index": i, name: int(right)}
                for i, right in enumerate(draw.random(self.items) < chances)
            ]
            return TaskResult(task, "1", who, self.items, {name: summarise(items, name, True)},
                              items)  # fmt: skip

        points, runs = [], []
        for name, rate, seed in self._planned(recipe):
            known = {"id": f"{name}-{rate}-{seed}", "arm": name, "learning_rate": rate,
                     "seed": seed, "points": []}  # fmt: skip
            runs.append(RunFacts(known, "done"))
            for budget in recipe.budget.epochs or []:
                results = {task: result(task, name, budget) for task in tasks}
                results["validation_loss"] = _loss(self.losses.get((name, rate), 1.0))
                points.append(Point(known, budget, 10, 1000, 500, results))
        base = {task: result(task, "base", 0) for task in tasks}
        facts = {"base": {"model": "m", "fingerprint": "f", "parameters": 9},
                 "trainable_parameters": dict.fromkeys(recipe.arms, 1)}  # fmt: skip
        return evidence_of(recipe, facts, base, runs, points)

    def _planned(self, recipe: Recipe) -> Iterator[tuple[str, float, int]]:
        """The runs that `compare` would carry out, without longer lists."""
        for name, arm in recipe.arms.items():
            rates = sorted(arm.learning_rates)
            best = min(rates, key=lambda rate: self.losses.get((name, rate), 1.0))
            for rate in rates:
                every = rate == best or self.grid_seeds == "all"
                for seed in recipe.seeds if every else recipe.seeds[:1]:
                    yield name, rate, seed


def forgetting(arm: str, value: float) -> dict[Any, float]:
    return {(task, arm): value for task in KEEP}


def lora(name: str, **settings: Any) -> str:
    settings = {"method": "lora", "learning_rates": [1e-3], **settings}
    return f"  {name}: {json.dumps(settings)}"


def full(name: str, **settings: Any) -> str:
    settings = {"method": "full", "learning_rates": [1e-4], **settings}
    return f"  {name}: {json.dumps(settings)}"


def targets(order: tuple[float, float, float]) -> World:
    arms = [lora(name, rank=4, targets=name) for name in ("all", "mlp", "attention")]
    names = ("all", "mlp", "attention")
    return World({(LEARN, n): v for n, v in zip(names, order, strict=True)}, arms)


def math_and_code(math_share: float, code_share: float) -> tuple[World, World]:
    def world(domain: str, share: float) -> World:
        task = "gsm8k" if domain == "math" else LEARN
        truth = {(task, "base"): 0.2, (task, "full"): 0.7, (task, "lora"): 0.2 + 0.5 * share}
        return World(truth, domain=domain, learning=task, item_spread=0.1, items=400)

    return world("math", math_share), world("code", code_share)


def _loss(value: float) -> TaskResult:
    items = [{"index": i, "nats": value * 10, "tokens": 10} for i in range(4)]
    metric = summarise(items, "nats_per_token", False)
    return TaskResult("validation_loss", "1", "m", 4, {"nats_per_token": metric}, items)
