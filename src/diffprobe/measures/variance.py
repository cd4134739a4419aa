"""Where the scatter is: between units (prompts) or within them (repeats)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize
from scipy import stats as ss

from diffprobe.measures.intervals import Array, Interval


class VarianceComponents(NamedTuple):
    """What `variance_components` found, in squared units of the values."""

    between: float  # variance of the units' true means; 0 where the estimate is negative
    within: float  # variance of the repeats of one unit
    raw_between: float  # as estimated: below 0 where the means scatter less than the repeats alone would make them
    icc: Interval  # between / (between + within): the share of the scatter that lies between units, 0 to 1
    units: int
    values: int
    repeats: float  # the effective number a unit: all of them where the units have equally many
    dropped: int  # values that are nan


def variance_components(groups: Iterable[ArrayLike], *, level: float = 0.95) -> VarianceComponents:
    """One-way random effects of values [units, repeats], or of a list of [repeats] of unequal lengths; nan are dropped and counted.

    Components: the analysis of variance's estimators (Searle 1971), without bias, also for unequal lengths. Interval of the
    intraclass correlation: Wald's (1940), exact for normal effects and errors, balanced or not (balanced, it is the F interval of
    Shrout and Fleiss 1979); skewed or heavy-tailed unit means make it too narrow. Without repeats that differ (within = 0) it is 1;
    where the means scatter less than the repeats let them in all but (1 - level) / 2 of cases, both limits are 0.
    Raises ValueError for fewer than 2 units, no unit with a repeat, or infinite values.
    """
    samples = [np.asarray(group, dtype=np.float64).ravel() for group in groups]
    kept = [sample[~np.isnan(sample)] for sample in samples]
    dropped = sum(map(len, samples)) - sum(map(len, kept))
    kept = [sample for sample in kept if len(sample)]
    sizes = np.array([len(sample) for sample in kept], dtype=np.float64)
    k, n = len(kept), int(sizes.sum())
    if k < 2 or n - k < 1 or any(np.isinf(sample).any() for sample in kept):
        raise ValueError(f"variance components need 2 units or more, one with 2 finite values: {k} units have {n} values")
    means = np.array([sample.mean() for sample in kept])
    within = sum(float(((sample - sample.mean()) ** 2).sum()) for sample in kept) / (n - k)
    repeats = (n - float((sizes**2).sum()) / n) / (k - 1)
    among = float(sizes @ (means - sizes @ means / n) ** 2) / (k - 1)
    raw = (among - within) / repeats
    between = max(raw, 0.0)
    share = between / (between + within) if between + within > 0 else math.nan
    limits = (share, share) if within == 0 else (_wald(means, sizes, within, (1 + level) / 2), _wald(means, sizes, within, (1 - level) / 2))
    return VarianceComponents(between, within, raw, Interval(share, *limits), k, n, repeats, dropped)


def _wald(means: Array, sizes: Array, within: float, p: float) -> float:
    """The intraclass correlation at which the weighted scatter of the means over `within` is the p quantile of F.

    A mean of n_i repeats has the variance within (1 / n_i + rho / (1 - rho)): with the true rho the ratio is F distributed.
    """
    k, n = len(means), float(sizes.sum())
    target = float(ss.f.ppf(p, k - 1, n - k))

    def excess(rho: float) -> float:
        weights = sizes * (1 - rho) / (1 - rho + sizes * rho)
        if rho == 1:
            return -target
        centre = weights @ means / weights.sum()
        return float(weights @ (means - centre) ** 2) / ((k - 1) * within) - target

    return 0.0 if excess(0.0) <= 0 else float(optimize.brentq(excess, 0.0, 1.0))
