"""How mixing with a fixed length amplifies what latents share: the law, and what is seen of it in a pool of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.interpolation.alignment import Alignment, misalignment
from diffprobe.measures.stats.intervals import FEWEST, Array, Interval

Bools = NDArray[np.bool_]
Order = NDArray[np.int64]
#: Blocks of images that are left out in turn.
BLOCKS = 16
#: Values of b among which the best is sought first.
GRID = 65


def amplification(n: ArrayLike, shared: float, power: float | None = None) -> Array:
    """How much longer "fix" makes the mean of n latents: 1 / sqrt((power - shared) / n + shared), of the shape of n.

    `power` is the mean of ||z||² / L, in units of pure noise, and `shared` that of <z, z'> / L over pairs, so that the mean of n has
    the expected square (power - shared) / n + shared. Without `power` it is 1 + shared, noise of its nominal power on a shared offset b,
    which gives sqrt(n / (1 + n b²)): near sqrt(n) as long as n b² is small, and 1 / b for n without end. All that is shared is amplified
    alike, an offset of channels as a pattern. For weights that differ n is `effective_number`; for "nin" the law is times the mean of
    ||z|| / sqrt(L); with a mean kept out, `power` and `shared` are those of e.
    """
    total = 1 + shared if power is None else power
    return np.asarray(1 / np.sqrt((total - shared) / np.asarray(n, dtype=np.float64) + shared))


class Amplified(NamedTuple):
    """Means of channels [S, C] of "fix" centroids of S sizes; rows of sizes that the pool does not have are nan."""

    sizes: tuple[int, ...]
    observed: Array  # means over draws
    lo: Array  # its limits over images
    hi: Array
    foretold: Array  # by the law from the images' own means and inner products: no parameter is fitted
    root: Array  # if all were amplified by sqrt(n): without an end
    offset: tuple[Interval, ...]  # of each channel, fitted
    shared: Interval  # b², fitted to all channels
    r2: Array  # of the fit, over sizes [C]
    r2_foretold: Array  # of what was foretold [C]


def amplified(found: Alignment, sizes: Sequence[int], *, draws: int = 200, seed: int = 0, level: float = 0.95) -> Amplified:
    """Centroids of `draws` random subsets of each size, without replacement, and the law fitted to their means of channels.

    The fit is of offset_c / sqrt((power - shared) / n + shared), by least squares over all sizes and channels. Limits are Student's t
    with errors by the jackknife over 16 blocks of images, each left out of the same draws. Coverage of 95 % in simulations, 16 to 96
    images: 92 to 98 % for what is observed, the offsets and `shared`, which is covered in excess where n b² stays small up to the
    largest n, so that nothing saturates. Limits are nan for fewer than 8 images, the fit for fewer than 2 sizes. Raises ValueError for
    no sizes, sizes below 1, and no draws.
    """
    if len(sizes) == 0 or min(sizes) < 1 or draws < 1:
        raise ValueError(f"centroids are of 1 or more latents, drawn at least once: {draws} draws of sizes {list(sizes)} are none")
    count, channels = found.channels.shape
    pool = np.tile(np.arange(count), (draws, 1))
    orders = {n: rng.stream("interpolation.amplified", seed, n).permuted(pool, axis=1) for n in map(int, sizes)}
    value = _told(found, orders, np.ones(count, bool))
    half = np.full_like(value, math.nan)
    if count >= FEWEST:
        blocks = np.arange(count) * min(BLOCKS, count) // count
        left_out = np.array([_told(found, orders, blocks != block) for block in range(blocks[-1] + 1)])
        errors = np.sqrt((len(left_out) - 1) * left_out.var(axis=0))
        half = float(ss.t.ppf((1 + level) / 2, len(left_out) - 1)) * errors
    limits = np.stack([value, value - half, value + half])
    observed, lo, hi = limits[:, : -channels - 1].reshape(3, len(orders), channels)
    offset, shared = limits[:, -channels:], limits[:, -channels - 1].tolist()
    between, n = misalignment(found), np.array(list(orders), np.float64)[:, None]
    power, mean = between.power.value, found.channels.mean(0)
    foretold = amplification(n, max(between.total.value, 0.0), power) * mean
    return Amplified(
        tuple(orders),
        observed,
        lo,
        hi,
        foretold,
        np.sqrt(n / power) * mean,
        tuple(Interval(*one) for one in offset.T.tolist()),
        Interval(shared[0], max(shared[1], 0.0), shared[2]),
        _explained(observed, amplification(n, shared[0], power) * offset[0]),
        _explained(observed, foretold),
    )


def _told(found: Alignment, orders: Mapping[int, Order], kept: Bools) -> Array:
    """What centroids of the kept images tell: their means of channels [S, C], the fitted b² and offsets [C], in one row."""
    means = np.array([_centroids(found, order, n, kept) for n, order in orders.items()])
    power = float(np.diagonal(found.gram)[kept].mean()) / found.size
    return np.concatenate([means.ravel(), _fitted(np.array(list(orders)), means, power)])


def _centroids(found: Alignment, order: Order, n: int, kept: Bools) -> Array:
    """The means of channels [C] of "fix" centroids of the first n that are kept of each order [draws, P], averaged over draws."""
    if n > len(kept):
        return np.full(found.channels.shape[1], math.nan)
    inside = kept[order]
    members = np.zeros(order.shape)
    np.put_along_axis(members, order, inside & (inside.cumsum(axis=1) <= n), axis=1)
    squares = ((members @ found.gram) * members).sum(axis=1) / found.size
    return np.asarray((members @ found.channels / np.sqrt(squares)[:, None]).mean(axis=0))


def _fitted(n: NDArray[np.int64], means: Array, power: float) -> Array:
    """b² and the offsets [1 + C] by least squares: given b², the best offsets are a projection, so that one parameter is searched for."""
    drawn = np.isfinite(means[:, 0])
    n, means = n[drawn], means[drawn]
    if len(n) < 2:
        return np.full(1 + means.shape[1], math.nan)

    def missed(b: float) -> float:
        alpha = amplification(n, b * b, power)
        return -float(((alpha @ means) ** 2).sum() / (alpha @ alpha))

    grid = math.sqrt(power) * np.linspace(0, 1, GRID) ** 2
    best = int(np.argmin([missed(b) for b in grid]))
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]
    b = float(optimize.minimize_scalar(missed, bounds=bounds, method="bounded", options={"xatol": 1e-7}).x)
    alpha = amplification(n, b * b, power)
    return np.array([b * b, *(alpha @ means / (alpha @ alpha))])


def _explained(means: Array, told: Array) -> Array:
    """The share of the squares over sizes that is explained [C]; nan for fewer than 2 sizes."""
    valid = np.isfinite(means[:, 0])
    if valid.sum() < 2:
        return np.full(means.shape[1], math.nan)
    y, error = means[valid], means[valid] - told[valid]
    spread = ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    return np.asarray(1 - (error**2).sum(axis=0) / np.where(spread > 0, spread, math.nan))
