"""How undecided a class still is at a noise level, exactly: entropies of Gaussian mixtures seen through noise, and their production.

A partition asks which of several sides a sample came from; a side is a weighted set of classes, and sides may share classes (a class
against the whole mixture, its proxy). H(Y | x_t) = -sum_s pi_s E_s ln p(s | x_t) depends on the noise-to-signal ratio sigma alone,
because x_t/alpha = x_0 + sigma eps carries the same information on every path. Its production in forward time is
dH/dt = (g^2/2) sum_s pi_s E_s ||s_s - s||^2 = (g^2/4) sum_s pi_s E_s sum_r p(r | x) ||s_s - s_r||^2 with the scores of sides and mixture
and the diffusion coefficient g^2 = d sigma_t^2/dt - 2 sigma_t^2 d ln(alpha)/dt = alpha^2 d(sigma^2)/dt: on a variance-preserving path
-d ln(abar)/dt (2 for x_t = e^-t x_0 + ...), on a variance-exploding one d(sigma^2)/dt, on a rectified flow 2t/(1 - t). Per unit of
ln sigma the factor g^2/2 becomes sigma_t^2 on all of them, and the score gaps times it SNR times the gaps of the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from diffprobe import rng
from diffprobe.adapters.mixtures import GaussianMixture
from diffprobe.measures.speciation.gaussian import control_parameter, gaussian_entropy, gaussian_entropy_slope
from diffprobe.paths import NoisePath

Array = NDArray[np.float64]

#: Half the step, in ln sigma, of the difference that differentiates an entropy: its error is of third derivatives over 1e8.
STEP = 1e-4


@dataclass(frozen=True)
class Partition:
    """Sides, each a few classes, and the prior of every class on it; they sum to 1 over all. Sides may share classes."""

    sides: tuple[tuple[int, ...], ...]
    priors: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        given = [prior for side in self.priors for prior in side]
        if len(self.sides) < 2 or not all(self.sides) or [*map(len, self.sides)] != [*map(len, self.priors)]:
            raise ValueError("a partition has two sides or more, each with classes and one prior a class")
        if min(given) <= 0 or abs(sum(given) - 1) > 1e-9:
            raise ValueError(f"priors are above 0 and sum to 1 over all sides, not to {sum(given):g}")

    @property
    def totals(self) -> Array:
        """The prior of each side, [S]."""
        return np.array([sum(side) for side in self.priors])

    @property
    def entropy(self) -> float:
        """H(Y) before anything is seen, in nats."""
        return float(-(self.totals * np.log(self.totals)).sum())


class Entropies(NamedTuple):
    """At levels sigma [N], what each seed contributes [M, N]: the mean over seeds is the quantity, their spread its error (`mean_se`).

    `entropy` is that of the posterior, `label` minus the log posterior of the side that a sample is from: one expectation, and the
    second varies more (with a rare side, much more). `production`, per unit of ln sigma, is the identity with the posterior's mean of
    ||s_s - s||^2, `pairwise` the one over pairs from the sides that samples are from, `derivative` the difference of the entropies of
    the same samples at two levels near by.
    """

    sigma: Array
    entropy: Array
    label: Array
    production: Array
    pairwise: Array
    derivative: Array


class Sides(NamedTuple):
    """What each side makes of states x_t: log p(side | x_t) [B, S], and E[x_0 | x_t, side] [S, B, D]."""

    log_posterior: Array
    x0: Array


class TwoGaussians(NamedTuple):
    """Two isotropic classes of one variance at levels sigma [N], by quadrature; `production` is per unit of ln sigma."""

    sigma: Array
    gamma: Array
    entropy: Array
    production: Array


def partition(mixture: GaussianMixture, sides: Sequence[Sequence[int]] | None = None, *, balanced: bool = True) -> Partition:
    """Sides of a mixture's classes (None: each class a side), within each by the mixture's weights.

    Between sides equal priors, or with `balanced=False` what their classes weigh in the mixture. Raises ValueError for a class that
    the mixture does not have.
    """
    chosen = [[k] for k in range(mixture.classes)] if sides is None else [list(side) for side in sides]
    if any(not 0 <= k < mixture.classes for side in chosen for k in side):
        raise ValueError(f"a class is one of 0 .. {mixture.classes - 1}")
    weights = [mixture.weights[side].tolist() for side in chosen]
    share = [1 / len(chosen) if balanced else sum(part) / sum(map(sum, weights)) for part in weights]
    priors = tuple(tuple(whole * each / sum(part) for each in part) for whole, part in zip(share, weights, strict=True))
    return Partition(tuple(map(tuple, chosen)), priors)


def mixture_entropy(
    mixture: GaussianMixture, path: NoisePath, times: Sequence[float], asked: Partition, seeds: Sequence[int], role: str = "exact.entropy"
) -> Entropies:
    """H(Y | x_t) and its production at `times` of a path, from one sample of every side for each seed.

    A seed's samples and noise are the same at all levels and on all paths: curves are smooth, and differences between levels
    sharper than the curves. Unbiased, so that means over seeds have honest errors. Levels have 0 < sigma < infinity.
    """
    sigma = np.array([float(path.ratio(t)) for t in times])
    if not (np.isfinite(sigma) & (sigma > 0)).all() or len(seeds) < 2:
        raise ValueError("an entropy needs levels with a finite sigma above 0, and two seeds or more")
    clean, noise = _draws(mixture, asked, seeds, role)
    found = [_level(mixture, asked, (clean, noise), float(path.alpha(t)), float(path.sigma(t))) for t in times]
    return Entropies(sigma, *(np.stack(column, -1) for column in zip(*found, strict=True)))


def posterior_entropy(
    mixture: GaussianMixture, path: NoisePath, times: Sequence[float], asked: Partition, seeds: Sequence[int], role: str = "exact.entropy"
) -> Array:
    """The `entropy` of `mixture_entropy` [M, N] from the same samples, without its production: several times faster."""
    draws = _draws(mixture, asked, seeds, role)
    found = [_entropy(mixture, asked, draws, float(path.alpha(t)), float(path.sigma(t))) for t in times]
    return np.stack(found, -1)


def two_gaussians(mixture: GaussianMixture, path: NoisePath, times: Sequence[float], asked: Partition) -> TwoGaussians:
    """The same without sampling, where both sides are a single isotropic class and their variances are equal; else ValueError."""
    first, second = (side[0] for side in asked.sides[:2])
    spread = mixture.variances[[first, second]]
    if [*map(len, asked.sides)] != [1, 1] or float(spread.max() - spread.min()) > 1e-12 * float(spread.max()):
        raise ValueError("quadrature is for two single isotropic classes of one variance: use mixture_entropy")
    sigma = np.array([float(path.ratio(t)) for t in times])
    distance2, variance = float((mixture.means[first] - mixture.means[second]).square().sum()), float(spread[0, 0])
    gamma, prior = control_parameter(sigma, distance2, variance), float(asked.totals[0])
    with np.errstate(invalid="ignore"):
        share = np.where(np.isfinite(sigma), sigma**2 / (sigma**2 + variance), 1.0)
    rate = gaussian_entropy_slope(gamma, prior=prior) * -2 * gamma * share
    return TwoGaussians(sigma, gamma, gaussian_entropy(gamma, prior=prior), rate)


def control_parameters(mixture: GaussianMixture, sigma: ArrayLike) -> Array:
    """Gamma_kl = 2 KL(p_t(. | k) || p_t(. | l)) [..., K, K] at noise-to-signal ratios sigma [...]: 0 on the diagonal.

    Twice the mean log odds of class k over class l for samples of k. For a common isotropic variance v it is d^2/(sigma^2 + v), that is
    alpha^2 d^2/sigma_t^2 with sigma_t^2 the variance of a class at that level: the control parameter, symmetric, and the variance of
    the log odds too. Far above the classes' variances it tends to the first- and second-moment form of `speciation_time`.
    """
    means, spread = mixture.means.numpy(), mixture.variances.numpy()
    levels = np.asarray(sigma, dtype=np.float64)
    found = np.empty((*levels.shape, mixture.classes, mixture.classes))
    for index in np.ndindex(levels.shape):
        total = spread + levels[index] ** 2
        for k in range(mixture.classes):
            ratio = total[k] / total
            found[index][k] = (ratio - 1 - np.log(ratio) + (means[k] - means) ** 2 / total).sum(-1)
    return found


def sides_at(mixture: GaussianMixture, path: NoisePath, x: Array, t: float, asked: Partition) -> Sides:
    """The exact posterior and predictions of every side at states x [B, D] of one level."""
    alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
    inside, log_sides = _posteriors(mixture, asked, x, alpha, sigma)
    return Sides(log_sides, _answers(mixture, asked, inside, x, (alpha, sigma)))


def mean_se(values: Array) -> tuple[Array, Array]:
    """Mean and its standard error over seeds, of [M, ...]."""
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def _draws(mixture: GaussianMixture, asked: Partition, seeds: Sequence[int], role: str) -> tuple[Array, Array]:
    """x_0 and eps, [S, M, D] each: a sample of each side for each seed."""
    means, spread, shape = mixture.means.numpy(), mixture.variances.numpy(), mixture.means.shape[1:]
    clean, noise = [], []
    for number, (side, priors) in enumerate(zip(asked.sides, asked.priors, strict=True)):
        draws = np.array([rng.stream(f"{role}.class", number, seed).random() for seed in seeds])
        edges = np.cumsum(priors) / sum(priors)
        chosen = np.array(side)[np.searchsorted(edges[:-1], draws, side="right")]
        within = rng.normal(shape, f"{role}.side{number}", seeds).double().numpy()
        clean.append(means[chosen] + np.sqrt(spread[chosen]) * within)
        noise.append(rng.normal(shape, f"{role}.noise{number}", seeds).double().numpy())
    return np.stack(clean), np.stack(noise)


def _level(mixture: GaussianMixture, asked: Partition, draws: tuple[Array, Array], alpha: float, sigma: float) -> tuple[Array, ...]:
    """The five columns of `Entropies` at one level, [M] each."""
    clean, noise = draws
    weights = asked.totals
    x = (alpha * clean + sigma * noise).reshape(-1, clean.shape[-1])
    inside, log_sides = _posteriors(mixture, asked, x, alpha, sigma)
    answers = _answers(mixture, asked, inside, x, (alpha, sigma))
    p = np.exp(log_sides)
    labels = np.repeat(np.arange(len(weights)), clean.shape[1])
    middle = np.einsum("bs,sbd->bd", p, answers)
    spread, apart = (np.einsum("bs,sb->b", p, ((answers - centre) ** 2).sum(-1)) for centre in (middle, answers[labels, np.arange(len(x))]))
    snr = (alpha / sigma) ** 2
    near = [_entropy(mixture, asked, draws, alpha, sigma * math.exp(side * STEP)) for side in (1, -1)]
    by_label = [weights @ column.reshape(len(weights), -1) for column in (-log_sides[np.arange(len(x)), labels], snr * apart / 2)]
    entropy, production = (_over_sides(column, p, asked) for column in (-(p * log_sides).sum(-1), snr * spread))
    return entropy, by_label[0], production, by_label[1], (near[0] - near[1]) / (2 * STEP)


def _entropy(mixture: GaussianMixture, asked: Partition, draws: tuple[Array, Array], alpha: float, sigma: float) -> Array:
    """The entropy of the posterior, [M]."""
    x = (alpha * draws[0] + sigma * draws[1]).reshape(-1, draws[0].shape[-1])
    log_sides = _posteriors(mixture, asked, x, alpha, sigma)[1]
    p = np.exp(log_sides)
    return _over_sides(-(p * log_sides).sum(-1), p, asked)


def _over_sides(values: Array, p: Array, asked: Partition) -> Array:
    """What each seed contributes [M] to a mean over the mixture, from values and posteriors at its samples of all sides, [S M].

    Sides are sampled equally often whatever their priors, so a sample counts by the density of the mixture over that of the draws,
    1/sum_s p(s | x)/pi_s (Veach and Guibas 1995): a rare side, near which all of the entropy is, does not make the mean noisy.
    """
    return np.asarray((values / (p / asked.totals).sum(-1)).reshape(len(asked.sides), -1).sum(0))


def _posteriors(mixture: GaussianMixture, asked: Partition, x: Array, alpha: float, sigma: float) -> tuple[list[Array], Array]:
    """p(k | x, side) [B, classes of the side] of each side and log p(side | x) [B, S], for x [B, D]."""
    means, spread = mixture.means.numpy(), mixture.variances.numpy()
    inverse = 1 / (alpha**2 * spread + sigma**2)
    # The squares multiplied out, so that 200 classes in 1,000 dimensions are a matrix product or two.
    logs = alpha * x @ (means * inverse).T - 0.5 * (alpha**2 * means**2 * inverse - np.log(inverse)).sum(-1)
    if np.ptp(inverse, axis=0).any():  # else all classes share x^2/variance
        logs -= 0.5 * x**2 @ inverse.T
    inside, totals = [], []
    for side, priors in zip(asked.sides, asked.priors, strict=True):
        part = logs[:, side] + np.log(priors)
        top = part.max(-1, keepdims=True)
        shares = np.exp(part - top)
        whole = shares.sum(-1, keepdims=True)
        inside.append(shares / whole)
        totals.append(top + np.log(whole))
    joint = np.concatenate(totals, -1)
    return inside, joint - logsumexp(joint, axis=-1, keepdims=True)


def _answers(mixture: GaussianMixture, asked: Partition, inside: Sequence[Array], x: Array, level: tuple[float, float]) -> Array:
    """E[x_0 | x, side] [S, B, D] at a level (alpha, sigma)."""
    found = []
    for side, shares in zip(asked.sides, inside, strict=True):
        means, spread = mixture.means.numpy()[list(side)], mixture.variances.numpy()[list(side)]
        gain = level[0] * spread / (level[0] ** 2 * spread + level[1] ** 2)
        mixed = shares @ gain if np.ptp(gain, axis=0).any() else gain[0]
        found.append(shares @ (means - level[0] * gain * means) + x * mixed)
    return np.stack(found)
