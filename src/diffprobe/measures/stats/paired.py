"""Two measurements of the same units: how far they are apart, pair by pair."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.stats.effects import paired_effect
from diffprobe.measures.stats.intervals import Array, Interval, bootstrap

#: Pairs up to which the signed-rank distribution is taken exactly.
EXACT_PAIRS = 50


class Difference(NamedTuple):
    """What `paired_difference` found about a - b; p values are two-sided."""

    mean: Interval
    shift: Interval  # Hodges-Lehmann: the median of the averages of all pairs of differences
    wilcoxon_p: float
    permutation_p: float
    effect_size: float  # Cohen's d_z: mean over standard deviation of the differences
    n: int
    dropped: int  # pairs with a nan
    effect: Interval  # d_z with its interval: see `paired_effect`
    wilcoxon_method: Literal["exact", "normal"]
    permutation_method: Literal["all flips", "random flips"]


def paired_difference(a: ArrayLike, b: ArrayLike, *, level: float = 0.95, replicates: int = 10_000, seed: int = 0) -> Difference:
    """How a [n] differs from b [n], pair by pair: a - b, by its mean and its median shift.

    Mean: studentised bootstrap interval and sign-flip permutation test (every flip where 2^n <= replicates). Shift: Hodges-Lehmann
    with the interval of the Wilcoxon signed-rank test, which is exact up to 50 pairs without ties and zeros and else normal, as
    `wilcoxon_method` says: of 100 pairs on one side the normal p is 3.9e-18, the exact one would be 2^-99 = 1.6e-30.
    A pair with a nan is dropped and counted. Raises ValueError for different lengths, infinite values or no pair.
    """
    d, dropped = differences(a, b)
    effect = paired_effect(d, level=level)
    wilcoxon_p, method = _signed_rank(d)
    return Difference(
        mean=bootstrap(d, replicates=replicates, level=level, seed=seed),
        shift=shift(d, level=level),
        wilcoxon_p=wilcoxon_p,
        permutation_p=_flip_p(d, replicates, seed),
        effect_size=effect.value,
        n=len(d),
        dropped=dropped,
        effect=effect,
        wilcoxon_method=method,
        permutation_method="all flips" if 2 ** len(d) <= replicates else "random flips",
    )


def shift(d: ArrayLike, *, level: float = 0.95) -> Interval:
    """The Hodges-Lehmann shift of differences [n], and the interval of shifts that the signed-rank test does not reject.

    The limits are infinite where n is too small for the level (under 6 for 95 %): no data could reject any shift.
    """
    x = np.sort(np.asarray(d, dtype=np.float64))
    pairs = len(x) * (len(x) + 1) // 2
    centre = (_walsh(x, (pairs + 1) // 2) + _walsh(x, pairs // 2 + 1)) / 2
    outside = _signed_rank_quantile(len(x), (1 - level) / 2)
    if outside < 0:
        return Interval(centre, -math.inf, math.inf)
    return Interval(centre, _walsh(x, outside + 1), _walsh(x, pairs - outside))


def differences(a: ArrayLike, b: ArrayLike) -> tuple[Array, int]:
    """a - b [pairs] without the pairs that have a nan, and how many those are."""
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"paired values need two sequences [n] of one length, not {list(x.shape)} and {list(y.shape)}: align them by unit")
    if np.isinf(x).any() or np.isinf(y).any():
        raise ValueError("an infinite value has no difference: leave its unit out by nan")
    d = (x - y)[~np.isnan(x - y)]
    if len(d) == 0:
        raise ValueError(f"no pair is complete: {len(x)} of {len(x)} have a nan")
    return d, len(x) - len(d)


def _signed_rank(d: Array) -> tuple[float, Literal["exact", "normal"]]:
    """Wilcoxon's p; zeros are left out and ties share their rank, both only known to the normal approximation."""
    moved = d[d != 0]
    if len(moved) == 0:
        return 1.0, "exact"
    plain = len(d) <= EXACT_PAIRS and len(moved) == len(d) == len(np.unique(np.abs(d)))
    return float(ss.wilcoxon(moved, method="exact" if plain else "approx").pvalue), "exact" if plain else "normal"


def _signed_rank_quantile(n: int, tail: float) -> int:
    """The largest w with P(W <= w) <= tail for the signed-rank sum W of n pairs; -1 if there is none."""
    if n > EXACT_PAIRS:
        deviation = math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return math.floor(n * (n + 1) / 4 + float(ss.norm.ppf(tail)) * deviation - 0.5)
    mass = np.zeros(n * (n + 1) // 2 + 1)
    mass[0] = 1.0
    for rank in range(1, n + 1):
        mass[rank:] += mass[:-rank].copy()
        mass /= 2
    return int(np.searchsorted(np.cumsum(mass), tail, side="right")) - 1


def _walsh(x: Array, rank: int) -> float:
    """The rank-th smallest (from 1) of the averages (x_i + x_j) / 2, i <= j, of sorted x: by bisection, without the n^2 averages."""
    lo, hi = float(x[0]), float(x[-1])
    rounding = 4 * np.finfo(np.float64).eps * max(abs(lo), abs(hi))

    def count(limit: float) -> int:
        ordered = int(np.searchsorted(x, 2 * limit - x, side="right").sum())
        return (ordered + int(np.searchsorted(x, limit, side="right"))) // 2

    if count(lo) >= rank:
        return lo
    while hi - lo > rounding:
        middle = (lo + hi) / 2
        lo, hi = (lo, middle) if count(middle) >= rank else (middle, hi)
    return hi


def _flip_p(d: Array, replicates: int, seed: int) -> float:
    """Sign-flip test of a mean of 0: all 2^n flips where they are few, else random ones with the observed one counted in."""
    n = len(d)
    observed = abs(float(d.sum())) * (1 - 1e-12)
    if 2**n <= replicates:
        flips = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs((1 - 2 * flips) @ d) >= observed))
    generator = rng.stream("permutation", seed)
    step = max(1, 4_000_000 // n)
    sizes = [min(step, replicates - start) for start in range(0, replicates, step)]
    extreme = sum(int((np.abs((1 - 2 * generator.integers(2, size=(rows, n), dtype=np.int8)) @ d) >= observed).sum()) for rows in sizes)
    return (1 + extreme) / (1 + replicates)
