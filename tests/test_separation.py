"""How well a number tells two sets apart: known areas, what must not change them, and an independent count of all comparisons."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.stats import auroc, paired_auroc
from diffprobe.measures.stats.separation import LEAST, PairedSeparation, _expected, _ranked

Array = NDArray[np.float64]


def samples(m: int, n: int, shift: float = 1.0, seed: int = 0) -> tuple[Array, Array]:
    generator = rng.stream("test.separation", seed)
    return generator.standard_normal(m), generator.standard_normal(n) + shift


def two(m: int, n: int, shifts: tuple[float, float], rho: float = 0.5, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """Two measures of the same units: inside and outside of a, then of b."""
    generator = rng.stream("test.separation.two", seed)
    x, y = generator.standard_normal((2, m)), generator.standard_normal((2, n))
    mixed = [rho * one[0] + math.sqrt(1 - rho**2) * one[1] for one in (x, y)]
    return x[0], y[0] + shifts[0], mixed[0], mixed[1] + shifts[1]


@pytest.mark.parametrize(
    ("inside", "outside", "area"),
    [
        ([1, 2], [3, 4], 1.0),
        ([3, 4], [1, 2], 0.0),
        ([1, 3], [2, 4], 0.75),
        ([1, 1], [1, 1], 0.5),
        ([0, 1], [1, 2], 0.875),  # one of four comparisons is a tie
        ([-math.inf, 0], [1, math.inf], 1.0),
    ],
)
def test_areas_that_are_counted_by_hand(inside: list[float], outside: list[float], area: float) -> None:
    assert auroc(inside, outside).value == area


def test_the_area_of_normal_samples_is_that_of_theory() -> None:
    found = auroc(*samples(20_000, 20_000, 1.5))
    truth = float(ss.norm.cdf(1.5 / math.sqrt(2)))
    assert found.value == pytest.approx(truth, abs=0.006)
    assert found.lo < truth < found.hi
    assert found.hi - found.lo < 0.01


def test_it_is_the_mann_whitney_statistic_and_the_ranks_are_those_of_all_comparisons() -> None:
    x, y = (np.round(values, 1) for values in samples(40, 55))  # with ties
    kernel = (y > x[:, None]) + 0.5 * (y == x[:, None])
    found = _ranked(x, y)
    assert found.share == pytest.approx(float(ss.mannwhitneyu(y, x).statistic) / (40 * 55), abs=1e-14)
    np.testing.assert_allclose(found.inside, kernel.mean(1), atol=1e-14)
    np.testing.assert_allclose(found.outside, kernel.mean(0), atol=1e-14)
    left = kernel - kernel.mean(1, keepdims=True) - kernel.mean(0) + kernel.mean()
    assert found.interaction == pytest.approx(float((left**2).sum()) / (39 * 54), rel=1e-10)


def test_the_variance_is_delongs_freed_of_its_bias() -> None:
    """Over many samples it has the mean of the area's own variance, which DeLong's exceeds."""
    areas, plain, free = [], [], []
    for seed in range(3000):
        found = _ranked(*samples(8, 8, 0.7, seed))
        delong = float(found.inside.var(ddof=1) / 8 + found.outside.var(ddof=1) / 8)
        areas.append(found.share)
        plain.append(delong)
        free.append(delong - found.interaction / 64)
    truth = float(np.var(areas, ddof=1))
    assert np.mean(free) == pytest.approx(truth, rel=0.06)
    assert np.mean(plain) > 1.06 * np.mean(free)


@pytest.mark.parametrize("shift", [0.0, 0.8, 2.5, 9.0])
def test_sides_order_and_scale_do_not_matter(shift: float) -> None:
    x, y = samples(15, 40, shift)
    found = auroc(x, y)
    np.testing.assert_allclose(auroc(x[::-1], y[::-1]), found, atol=1e-12)
    np.testing.assert_allclose(auroc(np.exp(x), np.exp(y)), found, atol=1e-12)
    other = auroc(-x, -y)
    np.testing.assert_allclose((1 - other.value, 1 - other.hi, 1 - other.lo), found, atol=1e-9)
    swapped = auroc(y, x)
    np.testing.assert_allclose((1 - swapped.value, 1 - swapped.hi, 1 - swapped.lo), found, atol=1e-9)


def test_perfect_separation_has_a_width_that_shrinks_with_the_samples() -> None:
    lows = []
    for n in (3, 12, 50, 1000):
        found = auroc(np.arange(n), np.arange(n) + n)
        assert (found.value, found.hi) == (1.0, 1.0)
        lows.append(found.lo)
        quantile = float(ss.t.ppf(0.975, 2 * (n - 1)))
        assert (1 - found.lo) ** 2 == pytest.approx(quantile**2 * _expected(found.lo, n, n), rel=1e-6)  # the score equation itself
    assert lows == sorted(lows)
    assert 0.3 < lows[0] < 0.4
    assert 0.78 < lows[1] < 0.85
    assert lows[3] > 0.995


def test_limits_keep_within_0_and_1_and_hold_the_area() -> None:
    for seed in range(200):
        m, n = 2 + seed % 5, 2 + seed % 7
        x, y = (np.round(values) for values in samples(m, n, (seed % 9) - 4.0, seed))
        found = auroc(x, y)
        assert 0 <= found.lo <= found.value <= found.hi <= 1
        assert found.hi - found.lo > 0.2


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, math.nan])
def test_a_level_is_a_share(level: float) -> None:
    x, y = samples(5, 6)
    for measure in (lambda: auroc(x, y, level=level), lambda: paired_auroc(x, y, x, y, level=level)):
        with pytest.raises(ValueError, match="makes no interval: give one above 0 and below 1"):
            measure()


def test_a_higher_level_is_wider() -> None:
    x, y = samples(20, 30)
    widths = [found.hi - found.lo for found in (auroc(x, y, level=level) for level in (0.5, 0.9, 0.95, 0.999))]
    assert widths == sorted(widths)


def test_one_unit_has_no_limits() -> None:
    found = auroc([1.0], [2.0, 3.0])
    assert found.value == 1.0
    assert math.isnan(found.lo)
    assert math.isnan(found.hi)
    assert math.isnan(paired_auroc([1.0], [2.0, 3.0], [1.0], [0.0, 3.0]).p)


@pytest.mark.parametrize(("inside", "outside", "told"), [([], [1.0], "inside"), ([1.0], [math.nan], "outside"), ([[1.0]], [1.0], "inside")])
def test_bad_samples_are_refused(inside: list[float], outside: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=rf"the values {told} are one sequence \[n\]"):
        auroc(inside, outside)
    with pytest.raises(ValueError, match=rf"the values {told} are one sequence \[n\]"):
        paired_auroc([1.0], [2.0], inside, outside)


def test_measures_of_other_units_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal lengths, not 2 \+ 2 and 3 \+ 2: align them"):
        paired_auroc([1, 2], [3, 4], [1, 2, 3], [3, 4])


def test_each_areas_interval_is_its_own() -> None:
    inside_a, outside_a, inside_b, outside_b = two(20, 35, (1.5, 0.5))
    found = paired_auroc(inside_a, outside_a, inside_b, outside_b, level=0.9)
    assert (found.a, found.b) == (auroc(inside_a, outside_a, level=0.9), auroc(inside_b, outside_b, level=0.9))
    assert found.difference.value == found.a.value - found.b.value
    assert found.n == (20, 35)


def test_the_correlation_is_delongs() -> None:
    inside_a, outside_a, inside_b, outside_b = two(30, 20, (1.0, 0.6), 0.8)
    kernels = [np.asarray(y > x[:, None], float) for x, y in ((inside_a, outside_a), (inside_b, outside_b))]
    covariance = np.sum([np.cov(*(k.mean(axis) for k in kernels)) / kernels[0].shape[1 - axis] for axis in (0, 1)], axis=0)
    truth = covariance[0, 1] / math.sqrt(covariance[0, 0] * covariance[1, 1])
    assert paired_auroc(inside_a, outside_a, inside_b, outside_b).correlation == pytest.approx(truth, abs=1e-12)


def test_pairing_makes_a_difference_narrower_and_surer() -> None:
    inside_a, outside_a, inside_b, outside_b = two(60, 60, (1.4, 1.0), 0.95)
    paired = paired_auroc(inside_a, outside_a, inside_b, outside_b)
    order = rng.stream("test.separation.order").permutation(60)
    broken = paired_auroc(inside_a, outside_a, inside_b[order], outside_b[order])  # the same areas, of other units
    assert paired.difference.value == broken.difference.value
    assert paired.difference.hi - paired.difference.lo < 0.6 * (broken.difference.hi - broken.difference.lo)
    assert paired.p < 0.05 < broken.p


@pytest.mark.parametrize("seed", range(12))
def test_p_is_1_minus_the_level_at_which_the_interval_ends_at_0(seed: int) -> None:
    values = two(15, 25, (2.5 - seed / 4, 1.0), 0.6, seed)
    found = paired_auroc(*values)
    assert LEAST <= found.p <= 1
    ends = paired_auroc(*values, level=1 - found.p).difference
    assert min(abs(ends.lo), abs(ends.hi)) == pytest.approx(0, abs=1e-5)
    assert (found.p < 0.05) == (not found.difference.lo <= 0 <= found.difference.hi)


def test_the_other_way_round_is_the_negative() -> None:
    inside_a, outside_a, inside_b, outside_b = two(15, 25, (2.0, 0.7))
    found, other = paired_auroc(inside_a, outside_a, inside_b, outside_b), paired_auroc(inside_b, outside_b, inside_a, outside_a)
    np.testing.assert_allclose(other.difference, (-found.difference.value, -found.difference.hi, -found.difference.lo), atol=1e-12)
    assert other.p == pytest.approx(found.p, rel=1e-5)


def degenerate(a: float, b: float) -> PairedSeparation:
    """Twelve units in each set: a measure that separates perfectly for 1 and is constant for 0.5."""
    inside, outside = np.arange(12.0), np.arange(12.0) + 12
    sides = {1.0: (inside, outside), 0.5: (0 * inside, 0 * outside), 0.0: (outside, inside)}
    return paired_auroc(*sides[a], *sides[b])


def test_what_has_no_spread_has_an_interval_and_a_p() -> None:
    same = degenerate(1, 1)
    assert (same.difference.value, same.p, same.correlation) == (0, 1, 0)
    assert -0.25 < same.difference.lo < -0.1
    assert 0.1 < same.difference.hi < 0.25
    better = degenerate(1, 0.5)
    assert better.difference.lo > 0.1
    assert 1e-6 < better.p < 0.01
    assert degenerate(1, 0).p < better.p
    assert degenerate(0.5, 1).p == pytest.approx(better.p, rel=1e-5)
