"""What too few steps do to a speciation profile, estimated from the run itself where the truth is unknown.

The sampler holds both sides' predictions still for the length of a step. Log odds therefore gather the left sum of the squared gap
between them, sum_i g_i dSNR_i with g_i = E||x0_a - x0_b||^2 at the noisy end of step i, where noise alone would have let through the
integral of g. The gap shrinks as noise falls, so a run with few steps decides too early. A run that begins at noise in which the
data still shone through (variance-preserving paths, the more so with leading spacing) errs the other way: it never hears of the
SNR_0 g_0 that the first level already holds. For Gaussian classes of one variance v both are closed forms: g = d^2/(1 + SNR v)^2,
whose integral is the control parameter; 1/sqrt(g) is linear in the SNR, so that a step's share is sqrt(g_i g_{i+1}) dSNR_i exactly.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffprobe.measures.speciation.gaussian import LN2, gaussian_entropy, gaussian_gamma
from diffprobe.measures.speciation.landmarks import noise_levels

Array = NDArray[np.float64]

#: Below this share of its prior an entropy no longer tells how large the control parameter is: the last ratio before is kept.
DECIDED = 0.03
#: More steps than this are not asked for.
MOST_STEPS = 1 << 15
#: Noise levels at which `steps_needed` looks for the largest error.
FINE = 241


def discretisation_bias(sigma: ArrayLike, gaps: ArrayLike, entropy: ArrayLike, *, prior_entropy: float = LN2, start: bool = True) -> Array:
    """Estimated error [N] of the entropy at each level, nats, estimate minus truth: below 0 where steps are too coarse.

    sigma [N] falls (the first may be infinite), gaps [N] are mean squared gaps of the predictions there (`mean_gap`), entropy [N] the
    posterior form's. The observed entropy says which control parameter the two sides have reached, c times the left sum; the truth is
    c times the integral. `start=False` leaves out what the noisiest level holds: the error against a sampler with infinitely many
    steps from the same level. For K sides, or unequal ones, entropies are compared as shares of `prior_entropy`: a rougher guide.
    In exact worlds errors above 0.02 nats came out within 10 % (K sides: 30 %), but not where classes differ by their covariances
    alone: there by up to a factor of 3 (benchmarks/speciation_bias). Raises ValueError for levels that do not fall, gaps below 0, or
    other shapes.
    """
    run = _run(sigma, gaps, entropy, prior_entropy)
    missed = _held(run) if start else 0.0
    scale = prior_entropy / LN2
    return np.asarray(scale * (gaussian_entropy(run.scale * run.left) - gaussian_entropy(run.scale * (missed + run.true))))


def steps_needed(sigma: ArrayLike, gaps: ArrayLike, entropy: ArrayLike, *, prior_entropy: float = LN2, tolerance: float = 0.02) -> int:
    """With how many steps on the same path the largest error that steps cause falls to `tolerance` nats, from 2 on.

    The run's levels are spread over more (or fewer) of them, evenly in index as its own are, and the left sum is taken again, with
    the gaps between levels as in `discretisation_bias`; what the noisiest level holds is left out, since no number of steps brings
    it back. Raises ValueError as there, and where the tolerance is not above 0.
    """
    if not tolerance > 0:
        raise ValueError("a tolerance is above 0 nats")
    run = _run(sigma, gaps, entropy, prior_entropy)
    allowed = tolerance * LN2 / prior_entropy
    low, high = 1, 2
    while high < MOST_STEPS and _largest_error(run, high) > allowed:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _largest_error(run, middle) <= allowed else (middle, high)
    return high


def mean_gap(gaps: ArrayLike, sides: Sequence[Sequence[int]], priors: Sequence[Sequence[float]]) -> Array:
    """The mean [...] of squared gaps [..., P] over the pairs of classes from different sides, weighted by both priors.

    P are the pairs (0, 1), (0, 2), ..., (1, 2), ... of K classes. It predicts the error better than the gap between the posterior
    means of two sets of classes does, which grows as each set settles on one of its own. Raises ValueError where no pair counts.
    """
    values, weight = np.asarray(gaps, dtype=np.float64), defaultdict[tuple[int, int], float](float)
    shares = [dict(zip(side, prior, strict=True)) for side, prior in zip(sides, priors, strict=True)]
    for one, other in combinations(shares, 2):
        for k, m in product(one, other):
            weight[min(k, m), max(k, m)] += one[k] * other[m]
    count = math.isqrt(2 * values.shape[-1]) + 1
    weights = np.array([weight[pair] for pair in combinations(range(count), 2)])
    if len(weights) != values.shape[-1] or not weights.sum() > 0:
        raise ValueError("gaps are those of all pairs of K classes, in order, and two of them must be on different sides")
    return np.asarray((values * weights).sum(-1) / weights.sum())


class _Run(NamedTuple):
    """What was observed: levels, gaps, the left sum of the gaps and their integral from the first level, and c (`scale`), all [N]."""

    snr: Array
    gaps: Array
    left: Array
    true: Array
    scale: Array


def _run(sigma: ArrayLike, gaps: ArrayLike, entropy: ArrayLike, prior_entropy: float) -> _Run:
    level, gap, found = noise_levels(sigma), np.asarray(gaps, dtype=np.float64), np.asarray(entropy, dtype=np.float64)
    if gap.shape != level.shape or found.shape != level.shape:
        raise ValueError("gaps and entropy are one value for each level of sigma")
    if not ((gap >= 0) & np.isfinite(gap)).all() or not np.isfinite(found).all() or not prior_entropy > 0:
        raise ValueError("squared gaps are finite and 0 or more, entropies finite, the prior's above 0")
    snr = level**-2.0
    step = np.diff(snr)
    left = np.concatenate([[0.0], np.cumsum(gap[:-1] * step)])
    true = np.concatenate([[0.0], np.cumsum(np.sqrt(gap[:-1] * gap[1:]) * step)])
    return _Run(snr, gap, left, true, _scale(left, np.clip(found / prior_entropy, 0, 1)))


def _scale(left: Array, share: Array) -> Array:
    """The control parameter that each share of the entropy tells of, over the left sum; where it tells nothing, the nearest that does."""
    telling = (share >= DECIDED) & (left > 0)
    if not telling.any():
        return np.ones_like(left)
    ratio = gaussian_gamma(LN2 * share[telling]) / left[telling]
    index = np.arange(len(left))
    nearest = np.searchsorted(index[telling], index).clip(max=len(ratio) - 1)
    return np.asarray(ratio[nearest])


def _held(run: _Run) -> float:
    """What the noisiest level already holds: the gap's integral from pure noise to there, 1/sqrt(gap) continued by a straight line."""
    first, second = np.maximum(run.gaps[:2], 1e-300) ** -0.5
    steep = (second - first) / (run.snr[1] - run.snr[0])
    return float(run.snr[0] / (first * np.clip(first - steep * run.snr[0], first / 2, 2 * first)))


def _largest_error(run: _Run, count: int) -> float:
    """The largest error of `count` levels over the same range against the integral, at and between those levels."""
    last = len(run.snr) - 1
    levels, fine = np.linspace(0, last, count), np.linspace(0, last, FINE)
    snr, _, true, scale = _between(run, fine)
    coarse, held, _, _ = _between(run, levels)
    left = np.concatenate([[0.0], np.cumsum(held[:-1] * np.diff(coarse))])
    step = np.searchsorted(coarse, snr, side="right").clip(1, count) - 1
    gathered = left[step] + held[step] * np.maximum(snr - coarse[step], 0)
    return float(np.abs(gaussian_entropy(scale * gathered) - gaussian_entropy(scale * true)).max())


def _between(run: _Run, index: Array) -> tuple[Array, Array, Array, Array]:
    """SNR, gap, integral and c at fractional indices of the levels."""
    own = np.arange(len(run.snr))
    # Between two levels sigma/(1 + sigma) goes evenly: it is finite where sigma is not, and what an unshifted flow does.
    snr = np.square(1 / np.interp(index, own, 1 / (1 + np.sqrt(run.snr))) - 1)
    gap = np.interp(snr, run.snr, np.maximum(run.gaps, 1e-300) ** -0.5) ** -2.0
    below = np.searchsorted(run.snr, snr, side="right").clip(1, len(run.snr)) - 1
    true = run.true[below] + np.sqrt(run.gaps[below] * gap) * np.maximum(snr - run.snr[below], 0)
    return snr, gap, true, np.interp(index, own, run.scale)
