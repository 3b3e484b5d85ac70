"""One run over several processes against the same run in one, which `test_loop.py` holds."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.models.lean import lean
from laura.results.errors import ModelError
from laura.training.optimisers import STANDARD
from tests.training.follower import CASES, FULL, group, make_case
from tests.training.test_loop import Interrupter, Validator, make_plan, table, train, weights

BUDGETS = (1000, 2000)


def run(name: str, devices: int, folder: Path, **changes: Any) -> str:
    """Train a case; over several devices, as the first process of a group."""
    model, section, rule, objective = make_case(name, devices, validate_every=3)
    settings = {"rule": rule, "objective": objective, "validate": Validator(model), **changes}
    return train(model, folder, section, make_plan(section, BUDGETS), **settings)


def assert_same(folder: Path, wanted: Path) -> None:
    """Equal but for the order in which float32 numbers are added."""
    rows, expected = table(folder), table(wanted)
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, one in zip(rows, expected, strict=True):
        assert row == {k: v if k == "leg" else pytest.approx(v, abs=1e-5) for k, v in one.items()}
    for place in (wanted / "checkpoints").iterdir():
        ours, theirs = weights(folder, int(place.name)), weights(wanted, int(place.name))
        assert ours.keys() == theirs.keys()
        for name in theirs:
            torch.testing.assert_close(ours[name], theirs[name], atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case in one process."""
    folder = tmp_path_factory.mktemp("alone")
    for name in CASES:
        assert run(name, 1, folder / name) == "done"
    return folder


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_train_what_one_does(alone: Path, tmp_path: Path, world: int) -> None:
    with group(tmp_path, world, [*CASES, "tied"]):
        for name in CASES:
            assert run(name, world, tmp_path / name) == "done"
        assert run("tied", world, tmp_path / "lost", learning_rate=1e30) == "diverged"
    for name in CASES:
        assert_same(tmp_path / name, alone / name)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    names = ["untied", "lora"]
    with group(tmp_path, 2, [name for name in names for _ in range(2)]):
        for name in names:
            for devices in (2, 1):
                with pytest.raises(KeyboardInterrupt):
                    run(name, devices, tmp_path / name, progress=Interrupter(4))
            assert run(name, 2, tmp_path / name) == "done"
            assert_same(tmp_path / name, alone / name)


@pytest.mark.slow
def test_a_run_of_two_goes_on_with_three(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    with group(tmp_path / "two", 2, ["untied"]), pytest.raises(KeyboardInterrupt):
        run("untied", 2, tmp_path / "run", progress=Interrupter(6))
    with group(tmp_path, 3, ["untied"]):
        assert run("untied", 3, tmp_path / "run") == "done"
    assert_same(tmp_path / "run", alone / "untied")


@pytest.mark.slow
def test_each_process_holds_a_part_and_lets_the_whole_go(tmp_path: Path) -> None:
    from torch.distributed.tensor import DTensor

    from laura.training.sharded import Shards

    names = ["untied", "lora"]
    with group(tmp_path, 2, names):
        for name in names:
            model, section, *_ = make_case(name, 2)
            spread = [p for p in model.parameters() if name in FULL or not p.requires_grad]
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            numbers, before = sum(p.numel() for p in spread), [weakref.ref(p) for p in spread]
            del spread
            with lean(model), Shards(model, section, 1e-3, STANDARD) as shards:
                gc.collect()
                assert not any(one() is not None for one in before)
                parts = [p.to_local() for p in model.parameters() if isinstance(p, DTensor)]
                assert sum(part.numel() for part in parts) == numbers / 2
                own = sum(p.numel() for p in shards.parameters.values())
                assert own == (trained / 2 if name in FULL else trained)


def test_a_model_that_drops_at_random_is_refused(tmp_path: Path) -> None:
    from laura.training.sharded import Shards

    model, section, *_ = make_case("untied", 2)
    model.model.layers[0].self_attn.attention_dropout = 0.1
    with pytest.raises(ModelError, match=r"draw its own; set the arm's dropout"):
        Shards(model, section, 1e-3, STANDARD)
