"""Every number that leaves the project is an Estimate; all that makes one, under one name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as ss

from diffprobe.measures.stats.agreement import Agreement, cohen_kappa, fleiss_kappa, human_agreement
from diffprobe.measures.stats.effects import cliffs_delta, hedges_g, paired_effect
from diffprobe.measures.stats.equivalence import Equivalence, NonInferiority, equivalence, minimum_detectable_difference, non_inferiority
from diffprobe.measures.stats.intervals import (
    Array,
    Interval,
    bootstrap,
    cluster_weights,
    mean_interval,
    mover,
    units_to_decide,
    wilson_interval,
)
from diffprobe.measures.stats.paired import Difference, paired_difference, shift
from diffprobe.measures.stats.samples import IndependentDifference, independent_difference, rank_correlation, welch
from diffprobe.measures.stats.separation import PairedSeparation, auroc, paired_auroc
from diffprobe.measures.stats.variance import VarianceComponents, spread_interval, variance_components

__all__ = [
    "Agreement",
    "Difference",
    "Equivalence",
    "Estimate",
    "IndependentDifference",
    "Interval",
    "NonInferiority",
    "PairedSeparation",
    "VarianceComponents",
    "auroc",
    "benjamini_hochberg",
    "bootstrap",
    "cliffs_delta",
    "cluster_weights",
    "cohen_kappa",
    "equivalence",
    "fleiss_kappa",
    "hedges_g",
    "holm",
    "human_agreement",
    "independent_difference",
    "mean_interval",
    "minimum_detectable_difference",
    "mover",
    "non_inferiority",
    "paired_auroc",
    "paired_difference",
    "paired_effect",
    "rank_correlation",
    "shift",
    "spread_interval",
    "units_to_decide",
    "variance_components",
    "welch",
    "wilson_interval",
]


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


def holm(p_values: ArrayLike) -> Array:
    """Holm's step-down adjusted p values of one family [m], in the given order; a nan stays nan and does not count in the family."""
    p = _p_values(p_values)
    order = np.argsort(p, kind="stable")[: int(np.isfinite(p).sum())]
    adjusted = np.full_like(p, math.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted


def benjamini_hochberg(p_values: ArrayLike) -> Array:
    """Adjusted p values [m] whose threshold bounds the share of false findings (Benjamini and Hochberg 1995), in the given order.

    Valid for tests that are independent or positively dependent; for the chance of any false finding take `holm`. A nan stays nan
    and does not count in the family.
    """
    p = _p_values(p_values)
    valid = np.isfinite(p)
    adjusted = np.full_like(p, math.nan)
    adjusted[valid] = ss.false_discovery_control(p[valid]) if valid.any() else p[valid]
    return adjusted


def _p_values(values: ArrayLike) -> Array:
    p = np.asarray(values, dtype=np.float64)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError("p values are one sequence [m] and lie in [0, 1]")
    return p
