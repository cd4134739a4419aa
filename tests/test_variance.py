"""Spreads and variance components: the textbook's closed forms, no bias, invariances, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.stats.variance import spread_interval, variance_components


def groups(sizes: list[int], between: float, within: float, seed: int = 0) -> list[NDArray[np.float64]]:
    generator = rng.stream("test.variance", seed)
    return [between * generator.standard_normal() + within * generator.standard_normal(size) for size in sizes]


def test_balanced_values_give_the_textbooks_forms() -> None:
    values = np.stack(groups([6] * 9, 1.0, 0.8))
    found = variance_components(values, level=0.9)
    ratio = ss.f_oneway(*values).statistic
    assert found.within == pytest.approx(values.var(1, ddof=1).mean())
    assert found.between == pytest.approx(values.mean(1).var(ddof=1) - found.within / 6)
    assert found.icc.value == pytest.approx((ratio - 1) / (ratio + 5))
    for limit, tail in ((found.icc.lo, 0.95), (found.icc.hi, 0.05)):
        scaled = ratio / ss.f.ppf(tail, 8, 45)
        assert limit == pytest.approx((scaled - 1) / (scaled + 5), abs=1e-9)
    assert (found.units, found.values, found.repeats, found.dropped) == (9, 54, 6, 0)


def test_the_components_are_unbiased_for_unequal_groups() -> None:
    sizes = [1, 2, 3, 5, 12]
    found = [variance_components(groups(sizes, 1.5, 0.7, seed)) for seed in range(1500)]
    assert np.mean([part.raw_between for part in found]) == pytest.approx(2.25, rel=0.06)
    assert np.mean([part.within for part in found]) == pytest.approx(0.49, rel=0.02)
    assert found[0].repeats == pytest.approx((23 - (1 + 4 + 9 + 25 + 144) / 23) / 4)


def test_a_negative_component_is_0_and_its_raw_value_kept() -> None:
    equal_means = variance_components([[0.0, 2.0], [2.0, 0.0], [1.0, 1.0]])
    assert equal_means.between == 0
    assert equal_means.raw_between == pytest.approx(-equal_means.within / 2)
    assert equal_means.icc == (0, 0, 0)
    found = variance_components([[0.0, 2.0], [1.0, 3.0], [-1.0, 2.0]])
    assert found.raw_between < 0 == found.between == found.icc.value == found.icc.lo
    assert 0 < found.icc.hi < 1


def test_all_or_nothing() -> None:
    constant_units = variance_components([[1.0, 1.0], [2.0, 2.0], [5.0, 5.0, 5.0]])
    assert constant_units.within == 0
    assert constant_units.icc == (1, 1, 1)
    assert all(math.isnan(part) for part in variance_components([[1.0, 1.0], [1.0, 1.0]]).icc)


def test_units_shift_scale_and_order_do_not_matter() -> None:
    sample = groups([2, 3, 7, 4], 1.0, 1.0)
    found = variance_components(sample)
    moved = variance_components([100 - 10 * part[::-1] for part in sample[::-1]])
    assert moved.between == pytest.approx(100 * found.between)
    assert moved.within == pytest.approx(100 * found.within)
    assert moved.icc == pytest.approx(tuple(found.icc), abs=1e-9)


def test_missing_values_are_dropped_and_counted() -> None:
    sample = groups([4, 4, 4], 1.0, 1.0)
    holes = [np.append(part, math.nan) for part in sample] + [np.full(2, math.nan)]
    assert variance_components(holes) == variance_components(sample)._replace(dropped=5)


@pytest.mark.parametrize("bad", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, math.inf], [1.0, 2.0]], []])
def test_bad_input_is_refused(bad: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="need 2 units or more, one with 2 finite values"):
        variance_components(bad)


def test_the_spread_of_six_values_by_hand() -> None:
    """1 to 6: the trimmed mean is 3.5, the sum of fourth powers 2 (2.5^4 + 1.5^4 + 0.5^4), that of squares 17.5."""
    kurtosis = 6 * 2 * (2.5**4 + 1.5**4 + 0.5**4) / 17.5**2
    z = ss.norm.ppf(0.975)
    c = 6 / (6 - z)
    half = ss.t.ppf(0.975, 2 * math.sqrt(6)) * c * math.sqrt((kurtosis - 3 / 6) / 5)
    expected = [math.sqrt(c * 3.5 * math.exp(sign * half)) for sign in (-1, 1)]
    assert spread_interval([4.0, 1.0, 3.0, 6.0, 2.0, 5.0]) == pytest.approx((math.sqrt(3.5), *expected))


def test_a_spread_scales_and_does_not_shift() -> None:
    x = rng.stream("test.variance.spread").gamma(3, size=30)
    found = spread_interval(x)
    assert spread_interval(7 - 1e-60 * x[::-1] * 1e60) == pytest.approx(tuple(found))
    for scale in (1e-100, 1e100):
        assert spread_interval(scale * x) == pytest.approx(tuple(scale * part for part in found))
    wider = spread_interval(x, level=0.99)
    assert wider.lo < found.lo < found.value < found.hi < wider.hi
    assert spread_interval(np.append(x, 30.0)).hi > 2 * found.hi


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_few_values_have_a_wide_spread(n: int) -> None:
    lo, hi = spread_interval(np.arange(n))[1:]
    assert 0 < 3 * lo < hi < math.inf


def test_degenerate_spreads() -> None:
    assert spread_interval([0.1] * 9) == (0, 0, 0)
    assert spread_interval([1.0, 2.0, 3.0]) == pytest.approx((1, math.nan, math.nan), nan_ok=True)
    assert all(math.isnan(part) for part in spread_interval([1.0]))
    assert math.isnan(spread_interval(np.arange(4), level=0.9999999).hi)
    for bad in ([], [1.0, math.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match=r"one sequence \[n\] of finite values"):
            spread_interval(bad)
