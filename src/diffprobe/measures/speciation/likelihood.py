"""How likely each condition finds a step of a stochastic sampler: log odds of paths, and distances between predictions.

x [B, ...] may have any float dtype and device; results are float64 on the same device. Nothing here loads torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

#: Numbers taken at once: on the CPU, of one prediction and of all, what stays in its cache (several times faster); elsewhere what
#: bounds the memory.
CACHED, CACHED_ALL, BOUNDED = 1 << 14, 1 << 18, 1 << 24


class Coefficients(Protocol):
    """q(x_s | x_t, x_0) = N(carry x_t + pull x_0, variance I), all scalars: `diffprobe.paths.Transition` is one."""

    @property
    def carry(self) -> Tensor | float: ...

    @property
    def pull(self) -> Tensor | float: ...

    @property
    def variance(self) -> Tensor | float: ...


def log_likelihood_ratio(x_s: Tensor, x_t: Tensor, x0_a: Tensor, x0_b: Tensor, transition: Coefficients) -> Tensor:
    """log p(x_s | x_t, a)/p(x_s | x_t, b) [B] of one step, where a and b predict x0_a and x0_b from x_t (all [B, ...]).

    <x_s - (m_a + m_b)/2, m_a - m_b>/variance with m = carry x_t + pull x0: exactly 0 for equal predictions, exactly the negative with
    a and b exchanged, and free of the cancellation of two squared distances. Exact for a sampler that draws x_s from the transition
    (eta 1), whatever the network; of any other sampler it is not the likelihood. Nan where a prediction is not finite.
    Raises ValueError for shapes that differ, and for a step of variance 0.
    """
    if not x_s.shape == x_t.shape == x0_a.shape == x0_b.shape:
        raise ValueError(f"states and predictions need one shape [B, ...], not {[list(x.shape) for x in (x_s, x_t, x0_a, x0_b)]}")
    return _odds(x_s, x_t, (x0_b, x0_a), transition)[:, 1]


def log_likelihood_steps(x_s: Tensor, x_t: Tensor, x0: Tensor, transition: Coefficients) -> Tensor:
    """log p(x_s | x_t, k)/p(x_s | x_t, 0) [B, K] of one step for K conditions that predict x0 [K, B, ...]; column 0 is 0.

    Summed over the steps of a path they are its log likelihood under each condition, up to what all share: see
    `log_likelihood_ratio`, and `entropy.log_side_posterior` for what to do with them. Raises ValueError as that does.
    """
    if x_s.shape != x_t.shape or x0.shape[1:] != x_s.shape or len(x0) == 0:
        raise ValueError(f"need states [B, ...] and predictions [K, B, ...], not {[list(x.shape) for x in (x_s, x_t, x0)]}")
    return _odds(x_s, x_t, x0, transition)


def squared_gaps(x0: Tensor) -> Tensor:
    """||x0_k - x0_l||^2 [B, P] of the predictions x0 [K, B, ...] of K conditions, in the order of `pairs(K)`.

    From the differences themselves, so that near equals keep their digits and equals are exactly 0. Nan where one is not finite.
    """
    if x0.ndim < 2 or x0.numel() == 0:
        raise ValueError(f"need predictions [K, B, ...], not {list(x0.shape)}")
    count, samples = x0.shape[:2]
    answers = x0.reshape(count, samples, -1)
    step = max(1, _most(x0, CACHED_ALL) // (count * answers.shape[2]))
    found = answers[:1, :1, 0].double().new_empty((samples, count * (count - 1) // 2))
    for begin in range(0, samples, step):
        part, column = answers[:, begin : begin + step].double(), 0
        for k in range(count - 1):
            others = count - 1 - k
            found[begin : begin + step, column : column + others] = (part[k + 1 :] - part[k]).square_().sum(-1).T
            column += others
    return found.where(found.isfinite(), float("nan"))


def pairs(count: int) -> list[tuple[int, int]]:
    """The pairs of K conditions in the order of `squared_gaps`: (0, 1), (0, 2), ..., (1, 2), ..."""
    return list(combinations(range(count), 2))


def _odds(x_s: Tensor, x_t: Tensor, x0: Sequence[Tensor] | Tensor, transition: Coefficients) -> Tensor:
    """The log odds [B, K] of each prediction against the first."""
    carry, pull, variance = _scalars(transition)
    found = x_s.reshape(-1)[:1].double().new_zeros((len(x_s), len(x0)))
    step = max(1, _most(x_s, CACHED) // max(1, x_s[:1].numel()))
    for begin in range(0, len(x_s), step):
        part = slice(begin, begin + step)
        moved, first = _rows(x_s[part]) - carry * _rows(x_t[part]), _rows(x0[0][part])
        for k in range(1, len(x0)):
            other = _rows(x0[k][part])
            middle = (other + first).mul_(-pull / 2).add_(moved)
            found[part, k] = middle.mul_(other - first).sum(1) * (pull / variance)
    return found.where(found.isfinite(), float("nan"))


def _most(x: Tensor, cached: int) -> int:
    return cached if x.device.type == "cpu" else BOUNDED


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).double()


def _scalars(transition: Coefficients) -> tuple[float, float, float]:
    variance = float(transition.variance)
    if not variance > 0:
        raise ValueError(
            f"a step of variance {variance:g} is deterministic and has no density: sample with eta 1, and stop before sigma reaches 0"
        )
    return float(transition.carry), float(transition.pull), variance
