"""Scaling an adapter and its intruders without training, beside PEFT's own reduction."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.analysis.after_training import write_less_intruding, write_scaled
from laura.analysis.weights import StoredAdapter, StoredModel
from laura.results.errors import AdapterError
from tests.models.peft_twin import make_twin

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def adapter(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """PEFT's model with an adapter large enough to bring directions of its own, and its folder."""
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    twin = make_twin(base, r=4, lora_alpha=8)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    folder = tmp_path_factory.mktemp("adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        twin.save_pretrained(folder)
    return twin, folder


def updates(base: StoredModel, folder: Path) -> dict[str, torch.Tensor]:
    opened = StoredAdapter(base, folder)
    return {name: opened.read_update(name, CPU) for name in opened.settings.targets}


def test_a_scaled_adapter_is_the_plain_interpolation(
    tiny_folder: Path, adapter: tuple[Any, Path], tmp_path: Path
) -> None:
    base = StoredModel(tiny_folder)
    was = updates(base, adapter[1])
    for factor in (0.0, 0.4, 1.0):
        write_scaled(adapter[1], tmp_path / f"{factor}", factor)
        for name, update in updates(base, tmp_path / f"{factor}").items():
            torch.testing.assert_close(update, factor * was[name])


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("factor", [0.75, 0.0])
def test_intruders_are_scaled_as_peft_does(
    tiny_folder: Path, adapter: tuple[Any, Path], tmp_path: Path, factor: float
) -> None:
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    twin, folder = adapter
    told: list[str] = []
    name = f"reduced-{factor:g}".replace(".", "-")
    reduce_intruder_dimension(
        twin, new_adapter_name=name, mitigation_lambda=factor, logging_sink=told.append
    )
    theirs = sum(int(line.rsplit(" ", 1)[1]) for line in told if "Intruders:" in line)
    base = StoredModel(tiny_folder)
    assert write_less_intruding(base, folder, tmp_path, factor, CPU) == theirs > 0
    for module, update in updates(base, tmp_path).items():
        layer = twin.get_submodule(f"base_model.model.{module}")
        torch.testing.assert_close(update, layer.get_delta_weight(name), rtol=1e-3, atol=2e-5)


def test_with_the_whole_intruders_nothing_changes(
    tiny_folder: Path, adapter: tuple[Any, Path], tmp_path: Path
) -> None:
    base = StoredModel(tiny_folder)
    write_less_intruding(base, adapter[1], tmp_path, 1.0, CPU)
    was = updates(base, adapter[1])
    for name, update in updates(base, tmp_path).items():
        torch.testing.assert_close(update, was[name], rtol=1e-4, atol=1e-6)


def test_trained_lengths_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    twin = make_twin(AutoModelForCausalLM.from_pretrained(tiny_folder), r=2, use_dora=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        twin.save_pretrained(tmp_path / "dora")
    for write in (
        lambda: write_scaled(tmp_path / "dora", tmp_path / "out", 0.5),
        lambda: write_less_intruding(
            StoredModel(tiny_folder), tmp_path / "dora", tmp_path / "out", 0.5, CPU
        ),
    ):
        with pytest.raises(AdapterError, match="DoRA"):
            write()
    assert not (tmp_path / "out").exists()
