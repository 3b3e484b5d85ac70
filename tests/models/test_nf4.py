"""A base in NF4 against the plain model of its dequantised weights, and transformers with PEFT."""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from laura.engine.engine import Engine
from laura.engine.requests import ScoreRequest
from laura.models.adapters import attach, merge_check
from laura.models.attention import Documents
from laura.models.device import autocast
from laura.models.families import LLAMA
from laura.models.layers import decoder_layers
from laura.models.lean import lean
from laura.models.load import hold_in_nf4, load_base
from laura.models.lora import LoraSettings, route
from laura.models.losses import packed_loss_sum
from laura.models.nf4 import Nf4Linear
from laura.results.errors import MissingExtraError
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])


def quantised(**changes: Any) -> Any:
    """The tiny model with the maps of its layers in NF4."""
    model = make_tiny_model(**changes)
    hold_in_nf4(model, CPU)
    return model


def dequantised(**changes: Any) -> Any:
    """The plain tiny model, its weights those that NF4 makes of them."""
    model = make_tiny_model(**changes)
    held = {n: m for n, m in quantised(**changes).named_modules() if isinstance(m, Nf4Linear)}
    with torch.no_grad():
        for name, one in held.items():
            model.get_submodule(name).weight.copy_(one.weight)
    return model


def gradients(
    model: Any, dtype: torch.dtype = torch.float32, recompute: bool = False
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of a packed row in training, and the gradient of everything that is trained."""
    model.zero_grad()
    model.train()
    torch.manual_seed(0)
    ids = torch.randint(3, 512, (1, 24))
    inputs = {"input_ids": ids, "documents": Documents([10, 14])}
    torch.manual_seed(5)
    with lean(model, recompute):
        with autocast(CPU, dtype):
            loss = packed_loss_sum(model, inputs, ids[0].roll(-1), dtype)
        loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return float(loss.detach()), found


def pair(settings: LoraSettings, **changes: Any) -> tuple[Any, Any]:
    """The model in NF4 and its plain twin with the same adapter, away from its start."""
    models = quantised(**changes), dequantised(**changes)
    for model in models:
        attach(model, settings, seed=0)
        oracle.fill(model)
    return models


def test_only_the_maps_of_the_layers_are_held_in_four_bits(tiny_folder: Path) -> None:
    model = load_base(str(tiny_folder), quantization="nf4", device="cpu").model
    held = [name for name, m in model.named_modules() if isinstance(m, Nf4Linear)]
    assert held == [f"model.layers.{n}.{name}" for n in range(2) for name in LLAMA.maps]
    plain = dict(make_tiny_model().named_parameters())
    left = dict(model.named_parameters())
    assert set(left) == {n for n in plain if not any(n.startswith(name) for name in held)}
    assert all(torch.equal(left[name], plain[name]) for name in left)
    # Nothing of it is a run's state.
    assert set(model.state_dict()) - {"lm_head.weight"} == set(left)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what a process has mapped")
def test_nothing_keeps_the_file_of_the_weights_in_memory(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "base")
    plain = load_base(str(folder), device="cpu")
    assert str(folder) in Path("/proc/self/maps").read_text(), "else this shows nothing"
    del plain
    model = load_base(str(folder), quantization="nf4", device="cpu").model
    gc.collect()
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert model.get_input_embeddings().weight.abs().sum() > 0


def test_a_weight_takes_four_bits_and_an_eighth() -> None:
    one = Nf4Linear(nn.Linear(512, 1024, bias=False))
    tensors = [one.packed, one.state.absmax, one.state.state2.absmax]
    sizes = [tensor.untyped_storage().nbytes() for tensor in tensors]
    assert sizes == [512 * 1024 // 2, 512 * 1024 // 64, 4 * 512 * 1024 // 64 // 256]
    assert 8 * sum(sizes) / (512 * 1024) == pytest.approx(4.127, abs=1e-3)
    assert not list(one.parameters())


def test_the_weight_is_the_nearest_of_sixteen_quantiles_of_its_block() -> None:
    """The table of QLoRA's appendix E, and the scale as bitsandbytes holds it in eight bits."""
    quantiles = torch.tensor([
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ])  # fmt: skip
    torch.manual_seed(0)
    linear = nn.Linear(128, 96, bias=False)
    blocks = linear.weight.detach().reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks[..., None] / scales[..., None] - quantiles).abs().argmin(-1)
    found = Nf4Linear(linear).weight.reshape(-1, 64)
    held = found.abs().amax(1, keepdim=True)
    # The scales vary by less than 2 % of their size when held in eight bits.
    torch.testing.assert_close(held, scales, rtol=0.02, atol=0)
    torch.testing.assert_close(found, quantiles[nearest] * held)


VARIANTS = {
    "plain": LoraSettings(rank=4, alpha=8),
    "dropout": LoraSettings(rank=4, alpha=8, dropout=0.3),
    "attention": LoraSettings(rank=4, alpha=8, targets="attention"),
    "dora": LoraSettings(rank=4, alpha=8, dora=True),
    "dora-dropout": LoraSettings(rank=4, alpha=8, dora=True, dropout=0.3),
    "pissa": LoraSettings(rank=4, alpha=8, pissa=True),
}


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_losses_and_gradients_are_those_of_the_dequantised_weights(name: str, biases: bool) -> None:
    """Through both layers, adapted or not: what layer 0 learns has passed all maps of layer 1."""
    ours, plain = pair(VARIANTS[name], attention_bias=biases)
    loss, found = gradients(ours)
    expected_loss, expected = gradients(plain)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert set(found) == set(expected)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=2e-5, msg=key)
    again_loss, again = gradients(ours, recompute=True)
    assert again_loss == loss and all(torch.equal(again[key], found[key]) for key in found)


def test_mixed_precision_computes_in_its_arithmetic() -> None:
    ours, plain = pair(VARIANTS["plain"])
    loss, found = gradients(ours, torch.bfloat16)
    expected_loss, expected = gradients(plain, torch.bfloat16)
    assert loss == pytest.approx(expected_loss, rel=2e-3)
    for key, gradient in expected.items():
        assert (found[key] - gradient).norm() < 0.03 * gradient.norm(), key
    layer = decoder_layers(ours)[0].self_attn.q_proj.base
    with autocast(CPU, torch.bfloat16):
        assert layer(torch.randn(3, 64)).dtype == torch.bfloat16
    assert layer(torch.randn(3, 64)).dtype == torch.float32


def test_the_gradient_is_the_same_after_an_evaluation(tiny_tokenizer: Any) -> None:
    """bitsandbytes' own layer lays its weight out anew in one, on some processors."""
    ours, _ = pair(VARIANTS["plain"])
    before = gradients(ours)
    for precision in (torch.bfloat16, torch.float32):
        Engine(ours, tiny_tokenizer, precision).score([ScoreRequest("the cat", " sat")])
    after = gradients(ours)
    assert after[0] == before[0]
    assert all(torch.equal(after[1][key], one) for key, one in before[1].items())


def test_slots_merging_and_the_base_are_those_of_the_dequantised_weights() -> None:
    ours, plain = pair(VARIANTS["plain"])
    differences = merge_check(ours, IDS)
    assert differences["merged"] < 1e-4 < differences["update"]
    assert differences["unmerged"] == 0.0
    for segments in ([(None, 8)], [(0, 3), (None, 5)]):
        answers = []
        for model in (ours, plain):
            with route(model, segments=segments), torch.inference_mode():
                answers.append(model(IDS).logits)
        torch.testing.assert_close(*answers, atol=1e-5, rtol=1e-5)


def test_adapters_side_by_side_learn_what_they_learn_on_the_dequantised_weights() -> None:
    """On a plain base their products are batched, on this one each is taken by itself."""
    found = []
    for model in (quantised(), dequantised()):
        attach(model, VARIANTS["plain"], seed=0, slots=2)
        oracle.fill(model)
        with route(model, segments=[(0, 8), (1, 8)]):
            oracle.loss(model.train(), IDS.repeat(2, 1)).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for key, gradient in found[1].items():
        torch.testing.assert_close(found[0][key], gradient, rtol=1e-4, atol=2e-5, msg=key)


def test_the_scales_go_where_the_weight_goes() -> None:
    one = Nf4Linear(nn.Linear(64, 64)).to("meta")
    places = (one.packed, one.bias, one.state.absmax, one.state.offset, one.state.state2.absmax)
    assert {tensor.device.type for tensor in places} == {"meta"}


@pytest.mark.filterwarnings(oracle.WARNING)
@pytest.mark.parametrize("dora", [False, True])
def test_losses_and_gradients_equal_those_of_transformers_and_peft(
    tiny_folder: Path, dora: bool
) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_folder, quantization_config=config, device_map="cpu", dtype=torch.float32
    )
    twin = oracle.make_twin(theirs, r=4, lora_alpha=8, use_dora=dora)
    ours = load_base(str(tiny_folder), quantization="nf4", device="cpu").model
    attach(ours, LoraSettings(rank=4, alpha=8, dora=dora), seed=0)
    oracle.fill(ours)
    oracle.copy_to_twin(ours, twin)
    ids = oracle.batches(1)[0]
    values = []
    for model in (ours, twin):
        value = oracle.loss(model.train(), ids)
        value.backward()
        values.append(float(value.detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    oracle.assert_same_gradients(ours, twin, relative=1e-4)


def test_without_bitsandbytes_it_is_said_what_to_install(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"laura-lab\[quantization\]"):
        load_base(str(tiny_folder), quantization="nf4", device="cpu")
