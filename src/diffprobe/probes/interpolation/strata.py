"""Means over groups: each group is a stratum of its own, and what is drawn within it is the unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats as ss

from diffprobe.measures.stats import Interval
from diffprobe.probes.interpolation.tables import Array

UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Told(NamedTuple):
    """A mean over strata with its interval, the two-sided p of a mean of 0, and the number of units."""

    interval: Interval
    p: float
    n: int


class Pairs(NamedTuple):
    """Means over all pairs of different units of K symmetric matrices: `mean` [K], and `without` [P, K] each of the units."""

    mean: Array
    without: Array


def stratified(parts: Sequence[Array], level: float, weights: Sequence[float] | None = None) -> Told:
    """The weighted mean (equal weights) of the means of independent strata [n_k], of units drawn independently in each.

    Student's t with Satterthwaite's degrees of freedom (1946). Limits and p are nan where a stratum has one unit alone. Coverage of 95 %
    in simulations of 1 to 4 strata of 8 to 24 units: 94 to 96 % if normal, 93 to 95 % for gamma(3), 90 to 94 % for exponential units.
    """
    kept = [(part, 1.0 if weights is None else weights[index]) for index, part in enumerate(parts) if len(part)]
    n = sum(len(part) for part, _ in kept)
    total = sum(weight for _, weight in kept)
    if not kept or total <= 0:
        return Told(UNKNOWN, math.nan, n)
    shares = [(part, weight / total) for part, weight in kept]
    value = float(sum(weight * part.mean() for part, weight in shares))
    if min(len(part) for part, _ in kept) < 2:
        return Told(Interval(value, math.nan, math.nan), math.nan, n)
    error, freedom = _error([(weight**2 * float(part.var(ddof=1)) / len(part), len(part) - 1) for part, weight in shares])
    if error == 0:
        return Told(Interval(value, value, value), float(value == 0), n)
    half = float(ss.t.ppf((1 + level) / 2, freedom)) * error
    return Told(Interval(value, value - half, value + half), float(2 * ss.t.sf(abs(value) / error, freedom)), n)


def averaged(found: Sequence[Interval]) -> Interval:
    """The mean of independent estimates from their intervals, of one level, whose asymmetry it keeps (MOVER, Zou and Donner 2008).

    Coverage of 95 % in simulations of kernel distances of 2 and 4 groups, of 12 to 24 draws each: 93 to 98 %, 99 % where sets are alike.
    """
    if not found:
        return UNKNOWN
    value = float(np.mean([one.value for one in found]))
    below, above = (
        math.hypot(*sides) / len(found) for sides in ([one.value - one.lo for one in found], [one.hi - one.value for one in found])
    )
    return Interval(value, value - below, value + above)


def pairs_of(matrices: Sequence[Array]) -> Pairs:
    """The U-statistics of matrices [P, P], and each without one of the units. Raises ValueError for fewer than three units."""
    p = len(matrices[0])
    if p < 3:
        raise ValueError(f"leaving one unit out of pairs takes three units or more, not {p}")
    means, without = [], []
    for matrix in matrices:
        rows = matrix.sum(1) - np.diagonal(matrix)
        means.append(rows.sum() / (p * (p - 1)))
        without.append((rows.sum() - 2 * rows) / ((p - 1) * (p - 2)))
    return Pairs(np.array(means), np.stack(without, 1))


def jackknifed(strata: Sequence[Pairs], statistic: Callable[[Array], Array], level: float) -> Interval:
    """A statistic of the pair means of all strata, [..., G, K] to [...], with the delete-one jackknife in each stratum.

    Student's t with Satterthwaite's degrees of freedom; nan where the statistic is not finite. Coverage of 95 % in simulations of the
    shares of the shared power, of 1 and 2 groups of 16 to 64 latents: 97 to 99 %; too wide, since what is left of a ratio of pair means
    is itself of pairs.
    """
    whole = np.stack([one.mean for one in strata])
    value, parts = float(statistic(whole)), []
    for index, one in enumerate(strata):
        p = len(one.without)
        moved = np.repeat(whole[None], p, 0)
        moved[:, index] = one.without
        left = statistic(moved)
        parts.append(((p - 1) / p * float(np.square(left - left.mean()).sum()), p - 1))
    if not math.isfinite(value) or not math.isfinite(sum(variance for variance, _ in parts)):
        return UNKNOWN
    error, freedom = _error(parts)
    half = float(ss.t.ppf((1 + level) / 2, freedom)) * error
    return Interval(value, value - half, value + half)


def _error(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The standard error and its degrees of freedom from the strata's variances and theirs."""
    variance = sum(part for part, _ in parts)
    if variance <= 0:
        return 0.0, 1.0
    return math.sqrt(variance), variance**2 / sum(part**2 / freedom for part, freedom in parts)
