"""Runs over several processes: what is trained in each case, and a process that follows.

Arguments: file to meet at, rank, number of processes, names of the cases in order.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from laura.models.adapters import attach
from laura.models.lora import LoraSettings, rate_ratios
from laura.models.losses import Objective
from laura.recipe.sections import FullArm, LoraArm
from laura.training.optimisers import StepRule
from laura.training.remedies import objective_of, rule_of
from tests.conftest import make_tiny_model
from tests.training.test_loop import make_section

# Train settings, the adapter's, and the rule of each case.
FULL: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"model": {"tie_word_embeddings": False}},
    "lion": {"train": {"optimiser": "lion", "betas": (0.9, 0.95)}, "rule": StepRule(0.1)},
    "l2sp": {"train": {"recompute": True, "clip": 0.5}, "rule": StepRule(1e-2, toward_base=True)},
    "layer": {"layer": 1},
    "remedies": {"arm": FullArm(method="full", token_weight="talr", average="bema", pace="finch")},
}
LORA: dict[str, dict[str, Any]] = {
    "lora": {"lora": {}},
    "dora": {"lora": {"dora": True}, "train": {"recompute": True}},
    "pissa": {"lora": {"pissa": True}, "train": {"optimiser": "lion"}},
    "oft": {"lora": {"block_size": 16, "alpha": 4.0}},
    "held": {"lora": {}, "arm": LoraArm(method="lora", penalty="clora", average="ema")},
}
CASES = {**FULL, **LORA}


def make_case(name: str, devices: int, **train: Any) -> tuple[Any, Any, StepRule, Objective]:
    """Model, section, rule and objective of a case; steps of about four passes."""
    case = CASES[name]
    model = make_tiny_model(**case.get("model", {}))
    rule = case.get("rule", StepRule())
    if "lora" in case:
        attach(model, LoraSettings(rank=4, **case["lora"]), seed=7)
        rule = StepRule(0.1, rate_ratios=rate_ratios(model, 4.0))
    elif "layer" in case:
        model.requires_grad_(False)
        model.model.layers[case["layer"]].requires_grad_(True)
    settings = {"batch_tokens": 256, "rows_per_pass": 1, "schedule": "trapezoidal"}
    section = make_section(**{**settings, **case.get("train", {}), **train}, devices=devices)
    arm = case.get("arm", FullArm(method="full"))
    return model, section, rule_of(arm, rule), objective_of(arm)


@contextmanager
def group(folder: Path, world: int, cases: list[str]) -> Iterator[None]:
    """Within the block this process is the first of so many, which train these cases in order."""
    from laura.training.sharded import joined

    store = folder / "store"
    others = [
        subprocess.Popen([sys.executable, __file__, store, str(rank), str(world), *cases])
        for rank in range(1, world)
    ]
    try:
        with joined(store, 0, ["cpu"] * world):
            yield
        assert [other.wait(60) for other in others] == [0] * (world - 1)
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    """Follow."""
    from laura.training.sharded import follow, joined

    store, rank, world, *cases = sys.argv[1:]
    with joined(Path(store), int(rank), ["cpu"] * int(world)):
        for name in cases:
            model, section, rule, objective = make_case(name, int(world))
            follow(model, section, 1e-3, rule, objective)


if __name__ == "__main__":
    main()
