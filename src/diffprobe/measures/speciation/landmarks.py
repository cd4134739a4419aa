"""Where on an entropy curve things happen, for many curves [..., N] at once: its crossing of a level, its peak and window of production.

Levels run from noise to data: sigma falls, and may begin with infinity, whose first step then has no place on a logarithmic clock.
What a curve does not have is nan or infinite, never an error: these run over bootstrap replicates.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Places = NDArray[np.int64]


class Landmarks(NamedTuple):
    """Of each curve [...]; nan where nothing is produced. Places are logarithms of sigma, except `step`."""

    peak: Array  # of production per unit of ln sigma
    step: Array  # of production per step: 0 is the first level, 0.5 the middle of the first step
    low: Array  # the window's end towards data; -inf where production does not fall before the last level
    high: Array  # the window's end towards noise; inf where production is as high from the first level on
    share: Array  # of the entropy lost on the whole curve, inside the window; nan where an end is missing


def noise_levels(sigma: ArrayLike) -> Array:
    """sigma [N] as float64. Raises ValueError unless it has 2 levels or more, falls strictly and stays above 0 (inf first is fine)."""
    levels = np.asarray(sigma, dtype=np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not (levels[1:] < levels[:-1]).all() or not levels[-1] > 0:
        raise ValueError("noise levels are a sequence [N >= 2] that falls strictly and stays above 0: leave out the last level, sigma 0")
    return levels


def crossing(log_sigma: Array, curves: Array, level: float) -> Array:
    """Where curves [..., N] first fall to a level, [...], by linear interpolation; nan where they never do, or begin below it."""
    below = curves <= level
    after = below.argmax(-1)
    before = np.maximum(after - 1, 0)
    above = _at(curves, before) - level
    with np.errstate(divide="ignore", invalid="ignore"):
        part = above / (above + level - _at(curves, after))
        found = log_sigma[before] + (log_sigma[after] - log_sigma[before]) * part
    return np.where(after > 0, found, np.nan)


def landmarks(log_sigma: Array, curves: Array, least: float) -> Landmarks:
    """The landmarks of curves [..., N]; where no step produces more than `least` there is no production.

    A peak inside the range is refined by the parabola through three points. The window holds the peak, and on either side as much as
    makes the production above half the peak, summed over ln sigma, largest. Where production only falls away from the peak, that is
    the full width at half maximum; else it is that of the best curve that does so (isotonic regression). A dip of the noise does
    not end it, as the first fall to half would (which scatters by up to half more), nor a valley with more beyond than it lacks.
    """
    drop = curves[..., :-1] - curves[..., 1:]
    first = int(np.isinf(log_sigma[0]))
    places, lost = log_sigma[first:], drop[..., first:]
    width, middle = places[:-1] - places[1:], (places[:-1] + places[1:]) / 2
    step = np.where(drop.max(-1) > least, _highest(np.arange(0.5, drop.shape[-1]), drop), np.nan)
    if len(middle) == 0:
        nothing = np.full_like(step, np.nan)
        return Landmarks(nothing, step, nothing, nothing, nothing)
    rate = lost / width
    made = lost.max(-1) > least
    peak = np.where(made, _highest(middle, rate), np.nan)
    low, high = (np.where(made, end, np.nan) for end in _window(middle, width, rate))
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = _between(places, curves[..., first:], high) - _between(places, curves[..., first:], low)
        share = np.where(np.isfinite(low) & np.isfinite(high), inside / (curves[..., 0] - curves[..., -1]), np.nan)
    return Landmarks(peak, step, low, high, share)


def _highest(x: Array, y: Array) -> Array:
    """Where y [..., M] is largest on x [M]: [...], by the parabola through the largest and its neighbours where it has two."""
    best = y.argmax(-1)
    if len(x) < 3:
        return np.asarray(x[best])
    k = np.clip(best, 1, len(x) - 2)
    before, after = x[k] - x[k - 1], x[k + 1] - x[k]
    rising, falling = (_at(y, k) - _at(y, k - 1)) / before, (_at(y, k + 1) - _at(y, k)) / after
    with np.errstate(divide="ignore", invalid="ignore"):
        top = (x[k - 1] + x[k]) / 2 + rising / (rising - falling) * (before + after) / 2
    return np.asarray(np.where(best == k, top, x[best]))


def _window(x: Array, width: Array, rate: Array) -> tuple[Array, Array]:
    """The two ends [...] of the window, at the larger and the smaller index of rate [..., M] over x [M] (falling)."""
    half = rate.max(-1) / 2
    best = rate.argmax(-1)
    excess = (rate - half[..., None]) * width
    last = _furthest(excess, best)
    end = len(x) - 1
    first = end - _furthest(excess[..., ::-1], end - best)
    low = np.where(last < end, _fall(x, rate, half, (last, np.minimum(last + 1, end))), -np.inf)
    high = np.where(first > 0, _fall(x, rate, half, (first, np.maximum(first - 1, 0))), np.inf)
    return low, high


def _furthest(excess: Array, start: Places) -> Places:
    """The index [...], from `start` on, up to which the sum of excess [..., M] from there is largest."""
    counted = np.arange(excess.shape[-1]) >= start[..., None]
    sums = np.where(counted, np.where(counted, excess, 0).cumsum(-1), -np.inf)
    return np.asarray(sums.argmax(-1))


def _fall(x: Array, rate: Array, half: Array, between: tuple[Places, Places]) -> Array:
    """Where the rate passes half on the line from the index inside the window to the one outside."""
    inside, outside = between
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (_at(rate, inside) - half) / (_at(rate, inside) - _at(rate, outside))
        return np.asarray(x[inside] + (x[outside] - x[inside]) * part)


def _between(x: Array, y: Array, where: Array) -> Array:
    """y [..., N] over x [N] (falling) at the points `where` [...], by linear interpolation."""
    i = np.clip(np.searchsorted(-x, -where) - 1, 0, len(x) - 2)
    part = (where - x[i]) / (x[i + 1] - x[i])
    return np.asarray(_at(y, i) * (1 - part) + _at(y, i + 1) * part)


def _at(y: Array, index: Places) -> Array:
    return np.asarray(np.take_along_axis(y, index[..., None], -1)[..., 0])
