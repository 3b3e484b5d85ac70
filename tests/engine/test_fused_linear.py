"""A packed map against functional.linear, and row by row against itself."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import linear

from laura.engine import model_runner
from laura.engine.model_runner import PackedLinear, filled_rows
from laura.models import device


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(3072, 576), (576, 1536), (960, 576), (576, 576)])
@torch.inference_mode()
def test_a_row_does_not_depend_on_its_neighbours(shape: tuple[int, int], shared: bool) -> None:
    """To the last bit, on the shapes of SmolLM2-135M, where oneDNN's kernels are AVX-512's."""
    capability = torch.backends.cpu.get_cpu_capability()
    if not torch.backends.mkldnn.is_available() or capability != "AVX512":
        pytest.skip(f"oneDNN's kernels for {capability} may differ")
    torch.manual_seed(0)
    product = PackedLinear(torch.randn(shape), shared=shared)
    x = torch.randn(64, shape[1])
    whole = product(x)
    for rows in (1, 2, 5, 17, 32, 33):
        part = torch.cat([product(x[i : i + rows]) for i in range(0, 64, rows)])
        assert part.equal(whole), f"{rows} rows differ by {(part - whole).abs().max():.0e}"


def test_passes_of_all_lengths_need_few_kernels() -> None:
    filled = {rows: filled_rows(rows) for rows in range(1, 1025)}
    assert all(most >= max(rows, 2) for rows, most in filled.items())
    assert all(most <= 1.25 * rows or most - rows < 8 for rows, most in filled.items())
    assert len(set(filled.values())) < 50


def test_a_shared_weight_is_held_once() -> None:
    weight, x = torch.randn(64, 32), torch.randn(3, 32)
    own, shared = PackedLinear(weight.clone()), PackedLinear(weight, shared=True)
    weight.zero_()
    assert not shared(x).any() and own(x).any()


def test_nothing_is_packed_in_bf16_where_the_processor_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Refusing:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError(f"mkldnn {name}: bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr(device, "has_bf16_kernels", lambda: False)
    monkeypatch.setattr(model_runner, "_OPS", Refusing())
    weight, x = torch.randn(16, 32).bfloat16(), torch.randn(3, 32).bfloat16()
    for shared in (False, True):
        assert PackedLinear(weight, shared=shared)(x).equal(linear(x, weight))
    # What the processor can is packed as ever.
    if torch.backends.mkldnn.is_available():
        with pytest.raises(RuntimeError, match="reorder_linear_weight"):
            PackedLinear(weight.float())


@pytest.mark.parametrize("shape", [(3072, 576), (576, 1536), (960, 576), (64, 128), (7, 5)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_packed_map_is_a_linear(shape: tuple[int, int], precision: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(shape).to(precision), torch.randn(shape[0]).to(precision)
    product, plain = PackedLinear(weight, bias), PackedLinear(weight)
    shared = PackedLinear(weight, shared=True)
    for rows in (1, 2, 3, 33, 160):
        x = torch.randn(rows, shape[1]).to(precision)
        tolerance = 1e-3 if precision == torch.float32 else 0.5
        torch.testing.assert_close(product(x), linear(x, weight, bias), atol=tolerance, rtol=1e-2)
        torch.testing.assert_close(plain(x), linear(x, weight), atol=tolerance, rtol=1e-2)
        torch.testing.assert_close(shared(x), linear(x, weight), atol=tolerance, rtol=1e-2)
    assert product.bytes == weight.numel() * weight.element_size()
