"""Kernel laws: how drift may grow with what was asked or done, and their least-squares fits, for many replicates at once.

The hypotheses name what drift could be a function of: the requested strength, its square (the published "sigma squared" law),
the steps that were executed, the noise that was really added, or the noise-to-signal ratio with the saturation of a Gaussian world.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffprobe.measures.stats.intervals import Array

Law = Literal["linear", "quadratic", "saturating"]
Axis = Literal["strength", "steps", "noise", "sigma"]

#: Free parameters of a law, the noise variance not counted.
PARAMETERS: Mapping[Law, int] = {"linear": 2, "quadratic": 2, "saturating": 3}
#: The saturation v is sought between the smallest positive n over SPAN and the largest n times SPAN.
SPAN, GRID, NEAR, ROUNDS = 100.0, 128, 9, 12


class Hypothesis(NamedTuple):
    """What drift is a function of (`axis`, a key of `regressors`), how (`law`), and the formula that a reader sees."""

    axis: Axis
    law: Law
    formula: str


#: The named hypotheses, simplest first. On a variance-preserving path "noise variance" is 1 - abar, and the saturating law with v = 1:
#: there the two can be told apart only by the freedom of v.
HYPOTHESES: Mapping[str, Hypothesis] = {
    "strength^2": Hypothesis("strength", "quadratic", "k strength² + c"),
    "strength": Hypothesis("strength", "linear", "k strength + c"),
    "steps": Hypothesis("steps", "linear", "k steps + c"),
    "noise variance": Hypothesis("noise", "quadratic", "k (alpha sigma)² + c"),
    "nsr": Hypothesis("sigma", "quadratic", "k sigma² + c"),
    "sigma": Hypothesis("sigma", "linear", "k sigma + c"),
    "saturating": Hypothesis("sigma", "saturating", "k v sigma² / (v + sigma²) + c"),
}


class Levels(NamedTuple):
    """The levels of a sweep, each field [L]: what was requested, the steps executed, and the path where they started.

    `sigma` is the noise-to-signal ratio sigma(t)/alpha(t) as a standard deviation, 0 where no step ran; `alpha` the signal's factor.
    """

    strength: ArrayLike
    steps: ArrayLike
    alpha: ArrayLike
    sigma: ArrayLike


class KernelFit(NamedTuple):
    """One fit of n levels. `k` is the slope (of the saturating law: the initial slope 2g per unit of sigma^2), `c` the value at 0.

    `r2` is nan where y does not vary. `v` is the saturating law's scale (nan for the others; without meaning where k = 0; at an end
    of the search range the data show no saturation, or nothing but saturation, and then k is not determined).
    """

    law: Law
    k: float
    c: float
    r2: float
    sse: float
    n: int
    parameters: int
    v: float = math.nan


class KernelFits(NamedTuple):
    """The fits of R replicates: `k`, `c`, `r2`, `sse`, `v` are [R], `predictions` [R, L]."""

    law: Law
    k: Array
    c: Array
    r2: Array
    sse: Array
    v: Array
    predictions: Array


def regressors(strength: ArrayLike, steps: ArrayLike, alpha: ArrayLike, sigma: ArrayLike) -> dict[str, tuple[Array, Law]]:
    """The x [L] and the law of every hypothesis, ready for `fit_kernel(x, y, law)`; the arguments are the fields of `Levels`."""
    noise = np.asarray(alpha, dtype=np.float64) * np.asarray(sigma, dtype=np.float64)
    columns: dict[Axis, ArrayLike] = {"strength": strength, "steps": steps, "noise": noise, "sigma": sigma}
    axes = {axis: np.asarray(column, dtype=np.float64) for axis, column in columns.items()}
    return {name: (axes[hypothesis.axis], hypothesis.law) for name, hypothesis in HYPOTHESES.items()}


def fit_kernel(x: ArrayLike, y: ArrayLike, law: Law = "quadratic") -> KernelFit:
    """Least-squares fit of means y [L] at levels x [L] by one law.

    "linear": k x + c. "quadratic": k x^2 + c. "saturating": c + k v n / (n + v) with n = x^2, x the noise-to-signal standard deviation,
    k >= 0, v > 0: the drift of a posterior sample in a Gaussian world of variance v and gain g, k = 2 g.
    Raises ValueError for other shapes, values that are not finite, or fewer distinct levels than parameters.
    """
    values = np.asarray(y, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"fit_kernel takes the means [L] of one group, not {list(values.shape)}: use fit_many for [R, L]")
    fits = fit_many(x, values[None], law)
    k, c, r2, sse, v = (float(column[0]) for column in fits[1:6])
    return KernelFit(law, k, c, r2, sse, len(values), PARAMETERS[law], v)


def fit_many(x: ArrayLike, y: ArrayLike, law: Law = "quadratic") -> KernelFits:
    """`fit_kernel` of R replicates y [R, L] at the same levels x [L], all at once."""
    levels, rows = _checked(x, y, law)
    centre = rows.mean(1)
    centred = rows - centre[:, None]
    varies = np.ptp(rows, axis=1) > 8 * np.finfo(np.float64).eps * np.abs(rows).max(1)
    centred[~varies] = 0
    v = _saturation(levels**2, centred) if law == "saturating" else np.full(len(rows), math.nan)
    shape = _shape(law, levels, v)
    basis = shape - shape.mean(1, keepdims=True)
    k = (basis * centred).sum(1) / (basis**2).sum(1)
    if law == "saturating":
        k = np.maximum(k, 0)
    residuals = centred - k[:, None] * basis
    sse, total = (residuals**2).sum(1), (centred**2).sum(1)
    r2 = 1 - np.divide(sse, total, out=np.full(len(rows), math.nan), where=varies)
    return KernelFits(law, k, centre - k * shape.mean(1), r2, sse, v, rows - residuals)


def predict(fit: KernelFit | KernelFits, x: ArrayLike) -> Array:
    """The fitted curve at x [K]: [K] of one fit, [R, K] of R."""
    k, c, v = (np.asarray(parameter, dtype=np.float64) for parameter in (fit.k, fit.c, fit.v))
    return np.asarray(c[..., None] + k[..., None] * _shape(fit.law, np.asarray(x, dtype=np.float64), v))


def _shape(law: Law, x: Array, v: Array) -> Array:
    """The curve of slope 1 through 0: x [L] with v [...] to [..., L]."""
    if law == "saturating":
        return np.asarray(x**2 / (1 + x**2 / v[..., None]))
    return np.broadcast_to(np.asarray(x if law == "linear" else x**2), (*v.shape, len(x)))


def _saturation(n: Array, centred: Array) -> Array:
    """The v [R] whose curve leaves the least of centred y [R, L], by variable projection.

    For a given v the best slope is the projection on the centred curve, and the least residual has the largest correlation:
    over a fine log grid first, then on ever narrower grids about each replicate's best.
    """
    positive = n[n > 0]
    edges = np.log(positive.min() / SPAN), np.log(positive.max() * SPAN)
    grid = np.linspace(*edges, GRID)
    best = grid[np.argmax(centred @ _directions(n, grid).T, axis=1)]
    width = float(grid[1] - grid[0])
    for _ in range(ROUNDS):
        near = np.clip(best[:, None] + np.linspace(-width, width, NEAR), *edges)
        scores = np.matmul(_directions(n, near), centred[:, :, None])[..., 0]
        best = np.take_along_axis(near, scores.argmax(1)[:, None], axis=1)[:, 0]
        width *= 2 / (NEAR - 1)
    return np.asarray(np.exp(best))


def _directions(n: Array, log_v: Array) -> Array:
    """Centred curves of unit length, [..., L], for log_v [...]."""
    curves = n / (1 + n * np.exp(-log_v)[..., None])
    curves -= curves.mean(-1, keepdims=True)
    return np.asarray(curves / np.linalg.norm(curves, axis=-1, keepdims=True))


def _checked(x: ArrayLike, y: ArrayLike, law: Law) -> tuple[Array, Array]:
    levels, rows = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if law not in PARAMETERS:
        raise ValueError(f"unknown law '{law}': choose from {', '.join(PARAMETERS)}")
    if levels.ndim != 1 or rows.ndim != 2 or rows.shape[1] != len(levels):
        raise ValueError(f"a fit needs one y for each x: x {list(levels.shape)} does not match y {list(rows.shape)}")
    if not (np.isfinite(levels).all() and np.isfinite(rows).all()):
        raise ValueError("a fit needs finite levels and means: leave out levels of pure noise and levels without a valid sample")
    distinct = len(np.unique(levels if law == "linear" else levels**2))
    if distinct < PARAMETERS[law]:
        raise ValueError(f"the {law} law has {PARAMETERS[law]} parameters but only {distinct} distinct levels: measure more strengths")
    return levels, rows
