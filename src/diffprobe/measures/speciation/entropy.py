"""How undecided a sample is between the sides of a partition, in nats, from the log likelihoods of its path.

A partition has two sides or more, each a sequence of classes (columns of the log likelihoods [..., K]), with a prior for every class.
Means over samples are the caller's: with H(Y | path) = E[entropy] every function returns one value a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp

from diffprobe.measures.speciation.landmarks import noise_levels

Array = NDArray[np.float64]
Sides = Sequence[Sequence[int]]
Priors = Sequence[Sequence[float]]


def log_side_posterior(log_likelihoods: ArrayLike, sides: Sides, priors: Priors) -> Array:
    """log p(side | path) [..., S] from log likelihoods [..., K] of the classes, each up to what all classes share.

    A side's likelihood is the mixture of its classes', weighted by their priors; classes on no side do not count. The side of each
    class alone gives the posterior of classes. Raises ValueError for sides that overlap or are empty, an unknown class, and priors
    that are not positive, not of the shape of `sides`, or do not sum to 1 over all.
    """
    totals = np.stack([logsumexp(part, axis=-1) for part in _joint(log_likelihoods, sides, priors)], -1)
    return _normalised(totals)


def class_entropy(log_posterior: ArrayLike, labels: ArrayLike | None = None) -> Array:
    """The entropy [...] of log posteriors [..., S]: -sum p log p; with labels, integers [...], minus the log posterior of the label.

    Both have the same mean where labels are what the samples were drawn from and nothing guided them: the first varies less, and
    their difference is a test of calibration. With guidance only the second is a (cross) entropy. A log posterior of -inf is a
    posterior of 0 and counts 0 in the first. Raises ValueError for values above 0 and for labels outside 0 .. S - 1.
    """
    logs = np.asarray(log_posterior, dtype=np.float64)
    if logs.ndim == 0 or (logs > 1e-9).any():
        raise ValueError("log posteriors [..., S] are 0 or less: pass likelihoods through log_side_posterior first")
    if labels is None:
        p = np.exp(logs)
        return np.asarray(0 - np.multiply(p, logs, out=np.zeros_like(logs), where=p != 0).sum(-1))
    chosen = np.asarray(labels)
    if chosen.shape != logs.shape[:-1] or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"labels are integers, one a sample {list(logs.shape[:-1])}, not {chosen.dtype} {list(chosen.shape)}")
    if ((chosen < 0) | (chosen >= logs.shape[-1])).any():
        raise ValueError(f"a label lies outside 0 .. {logs.shape[-1] - 1}: it is the number of the side that a sample was drawn from")
    return np.asarray(0 - np.take_along_axis(logs, chosen[..., None], -1)[..., 0])


def label_deviation(log_posterior: ArrayLike) -> Array:
    """The standard deviation [...] of -log p(label) where the label is drawn from log posteriors [..., S] themselves, in nats.

    sqrt(sum p (log p)^2 - H^2); two sides: sqrt(p (1 - p)) |log odds|. It says how far the label form scatters about the posterior
    form when the posterior is right, also where the rare labels that make the scatter have not come up.
    """
    logs = np.maximum(np.asarray(log_posterior, dtype=np.float64), -1e3)  # beyond 745 its weight is 0
    p = np.exp(logs)
    return np.asarray(np.sqrt(np.maximum((p * logs**2).sum(-1) - (p * logs).sum(-1) ** 2, 0)))


def partitioned_entropy(log_odds: ArrayLike, labels: ArrayLike | None = None) -> Array:
    """The entropy [...] of two sides A, B from the log odds [...] of A, prior odds included; at most ln 2.

    With labels, booleans [...] that are True where a sample was drawn from A: minus the log posterior of the label, log(1 + exp(-L))
    or log(1 + exp(L)). Exact for any log odds. Raises ValueError for labels that are not booleans of that shape.
    """
    odds = np.asarray(log_odds, dtype=np.float64)
    if labels is None:
        size = np.minimum(np.abs(odds), 1e4)  # beyond 745 it is 0 anyway
        return np.asarray(np.log1p(np.exp(-size)) + size * expit(-size))
    own = np.asarray(labels)
    if own.shape != odds.shape or own.dtype != np.bool_:
        raise ValueError(f"labels of log odds are booleans {list(odds.shape)}, True for side A, not {own.dtype} {list(own.shape)}")
    return np.asarray(np.logaddexp(0, np.where(own, -odds, odds)))


def mmse_rate(log_likelihoods: ArrayLike, gaps: ArrayLike, sides: Sides, priors: Priors) -> Array:
    """sum_s p_s ||x0_s - x0bar||^2 [...]: how far the sides' predictions lie apart, which drives the entropy by -dH/dSNR = half of it.

    x0_s is the posterior mean of side s, x0bar that of all. `gaps` [..., P] are the squared distances of all pairs of the K classes'
    predictions in the order (0, 1), (0, 2), ..., (1, 2), ...; the rest as in `log_side_posterior`, log likelihoods of the same state
    without any prior in them. Two single classes: p (1 - p) ||x0_a - x0_b||^2. Raises ValueError as that does, and for another P.
    """
    parts = _joint(log_likelihoods, sides, priors)
    count, distances = np.shape(log_likelihoods)[-1], np.asarray(gaps, dtype=np.float64)
    rows, columns = np.triu_indices(count, 1)
    if distances.shape[-1:] != rows.shape:
        raise ValueError(f"{count} classes have {len(rows)} pairs, but the gaps are {list(distances.shape)}")
    square = np.zeros((*distances.shape[:-1], count, count))
    square[..., rows, columns] = square[..., columns, rows] = distances
    posterior = np.exp(_normalised(np.stack([logsumexp(part, axis=-1) for part in parts], -1)))
    inside = [np.exp(_normalised(part)) for part in parts]  # of the classes within each side
    classes = np.concatenate([share * posterior[..., s, None] for s, share in enumerate(inside)], -1)
    within = sum(posterior[..., s] * _scatter(share, square, sides[s]) for s, share in enumerate(inside))
    return np.asarray(np.maximum(_scatter(classes, square, [index for side in sides for index in side]) - within, 0))


def immse_entropy(sigma: ArrayLike, rates: ArrayLike, prior_entropy: float) -> Array:
    """The entropy [..., N] at levels sigma [N] (falling, the first may be infinite) from the rates [..., N] of `mmse_rate` there.

    dH = -rate dSNR/2 with SNR = 1/sigma^2, each step by the rate at its noisier end, from `prior_entropy` at the first level on. The
    last rate is not used and may be absent. Biased by few steps, more than the paths' entropy is: a check, best from 128 steps on,
    and below 0 where steps are too long. Raises ValueError for levels that do not fall or reach 0, and for another number of rates.
    """
    levels, speed = noise_levels(sigma), np.asarray(rates, dtype=np.float64)
    if speed.shape[-1:] not in {(len(levels),), (len(levels) - 1,)}:
        raise ValueError(f"{len(levels)} levels need as many rates [..., N], or one less, not {list(speed.shape)}")
    lost = np.cumsum(speed[..., : len(levels) - 1] * np.diff(levels**-2.0) / 2, -1)
    return prior_entropy - np.concatenate([np.zeros((*speed.shape[:-1], 1)), lost], -1)


def _joint(log_likelihoods: ArrayLike, sides: Sides, priors: Priors) -> list[Array]:
    """Log likelihoods plus log priors of each side's classes: one [..., classes of the side] a side."""
    logs = np.asarray(log_likelihoods, dtype=np.float64)
    classes = [index for side in sides for index in side]
    if len(sides) < 2 or not all(len(side) for side in sides):
        raise ValueError("a partition has two sides or more, each with a class at least")
    if len(set(classes)) < len(classes):
        twice = next(index for place, index in enumerate(classes) if index in classes[:place])
        raise ValueError(f"class {twice} stands on two sides, or twice on one: sides must not overlap")
    if logs.ndim == 0 or not 0 <= min(classes) <= max(classes) < logs.shape[-1]:
        raise ValueError(f"sides name classes {min(classes)} to {max(classes)}, but the log likelihoods are {list(logs.shape)}")
    if [len(side) for side in sides] != [len(side) for side in priors]:
        raise ValueError("priors have the shape of the sides: one number for every class")
    given = [prior for side in priors for prior in side]
    if not (min(given) > 0 and abs(sum(given) - 1) < 1e-9):
        raise ValueError(f"priors are above 0 and sum to 1 over all classes, not to {sum(given):g}: divide them by their sum")
    return [logs[..., list(side)] + np.log(prior) for side, prior in zip(sides, priors, strict=True)]


def _normalised(logs: Array) -> Array:
    """Log probabilities [..., S] from their logarithms up to a constant; nan where all are -inf."""
    with np.errstate(invalid="ignore"):
        return np.asarray(logs - logsumexp(logs, axis=-1, keepdims=True))


def _scatter(p: Array, square: Array, classes: Sequence[int]) -> Array:
    """The variance sum_k p_k ||x0_k - x0bar||^2 = sum_kl p_k p_l ||x0_k - x0_l||^2/2 of the named classes."""
    return np.asarray(np.einsum("...k,...kl,...l->...", p, square[..., list(classes), :][..., list(classes)], p) / 2)
