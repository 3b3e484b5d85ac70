"""Groups, rates and decays of a step: LoRA+ against PEFT, decay against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from laura.models.adapters import attach
from laura.models.lora import LoraSettings, rate_ratios
from laura.results.store import RunStore
from laura.training import optimisers
from laura.training.optimisers import StepRule, build_optimiser
from laura.training.schedules import plan_legs, rate_factor
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle
from tests.training.test_loop import (
    Interrupter,
    make_plan,
    make_section,
    naive_loss,
    train,
    weights,
)


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.filterwarnings(oracle.WARNING)
@pytest.mark.parametrize("dora", [False, True])
def test_lora_plus_has_pefts_groups(dora: bool) -> None:
    from peft.optimizers import create_loraplus_optimizer

    ours = make_tiny_model()
    attach(ours, LoraSettings(rank=4, alpha=8, dora=dora), seed=0)
    rule = StepRule(rate_ratios=rate_ratios(ours, 16.0))
    mine = build_optimiser(_trained(ours), make_section(), 1e-3, rule)
    twin = oracle.make_twin(r=4, lora_alpha=8, use_dora=dora)
    theirs = create_loraplus_optimizer(
        twin, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_weight_decay=0.0
    )
    rates = [
        {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
        for optimiser in (mine, theirs)
    ]
    seen = set()
    for name, one, other in oracle.pairs(ours, twin):
        assert rates[0].pop(id(one)) == pytest.approx(rates[1].pop(id(other))), name
        seen.add(name.rsplit(".", 1)[-1])
    assert rates == [{}, {}] and seen >= {"A", "B"}
    assert {group["lr"] for group in mine.param_groups} == {1e-3, 16e-3}


def test_the_schedule_moves_both_rates_together(tmp_path: Path) -> None:
    """The loop's step at every rate equals a loop that sets the two rates itself."""
    section = make_section(clip=None)
    plan = make_plan(section)
    model = make_tiny_model()
    attach(model, LoraSettings(rank=4), seed=7)
    rule = StepRule(rate_ratios=rate_ratios(model, 8.0))
    train(model, tmp_path, section, plan, rule=rule)

    naive = make_tiny_model()
    attach(naive, LoraSettings(rank=4), seed=7)
    slow = [p for n, p in _trained(naive).items() if n.endswith(".A")]
    fast = [p for n, p in _trained(naive).items() if n.endswith(".B")]
    optimiser = torch.optim.AdamW([{"params": slow}, {"params": fast}], lr=1e-3, weight_decay=0.0)
    leg = plan_legs(section, plan.points)[0]
    for step, batch in enumerate(plan.batches):
        factor = rate_factor(section, leg, step)
        optimiser.param_groups[0]["lr"] = 1e-3 * factor
        optimiser.param_groups[1]["lr"] = 8e-3 * factor
        _naive_loss(naive, batch).backward()
        optimiser.step()
        optimiser.zero_grad()
    kept = weights(tmp_path, plan.points[-1])
    for name, parameter in _trained(naive).items():
        torch.testing.assert_close(kept[name], parameter.detach(), atol=1e-3, rtol=1e-2)


def _naive_loss(model: Any, batch: Any) -> torch.Tensor:
    total, count = torch.zeros(()), 0
    for row in batch:
        ids, labels = torch.tensor(row.token_ids), torch.tensor(row.labels)
        for piece, target in zip(ids.split(row.lengths), labels.split(row.lengths), strict=True):
            logits = model(piece[None]).logits[0]
            total = total + torch.nn.functional.cross_entropy(
                logits, target, ignore_index=-100, reduction="sum"
            )
            count += int((target >= 0).sum())
    return total / count


@pytest.mark.parametrize("optimiser", ["adamw", "lion"])
@pytest.mark.parametrize("rule", ["pytorch", "composer"])
@pytest.mark.parametrize("toward_base", [False, True])
def test_decay_alone_is_its_closed_form(optimiser: str, rule: str, toward_base: bool) -> None:
    """With no gradient at all, only the decay is left of a step, whatever the optimiser."""
    section = make_section(optimiser=optimiser, weight_decay_rule=rule)
    start = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    parameter = torch.nn.Parameter(start.clone())
    peak, coefficient = 0.05, 0.2
    built = build_optimiser({"w": parameter}, section, peak, StepRule(coefficient, toward_base))
    shift = torch.tensor([0.5, 0.5, -1.0], dtype=torch.float64)
    with torch.no_grad():
        parameter.add_(shift)
    left = 1.0
    for factor in (0.5, 1.0, 0.25):
        built.param_groups[0]["lr"] = peak * factor
        parameter.grad = torch.zeros_like(parameter)
        built.step()
        left *= 1 - coefficient * factor * (peak if rule == "pytorch" else 1.0)
    expected = start + shift * left if toward_base else (start + shift) * left
    torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(("optimiser", "own"), [("adamw", "pytorch"), ("lion", "composer")])
def test_the_optimisers_own_rule_is_the_default_and_the_same_by_name(
    optimiser: str, own: str
) -> None:
    results = []
    for name in (None, own):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(50))
        section = make_section(optimiser=optimiser, weight_decay_rule=name)
        built = build_optimiser({"w": parameter}, section, 1e-2, StepRule(0.1))
        for _ in range(3):
            parameter.grad = torch.randn(50)
            built.step()
        results.append(parameter.detach())
    assert torch.equal(results[0], results[1])


def test_l2_sp_equals_a_naive_step_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    section = make_section(clip=None)
    plan = make_plan(section, (700,))
    rule = StepRule(5.0, toward_base=True)
    train(make_tiny_model(), tmp_path / "whole", section, plan, rule=rule)

    naive, base = make_tiny_model(), make_tiny_model()
    anchors = dict(base.named_parameters())
    optimiser = torch.optim.AdamW(naive.parameters(), lr=1e-3, weight_decay=0.0)
    leg = plan_legs(section, plan.points)[0]
    for step, batch in enumerate(plan.batches):
        rate = optimiser.param_groups[0]["lr"] = 1e-3 * rate_factor(section, leg, step)
        _naive_loss(naive, batch).backward()
        with torch.no_grad():
            for name, parameter in naive.named_parameters():
                parameter -= rate * 5.0 * (parameter - anchors[name])
        optimiser.step()
        optimiser.zero_grad()
    last = plan.points[-1]
    whole = weights(tmp_path / "whole", last)
    for name, parameter in naive.named_parameters():
        torch.testing.assert_close(whole[name], parameter.detach(), atol=2e-4, rtol=1e-3)

    with pytest.raises(KeyboardInterrupt):
        train(
            make_tiny_model(), tmp_path / "cut", section, plan, rule=rule, progress=Interrupter(4)
        )
    assert (tmp_path / "cut/resume/main").is_dir()
    train(make_tiny_model(), tmp_path / "cut", section, plan, rule=rule)
    cut = weights(tmp_path / "cut", last)
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    losses = [[row["loss"] for row in RunStore(tmp_path / n).metrics()] for n in ("whole", "cut")]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("variant", ["pissa", "dora"])
def test_variants_resume_bit_for_bit(variant: str, tmp_path: Path) -> None:
    section = make_section()
    plan = make_plan(section)

    def model(disturbed: bool = False) -> Any:
        made = make_tiny_model()
        chosen = {variant: True}
        attach(made, LoraSettings(rank=4, dropout=0.1, **chosen), seed=7)
        if disturbed and variant == "pissa":
            # As on another machine, where the decomposition rounds otherwise.
            for name, start in made.named_buffers():
                if name.endswith(("start_A", "start_B")):
                    start.mul_(1 + 1e-6)
        return made

    train(model(), tmp_path / "whole", section, plan)
    with pytest.raises(KeyboardInterrupt):
        train(model(), tmp_path / "cut", section, plan, progress=Interrupter(5))
    train(model(disturbed=True), tmp_path / "cut", section, plan)
    last = plan.points[-1]
    one, other = weights(tmp_path / "whole", last), weights(tmp_path / "cut", last)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_optimiser_from_outside_steps_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function and its line in the tables; the run is the naive loop's with momentum."""

    def momentum(groups: list[dict[str, Any]], section: Any, lr: float) -> Any:
        return torch.optim.SGD(groups, lr=lr, momentum=section.beta_values[0])

    monkeypatch.setitem(optimisers.OPTIMISERS, "momentum", momentum)
    monkeypatch.setitem(optimisers.OWN_DECAY, "momentum", "pytorch")
    section = make_section(schedule="constant", warmup=0.0, clip=None, betas=[0.8, 0.9])
    section = section.model_copy(update={"optimiser": "momentum"})
    plan = make_plan(section, (600, 1200))
    assert train(make_tiny_model(), tmp_path, section, plan, learning_rate=0.02) == "done"
    naive, losses = make_tiny_model(), []
    naive.set_attn_implementation("eager")
    speeds = [torch.zeros_like(parameter) for parameter in naive.parameters()]
    for step in range(plan.points[-1]):
        loss = naive_loss(naive, plan.batches[step])
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, list(naive.parameters()))
        with torch.no_grad():
            for parameter, speed, gradient in zip(
                naive.parameters(), speeds, gradients, strict=True
            ):
                speed.mul_(0.8).add_(gradient)
                parameter.sub_(0.02 * speed)
    rows = RunStore(tmp_path).metrics()
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings(oracle.WARNING)
def test_steps_of_lora_plus_equal_pefts() -> None:
    from peft.optimizers import create_loraplus_optimizer

    ours = make_tiny_model()
    attach(ours, LoraSettings(rank=4, alpha=8), seed=0)
    twin = oracle.make_twin(r=4, lora_alpha=8)
    oracle.copy_to_twin(ours, twin)
    rule = StepRule(rate_ratios=rate_ratios(ours, 4.0))
    mine = build_optimiser(_trained(ours), make_section(), 1e-3, rule)
    theirs = create_loraplus_optimizer(twin, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=4.0)
    for ids in oracle.batches(5):
        for model, optimiser in ((ours, mine), (twin, theirs)):
            optimiser.zero_grad()
            oracle.loss(model, ids).backward()
            optimiser.step()
    for name, one, other in oracle.pairs(ours, twin):
        torch.testing.assert_close(one.reshape(other.shape), other, atol=2e-4, rtol=0, msg=name)


def test_composers_rule_is_pytorchs_with_the_coefficient_over_the_rate() -> None:
    """Paper, section 1.3: 1e-4 at rate 5e-5 is 2.0 in AdamW's convention."""
    ends = []
    for rule, coefficient in (("composer", 1e-4), ("pytorch", 2.0)):
        torch.manual_seed(0)
        parameter = torch.nn.Parameter(torch.randn(50, dtype=torch.float64))
        section = make_section(weight_decay_rule=rule)
        built = build_optimiser({"w": parameter}, section, 5e-5, StepRule(coefficient))
        for factor in (1.0, 0.5, 0.1):
            built.param_groups[0]["lr"] = 5e-5 * factor
            parameter.grad = torch.randn_like(parameter)
            built.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(ends[0], ends[1], atol=1e-12, rtol=1e-10)
