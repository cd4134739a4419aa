"""The Frechet distance: closed forms, singular and small sets, agreement with a matrix root, its limit and interval."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import linalg

from diffprobe import rng
from diffprobe.measures import sets
from diffprobe.measures.sets import Moments, frechet_distance, frechet_interval, frechet_limit, frechet_name, frechet_parts

Array = NDArray[np.float64]
TRIALS = 1000


def normal(*shape: int, seed: int = 0) -> Array:
    return rng.stream("test.sets", seed).standard_normal(shape)


def whitened(n: int, width: int, seed: int = 0) -> Array:
    """A set whose sample mean is exactly 0 and whose sample covariance is exactly the identity."""
    x = normal(n, width, seed=seed)
    x -= x.mean(0)
    return np.asarray(x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T)


def graded(n: int, width: int, power: float, seed: int) -> Array:
    """A set with variances falling as i^(-2 power) in directions of its own."""
    basis = np.linalg.qr(normal(width, width, seed=100 + seed))[0]
    return np.asarray((normal(n, width, seed=seed) * (1.0 + np.arange(width)) ** -power) @ basis)


def by_matrix_root(x: Array, y: Array) -> float:
    """The usual route: the root of the product of the covariances."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(a @ b).real
    return float(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * np.trace(root))


def test_the_public_names_load_no_torch() -> None:
    assert all(hasattr(sets, name) for name in sets.__all__)
    told = "import sys, diffprobe.measures.sets; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


def test_a_shift_costs_its_square() -> None:
    x, m = whitened(200, 5), np.array([1.0, 0, -2, 0, 0.5])
    assert frechet_distance(x, whitened(300, 5, 1) + m) == pytest.approx(float(m @ m), abs=1e-10)


@pytest.mark.parametrize("c", [0.0, 0.5, 3.0])
def test_a_scale_costs_its_difference(c: float) -> None:
    assert frechet_distance(whitened(200, 5), c * whitened(300, 5, 1)) == pytest.approx(5 * (1 - c) ** 2, abs=1e-8)


def test_diagonal_covariances() -> None:
    a, b = np.array([1.0, 4.0, 0.01]), np.array([2.0, 1.0, 0.09])
    found = frechet_distance(whitened(100, 3) * np.sqrt(a), whitened(150, 3, 1) * np.sqrt(b))
    assert found == pytest.approx(float(np.square(np.sqrt(a) - np.sqrt(b)).sum()), abs=1e-9)


def test_two_dimensions_have_a_formula_without_a_root() -> None:
    """Tr (S_a S_b)^1/2 = (Tr S_a S_b + 2 (det S_a det S_b)^1/2)^1/2, whether they commute or not."""
    a, b = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[0.5, -0.3], [-0.3, 3.0]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    found = frechet_parts(Moments.given([0.0, 1.0], a, 50), Moments.given([3.0, 1.0], b, 60))
    assert found.mean == pytest.approx(9)
    assert found.spread == pytest.approx(np.trace(a + b))
    assert found.shared == pytest.approx(2 * root, rel=1e-13)
    assert found.value == pytest.approx(9 + np.trace(a + b) - 2 * root, rel=1e-12)


def test_it_is_symmetric_and_zero_on_itself() -> None:
    x, y = (normal(50, 8, seed=s) * (1 + s) for s in (0, 1))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_rotations_and_the_order_of_rows_do_not_matter() -> None:
    x, y, basis = graded(80, 12, 1, 0), graded(90, 12, 1, 1) + 0.1, np.linalg.qr(normal(12, 12))[0]
    assert frechet_distance(x[::-1] @ basis, y[::-1] @ basis) == pytest.approx(frechet_distance(x, y), rel=1e-10)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_it_is_that_of_a_matrix_root(power: float) -> None:
    x, y = graded(500, 60, power, 0), graded(400, 60, power, 1) * 1.2 + 0.05
    found = frechet_parts(x, y)
    assert found.route == "definite"
    assert found.value == pytest.approx(by_matrix_root(x, y), rel=1e-8)


def test_steep_spectra_keep_their_digits() -> None:
    """A condition of 1e12, where a matrix root of the product has lost half of them: against the roots' singular values."""
    x, y = graded(400, 40, 3.7, 0), graded(300, 40, 3.7, 0) + graded(300, 40, 3.7, 1)
    roots = [np.linalg.qr(part - part.mean(0))[1] / np.sqrt(len(part) - 1) for part in (x, y)]
    found = frechet_parts(x, y)
    assert found.shared == pytest.approx(2 * linalg.svdvals(roots[0] @ roots[1].T).sum(), abs=1e-11 * found.spread)


@pytest.mark.parametrize(("n", "m"), [(10, 12), (10, 300), (300, 10), (300, 250)])
def test_features_and_moments_mix(n: int, m: int) -> None:
    """More rows than dimensions, fewer, and both: every mix gives the same number."""
    x, y = graded(n, 30, 0.5, 0), graded(m, 30, 0.5, 1) + 0.2
    a, b = Moments().update(x), Moments().update(y)
    expected = frechet_distance(x, y)
    for mix in ((a, y), (x, b), (a, b), (torch.from_numpy(x), y.tolist())):
        assert frechet_distance(*mix) == pytest.approx(expected, rel=1e-9)


def test_it_needs_no_more_rows_than_dimensions() -> None:
    """Ten rows in a hundred dimensions: equal to the distance in the span of both sets, and far from that of the populations, 0."""
    x, y = (normal(10, 100, seed=s) for s in (0, 1))
    basis = np.linalg.qr(np.concatenate([x, y]).T)[0]
    found = frechet_parts(x, y)
    assert found.route == "span"
    assert found.value == pytest.approx(frechet_distance(x @ basis, y @ basis), rel=1e-9)
    assert found.value > 50


def test_singular_covariances_lose_no_digits() -> None:
    """`a` has no variance where `b` has much: round-off under a root would add 1e-8 a direction."""
    a, b = np.repeat([4.0, 0.0], [20, 20]), np.repeat([1.0, 9.0], [20, 20])
    basis = np.linalg.qr(normal(40, 40, seed=5))[0]
    turned = [Moments.given(np.zeros(40), (basis * variances) @ basis.T, 100) for variances in (a, b)]
    found = frechet_parts(*turned)
    assert found.route == "factors"
    assert found.clipped == 20
    assert found.value == pytest.approx(20 * (2 - 1) ** 2 + 20 * 9, rel=1e-12)


def test_a_dead_feature_changes_nothing() -> None:
    x, y = graded(100, 9, 0.5, 0), graded(120, 9, 0.5, 1)
    dead = [np.concatenate([part, np.full((len(part), 2), 7.0)], axis=1) for part in (x, y)]
    assert frechet_distance(*dead) == pytest.approx(frechet_distance(x, y), rel=1e-12)


def test_the_limit_removes_the_bias() -> None:
    """Two sets of one Gaussian: the distance of 120 rows is far from 0, its limit is not."""
    reference = whitened(4000, 8, 9)
    samples = [normal(120, 8, seed=s) for s in range(20)]
    raw = np.mean([frechet_distance(x, reference) for x in samples])
    limit = [frechet_limit(x, reference, seed=s) for s, x in enumerate(samples)]
    assert raw > 0.1
    assert abs(np.mean(limit)) < 0.25 * raw


def test_the_limit_takes_moments_for_the_whole_set() -> None:
    x, y = normal(60, 3), normal(80, 3, seed=1) + 1
    assert frechet_limit(x, Moments().update(y)) == pytest.approx(frechet_limit(x, y), rel=1e-10)


DEVIATIONS, MEAN = np.array([0.6, 1.0, 1.5]), np.array([0.5, 0.0, -0.3])
TRUTH = float(np.square(MEAN).sum() + np.square(DEVIATIONS - 1).sum())


def test_the_interval_covers_the_distance_of_the_populations() -> None:
    draws = rng.stream("test.sets.coverage")
    found = [
        frechet_interval(draws.standard_normal((150, 3)), MEAN + DEVIATIONS * draws.standard_normal((200, 3)), seed=i)
        for i in range(TRIALS)
    ]
    assert 0.93 <= np.mean([each.lo <= TRUTH <= each.hi for each in found]) <= 0.97
    error = np.std([each.value for each in found]) / np.sqrt(TRIALS)
    assert abs(np.mean([each.value for each in found]) - TRUTH) < 4 * error
    assert np.mean([each.distance for each in found]) - TRUTH > 8 * error  # the bias, which is gone from the value


def test_the_interval_takes_moments_as_exact() -> None:
    """Against the true moments of the second population only the first set's noise counts: narrower, and it covers too."""
    draws, exact = rng.stream("test.sets.coverage.moments"), Moments.given(MEAN, np.diag(DEVIATIONS**2), 1_000_000)
    found = [frechet_interval(draws.standard_normal((150, 3)), exact, seed=i) for i in range(TRIALS // 2)]
    assert 0.92 <= np.mean([each.lo <= TRUTH <= each.hi for each in found]) <= 0.98
    x, y = normal(150, 3), MEAN + DEVIATIONS * normal(200, 3, seed=1)
    both, one = frechet_interval(x, y), frechet_interval(x, Moments().update(y))
    assert one.hi - one.lo < both.hi - both.lo
    assert one.distance == pytest.approx(both.distance, rel=1e-12)
    assert (both.n, both.m) == (150, 200)


def test_equal_populations_are_not_told_apart() -> None:
    draws = rng.stream("test.sets.null")
    found = [frechet_interval(draws.standard_normal((100, 4)), draws.standard_normal((100, 4)), seed=i) for i in range(300)]
    assert np.mean([each.lo <= 0 <= each.hi for each in found]) >= 0.95
    assert all(each.distance > 0 for each in found)


def test_an_interval_is_a_function_of_its_seed() -> None:
    x, y = normal(60, 3), normal(70, 3, seed=1)
    assert frechet_interval(x, y, seed=1) == frechet_interval(x, y, seed=1) != frechet_interval(x, y, seed=2)
    wide, narrow = frechet_interval(x, y, level=0.99), frechet_interval(x, y, level=0.9)
    assert wide.hi - wide.lo == pytest.approx((narrow.hi - narrow.lo) * 2.5758 / 1.6449, rel=1e-4)


def test_bad_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one width, not 3 and 4.*the same model"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="two rows"):
        frechet_distance(Moments(), np.zeros((5, 3)))
    for few in (np.full((5, 8), np.nan), np.full((20, 8), np.nan)):
        with pytest.raises(ValueError, match="leave those samples out"):
            frechet_distance(few, normal(20, 8))


def test_too_few_rows_have_a_distance_but_no_limit() -> None:
    x, y = normal(35, 8), normal(50, 8, seed=1)
    assert frechet_distance(x, y) > 0
    with pytest.raises(ValueError, match="35 rows are too few to extrapolate in 8 dimensions: give at least 36"):
        frechet_limit(x, y)
    with pytest.raises(ValueError, match="35 rows are too few"):
        frechet_interval(y, x)
    with pytest.raises(ValueError, match="2 sizes or more and 1 repeat or more, not 1 and 20"):
        frechet_limit(normal(40, 3), normal(40, 3), sizes=1)
    with pytest.raises(ValueError, match="not 5 and 0: 5 and 20 are usual"):
        frechet_limit(normal(40, 3), normal(40, 3), repeats=0)
    with pytest.raises(ValueError, match="1 repeat of its halves or more, not 0"):
        frechet_interval(normal(40, 3), normal(40, 3), repeats=0)
    with pytest.raises(ValueError, match="full rank"):
        frechet_interval(np.repeat(y, 2, axis=0)[:, [0, 0]], y[:, :2])


@pytest.mark.parametrize(
    ("instrument", "name"),
    [
        ("inception-2015-12-05/0123/float32", "FID"),
        ("inception:", "FID"),
        ("dinov2/0123/4567/float32", "FD-DINOv2"),
        ("dinov2-large:hub/model", "FD-DINOv2"),
        ("clip:openai/clip-vit-base-patch32", "FD-CLIP"),
        ("siglip2/0123", "FD-SigLIP"),
        ("dinov3/0123", "FD-dinov3"),
        ("own", "FD-own"),
    ],
)
def test_the_distance_is_named_after_its_embedder(instrument: str, name: str) -> None:
    assert frechet_name(instrument) == name
