"""Two samples: what holds where units do not pair (where they do, `paired_difference` is sharper), and how two traits go together."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as ss

from diffprobe.measures.stats.effects import cliffs_delta, hedges_g, welch_error
from diffprobe.measures.stats.intervals import Array, Interval

#: Pairs of values (n_a n_b) up to which the Kolmogorov-Smirnov distribution is taken exactly.
EXACT_PRODUCT = 250_000


class IndependentDifference(NamedTuple):
    """What `independent_difference` found about a against b; p values are two-sided."""

    mean: Interval  # Welch: mean a - mean b
    welch_p: float
    effect: Interval  # Hedges' g
    delta: Interval  # Cliff's: P(a > b) - P(a < b)
    ks: float  # the largest distance of the two distribution functions
    ks_p: float
    ks_method: Literal["exact", "asymptotic"]
    n: tuple[int, int]
    dropped: tuple[int, int]  # nan in a and in b


def independent_difference(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> IndependentDifference:
    """How the values of a [n] differ from those of b [m], of other units: by mean, standardised, by rank and in distribution.

    The Kolmogorov-Smirnov test takes the samples as independent: for the same units in both it is not valid, and far too careful
    where they correlate. Nan are dropped and counted. Raises ValueError for infinite values or an empty sample.
    """
    (x, gaps_a), (y, gaps_b) = _sample(a), _sample(b)
    mean, p = welch(x, y, level=level)
    method: Literal["exact", "asymptotic"] = "exact" if len(x) * len(y) <= EXACT_PRODUCT else "asymptotic"
    ks = ss.ks_2samp(x, y, method="exact" if method == "exact" else "asymp")
    return IndependentDifference(
        mean=mean,
        welch_p=p,
        effect=hedges_g(x, y, level=level),
        delta=cliffs_delta(x, y, level=level),
        ks=float(ks.statistic),
        ks_p=float(ks.pvalue),
        ks_method=method,
        n=(len(x), len(y)),
        dropped=(gaps_a, gaps_b),
    )


def welch(a: ArrayLike, b: ArrayLike, *, level: float = 0.95) -> tuple[Interval, float]:
    """mean a - mean b with the interval and the two-sided p of Welch's t (1947): variances may differ.

    Good for about normal samples of 10 values or more. Limits and p are nan with fewer than 2 values in a sample.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = float(x.mean() - y.mean())
    if min(len(x), len(y)) < 2:
        return Interval(difference, math.nan, math.nan), math.nan
    error, degrees = welch_error(x, y)
    if error == 0:
        return Interval(difference, difference, difference), float(difference == 0)
    half = float(ss.t.ppf((1 + level) / 2, degrees)) * error
    return Interval(difference, difference - half, difference + half), float(2 * ss.t.sf(abs(difference) / error, degrees))


def rank_correlation(x: ArrayLike, y: ArrayLike, *, level: float = 0.95) -> Interval:
    """Spearman's correlation of x [n] and y [n], tied values by midranks, with the interval of Bonett and Wright (2000).

    Fisher's z with the variance (1 + r^2 / 2) / (n - 3). At r = 1 or -1, where z has no end, the inner limit is that of half a swap
    of neighbours less. Coverage of 95 % in simulations of 10 to 100 normal pairs: 94 to 97 % up to a correlation of 0.95. All are
    nan where one side is constant, the limits for n < 4. Raises ValueError for lengths that differ, or values that are not finite.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            f"a rank correlation needs two sequences [n] of finite values, not {list(a.shape)} and {list(b.shape)}: "
            "leave out the pairs where one is nan"
        )
    n = len(a)
    if n < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return Interval(math.nan, math.nan, math.nan)
    ranks = [ss.rankdata(side) - (n + 1) / 2 for side in (a, b)]
    r = float(ranks[0] @ ranks[1] / math.sqrt((ranks[0] @ ranks[0]) * (ranks[1] @ ranks[1])))
    r = min(max(r, -1.0), 1.0)
    if n < 4:
        return Interval(r, math.nan, math.nan)
    most = 1 - 6 / (n * (n**2 - 1.0))  # two neighbours that change places cost 12 / (n (n^2 - 1))
    centre, half = math.atanh(min(max(r, -most), most)), float(ss.norm.ppf((1 + level) / 2)) * math.sqrt((1 + r**2 / 2) / (n - 3))
    lo, hi = math.tanh(centre - half), math.tanh(centre + half)
    return Interval(r, -1.0 if r < -most else lo, 1.0 if r > most else hi)


def _sample(values: ArrayLike) -> tuple[Array, int]:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or np.isinf(x).any():
        raise ValueError(
            f"a sample is one sequence [n] of finite values or nan, not {list(x.shape)} with {int(np.isinf(x).sum())} infinite"
        )
    kept = x[~np.isnan(x)]
    if len(kept) == 0:
        raise ValueError(f"a sample has no value: {len(x)} of {len(x)} are nan")
    return kept, len(x) - len(kept)
