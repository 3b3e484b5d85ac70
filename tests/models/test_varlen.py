"""Packed documents in one kernel against the loop over them, and how it is called.

The kernel itself runs on CUDA alone (`tests/test_gpu.py`). Here a naive stand-in with its
arguments computes, which proves what goes in and what is made of what comes out; and torch's own
function takes a pass on the meta device, where it has shapes, gradients and checks, but no numbers.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from laura.data.packing import Row
from laura.engine.engine import Engine
from laura.engine.requests import TokenDocument
from laura.models import attention
from laura.models.adapters import attach
from laura.models.attention import Documents, Scoring
from laura.models.lean import lean
from laura.models.lora import LoraSettings
from laura.models.losses import packed_loss_sum
from laura.training.cohort import Together
from laura.training.learner import model_inputs
from tests.conftest import make_tiny_model
from tests.models.kernels import Kernels, allow_meta
from tests.study.test_plan_memory import make_row
from tests.training import test_cohort as cohorts
from tests.training.test_loop import make_plan, make_section, table

LENGTHS = [7, 1, 12, 5]


class StandIn:
    """torch's `varlen_attn` by its definition: a softmax over what each token may see.

    Attributes:
        calls: Starts, longest document, heads and key heads of each call.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int, int, int]] = []

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor,
        max_q: int, max_k: int, *, return_aux: None = None, scale: float,
        window_size: tuple[int, int], enable_gqa: bool, seqused_k: None = None,
        block_table: None = None, num_splits: None = None,
    ) -> Tensor:  # fmt: skip
        starts, heads, groups = cu_seq_q.tolist(), query.shape[1], key.shape[1]
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and starts == cu_seq_k.tolist()
        assert max_q == max_k == max(end - start for start, end in pairwise(starts))
        before, behind = window_size
        assert behind == 0 and enable_gqa == (heads != groups)
        assert starts[-1] == len(query) == len(key) == len(value)
        assert all(x.stride(-1) == 1 for x in (query, key, value))
        self.calls.append((starts, max_q, heads, groups))
        key, value = (x.repeat_interleave(heads // groups, dim=1) for x in (key, value))
        outputs = []
        for start, end in pairwise(starts):
            q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
            every = torch.ones(end - start, end - start, dtype=torch.bool)
            unseen = every.triu(1) if before < 0 else every.triu(1) | every.tril(-before - 1)
            scores = (q @ k.mT * scale).masked_fill(unseen, -torch.inf)
            outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
        return torch.cat(outputs)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in, where attention looks for a kernel."""
    one = StandIn()
    monkeypatch.setattr(attention, "varlen_attention", lambda *_: one)
    return one


def torchs_own() -> Any:
    """torch's function, where it has all that is wanted of it."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    if not {"scale", "enable_gqa"} <= set(inspect.signature(varlen.varlen_attn).parameters):
        pytest.skip("this torch's varlen_attn knows no scale or groups")
    return varlen.varlen_attn


def test_the_stand_in_is_called_as_torchs_own() -> None:
    theirs = inspect.signature(torchs_own()).parameters
    ours = inspect.signature(StandIn().__call__).parameters
    assert [(name, p.kind) for name, p in ours.items()] == [
        (name, p.kind) for name, p in theirs.items()
    ]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("heads", "groups", "window"), [(4, 4, None), (6, 2, None), (4, 2, 5)])
def test_outputs_and_gradients_are_those_of_the_loop(
    kernel: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    heads: int,
    groups: int,
    window: int | None,
) -> None:
    torch.manual_seed(0)
    tokens = sum(LENGTHS)
    # As a map leaves them: heads of a token side by side.
    inputs = [
        torch.randn(rows, tokens, count, 8).transpose(1, 2).requires_grad_()
        for count in (heads, groups, groups)
    ]
    slope, found = torch.randn(rows, heads, tokens, 8), []
    for one in (kernel, None):
        monkeypatch.setattr(attention, "varlen_attention", lambda *_, one=one: one)
        output = Documents(LENGTHS).attend(*inputs, Scoring(0.3, window), 0.0)
        found.append([output.detach(), *torch.autograd.grad(output, inputs, slope)])
    ends = [tokens * row + end for row in range(rows) for end in (7, 8, 20, 25)]
    assert kernel.calls == [([0, *ends], 12, heads, groups)]
    for ours, loop in zip(*found, strict=True):
        torch.testing.assert_close(ours, loop, atol=1e-5, rtol=1e-5)


def make_unlike_row() -> Row:
    """Documents of LENGTHS, every token learnt."""
    ids = torch.randint(3, 512, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    places = [place for length in LENGTHS for place in range(length)]
    return Row(ids.tolist(), ids.roll(-1).tolist(), places, LENGTHS, list(range(len(LENGTHS))))


def gradients(method: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a training pass of the tiny model."""
    model = make_tiny_model()
    if method == "lora":
        model.requires_grad_(False)
        attach(model, LoraSettings(rank=4), seed=0)
    model.train()
    inputs, labels = model_inputs([make_unlike_row()], torch.device("cpu"))
    with lean(model, recompute=method == "recomputed"):
        loss = packed_loss_sum(model, inputs, labels, torch.float32)
        loss.backward()
    return float(loss.detach()), {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("method", ["full", "lora", "recomputed"])
def test_a_training_pass_is_that_of_the_loop(
    kernel: StandIn, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    loss, ours = gradients(method)
    assert len(kernel.calls) == (4 if method == "recomputed" else 2)  # of two layers
    monkeypatch.undo()
    expected, loop = gradients(method)
    assert loss == pytest.approx(expected, rel=1e-6)
    for name, gradient in loop.items():
        torch.testing.assert_close(ours[name], gradient, atol=2e-5, rtol=1e-4)


def test_runs_that_share_their_passes_stand_behind_one_another(
    kernel: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("laura.training.run.gradients_for", Together)
    section = make_section(cohort=3)
    plan = make_plan(section, (600,))
    cohorts.together(tmp_path / "kernel", section, plan)
    assert {len(starts) % 3 for starts, *_ in kernel.calls} == {1}  # three times, and the end
    monkeypatch.setattr(attention, "varlen_attention", lambda *_: None)
    cohorts.together(tmp_path / "loop", section, plan)
    for rate in cohorts.RATES:
        pairs = zip(*(table(tmp_path / way / str(rate)) for way in ("kernel", "loop")), strict=True)
        assert all(ours["loss"] == pytest.approx(loop["loss"], rel=1e-4) for ours, loop in pairs)


def test_losses_of_documents_are_measured_in_it_too(
    kernel: StandIn, monkeypatch: pytest.MonkeyPatch, tiny_model: Any, tiny_tokenizer: Any
) -> None:
    source = torch.Generator().manual_seed(0)
    documents = []
    for index, length in enumerate((9, 30, 17)):
        ids = torch.randint(3, 512, (length,), generator=source).tolist()
        documents.append(TokenDocument(ids, [True] * length, length, index))
    engine = Engine(tiny_model, tiny_tokenizer)
    ours = engine.document_losses(documents)
    assert kernel.calls
    monkeypatch.undo()
    for found, expected in zip(ours, engine.document_losses(documents), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_dropout_and_single_documents_stay_with_torchs_usual_attention(kernel: StandIn) -> None:
    query = torch.randn(1, 2, 10, 8)
    Documents([10]).attend(query, query, query, Scoring(1.0), 0.0)
    Documents([4, 6]).attend(query, query, query, Scoring(1.0), 0.1)
    assert not kernel.calls


def meta_pass(documents: int, layers: int = 2) -> Kernels:
    """What a training pass of a model in bfloat16 launches on the meta device."""
    model = make_tiny_model(num_hidden_layers=layers).to("meta", torch.bfloat16).train()
    inputs, labels = model_inputs([make_row(96, documents)], torch.device("meta"))
    with Kernels() as kernels, lean(model):
        packed_loss_sum(model, inputs, labels, torch.bfloat16).backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters())
    return kernels


def test_its_kernels_do_not_grow_with_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchs_own()
    allow_meta(monkeypatch)
    loop = [meta_pass(documents).total for documents in (2, 12)]
    monkeypatch.setattr(attention, "varlen_attention", lambda *_: theirs)
    few, many = meta_pass(2), meta_pass(12)
    assert few.counts == many.counts
    assert many.total < loop[0] < loop[1]
    assert (
        many.counts["torch_attn._varlen_attn"]
        == 2
        == many.counts["torch_attn._varlen_attn_backward"]
    )
