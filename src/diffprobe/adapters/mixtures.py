"""Gaussian mixtures, seen through noise: on any noise path their densities, scores, denoisers and class posteriors are closed forms.

Noise x_t = alpha x_0 + sigma eps turns N(m, v) into N(alpha m, alpha^2 v + sigma^2), and a mixture into a mixture with the same
weights. Whatever a trained network only estimates is therefore known here, for every class and every set of classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, pi
from typing import Any

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.model import Denoiser
from diffprobe.paths import NoisePath, Time


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """sum_k weights_k N(means_k, diag variances_k): means [K, D], variances [K] or [K, D] above 0, weights [K] that sum to 1.

    `parents` [K], where given, puts each class into one of the super-classes 0 .. G - 1. Everything is computed in float64.
    A condition is a class for each sample [B] (or for all), where -1, like None, is the whole mixture; or a set of classes for
    each, bool [B, K] or [K], as `members` gives it.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        means, variances, weights = (part.detach().double() for part in (self.means, self.variances, self.weights))
        spread = variances[:, None].expand(-1, means.shape[-1]) if variances.ndim == 1 else variances
        if means.ndim != 2 or spread.shape != means.shape or weights.shape != means.shape[:1]:
            raise ValueError("a mixture takes means [K, D], variances [K] or [K, D] and weights [K]")
        if bool((spread <= 0).any()) or bool((weights <= 0).any()) or abs(float(weights.sum()) - 1) > 1e-9:
            raise ValueError("a mixture's variances and weights are above 0, and the weights sum to 1")
        if self.parents and (len(self.parents) != len(weights) or set(self.parents) != set(range(self.groups))):
            raise ValueError("parents name the super-class of every class, and use every number from 0 up")
        for name, value in (("means", means), ("variances", spread), ("weights", weights)):
            object.__setattr__(self, name, value.contiguous())

    @property
    def classes(self) -> int:
        return len(self.weights)

    @property
    def groups(self) -> int:
        """How many super-classes there are; 0 where there is no hierarchy."""
        return max(self.parents, default=-1) + 1

    def members(self, group: int) -> Tensor:
        """The classes inside a super-class, bool [K]: a condition. Raises ValueError where there is no such super-class."""
        if group not in self.parents:
            raise ValueError(f"a super-class is one of 0 .. {self.groups - 1}" if self.parents else "no super-classes: give `parents`")
        return torch.tensor(self.parents) == group

    def denoiser(self, path: NoisePath) -> Denoiser:
        """E[x_0 | x_t] and, given a condition, E[x_0 | x_t, condition], on `path`; x [B, ...] of any shape with D numbers a sample."""

        def exact(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
            flat, a, s = _flat(x), _column(path.alpha(t)), _column(path.sigma(t))
            gain = a * self.variances / (a.square() * self.variances + s.square())
            means = self.means + gain * (flat[:, None] - a * self.means)  # E[x_0 | x_t, k], [B, K, D]
            return (self._shares(x, t, path, cond)[..., None] * means).sum(1).reshape(x.shape).to(x)

        return exact

    def score(self, x: Tensor, t: Time, path: NoisePath, cond: Any = None) -> Tensor:
        """grad log p_t(x | cond) in float64 and of the shape of x, directly from the mixture."""
        flat, a, s = _flat(x), _column(path.alpha(t)), _column(path.sigma(t))
        each = (a * self.means - flat[:, None]) / (a.square() * self.variances + s.square())
        return (self._shares(x, t, path, cond)[..., None] * each).sum(1).reshape(x.shape)

    def log_density(self, x: Tensor, t: Time, path: NoisePath, cond: Any = None) -> Tensor:
        """log p_t(x | cond), [B]."""
        prior = self.weights.log().where(self._allowed(cond, len(x)), -torch.inf)
        return (prior + self.log_likelihoods(x, t, path)).logsumexp(-1) - prior.logsumexp(-1)

    def log_likelihoods(self, x: Tensor, t: Time, path: NoisePath) -> Tensor:
        """log p_t(x | k), [B, K]."""
        a, s = _column(path.alpha(t)), _column(path.sigma(t))
        variance = a.square() * self.variances + s.square()
        squares: Tensor = (_flat(x)[:, None] - a * self.means).square() / variance
        return -0.5 * (squares + variance.log() + log(2 * pi)).sum(-1)

    def log_posterior(self, x: Tensor, t: Time, path: NoisePath, cond: Any = None) -> Tensor:
        """log p(k | x_t, cond), [B, K]; -inf for the classes that a condition leaves out."""
        joint = self.weights.log() + self.log_likelihoods(x, t, path)
        if cond is not None:
            joint = joint.where(self._allowed(cond, len(x)), -torch.inf)
        return joint - joint.logsumexp(-1, keepdim=True)

    def log_group_posterior(self, x: Tensor, t: Time, path: NoisePath) -> Tensor:
        """log p(super-class | x_t), [B, G]. Raises ValueError where there are no super-classes."""
        posterior, groups = self.log_posterior(x, t, path), range(max(self.groups, 1))
        return torch.stack([posterior[:, self.members(group)].logsumexp(-1) for group in groups], -1)

    def sample(self, seeds: Sequence[int], role: str = "exact.sample") -> tuple[Tensor, Tensor]:
        """One sample a seed: x_0 [B, D] float64 and its class [B]."""
        draws = [rng.stream(f"{role}.class", seed).random() for seed in seeds]
        classes = torch.searchsorted(self.weights.cumsum(0), torch.tensor(draws, dtype=torch.float64)).clamp(max=self.classes - 1)
        noise = rng.normal(self.means.shape[1:], role, seeds).double()
        return self.means[classes] + self.variances[classes].sqrt() * noise, classes

    def _shares(self, x: Tensor, t: Time, path: NoisePath, cond: Any) -> Tensor:
        """The weight of each class's own answer, [B, K]."""
        return self.log_posterior(x, t, path, cond).exp()

    def _allowed(self, cond: Any, samples: int) -> Tensor:
        """The classes that a condition leaves, bool [samples, K]."""
        asked = torch.as_tensor(-1 if cond is None else cond)
        if asked.dtype != torch.bool:
            if bool((asked >= self.classes).any()):
                raise ValueError(f"a class is one of 0 .. {self.classes - 1}, or -1 for the whole mixture")
            asked = (asked[..., None] < 0) | (asked[..., None] == torch.arange(self.classes))
        elif asked.shape[-1:] != (self.classes,) or not bool(asked.any(-1).all()):
            raise ValueError(f"a set of classes is a bool tensor of {self.classes} entries, one of them true at least")
        return asked.expand(samples, self.classes)


def isotropic(dimension: int, classes: int, *, separation: float, variance: float, seed: int = 0) -> GaussianMixture:
    """Equally likely classes, each with the same variance in every direction.

    Their means are drawn from the seed, then centred and scaled: the root mean square distance between two of them is
    `separation` exactly (for two classes: their distance). The whole has variance + separation^2 (K - 1)/(2 K D) a direction.
    """
    means = _points(classes, dimension, separation, seed)
    return GaussianMixture(means, torch.full((classes,), variance, dtype=torch.float64), _even(classes))


def anisotropic(dimension: int, classes: int, *, separation: float, variances: tuple[float, float], seed: int = 0) -> GaussianMixture:
    """Equally likely classes, each with variances of its own: one a direction, log-uniform between the two given.

    Means as in `isotropic`; at separation 0 the classes differ by their covariances alone.
    """
    low, high = variances
    if not 0 < low <= high:
        raise ValueError(f"variances are two numbers above 0, the lower first, not {variances}")
    shares = torch.from_numpy(rng.stream("exact.variances", seed).random((classes, dimension)))
    return GaussianMixture(_points(classes, dimension, separation, seed), low * (high / low) ** shares, _even(classes))


def hierarchical(
    dimension: int, classes: tuple[int, int], *, separations: tuple[float, float], variance: float, seed: int = 0
) -> GaussianMixture:
    """Classes inside super-classes: `classes` = (super-classes, classes in each), all equally likely, numbered group by group.

    `separations` are the root mean square distances between the centres of two super-classes and between the means of two
    classes of one, both exact; so on the way to noise the classes of a group merge first and the groups later.
    """
    groups, each = classes
    centres = _points(groups, dimension, separations[0], seed)
    means = torch.cat([centre + _points(each, dimension, separations[1], seed, group) for group, centre in enumerate(centres)])
    parents = tuple(group for group in range(groups) for _ in range(each))
    return GaussianMixture(means, torch.full((groups * each,), variance, dtype=torch.float64), _even(groups * each), parents)


def _points(count: int, dimension: int, distance: float, *seed: int) -> Tensor:
    """`count` random points [count, D] around 0 whose root mean square distance from one another is `distance`."""
    if count < 1 or dimension < 1 or distance < 0:
        raise ValueError(f"{count} classes in {dimension} dimensions at separation {distance}: one or more, one or more, 0 or more")
    if count == 1:
        return torch.zeros(1, dimension, dtype=torch.float64)
    points = torch.from_numpy(rng.stream("exact.means", *seed).standard_normal((count, dimension)))
    points -= points.mean(0)
    # Around their mean, the squares of the pairwise distances average 2/(count - 1) times the sum of the squared norms.
    return points * (distance / (2 * points.square().sum() / (count - 1)).sqrt())


def _even(classes: int) -> Tensor:
    return torch.full((classes,), 1 / classes, dtype=torch.float64)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).double()


def _column(coefficient: Tensor) -> Tensor:
    """A coefficient, scalar or one a sample, to multiply [B, K, D]."""
    return coefficient.reshape(-1, 1, 1)
