"""The chunked loss against torch's own cross-entropy over all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from laura.models import losses
from laura.models.attention import Documents
from laura.models.losses import CHUNK_POSITIONS, GROUP_POSITIONS, loss_sum, packed_loss_sum
from tests.conftest import make_tiny_model

WIDTH, VOCABULARY = 16, 97
# One position, a part of a chunk, a group exactly, and more than two groups with a rest.
COUNTS = (1, CHUNK_POSITIONS - 7, GROUP_POSITIONS, 2 * GROUP_POSITIONS + CHUNK_POSITIONS + 3)


def material(count: int) -> tuple[Tensor, nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, WIDTH, generator=generator, requires_grad=True)
    head = nn.Linear(WIDTH, VOCABULARY, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator))
    return hidden, head, torch.randint(VOCABULARY, (count,), generator=generator)


def reference(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients in double precision, by torch alone."""
    wide = hidden.detach().double().requires_grad_()
    table = weight.detach().double().requires_grad_()
    loss = nn.functional.cross_entropy(wide @ table.T, labels, reduction="sum")
    loss.backward()
    assert wide.grad is not None and table.grad is not None
    return loss.detach(), wide.grad, table.grad


def distance(ours: Tensor | None, theirs: Tensor) -> float:
    assert ours is not None
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_loss_and_both_gradients_are_torchs(count: int, dtype: torch.dtype, limit: float) -> None:
    hidden, head, labels = material(count)
    loss, by_hidden, by_weight = reference(hidden, head.weight, labels)
    ours = loss_sum(hidden, head, labels, dtype)
    ours.backward()
    assert ours.dtype == torch.float32
    assert abs(float(ours.detach()) - float(loss)) <= limit * float(loss)
    assert distance(hidden.grad, by_hidden) <= limit
    assert distance(head.weight.grad, by_weight) <= limit


@pytest.mark.parametrize("trained", ["hidden", "weight"])
def test_only_what_is_trained_gets_a_gradient(trained: str) -> None:
    hidden, head, labels = material(COUNTS[-1])
    hidden.requires_grad_(trained == "hidden")
    head.weight.requires_grad_(trained == "weight")
    _, by_hidden, by_weight = reference(hidden, head.weight, labels)
    loss_sum(hidden, head, labels, torch.float32).backward()
    if trained == "hidden":
        assert head.weight.grad is None and distance(hidden.grad, by_hidden) <= 1e-6
    else:
        assert hidden.grad is None and distance(head.weight.grad, by_weight) <= 1e-6


def test_a_factor_on_the_loss_reaches_both_gradients() -> None:
    hidden, head, labels = material(300)
    _, by_hidden, by_weight = reference(hidden, head.weight, labels)
    (loss_sum(hidden, head, labels, torch.float32) / 8).backward()
    assert distance(hidden.grad, by_hidden / 8) <= 1e-6
    assert distance(head.weight.grad, by_weight / 8) <= 1e-6


def test_without_gradients_no_slope_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Tensor) -> None:
        raise AssertionError("a slope was made that nobody wants")

    hidden, head, labels = material(COUNTS[-1])  # both require gradients, as in training
    loss, _, _ = reference(hidden, head.weight, labels)
    monkeypatch.setattr(losses, "_loss_and_slope", refuse)
    with torch.no_grad():
        ours = loss_sum(hidden, head, labels, torch.float32)
    assert abs(float(ours) - float(loss)) <= 1e-6 * float(loss)


def test_large_logits_do_not_overflow() -> None:
    hidden, head, labels = material(40)
    with torch.no_grad():
        hidden *= 100
    loss, by_hidden, _ = reference(hidden, head.weight, labels)
    ours = loss_sum(hidden, head, labels, torch.float32)
    ours.backward()
    assert abs(float(ours.detach()) - float(loss)) <= 1e-6 * float(loss)
    assert distance(hidden.grad, by_hidden) <= 1e-6


def test_a_group_holds_whole_chunks() -> None:
    # The gradient of the output map is taken when a group is full, which is seen at a chunk's end.
    assert losses.GROUP_POSITIONS % losses.CHUNK_POSITIONS == 0


def test_the_gradient_of_the_output_map_comes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK_WORDS", 10)  # of 97: nine whole blocks and a rest
    hidden, head, labels = material(COUNTS[-1])
    _, by_hidden, by_weight = reference(hidden, head.weight, labels)
    loss_sum(hidden, head, labels, torch.float32).backward()
    assert distance(hidden.grad, by_hidden) <= 1e-6
    assert distance(head.weight.grad, by_weight) <= 1e-6


def test_packing_and_loss_mean_the_same_by_not_learnt() -> None:
    from laura.data import packing
    from laura.models import losses

    assert packing.IGNORED == losses.IGNORED == -100  # torch's ignore_index


def test_a_pass_asks_an_accelerator_for_nothing() -> None:
    """On the meta device whatever would have to wait for a value raises."""
    model = make_tiny_model().to("meta")
    labels = torch.tensor([5, -100, 7, -100, 9, 11])
    inputs = {
        "input_ids": torch.zeros(1, 6, dtype=torch.long, device="meta"),
        "position_ids": torch.zeros(1, 6, dtype=torch.long, device="meta"),
        "documents": Documents([2, 4]),
    }
    loss = packed_loss_sum(model, inputs, labels, torch.float32)
    loss.backward()
    assert loss.is_meta and all(p.grad is not None for p in model.parameters())
