"""Which law the data support, with the image as the unit: leave-one-level-out error, AICc, and the winner's distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffprobe.measures.laws import HYPOTHESES, PARAMETERS, KernelFit, KernelFits, Law, Levels, fit_kernel, fit_many, predict, regressors
from diffprobe.measures.stats.intervals import Array, Interval, cluster_weights, widened_tails

#: Distinct effective levels under which no law is selected.
FEWEST_LEVELS = 4


class Support(NamedTuple):
    """What speaks for one hypothesis.

    `loo`: mean squared error of predicting each level's mean from the others (nan under 4 levels). `aicc`: of the group means, the noise
    variance counted as a parameter (nan where there are too few levels for it). `share`: of bootstrap replicates that it wins by `loo`.
    """

    fit: KernelFit
    k: Interval
    c: Interval
    r2: Interval
    loo: float
    aicc: float
    share: float


class Selection(NamedTuple):
    """The outcome of `select_law`. `winner` is None where nothing can be selected, and `reason` says why.

    `tied` are further hypotheses that predict as well as the winner to rounding: at these levels they are one law.
    `levels` are those that count, merged; `means` [L] their group means over `n` images.
    """

    winner: str | None
    reason: str | None
    tied: tuple[str, ...]
    support: dict[str, Support]
    levels: Levels
    means: Array
    n: int


def select_law(
    levels: Levels,
    y: ArrayLike,
    *,
    hypotheses: Sequence[str] = tuple(HYPOTHESES),
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Selection:
    """Fit every hypothesis to the mean drift of y [images, L] and say which predicts a left-out level best.

    A nan in y is a sample that does not count: a level's mean is over the images that it has. Levels with the same executed steps and
    sigma are one level (their samples averaged); levels of pure noise (sigma infinite) or without samples are left out. Intervals are
    percentiles over bootstrap replicates of the images, with tails widened for few images. A hypothesis with too few distinct levels
    for its parameters is absent from `support`. Raises ValueError where the shapes differ or a hypothesis is unknown.
    """
    if unknown := sorted(set(hypotheses) - set(HYPOTHESES)):
        raise ValueError(f"unknown hypothesis '{unknown[0]}': choose from {', '.join(HYPOTHESES)}")
    kept, samples = merge_levels(levels, y)
    n = len(samples)
    table = regressors(*kept)
    table = {name: table[name] for name in hypotheses if _distinct(*table[name]) >= PARAMETERS[table[name][1]]}
    means = _replicates(samples, replicates, seed)
    fits = {name: fit_many(x, means, law) for name, (x, law) in table.items()}
    errors = {name: _left_out(x, means, law) for name, (x, law) in table.items()}
    wins, tied = _winners(errors, means)
    support = {}
    for name, (x, law) in table.items():
        intervals = _intervals(fits[name], n, level)
        fit = fit_kernel(x, means[0], law)
        support[name] = Support(fit, *intervals, float(errors[name][0]), _aicc(fit), wins[name])
    reason = _why_not(kept, means[0] if len(means) else np.empty(0), support)
    winner = None if reason else tied[0]
    return Selection(winner, reason, () if reason else tied[1:], support, kept, means[0] if len(means) else np.empty(0), n)


def merge_levels(levels: Levels, y: ArrayLike) -> tuple[Levels, Array]:
    """Levels that executed the same steps from the same sigma as one, in ascending order, and y [images, L'] averaged alike.

    Levels with infinite sigma or without any sample go, and so do images without any sample; a nan stays only where an image has
    no sample at any of the merged levels.
    """
    columns = np.stack([np.asarray(column, dtype=np.float64) for column in levels])
    samples = np.asarray(y, dtype=np.float64)
    if columns.ndim != 2 or samples.ndim != 2 or samples.shape[1] != columns.shape[1]:
        raise ValueError(
            f"y must be [images, L] with one column a level: {list(samples.shape)} does not match levels {list(columns.shape[1:])}"
        )
    usable = np.isfinite(columns).all(0) & ~np.isnan(samples).all(0)
    columns, samples = columns[:, usable], samples[:, usable]
    rounded = np.stack([columns[1], np.array([float(f"{sigma:.9g}") for sigma in columns[3]])])
    groups, place = np.unique(rounded, axis=1, return_inverse=True)
    member = (place.reshape(-1)[:, None] == np.arange(groups.shape[1])).astype(np.float64)
    counts = (~np.isnan(samples)) @ member
    merged = np.divide(np.nan_to_num(samples) @ member, counts, out=np.full(counts.shape, math.nan), where=counts > 0)
    return Levels(*(columns @ member / member.sum(0))), merged[counts.any(1)]


def _replicates(samples: Array, replicates: int, seed: int) -> Array:
    """Group means [1 + R, L]: of the images themselves, then of every resample that left no level empty."""
    counted = ~np.isnan(samples)
    weights = (
        np.concatenate([np.ones((1, len(samples))), cluster_weights(len(samples), replicates, seed)]) if len(samples) else np.empty((0, 0))
    )
    totals = weights @ counted
    complete = (totals > 0).all(1)
    return np.asarray((weights[complete] @ np.nan_to_num(samples)) / totals[complete])


def _distinct(x: Array, law: Law) -> int:
    return len(np.unique(x if law == "linear" else x**2))


def _left_out(x: Array, means: Array, law: Law) -> Array:
    """Mean squared error [R] of predicting each level from the others; nan where that leaves too few levels."""
    rest = [np.arange(len(x)) != left for left in range(len(x))]
    if len(x) < FEWEST_LEVELS or any(_distinct(x[others], law) < PARAMETERS[law] for others in rest):
        return np.full(len(means), math.nan)
    errors = [predict(fit_many(x[others], means[:, others], law), x[~others])[:, 0] - means[:, ~others][:, 0] for others in rest]
    return np.asarray((np.stack(errors) ** 2).mean(0))


def _winners(errors: dict[str, Array], means: Array) -> tuple[dict[str, float], tuple[str, ...]]:
    """The share of replicates that each wins (ties to rounding share), and who wins on the group means, in order of registry."""
    if not errors or not len(means):
        return dict.fromkeys(errors, math.nan), ()
    scores = np.stack(list(errors.values()))
    scores = np.where(np.isnan(scores), math.inf, scores)
    rounding = (1e-12 * np.abs(means).max(1)) ** 2
    best = (scores <= scores.min(0) * (1 + 1e-6) + rounding) & np.isfinite(scores)
    counts = best.sum(0)
    shares = np.divide(best, counts, out=np.zeros(best.shape), where=counts > 0)[:, 1:]
    share = shares.mean(1) if shares.shape[1] and counts.any() else np.full(len(errors), math.nan)
    return dict(zip(errors, share.tolist(), strict=True)), tuple(name for name, first in zip(errors, best[:, 0], strict=True) if first)


def _intervals(fits: KernelFits, n: int, level: float) -> tuple[Interval, Interval, Interval]:
    k, c, r2 = (_percentiles(column, n, level) for column in (fits.k, fits.c, fits.r2))
    return k, c, r2


def _percentiles(column: Array, n: int, level: float) -> Interval:
    draws = column[1:][np.isfinite(column[1:])]
    if n < 2 or not len(draws):
        return Interval(float(column[0]), math.nan, math.nan)
    lo, hi = np.quantile(draws, widened_tails(n, level))
    return Interval(float(column[0]), float(lo), float(hi))


def _aicc(fit: KernelFit) -> float:
    parameters = fit.parameters + 1
    spare = fit.n - parameters - 1
    if spare <= 0 or math.isnan(fit.r2):
        return math.nan
    variance = max(fit.sse / fit.n, np.finfo(np.float64).tiny)
    return fit.n * math.log(variance) + 2 * parameters + 2 * parameters * (parameters + 1) / spare


def _why_not(levels: Levels, means: Array, support: dict[str, Support]) -> str | None:
    effective = len(np.asarray(levels.sigma))
    if effective < FEWEST_LEVELS:
        return f"{effective} distinct effective levels, a law is selected from {FEWEST_LEVELS}: measure more strengths, or with more steps"
    if not support:
        return "no hypothesis has enough distinct levels for its parameters: measure more strengths"
    if all(math.isnan(item.fit.r2) for item in support.values()):
        return "the drift does not vary with the level: every law fits a constant"
    if all(math.isnan(item.loo) for item in support.values()):
        return "no hypothesis can be refitted without a level: measure more strengths"
    return None
