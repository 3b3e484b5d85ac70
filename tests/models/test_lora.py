"""LoRA layers and PEFT files against PEFT itself and plain products."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.models import lora
from laura.models.adapters import attach, load_adapter, merge_check, refill, save_adapter
from laura.models.lora import LoraSettings, detach, lora_layers, merge, route, unmerge
from laura.results.errors import AdapterError

# PEFT 0.21, the oracle, still asks transformers for an attribute it has deprecated.
PEFT_WARNING = "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
IDS = torch.tensor([[5, 9, 200, 33, 7, 450, 2, 81]])


def _fill(model: Any, seed: int = 3) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.B.normal_(std=0.1)


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


@pytest.mark.parametrize(
    ("targets", "count"), [("all", 14), ("mlp", 6), ("attention", 8), (("q_proj", "up_proj"), 4)]
)
def test_targets_replace_the_named_linears_and_the_update_starts_at_zero(
    tiny_model: Any, targets: Any, count: int
) -> None:
    before = _logits(tiny_model)
    names = attach(tiny_model, LoraSettings(rank=4, targets=targets), seed=0)
    assert len(names) == count == len(lora_layers(tiny_model))
    assert torch.equal(_logits(tiny_model), before)
    trainable = {n for n, p in tiny_model.named_parameters() if p.requires_grad}
    assert trainable == {f"{n}.{letter}" for n in names for letter in "AB"}
    detach(tiny_model)
    assert torch.equal(_logits(tiny_model), before)


def test_a_target_that_matches_nothing_is_an_error_naming_the_nearest(tiny_model: Any) -> None:
    with pytest.raises(AdapterError, match=r"'q_prj' \(did you mean 'q_proj'\?\)"):
        attach(tiny_model, LoraSettings(targets=("q_prj", "v_proj")), seed=0)
    with pytest.raises(AdapterError, match="lm_head"):
        attach(tiny_model, LoraSettings(targets=("lm_head",)), seed=0)
    with pytest.raises(AdapterError, match="rank 65 exceeds"):
        attach(tiny_model, LoraSettings(rank=65), seed=0)
    assert not lora_layers(tiny_model)


def test_the_same_seed_gives_the_same_adapter_whatever_ran_before(tiny_model: Any) -> None:
    attach(tiny_model, LoraSettings(rank=4), seed=11)
    first = [layer.A.clone() for layer in lora_layers(tiny_model).values()]
    detach(tiny_model)
    torch.rand(17)
    attach(tiny_model, LoraSettings(rank=4), seed=11)
    again = [layer.A for layer in lora_layers(tiny_model).values()]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_segments_and_slots_equal_each_adapter_alone(tiny_model: Any) -> None:
    attach(tiny_model, LoraSettings(rank=4), seed=0, slots=3)
    _fill(tiny_model)
    alone = {}
    for slot in (None, 0, 1, 2):
        with route(tiny_model, slot):
            alone[slot] = _logits(tiny_model)
    assert not torch.allclose(alone[0], alone[1])
    rows = [2, None, 0]
    with route(tiny_model, segments=[(slot, IDS.shape[1]) for slot in rows]):
        with torch.inference_mode():
            mixed = tiny_model(IDS.repeat(3, 1)).logits
    for row, slot in zip(mixed, rows, strict=True):
        torch.testing.assert_close(row, alone[slot][0], atol=1e-5, rtol=1e-5)
    with pytest.raises(AdapterError, match="slot 3"), route(tiny_model, 3):
        pass
    with pytest.raises(AdapterError, match="covers 4 tokens"):
        with route(tiny_model, segments=[(0, 4)]):
            _logits(tiny_model)


def test_merge_equals_beside_and_unmerge_is_exact(tiny_model: Any) -> None:
    attach(tiny_model, LoraSettings(rank=4), seed=0)
    _fill(tiny_model)
    differences = merge_check(tiny_model, IDS)
    assert differences["merged"] < 1e-4 < differences["update"]
    assert differences["unmerged"] == 0.0
    merge(tiny_model)
    merged = _logits(tiny_model)
    unmerge(tiny_model)
    torch.testing.assert_close(merged, _logits(tiny_model), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize(
    "settings",
    [
        LoraSettings(rank=4, alpha=8),
        LoraSettings(rank=4, alpha=8, rslora=True, targets="mlp"),
        LoraSettings(rank=4, alpha=8, rank_pattern={"layers.1.self_attn.q_proj": 2}),
        LoraSettings(rank=4, alpha=8, alpha_pattern={"q_proj": 3.0}),
    ],
)
def test_an_adapter_written_here_loads_in_peft(
    tiny_model: Any, settings: LoraSettings, tmp_path: Path
) -> None:
    from peft import PeftModel

    attach(tiny_model, settings, seed=0)
    _fill(tiny_model)
    ours = _logits(tiny_model)
    save_adapter(tiny_model, tmp_path, settings, "tiny")
    detach(tiny_model)
    tiny_model.set_attn_implementation("eager")
    theirs = _logits(PeftModel.from_pretrained(tiny_model, tmp_path))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings(PEFT_WARNING)
@pytest.mark.parametrize(
    "choices",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": r".*\.1\..*(q|v)_proj", "rank_pattern": {"v_proj": 2}},
        {"target_modules": ["up_proj"], "alpha_pattern": {r"layers\.0\.mlp\.up_proj": 1}},
    ],
)
def test_an_adapter_made_by_peft_loads_here(
    tiny_model: Any, choices: dict[str, Any], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=16, init_lora_weights=False, task_type="CAUSAL_LM", **choices
    )
    tiny_model.set_attn_implementation("eager")
    peft_model = get_peft_model(tiny_model, config)
    theirs = _logits(peft_model)
    peft_model.save_pretrained(tmp_path)
    plain = peft_model.unload()
    plain.set_attn_implementation("laura")
    load_adapter(plain, tmp_path)
    torch.testing.assert_close(_logits(plain), theirs, atol=1e-5, rtol=0)


def _saved(model: Any, folder: Path) -> Path:
    settings = LoraSettings(rank=4, alpha=8, targets=("q_proj",))
    attach(model, settings, seed=0)
    save_adapter(model, folder, settings, "tiny")
    detach(model)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias=all.*`laura merge BASE ADAPTER OUT`"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save.*`laura merge BASE ADAPTER OUT`"),
        ({"peft_type": "IA3"}, "IA3"),
        *[
            ({"init_lora_weights": start}, f"init_lora_weights={start}, which changes the base")
            for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
        ],
        ({"r": "many"}, "unusable"),
        ({"lora_alpha": -8}, "lora_alpha -8.0 is unusable; give a number above 0"),
        ({"use_rslora": "no"}, "use_rslora 'no' is unusable; give true or false"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern .* is unusable; give names or regular"),
    ],
)
def test_what_cannot_be_represented_is_refused_by_name(
    tiny_model: Any, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = _saved(tiny_model, tmp_path) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterError, match=message):
        load_adapter(tiny_model, tmp_path)
    assert not lora_layers(tiny_model)


def test_damaged_or_foreign_weights_leave_the_model_as_it_was(
    tiny_model: Any, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = _saved(tiny_model, tmp_path) / "adapter_model.safetensors"
    whole = load_file(weights)
    first = next(iter(whole))
    cases = [
        ({**whole, first: whole[first] * float("nan")}, "not finite"),
        ({**whole, first: torch.zeros(4, 9)}, "another base"),
        ({k: v for k, v in whole.items() if k != first}, "belong together"),
        ({**whole, "base_model.model.lm_head.weight": torch.zeros(2, 2)}, "expected lora_A"),
        ({k.replace("layers.0", "layers.7"): v for k, v in whole.items()}, "layers.7"),
    ]
    for tensors, message in cases:
        save_file(tensors, weights)
        with pytest.raises(AdapterError, match=message):
            load_adapter(tiny_model, tmp_path)
        assert not lora_layers(tiny_model)
    weights.write_bytes(b"not safetensors")
    with pytest.raises(AdapterError, match="damaged"):
        load_adapter(tiny_model, tmp_path)
    with pytest.raises(AdapterError, match="not a folder"):
        load_adapter(tiny_model, tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_fused_product_has_the_gradients_of_the_written_out_formula(dtype: Any) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, 5, 8, dtype=dtype), torch.randn(6, 8, dtype=dtype)
    a, b = torch.randn(3, 8, dtype=dtype), torch.randn(6, 3, dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in (x, a, b)]
    fused = lora.lora_product(leaves[0], w, leaves[1], leaves[2], 0.7)
    plain = [t.clone().requires_grad_() for t in (x, a, b)]
    formula = plain[0] @ w.T + 0.7 * (plain[0] @ plain[1].T) @ plain[2].T
    torch.testing.assert_close(fused, formula)
    slope = torch.randn_like(formula)
    for one, other in zip(
        torch.autograd.grad(fused, leaves, slope),
        torch.autograd.grad(formula, plain, slope),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "settings",
    [
        LoraSettings(rank=4, alpha=8, rslora=True, layers=(1,)),
        LoraSettings(rank=4, dora=True),
        LoraSettings(rank=4, protect=3),
        LoraSettings(rank=1, alpha=1, block_size=8),
    ],
    ids=["lora", "dora", "oplora", "oft"],
)
def test_a_saved_adapter_is_put_back_to_be_trained_on(
    tiny_model: Any, settings: LoraSettings, tmp_path: Path
) -> None:
    attach(tiny_model, settings, seed=0)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    tuned = _logits(tiny_model)
    save_adapter(tiny_model, tmp_path, settings, "tiny")
    detach(tiny_model)
    attach(tiny_model, settings, seed=1)
    refill(tiny_model, tmp_path)
    # OPLoRA's projections are taken once more of what they have been taken of.
    rounding = 1e-5 if settings.protect else 0.0
    torch.testing.assert_close(_logits(tiny_model), tuned, atol=rounding, rtol=0)
    trained = {n.rsplit(".", 1)[-1] for n, p in tiny_model.named_parameters() if p.requires_grad}
    assert trained == (
        {"A", "B", "0"} if settings.dora else {"R"} if settings.block_size else {*"AB"}
    )
