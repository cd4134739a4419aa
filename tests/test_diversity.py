"""Vendi scores and their interval: known answers, both sides of the eigenvalues, coverage, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.sets import vendi_score
from diffprobe.measures.sets.diversity import subsample_interval

Array = NDArray[np.float64]
ORDERS = [0, 0.5, 1, 2, 3.5, math.inf]
TRIALS = 1000


def normal(*shape: int, seed: int = 0) -> Array:
    return rng.stream("test.diversity", seed).standard_normal(shape)


def by_cosines(x: Array, order: float) -> float:
    """The n x n route, with the definition of each order written out."""
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    p = np.linalg.eigvalsh(u @ u.T / len(u))
    p = p[p > 1e-12]
    if order == 1:
        return float(np.exp(-(p * np.log(p)).sum()))
    return float(1 / p.max() if order == math.inf else (p**order).sum() ** (1 / (1 - order)))


@pytest.mark.parametrize("order", ORDERS)
def test_known_answers(order: float) -> None:
    """Whatever the order: equal rows are one, orthogonal ones n, and two groups of orthogonal directions two."""
    basis = np.linalg.qr(normal(12, 12))[0]
    assert vendi_score(np.repeat(basis[:1], 9, axis=0) * np.arange(1, 10)[:, None], order) == pytest.approx(1, rel=1e-12)
    assert vendi_score(basis[:7], order) == pytest.approx(7, rel=1e-12)
    assert vendi_score(np.repeat(basis[:2], 10, axis=0), order) == pytest.approx(2, rel=1e-12)
    assert vendi_score(basis[:1], order) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n", "dim"), [(30, 8), (8, 30), (12, 12)])
def test_both_sides_give_the_eigenvalues_of_the_cosines(n: int, dim: int, order: float) -> None:
    x = normal(n, dim)
    assert vendi_score(x, order) == pytest.approx(by_cosines(x, order), rel=1e-10)
    padded = np.concatenate([x, np.zeros((n, 40))], axis=1)  # zeros turn the sides round
    assert vendi_score(padded, order) == pytest.approx(vendi_score(x, order), rel=1e-10)


def test_the_second_order_needs_no_eigenvalues() -> None:
    x = normal(25, 9)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert vendi_score(x, 2) == pytest.approx(1 / np.square(u @ u.T).mean(), rel=1e-12)


def test_orders_fall_and_join() -> None:
    x = normal(40, 10) * np.geomspace(1, 0.1, 10)
    found = [float(vendi_score(x, order)) for order in (0, 0.3, 1, 1.7, 4, 100, math.inf)]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(10)
    assert vendi_score(x, 1 + 1e-6) == pytest.approx(vendi_score(x), rel=1e-5)
    assert vendi_score(x, 5000) == pytest.approx(vendi_score(x, math.inf), rel=1e-2)


def test_many_sets_at_once_are_each_as_alone() -> None:
    x = normal(3, 4, 20, 6)
    found = vendi_score(x)
    assert found.shape == (3, 4)
    assert found[2, 1] == pytest.approx(vendi_score(x[2, 1]), rel=1e-12)
    assert isinstance(vendi_score(x[0, 0]), float)


def test_lengths_order_and_kind_of_array_do_not_matter() -> None:
    x = normal(30, 8).astype(np.float32)
    expected = float(vendi_score(x))
    assert vendi_score(x[::-1] * np.linspace(0.1, 9, 30)[:, None]) == pytest.approx(expected, rel=1e-10)
    assert vendi_score(torch.from_numpy(x)) == expected


def test_repeated_rows_lower_it() -> None:
    """Why the interval does not resample with replacement."""
    x = normal(30, 50)
    drawn = rng.stream("test.diversity.bootstrap").integers(30, size=(200, 30))
    assert vendi_score(x[drawn]).max() < vendi_score(x)


def clustered(draws: np.random.Generator, n: int, count: int) -> Array:
    """Sets of six kinds of unlike share."""
    kinds = draws.choice(6, size=(count, n), p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    return np.asarray(2 * np.eye(16)[:6][kinds] + 0.3 * draws.standard_normal((count, n, 16)))


@pytest.mark.parametrize("n", [20, 50])
def test_the_interval_covers_the_expected_score_of_as_many_samples(n: int) -> None:
    draws = rng.stream("test.diversity.coverage", n)
    truth = vendi_score(clustered(draws, n, 5000)).mean()
    found = [subsample_interval(x, seed=i) for i, x in enumerate(clustered(draws, n, TRIALS))]
    assert 0.93 <= np.mean([each.lo <= truth <= each.hi for each in found]) <= 0.97


def test_the_interval_of_a_linear_score_is_students() -> None:
    """For a mean, leaving out rows or groups of one size is exact: the standard error of the mean."""
    x = normal(40, 3)

    def first(features: Array) -> Array:
        return np.asarray(features[..., 0].mean(-1))

    found = subsample_interval(x, first)
    assert found == pytest.approx((x[:, 0].mean(), *ss.t.interval(0.95, 39, x[:, 0].mean(), ss.sem(x[:, 0]))), rel=1e-10)
    grouped = [subsample_interval(normal(300, 3, seed=i), first, draws=30) for i in range(60)]
    assert np.mean([each.hi - each.lo for each in grouped]) == pytest.approx(2 * 2.045 / math.sqrt(300), rel=0.05)


def test_no_interval_leaves_the_possible_range() -> None:
    """Equal rows, all orthogonal ones, few rows and few dimensions: where the jackknife alone would."""
    assert subsample_interval(np.ones((6, 4))) == pytest.approx((1, 1, 1))
    outlier = np.ones((6, 4)) - 2 * (np.arange(6) == 5)[:, None] * np.array([0, 0, 1, 1])
    found = [subsample_interval(x) for x in (outlier, *(normal(n, dim, seed=n) for n in (3, 5, 8, 200) for dim in (2, 3, 300)))]
    free = [subsample_interval(x, vendi_score, bounds=(-math.inf, math.inf)) for x in (outlier, normal(8, 2, seed=8))]
    assert free[0].lo < 1 == found[0].lo
    assert free[1].hi > 2
    limits = [6, *(min(n, dim) for n in (3, 5, 8, 200) for dim in (2, 3, 300))]
    for each, limit in zip(found, limits, strict=True):
        assert 1 <= each.lo <= each.value <= each.hi <= limit
    x = normal(20, 3)
    bounded = subsample_interval(x, lambda features: vendi_score(features, 2), bounds=(1, 2.99))
    assert bounded.lo < bounded.value < bounded.hi == 2.99


def test_every_row_is_left_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """23 rows in 5 groups: sizes of 18 and 19, in any chunks."""
    x, seen = np.arange(1.0, 24)[:, None], []

    def counted(features: Array) -> Array:
        seen.extend([set(part.ravel()) for part in features])
        return np.asarray(features.sum((-1, -2)))

    found = subsample_interval(x, counted, draws=5, seed=3)
    left = [set(x.ravel()) - part for part in seen if len(part) < 23]
    assert sorted(len(part) for part in left) == [4, 4, 5, 5, 5]
    assert set.union(*left) == set(x.ravel())
    monkeypatch.setattr("diffprobe.measures.sets.diversity.CHUNK", 20)
    assert subsample_interval(x, counted, draws=5, seed=3) == found
    assert subsample_interval(x, counted, draws=5, seed=4) != found


def test_bad_input_is_refused() -> None:
    x = normal(20, 4)
    with pytest.raises(ValueError, match="2 of 20 rows are zero and have no direction: leave them out"):
        vendi_score(x * (np.arange(20) > 1)[:, None])
    with pytest.raises(ValueError, match="1 of 20 rows of features hold nan or inf"):
        vendi_score(np.where(np.arange(20)[:, None] == 3, np.nan, x))
    for order in (-1, math.nan):
        with pytest.raises(ValueError, match="0 or more"):
            vendi_score(x, order)
    for shape in ((4,), (0, 4), (3, 0)):
        with pytest.raises(ValueError, match="one row a sample"):
            vendi_score(np.zeros(shape))
    with pytest.raises(ValueError, match="at least 3 rows"):
        subsample_interval(x[:2])
    with pytest.raises(ValueError, match="3 draws or more"):
        subsample_interval(x, draws=2)
    with pytest.raises(ValueError, match="lowest and the highest possible score"):
        subsample_interval(x, bounds=(3, 1))
    with pytest.raises(ValueError, match="one number a set"):
        subsample_interval(x, lambda features: features.mean(1))
