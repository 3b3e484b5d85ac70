"""DoRA against PEFT's, against its formula, and in the company of other adapters."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from laura.engine.engine import Engine
from laura.engine.requests import GenerateRequest, ScoreRequest
from laura.models.adapters import attach, load_adapter, load_adapters, merge_check, save_adapter
from laura.models.device import autocast
from laura.models.lean import lean
from laura.models.lora import LoraSettings, detach, lora_layers, route
from laura.results.errors import AdapterError
from tests.conftest import make_tiny_model
from tests.models import peft_twin as oracle

pytestmark = pytest.mark.filterwarnings(oracle.WARNING)
SETTINGS = LoraSettings(rank=4, alpha=8, dora=True)
IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])


def _pair(**changes: Any) -> tuple[Any, Any]:
    """Ours and PEFT's with the same adapter, both away from the start."""
    ours = make_tiny_model()
    attach(ours, LoraSettings(rank=4, alpha=8, dora=True, **changes), seed=0)
    oracle.fill(ours)
    dropout = changes.get("dropout", 0.0)
    twin = oracle.make_twin(r=4, lora_alpha=8, use_dora=True, lora_dropout=dropout)
    oracle.copy_to_twin(ours, twin)
    return ours, twin


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def test_it_starts_as_the_base_with_the_lengths_of_its_rows(tiny_model: Any) -> None:
    before = _logits(tiny_model)
    attach(tiny_model, SETTINGS, seed=0)
    torch.testing.assert_close(_logits(tiny_model), before, atol=1e-5, rtol=0)
    twin = oracle.make_twin(r=4, lora_alpha=8, use_dora=True)
    for name, mine, theirs in oracle.pairs(tiny_model, twin):
        if name.endswith("magnitude.0"):
            torch.testing.assert_close(mine, theirs)
    ours = sum(p.numel() for p in tiny_model.parameters() if p.requires_grad)
    assert ours == sum(p.numel() for p in twin.parameters() if p.requires_grad)
    with route(tiny_model, None):
        assert torch.equal(_logits(tiny_model), before)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_values_and_gradients_equal_pefts(dropout: float) -> None:
    """With dropout too: the seed gives both the same draws."""
    ours, twin = _pair(dropout=dropout)
    values = []
    for model in (ours, twin):
        model.train()
        torch.manual_seed(5)
        value = oracle.loss(model, IDS)
        value.backward()
        values.append(float(value.detach()))
    assert values[0] == pytest.approx(values[1], abs=1e-5)
    oracle.assert_same_gradients(ours, twin, relative=1e-3)


def test_several_steps_of_training_equal_pefts_under_lean() -> None:
    ours, twin = _pair()
    with lean(ours):
        mine = oracle.train(ours.train(), 6)
    theirs = oracle.train(twin.train(), 6)
    assert mine == pytest.approx(theirs, abs=2e-4)
    for name, one, other in oracle.pairs(ours, twin):
        torch.testing.assert_close(one.reshape(other.shape), other, atol=2e-3, rtol=0, msg=name)


def test_mixed_precision_applies_the_gain_unrounded(tiny_model: Any) -> None:
    """1.010 is 1.008 in bfloat16; the output must grow by the former, on average."""
    attach(tiny_model, LoraSettings(rank=4, targets=("q_proj",), dora=True), seed=0)
    layer = tiny_model.model.layers[0].self_attn.q_proj
    x = torch.randn(4096, 64)
    with autocast(torch.device("cpu"), torch.bfloat16), torch.no_grad():
        before = layer(x).float()
        layer.magnitude[0].mul_(1.01)
        after = layer(x).float()
    growth = (before * after).sum() / (before * before).sum()
    assert float(growth) == pytest.approx(1.01, abs=3e-4)


def test_a_base_with_biases_is_stretched_without_them(tiny_model: Any) -> None:
    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5)
    holder = torch.nn.Module()
    holder.proj = base
    attach(holder, LoraSettings(rank=2, alpha=6, targets=("proj",), dora=True), seed=0)
    oracle.fill(holder)
    layer = holder.proj
    x = torch.randn(7, 6)
    weight = base.weight + 3.0 * layer.B[0] @ layer.A[0]
    weight = layer.magnitude[0][:, None] * weight / weight.norm(dim=1, keepdim=True)
    expected = x @ weight.T + base.bias
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.tuned(), weight)
    torch.testing.assert_close(layer.update(), weight - base.weight)
    with torch.no_grad(), route(holder, segments=[(0, 3), (None, 4)]):
        mixed = layer(x)
    torch.testing.assert_close(mixed[:3], expected[:3])
    torch.testing.assert_close(mixed[3:], base(x)[3:])
    with route(holder, segments=[(0, 3), (None, 4)]):
        torch.testing.assert_close(layer(x)[:3], expected[:3])


def test_kept_lengths_follow_every_change_of_the_weights(tiny_model: Any) -> None:
    attach(tiny_model, SETTINGS, seed=0)
    first = _logits(tiny_model)
    oracle.fill(tiny_model)
    second = _logits(tiny_model)
    fresh = make_tiny_model()
    attach(fresh, SETTINGS, seed=0)
    oracle.fill(fresh)
    assert not torch.equal(first, second)
    assert torch.equal(second, _logits(fresh))
    parameters = [p for p in tiny_model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, fused=True)
    oracle.loss(tiny_model, IDS).backward()
    optimiser.step()
    with torch.enable_grad():
        measured = tiny_model(IDS).logits
    torch.testing.assert_close(_logits(tiny_model), measured.detach())


def test_files_go_both_ways_and_merge(tmp_path: Path) -> None:
    from peft import PeftModel

    ours, twin = _pair()
    mine = _logits(ours)
    save_adapter(ours, tmp_path / "ours", SETTINGS, "tiny")
    differences = merge_check(ours, IDS)
    assert differences["merged"] < 1e-4 < differences["update"]
    assert differences["unmerged"] == 0.0
    detach(ours)
    assert load_adapter(ours, tmp_path / "ours").dora
    assert torch.equal(_logits(ours), mine)
    twin.save_pretrained(tmp_path / "theirs")
    again = make_tiny_model()
    load_adapter(again, tmp_path / "theirs")
    torch.testing.assert_close(_logits(again), _logits(twin), atol=1e-5, rtol=0)
    plain = make_tiny_model()
    plain.set_attn_implementation("eager")
    loaded = PeftModel.from_pretrained(plain, tmp_path / "ours")
    torch.testing.assert_close(_logits(loaded), mine, atol=1e-5, rtol=0)
    merged = _logits(loaded.merge_and_unload())
    for layer in lora_layers(ours).values():
        layer.base.weight.data.copy_(layer.tuned())
    detach(ours)
    torch.testing.assert_close(_logits(ours), merged, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """DoRA of PEFT on some maps, plain LoRA on others, and DoRA of another rank."""
    kinds: list[dict[str, Any]] = [
        {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
        {"r": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 2, "use_dora": True, "use_rslora": True, "layers_to_transform": [1]},
    ]
    made = []
    for number, kind in enumerate(kinds):
        twin = oracle.make_twin(lora_alpha=16, **kind)
        torch.manual_seed(number)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
                elif "magnitude" in name:
                    parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
        made.append(tmp_path_factory.mktemp(f"kind{number}"))
        twin.save_pretrained(made[-1])
    return made


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_side_by_side_with_plain_adapters_each_answers_as_alone(
    folders: list[Path], tiny_tokenizer: Any, precision: torch.dtype
) -> None:
    together = make_tiny_model()
    load_adapters(together, folders)
    names = {str(number): number for number in range(3)}
    engine = Engine(together, tiny_tokenizer, precision, adapters=names)
    asked: list[str | None] = [None, "0", "1", "2"]
    texts = ["the cat sat", "a dog ran", "question: how many"]
    requests = [ScoreRequest(text, " on a mat", name) for text in texts for name in asked]
    writes = [GenerateRequest("the dog", (), 6, adapter=name) for name in asked]
    scores, answers = engine.score(requests), engine.generate(writes)
    # Rounded at other places, what is far below a bfloat16's step may differ.
    gap = 1e-4 if precision == torch.float32 else 0.5
    for place, name in enumerate(asked):
        alone = make_tiny_model()
        if name is not None:
            load_adapter(alone, folders[int(name)])
        single = Engine(alone, tiny_tokenizer, precision)
        expected = single.score([ScoreRequest(text, " on a mat") for text in texts])
        for found, one in zip(scores[place::4], expected, strict=True):
            assert found.loglikelihood == pytest.approx(one.loglikelihood, abs=gap)
        if precision == torch.float32:
            assert (
                answers[place].text == single.generate([GenerateRequest("the dog", (), 6)])[0].text
            )
    spread = {round(answer.loglikelihood, 3) for answer in scores[:4]}
    assert len(spread) == 4, "the adapters differ from one another and from the base"


def test_files_that_contradict_themselves_are_refused(tmp_path: Path, tiny_model: Any) -> None:
    attach(tiny_model, SETTINGS, seed=0)
    save_adapter(tiny_model, tmp_path, SETTINGS, "tiny")
    detach(tiny_model)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole = load_file(weights)
    key = next(name for name in whole if name.endswith("lora_magnitude_vector"))
    for tensors, message in (
        ({n: t for n, t in whole.items() if n != key}, "use_dora: True, but no lora_magnitude"),
        ({**whole, key: whole[key][None]}, "2 dimensions, expected 1"),
        ({**whole, key: whole[key][:-1].clone()}, "another base"),
        ({**whole, key: whole[key] * float("inf")}, "not finite"),
    ):
        save_file(tensors, weights)
        with pytest.raises(AdapterError, match=message):
            load_adapter(tiny_model, tmp_path)
        assert not lora_layers(tiny_model)
    save_file(whole, weights)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": False}))
    with pytest.raises(AdapterError, match="use_dora: False, but a lora_magnitude_vector"):
        load_adapter(tiny_model, tmp_path)
    with pytest.raises(AdapterError, match="choose one of the two"):
        attach(tiny_model, LoraSettings(dora=True, pissa=True), seed=0)


def test_vllm_refuses_it_by_name(folders: list[Path]) -> None:
    from laura.engine.vllm import check_adapter
    from laura.models.adapter_files import read_settings

    with pytest.raises(AdapterError, match=r"adapter a has trained lengths \(DoRA\)"):
        check_adapter(read_settings(folders[0]), "adapter a")


def test_kept_lengths_go_with_the_weights_that_were_measured(
    tiny_model: Any, tiny_tokenizer: Any
) -> None:
    """In turn in float32 and bfloat16, whose weights stand in for one another, and in a copy."""
    attach(tiny_model, SETTINGS, seed=0)
    oracle.fill(tiny_model)
    request = [ScoreRequest("the cat sat", " on a mat")]
    exact = Engine(tiny_model, tiny_tokenizer, torch.float32).score(request)
    rounded = Engine(tiny_model, tiny_tokenizer, torch.bfloat16).score(request)
    assert Engine(tiny_model, tiny_tokenizer, torch.float32).score(request) == exact
    assert rounded[0].loglikelihood == pytest.approx(exact[0].loglikelihood, abs=0.5)
    assert torch.equal(_logits(copy.deepcopy(tiny_model)), _logits(tiny_model))
