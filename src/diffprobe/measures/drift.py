"""What an edit that was told to change nothing changes: its laws, its parts, and how far it may go."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from diffprobe.measures.laws import (
    HYPOTHESES,
    Hypothesis,
    KernelFit,
    KernelFits,
    Law,
    Levels,
    fit_kernel,
    fit_many,
    predict,
    regressors,
)
from diffprobe.measures.selection import Selection, Support, merge_levels, select_law
from diffprobe.measures.stats.intervals import Array, bootstrap

__all__ = [
    "HYPOTHESES",
    "DriftBudget",
    "Factors",
    "Hypothesis",
    "KernelFit",
    "KernelFits",
    "Law",
    "Levels",
    "Selection",
    "StrengthBudget",
    "Support",
    "attribute_variance",
    "drift_budget",
    "factors",
    "fit_kernel",
    "fit_many",
    "gaussian_drift",
    "merge_levels",
    "predict",
    "regressors",
    "select_law",
    "strength_budget",
]


class DriftBudget(NamedTuple):
    """Mean squared errors a sample, float64 [B], with total = floor + move + cross.

    `floor`: what the codec alone changes. `move`: what the edit changes beside the codec. `cross`: their overlap, of either sign.
    """

    total: torch.Tensor
    floor: torch.Tensor
    move: torch.Tensor
    cross: torch.Tensor


class Factors(NamedTuple):
    """Three factors [n] whose product is the linear drift: what the decoder makes of unguided noise, how far the denoiser shrinks
    the displacement against that noise, and how much its direction is amplified against a random one."""

    decoder: Array
    contraction: Array
    alignment: Array


class StrengthBudget(NamedTuple):
    """How far one may go. `value`: the largest level within the tolerance, between levels by interpolation; `measured`: the largest
    level that was measured and is within. Both None where even the lowest exceeds it, and `reason` says so.

    `bounds` [L]: upper confidence bounds of the mean drift at the sorted levels, made monotone. `censored`: every level is within,
    so the true budget may be larger.
    """

    value: float | None
    measured: float | None
    reason: str | None
    bounds: Array
    censored: bool


def drift_budget(original: torch.Tensor, reconstruction: torch.Tensor, edited: torch.Tensor) -> DriftBudget:
    """Split the squared error of an edit into codec floor, move and their cross term; images [B, C, H, W] of one shape.

    With F the error of the reconstruction D(E(I)), M the distance of the edit from it and X = 2 <edited - reconstruction,
    reconstruction - original>: T = F + M + X to rounding. Raises ValueError where the shapes differ.
    """
    if not original.shape == reconstruction.shape == edited.shape:
        shapes = [list(image.shape) for image in (original, reconstruction, edited)]
        raise ValueError(f"drift_budget needs three image batches of one shape, not {shapes}: measure them at one resolution")
    i, r, e = (image.double().flatten(1) for image in (original, reconstruction, edited))
    return DriftBudget(
        total=(e - i).square().mean(1),
        floor=(r - i).square().mean(1),
        move=(e - r).square().mean(1),
        cross=2 * ((e - r) * (r - i)).mean(1),
    )


def factors(linear: ArrayLike, energy: ArrayLike, nsr: ArrayLike, gain: ArrayLike, dims: int) -> Factors:
    """Factor the linear drift mean((J delta)^2) [n] into decoder x contraction x alignment, each float64 [n].

    energy: ||delta||^2 of the latent displacement; nsr: sigma^2; gain: the isotropic gain Tr(J^T J)/(D_out d); dims: d, the latent's
    size. decoder = nsr d gain, contraction = energy/(nsr d), alignment = linear/(energy gain); nan where a denominator is 0.
    """
    lin, e, n, g = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (linear, energy, nsr, gain)))
    return Factors(n * dims * g, _ratio(e, n * dims), _ratio(lin, e * g))


def attribute_variance(log_factors: ArrayLike) -> Array:
    """Shares [m] of the variance of a sum that its terms [n, m] account for; they add to 1, and one may be negative.

    The Shapley value of term i in the game v(S) = Var(sum over S) is cov(f_i, sum) exactly, since a variance is a sum of pairwise
    covariances and each is split evenly. Rows that are not finite are left out; nan where the sum does not vary.
    """
    terms = np.asarray(log_factors, dtype=np.float64)
    terms = terms[np.isfinite(terms).all(1)]
    if len(terms) < 2:
        return np.full(terms.shape[1], math.nan)
    centred = terms - terms.mean(0)
    total = centred.sum(1)
    return _ratio(centred.T @ total, np.full(terms.shape[1], total @ total))


def strength_budget(x: ArrayLike, y: ArrayLike, tolerance: float, *, level: float = 0.95, seed: int = 0) -> StrengthBudget:
    """The largest level x at which the mean drift of y [images, L] stays within the tolerance, at this one-sided confidence.

    Each level's bound is the upper limit of the studentised bootstrap of its mean (nan samples left out); bounds are made monotone by
    their running maximum. `measured` assumes nothing of the curve: levels are tested upwards until one fails, a fixed sequence,
    so the confidence holds for the answer without correction. `value` goes on to where the line to the next bound meets the
    tolerance: sound where drift is convex or the levels are dense. A fitted law would be sound only if true, and is not used.
    Raises ValueError for levels that are not distinct or finite, other shapes, or a level without two samples.
    """
    levels, samples = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if samples.ndim != 2 or levels.shape != samples.shape[1:] or not np.isfinite(levels).all() or len(np.unique(levels)) < len(levels):
        raise ValueError(
            f"need distinct finite levels [L] and y [images, L], not {list(levels.shape)} and {list(samples.shape)}: merge equal levels"
        )
    if (fewest := int((~np.isnan(samples)).sum(0).min())) < 2:
        raise ValueError(f"a bound needs two valid samples at every level, one has {fewest}: leave that level out")
    order = np.argsort(levels)
    columns = (column[~np.isnan(column)] for column in samples.T[order])
    bounds = np.maximum.accumulate([bootstrap(column, level=2 * level - 1, seed=seed).hi for column in columns])
    ascending, within = levels[order], int((bounds <= tolerance).sum())
    if within == 0:
        reason = f"the mean drift at {ascending[0]:g} may reach {bounds[0]:.4g}, over the tolerance of {tolerance:g}: measure lower levels"
        return StrengthBudget(None, None, reason, bounds, False)
    measured = float(ascending[within - 1])
    if within == len(levels):
        return StrengthBudget(measured, measured, None, bounds, True)
    (low, high), (below, above) = ascending[within - 1 : within + 1], bounds[within - 1 : within + 1]
    return StrengthBudget(float(low + (high - low) * (tolerance - below) / (above - below)), measured, None, bounds, False)


def gaussian_drift(variances: ArrayLike, gains: ArrayLike, nsr: ArrayLike, mode: Literal["ode", "sample", "mean"]) -> Array:
    """The exact drift where latents are Gaussian, the denoiser exact and the decoder linear: float64 of the shape of `nsr`.

    variances [d] > 0 of the latent's directions; gains [d]: ||J e_i||^2 / D_out; nsr: sigma^2 >= 0 at the start. Modes, in the limit
    of many steps: "ode" (DDIM, eta = 0) sum 2 g v (1 - 1/sqrt(1 + n/v)); "sample" (a draw of the posterior, eta = 1) sum 2 g v n/(v+n);
    "mean" (the denoiser's output) sum g v n/(v+n).
    """
    v, g, n = np.asarray(variances, dtype=np.float64), np.asarray(gains, dtype=np.float64), np.asarray(nsr, dtype=np.float64)[..., None]
    if (v <= 0).any() or (n < 0).any():
        raise ValueError("gaussian_drift needs variances > 0 and nsr >= 0")
    if mode == "ode":
        return np.asarray((-2 * g * v * np.expm1(-0.5 * np.log1p(n / v))).sum(-1))
    return np.asarray(((2 if mode == "sample" else 1) * g * v * n / (v + n)).sum(-1))


def _ratio(above: Array, below: Array) -> Array:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), math.nan), where=below != 0))
