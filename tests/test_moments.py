"""Moments of a set against numpy's, in any batches and any order of merging."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffprobe import rng
from diffprobe.measures.sets import Moments, frechet_distance, moments

Array = NDArray[np.float64]


def rows(n: int, dim: int = 6, seed: int = 0) -> Array:
    """A set far from the origin, with directions of unlike size: means of 100 to 10,000 deviations."""
    return rng.stream("test.moments", seed).standard_normal((n, dim)) * np.geomspace(1, 0.01, dim) + 100


def same(a: Moments, b: Moments, rel: float = 1e-10) -> bool:
    scale = np.sqrt(np.outer(b.outer.diagonal(), b.outer.diagonal()))
    means = np.allclose(a.mean, b.mean, rtol=rel, atol=0)
    return a.n == b.n and means and bool((np.abs(a.outer - b.outer) <= rel * scale).all())


def test_they_are_numpys() -> None:
    x = rows(200)
    found = Moments().update(x)
    assert (found.n, found.dim) == (200, 6)
    assert found.mean == pytest.approx(x.mean(0), rel=1e-14)
    assert found.covariance == pytest.approx(np.cov(x.T), rel=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 64, 500])
def test_the_batches_do_not_matter(batch: int) -> None:
    x, found = rows(300), Moments()
    for start in range(0, len(x), batch):
        found.update(x[start : start + batch])
    assert same(found, Moments().update(x))


def test_the_chunks_of_one_update_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(300)
    whole = Moments().update(x)
    monkeypatch.setattr(moments, "CHUNK", 6 * 11)
    assert same(Moments().update(x), whole)


def test_any_order_of_merging_gives_the_same() -> None:
    parts = [Moments().update(part) for part in np.split(rows(400), [3, 50, 51, 220])]
    whole = Moments().update(rows(400))
    for order in itertools.permutations(range(5)):
        a, b, c, d, e = (parts[i] for i in order)
        assert same(a.merge(b).merge(c).merge(d).merge(e), whole)
        assert same(a.merge(b).merge(c.merge(d.merge(e))), whole)


def test_merging_changes_neither_part() -> None:
    a, b = Moments().update(rows(20)), Moments().update(rows(30, seed=1))
    before = [pickle.dumps(part) for part in (a, b)]
    both = a.merge(b)
    both.outer += 1
    a.merge(Moments()).outer += 1
    assert [pickle.dumps(part) for part in (a, b)] == before


def test_nothing_merges_into_nothing() -> None:
    a = Moments().update(rows(20))
    assert same(Moments().merge(a), a, 0)
    assert same(a.merge(Moments()), a, 0)
    assert same(Moments().update(rows(20)).update(np.empty((0, 6))), a, 0)
    assert Moments().merge(Moments()).n == 0


def test_they_pickle() -> None:
    a = Moments().update(rows(20))
    again = pickle.loads(pickle.dumps(a))
    assert same(again, a, 0)
    assert same(again.update(rows(5, seed=1)), Moments().update(np.concatenate([rows(20), rows(5, seed=1)])))


def test_tensors_count_in_float64() -> None:
    x = torch.from_numpy(rows(50))
    assert same(Moments().update(x), Moments().update(rows(50)), 0)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        narrow = x.to(dtype).requires_grad_()
        assert same(Moments().update(narrow), Moments().update(narrow.detach().double().numpy()))


def test_a_large_mean_costs_no_digits() -> None:
    x = rng.stream("test.moments.mean").integers(-8, 9, size=(100, 3)) / 8
    far = Moments()
    for part in np.split(x + 2.0**10, 10):
        far.update(part)
    assert far.mean == pytest.approx(x.mean(0) + 2.0**10, rel=1e-15)
    assert far.covariance == pytest.approx(np.cov(x.T), rel=1e-10)


def test_published_statistics_are_moments() -> None:
    x = rows(80, 3)
    given = Moments.given(x.mean(0), np.cov(x.T), 80)
    assert same(given, Moments().update(x), 1e-9)
    assert frechet_distance(given, x) == pytest.approx(0, abs=1e-10)
    assert type(Moments.given(x.mean(0), np.cov(x.T), np.int64(80)).n) is int  # type: ignore[arg-type]


def test_singular_and_rounded_statistics_are_covariances() -> None:
    x = rows(5, 60)
    rounded = np.cov(x.T).astype(np.float32)
    assert np.linalg.eigvalsh(rounded.astype(np.float64))[0] < 0
    assert Moments.given(x.mean(0), rounded, 5).covariance == pytest.approx(rounded, rel=1e-6, abs=1e-12)
    assert (Moments.given(np.zeros(3), np.zeros((3, 3)), 5).covariance == 0).all()


@pytest.mark.parametrize(
    ("covariance", "lowest"),
    [
        ([[1.0, 0.0], [0.0, -1.0]], "-1"),
        ([[1.0, 2.0], [2.0, 1.0]], "-1"),
        ([[1.0, 1.0001], [1.0001, 1.0]], "-0.0001"),
        ([[0.0, 1.0], [1.0, 0.0]], "-1"),
        ([[-1e-9, 0.0], [0.0, 1.0]], "-1e-09"),
    ],
)
def test_negative_variances_are_refused(covariance: list[list[float]], lowest: str) -> None:
    with pytest.raises(ValueError, match=f"no negative variance in any direction, this one has {lowest}: give"):
        Moments.given(np.zeros(2), np.array(covariance), 10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_nothing_added(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "CHUNK", 60)
    a, x = Moments().update(rows(20)), rows(30)
    x[[17, 29], 3] = bad
    with pytest.raises(ValueError, match=r"2 of 30 rows .* leave those samples out"):
        a.update(x)
    assert same(a, Moments().update(rows(20)), 0)


def test_bad_input_is_refused() -> None:
    a = Moments().update(rows(20))
    with pytest.raises(ValueError, match="width 6 take no features of width 5"):
        a.update(rows(20, 5))
    with pytest.raises(ValueError, match="do not merge"):
        a.merge(Moments().update(rows(20, 5)))
    with pytest.raises(ValueError, match=r"\[n, D\]"):
        a.update(np.zeros(6))
    with pytest.raises(ValueError, match="real numbers"):
        a.update(np.zeros((3, 6), np.complex128))
    with pytest.raises(ValueError, match="two rows"):
        _ = Moments().update(rows(1)).covariance
    with pytest.raises(ValueError, match="published statistics"):
        Moments.given(np.zeros(3), np.eye(4), 10)
    with pytest.raises(ValueError, match="published statistics"):
        Moments.given(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), 10)
    for n in (10.0, 10.5, True):
        with pytest.raises(ValueError, match=f"a whole number, not {n}"):
            Moments.given(np.zeros(2), np.eye(2), n)  # type: ignore[arg-type]
