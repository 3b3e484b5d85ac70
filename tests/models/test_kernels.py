"""How many kernels a training pass and a step of decoding launch, pinned.

A small pass on a GPU takes as long as its launches. Counted are operations that would launch one
(`kernels.py`): of training on the meta device, of decoding on the processor. Who raises a pin
says what for.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from laura.engine.scheduler import TokenSequence
from laura.models import attention
from laura.models.adapters import attach
from laura.models.lean import lean
from laura.models.lora import LoraSettings
from laura.models.losses import packed_loss_sum
from laura.training.learner import model_inputs
from tests.conftest import make_tiny_model
from tests.engine.alone import serving, tiny
from tests.models.kernels import Kernels, allow_meta
from tests.models.test_varlen import torchs_own
from tests.study.test_plan_memory import make_row

# Operations of a layer, forwards and backwards.
TRAINING = {"full": 114, "lora": 169}
# Of a layer of one decoded token, and of a step besides.
DECODING, BESIDES = 38, 49


def training_pass(method: str, layers: int) -> int:
    model = make_tiny_model(num_hidden_layers=layers)
    if method == "lora":
        model.requires_grad_(False)
        attach(model, LoraSettings(rank=4), seed=0)
    model.to("meta", torch.bfloat16).train()
    inputs, labels = model_inputs([make_row(96, 12)], torch.device("meta"))
    with lean(model), Kernels() as kernels:
        packed_loss_sum(model, inputs, labels, torch.bfloat16).backward()
    return kernels.total


@pytest.mark.parametrize("method", TRAINING)
def test_a_training_pass_launches_so_many_a_layer(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = torchs_own()
    allow_meta(monkeypatch)
    monkeypatch.setattr(attention, "varlen_attention", lambda *_: kernel)
    few, many = training_pass(method, 2), training_pass(method, 4)
    assert (many - few) / 2 <= TRAINING[method]


def decoding_step(tokenizer: Any, rows: int, layers: int = 2) -> int:
    """Of the third token of so many sequences."""
    model = tiny() if layers == 2 else make_tiny_model(num_hidden_layers=layers)
    with serving(model, tokenizer, cache_bytes=2**25) as live:
        for number in range(rows):
            prompt = tuple(range(20 + number, 30 + number))
            assert live.add(TokenSequence(str(number), prompt, 8, ignore_end=True))
        for _ in range(3):
            live.step()
        with Kernels() as kernels:
            assert len(live.step()) == rows
    return kernels.total


def test_a_decoding_step_launches_so_many_whatever_the_sequences(tiny_tokenizer: Any) -> None:
    one, several = decoding_step(tiny_tokenizer, 1), decoding_step(tiny_tokenizer, 12)
    deeper = decoding_step(tiny_tokenizer, 1, layers=4)
    layer = (deeper - one) / 2
    assert layer <= DECODING and one - 2 * layer <= BESIDES
    assert several <= one
