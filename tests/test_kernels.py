"""Kernel distances: brute force, closed forms, the field's conventions, coverage, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.sets import cmmd, kernel_distance, kernel_interval, kernels, kid

Array = NDArray[np.float64]
TRIALS = 1000


def normal(*shape: int, seed: int = 0) -> Array:
    return rng.stream("test.kernels", seed).standard_normal(shape)


def one(x: Array, y: Array, kernel: str, bandwidth: float) -> float:
    if kernel == "polynomial":
        return float((x @ y / len(x) + 1) ** 3)
    return math.exp(-float(np.square(x - y).sum()) / (2 * bandwidth**2))


def pair_by_pair(x: Array, y: Array, kernel: str, bandwidth: float = 10.0) -> float:
    """The unbiased estimate as it is written."""
    within = [np.mean([one(a, b, kernel, bandwidth) for i, a in enumerate(s) for j, b in enumerate(s) if i != j]) for s in (x, y)]
    return float(sum(within) - 2 * np.mean([one(a, b, kernel, bandwidth) for a in x for b in y]))


def between_gaussians(dim: int, shift: Array, deviation: float, bandwidth: float) -> float:
    """The squared rbf distance of N(0, 1) and N(shift, deviation^2): the kernel's mean over a difference of known variance."""

    def mean(variance: float, gap: float) -> float:
        wide = bandwidth**2 + variance
        return float((bandwidth**2 / wide) ** (dim / 2) * math.exp(-gap / (2 * wide)))

    return mean(2, 0) + mean(2 * deviation**2, 0) - 2 * mean(1 + deviation**2, float(shift @ shift))


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_it_is_the_sum_over_pairs(kernel: Any) -> None:
    x, y = normal(17, 4), normal(12, 4, seed=1) * 1.3 + 0.4
    assert kernel_distance(x, y, kernel, bandwidth=2.0) == pytest.approx(pair_by_pair(x, y, kernel, 2.0), rel=1e-11)


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_the_tiles_do_not_matter(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(50, 6), normal(41, 6, seed=1) + 0.3
    whole = kernel_interval(x, y, kernel, bandwidth=3.0)
    monkeypatch.setattr(kernels, "TILE", 13)
    assert kernel_interval(x, y, kernel, bandwidth=3.0) == pytest.approx(whole, rel=1e-10)


def test_the_polynomial_kernel_of_two_points_a_set() -> None:
    """Rows 1, 3 and 2, 2 on a line: 4^3 + 5^3 - 2 (3^3 + 7^3) / 2."""
    assert kernel_distance([[1.0], [3.0]], [[2.0], [2.0]]) == pytest.approx(4**3 + 5**3 - (3**3 + 7**3))


@pytest.mark.parametrize(("dim", "shift", "deviation"), [(1, 1.0, 1.0), (4, 0.5, 1.4), (16, 0.2, 0.8)])
def test_the_rbf_distance_of_gaussians_has_a_closed_form(dim: int, shift: float, deviation: float) -> None:
    moved = np.full(dim, shift)
    truth = between_gaussians(dim, moved, deviation, 3.0)
    found = kernel_interval(normal(4000, dim), normal(5000, dim, seed=1) * deviation + moved, "rbf", bandwidth=3.0)
    assert abs(found.value - truth) < 3 * (found.hi - found.lo) / 4
    assert found.hi - found.lo < 0.25 * truth


@pytest.mark.parametrize(("n", "m"), [(50, 200), (200, 200)])
def test_the_interval_covers_the_distance_of_the_populations(n: int, m: int) -> None:
    shift, draws = np.full(4, 0.75), rng.stream("test.kernels.coverage", n, m)
    truth = between_gaussians(4, shift, 1.45, 2.0)
    samples = [(draws.standard_normal((n, 4)), shift + 1.45 * draws.standard_normal((m, 4))) for _ in range(TRIALS)]
    found = [kernel_interval(*sample, "rbf", bandwidth=2.0) for sample in samples]
    assert 0.93 <= np.mean([each.lo <= truth <= each.hi for each in found]) <= 0.97
    values = [each.value for each in found]
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(TRIALS)


def test_equal_populations_are_not_told_apart() -> None:
    draws = rng.stream("test.kernels.null")
    found = [kernel_interval(draws.standard_normal((40, 8)), draws.standard_normal((50, 8))) for _ in range(300)]
    assert np.mean([each.lo <= 0 <= each.hi for each in found]) >= 0.95
    assert 0.2 < np.mean([each.value < 0 for each in found]) < 0.8  # unbiased: below 0 by chance


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_the_interval_is_the_jackknife_of_both_sets(kernel: Any) -> None:
    x, y = normal(14, 3), normal(9, 3, seed=1) + 1

    def share(values: list[float]) -> float:
        return (len(values) - 1) * float(np.var(values))

    variances = [
        share([kernel_distance(np.delete(x, i, 0), y, kernel) for i in range(14)]),
        share([kernel_distance(x, np.delete(y, i, 0), kernel) for i in range(9)]),
    ]
    narrow, wide = (kernel_interval(x, y, kernel, level=level) for level in (0.5, 0.95))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 13 + variances[1] ** 2 / 8)
    for found, level in ((narrow, 0.5), (wide, 0.95)):
        half = ss.t.ppf((1 + level) / 2, freedom) * math.sqrt(sum(variances))
        assert (found.hi - found.lo) / 2 == pytest.approx(half, rel=1e-8)
        assert (found.hi + found.lo) / 2 == pytest.approx(found.value, rel=1e-12)
    assert (wide.n, wide.m) == (14, 9)


def test_cmmd_is_the_published_number_less_its_bias() -> None:
    """The published code takes each sample with itself too: k = 1 there, so that the two are one another's linear functions."""
    x, y = normal(30, 16) + 1, normal(20, 16, seed=1) + 1.3
    u, v = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x, y))

    def mean(a: Array, b: Array) -> float:
        return float(np.exp(-np.square(a[:, None] - b).sum(-1) / 200).mean())

    published = 1000 * (mean(u, u) + mean(v, v) - 2 * mean(u, v))
    own = [(mean(part, part) * len(part) - 1) / (len(part) - 1) for part in (u, v)]
    bias = 1000 * ((1 - own[0]) / 30 + (1 - own[1]) / 20)
    found = cmmd(x, y)
    assert found.value == pytest.approx(published - bias, rel=1e-9)
    assert cmmd(3 * x, 0.1 * y) == pytest.approx(found, rel=1e-8)
    assert found.lo < found.value < found.hi


def test_kid_is_the_mean_over_its_subsets() -> None:
    x, y = normal(60, 5), normal(50, 5, seed=1) + 0.5
    drawn = []
    for i in range(6):
        draw = rng.stream("sets.kid", 4, i)
        drawn.append(kernel_distance(x[draw.permutation(60)[:20]], y[draw.permutation(50)[:20]]))
    found = kid(x, y, subsets=6, size=20, seed=4)
    assert found.value == pytest.approx(np.mean(drawn), rel=1e-12)
    assert found.sd == pytest.approx(np.std(drawn, ddof=1), rel=1e-12)
    assert (found.subsets, found.size) == (6, 20)


def test_kid_of_whole_sets_is_the_distance() -> None:
    x, y = normal(30, 5), normal(30, 5, seed=1) + 0.5
    found, whole = kid(x, y, subsets=2, size=30), kernel_interval(x, y)
    assert found.sd == pytest.approx(0, abs=1e-10)
    assert found[:3] == pytest.approx(whole[:3], rel=1e-9)


def test_kid_covers_and_its_sd_is_no_standard_error() -> None:
    """Rows on a line and a shifted one: the third powers have closed means."""
    shift, draws = 1.5, rng.stream("test.kernels.kid")
    # E k(x, y) = E (xy + 1)^3 = m3 m3' + 3 m2 m2' + 3 m1 m1' + 1, with the moments of N(0, 1) and N(s, 1)
    own, other = np.array([0, 1, 0.0]), np.array([shift, 1 + shift**2, 3 * shift + shift**3])
    truth = float(((own - other) ** 2 * [3, 3, 1]).sum())
    found = [
        kid(draws.standard_normal((400, 1)), draws.standard_normal((400, 1)) + shift, subsets=20, size=100, seed=i) for i in range(300)
    ]
    assert 0.92 <= np.mean([each.lo <= truth <= each.hi for each in found]) <= 0.98
    assert np.mean([abs(each.value - truth) <= 1.96 * each.sd / math.sqrt(20) for each in found]) < 0.8


def test_tensors_and_narrow_types_are_taken() -> None:
    x, y = normal(20, 4).astype(np.float32), normal(25, 4, seed=1).astype(np.float32)
    expected = kernel_distance(x.astype(np.float64), y.astype(np.float64))
    assert kernel_distance(torch.from_numpy(x), y) == pytest.approx(expected, rel=1e-12)


def test_bad_input_is_refused() -> None:
    x, y = normal(20, 4), normal(20, 4, seed=1)
    with pytest.raises(ValueError, match="choose polynomial or rbf"):
        kernel_distance(x, y, "linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bandwidth > 0"):
        kernel_distance(x, y, "rbf", bandwidth=0)
    with pytest.raises(ValueError, match="the same model"):
        kernel_distance(x, y[:, :3])
    with pytest.raises(ValueError, match="leave those samples out"):
        kernel_distance(x, np.where(y > 2, np.nan, y))
    with pytest.raises(ValueError, match="at least 3 rows"):
        kernel_interval(x[:2], y)
    with pytest.raises(ValueError, match=r"3 to 20 rows, not 100 of 1000: set subsets and size"):
        kid(x, y)
    with pytest.raises(ValueError, match="1 of 20 rows are zero"):
        cmmd(x, y * (np.arange(20) != 7)[:, None])
