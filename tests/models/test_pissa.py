"""PiSSA against PEFT: the start, training, and the conversion to a plain adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from laura.models.adapters import attach, load_adapter, save_adapter
from laura.models.lean import lean
from laura.models.lora import LoraSettings, detach, route
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle

pytestmark = pytest.mark.filterwarnings(oracle.WARNING)
IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def _pair(**changes: Any) -> tuple[Any, Any, LoraSettings]:
    settings = LoraSettings(rank=4, alpha=8, pissa=True, **changes)
    ours = make_tiny_model()
    attach(ours, settings, seed=0)
    rslora = changes.get("rslora", False)
    twin = oracle.make_twin(r=4, lora_alpha=8, use_rslora=rslora, init_lora_weights="pissa")
    return ours, twin, settings


@pytest.mark.parametrize("rslora", [False, True])
def test_the_start_is_pefts_and_the_function_the_bases(rslora: bool) -> None:
    base = _logits(make_tiny_model())
    ours, twin, _ = _pair(rslora=rslora)
    torch.testing.assert_close(_logits(ours), base, atol=1e-5, rtol=0)
    for name, mine, theirs in oracle.pairs(ours, twin):
        torch.testing.assert_close(mine.reshape(theirs.shape), theirs, msg=name)
    layer = ours.model.layers[0].mlp.up_proj
    kept = torch.linalg.svdvals(layer.weight)[:4].square().sum()
    product = (layer.scales[0] * layer.B[0] @ layer.A[0]).detach()
    assert float(product.square().sum()) == pytest.approx(float(kept), rel=1e-5)
    with route(ours, None):
        assert torch.equal(_logits(ours), base), "the base itself is never touched"


def test_gradients_and_several_steps_equal_pefts_under_lean() -> None:
    ours, twin, _ = _pair()
    for model in (ours, twin):
        oracle.loss(model, IDS).backward()
    oracle.assert_same_gradients(ours, twin, relative=1e-3)
    base = _logits(make_tiny_model())
    with lean(ours):
        mine = oracle.train(ours.train(), 6)
        with route(ours.eval(), None):
            torch.testing.assert_close(_logits(ours), base, atol=1e-5, rtol=0)
    theirs = oracle.train(twin.train(), 6)
    assert mine == pytest.approx(theirs, abs=2e-4)
    assert mine != pytest.approx(mine[:1] * 6, abs=1e-2)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_written_is_pefts_conversion(rslora: bool, tmp_path: Path) -> None:
    """`path_initial_model_for_weight_conversion`: the same tensors, settings and logits."""
    from peft import PeftModel

    ours, twin, settings = _pair(rslora=rslora)
    twin.peft_config["default"].init_lora_weights = True  # as PEFT's PiSSA example does
    twin.save_pretrained(tmp_path / "start")
    twin.peft_config["default"].init_lora_weights = "pissa"
    oracle.train(ours.train(), 4)
    oracle.copy_to_twin(ours, twin)
    tuned = _logits(ours.eval())
    torch.testing.assert_close(_logits(twin.eval()), tuned, atol=1e-4, rtol=0)
    twin.save_pretrained(
        tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    save_adapter(ours, tmp_path / "ours", settings, "tiny")
    one, other = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs")
    )
    assert set(one) == set(other)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=1e-4, msg=name)
    configs = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("ours", "theirs")
    ]
    for key in ("r", "lora_alpha", "use_rslora", "init_lora_weights", "rank_pattern"):
        assert configs[0][key] == pytest.approx(configs[1][key]), key
    plain = make_tiny_model()
    load_adapter(plain, tmp_path / "ours")
    torch.testing.assert_close(_logits(plain), tuned, atol=1e-5, rtol=0)
    eager = make_tiny_model()
    eager.set_attn_implementation("eager")
    loaded = PeftModel.from_pretrained(eager, tmp_path / "ours")
    torch.testing.assert_close(_logits(loaded), tuned, atol=1e-5, rtol=0)


def test_patterns_keep_their_scale_when_written(tiny_model: Any, tmp_path: Path) -> None:
    settings = LoraSettings(
        rank=4, alpha=8, pissa=True, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 3.0}
    )
    attach(tiny_model, settings, seed=0)
    oracle.fill(tiny_model)
    tuned = _logits(tiny_model)
    save_adapter(tiny_model, tmp_path, settings, "tiny")
    detach(tiny_model)
    load_adapter(tiny_model, tmp_path)
    torch.testing.assert_close(_logits(tiny_model), tuned, atol=1e-5, rtol=0)
