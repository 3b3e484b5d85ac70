"""What only a CUDA device can show (`make test-gpu`): each compares with the processor or the loop.

Never run yet: Laura was written on machines without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from laura.engine.engine import Engine
from laura.engine.requests import GenerateRequest, ScoreRequest
from laura.models.adapters import attach
from laura.models.attention import Documents, Scoring
from laura.models.device import pick_device, resolve_precision, varlen_attention
from laura.models.lean import lean
from laura.models.lora import LoraSettings
from laura.models.losses import packed_loss_sum
from laura.training.learner import model_inputs
from tests.conftest import make_tiny_model
from tests.models.test_varlen import LENGTHS, make_unlike_row
from tests.training import test_cohort as cohorts
from tests.training.test_loop import make_plan, make_section, table, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
# Head width 64, as the kernels like it.
SHAPE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def cuda() -> torch.device:
    return pick_device("cuda")


def on(device: torch.device, method: str, **changes: Any) -> Any:
    """The tiny model on a device, ready to be trained."""
    model = make_tiny_model(**SHAPE, **changes)
    if method == "lora":
        model.requires_grad_(False)
        attach(model, LoraSettings(rank=4), seed=7)
    return model.to(device)


def close(ours: torch.Tensor, exact: torch.Tensor, limit: float) -> bool:
    """Whether the distance is at most so large a share."""
    ours, exact = ours.double().cpu(), exact.double().cpu()
    return bool((ours - exact).norm() <= limit * exact.norm())


def test_float32_keeps_all_its_bits(cuda: torch.device) -> None:
    left, right = (torch.randn(256, 256, device=cuda) for _ in "ab")
    assert close(left @ right, left.double() @ right.double(), 1e-6)  # TF32: about 3e-4


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("width", [16, 64, 128])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
def test_the_kernel_of_documents_is_the_loop(
    cuda: torch.device, rows: int, width: int, heads: int, groups: int
) -> None:
    if varlen_attention(cuda, torch.bfloat16, width) is None:
        pytest.skip("this card, or this torch, has none")
    shapes = [(rows, sum(LENGTHS), count, width) for count in (heads, groups, groups)]
    exact = [torch.randn(shape).transpose(1, 2) for shape in shapes]
    slope = torch.randn(rows, heads, sum(LENGTHS), width)
    inputs = [x.to(cuda, torch.bfloat16).requires_grad_() for x in exact]
    output = Documents(LENGTHS).attend(*inputs, Scoring(0.2), 0.0)
    ours = [output, *torch.autograd.grad(output, inputs, slope.to(cuda, torch.bfloat16))]
    # The same numbers, since rounded, by the loop on the processor.
    wide = [x.detach().float().cpu().requires_grad_() for x in inputs]
    output = Documents(LENGTHS).attend(*wide, Scoring(0.2), 0.0)
    expected = [output, *torch.autograd.grad(output, wide, slope.bfloat16().float())]
    assert all(close(one, other, 1e-2) for one, other in zip(ours, expected, strict=True))


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_pass_waits_for_nothing(cuda: torch.device, method: str, recompute: bool) -> None:
    model = on(cuda, method).train()
    with lean(model, recompute):
        for mode in ("default", "error"):  # libraries are loaded in the first
            torch.cuda.set_sync_debug_mode(mode)
            try:
                inputs, labels = model_inputs([make_unlike_row()], cuda)
                with torch.autocast("cuda", torch.bfloat16):
                    loss = packed_loss_sum(model, inputs, labels, torch.bfloat16)
                loss.backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-3), ("bf16", 3e-2)])
def test_losses_of_a_training_are_the_processors(
    cuda: torch.device, tmp_path: Path, method: str, precision: str, limit: float
) -> None:
    losses = []
    for place, arithmetic in ((cuda, precision), (torch.device("cpu"), "fp32")):
        section = make_section(precision=arithmetic)
        folder = tmp_path / place.type
        train(on(place, method), folder, section, make_plan(section))
        losses.append([row["loss"] for row in table(folder)])
    assert len(losses[0]) > 5
    assert losses[0] == pytest.approx(losses[1], rel=limit)


def test_runs_that_share_their_passes_are_the_runs_one_by_one(
    cuda: torch.device, tmp_path: Path
) -> None:
    section = make_section(cohort=3, precision="bf16")
    plan = make_plan(section, (600,))
    cohorts.together(tmp_path / "together", section, plan, model=on(cuda, "lora"))
    for rate in cohorts.RATES:
        train(on(cuda, "lora"), tmp_path / str(rate), section, plan, learning_rate=rate)
        ours, alone = (table(tmp_path / way / str(rate)) for way in ("together", "."))
        for one, other in zip(ours, alone, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=3e-2)


@pytest.fixture
def engines(cuda: torch.device, tiny_tokenizer: Any) -> Iterator[tuple[Engine, Engine]]:
    """On the card, as it measures by default, and on the processor in float32."""
    precision = resolve_precision(None, cuda)
    ours = Engine(on(cuda, "full"), tiny_tokenizer, precision)
    yield ours, Engine(on(torch.device("cpu"), "full"), tiny_tokenizer)


def test_what_is_measured_is_what_the_processor_measures(engines: tuple[Engine, Engine]) -> None:
    requests = [ScoreRequest("the cat sat on", f" {word} and ran") for word in ("a mat", "it")]
    for ours, expected in zip(*(engine.score(requests) for engine in engines), strict=True):
        assert ours.loglikelihood == pytest.approx(expected.loglikelihood, rel=3e-2)
    wanted = [GenerateRequest("the dog ran to", (), 8), GenerateRequest("how many", (), 8)]
    for ours, expected in zip(*(engine.generate(wanted) for engine in engines), strict=True):
        # Rounding may turn a near tie of later tokens.
        assert ours.token_ids[0] == expected.token_ids[0]


def test_a_worker_has_a_card_of_its_own(cuda: torch.device) -> None:
    from laura.models.device import total_memory_bytes, worker_devices

    assert worker_devices() == [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    assert total_memory_bytes(cuda) > 2**30
