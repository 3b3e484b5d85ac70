"""Scaling an adapter and its intruders without training, beside PEFT's own reduction."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.analysis.after_training import (
    lessen_intruders_whole,
    scale_whole,
    write_less_intruding,
    write_scaled,
)
from laura.analysis.weights import StoredAdapter, StoredModel
from laura.models.adapters import attach, save_adapter
from laura.models.lora import LoraSettings, lora_layers
from laura.results.errors import AdapterError
from tests.conftest import make_tiny_model
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


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_a_scaled_oft_adapter_rotates_by_scaled_angles(
    tiny_folder: Path, tmp_path: Path, factor: float
) -> None:
    model = make_tiny_model()
    settings = LoraSettings(rank=1, alpha=1.0, block_size=16)
    attach(model, settings, seed=0)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.R.copy_(torch.randn(layer.R.shape, generator=torch.Generator().manual_seed(1)))
    save_adapter(model, tmp_path / "was", settings, "tiny")
    write_scaled(tmp_path / "was", tmp_path / "now", factor)
    now = StoredAdapter(StoredModel(tiny_folder), tmp_path / "now")
    for name, layer in lora_layers(model).items():
        layer.scales[0] = factor
        torch.testing.assert_close(now.read(name, CPU), layer.tuned().detach(), atol=1e-6, rtol=0)
    with pytest.raises(AdapterError, match="has rotations"):
        write_less_intruding(StoredModel(tiny_folder), tmp_path / "was", tmp_path / "x", 0.5, CPU)


def far() -> Any:
    """A tiny model trained whole, far from its base."""
    model = make_tiny_model()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=draw) * 0.2
    return model


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_a_scaled_whole_model_is_the_plain_interpolation(factor: float) -> None:
    model, was, base = far(), far().state_dict(), make_tiny_model().state_dict()
    scale_whole(model, make_tiny_model(), factor)
    for name, tensor in model.state_dict().items():
        wanted = (1 - factor) * base[name] + factor * was[name]
        torch.testing.assert_close(tensor, wanted, atol=1e-6, rtol=1e-5)
        if factor in (0.0, 1.0):
            assert torch.equal(tensor, (was if factor else base)[name]), "bit for bit"


def test_intruders_of_a_whole_model_are_subtracted() -> None:
    model, base, was = far(), make_tiny_model(), far().state_dict()
    lessen_intruders_whole(model, base, 0.25)
    name = "model.layers.1.mlp.up_proj.weight"
    u, s, vh = torch.linalg.svd(was[name].double())
    before = torch.linalg.svd(base.state_dict()[name].double()).U
    wanted, found = was[name].double().clone(), 0
    for number in range(10):
        if max(abs(float(u[:, number] @ one)) for one in before.T) < 0.5:
            wanted -= 0.75 * s[number] * torch.outer(u[:, number], vh[number])
            found += 1
    assert found
    torch.testing.assert_close(model.state_dict()[name].double(), wanted, atol=1e-5, rtol=1e-5)
    whole = "model.embed_tokens.weight"
    assert torch.equal(model.state_dict()[whole], was[whole])
    lessen_intruders_whole(unchanged := far(), base, 1.0)
    assert all(torch.equal(tensor, was[n]) for n, tensor in unchanged.state_dict().items())
