"""Runs in lock-step against the same runs one by one, whole, killed and diverging."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.models import lora
from laura.models.adapters import attach
from laura.models.lora import LoraLinear, LoraSettings, lora_products
from laura.results.errors import CheckpointError
from laura.results.store import RunStore
from laura.training import cohort
from laura.training.cohort import Together, fits_together, gradients_for
from laura.training.loop import in_turn
from laura.training.run import train_runs
from tests.conftest import make_tiny_model
from tests.training.test_loop import (
    Interrupter,
    Validator,
    make_plan,
    make_section,
    table,
    train,
    weight_writer,
    weights,
)

HERE = Path(__file__).parent
RATES = (3e-3, 1e-2, 3e-2)


def adapted(dropout: float = 0.0, **changes: Any) -> Any:
    """A tiny model with a LoRA adapter, the same one every time."""
    model = make_tiny_model(**changes)
    attach(model, LoraSettings(rank=4, dropout=dropout), seed=7)
    return model


def together(
    folder: Path, section: Any, plan: Any, rates: tuple[float, ...] = RATES, **changes: Any
) -> list[str]:
    """Train a cohort; each run's folder is named by its rate."""
    model = changes.pop("model", None) or adapted()
    settings: dict[str, Any] = {"seed": 7}
    return train_runs(
        model, [(RunStore(folder / str(rate)), rate) for rate in rates], section, plan,
        write_weights=weight_writer(model), **{**settings, **changes},
    )  # fmt: skip


def apart(
    folder: Path,
    section: Any,
    plan: Any,
    rates: tuple[float, ...] = RATES,
    dropout: float = 0.0,
    **changes: Any,
) -> None:
    """Train the same runs one by one, each on a model of its own."""
    for rate in rates:
        train(adapted(dropout), folder / str(rate), section, plan, learning_rate=rate, **changes)


def assert_equal(one: Path, other: Path, rates: tuple[float, ...] = RATES) -> None:
    """Metrics and kept weights are the same bit by bit, and nothing is left to go on from."""
    for rate in rates:
        assert table(one / str(rate)) == table(other / str(rate))
        points = json.loads((one / str(rate) / "done.json").read_text())["points"]
        for point in points:
            found, wanted = weights(one / str(rate), point), weights(other / str(rate), point)
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in found)
        assert not (one / str(rate) / "resume").exists()


@pytest.mark.parametrize(
    ("optimiser", "schedule", "dropout", "precision"),
    [
        ("lion", "trapezoidal", 0.0, "fp32"),
        ("adamw", "trapezoidal", 0.1, "fp32"),
        ("lion", "cosine", 0.0, "bf16"),
    ],
)
def test_each_run_of_a_cohort_is_the_run_by_itself_bit_by_bit(
    tmp_path: Path, optimiser: str, schedule: str, dropout: float, precision: str
) -> None:
    section = make_section(optimiser=optimiser, schedule=schedule, precision=precision, clip=0.5)
    plan = make_plan(section, (600, 1200))
    apart(tmp_path / "apart", section, plan, dropout=dropout)
    states = together(tmp_path / "cohort", section, plan, model=adapted(dropout))
    assert states == ["done"] * 3
    assert_equal(tmp_path / "cohort", tmp_path / "apart")
    rows = [table(tmp_path / "cohort" / str(rate)) for rate in RATES]
    # The rates make a difference, and so does clipping, at other steps for each.
    assert len({run[-1]["loss"] for run in rows}) == 3
    assert any(row["gradient_norm"] > 0.5 for row in rows[0])


@pytest.fixture
def shared_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has cohorts share their passes on a processor too; counts how many runs a pass held."""
    monkeypatch.setattr(cohort, "gains_from_larger_passes", lambda device: True)
    seen: list[int] = []

    def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen.append(x.shape[0])
        return lora_products(x, *rest)

    monkeypatch.setattr(lora, "lora_products", counted)
    return seen


def assert_close(one: Path, other: Path, rates: tuple[float, ...] = RATES) -> None:
    """Equal but for the order in which products of another shape may sum."""
    for rate in rates:
        found, wanted = table(one / str(rate)), table(other / str(rate))
        for key in ("loss", "gradient_norm", "learning_rate"):
            assert [r[key] for r in found] == pytest.approx([r[key] for r in wanted], rel=1e-5)
        last = wanted[-1]["step"]
        kept, expected = weights(one / str(rate), last), weights(other / str(rate), last)
        for name, tensor in expected.items():
            distance = (kept[name] - tensor).norm() / tensor.norm()
            assert distance < 1e-5, (rate, name, distance)


@pytest.mark.parametrize(("optimiser", "schedule"), [("adamw", "cosine"), ("lion", "trapezoidal")])
def test_runs_that_share_their_passes_agree_up_to_rounding(
    tmp_path: Path, shared_passes: list[int], optimiser: str, schedule: str
) -> None:
    """Where a product's rows do not depend on how many there are, they are even bit-equal."""
    section = make_section(optimiser=optimiser, schedule=schedule, clip=0.5)
    plan = make_plan(section, (600, 1200))
    apart(tmp_path / "apart", section, plan)
    assert together(tmp_path / "cohort", section, plan) == ["done"] * 3
    assert set(shared_passes) == {3}
    assert_close(tmp_path / "cohort", tmp_path / "apart")


def test_one_that_diverges_drops_out_and_the_others_go_on(
    tmp_path: Path, shared_passes: list[int]
) -> None:
    """In shared passes too, where what it computes must not reach the others."""
    rates = (3e-3, 1e30, 3e-2)
    section = make_section(warmup=0.0)
    plan = make_plan(section)
    apart(tmp_path / "apart", section, plan, rates)
    states = together(tmp_path / "cohort", section, plan, rates)
    assert states == ["done", "diverged", "done"]
    assert set(shared_passes) == {3, 2}
    assert_close(tmp_path / "cohort", tmp_path / "apart", (3e-3, 3e-2))
    failed = [json.loads((tmp_path / n / "1e+30/failed.json").read_text()) for n in
              ("cohort", "apart")]  # fmt: skip
    assert failed[0] == failed[1] and failed[0]["kind"] == "diverged"
    assert not (tmp_path / "cohort/1e+30/resume").exists()
    before = len(shared_passes)
    assert together(tmp_path / "cohort", section, plan, rates) == states
    assert len(shared_passes) == before


@pytest.mark.parametrize("share", [pytest.param(False, marks=pytest.mark.slow), True])
def test_runs_stopped_at_different_steps_come_together_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    """One is past its first branch, one in its first trunk, one has not begun, one is done."""
    monkeypatch.setattr(cohort, "gains_from_larger_passes", lambda device: share)
    rates = (*RATES, 2e-3)
    section = make_section(schedule="trapezoidal", optimiser="lion", validate_every=2)
    plan = make_plan(section, (600, 1200))
    apart(tmp_path / "apart", section.model_copy(update={"validate_every": None}), plan, rates)
    folder = tmp_path / "cohort"
    for rate, reports in ((RATES[0], 9), (RATES[1], 3)):
        with pytest.raises(KeyboardInterrupt):
            together(folder, section, plan, (rate,), progress=Interrupter(reports))
    together(folder, section, plan, (2e-3,))
    assert (folder / str(RATES[0]) / "resume/trunk-2").is_dir()
    assert not (folder / str(RATES[1]) / "legs.json").exists()
    with pytest.raises(KeyboardInterrupt):
        together(folder, section, plan, rates, progress=Interrupter(8))
    assert together(folder, section, plan, rates) == ["done"] * 4
    (assert_close if share else assert_equal)(folder, tmp_path / "apart", rates)


@pytest.mark.parametrize("share", [pytest.param(False, marks=pytest.mark.slow), True])
def test_ctrl_c_in_the_validation_of_one_leaves_the_others_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    monkeypatch.setattr(cohort, "gains_from_larger_passes", lambda device: share)
    section = make_section(validate_every=2)
    plan = make_plan(section)
    for way, stops in (("whole", ()), ("cut", (5, 2))):
        for stop_at in (*stops, 0):
            model = adapted()
            found = Validator(model, stop_at)
            if stop_at:
                with pytest.raises(KeyboardInterrupt):
                    together(tmp_path / way, section, plan, model=model, validate=found)
            else:
                together(tmp_path / way, section, plan, model=model, validate=found)
    for rate in RATES:
        rows = table(tmp_path / "cut" / str(rate))
        assert [row["step"] for row in rows] == list(range(1, plan.points[-1] + 1))
        assert all(("validation_loss" in row) == (row["step"] % 2 == 0) for row in rows)
    (assert_close if share else assert_equal)(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("optimiser", "schedule"), [("adamw", "cosine"), ("lion", "trapezoidal")])
def test_killed_at_several_moments_every_run_ends_bit_identical(
    tmp_path: Path, optimiser: str, schedule: str
) -> None:
    """SIGKILL to the whole process, the rest carried on together or by one run alone."""
    script = HERE / "killed_cohort.py"

    def run(folder: Path, kill_at: int, *rates: float) -> int:
        told = [str(folder), optimiser, schedule, str(kill_at), *map(str, rates or RATES)]
        command = [sys.executable, str(script), *told]
        return subprocess.run(command, capture_output=True, timeout=120, check=False).returncode

    section = make_section(optimiser=optimiser, schedule=schedule)
    apart(tmp_path / "apart", section, make_plan(section, (600, 1200)), dropout=0.1)
    killed = tmp_path / "killed"
    assert run(killed, 5) == -9
    assert run(killed, 3, RATES[1]) == -9
    for kill_at in (10, 6, 8):
        assert run(killed, kill_at) == -9
    assert run(killed, 0) == 0
    assert_equal(killed, tmp_path / "apart")


def test_a_damaged_state_of_one_run_is_named_and_the_others_keep_theirs(tmp_path: Path) -> None:
    section, rates = make_section(), RATES[:2]
    plan = make_plan(section)
    with pytest.raises(KeyboardInterrupt):
        together(tmp_path, section, plan, rates, progress=Interrupter(9))
    states = [tmp_path / str(rate) / "resume/main/state.safetensors" for rate in rates]
    assert all(path.is_file() for path in states)
    states[1].write_bytes(states[1].read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"does not match its SHA-256.*same command"):
        together(tmp_path, section, plan, rates)
    assert states[0].is_file()


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_trains_its_slots_abreast_as_each_by_itself(bias: bool) -> None:
    """Also where it cannot, and takes the segments one by one."""
    torch.manual_seed(0)
    route = lora.Route()
    layer = LoraLinear(torch.nn.Linear(6, 4, bias=bias), 2, 0.5, 0.0, 3, route).requires_grad_()
    with torch.no_grad():
        layer.B.normal_()
    x, slope = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 5, 4)
    alone = []
    for slot in range(3):
        route.slot = slot
        alone.append(layer(x[slot]))
    wanted = torch.autograd.grad((torch.stack(alone) * slope).sum(), (x, layer.A, layer.B))
    model = torch.nn.Sequential(layer)
    with lora.route(model, segments=[(slot, 5) for slot in range(3)]):
        assert route.abreast and layer._trains_abreast() == (not bias)
        found = model(x)
    torch.testing.assert_close(found, torch.stack(alone))
    grads = torch.autograd.grad((found * slope).sum(), (x, layer.A, layer.B))
    for one, other in zip(grads, wanted, strict=True):
        torch.testing.assert_close(one, other)
    for segments in ([(1, 5), (0, 5), (2, 5)], [(0, 5), (1, 4), (2, 6)], [(0, 5), (1, 5)]):
        with lora.route(model, segments=segments):
            assert not (route.abreast and layer._trains_abreast())
    assert not route.abreast


def test_passes_are_shared_only_where_nothing_is_drawn_and_only_adapters_are_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert gradients_for(adapted()) is in_turn  # on a processor
    monkeypatch.setattr(cohort, "gains_from_larger_passes", lambda device: True)
    assert isinstance(gradients_for(adapted()), Together)
    assert gradients_for(adapted(dropout=0.1)) is in_turn
    assert not fits_together(adapted(attention_dropout=0.1))
    assert not fits_together(make_tiny_model())
    beside = adapted()
    beside.model.norm.weight.requires_grad_(True)
    assert not fits_together(beside)
