"""Layers that are passed once more for their gradient: less is kept, and not a bit changes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from laura.models.layers import decoder_layers
from laura.models.lean import lean
from laura.models.losses import packed_loss_sum
from laura.results.store import RunStore
from laura.study.runs import UNTRAINED
from laura.training.cohort import Together
from laura.training.learner import model_inputs
from laura.training.run import train_runs
from tests.conftest import make_tiny_model
from tests.study.test_plan_memory import ARMS, adapted, make_arm, make_row
from tests.training import test_cohort as cohorts
from tests.training.test_loop import make_plan, make_section, table, weight_writer, weights


def assert_equal(one: Path, other: Path, step: int) -> None:
    assert table(one) == table(other)
    found, wanted = weights(one, step), weights(other, step)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", ARMS)
def test_no_bit_changes(tmp_path: Path, name: str) -> None:
    """Dropout draws the same again, adapters and casts are the same."""
    for folder, recompute in (("again", True), ("kept", False)):
        section = make_section(recompute=recompute, precision="bf16" if "lora" in name else "fp32")
        plan = make_plan(section, (600,))
        with ExitStack() as stack:
            model, _ = adapted(make_arm(name), stack)
            run = RunStore(tmp_path / folder)
            writer = weight_writer(model)
            train_runs(model, [(run, 1e-3)], section, plan, seed=7, write_weights=writer)
        assert not any("forward" in vars(layer) for layer in decoder_layers(model))
    assert_equal(tmp_path / "again", tmp_path / "kept", plan.points[-1])


def test_no_bit_changes_where_runs_share_their_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The route to each run's adapter is still set when a layer is passed once more."""
    monkeypatch.setattr("laura.training.run.gradients_for", Together)
    for folder, recompute in (("again", True), ("kept", False)):
        section = make_section(cohort=3, recompute=recompute)
        plan = make_plan(section, (600,))
        cohorts.together(tmp_path / folder, section, plan)
    for rate in cohorts.RATES:
        one, other = tmp_path / "again" / str(rate), tmp_path / "kept" / str(rate)
        assert_equal(one, other, plan.points[-1])


def test_a_run_is_the_same_run_with_it_and_without() -> None:
    again, kept = make_section(recompute=True), make_section()
    assert again.identity(UNTRAINED) == kept.identity(UNTRAINED)


def alive_bytes(recompute: bool) -> int:
    """Bytes that a pass has made and that are still there when its loss is."""
    model = make_tiny_model(num_hidden_layers=6)
    model.train()
    inputs, labels = model_inputs([make_row(256, 2)], torch.device("cpu"))
    with (
        lean(model, recompute),
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile,
    ):
        loss = packed_loss_sum(model, inputs, labels, torch.float32)
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


def test_far_less_is_kept() -> None:
    """A layer of the tiny model keeps 13 times its input, and then its input alone."""
    gradients = make_tiny_model().get_output_embeddings().weight.numel() * 4
    again, kept = (alive_bytes(recompute) - gradients for recompute in (True, False))
    assert 0 < again < kept / 4
