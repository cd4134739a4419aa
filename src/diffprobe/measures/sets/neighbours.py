"""Precision and recall, density and coverage: which samples lie among the neighbours of the other set."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffprobe.measures.sets.balls import Counts, Points, common, nearest, occupancy
from diffprobe.measures.sets.features import Array, Features, as_set, not_finite, same_width


class PrecisionRecall(NamedTuple):
    """Both in [0, 1], and what they depend on."""

    precision: float  # share of fakes inside some real sample's ball: how many fakes look real
    recall: float  # share of reals inside some fake sample's ball: how much of the real set the fakes reach
    k: int
    n_real: int
    n_fake: int


class DensityCoverage(NamedTuple):
    """Density >= 0, about 1 for equal distributions; coverage in [0, 1]; and what they depend on."""

    density: float  # real balls around a fake, over k: counts what precision only notes, so that one real outlier weighs little
    coverage: float  # share of reals whose ball holds a fake
    k: int
    n_real: int
    n_fake: int


class NeighbourScores(NamedTuple):
    """What `neighbour_scores` found."""

    precision_recall: PrecisionRecall
    density_coverage: DensityCoverage


def precision_recall(real: Features, fake: Features, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall of fakes [m, D] against reals [n, D] (Kynkaanniemi et al. 2019).

    A sample's ball reaches to its k-th nearest neighbour in its own set, itself not counted; balls are closed. Both scores depend
    on k and on n, m and grow with k: compare equal ones only. In tiles: memory does not grow with n m.
    Raises ValueError for fewer than k + 1 rows, widths that differ, nan and infinite values.
    """
    x, y = _sets(real, fake, (k, k))
    return _precision_recall(*occupancy(x, y, _reach(x, k), _reach(y, k)), k)


def density_coverage(real: Features, fake: Features, k: int = 5) -> DensityCoverage:
    """Density and coverage of fakes [m, D] against the balls of reals [n, D] (Naeem et al. 2020), balls as in `precision_recall`.

    Raises ValueError for fewer than k + 1 reals or no fake, widths that differ, nan and infinite values.
    """
    x, y = _sets(real, fake, (k, 0))
    return _density_coverage(*occupancy(x, y, _reach(x, k), np.empty((len(y.rows), 0))), k)


def neighbour_scores(real: Features, fake: Features, *, k: int = 3, k_density: int = 5) -> NeighbourScores:
    """`precision_recall` with `k` and `density_coverage` with `k_density`, from one pass over the pairs."""
    x, y = _sets(real, fake, (max(k, k_density), k))
    around_fakes, holding, around_reals = occupancy(x, y, _reach(x, k, k_density), _reach(y, k))
    return NeighbourScores(
        _precision_recall(around_fakes[:, :1], holding[:, :1], around_reals, k),
        _density_coverage(around_fakes[:, 1:], holding[:, 1:], around_reals, k_density),
    )


def _precision_recall(around_fakes: Counts, holding: Counts, around_reals: Counts, k: int) -> PrecisionRecall:
    precision, recall = float((around_fakes[:, 0] > 0).mean()), float((around_reals[:, 0] > 0).mean())
    return PrecisionRecall(precision, recall, k, len(holding), len(around_fakes))


def _density_coverage(around_fakes: Counts, holding: Counts, around_reals: Counts, k: int) -> DensityCoverage:
    return DensityCoverage(float(around_fakes[:, 0].mean() / k), float((holding[:, 0] > 0).mean()), k, len(holding), len(around_fakes))


def _sets(real: Features, fake: Features, ks: tuple[int, int]) -> list[Points]:
    if ks[0] < 1 or ks[1] < 0:
        raise ValueError(f"k counts neighbours and is 1 or more, not {min(ks)}")
    sets = [as_set(part) for part in (real, fake)]
    for found, told, k in zip(sets, ("reals", "fakes"), ks, strict=True):
        if len(found) < k + 1:
            raise ValueError(f"the {k} nearest neighbours need {k + 1} {told} or more, not {len(found)}: add samples or lower k")
        if not np.isfinite(found).all():
            raise not_finite(found)
    same_width(*sets)
    return common(*sets)


def _reach(points: Points, *ks: int) -> Array:
    """Squared distances [n, len(ks)] to the k-th nearest neighbours."""
    return nearest(points, max(ks))[:, [k - 1 for k in ks]]
