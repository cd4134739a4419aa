"""Precision, recall, density and coverage: known answers, brute force on awkward sets, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from diffprobe import rng
from diffprobe.measures.sets import balls, density_coverage, neighbour_scores, precision_recall

Array = NDArray[np.float64]


def normal(*shape: int, seed: int = 0) -> Array:
    return rng.stream("test.neighbours", seed).standard_normal(shape)


def by_definition(real: Array, fake: Array, k: int, k_density: int) -> tuple[float, float, float, float]:
    """Every distance by differences, every ball closed."""
    own, other, across = cdist(real, real), cdist(fake, fake), cdist(real, fake)
    np.fill_diagonal(own, np.inf)
    np.fill_diagonal(other, np.inf)
    edge = 1 + 1e-9
    reach, reach_fake, reach_density = (np.sort(d, 1)[:, i - 1] * edge for d, i in ((own, k), (other, k), (own, k_density)))
    in_real, in_fake, in_density = across <= reach[:, None], across <= reach_fake, across <= reach_density[:, None]
    return in_real.any(0).mean(), in_fake.any(1).mean(), in_density.sum(0).mean() / k_density, in_density.any(1).mean()


def scores(real: Array, fake: Array, k: int = 3, k_density: int = 5) -> tuple[float, ...]:
    found = neighbour_scores(real, fake, k=k, k_density=k_density)
    return (*found.precision_recall[:2], *found.density_coverage[:2])


def awkward() -> dict[str, tuple[Array, Array]]:
    grid, centres = rng.stream("test.neighbours.grid").integers(0, 4, size=(700, 5)).astype(float), 100 * normal(6, 20, seed=7)
    members = rng.stream("test.neighbours.members").integers(0, 6, size=500)
    copies = np.repeat(normal(3, 8, seed=8), 90, axis=0)
    far = normal(300, 6, seed=9)
    far[0] *= 1e25
    return {
        "plain": (normal(600, 12), normal(500, 12, seed=1) * 0.9),
        "ties everywhere": (grid[:400], grid[400:]),
        "clusters tighter than float32 sees": (
            centres[members[:300]] + 1e-4 * normal(300, 20, seed=2),
            centres[members[300:]] + 1e-4 * normal(200, 20, seed=3),
        ),
        "copies": (copies, np.concatenate([copies[::2], normal(40, 8, seed=4)])),
        "one point out of all proportion": (far, normal(300, 6, seed=5)),
        "far from the origin": (normal(300, 6) + 1e6, normal(300, 6, seed=5) + 1e6),
        "hardly more than k": (normal(6, 4), normal(4, 4, seed=1)),
    }


@pytest.mark.parametrize("case", awkward())
@pytest.mark.parametrize("tile", [64, 1024])
def test_it_is_the_definition(case: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balls, "TILE", tile)
    real, fake = awkward()[case]
    assert scores(real, fake) == pytest.approx(by_definition(real, fake, 3, 5), abs=1e-12)


def test_precision_speaks_of_fakes_and_recall_of_reals() -> None:
    """Fakes in one of two real clusters: all look real, half of the reals are reached. The other way round, the other way round."""
    both = np.concatenate([normal(100, 3) * 0.1, normal(100, 3, seed=1) * 0.1 + 50])
    one = both[:100] + 1e-3 * normal(100, 3, seed=2)
    narrow = precision_recall(real=both, fake=one)
    assert narrow.precision == 1
    assert narrow.recall == 0.5
    scattered = precision_recall(real=one, fake=both)
    assert scattered.precision == 0.5
    assert scattered.recall == 1
    assert density_coverage(real=both, fake=one).coverage == 0.5
    assert density_coverage(real=one, fake=both).coverage == 1


def test_equal_sets_are_perfect() -> None:
    x = normal(200, 10)
    found = neighbour_scores(x, x.copy(), k=3, k_density=5)
    assert found.precision_recall == (1, 1, 3, 200, 200)
    assert found.density_coverage.coverage == 1
    assert found.density_coverage.density == pytest.approx(6 / 5)  # a closed ball of 5 neighbours holds its own copy too, and its edge


def test_sets_far_apart_share_nothing() -> None:
    x = normal(150, 10)
    assert scores(x, x + 1000) == (0, 0, 0, 0)


def test_fresh_samples_have_density_and_coverage_as_published() -> None:
    """Naeem et al. 2020, lemmas 1 and 2: density 1, coverage 1 - (n - 1)...(n - k) / ((2n - 1)...(2n - k)) in expectation."""
    n, k = 200, 5
    coverage = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, k + 1)])
    found = [density_coverage(normal(n, 4, seed=2 * i), normal(n, 4, seed=2 * i + 1), k) for i in range(100)]
    assert np.mean([each.density for each in found]) == pytest.approx(1, abs=0.02)
    assert np.mean([each.coverage for each in found]) == pytest.approx(coverage, abs=0.005)


def test_one_pass_and_two_agree() -> None:
    x, y = normal(120, 6), normal(90, 6, seed=1) + 0.2
    found = neighbour_scores(x, y, k=4, k_density=7)
    assert found == (precision_recall(x, y, 4), density_coverage(x, y, 7))
    assert found.precision_recall[2:] == (4, 120, 90)
    assert found.density_coverage[2:] == (7, 120, 90)


def test_the_order_of_rows_and_the_kind_of_array_do_not_matter() -> None:
    x, y = normal(120, 6).astype(np.float32), normal(90, 6, seed=1).astype(np.float32)
    expected = neighbour_scores(x, y)
    assert neighbour_scores(x[::-1], y[::-1]) == expected
    assert neighbour_scores(torch.from_numpy(x), y.astype(np.float64)) == expected


def test_a_fake_set_of_one_has_a_coverage() -> None:
    x = normal(20, 2)
    assert density_coverage(x, x[:1]).density >= 1
    with pytest.raises(ValueError, match="3 nearest neighbours need 4 fakes or more, not 1: add samples or lower k"):
        precision_recall(x, x[:1])


def test_bad_input_is_refused() -> None:
    x, y = normal(20, 4), normal(20, 4, seed=1)
    with pytest.raises(ValueError, match="5 nearest neighbours need 6 reals or more, not 5"):
        density_coverage(x[:5], y)
    with pytest.raises(ValueError, match="1 or more, not 0"):
        precision_recall(x, y, 0)
    with pytest.raises(ValueError, match="the same model"):
        precision_recall(x, y[:, :3])
    with pytest.raises(ValueError, match="3 of 20 rows"):
        precision_recall(x, np.where(np.arange(20)[:, None] < 3, np.inf, y))
