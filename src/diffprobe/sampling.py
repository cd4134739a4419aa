"""One loop from noise to data, as a generator of states: deterministic (DDIM, Euler) to stochastic (ancestral), with guidance.

The loop takes gradients wherever the caller allows them: run it under `torch.no_grad()` when none are wanted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.model import Denoiser, ToldGuidance
from diffprobe.paths import NoisePath, Time, like, transition


class State(NamedTuple):
    """Where a trajectory is: x at time t, and the denoiser's x0 there. The last state, at `path.end`, repeats the last x0."""

    step: int
    t: float
    x: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Sampler:
    """How to step: eta 0 is deterministic, eta 1 draws from the exact Gaussian transition (DDPM, ancestral sampling).

    With eta > 0 `seeds` names one seed a sample; the noise of step i is that of the address (role, i, seed), so that a sample
    is the same in any batch and order.
    """

    eta: float = 0.0
    seeds: tuple[int, ...] = ()
    role: str = "sampling"

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta {self.eta} is outside 0 .. 1")


@dataclass(frozen=True, eq=False)
class Guidance:
    """Classifier-free guidance on the levels with lo < sigma/alpha <= hi (Kynkaanniemi et al. 2024); `negative` is a condition.

    D = D(negative) + scale (D(cond) - D(negative)), equal to the same combination of eps, v or velocities. Scale 1 is none.
    """

    scale: float
    lo: float = 0.0
    hi: float = inf
    negative: Any = None


DETERMINISTIC = Sampler()


def trajectory(
    denoiser: Denoiser, path: NoisePath, x: Tensor, times: Sequence[float], *, cond: Any = None, sampler: Sampler = DETERMINISTIC
) -> Iterator[State]:
    """The states of x [B, ...] from noise to data: one a time in `times` (falling), then the one at `path.end`.

    The network runs once a time, len(times) in all, when its state is asked for; a caller who stops early pays for no more.
    The last step goes to `path.end` by the same formula: where sigma is 0 there, its x is x0 itself; a variance-preserving
    path that ends at abar_0 keeps that level's noise, as deployed pipelines do. Raises ValueError
    where there is no time, times do not fall, or eta > 0 lacks a seed a sample.
    """
    if not times or any(later >= earlier for earlier, later in pairwise(times)):
        raise ValueError("times must be one or more and fall strictly, from noise to data: pass path.levels(n) or the last of them")
    if sampler.eta > 0 and len(sampler.seeds) != len(x):
        raise ValueError(f"eta > 0 needs one seed a sample: {len(x)} samples, {len(sampler.seeds)} seeds")
    for index, (t, s) in enumerate(zip(times, (*times[1:], path.end), strict=True)):
        x0 = denoiser(x, t, cond)
        yield State(index, t, x, x0)
        x = step(path, (s, t), x, x0, eta=sampler.eta, noise=_noise(sampler, index, x))
        if index == len(times) - 1:
            yield State(index + 1, s, x, x0)


def step(path: NoisePath, to_from: tuple[float, float], x: Tensor, x0: Tensor, *, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """x_s from x_t and x0, with to_from = (s, t): the DDIM(eta) step of Song et al. 2021 (eq. 12) for every path.

    x_s = alpha_s x0 + sqrt(sigma_s^2 - eta^2 var) eps + eta sqrt(var) noise, eps = (x_t - alpha_t x0)/sigma_t, var of the
    transition. eta 0 on a rectified flow is Euler's step; eta 1 is the transition itself. x in any float dtype.
    """
    s, t = to_from
    variance = transition(path, s, t).variance
    turned = (path.sigma(s).square() - eta**2 * variance).clamp(min=0).sqrt() / path.sigma(t)
    x_s = turned * x + (path.alpha(s) - turned * path.alpha(t)) * x0
    if eta == 0:
        return x_s
    if noise is None:
        raise ValueError("eta > 0 needs noise of the shape of x")
    return x_s + eta * variance.sqrt() * noise


def final(states: Iterable[State]) -> Tensor:
    """The x of the last state: what the decoder gets. Raises ValueError where there is no state."""
    last = deque(states, maxlen=1)
    if not last:
        raise ValueError("the trajectory has no state: give at least one time")
    return last[0].x


def start(path: NoisePath, t: float, shape: Sequence[int], seeds: Sequence[int], role: str = "sampling.start") -> Tensor:
    """Pure noise [len(seeds), *shape] float32 with the standard deviation that data of unit variance have at t, sqrt(alpha^2 + sigma^2)."""
    scale = (path.alpha(t).square() + path.sigma(t).square()).sqrt()
    return scale * rng.normal(shape, role, seeds)


def noised(path: NoisePath, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
    """x_t = alpha(t) x0 + sigma(t) noise, t a scalar or one a sample."""
    return like(path.alpha(t), x0) * x0 + like(path.sigma(t), x0) * noise.to(x0)


def guided(denoiser: Denoiser, path: NoisePath, guidance: Guidance) -> Denoiser:
    """The denoiser with guidance: two network calls inside the interval, one outside it or at scale 1, where nothing changes.

    A network that is told its guidance is told this scale inside, and is guided away from nothing.
    """
    told = denoiser.told(guidance.scale) if isinstance(denoiser, ToldGuidance) else None

    def combined(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        ratio = path.ratio(t)
        inside = (ratio > guidance.lo) & (ratio <= guidance.hi)
        if told is not None and bool(inside.all()):
            return told(x, t, cond)
        plain = denoiser(x, t, cond)
        if guidance.scale == 1 or not bool(inside.any()):
            return plain
        if told is not None:
            pushed = told(x, t, cond)
        else:
            away = denoiser(x, t, guidance.negative)
            pushed = away + guidance.scale * (plain - away)
        return torch.where(like(inside.double(), x) > 0, pushed, plain)

    return combined


def guides(denoiser: Denoiser, scale: float) -> bool:
    """Whether guidance at a scale changes what this denoiser says."""
    return scale != 1 and not (isinstance(denoiser, ToldGuidance) and denoiser.told(scale) is denoiser)


def _noise(sampler: Sampler, index: int, x: Tensor) -> Tensor | None:
    if sampler.eta == 0:
        return None
    return rng.normal(x.shape[1:], f"{sampler.role}.step{index}", sampler.seeds).to(x)
