"""MiLoRA and OPLoRA against their formulas, and their files read by PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from laura.models.adapters import attach, load_adapter, save_adapter
from laura.models.lora import LoraLinear, LoraSettings, lora_layers, merge, route, unmerge
from laura.results.errors import AdapterError
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle

pytestmark = pytest.mark.filterwarnings(oracle.WARNING)
RANK, KEPT = 4, 6
IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])
SETTINGS = {
    "milora": LoraSettings(rank=RANK, alpha=8, milora=True),
    "oplora": LoraSettings(rank=RANK, alpha=8, protect=KEPT),
}


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def disturbed(settings: LoraSettings) -> Any:
    """A tiny model whose factors have moved from where they start."""
    model = make_tiny_model()
    attach(model, settings, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for factor in (layer.A, layer.B):
                factor.add_(torch.randn(factor.shape, generator=generator), alpha=0.05)
    return model


@pytest.mark.parametrize("rslora", [False, True])
def test_milora_starts_with_the_last_directions_and_is_the_base(rslora: bool) -> None:
    base, model = logits(make_tiny_model()), make_tiny_model()
    attach(model, LoraSettings(rank=RANK, alpha=8, milora=True, rslora=rslora), seed=0)
    torch.testing.assert_close(logits(model), base, atol=1e-5, rtol=0)
    for layer in lora_layers(model).values():
        product = layer.scales[0] * layer.B[0] @ layer.A[0]
        u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
        torch.testing.assert_close(
            product, (u[:, -RANK:] * s[-RANK:]) @ vh[-RANK:], atol=1e-5, rtol=0
        )
    with route(model, None):
        assert torch.equal(logits(model), base)


def reference(layer: LoraLinear, a: Tensor, b: Tensor) -> Tensor:
    """The tuned weight by the paper's formula, with projections written out whole."""
    u, _, vh = torch.linalg.svd(layer.weight.double())
    left = torch.eye(len(u)) - u[:, :KEPT] @ u[:, :KEPT].T
    right = torch.eye(len(vh)) - vh[:KEPT].T @ vh[:KEPT]
    return layer.weight.double() + layer.scales[0] * left @ b @ a @ right


def test_oplora_is_its_formula_and_keeps_the_leading_triples() -> None:
    for layer in lora_layers(disturbed(SETTINGS["oplora"])).values():
        wanted = reference(layer, layer.A[0].detach().double(), layer.B[0].detach().double())
        found = layer.tuned().detach().double()
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
        assert float((found - layer.weight).norm()) > 0.05
        u, s, vh = torch.linalg.svd(layer.weight.double(), full_matrices=False)
        for product, kept in (
            (found @ vh[:KEPT].T, u[:, :KEPT] * s[:KEPT]),
            (found.T @ u[:, :KEPT], vh[:KEPT].T * s[:KEPT]),
        ):
            torch.testing.assert_close(product, kept, atol=1e-5, rtol=1e-5)


def test_oploras_gradients_are_the_formulas() -> None:
    model = disturbed(SETTINGS["oplora"])
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(5, layer.weight.shape[1], generator=torch.Generator().manual_seed(0))
    a, b = (f[0].detach().double().requires_grad_() for f in (layer.A, layer.B))
    (x.double() @ reference(layer, a, b).T).square().sum().backward()
    layer(x).square().sum().backward()
    for ours, theirs in ((layer.A.grad, a.grad), (layer.B.grad, b.grad)):
        assert theirs is not None
        torch.testing.assert_close(ours[0].double(), theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_file_is_a_plain_adapter_for_peft_and_for_us(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = disturbed(SETTINGS[name])
    tuned = logits(model)
    assert float((tuned - logits(make_tiny_model())).abs().max()) > 0.1
    merge(model)
    torch.testing.assert_close(logits(model), tuned, atol=1e-5, rtol=0)
    unmerge(model)
    assert torch.equal(logits(model), tuned)
    save_adapter(model, tmp_path, SETTINGS[name], "tiny")
    plain = make_tiny_model()
    read = load_adapter(plain, tmp_path)
    assert read.rank == (2 * RANK if name == "milora" else RANK)
    torch.testing.assert_close(logits(plain), tuned, atol=1e-5, rtol=0)
    eager = make_tiny_model()
    eager.set_attn_implementation("eager")
    theirs = PeftModel.from_pretrained(eager, tmp_path)
    torch.testing.assert_close(logits(theirs), tuned, atol=1e-5, rtol=0)


def test_nothing_kept_is_plain_lora() -> None:
    model = make_tiny_model()
    attach(model, LoraSettings(rank=RANK, protect=0), seed=0)
    assert {type(layer) for layer in lora_layers(model).values()} == {LoraLinear}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (LoraSettings(rank=2, protect=32), "protect 32 leaves nothing of .*k_proj"),
        (LoraSettings(rank=2, protect=2, milora=True), "milora and protect do not go together"),
    ],
)
def test_what_cannot_be_is_refused(settings: LoraSettings, said: str) -> None:
    model = make_tiny_model()
    with pytest.raises(AdapterError, match=said):
        attach(model, settings, seed=0)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)


def test_directions_are_kept_to_float32_in_mixed_precision() -> None:
    layer = disturbed(SETTINGS["oplora"]).model.layers[0].mlp.up_proj
    wanted = layer.factors(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer.factors(0)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
