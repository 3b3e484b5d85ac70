"""LoRA-Null and CorDA against PEFT and plainly collected activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from laura.models.activations import input_moments
from laura.models.adapters import attach, load_adapter, save_adapter
from laura.models.lora import LoraSettings, lora_layers, route
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle

pytestmark = pytest.mark.filterwarnings(oracle.WARNING)
RANK = 4
IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])
TEXTS = [torch.randint(3, 512, (size,), generator=torch.Generator().manual_seed(size)).tolist()
         for size in (40, 60, 50)]  # fmt: skip
NAMES = ("lora_null", "corda")


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def run(model: Any) -> None:
    for text in TEXTS:
        model(torch.tensor([text]))


def settings_of(name: str, rslora: bool = False) -> LoraSettings:
    return LoraSettings(rank=RANK, alpha=8, rslora=rslora, **{name: True})  # type: ignore[arg-type]


def started(name: str, rslora: bool = False) -> Any:
    model = make_tiny_model()
    attach(model, settings_of(name, rslora), 0, moments=input_moments(make_tiny_model(), TEXTS))
    return model


def read_inputs(name: str) -> list[Tensor]:
    """Inputs of a map of the base, (T, I) in float64, of each text by itself."""
    model, found = make_tiny_model(), list[Tensor]()
    model.get_submodule(name).register_forward_hook(lambda _, x, __: found.append(x[0][0].double()))
    with torch.no_grad():
        run(model)
    return found


def test_moments_are_those_of_plainly_collected_activations() -> None:
    found = input_moments(make_tiny_model(), TEXTS)
    assert set(found) == set(lora_layers(started("corda")))
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        parts = [x / x.max().abs() for x in read_inputs(name)]
        wanted = sum(x.T @ x for x in parts) / len(parts)  # type: ignore[operator]
        torch.testing.assert_close(found[name].double(), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_at_first_the_function_is_the_bases(name: str, rslora: bool) -> None:
    base, model = logits(make_tiny_model()), started(name, rslora)
    torch.testing.assert_close(logits(model), base, atol=1e-5, rtol=0)
    with route(model, None):
        assert torch.equal(logits(model), base)


def test_corda_starts_as_in_peft() -> None:
    from peft import LoraConfig
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    base = make_tiny_model()
    corda = CordaConfig(corda_method="kpm", prune_temporary_fields=True)
    config = {"r": RANK, "lora_alpha": 8, "init_lora_weights": "corda", "corda_config": corda}
    preprocess_corda(base, LoraConfig(target_modules=oracle.ALL, **config), lambda: run(base))
    twin, ours = oracle.make_twin(base, **config), started("corda")
    for name, mine, theirs in oracle.pairs(ours, twin):
        mine, theirs = mine.detach().reshape(theirs.shape), theirs.detach()
        # A direction of singular vectors is known but for its sign.
        dim = 1 if name.endswith(".A") else 0
        signs = (mine * theirs).sum(dim, keepdim=True).sign()
        gap = (mine * signs - theirs).norm() / theirs.norm()
        assert float(gap) < 1e-2, name
    torch.testing.assert_close(logits(twin), logits(ours), atol=1e-4, rtol=0)


def test_lora_null_starts_where_nothing_is_read() -> None:
    model, plain = started("lora_null"), make_tiny_model()
    attach(plain, LoraSettings(rank=RANK, alpha=8), seed=0)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        layer = lora_layers(model)[name]
        scaled = torch.cat([x / x.max().abs() for x in read_inputs(name)])
        null = torch.linalg.svd(scaled, full_matrices=True).Vh[-RANK:].T
        wanted = layer.weight.double() @ null @ null.T
        found = (layer.scales[0] * layer.B[0] @ layer.A[0]).detach().double()
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
        a = layer.A[0].detach().double()
        other = lora_layers(plain)[name].A[0].detach().double()
        read = [float((scaled @ one.T).norm() / one.norm()) for one in (a, other)]
        assert read[0] < read[1] / 2, "A reads less of the source than a random one"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_a_plain_adapter_for_peft_and_for_us(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    model = started(name)
    oracle.train(model.train(), 3)
    tuned = logits(model.eval())
    assert float((tuned - logits(make_tiny_model())).abs().max()) > 0.1
    save_adapter(model, tmp_path, settings_of(name), "tiny")
    plain = make_tiny_model()
    assert load_adapter(plain, tmp_path).rank == 2 * RANK
    torch.testing.assert_close(logits(plain), tuned, atol=1e-5, rtol=0)
    eager = make_tiny_model()
    eager.set_attn_implementation("eager")
    theirs = PeftModel.from_pretrained(eager, tmp_path)
    torch.testing.assert_close(logits(theirs), tuned, atol=1e-5, rtol=0)
