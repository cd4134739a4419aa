"""Intervals and tests: closed forms, coverage, agreement with brute force and with scipy, bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures import stats
from diffprobe.measures.stats import (
    Interval,
    benjamini_hochberg,
    bootstrap,
    cluster_weights,
    equivalence,
    holm,
    mean_interval,
    minimum_detectable_difference,
    mover,
    non_inferiority,
    paired_difference,
    units_to_decide,
    wilson_interval,
)

TRIALS = 1000


def normal(*shape: int, seed: int = 0) -> NDArray[np.float64]:
    return rng.stream("test.stats", seed).standard_normal(shape)


def pairs(values: NDArray[np.float64], /, *, axis: int) -> NDArray[np.float64]:
    """The ratio of the means of two columns: a statistic of whole units."""
    return np.asarray(values[..., 0].mean(axis) / values[..., 1].mean(axis))


@pytest.mark.parametrize("n", [20, 50])
@pytest.mark.parametrize("law", ["normal", "exponential"])
def test_the_default_interval_of_a_mean_covers_at_its_level(n: int, law: str) -> None:
    generator = rng.stream(f"test.coverage.{law}", n)
    data = generator.standard_normal((TRIALS, n)) + 1 if law == "normal" else generator.exponential(size=(TRIALS, n))
    intervals = [bootstrap(row, replicates=1000, seed=trial) for trial, row in enumerate(data)]
    coverage = np.mean([interval.lo <= 1 <= interval.hi for interval in intervals])
    assert 0.93 <= coverage <= 0.97


def test_the_t_interval_is_scipys() -> None:
    x = normal(12)
    expected = ss.t.interval(0.9, 11, loc=x.mean(), scale=ss.sem(x))
    assert mean_interval(x, level=0.9)[1:] == pytest.approx(expected)


@pytest.mark.parametrize("method", ["bca", "percentile"])
def test_other_statistics_agree_with_scipy_for_many_units(method: Any) -> None:
    x = rng.stream("test.bca").exponential(size=400)
    ours = bootstrap(x, np.std, method=method, replicates=4000)
    scipys = ss.bootstrap((x,), np.std, method=method, n_resamples=4000, rng=rng.stream("test.scipy")).confidence_interval
    width = scipys.high - scipys.low
    assert ours.value == pytest.approx(x.std())
    assert ours[1:] == pytest.approx(tuple(scipys), abs=0.08 * width)


def test_whole_units_are_resampled() -> None:
    base = np.exp(normal(40))
    together = bootstrap(np.stack([2 * base, base], axis=1), pairs)
    assert together == pytest.approx((2, 2, 2))


def test_an_interval_is_a_function_of_its_seed() -> None:
    x = normal(30)
    assert bootstrap(x, seed=1) == bootstrap(x, seed=1) != bootstrap(x, seed=2)


def test_degenerate_samples() -> None:
    assert bootstrap([0.5] * 20) == (0.5, 0.5, 0.5)
    assert bootstrap([0.5] * 20, np.median) == (0.5, 0.5, 0.5)
    assert bootstrap([1.0, 2.0, 4.0]) == mean_interval([1.0, 2.0, 4.0])
    assert np.isfinite(bootstrap([0.0] * 19 + [1.0])).all()
    value, lo, hi = bootstrap([2.0])
    assert value == 2
    assert math.isnan(lo)
    assert math.isnan(hi)


def test_weights_are_resamples() -> None:
    weights = cluster_weights(25, 400, seed=3)
    assert weights.shape == (400, 25)
    assert (weights.sum(1) == 25).all()
    assert weights.var() == pytest.approx(1 - 1 / 25, rel=0.05)
    assert weights.mean(0) == pytest.approx(np.ones(25), abs=0.25)


def test_a_shifted_pair_is_found() -> None:
    a, noise = normal(60), 0.5 * normal(60, seed=1)
    found = paired_difference(a + 1 + noise, a)
    assert found.mean.value == pytest.approx(1 + noise.mean())
    assert found.effect_size == pytest.approx(found.mean.value / np.std(1 + noise, ddof=1))
    assert found.mean.lo < 1 < found.mean.hi
    assert found.shift.lo < 1 < found.shift.hi
    assert found.wilcoxon_p == pytest.approx(ss.wilcoxon(1 + noise, method="approx").pvalue, rel=1e-6)
    assert found.permutation_p == pytest.approx(1 / 10_001)
    assert (found.n, found.dropped) == (60, 0)


def test_pairs_with_a_nan_are_dropped_and_counted() -> None:
    a, b = normal(12), normal(12, seed=1)
    holes = a.copy()
    holes[[2, 5]] = math.nan
    keep = np.isfinite(holes)
    found = paired_difference(holes, b)
    assert found._replace(dropped=0) == paired_difference(a[keep], b[keep])
    assert (found.n, found.dropped) == (10, 2)


def test_few_pairs_are_flipped_exhaustively() -> None:
    d = normal(7) + 0.4
    flips = [abs(np.dot(signs, d)) for signs in itertools.product([-1, 1], repeat=7)]
    expected = np.mean(np.array(flips) >= abs(d.sum()) - 1e-12)
    assert paired_difference(d, np.zeros(7)).permutation_p == pytest.approx(expected)


def test_random_flips_approach_the_t_test() -> None:
    d = normal(80) + 0.25
    assert paired_difference(d, np.zeros(80)).permutation_p == pytest.approx(ss.ttest_1samp(d, 0).pvalue, abs=0.01)


@pytest.mark.parametrize("n", [6, 15, 70])
def test_the_shift_is_the_median_of_the_walsh_averages(n: int) -> None:
    x = normal(n)
    walsh = np.sort([(x[i] + x[j]) / 2 for i in range(n) for j in range(i, n)])
    value, lo, hi = stats.shift(x)
    assert value == pytest.approx(np.median(walsh), abs=1e-12)
    assert np.abs(walsh - lo).min() < 1e-12
    assert np.abs(walsh - hi).min() < 1e-12


@pytest.mark.parametrize("n", [10, 70])
def test_the_shifts_interval_inverts_the_signed_rank_test(n: int) -> None:
    x = normal(n)
    _, lo, hi = stats.shift(x)
    for inside, outside in ((lo + 1e-9, lo - 1e-9), (hi - 1e-9, hi + 1e-9)):
        assert paired_difference(x, np.full(n, inside), replicates=100).wilcoxon_p > 0.05 - 0.002
        assert paired_difference(x, np.full(n, outside), replicates=100).wilcoxon_p <= 0.05 + 0.002


def test_five_pairs_bound_no_shift_at_95_percent() -> None:
    assert stats.shift([1, 2, 3, 4, 5])[1:] == (-math.inf, math.inf)
    assert stats.shift([1, 2, 3, 4, 5, 6])[1:] == (1, 6)


def test_equal_pairs_differ_by_nothing() -> None:
    found = paired_difference([1.0] * 9, [1.0] * 9)
    assert found.mean == found.shift == (0, 0, 0)
    assert found.wilcoxon_p == found.permutation_p == 1
    assert math.isnan(found.effect_size)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, math.nan, 0.02]) == pytest.approx([0.5, math.nan, 0.04], nan_ok=True)
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([1.2])


def test_the_method_of_a_test_is_recorded() -> None:
    a = normal(51)
    exact, many, tied = (paired_difference(d, 0 * d, replicates=100) for d in (a[:50], a, np.round(a[:20], 1)))
    assert (exact.wilcoxon_method, many.wilcoxon_method, tied.wilcoxon_method) == ("exact", "normal", "normal")
    assert exact.permutation_method == "random flips"
    assert paired_difference(a[:6], 0 * a[:6], replicates=64).permutation_method == "all flips"
    assert paired_difference(a[:6], 0 * a[:6], replicates=63).permutation_method == "random flips"
    assert exact.effect == stats.paired_effect(a[:50])
    assert exact.effect.value == exact.effect_size


def test_the_smallest_p_of_all_pairs_on_one_side() -> None:
    """2^(1 - n) where the distribution is exact; the normal approximation stops at 3.9e-18 for 100 pairs, however clear they are."""

    def found(n: int, below: int = 0) -> stats.Difference:
        values = np.arange(1.0, n + 1)
        values[:below] *= -1
        return paired_difference(values, np.zeros(n), replicates=10)

    assert (found(10).wilcoxon_p, found(10).wilcoxon_method) == (2**-9, "exact")
    assert found(50).wilcoxon_p == pytest.approx(1.8e-15, rel=0.02)
    assert found(100).wilcoxon_p == pytest.approx(3.9e-18, rel=0.01)
    assert [found(n).wilcoxon_method for n in (50, 100)] == ["exact", "normal"]
    # p < 1e-16, as published for 100 prompts, needs a sum of the wrong signs' ranks of 109 or less: 1 + ... + 14 = 105.
    assert found(100, 14).wilcoxon_p < 1e-16 < found(100, 15).wilcoxon_p


def test_benjamini_and_hochberg_by_hand() -> None:
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    assert benjamini_hochberg([0.5, math.nan, 0.02]) == pytest.approx([0.5, math.nan, 0.04], nan_ok=True)
    assert np.isnan(benjamini_hochberg([math.nan])).all()
    assert benjamini_hochberg([]).shape == (0,)
    p = rng.stream("test.family").random(30) ** 2
    assert (benjamini_hochberg(p) <= holm(p)).all()
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        benjamini_hochberg([-0.1])


def test_non_inferiority_is_the_worse_limit_inside_the_margin() -> None:
    a, b = normal(30), normal(30) + 0.1 * normal(30, seed=1)
    found = non_inferiority(a, b, 0.1)
    assert found.p == pytest.approx(ss.ttest_1samp(a - b, -0.1, alternative="greater").pvalue)
    assert found.difference == mean_interval(a - b, level=0.9)
    for better, reach in (("higher", -found.difference.lo), ("lower", found.difference.hi)):
        assert reach > 0
        assert non_inferiority(a, b, reach * 1.001, better).non_inferior  # type: ignore[arg-type]
        assert not non_inferiority(a, b, reach * 0.999, better).non_inferior  # type: ignore[arg-type]
    assert non_inferiority(a, b, 0.1, "lower") == non_inferiority(-a, -b, 0.1)._replace(better="lower", difference=found.difference)
    assert non_inferiority(a + 1, b, 0).non_inferior
    assert not non_inferiority(a + 1, b, 0, "lower").non_inferior
    assert non_inferiority([1.0, 1.0], [1.0, 1.0], 0.1).non_inferior
    assert not non_inferiority([1.0, 1.0], [1.0, 1.0], 0).non_inferior


def test_a_share_has_wilsons_interval() -> None:
    assert wilson_interval(94, 100) == pytest.approx((0.94, 0.8752, 0.9722), abs=5e-5)
    for successes, n in ((0, 7), (7, 7), (3, 11)):
        scipys = ss.binomtest(successes, n).proportion_ci(0.9, method="wilson")
        assert wilson_interval(successes, n, level=0.9) == pytest.approx((successes / n, scipys.low, scipys.high), abs=1e-12)
    assert wilson_interval(0, 5).lo == 0
    assert wilson_interval(5, 5).hi == 1


def test_a_difference_of_two_intervals_by_hand() -> None:
    a, b = Interval(5, 2, 9), Interval(3, 1, 4)
    assert mover(a, b) == pytest.approx((2, 2 - math.hypot(3, 1), 2 + math.hypot(4, 2)))
    assert mover(a, b, 1.05) == pytest.approx((5 - 3.15, 1.85 - math.hypot(3, 1.05), 1.85 + math.hypot(4, 2.1)))
    assert mover(a, b, -2) == pytest.approx((11, 11 - math.hypot(3, 4), 11 + math.hypot(4, 2)))
    assert mover(a, b, 0) == a
    assert mover(a, Interval(3, -math.inf, math.inf))[1:] == (-math.inf, math.inf)
    assert math.isnan(mover(a, Interval(3, math.nan, math.nan)).lo)


def test_the_difference_of_two_t_intervals_is_about_welchs() -> None:
    a, b = 2 * normal(400), normal(300, seed=1)
    assert mover(mean_interval(a), mean_interval(b)) == pytest.approx(tuple(stats.welch(a, b)[0]), rel=0.01)


def test_the_units_that_would_decide() -> None:
    assert units_to_decide(Interval(1.0, 0.0, 3.0), 0.5, 20) == 80  # the lower half-width, 1, at a distance of 0.5
    assert units_to_decide(Interval(1.0, 0.0, 3.0), 2.0, 20) == 80  # the upper one, 2, at a distance of 1
    assert units_to_decide(Interval(1.0, 0.0, 3.0), 0.0, 20) == 21
    assert units_to_decide(Interval(1.0, 0.0, 3.0), 0.3, 20) == math.ceil(20 / 0.49)
    assert units_to_decide(Interval(1.0, 0.0, 3.0), 1.0, 20) is None
    assert units_to_decide(Interval(1.0, -math.inf, math.inf), 0.5, 20) is None
    assert units_to_decide(Interval(1.0, math.nan, math.nan), 0.5, 20) is None
    assert units_to_decide(Interval(math.nan, math.nan, math.nan), 0.5, 20) is None
    x = normal(40) + 0.15
    n = units_to_decide(mean_interval(x), 0, 40)
    assert n is not None
    half = [ss.norm.ppf(0.975) * x.std() / math.sqrt(k) for k in (n, n + 10)]
    assert half[1] < abs(x.mean()) < 1.1 * half[0]


def test_equivalence_is_the_interval_inside_the_margin() -> None:
    a, b = normal(30), normal(30) + 0.1 * normal(30, seed=1)
    found = equivalence(a, b, 0.1)
    one_sided = [ss.ttest_1samp(a - b, -0.1, alternative="greater").pvalue, ss.ttest_1samp(a - b, 0.1, alternative="less").pvalue]
    assert found.p == pytest.approx(max(one_sided))
    assert found.equivalent
    reach = max(abs(found.difference.lo), abs(found.difference.hi))
    assert equivalence(a, b, reach * 1.001).equivalent
    assert not equivalence(a, b, reach * 0.999).equivalent
    assert equivalence([1.0, 1.0], [1.0, 1.0], 0.1).equivalent


def test_the_detectable_difference_is_detected_at_its_power() -> None:
    delta = minimum_detectable_difference(2.0, 15)
    data = rng.stream("test.power").standard_normal((20_000, 15)) * 2 + delta
    assert np.mean(ss.ttest_1samp(data, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.01)
    assert minimum_detectable_difference(1.0, 10_000) == pytest.approx((1.95996 + 0.84162) / 100, rel=1e-3)
    assert np.isfinite(minimum_detectable_difference(1.0, 2))


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one unit"):
        bootstrap([])
    with pytest.raises(ValueError, match="1 values are not finite"):
        bootstrap([1.0, math.nan])
    with pytest.raises(ValueError, match="one number a resample"):
        bootstrap(np.ones((5, 2)), np.mean)
    with pytest.raises(ValueError, match="use 'bca'"):
        bootstrap([1.0, 2.0], np.median, method="studentised")
    with pytest.raises(ValueError, match="align them"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no pair"):
        paired_difference([math.nan], [1.0])
    with pytest.raises(ValueError, match="margin"):
        equivalence([1.0, 2.0], [1.0, 2.0], 0)
    for margin, better in ((-1, "higher"), (math.nan, "higher"), (1, "more")):
        with pytest.raises(ValueError, match="'higher' or 'lower'"):
            non_inferiority([1.0, 2.0], [1.0, 2.0], margin, better)  # type: ignore[arg-type]
    for successes, n in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError, match="0 <= successes <= n"):
            wilson_interval(successes, n)
    with pytest.raises(ValueError, match="n >= 2"):
        minimum_detectable_difference(1.0, 1)


@pytest.mark.parametrize(("n", "others", "value"), [(11, 3, 3.3), (12, 3, 0.7), (20, 1, 0.7)])
def test_rounding_of_a_resample_that_repeats_one_value_is_no_spread(n: int, others: int, value: float) -> None:
    values = np.full(n, 0.1)
    values[:others] = value
    found = bootstrap(values, seed=n)
    assert -value < found.lo < found.value < found.hi < 10 * value
