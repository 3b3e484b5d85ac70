"""OFT against PEFT: values, gradients, training, files both ways; and against its formula."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from laura.engine.vllm import check_adapter
from laura.models.adapter_files import read_settings
from laura.models.adapters import attach, load_adapter, load_adapters, merge_check, save_adapter
from laura.models.device import autocast
from laura.models.lora import LoraSettings, detach, lora_layers, route
from laura.results.errors import AdapterError
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle

pytestmark = pytest.mark.filterwarnings(oracle.WARNING)
IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])
BLOCK = 16
SETTINGS = LoraSettings(rank=1, alpha=1.0, block_size=BLOCK)


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def turned(settings: LoraSettings = SETTINGS, seed: int = 3) -> Any:
    """A tiny model with angles away from zero."""
    model = make_tiny_model()
    attach(model, settings, seed=0)
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.R.normal_(std=0.1)
    return model


def make_twin(**config: Any) -> Any:
    config = {"oft_block_size": BLOCK, "use_cayley_neumann": False, **config}
    return oracle.make_twin(kind="OFTConfig", **config)


def pair() -> tuple[Any, Any]:
    ours, twin = turned(), make_twin()
    oracle.copy_to_twin(ours, twin)
    return ours, twin


def test_a_new_adapter_is_the_base_bit_for_bit() -> None:
    model, base = make_tiny_model(), logits(make_tiny_model())
    attach(model, SETTINGS, seed=0)
    assert torch.equal(logits(model), base)
    with autocast(torch.device("cpu"), torch.bfloat16):
        assert torch.equal(logits(model), logits(make_tiny_model()))


def test_a_scale_of_nothing_is_the_base_and_of_half_is_half_the_angles() -> None:
    model, base = turned(), logits(make_tiny_model())
    layers = lora_layers(model)
    whole = {name: layer.tuned().detach() for name, layer in layers.items()}
    for layer in layers.values():
        layer.scales[0] = 0.0
    assert torch.equal(logits(model), base)
    for name, layer in layers.items():
        layer.scales[0] = 0.5
        upper = torch.zeros(len(layer.R[0]), BLOCK, BLOCK, dtype=torch.double)
        rows, columns = torch.triu_indices(BLOCK, BLOCK, 1)
        upper[:, rows, columns] = layer.R[0].detach().double()
        for share, found in ((0.5, layer.tuned()), (1.0, whole[name])):
            skew = torch.block_diag(*(share * (upper - upper.mT)))
            eye = torch.eye(len(skew))
            rotation = (eye - skew) @ torch.linalg.inv(eye + skew)
            torch.testing.assert_close(rotation @ rotation.T, eye.double())
            wanted = layer.weight.double() @ rotation.T
            torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-5)


def test_values_and_gradients_equal_pefts() -> None:
    ours, twin = pair()
    torch.testing.assert_close(logits(ours), logits(twin), atol=1e-5, rtol=0)
    assert float((logits(ours) - logits(make_tiny_model())).abs().max()) > 0.1
    for model in (ours, twin):
        oracle.loss(model, IDS).backward()
    oracle.assert_same_gradients(ours, twin, relative=1e-4)


def test_thirty_steps_equal_pefts() -> None:
    ours, twin = make_tiny_model(), make_twin()
    attach(ours, SETTINGS, seed=0)
    mine, theirs = (oracle.train(model.train(), 30) for model in (ours, twin))
    assert mine == pytest.approx(theirs, abs=1e-4)
    for name, one, other in oracle.pairs(ours, twin):
        assert float(one.detach().abs().max()) > 0.03
        torch.testing.assert_close(one.reshape(other.shape), other, atol=1e-3, rtol=0, msg=name)


def test_kept_rotations_follow_every_change() -> None:
    model = turned()
    first = logits(model)
    assert torch.equal(logits(model), first)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)
    oracle.loss(model, IDS).backward()
    optimiser.step()
    with torch.enable_grad():
        measured = model(IDS).logits
    torch.testing.assert_close(logits(model), measured.detach())
    assert not torch.equal(logits(model), first)


def test_files_go_both_ways_and_merge(tmp_path: Path) -> None:
    from peft import PeftModel

    ours, twin = pair()
    mine = logits(ours)
    save_adapter(ours, tmp_path / "ours", SETTINGS, "tiny")
    differences = merge_check(ours, IDS)
    assert differences["merged"] < 1e-4 < differences["update"]
    assert differences["unmerged"] == 0.0
    detach(ours)
    assert torch.equal(logits(ours), logits(make_tiny_model()))
    assert load_adapter(ours, tmp_path / "ours").block_size == BLOCK
    assert torch.equal(logits(ours), mine)
    twin.save_pretrained(tmp_path / "theirs")
    configs = [
        json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in ("ours", "theirs")
    ]
    assert {key: configs[1][key] for key in configs[0] if key in configs[1]}.keys() == configs[
        0
    ].keys()
    again = make_tiny_model()
    load_adapter(again, tmp_path / "theirs")
    assert torch.equal(logits(again), mine)
    plain = make_tiny_model()
    plain.set_attn_implementation("eager")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "ours")
    torch.testing.assert_close(logits(loaded), mine, atol=1e-5, rtol=0)
    merged = logits(loaded.merge_and_unload())
    for layer in lora_layers(ours).values():
        layer.base.weight.data.copy_(layer.tuned())
    detach(ours)
    torch.testing.assert_close(logits(ours), merged, atol=1e-5, rtol=0)


@pytest.mark.parametrize("terms", [3, 5, 7])
def test_pefts_sum_instead_of_the_inverse_is_read(terms: int, tmp_path: Path) -> None:
    twin = make_twin(use_cayley_neumann=True, num_cayley_neumann_terms=terms)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "oft_R" in name:
                parameter.normal_(std=0.1)
    twin.save_pretrained(tmp_path)
    model = make_tiny_model()
    assert load_adapter(model, tmp_path).terms == terms
    torch.testing.assert_close(logits(model), logits(twin), atol=1e-5, rtol=0)


def test_several_side_by_side_answer_as_alone(tmp_path: Path) -> None:
    parts = {
        "a": SETTINGS,
        "b": LoraSettings(1, 1.0, targets=("q_proj", "down_proj"), block_size=BLOCK),
    }
    alone = [logits(make_tiny_model())]
    for seed, (name, settings) in enumerate(parts.items()):
        model = turned(settings, seed)
        alone.append(logits(model))
        save_adapter(model, tmp_path / name, settings, "tiny")
    model = make_tiny_model()
    load_adapters(model, [tmp_path / "a", tmp_path / "b"])
    three = IDS.repeat(3, 1)
    with torch.inference_mode(), route(model, segments=[(None, 8), (0, 8), (1, 8)]):
        together = model(three).logits
    for row, wanted in zip(together, alone, strict=True):
        torch.testing.assert_close(row, wanted[0], atol=1e-5, rtol=0)


def test_what_cannot_be_is_refused(tmp_path: Path, tiny_model: Any) -> None:
    with pytest.raises(
        AdapterError, match=r"block_size 24 does not divide the 64 inputs of .*q_proj"
    ):
        attach(tiny_model, LoraSettings(1, 1.0, block_size=24), seed=0)
    with pytest.raises(AdapterError, match="dora and block_size do not go together"):
        attach(tiny_model, LoraSettings(1, 1.0, block_size=16, dora=True), seed=0)
    save_adapter(turned(), tmp_path / "oft", SETTINGS, "tiny")
    with pytest.raises(AdapterError, match=r"adapter a has rotated inputs \(OFT\), vLLM takes"):
        check_adapter(read_settings(tmp_path / "oft"), "adapter a")
    lora = make_tiny_model()
    attach(lora, LoraSettings(rank=2), seed=0)
    save_adapter(lora, tmp_path / "lora", LoraSettings(rank=2), "tiny")
    with pytest.raises(AdapterError, match="LoRA and OFT"):
        load_adapters(tiny_model, [tmp_path / "oft", tmp_path / "lora"])
    with pytest.raises(AdapterError, match="made for another base"):
        load_adapter(make_tiny_model(hidden_size=32, head_dim=8), tmp_path / "oft")
    for change, said in (
        ({"coft": True}, "uses coft"),
        ({"block_share": True}, "uses block_share"),
        ({"use_cayley_neumann": True, "num_cayley_neumann_terms": 2}, "3 to 20"),
        ({"peft_type": "LORA", "r": 1, "lora_alpha": 1}, "do not belong together"),
    ):
        config = json.loads((tmp_path / "oft" / "adapter_config.json").read_text())
        (tmp_path / "oft" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(AdapterError, match=said):
            load_adapter(tiny_model, tmp_path / "oft")
        (tmp_path / "oft" / "adapter_config.json").write_text(json.dumps(config))
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    config["peft_type"] = "OFT"
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match=r"are not oft_R\.weight"):
        load_adapter(tiny_model, tmp_path / "lora")
