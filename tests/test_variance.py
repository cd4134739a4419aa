"""Variance components: the textbook's closed forms, no bias, invariances, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.variance import variance_components


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
