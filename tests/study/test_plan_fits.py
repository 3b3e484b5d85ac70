"""What fits: every recipe of the paper on three machines, and peaks against real steps."""

from __future__ import annotations

import gc
import weakref
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from laura.data.packing import Row
from laura.models.lean import lean
from laura.recipe.reading import read_study
from laura.recipe.sections import LoraArm, Recipe, TrainSection
from laura.recipe.shipped import shipped_recipes
from laura.study import compare
from laura.study.plan.fitting import Fit, fit, most_memory, with_change
from laura.study.plan.machine import absent_gpu
from laura.study.plan.memory import Pass, training_parts
from laura.study.plan.planning import plan
from laura.study.plan.shapes import shapes_from, shapes_of
from laura.study.plan.text import plan_text
from laura.study.runs import grid_of
from laura.training.learner import Learner
from laura.training.optimisers import StepRule
from tests.study.test_plan import micro_recipe
from tests.study.test_plan_memory import adapted, make_arm
from tests.training.follower import group, make_case

GB = 10**9
MACHINES = {"1 x 24 GB": (24 * GB, 1), "1 x 80 GB": (80 * GB, 1), "8 x 80 GB": (80 * GB, 8)}
PAPER = [name for name in shipped_recipes() if name.startswith("paper/")]


def settings_of(name: str) -> dict[str, Recipe]:
    found = read_study(shipped_recipes()[name])
    return {found.name: found} if isinstance(found, Recipe) else found.settings


def fit_of(recipe: Recipe, machine: str) -> Fit:
    memory, devices = MACHINES[machine]
    return fit(recipe, shapes_of(recipe.base), absent_gpu("auto"), memory, devices)


def words_of(found: Fit) -> str:
    """The lines that make arms fit, what is spread, and what is left out."""
    lines = [f"{s}.{k}={v}" for s, keys in found.change.items() for k, v in keys.items()]
    lines += [f"{name} over {n}" for name, (n, _) in found.arms.items() if n > 1]
    lines += [f"not {name}" for name in found.cannot]
    return ", ".join(lines) or "as it is"


# What 24 GB, 80 GB and eight times 80 GB want of each recipe of the paper; where the settings of a
# series differ, each by its name.
WIDE = "train.recompute=True"
NARROW = "measure.precision=bf16, base.dtype=bfloat16"
SMALL = f"{WIDE}, {NARROW}"
FOUR = "base.quantization=nf4, train.recompute=True"
FEW = (f"{SMALL}, not full", "not full", "full over 8")
BOTH = (f"{FOUR}, not full", "not full", "full over 8")
LORA = (FOUR, "as it is", "as it is")
PLAIN = ("full-l2sp-1e-4", "full", "full-decay-5e-5", "full-decay-1e-4")
DROPS = "not full-dropout-05, not full-dropout-10"
NONE_FULL = ", ".join(f"not {name}" for name in PLAIN) + f", {DROPS}"
ONE_ROW = "train.recompute=True, train.rows_per_pass=1"
SMALL_ROW = f"{ONE_ROW}, {NARROW}"
FITS = {
    "alpha": LORA, "modules": LORA, "spikes": LORA,
    "code-instruct": BOTH, "code-pretrain": BOTH, "learning-rates": FEW, "math-instruct": BOTH,
    "math-pretrain": BOTH, "optimisers": FEW, "tulu": BOTH,
    "regularisers": (
        f"{FOUR}, {NONE_FULL}", NONE_FULL,
        "full over 8, full-decay-5e-5 over 8, full-decay-1e-4 over 8, "
        f"full-l2sp-1e-4 over 8, {DROPS}",
    ),
    "released": (f"{NARROW}, not full", "as it is", "as it is"),
    "throughput": {
        f"batch-{sequences}": (f"{small}, not full, not lora-rank-512", f"{one}, not full", eight)
        for sequences, small, one, eight in (
            (8, SMALL, WIDE, f"{WIDE}, not full"),
            (16, SMALL, WIDE, f"{ONE_ROW}, full over 2"),
            (32, SMALL_ROW, WIDE, f"{ONE_ROW}, full over 4"),
            (64, SMALL_ROW, WIDE, f"{ONE_ROW}, full over 8"),
            (128, SMALL_ROW, ONE_ROW, f"{ONE_ROW}, full over 8"),
            (256, SMALL_ROW, ONE_ROW, f"{ONE_ROW}, full over 8"),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_every_recipe_of_the_paper_on_three_machines(name: str) -> None:
    for setting, recipe in settings_of(f"paper/{name}").items():
        wanted = FITS[name]
        wanted = wanted[setting] if isinstance(wanted, dict) else wanted
        assert tuple(words_of(fit_of(recipe, machine)) for machine in MACHINES) == wanted, setting


def test_the_paper_whole_is_its_single_recipes() -> None:
    assert {f"paper/{name}" for name in [*FITS, "all"]} == set(PAPER)
    for name, recipe in settings_of("paper/all").items():
        (single,) = settings_of(f"paper/{name}").values()
        assert recipe.model_copy(update={"name": single.name}) == single


def test_why_an_arm_does_not_fit() -> None:
    recipe = settings_of("paper/code-pretrain")["paper-code-pretrain"]
    one, many = (fit_of(recipe, machine) for machine in ("1 x 80 GB", "8 x 80 GB"))
    words = one.cannot["full"]
    # Weights, gradients, moments and Lion's directions are 4 x 4 bytes of 6.74 B numbers.
    assert words.startswith("training it takes at least 101 GiB on one device (weights 25.1 GiB")
    assert words.endswith("it fits over 2")
    assert many.arms["full"][0] == 8 and many.arms["lora-r16"][0] == 1
    # Whatever is told to fit does.
    shapes, machine = shapes_of(recipe.base), absent_gpu("auto")
    for found in (one, many):
        for name, (count, size) in found.arms.items():
            again = with_change(with_change(recipe, found.change), {"train": {"devices": count}})
            assert most_memory(again, name, shapes, machine) == size <= 80 * GB
    drops = settings_of("paper/regularisers")["paper-regularisers"]
    words = fit_of(drops, "8 x 80 GB").cannot["full-dropout-05"]
    assert "over 2 it would, but arms.full-dropout-05." in words and "would draw its own" in words
    alone = recipe.model_copy(update={"arms": {"lora": LoraArm(method="lora", rank=16)}})
    change = fit(alone, shapes, machine, 10 * GB, 1).change
    assert change["base"]["quantization"] == "nf4" and change["train"] == {"recompute": True}
    # Base and tuned model stand beside each other, on one device however many there are.
    words = fit(recipe, shapes, machine, 20 * GB, 8).cannot["full"]
    assert words.startswith("measuring it takes at least 51.3 GiB on one device (weights 50.2 GiB")


def test_the_plan_tells_the_change_as_lines_of_a_recipe() -> None:
    recipe = settings_of("paper/code-pretrain")["paper-code-pretrain"]
    told = plan_text(plan(recipe, devices=[1, 8], device_memory=24 * GB))
    assert (
        "On 1 device of 22.4 GiB with\n  base: {quantization: nf4}\n  train: {recompute: true}"
        in told
    )
    assert "  not full: training it takes at least 101 GiB on one device" in told
    assert "On 8 devices of 22.4 GiB" in told
    # `preset: paper` measures in fp32. A GPU would in bf16, for which there is no room.
    recipe = with_change(recipe, {"measure": {"precision": None}})
    big = plan_text(plan(recipe, devices=[8], device_memory=80 * GB, flops_per_second=4e14))
    assert "On 8 devices of 74.5 GiB with\n  measure: {precision: fp32}\n" in big
    assert "first, each by `laura train --arm full` with --set train.devices=8," in big
    whole = recipe.model_copy(update={"arms": {"full": recipe.arms["full"]}})
    lines = plan_text(plan(whole, devices=[8], device_memory=80 * GB))
    assert "  measure: {precision: fp32}\n  train: {devices: 8}\n" in lines


# ----- peaks: the storages of a real step -----


class Alive(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there have been, by what torch runs."""

    def __init__(self, *held: Any) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0
        for tensor in held:
            self.note(tensor)

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        place = storage._cdata
        if place not in self.sizes:
            weakref.finalize(storage, self.sizes.pop, place)
        self.sizes[place] = storage.nbytes()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # until it has become operations on parts
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.note, (args, result))
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


def peak_of(step: Any, held: Any) -> int:
    """The most bytes of storages while a step is taken, beside those that stand before."""
    with Alive(*held) as alive:
        step()
    return alive.peak


def batch_of(passes: int, tokens: int) -> list[Row]:
    """Rows of one document, half of whose tokens are learnt."""
    labels = [-100] * (tokens // 2) + [7] * (tokens // 2)
    return [Row([5] * tokens, labels, list(range(tokens)), [tokens], [0]) for _ in range(passes)]


def taken(learner: Learner, batch: list[Row]) -> None:
    """A whole step."""
    learner.gradients(batch, sum(label >= 0 for row in batch for label in row.labels))
    learner.clip()
    learner.step(1e-3)


def states_of(learner: Learner) -> list[torch.Tensor]:
    """What the optimiser keeps."""
    return [one for state in learner.optimiser.state.values() for one in state.values()]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("optimiser", ["adamw", "lion"])
@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_peak_of_a_step_is_that_of_its_storages(
    name: str, optimiser: Any, recompute: bool
) -> None:
    tokens, passes, arm = 512, 2, make_arm(name)
    section = TrainSection(
        optimiser=optimiser, batch_tokens=passes * tokens, row_tokens=tokens, rows_per_pass=1,
        precision="fp32", recompute=recompute,
    )  # fmt: skip
    with ExitStack() as stack:
        model, shapes = adapted(arm, stack)
        model.train()
        stack.enter_context(lean(model, recompute))
        learner = Learner(model, section, 1e-3, StepRule())
        taken(learner, batch_of(passes, tokens))  # makes the optimiser's memory
        gc.collect()
        batch = batch_of(passes, tokens)
        held = [*model.parameters(), *states_of(learner)]
        peak = peak_of(lambda: taken(learner, batch), held)
    one = Pass(tokens, tokens // 2, 4, 4, packed=False, document=tokens, recompute=recompute)
    told = training_parts(shapes, arm, optimiser, one)["peak"]
    assert told == pytest.approx(peak, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["untied", "lora"])
def test_of_two_processes_each_holds_what_the_plan_says(tmp_path: Path, name: str) -> None:
    """Weights, gradients and states of one of two that train together, and the peak of a step."""
    from laura.training.sharded import Shards

    tokens, passes, world = 256, 4, 2
    with group(tmp_path, world, [name]):
        model, section, rule, _ = make_case(name, world)
        shapes = shapes_from(model.config.to_dict(), name)
        model.train()
        with lean(model), Shards(model, section, 1e-3, rule) as shards:
            taken(shards, batch_of(passes, tokens))
            gc.collect()
            batch = batch_of(passes, tokens)
            held = [getattr(p, "to_local", lambda p=p: p)() for p in model.parameters()]
            sizes = {"weights": sum(p.untyped_storage().nbytes() for p in held)}
            shards.gradients(batch, 1)
            own = shards.parameters.values()
            sizes["gradients"] = sum(p.grad.nbytes for p in own if p.grad is not None)
            sizes["optimiser"] = sum(s.nbytes for s in states_of(shards) if s.dim())
            shards.step(0.0)
            peak = peak_of(lambda: taken(shards, batch), [*held, *states_of(shards)])
    arm = make_arm("full") if name == "untied" else make_arm("lora").model_copy(update={"rank": 4})
    one = Pass(tokens, tokens // 2, 4, 4, packed=False, document=tokens)
    parts = training_parts(shapes, arm, section.optimiser, one, devices=world)
    sizes["weights"] -= parts["adapter"]
    assert {key: parts[key] for key in sizes} == sizes
    assert parts["peak"] == pytest.approx(peak, rel=0.05)


def test_memory_is_checked_for_what_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was trained on other devices must not keep the rest from being compared with it."""
    seen: list[str] = []
    monkeypatch.setattr(compare, "check_memory", lambda _, arms: seen.extend(arms))
    recipe = micro_recipe()
    session: Any = SimpleNamespace(
        recipe=recipe,
        check=lambda specs: None,
        finished=lambda spec: spec.arm == "full",
        wants=lambda spec: True,
    )
    compare._check(session, grid_of(recipe))
    assert seen == ["lora"]
