"""Changes after training against PEFT's intruder reduction and plain interpolation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from laura.models.adapters import attach
from laura.models.after import CHANGES
from laura.models.lora import LoraSettings, lora_layers
from laura.recipe.remedies import AFTER
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle

pytestmark = pytest.mark.filterwarnings(oracle.WARNING)
IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])
KINDS = {
    "lora": LoraSettings(rank=4, alpha=8),
    "oft": LoraSettings(rank=1, alpha=1.0, block_size=16),
    "full": None,
}


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def tuned(kind: str, strength: float = 0.2) -> Any:
    """A tiny model away from its base, by this much."""
    model, settings = make_tiny_model(), KINDS[kind]
    if settings is not None:
        attach(model, settings, seed=0)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=draw) * strength
    return model


def test_the_recipe_names_them_all() -> None:
    assert set(AFTER) == set(CHANGES)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_of_one_changes_no_bit(kind: str, change: str) -> None:
    model = tuned(kind)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if (kind, change) != ("oft", "intruders"):  # refused by the recipe
        CHANGES[change](model, make_tiny_model(), 1.0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_scaling_is_interpolation_of_weights(kind: str) -> None:
    whole, model, base = tuned(kind), tuned(kind), make_tiny_model()
    CHANGES["scale"](model, base, 0.3)
    plain = dict(base.named_parameters())
    if kind == "full":
        for (name, found), (_, far) in zip(
            model.named_parameters(), whole.named_parameters(), strict=True
        ):
            wanted = 0.7 * plain[name] + 0.3 * far
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        return
    for name, layer in lora_layers(model).items():
        wanted = 0.7 * plain[f"{name}.weight"] + 0.3 * lora_layers(whole)[name].tuned()
        torch.testing.assert_close(layer.tuned(), wanted, atol=1e-6, rtol=1e-5)


def test_scaled_oft_is_the_rotation_of_scaled_angles() -> None:
    whole, model = tuned("oft"), tuned("oft")
    CHANGES["scale"](model, make_tiny_model(), 0.3)
    for layer in lora_layers(whole).values():
        layer.scales[0] = 0.3
    torch.testing.assert_close(logits(model), logits(whole), atol=1e-6, rtol=0)
    CHANGES["scale"](model, make_tiny_model(), 0.0)
    assert torch.equal(logits(model), logits(make_tiny_model()))


def test_lessened_intruders_are_pefts() -> None:
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    model, twin = tuned("lora"), oracle.make_twin(r=4, lora_alpha=8)
    before = logits(model)
    oracle.copy_to_twin(model, twin)
    said: list[str] = []
    reduce_intruder_dimension(twin, mitigation_lambda=0.6, logging_sink=said.append)
    assert any("Intruders:" in one for one in said)
    CHANGES["intruders"](model, make_tiny_model(), 0.6)
    assert float((logits(model) - before).abs().max()) > 0.05
    torch.testing.assert_close(logits(model), logits(twin), atol=1e-4, rtol=0)


def test_without_intruders_nothing_changes() -> None:
    model = tuned("lora", 1e-3)
    before = logits(model)
    CHANGES["intruders"](model, make_tiny_model(), 0.5)
    assert torch.equal(logits(model), before)


def test_intruders_of_a_model_trained_whole_are_subtracted() -> None:
    model, base = tuned("full"), make_tiny_model()
    far = model.model.layers[1].mlp.up_proj.weight.detach().clone().double()
    CHANGES["intruders"](model, base, 0.25)
    u, s, vh = torch.linalg.svd(far)
    before = torch.linalg.svd(base.model.layers[1].mlp.up_proj.weight.detach().double()).U
    wanted, found = far.clone(), 0
    for number in range(10):
        if max(abs(float(u[:, number] @ one)) for one in before.T) < 0.5:
            wanted -= 0.75 * s[number] * torch.outer(u[:, number], vh[number])
            found += 1
    assert found
    torch.testing.assert_close(
        model.model.layers[1].mlp.up_proj.weight.double(), wanted, atol=1e-5, rtol=1e-5
    )
    untouched = model.model.embed_tokens.weight
    assert torch.equal(untouched, tuned("full").model.embed_tokens.weight)
