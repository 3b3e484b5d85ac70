"""The judge's arithmetic against textbook formulae, scipy and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as few
from hypothesis import strategies as st
from scipy import stats

from laura.results.statistics import (
    Contrast,
    TooThin,
    Variance,
    crossed,
    holm,
    mean_contrast,
    over_runs,
)
from laura.study.claims.settings import FORGETTING, LEARNING, Scores, combined
from laura.study.claims.verdicts import Statement, would_decide
from tests.study.fabricated import FULL, PAIR, setting


def anova(table: np.ndarray) -> tuple[float, float, float]:
    """Mean squares of seeds, items and the residual of a two-way table without replication.

    Written with loops over cells, as in a textbook (Snedecor and Cochran 1989, chapter 14).
    """
    k, n = table.shape
    grand = sum(table[s, i] for s in range(k) for i in range(n)) / (k * n)
    rows = [sum(table[s, i] for i in range(n)) / n for s in range(k)]
    columns = [sum(table[s, i] for s in range(k)) / k for i in range(n)]
    seeds = n * sum((row - grand) ** 2 for row in rows) / (k - 1)
    items = k * sum((column - grand) ** 2 for column in columns) / (n - 1)
    rest = sum(
        (table[s, i] - rows[s] - columns[i] + grand) ** 2 for s in range(k) for i in range(n)
    ) / ((k - 1) * (n - 1))
    return seeds, items, rest


@pytest.mark.parametrize(("k", "n"), [(2, 7), (3, 40), (5, 11)])
def test_the_parts_of_the_error_are_those_of_a_two_way_analysis(k: int, n: int) -> None:
    draw = np.random.default_rng(k)
    table = draw.normal(size=(k, 1)) + 3 * draw.normal(size=n) + draw.normal(size=(k, n)) + 0.5
    seeds, items, rest = anova(table)
    found = crossed([table], [1.0])
    parts = {part.source: part for part in found.parts}
    # E[MS_seeds] = n var_u + var_e and E[MS_items] = k var_v + var_e.
    assert parts["seeds"].variance == pytest.approx(seeds / (k * n))
    assert parts["items"].variance == pytest.approx((items - rest) / (k * n))
    assert (parts["seeds"].freedom, parts["items"].freedom) == (k - 1, math.inf)
    assert found.value == pytest.approx(table.mean())
    assert (found.n, found.seeds) == (n, k)
    # All of it: var_u / k + var_v / n + var_e / (k n).
    whole = (seeds - rest) / n / k + (items - rest) / k / n + rest / (k * n)
    assert found.stderr**2 == pytest.approx(whole)


def test_tasks_are_independent_over_items_and_share_their_seeds() -> None:
    draw = np.random.default_rng(0)
    tables = [draw.normal(size=(3, 50)) + 4 * draw.normal(size=50), draw.normal(size=(3, 8)) * 9]
    found, each = crossed(tables, [1, 1]), [crossed([table], [1]) for table in tables]
    by_seed = sum(table.mean(axis=1) for table in tables)
    parts = {part.source: part.variance for part in found.parts}
    assert parts["seeds"] == pytest.approx(by_seed.var(ddof=1) / 3)
    raw = [(anova(table)[1] - anova(table)[2]) / table.size for table in tables]
    assert parts["items"] == pytest.approx(max(0.0, sum(raw)))
    assert found.value == pytest.approx(sum(one.value for one in each)) and found.n == 58


def test_where_nothing_varies_over_items_it_is_the_paired_t_of_the_seeds() -> None:
    values = np.array([0.3, 0.1, 0.45, 0.2])
    found = crossed([np.repeat(values[:, None], 60, axis=1)], [0.0])
    wanted = stats.ttest_1samp(values, 0.05)
    assert found.interval() == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert 2 * found.chance_below(0.05) == pytest.approx(wanted.pvalue, rel=2e-3)
    again = over_runs(values.tolist(), 60)
    assert again.interval(0.9) == pytest.approx(found.interval(0.9))


def test_items_that_all_came_out_alike_get_the_rule_of_three() -> None:
    n = 60
    found = crossed([np.zeros((3, n))], [1.0])
    # With 0 of n the 95 % bound of a share is 3 / n (Hanley and Lippman-Hand 1983).
    assert found.interval()[1] == pytest.approx(3 / n, rel=0.03)
    assert crossed([np.zeros((3, n))], [0.0]).stderr == 0
    varied = np.zeros((3, n))
    varied[:, 0] = 1
    assert crossed([varied], [1.0]).parts[1].variance == pytest.approx(anova(varied)[1] / 3 / n)


@few(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(1e-6, 10), st.sampled_from([1, 2, 4, 9, math.inf])),
             min_size=1, max_size=3),
    st.floats(0.8, 0.999),
)  # fmt: skip
def test_the_interval_is_banerjees_and_p_at_its_end_is_half_of_the_rest(
    sources: list[tuple[float, float]], level: float
) -> None:
    parts = tuple(Variance(f"s{i}", v, f) for i, (v, f) in enumerate(sources))
    found = Contrast(1.0, parts, 100, 3)
    reach = math.sqrt(sum(stats.t.ppf((1 + level) / 2, f) ** 2 * v for v, f in sources))
    low, high = found.interval(level)
    assert (low, high) == pytest.approx((1 - reach, 1 + reach), rel=1e-8)
    assert found.chance_below(low) == pytest.approx((1 - level) / 2, rel=5e-3)
    assert found.chance_below(high) == pytest.approx((1 + level) / 2, rel=5e-3)
    # The interval excludes a value exactly where a one-sided p is below.
    assert found.chance_below(low - 0.01 * reach) < (1 - level) / 2
    assert found.chance_below(low + 0.01 * reach) > (1 - level) / 2
    turned = found.scaled(-2.0)
    assert turned.interval(level) == pytest.approx((-2 * high, -2 * low))
    assert turned.chance_below(-2.0) == pytest.approx(0.5)


def test_p_at_an_intervals_end_is_two_and_a_half_percent() -> None:
    for freedom in (2.0, 4.0, math.inf):
        found = Contrast(0.2, (Variance("seeds", 0.01, freedom), Variance("items", 0.02, math.inf)),
                         100, 3)  # fmt: skip
        assert found.chance_below(found.interval()[0]) == pytest.approx(0.025, rel=2e-3)


def test_intervals_cover_however_the_variance_is_divided() -> None:
    """3 seeds, the worst case: Satterthwaite's rule falls short of the level here."""
    draw = np.random.default_rng(1)
    studies = 1500
    for seeds_share in (0.0, 0.3, 0.6, 1.0):
        inside = 0
        for _ in range(studies):
            table = (math.sqrt(seeds_share) * draw.normal(size=(3, 1))
                     + math.sqrt((1 - seeds_share) * 50) * draw.normal(size=50)
                     + draw.normal(size=(3, 50)))  # fmt: skip
            low, high = crossed([table], [0.0]).interval()
            inside += low <= 0 <= high
        assert inside >= stats.binom.ppf(0.001, studies, 0.95), seeds_share


def test_too_little_has_no_error() -> None:
    for shape in ((1, 60), (3, 1)):
        with pytest.raises(TooThin, match="two seeds and two items"):
            crossed([np.zeros(shape)], [1])
    with pytest.raises(TooThin, match="2 seeds"):
        over_runs([0.1, 0.2], 9)


def test_a_mean_over_settings_adds_seeds_as_squares_and_items_whole() -> None:
    parts = (Variance("seeds", 0.04, 2), Variance("items", 0.09, math.inf))
    one, two = Contrast(1.0, parts, 100, 3), Contrast(3.0, parts, 120, 5)
    both = mean_contrast([one, two])
    assert (both.value, both.n, both.seeds) == (2, 220, 3)
    assert both.stderr**2 == pytest.approx(0.02 + 0.09)
    shared = mean_contrast([one, two], shared_runs=True)
    assert shared.stderr**2 == pytest.approx(0.04 + 0.09)
    # Independent seeds pool their degrees of freedom, runs in common do not.
    reach = math.sqrt(stats.t.ppf(0.975, 4) ** 2 * 0.02 + stats.norm.ppf(0.975) ** 2 * 0.09)
    assert both.reach() == pytest.approx(reach, rel=1e-6)
    reach = math.sqrt(stats.t.ppf(0.975, 2) ** 2 * 0.04 + stats.norm.ppf(0.975) ** 2 * 0.09)
    assert shared.reach() == pytest.approx(reach, rel=1e-6)


def test_holm_is_the_textbooks() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
    for ps in np.random.default_rng(0).random((20, 6)) ** 3:
        # Step down, as Holm describes it: reject while p_(i) <= a / (m - i + 1).
        for alpha in (0.01, 0.05, 0.2):
            rejected: set[int] = set()
            for rank, place in enumerate(np.argsort(ps)):
                if ps[place] > alpha / (6 - rank):
                    break
                rejected.add(int(place))
            assert {i for i, p in enumerate(holm(ps.tolist())) if p <= alpha} == rejected


def test_what_would_decide_does_decide() -> None:
    parts = (Variance("seeds", 0.0009, 2), Variance("items", 0.0001, math.inf))
    one = Statement((), "x", Contrast(0.05, parts, 300, 3), "share")
    told = would_decide(one, 4)
    seeds = int(told.split()[1])
    level = 1 - 0.05 / 4
    assert told == f"about {seeds} seeds instead of 3 would decide it"
    assert one.contrast.with_seeds(seeds).interval(level)[0] > 0
    assert one.contrast.with_seeds(seeds - 1).interval(level)[0] <= 0
    near = Statement((), "x", Contrast(1e-6, one.contrast.parts, 300, 3), "share")
    assert would_decide(near, 4).startswith("neither 50 seeds nor 8 times the items")


def test_the_same_is_two_one_sided_tests_and_never_a_missed_difference() -> None:
    def within(value: float, error: float) -> Statement:
        contrast = Contrast(value, (Variance("seeds", error**2, 9),), 100, 10)
        return Statement((), "x", contrast, "share", -0.02, 0.02)

    for value in (-0.015, 0.0, 0.01, 0.05):
        for error in (0.001, 0.005, 0.02):
            one = within(value, error)
            below = stats.t.sf((value + 0.02) / error, 9)
            above = stats.t.cdf((value - 0.02) / error, 9)
            assert one.p_for == pytest.approx(max(below, above), rel=2e-3, abs=1e-12)
    assert within(0.0, 0.02).p_for > 0.1 and within(0.0, 0.02).p_against > 0.5
    assert within(0.05, 0.005).p_against < 1e-3


# ----- from a study -----


def test_a_difference_of_arms_is_paired_by_seed_and_by_item() -> None:
    made = setting({"full": 0.7, "lora": 0.5}, {"full": 0.5, "lora": 0.6}, items=80)
    full, lora = made.full(), made.lora()
    found = made.difference(full, lora, FORGETTING, 4)
    sides = [made.arm_scores(arm, 4, FORGETTING).tables for arm in (full, lora)]
    tables = [(sides[0][task] - sides[1][task]) / 2 for task in ("hellaswag", "winogrande")]
    assert found.value == pytest.approx(sum(table.mean() for table in tables))
    by_seed = sum(table.mean(axis=1) for table in tables)
    raw = sum((anova(table)[1] - anova(table)[2]) / table.size for table in tables)
    assert found.stderr**2 == pytest.approx(by_seed.var(ddof=1) / 3 + max(0.0, raw))
    assert (found.n, found.seeds) == (160, 3)
    # What was drawn as right and wrong is what the points' scores are.
    for place, point in enumerate(made.points(full, 4).values()):
        told = point.results["hellaswag"].metrics["acc_norm"].value
        assert told == pytest.approx(sides[0]["hellaswag"][place].mean())


def test_the_tuned_value_of_a_seed_is_at_that_seeds_own_best_rate() -> None:
    flat = dict.fromkeys(PAIR, (0.3, 0.3, 0.3))
    made = setting({"full": 0.7, "lora": 0.5}, validation=flat, own={"seeds": list(range(6))})
    for arm in made.arms:
        best = {
            seed: min(
                (point.validation, point.learning_rate)
                for point in made.evidence.points
                if (point.arm, point.seed, point.budget) == (arm.name, seed, 4)
            )[1]
            for seed in range(6)
        }
        assert len(set(best.values())) > 1, "all seeds chose alike, so nothing was tested"
        for budget in (1, 2, 4):
            found = {s: p.learning_rate for s, p in made.points(arm, budget).items()}
            assert found == best


def test_losses_weigh_documents_by_their_tokens() -> None:
    """Cochran 1977, section 6.4: the items' values are residuals of the ratio about it."""
    from laura.results.task_result import TaskResult, summarise
    from laura.study.claims.settings import linearised

    draw = np.random.default_rng(0)
    tokens = draw.integers(3, 40, 60)
    nats = draw.uniform(0.5, 3, 60) * tokens
    items = [{"index": i, "nats": float(n), "tokens": int(t)}
             for i, (n, t) in enumerate(zip(nats, tokens, strict=True))]  # fmt: skip
    metric = summarise(items, "nats_per_token", False)
    result = TaskResult("target_loss", "1", "m", 60, {"nats_per_token": metric}, items)
    values = np.array(list(linearised(result, "nats_per_token").values()))
    assert values.mean() == pytest.approx(nats.sum() / tokens.sum())
    residuals = (nats - nats.sum() / tokens.sum() * tokens) / tokens.mean()
    assert values.std(ddof=1) == pytest.approx(residuals.std(ddof=1))


def test_items_that_differ_are_refused() -> None:
    made = setting(arms={"full": FULL})
    scores = made.base_scores(LEARNING)
    other = Scores(scores.tables, {"humaneval": tuple(range(1, 151))}, scores.bounded, scores.seeds)
    with pytest.raises(TooThin, match="different items"):
        combined([(1.0, scores, ""), (-1.0, other, "")])
    # In two places they are independent samples, which need no pairing.
    assert combined([(1.0, scores, "a"), (-1.0, other, "b")]).n == 300
