"""Set distances against closed forms."""

import numpy as np
import pytest

from diffprobe.measures.sets import frechet_distance, frechet_limit


def whitened(n: int, width: int, seed: int = 0) -> np.ndarray:
    """A set whose sample mean is exactly 0 and whose sample covariance is exactly the identity."""
    x = np.random.default_rng(seed).standard_normal((n, width))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T


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


def test_it_is_symmetric_and_zero_on_itself() -> None:
    x, y = (np.random.default_rng(s).standard_normal((50, 8)) * (1 + s) for s in (0, 1))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-10)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)


def test_it_needs_no_more_rows_than_dimensions() -> None:
    """Ten rows in a hundred dimensions: equal to the distance in the span of both sets."""
    x, y = (np.random.default_rng(s).standard_normal((10, 100)) for s in (0, 1))
    basis = np.linalg.qr(np.concatenate([x, y]).T)[0]
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x @ basis, y @ basis), rel=1e-9)


def test_the_limit_removes_the_bias() -> None:
    """Two sets of one Gaussian: the distance of 120 rows is far from 0, its limit is not."""
    reference = whitened(4000, 8, 9)
    sets = [np.random.default_rng(s).standard_normal((120, 8)) for s in range(20)]
    raw = np.mean([frechet_distance(x, reference) for x in sets])
    limit = [frechet_limit(x, reference, seed=s) for s, x in enumerate(sets)]
    assert raw > 0.1
    assert abs(np.mean(limit)) < 0.25 * raw


def test_bad_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="two sets"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(ValueError, match="two sets"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match="too few"):
        frechet_limit(np.zeros((10, 8)), np.zeros((50, 8)))
