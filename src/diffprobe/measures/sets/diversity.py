"""How many different things a set holds, and an interval for such scores."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.sets.features import Array, Features, as_array, as_set, finite
from diffprobe.measures.sets.pairs import unit_rows
from diffprobe.measures.stats.intervals import CHUNK, Interval


class Score(Protocol):
    """One number a set: features [R, n, D] to [R]. `vendi_score` is one."""

    def __call__(self, features: Array, /) -> Array: ...


def vendi_score(features: Features, order: float = 1.0) -> Array:
    """The effective number of different rows of [..., n, D]: float64 [...], a plain number for one set [n, D].

    exp of the entropy of the eigenvalues of K/n, K the cosines of the rows: 1 for equal rows, n for orthogonal ones (Friedman and
    Dieng 2023). `order` q: Renyi's (Pasarkar and Dieng 2024): 1 Shannon's, 2 one over the mean squared cosine, infinite one over the
    largest eigenvalue, 0 the rank (eigenvalues of round-off size are 0 in every order). Exact by the smaller of K and its D x D dual.
    It grows with n: compare equal n only. Raises ValueError for a row of zeros, nan and infinite values, or an order < 0.
    """
    if not order >= 0:
        raise ValueError(f"an order of entropy is 0 or more, not {order}: 1 is the Vendi score")
    found = as_array(features)
    if found.ndim < 2 or 0 in found.shape:
        raise ValueError(f"vendi_score needs features [..., n, D] with n >= 1, not {list(found.shape)}: one row a sample")
    rows = unit_rows(finite(found))
    n, dim = rows.shape[-2:]
    turned = np.swapaxes(rows, -1, -2)
    values = np.linalg.eigvalsh(rows @ turned if n <= dim else turned @ rows) / n
    values = np.where(values > max(n, dim) * np.finfo(np.float64).eps * values[..., -1:], values, 0)
    return np.asarray(np.exp(_entropy(values, order)))[()]


def subsample_interval(
    features: Features,
    score: Score = vendi_score,
    *,
    draws: int = 100,
    level: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """A score of one set [n, D] with the interval for its expectation over sets of n such samples.

    Random groups of rows are left out one at a time, at most `draws` of them (each row its own group where n is not larger), and
    the spread is rescaled (delete-group jackknife, Student's t): subsamples without replacement, since a bootstrap's repeated rows
    lower any score of diversity. The target is the score of n samples, not of infinitely many: that one is higher.
    Limits are kept within `bounds`, the score's possible range: that of `vendi_score`, 1 to min(n, D), needs not be given.
    Coverage of 95 % in simulations of the Vendi score of 20 to 200 rows: 94 to 96 % for clusters and for broad sets, 90 to 96 %
    where half of the rows are equal, 99 % where it saturates near min(n, D); 89 to 96 % for 10 rows.
    Raises ValueError for fewer than 3 rows or draws, or bounds that are no range.
    """
    rows = finite(as_set(features, fewest=3))
    if draws < 3:
        raise ValueError(f"a subsampling interval needs 3 draws or more, not {draws}: 100 are usual")
    bounds = bounds or ((1, min(rows.shape)) if score is vendi_score else (-math.inf, math.inf))
    if not bounds[0] <= bounds[1]:
        raise ValueError(f"bounds are the lowest and the highest possible score, not {bounds}")
    n, groups = len(rows), min(len(rows), draws)
    order = rng.stream("subsample_interval", seed).permutation(n)
    kept = [np.sort(np.delete(order, np.s_[group::groups])) for group in range(groups)]
    values = np.concatenate([_scores(rows, [part for part in kept if len(part) == size], score) for size in sorted({len(p) for p in kept})])
    value = float(score(rows[None])[0])
    half = float(ss.t.ppf((1 + level) / 2, groups - 1) * math.sqrt((groups - 1) * values.var()))
    low, high = min(bounds[0], value), max(bounds[1], value)  # round-off may leave the range
    return Interval(value, max(value - half, low), min(value + half, high))


def _scores(rows: Array, kept: list[NDArray[np.int64]], score: Score) -> Array:
    """The score of some subsets of one size, a bounded number of values at once."""
    step = max(1, CHUNK // (len(kept[0]) * rows.shape[1]))
    parts = [np.asarray(score(rows[np.stack(kept[i : i + step])]), np.float64) for i in range(0, len(kept), step)]
    if parts[0].shape != (min(step, len(kept)),):
        raise ValueError(f"a score must give one number a set: features [R, n, D] to [R], not {list(parts[0].shape)}")
    return np.concatenate(parts)


def _entropy(values: Array, order: float) -> Array:
    """Renyi's entropy of eigenvalues [..., r] that sum to 1; those that are 0 do not count."""
    if order == 1:
        return np.asarray(-(values * np.log(np.where(values > 0, values, 1))).sum(-1))
    largest = values[..., -1]
    if order == math.inf:
        return np.asarray(-np.log(largest))
    shares = values / largest[..., None]  # powers of these do not vanish together, whatever the order
    powers = np.where(values > 0, shares, 1) ** order * (values > 0)
    return np.asarray((order * np.log(largest) + np.log(powers.sum(-1))) / (1 - order))
