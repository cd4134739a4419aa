"""Mean and covariance of a set too large to hold: float64, and mergeable."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.measures.sets.features import Array, Features, as_set, finite_set, not_finite, spans

#: Numbers converted to float64 at once: 256 MB.
CHUNK = 32_000_000
#: Relative error that published statistics may hold: they are often kept as float32.
STORED = 1e-6


class Moments:
    """Count, mean [D] and outer products about the mean [D, D] of the rows seen so far, in float64.

    Parts merge by Chan, Golub and LeVeque 1979, so that shards of a set may be counted apart and in any order: equal to 1e-10
    of the variances, whatever the batches, for means up to 1e4 deviations (tested). Pickles. `Moments().update(features)` is
    those of one set.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: Array = np.zeros(0)
        self.outer: Array = np.zeros((0, 0))

    @classmethod
    def given(cls, mean: Features, covariance: Features, n: int) -> Moments:
        """The moments of n samples from published statistics: mean [D] and covariance [D, D] (ddof 1).

        Raises ValueError for an n that is no whole number >= 2, shapes that do not fit, values that are not finite, or a covariance
        that is none: not symmetric, or with a negative variance in some direction, beyond float32's round-off.
        """
        if not isinstance(n, int | np.integer) or isinstance(n, bool):
            raise ValueError(f"the number of samples is a whole number, not {n!r}: give the n behind the statistics as an int")
        spread = finite_set(covariance)
        centre = finite_set(np.atleast_2d(np.asarray(mean)))[0]
        if n < 2 or spread.shape != (len(centre), len(centre)) or not np.allclose(spread, spread.T, rtol=STORED, atol=0):
            raise ValueError(
                f"published statistics are a mean [D], a symmetric covariance [D, D] and the n >= 2 behind them, "
                f"not {list(centre.shape)}, {list(spread.shape)} and {n}"
            )
        found = cls()
        found.n, found.mean, found.outer = int(n), centre, (spread + spread.T) * ((n - 1) / 2)
        lowest = _lowest(found.outer)
        if lowest < 0:
            raise ValueError(
                f"a covariance has no negative variance in any direction, this one has {lowest / (n - 1):.3g}: "
                "give the covariance itself, not its inverse, its root or a part of it"
            )
        return found

    def update(self, features: Features) -> Moments:
        """Adds rows [n, D] (an array, or a tensor on any device) in place, and returns itself.

        Raises ValueError, and adds nothing, for another shape or width, nan and infinite values.
        """
        rows = as_set(features, fewest=0)
        if self.n and rows.shape[1] != self.dim:
            raise ValueError(
                f"moments of width {self.dim} take no features of width {rows.shape[1]}: embed all samples with the same model"
            )
        parts = [rows[span] for span in spans(len(rows), max(1, CHUNK // rows.shape[1]))]
        with np.errstate(invalid="ignore", over="ignore"):
            means: list[Array] = [part.mean(0, dtype=np.float64) for part in parts]
        if not np.isfinite(means).all():  # a nan or inf anywhere spoils its column's mean, so no pass of its own is needed
            raise not_finite(rows)
        for part, mean in zip(parts, means, strict=True):
            self._add(part, mean)
        return self

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together, as new ones; neither part changes. Raises ValueError where the widths differ."""
        if not (self.n and other.n):
            return self._copy() if self.n else other._copy()
        if self.dim != other.dim:
            raise ValueError(f"moments of widths {self.dim} and {other.dim} do not merge: embed all samples with the same model")
        both, shift = Moments(), other.mean - self.mean
        both.n = self.n + other.n
        both.mean = self.mean + shift * (other.n / both.n)
        both.outer = self.outer + other.outer
        both.outer += np.outer(shift, shift * (self.n * other.n / both.n))
        return both

    @property
    def dim(self) -> int:
        """The width D; 0 before the first row."""
        return len(self.mean)

    @property
    def covariance(self) -> Array:
        """[D, D] with ddof 1. Raises ValueError for fewer than two rows."""
        if self.n < 2:
            raise ValueError(f"a covariance needs two rows or more, not {self.n}: update with more features")
        return self.outer / (self.n - 1)

    def _add(self, rows: NDArray[Any], mean: Array) -> None:
        """Chan's update in place; its rank-one term is one more row of the product, which spares two passes over [D, D]."""
        total = self.n + len(rows)
        shift = mean - self.mean if self.n else np.zeros_like(mean)
        centred = np.empty((len(rows) + 1, len(mean)))
        np.subtract(rows, mean, out=centred[:-1])
        centred[-1] = shift * np.sqrt(self.n * len(rows) / total)
        product = centred.T @ centred
        self.mean = self.mean + shift * (len(rows) / total) if self.n else mean
        self.outer = np.add(self.outer, product, out=product) if self.n else product
        self.n = total

    def _copy(self) -> Moments:
        found = Moments()
        found.n, found.mean, found.outer = self.n, self.mean.copy(), self.outer.copy()
        return found

    def __repr__(self) -> str:
        return f"Moments(n={self.n}, dim={self.dim})"


def _lowest(matrix: Array) -> float:
    """The lowest eigenvalue or diagonal entry of a symmetric matrix where it is clearly negative, else 0."""
    diagonal = matrix.diagonal()
    if diagonal.min() < 0:
        return float(diagonal.min())
    try:  # several times cheaper than the eigenvalues
        np.linalg.cholesky(matrix + STORED * diagonal.max() * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        values = np.linalg.eigvalsh(matrix)
        return float(values[0]) if values[0] < -STORED * values[-1] else 0.0
    return 0.0
