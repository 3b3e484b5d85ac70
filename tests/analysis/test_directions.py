"""Intruder dimensions and subspaces, against full SVDs and scipy's principal angles."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import subspace_angles

from laura.analysis.subspaces import (
    count_intruders,
    factor_directions,
    leading_directions,
    leading_energy,
    overlap,
    similarities,
    update_directions,
)
from tests.analysis.test_spectra import gaussian, with_values

SHAPES = [(60, 60), (48, 110), (110, 48)]


def left(matrix: torch.Tensor) -> torch.Tensor:
    """Left singular vectors by torch's SVD in float64."""
    return torch.linalg.svd(matrix.double(), full_matrices=False).U


def weight(rows: int, columns: int) -> torch.Tensor:
    """A matrix whose singular values fall slowly, as a trained one's do."""
    return with_values(torch.arange(1, min(rows, columns) + 1) ** -0.5, rows, columns)


def with_intruders(base: torch.Tensor, count: int) -> torch.Tensor:
    """The base with strong directions that are spread over all of its own."""
    rows, columns = base.shape
    new = (
        torch.linalg.qr(gaussian(rows, count, 5)).Q
        @ torch.linalg.qr(gaussian(columns, count, 6)).Q.T
    )
    return base + 3.0 * new


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_intruders_as_a_full_svd_finds_them(rows: int, columns: int, count: int) -> None:
    base = weight(rows, columns)
    tuned = with_intruders(base, count) if count else base + 1e-4 * gaussian(rows, columns, 2)
    cosines = (left(tuned)[:, :10].T @ left(base)).abs().amax(dim=1)
    found = similarities(base, tuned, 10)
    assert torch.allclose(found, cosines, atol=1e-4)
    # The definition, with eps where no cosine is near.
    assert count_intruders(base, tuned, 10, 0.6) == int((cosines < 0.6).sum()) == count


def test_intruders_do_not_depend_on_signs_or_on_k_beyond_the_rank() -> None:
    base = weight(20, 30)
    assert count_intruders(base, -base, 10, 0.9) == 0
    assert similarities(base, base, 500).shape == (20,)
    assert similarities(base, gaussian(20, 3) @ gaussian(3, 30, 1), 10).shape == (3,)
    # A base of rank one has no direction that a direction orthogonal to it could be like.
    outer = torch.zeros(30, 20)
    outer[0, 0] = 1
    assert count_intruders(outer, outer.flip(0), 5, 0.5) == 1


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_leading_directions_span_what_the_svd_spans(rows: int, columns: int) -> None:
    matrix = weight(rows, columns)
    for k in (1, 5):
        found = leading_directions(matrix, k)
        assert torch.allclose(found.T @ found, torch.eye(k, dtype=torch.float64), atol=1e-10)
        assert float(subspace_angles(found.numpy(), left(matrix)[:, :k].numpy()).max()) < 1e-4


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("k", [1, 7, 500])
def test_energy_in_the_leading_directions_is_that_of_a_full_svd(
    rows: int, columns: int, k: int
) -> None:
    base = weight(rows, columns)
    u, _, v = torch.linalg.svd(base.double(), full_matrices=False)
    u, v = u[:, :k], v[:k]
    low = gaussian(rows, 3, 7) @ gaussian(3, columns, 8)
    for update in (gaussian(rows, columns, 2), low, 1e-4 * base):
        dense = update.double()
        inside = {"left": u.T @ dense, "right": dense @ v.T, "both": u.T @ dense @ v.T}
        whole = float(dense.square().sum())
        expected = {name: float(part.square().sum()) / whole for name, part in inside.items()}
        assert leading_energy(base, update, k) == pytest.approx(expected, abs=1e-4)
    # What OPLoRA trains has nothing there.
    outside = low.double() - u @ (u.T @ low.double())
    if k < 500:
        assert leading_energy(base, outside.float(), k)["left"] < 1e-6


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_angles_are_scipys(rows: int, columns: int) -> None:
    one = weight(rows, columns)
    for other in (gaussian(rows, columns, 3), one + 0.05 * gaussian(rows, columns, 4), one):
        for k in (1, 6):
            sides = [leading_directions(m, k) for m in (one, other)]
            found = overlap(sides[0], sides[1])
            assert found is not None and found.k == k
            angles = subspace_angles(sides[0].numpy(), sides[1].numpy())[::-1]
            assert found.angles == pytest.approx(list(angles), abs=1e-7)
            cosines = torch.tensor(found.angles).cos()
            assert found.overlap == pytest.approx(float(cosines.square().mean()), abs=1e-6)


def test_factors_have_the_directions_of_their_product() -> None:
    b, a = gaussian(50, 6), gaussian(6, 80, 1)
    for k in (2, 6, 9):
        found = factor_directions(b, a, k)
        assert found.shape == (50, min(k, 6))
        angles = subspace_angles(found.numpy(), left(b @ a)[:, : min(k, 6)].numpy())
        assert float(angles.max()) < 1e-5
    # Rank two behind four columns: two directions, not four.
    assert factor_directions(b[:, [0, 1, 0, 1]], a[:4], 4).shape == (50, 2)


def test_random_subspaces_overlap_by_k_over_d() -> None:
    shares = []
    for seed in range(60):
        sides = [torch.linalg.qr(gaussian(40, 5, 2 * seed + s).double()).Q for s in range(2)]
        found = overlap(sides[0], sides[1])
        assert found is not None and found.noise_overlap == 5 / 40
        shares.append(found.overlap)
    assert sum(shares) / len(shares) == pytest.approx(5 / 40, abs=0.01)


def test_the_smaller_subspace_decides_and_nothing_overlaps_with_nothing() -> None:
    basis = torch.eye(10, dtype=torch.float64)
    found = overlap(basis[:, :2], basis[:, 1:6])
    assert found is not None
    assert (found.k, found.overlap) == (2, 0.5)
    assert found.angles == pytest.approx((0.0, torch.pi / 2))
    nothing = update_directions(torch.zeros(10, 4), 3)
    assert nothing.shape == (10, 0) and overlap(basis, nothing) is None
    assert factor_directions(torch.zeros(10, 0), torch.zeros(0, 4), 3).shape == (10, 0)
    assert factor_directions(torch.zeros(10, 2), torch.ones(2, 4), 3).shape == (10, 0)
