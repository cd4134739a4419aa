"""Independent samples: agreement with scipy and with brute force, published facts, edge cases, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.stats.effects import cliffs_delta, hedges_g, paired_effect
from diffprobe.measures.stats.samples import independent_difference, rank_correlation, welch


def sample(n: int, seed: int = 0) -> NDArray[np.float64]:
    return rng.stream("test.samples", seed).standard_normal(n)


def test_the_tests_are_scipys() -> None:
    a, b = 2 * sample(25) + 0.7, sample(40, 1)
    found = independent_difference(a, b, level=0.9)
    expected = ss.ttest_ind(a, b, equal_var=False)
    assert found.welch_p == pytest.approx(expected.pvalue)
    assert found.mean == pytest.approx((a.mean() - b.mean(), *expected.confidence_interval(0.9)))
    assert (found.ks, found.ks_p) == pytest.approx(tuple(ss.ks_2samp(a, b, method="exact"))[:2])
    assert found.n == (25, 40)
    assert found.ks_method == "exact"
    assert independent_difference(sample(600), sample(600, 1)).ks_method == "asymptotic"


def test_the_distance_that_p_values_as_published_need() -> None:
    """Two sets of 100 prompts reach p < 1e-16 only where their distribution functions are 0.60 apart."""

    def p(apart: int) -> float:
        return independent_difference(np.arange(100.0), np.arange(100.0) + apart).ks_p

    assert independent_difference(np.arange(100.0), np.arange(100.0) + 60).ks == pytest.approx(0.6)
    assert p(60) < 1e-16 < p(59)
    assert p(32) == pytest.approx(7e-5, rel=0.3)


def test_effects_by_hand() -> None:
    a, b = sample(8) + 1, sample(12, 1)
    pooled = math.sqrt((7 * a.var(ddof=1) + 11 * b.var(ddof=1)) / 18)
    assert hedges_g(a, b).value == pytest.approx((a.mean() - b.mean()) / pooled * (1 - 3 / (4 * 18 - 1)), rel=1e-3)
    assert cliffs_delta(a, b).value == pytest.approx(np.mean(np.sign(a[:, None] - b)))
    assert cliffs_delta([1, 2, 2, 5], [2, 2, 3, 0]).value == pytest.approx((3 * -1 + 1 + 2 * (1 - 1) + 4) / 16)
    assert paired_effect(a).value == pytest.approx(a.mean() / a.std(ddof=1))
    u = ss.mannwhitneyu(a, b).statistic
    assert cliffs_delta(a, b).value == pytest.approx(2 * u / 96 - 1)


def test_hedges_g_is_unbiased() -> None:
    generator = rng.stream("test.hedges")
    found = [hedges_g(generator.standard_normal(5) + 1, generator.standard_normal(6)).value for _ in range(4000)]
    assert np.mean(found) == pytest.approx(1, abs=0.04)


def test_swapping_the_samples_turns_the_sign() -> None:
    a, b = sample(15) + 0.4, np.exp(sample(22, 1))
    for measure in (hedges_g, cliffs_delta, lambda x, y: welch(x, y)[0]):
        value, lo, hi = measure(a, b)
        assert measure(b, a) == pytest.approx((-value, -hi, -lo))
    value, lo, hi = paired_effect(a)
    assert paired_effect(-a) == pytest.approx((-value, -hi, -lo))


def test_effects_have_no_unit_and_ranks_no_scale() -> None:
    a, b = sample(15) + 0.4, sample(22, 1)
    assert hedges_g(3 + 10 * a, 3 + 10 * b) == pytest.approx(tuple(hedges_g(a, b)))
    assert paired_effect(10 * a) == pytest.approx(tuple(paired_effect(a)))
    assert cliffs_delta(np.exp(a), np.exp(b)) == pytest.approx(tuple(cliffs_delta(a, b)))


def test_samples_that_do_not_overlap_keep_a_width() -> None:
    found = cliffs_delta(np.arange(10.0) + 100, np.arange(20.0))
    assert found.value == found.hi == 1
    assert 0.1 < found.lo < 0.6
    assert cliffs_delta([1.0] * 9, [1.0] * 9).value == 0


def test_degenerate_samples() -> None:
    nothing = (math.nan, math.nan, math.nan)
    assert hedges_g([1.0, 1.0], [2.0, 2.0]) == pytest.approx(nothing, nan_ok=True)
    assert hedges_g([1.0], [2.0, 3.0]) == pytest.approx(nothing, nan_ok=True)
    assert paired_effect([1.0, 1.0]) == pytest.approx(nothing, nan_ok=True)
    assert paired_effect([]) == pytest.approx(nothing, nan_ok=True)
    assert cliffs_delta([1.0], [0.0, 0.5]) == pytest.approx((1, math.nan, math.nan), nan_ok=True)
    assert welch([1.0, 1.0], [2.0, 2.0]) == ((-1, -1, -1), 0)
    assert welch([1.0, 1.0], [1.0, 1.0]) == ((0, 0, 0), 1)
    assert math.isnan(welch([1.0], [2.0, 3.0])[1])
    assert np.isfinite(hedges_g([1.0, 2.0], [2.0, 2.5])).all()


def test_missing_values_are_dropped_and_counted() -> None:
    a, b = sample(9), sample(7, 1)
    found = independent_difference([*a, math.nan], [math.nan, *b, math.nan])
    assert found == independent_difference(a, b)._replace(dropped=(1, 2))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="1 infinite"):
        independent_difference([1.0, math.inf], [1.0])
    with pytest.raises(ValueError, match="no value: 1 of 1"):
        independent_difference([math.nan], [1.0])
    with pytest.raises(ValueError, match=r"one sequence \[n\]"):
        independent_difference([[1.0]], [1.0])


def test_rank_correlations_are_spearmans() -> None:
    x = sample(30)
    y = x + sample(30, 1)
    found = rank_correlation(x, y, level=0.9)
    assert found.value == pytest.approx(ss.spearmanr(x, y).statistic)
    half = ss.norm.ppf(0.95) * math.sqrt((1 + found.value**2 / 2) / 27)
    assert (math.atanh(found.lo), math.atanh(found.hi)) == pytest.approx((math.atanh(found.value) - half, math.atanh(found.value) + half))
    tied = rank_correlation(np.round(x), np.round(y))
    assert tied.value == pytest.approx(ss.spearmanr(np.round(x), np.round(y)).statistic)
    assert rank_correlation(np.exp(x), y**3, level=0.9) == pytest.approx(tuple(found))
    assert rank_correlation(y, -x, level=0.9) == pytest.approx((-found.value, -found.hi, -found.lo))


def test_perfect_order_keeps_a_width() -> None:
    few, many = rank_correlation(range(4), range(4)), rank_correlation(range(20), np.arange(20) ** 3)
    assert few.value == few.hi == many.value == many.hi == 1
    assert few.lo < 0
    assert 0.98 < many.lo < 1
    assert rank_correlation(range(20), range(0, -20, -1)) == (-1, -1, -many.lo)
    one_swap = rank_correlation(range(20), [1, 0, *range(2, 20)])
    assert one_swap.value == pytest.approx(1 - 12 / (20 * 399))
    assert one_swap.lo < many.lo


def test_degenerate_rank_correlations() -> None:
    for x, y in (([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0], [2.0]), ([], []), (range(9), [0.1] * 9)):
        assert all(math.isnan(part) for part in rank_correlation(x, y))
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == pytest.approx((0.5, math.nan, math.nan), nan_ok=True)
    for left, right in (([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0]), ([[1.0]], [[1.0]])):
        with pytest.raises(ValueError, match="leave out the pairs where one is nan"):
            rank_correlation(left, right)
