"""Intervals and tests: every number that leaves the project is an Estimate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy import stats as ss

from diffprobe import rng
from diffprobe.measures.intervals import Array, Interval, bootstrap, cluster_weights, mean_interval

__all__ = [
    "Difference",
    "Equivalence",
    "Estimate",
    "Interval",
    "bootstrap",
    "cluster_weights",
    "equivalence",
    "holm",
    "mean_interval",
    "minimum_detectable_difference",
    "paired_difference",
    "shift",
]

#: Pairs up to which the signed-rank distribution is taken exactly.
EXACT_PAIRS = 50


@dataclass(frozen=True)
class Estimate:
    """A summarised quantity with its interval and the number of independent units behind it.

    `value`, `lo`, `hi` are None where it could not be measured; `reason` then says why. `facets` say of which subset it speaks.
    """

    probe: str
    quantity: str
    value: float | None
    lo: float | None
    hi: float | None
    n: int
    unit: str = ""
    facets: Mapping[str, str | float | int | bool] = field(default_factory=dict)
    reason: str | None = None


class Difference(NamedTuple):
    """What `paired_difference` found about a - b; p values are two-sided."""

    mean: Interval
    shift: Interval  # Hodges-Lehmann: the median of the averages of all pairs of differences
    wilcoxon_p: float
    permutation_p: float
    effect_size: float  # Cohen's d_z: mean over standard deviation of the differences
    n: int
    dropped: int  # pairs with a nan


class Equivalence(NamedTuple):
    """What `equivalence` found: `difference` has the interval of level 1 - 2 alpha that decides the test."""

    difference: Interval
    p: float
    equivalent: bool
    margin: float
    n: int
    dropped: int


def paired_difference(a: ArrayLike, b: ArrayLike, *, level: float = 0.95, replicates: int = 10_000, seed: int = 0) -> Difference:
    """How a [n] differs from b [n], pair by pair: a - b, by its mean and its median shift.

    Mean: studentised bootstrap interval and sign-flip permutation test (every flip where 2^n <= replicates). Shift: Hodges-Lehmann
    with the interval of the Wilcoxon signed-rank test, which is exact up to 50 pairs without ties and zeros and else normal.
    A pair with a nan is dropped and counted. Raises ValueError for different lengths, infinite values or no pair.
    """
    d, dropped = _differences(a, b)
    spread = float(d.std(ddof=1)) if len(d) > 1 else math.nan
    return Difference(
        mean=bootstrap(d, replicates=replicates, level=level, seed=seed),
        shift=shift(d, level=level),
        wilcoxon_p=_signed_rank_p(d),
        permutation_p=_flip_p(d, replicates, seed),
        effect_size=float(d.mean()) / spread if spread > 0 else math.nan,
        n=len(d),
        dropped=dropped,
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


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p values of one family [m], in the given order; a nan stays nan and does not count in the family."""
    p = np.asarray(p_values, dtype=np.float64)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p values lie in [0, 1]")
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]
    adjusted = np.full_like(p, math.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def equivalence(a: ArrayLike, b: ArrayLike, margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Two one-sided paired t tests (Schuirmann 1987) of |mean(a - b)| < margin; `p` is the larger of the two.

    Equivalent if and only if the interval of level 1 - 2 alpha lies within the margin. Raises ValueError for a margin <= 0
    and for fewer than 2 pairs.
    """
    d, dropped = _differences(a, b)
    if not margin > 0 or len(d) < 2:
        raise ValueError(f"equivalence needs a margin > 0 and 2 pairs or more, not {margin} and {len(d)}")
    difference = mean_interval(d, level=1 - 2 * alpha)
    error = float(d.std(ddof=1)) / math.sqrt(len(d))
    nearest = margin - abs(difference.value)
    p = float(ss.t.sf(nearest / error, len(d) - 1)) if error > 0 else float(nearest <= 0)
    return Equivalence(difference, p, p < alpha, margin, len(d), dropped)


def minimum_detectable_difference(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean difference that a two-sided paired t test of n pairs finds with this power, in the units of `sd`.

    `sd`: standard deviation of the paired differences. By the noncentral F distribution of t squared. Raises ValueError for n < 2.
    """
    if n < 2 or not sd >= 0 or not alpha < power < 1:
        raise ValueError(f"need n >= 2, sd >= 0 and alpha < power < 1, not n = {n}, sd = {sd}, power = {power}")
    critical = float(ss.t.ppf(1 - alpha / 2, n - 1))

    def excess(delta: float) -> float:
        return float(ss.ncf.sf(critical**2, 1, n - 1, delta**2)) - power

    return float(optimize.brentq(excess, 1e-6, 5 * critical + 10)) * sd / math.sqrt(n)


def _differences(a: ArrayLike, b: ArrayLike) -> tuple[Array, int]:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"paired values need two sequences [n] of one length, not {list(x.shape)} and {list(y.shape)}: align them by unit")
    if np.isinf(x).any() or np.isinf(y).any():
        raise ValueError("an infinite value has no difference: leave its unit out by nan")
    d = (x - y)[~np.isnan(x - y)]
    if len(d) == 0:
        raise ValueError(f"no pair is complete: {len(x)} of {len(x)} have a nan")
    return d, len(x) - len(d)


def _signed_rank_p(d: Array) -> float:
    """Wilcoxon's p; zeros are left out and ties share their rank, both only known to the normal approximation."""
    moved = d[d != 0]
    if len(moved) == 0:
        return 1.0
    plain = len(d) <= EXACT_PAIRS and len(moved) == len(d) == len(np.unique(np.abs(d)))
    return float(ss.wilcoxon(moved, method="exact" if plain else "approx").pvalue)


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
