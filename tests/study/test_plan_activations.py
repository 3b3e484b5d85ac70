"""What a pass keeps, by the plan, against the storages that autograd really saves."""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from laura.data.packing import Row
from laura.models import lean as lean_module
from laura.models import losses
from laura.models.device import autocast
from laura.models.lean import lean
from laura.models.lora import lora_layers, route
from laura.recipe.sections import Arm, BaseSection, FullArm, LoraArm
from laura.study.plan_activations import Pass, activation_bytes
from laura.study.plan_arms import start_numbers, trainable_parameters
from laura.study.plan_shapes import shapes_from
from laura.study.plan_work import work_of
from laura.study.workbench import Workbench
from laura.training.flops import count_work
from laura.training.loop import model_inputs
from tests.conftest import make_tiny_model

ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "full-layers": {"method": "full", "layers": [2, 4]},
    "full-attention-dropout": {"method": "full", "attention_dropout": 0.1},
    "full-residual-dropout": {"method": "full", "residual_dropout": 0.1},
    "lora": {"method": "lora"},
    "mlp": {"method": "lora", "targets": "mlp"},
    "dropout": {"method": "lora", "dropout": 0.1},
    "layers": {"method": "lora", "layers": [2, 3]},
    "down-of-two": {"method": "lora", "targets": ["down_proj"], "layers": [1, 5]},
    "output-of-one": {"method": "lora", "targets": ["o_proj"], "layers": [3], "dropout": 0.1},
    "lora-both-dropouts": {"method": "lora", "attention_dropout": 0.1, "residual_dropout": 0.1},
    "pissa": {"method": "lora", "init": "pissa"},
    "pissa-dropout": {"method": "lora", "init": "pissa", "dropout": 0.1},
    "dora": {"method": "lora", "dora": True},
    "dora-dropout": {"method": "lora", "dora": True, "dropout": 0.1},
}


def make_arm(name: str) -> Arm:
    """An arm of rank 8."""
    fields = ARMS[name]
    if fields["method"] == "full":
        return FullArm.model_validate(fields)
    return LoraArm.model_validate({"rank": 8, **fields})


def adapted(arm: Arm, stack: ExitStack) -> tuple[Any, Any]:
    """A tiny Llama made ready by the workbench to train an arm, and its shapes."""
    model = make_tiny_model(num_hidden_layers=6, hidden_size=128, intermediate_size=352)
    model.requires_grad_(False)
    bench = Workbench(BaseSection(model="tiny"), "cpu")
    bench._base = SimpleNamespace(model=model, name="tiny")  # type: ignore[assignment]
    shapes = shapes_from(model.config.to_dict(), "tiny")
    stack.enter_context(bench.adapted(arm, seed=0))
    return model, shapes


@pytest.mark.parametrize("name", ARMS)
def test_what_is_trained_and_its_work_are_the_models(name: str) -> None:
    arm = make_arm(name)
    with ExitStack() as stack:
        model, shapes = adapted(arm, stack)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        starts = sum(b.numel() for key, b in model.named_buffers() if "start_" in key)
        assert trainable_parameters(shapes, arm) == trained
        assert start_numbers(shapes, arm) == starts
        assert work_of(shapes, arm) == count_work(model)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("documents", [1, 4])
@pytest.mark.parametrize("name", ARMS)
def test_activations_are_what_autograd_keeps(
    name: str, documents: int, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the storages that a real pass saves, each counted once."""
    arm, tokens, length = make_arm(name), 256, 256 // documents
    row = make_row(tokens, documents)
    with ExitStack() as stack:
        model, shapes = adapted(arm, stack)
        kept = kept_bytes(model, row, {16: torch.bfloat16, 32: torch.float32}[bits], monkeypatch)
    one = Pass(tokens, tokens, 4, bits // 8, packed=documents > 1, document=length)
    assert activation_bytes(shapes, arm, one) == pytest.approx(kept, rel=0.03)


@pytest.mark.parametrize("bits", [16, 32])
def test_shared_passes_keep_every_runs_activations(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm, row, runs = make_arm("lora"), make_row(128, 2), 3
    with ExitStack() as stack:
        model, shapes = adapted(arm, stack)
        for layer in lora_layers(model).values():
            layer.scales = layer.scales[:1] * runs
            for key in "AB":
                one = getattr(layer, key)
                setattr(layer, key, torch.nn.Parameter(one.detach().repeat(runs, 1, 1)))
        stack.enter_context(route(model, segments=[(slot, 128) for slot in range(runs)]))
        dtype = {16: torch.bfloat16, 32: torch.float32}[bits]
        kept = kept_bytes(model, row, dtype, monkeypatch, runs)
    passed = Pass(128, 128, 4, bits // 8, document=64, runs=runs, shared=True)
    assert activation_bytes(shapes, arm, passed) == pytest.approx(kept, rel=0.03)


def make_row(tokens: int, documents: int) -> Row:
    """A full row of equal documents, learnt on every token."""
    length = tokens // documents
    places = [place for _ in range(documents) for place in range(length)]
    return Row([5] * tokens, [7] * tokens, places, [length] * documents, [0] * documents)


def kept_bytes(
    model: Any, row: Row, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, runs: int = 1
) -> int:
    """Bytes of the storages that a pass of a model saves for its gradient."""
    model.train()
    cpu = torch.device("cpu")
    inputs, labels = model_inputs([row], cpu)
    inputs["input_ids"] = inputs["input_ids"].expand(runs, -1)
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        if isinstance(tensor, torch.Tensor):
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    made_again = lean_module._made_again

    def seen_too(*tensors: torch.Tensor) -> saved_tensors_hooks:
        # Only the innermost hooks are asked: what they keep is noted here.
        hooks = made_again(*tensors)
        inner, unpack = hooks.pack_hook, hooks.unpack_hook

        def note(kept: torch.Tensor) -> Any:
            packed = inner(kept)
            if not isinstance(packed, torch.Tensor):
                # What makes the product again holds its two factors, a gradient or not.
                for tensor in tensors[1:]:
                    pack(tensor)
            return pack(packed)

        return saved_tensors_hooks(note, unpack)

    monkeypatch.setattr(lean_module, "_made_again", seen_too)
    with lean(model), saved_tensors_hooks(pack, lambda kept: kept), autocast(cpu, dtype):
        loss = losses.packed_loss_sums(model, inputs, labels, dtype)
    # Counted elsewhere: parameters, PiSSA's starts, frozen maps' lasting casts, and the output
    # map's gradient.
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    casts = [layer._cast for layer in lora_layers(model).values() if layer._cast is not None]
    own |= {cast.untyped_storage().data_ptr() for cast in casts}
    head = model.get_output_embeddings().weight.shape
    sizes = [
        kept.untyped_storage().nbytes()
        for place, kept in found.items()
        if place not in own and kept.shape != head
    ]
    assert loss.requires_grad
    return sum(sizes)
