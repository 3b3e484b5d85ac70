"""Singular values against torch's own SVD in float64, noise against sampling and the paper."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from laura.analysis import spectra
from laura.analysis.spectra import ENERGIES, Spectrum, noise_rank, product_spectrum, spectrum
from laura.results.errors import LauraError, ModelError, ShapeError


def with_values(values: torch.Tensor, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """A random float32 matrix with about these singular values."""
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    left, right = (
        torch.linalg.qr(torch.randn(n, count, generator=generator, dtype=torch.float64)).Q
        for n in (rows, columns)
    )
    return ((left * values.double()) @ right.T).float()


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Independent standard normal entries."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


CASES = {
    "square noise": gaussian(300, 300),
    "wide noise": gaussian(128, 344),
    "tall noise": gaussian(344, 128),
    "one row": gaussian(1, 50),
    "power law": with_values(torch.arange(1, 201) ** -1.0, 200, 260),
    "six decades": with_values(torch.logspace(0, -6, 256), 256, 256),
    "a large first one": with_values(torch.cat([torch.tensor([300.0]), torch.rand(199)]), 200, 200),
    "rank eight": gaussian(256, 8) @ gaussian(8, 320, 1),
    "noise and an outlier": gaussian(256, 256) + 0.5,
    "tiny": 1e-25 * gaussian(90, 120),
    "huge": 1e25 * gaussian(120, 90),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_svd_in_double_precision(name: str) -> None:
    matrix = CASES[name]
    values = torch.linalg.svdvals(matrix.double())
    found = spectrum(matrix)
    energy = values.square().cumsum(0) / values.square().sum()
    for share in ENERGIES:
        assert found.rank(share) == int((energy < share).sum()) + 1, share
    shares = values[values > 0] / values.sum()
    entropy = float(-(shares * shares.log()).sum())
    assert found.effective_rank == pytest.approx(math.exp(entropy), rel=1e-3)
    assert found.frobenius == pytest.approx(float(torch.linalg.norm(matrix.double())), rel=1e-5)
    assert found.spectral == pytest.approx(float(values[0]), rel=1e-5)
    stable = float(values.square().sum() / values[0] ** 2)
    assert found.stable_rank == pytest.approx(stable, rel=3e-5)


def test_double_precision_decides_where_single_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tail of a low-rank matrix, and a threshold that a sum of energies hits."""
    asked: list[int] = []
    real = spectra.gram

    def counted(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        asked.extend([1] if dtype == torch.float64 else [])
        return real(matrix, dtype)

    monkeypatch.setattr(spectra, "gram", counted)
    spectrum(gaussian(256, 256))
    assert not asked
    spectrum(gaussian(256, 8) @ gaussian(8, 256, 1))
    assert len(asked) == 1
    # Ninety of a hundred equal directions hold 90 %, but for rounding.
    near = spectrum(with_values(torch.ones(100), 100, 130))
    assert len(asked) == 2 and near.rank(0.9) in (90, 91)
    # What single precision alone would tell of the first: a fifth more than there is.
    wrong = torch.linalg.eigvalsh(CASES["rank eight"] @ CASES["rank eight"].T).clamp(min=0)
    naive = Spectrum(wrong.flip(0).double().sqrt()).effective_rank
    assert naive > 1.02 * spectrum(CASES["rank eight"]).effective_rank


def test_the_estimated_error_of_single_precision_is_generous() -> None:
    """Float32's eigenvalues against float64's: at least four times better than assumed."""
    judged = []
    for name, matrix in CASES.items():
        if not 1e-9 < float(matrix.abs().max()) < 1e9 or min(matrix.shape) == 1:
            continue
        small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        single, double = (
            torch.linalg.eigvalsh(spectra.gram(small, dtype)).flip(0).double().clamp(min=0)
            for dtype in (torch.float32, torch.float64)
        )
        in_sums, in_entropy = spectra._uncertainty(single)
        off = (single.cumsum(0) / single.sum() - double.cumsum(0) / double.sum()).abs().max()
        assert float(off) < in_sums / 4, name
        entropies = [spectra._entropy(squares.sqrt()) for squares in (single, double)]
        assert abs(entropies[0] - entropies[1]) < in_entropy / 4, name
        judged.append(spectra._good_enough(single))
    assert True in judged and False in judged


def test_a_zero_update_has_no_rank_and_no_norm() -> None:
    nothing = {"50": 0, "90": 0, "99": 0}
    for found in (
        spectrum(torch.zeros(5, 7)),
        spectrum(torch.zeros(0, 7)),
        product_spectrum(torch.zeros(5, 2), torch.ones(2, 7)),
        product_spectrum(torch.zeros(5, 0), torch.zeros(0, 7)),
    ):
        facts = found.facts()
        assert facts.pop("rank") == nothing
        assert set(facts.values()) == {0.0}


def test_energy_on_a_small_example() -> None:
    found = spectrum(torch.tensor([[4.0, 0.0, 0.0], [0.0, 3.0, 0.0]]))
    assert [found.rank(e) for e in (0.6, 0.64, 0.65, 0.9, 1.0)] == [1, 1, 2, 2, 2]
    assert found.stable_rank == pytest.approx(25 / 16)
    assert found.effective_rank == pytest.approx(
        math.exp(-(4 / 7) * math.log(4 / 7) - (3 / 7) * math.log(3 / 7))
    )
    for energy in (0.0, 1.1, 90.0):
        with pytest.raises(ValueError, match="energy must be in"):
            found.rank(energy)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_factors_give_what_the_product_gives(rank: int) -> None:
    b, a = gaussian(90, rank), gaussian(rank, 150, 1)
    found = product_spectrum(b, a)
    values = torch.linalg.svdvals(b.double() @ a.double())[:rank]
    assert torch.allclose(found.values_K, values, rtol=1e-12)
    dense = spectrum(b @ a)
    assert dense.facts()["rank"] == found.facts()["rank"]
    assert dense.effective_rank == pytest.approx(found.effective_rank, rel=1e-3)
    assert found.effective_rank <= rank + 1e-9


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_or_no_matrix_is_refused_by_name(bad: float) -> None:
    matrix = gaussian(6, 8)
    matrix[2, 3] = bad
    with pytest.raises(ModelError, match="the update of q_proj is not finite") as caught:
        spectrum(matrix, "the update of q_proj")
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, LauraError)
    with pytest.raises(ModelError, match="not finite"):
        product_spectrum(matrix, gaussian(8, 3))
    with pytest.raises(ShapeError, match="q_proj has 3 dimensions, expected 2"):
        spectrum(torch.zeros(2, 3, 4), "q_proj")
    with pytest.raises(ShapeError, match=r"B is \(5, 2\), A is \(3, 4\)"):
        product_spectrum(torch.ones(5, 2), torch.ones(3, 4))


@pytest.mark.parametrize(
    ("rows", "columns", "share", "rank"), [(4096, 4096, 0.51, 2089), (4096, 11008, 0.71, 2917)]
)
def test_noise_of_llama_2_7b_shapes(rows: int, columns: int, share: float, rank: int) -> None:
    """Square 51 %, the MLP's shape 71 %: a difference that training has no part in."""
    assert noise_rank(rows, columns, 0.9) == rank
    assert rank / rows == pytest.approx(share, abs=0.005)
    assert noise_rank(columns, rows, 0.9) == rank


@pytest.mark.parametrize("ratio", [1.0, 4096 / 11008, 0.1, 1e-3])
def test_noise_as_the_density_integrated(ratio: float) -> None:
    """The law of Marchenko and Pastur by numerical quadrature, without our closed forms."""
    low, high = (1 - ratio**0.5) ** 2, (1 + ratio**0.5) ** 2

    def density(x: float) -> float:
        return math.sqrt(max(0.0, (high - x) * (x - low))) / (2 * math.pi * ratio * x)

    for energy in ENERGIES:
        edge = brentq(
            lambda t, e=energy: quad(lambda x: x * density(x), t, high)[0] - e, low + 1e-9, high
        )
        share = quad(density, edge, high)[0]
        assert noise_rank(10**6, round(10**6 / ratio), energy) == pytest.approx(share * 1e6, abs=20)


def test_ranks_equal_those_of_svdvals_on_many_matrices() -> None:
    """Where float32's singular values themselves are sure, which is nearly everywhere."""
    compared = 0
    for seed in range(40):
        rows, columns = 40 + 3 * seed, 160 - 2 * seed
        matrix = gaussian(rows, columns, seed) * torch.logspace(0, -seed / 10, columns)
        values = torch.linalg.svdvals(matrix).double()
        energy = values.square().cumsum(0) / values.square().sum()
        for share in ENERGIES:
            if float((energy - share).abs().min()) > 1e-6:
                compared += 1
                assert spectrum(matrix).rank(share) == int((energy < share).sum()) + 1
    assert compared > 110


@pytest.mark.parametrize(("rows", "columns"), [(500, 500), (300, 800), (96, 256), (64, 1000)])
def test_noise_as_sampled(rows: int, columns: int) -> None:
    for energy in ENERGIES:
        sampled = [spectrum(gaussian(rows, columns, seed)).rank(energy) for seed in range(5)]
        assert noise_rank(rows, columns, energy) == pytest.approx(sum(sampled) / 5, abs=1.5)
