"""Whether a paired difference stays within a margin, and how small a one could have been seen."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from numpy.typing import ArrayLike
from scipy import optimize
from scipy import stats as ss

from diffprobe.measures.stats.intervals import Array, Interval, mean_interval
from diffprobe.measures.stats.paired import differences


class Equivalence(NamedTuple):
    """What `equivalence` found: `difference` has the interval of level 1 - 2 alpha that decides the test."""

    difference: Interval
    p: float
    equivalent: bool
    margin: float
    n: int
    dropped: int


class NonInferiority(NamedTuple):
    """What `non_inferiority` found: `difference` has the interval of level 1 - 2 alpha, whose worse limit decides the test."""

    difference: Interval
    p: float
    non_inferior: bool
    margin: float
    better: Literal["higher", "lower"]
    n: int
    dropped: int


def equivalence(a: ArrayLike, b: ArrayLike, margin: float, *, alpha: float = 0.05) -> Equivalence:
    """Two one-sided paired t tests (Schuirmann 1987) of |mean(a - b)| < margin; `p` is the larger of the two.

    Equivalent if and only if the interval of level 1 - 2 alpha lies within the margin. Raises ValueError for a margin <= 0
    and for fewer than 2 pairs.
    """
    d, dropped = differences(a, b)
    if not margin > 0 or len(d) < 2:
        raise ValueError(f"equivalence needs a margin > 0 and 2 pairs or more, not {margin} and {len(d)}")
    difference = mean_interval(d, level=1 - 2 * alpha)
    p = _clearance_p(margin - abs(difference.value), d)
    return Equivalence(difference, p, p < alpha, margin, len(d), dropped)


def non_inferiority(
    a: ArrayLike, b: ArrayLike, margin: float, better: Literal["higher", "lower"] = "higher", *, alpha: float = 0.05
) -> NonInferiority:
    """A one-sided paired t test that a is not worse than b by the margin: mean(a - b) > -margin, or < margin where lower is better.

    Non-inferior if and only if the worse limit of the interval of level 1 - 2 alpha lies within the margin; a margin of 0 asks for
    superiority. Raises ValueError for a margin < 0, another `better`, and for fewer than 2 pairs.
    """
    d, dropped = differences(a, b)
    if not margin >= 0 or len(d) < 2 or better not in {"higher", "lower"}:
        raise ValueError(
            f"non-inferiority needs a margin >= 0, 2 pairs or more and better 'higher' or 'lower', not {margin}, {len(d)} and {better!r}"
        )
    difference = mean_interval(d, level=1 - 2 * alpha)
    p = _clearance_p(margin + (difference.value if better == "higher" else -difference.value), d)
    return NonInferiority(difference, p, p < alpha, margin, better, len(d), dropped)


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


def _clearance_p(clearance: float, d: Array) -> float:
    """The one-sided t test of a mean that is `clearance` away from its bound, on the wished side where positive."""
    error = float(d.std(ddof=1)) / math.sqrt(len(d))
    return float(ss.t.sf(clearance / error, len(d) - 1)) if error > 0 else float(clearance <= 0)
