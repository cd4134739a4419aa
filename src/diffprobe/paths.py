"""Noise paths x_t = alpha(t) x_0 + sigma(t) eps, and the one Gaussian transition between two of their levels.

One convention throughout: times and ratios come as floats or tensors of any shape, and every coefficient is a float64 tensor
on the CPU of that shape. A scalar coefficient multiplies a tensor of any dtype or device without changing it; `like` spreads a
coefficient a sample over a batch. Times of steps are tuples of floats, by a path's own rule or by the `grid` that it is given.
"Ratio" is sigma(t)/alpha(t), the sigma of reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Time = Tensor | float
#: The times of n steps as something other than the path's own rule has them, such as a deployed scheduler.
Grid = Callable[[int], tuple[float, ...]]


class NoisePath(Protocol):
    """How noise is mixed in. The ratio sigma/alpha grows with t, from `end` (nearest to data) to the first of the levels."""

    @property
    def end(self) -> float:
        """The time that follows the last level: where a trajectory arrives."""
        ...

    def alpha(self, t: Time) -> Tensor: ...

    def sigma(self, t: Time) -> Tensor: ...

    def ratio(self, t: Time) -> Tensor:
        """sigma(t)/alpha(t); infinite where alpha is 0."""
        ...

    def time(self, ratio: Time) -> Tensor:
        """The inverse of `ratio`; beyond the path's range, the nearest time."""
        ...

    def levels(self, n: int) -> tuple[float, ...]:
        """The n times at which n steps evaluate the network, from noise to data; `end` follows them and is not among them."""
        ...


class Transition(NamedTuple):
    """q(x_s | x_t, x_0) = N(carry x_t + pull x_0, variance I), for s less noisy than t."""

    carry: Tensor
    pull: Tensor
    variance: Tensor


@dataclass(frozen=True)
class VariancePreserving:
    """alpha^2 + sigma^2 = 1 from a table of cumulated alphas, abar_0 > abar_1 > ... (any DDPM or Stable Diffusion scheduler's).

    Between two indices log(sigma/alpha) is linear in t; from t = -1, which is data, to t = 0 sigma/alpha is. `end` is 0 where the
    scheduler arrives at abar_0 (`set_alpha_to_one=False`, as in Stable Diffusion 1.5) and -1 where it arrives at data. Levels are
    diffusers' leading spacing: multiples of T // n, plus `offset` where the table reaches that far.
    """

    alphas_cumprod: tuple[float, ...]
    offset: int = 1
    end: float = 0.0
    grid: Grid | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        table = np.asarray(self.alphas_cumprod, np.float64)
        if table.size < 2 or not (np.all(np.diff(table) < 0) and table[0] < 1 and table[-1] >= 0):
            raise ValueError("alphas_cumprod must fall strictly, from below 1 to 0 or more: pass the scheduler's own table")
        if self.end not in (0.0, -1.0):
            raise ValueError(f"end is 0 (the table's first level) or -1 (data), not {self.end}")

    @classmethod
    def from_betas(cls, betas: Sequence[float], *, offset: int = 1, end: float = 0.0) -> VariancePreserving:
        """The path of the noise variances `betas` [T] added step by step: abar_t = prod_{i <= t} (1 - beta_i)."""
        return cls(tuple(np.cumprod(1 - np.asarray(betas, np.float64)).tolist()), offset, end)

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, stop: float = 0.012, steps: int = 1000) -> VariancePreserving:
        """Betas whose square roots are equally spaced; the defaults are those of Stable Diffusion 1.5, 2.1 and XL."""
        return cls.from_betas((np.linspace(start**0.5, stop**0.5, steps) ** 2).tolist())

    def alpha(self, t: Time) -> Tensor:
        return (1 + self.ratio(t).square()).rsqrt()

    def sigma(self, t: Time) -> Tensor:
        return (1 + self.ratio(t).pow(-2)).rsqrt()

    def ratio(self, t: Time) -> Tensor:
        times = _numbers(t)
        if np.any(times < -1) or np.any(times > len(self.alphas_cumprod) - 1):
            raise ValueError(f"a time lies outside -1 .. {len(self.alphas_cumprod) - 1}, the range of this path")
        log = self._log_ratios
        inside = np.exp(np.interp(times, np.arange(log.size), log))
        return _tensor(np.where(times < 0, (1 + times) * np.exp(log[0]), inside))

    def time(self, ratio: Time) -> Tensor:
        log, ratios = self._log_ratios, _numbers(ratio)
        with np.errstate(divide="ignore"):
            inside = np.interp(np.log(ratios), log, np.arange(log.size))
        first = np.exp(log[0])
        return _tensor(np.where(ratios < first, ratios / first - 1, inside))

    def levels(self, n: int) -> tuple[float, ...]:
        total = len(self.alphas_cumprod)
        _check_count(n, total)
        if self.grid is not None:
            return self.grid(n)
        step = total // n
        offset = min(self.offset, total - 1 - (n - 1) * step)
        return tuple(float(i * step + offset) for i in reversed(range(n)))

    @cached_property
    def _log_ratios(self) -> npt.NDArray[np.float64]:
        table = np.asarray(self.alphas_cumprod, np.float64)
        with np.errstate(divide="ignore"):  # zero terminal SNR: the last ratio is infinite
            return np.asarray(0.5 * (np.log1p(-table) - np.log(table)))


@dataclass(frozen=True)
class VarianceExploding:
    """alpha = 1, sigma(t) = t (Karras et al. 2022). Levels: t^(1/rho) equally spaced from sigma_max to sigma_min."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    grid: Grid | None = field(default=None, compare=False, repr=False)
    end: ClassVar[float] = 0.0

    def alpha(self, t: Time) -> Tensor:
        return torch.ones_like(_tensor(t))

    def sigma(self, t: Time) -> Tensor:
        return _tensor(t)

    def ratio(self, t: Time) -> Tensor:
        return _tensor(t)

    def time(self, ratio: Time) -> Tensor:
        return _tensor(ratio)

    def levels(self, n: int) -> tuple[float, ...]:
        _check_count(n)
        if self.grid is not None:
            return self.grid(n)
        roots = np.linspace(self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho), n)
        return tuple((roots**self.rho).tolist())


@dataclass(frozen=True)
class RectifiedFlow:
    """alpha = 1 - t, sigma = t, t from 0 (data) to 1 (noise).

    Levels are shifted, t' = shift t/(1 + (shift - 1) t), as diffusers spaces them: "euler" (FlowMatchEulerDiscreteScheduler without
    dynamic shifting) shifts equal steps from 1 to the shifted 1/train_steps (so its last level is shifted twice); "solver" (the
    solvers with `use_flow_sigmas`) shifts equal steps from 1 - 1/train_steps to data, which is left out.
    """

    shift: float = 1.0
    train_steps: int = 1000
    spacing: Literal["euler", "solver"] = "euler"
    grid: Grid | None = field(default=None, compare=False, repr=False)
    end: ClassVar[float] = 0.0

    def alpha(self, t: Time) -> Tensor:
        return 1 - _tensor(t)

    def sigma(self, t: Time) -> Tensor:
        return _tensor(t)

    def ratio(self, t: Time) -> Tensor:
        return self.sigma(t) / self.alpha(t)

    def time(self, ratio: Time) -> Tensor:
        return 1 / (1 + 1 / _tensor(ratio))

    def levels(self, n: int) -> tuple[float, ...]:
        _check_count(n)
        if self.grid is not None:
            return self.grid(n)
        if self.spacing == "solver":
            return tuple(self._shifted(t) for t in np.linspace(1 - 1 / self.train_steps, 0, n + 1)[:-1].tolist())
        return tuple(self._shifted(t) for t in np.linspace(1, self._shifted(1 / self.train_steps), n).tolist())

    def _shifted(self, t: float) -> float:
        return self.shift * t / (1 + (self.shift - 1) * t)


def transition(path: NoisePath, s: Time, t: Time) -> Transition:
    """q(x_s | x_t, x_0) for s no noisier than t: with rho = ratio(s)/ratio(t),

    carry = rho sigma_s/sigma_t, pull = alpha_s (1 - rho^2), variance = sigma_s^2 (1 - rho^2).
    Valid at alpha_t = 0 (rho is 0 there). Raises ValueError where s is noisier than t, or t is data itself.
    """
    low, high = path.ratio(s), path.ratio(t)
    if bool(torch.any(low > high)):
        raise ValueError(f"the transition runs towards data: its target s = {s} is noisier than t = {t}")
    if bool(torch.any(high == 0)):
        raise ValueError("no transition leaves data: its starting time t has sigma 0")
    rho = low / high
    fresh = (1 - rho) * (1 + rho)
    return Transition(rho * path.sigma(s) / path.sigma(t), path.alpha(s) * fresh, path.sigma(s).square() * fresh)


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient, scalar or one a sample [B], in the dtype and device of x [B, ...] and of a shape that multiplies it."""
    spread = coefficient.reshape(coefficient.shape + (1,) * (x.ndim - 1)) if coefficient.ndim else coefficient
    return spread.to(device=x.device, dtype=x.dtype)


def executed_steps(strength: float, num_inference_steps: int, rounding: Literal["floor", "ceil"] = "floor") -> int:
    """How many of the steps an image-to-image pipeline runs at a strength in [0, 1]: the last so many of its levels.

    "floor" is the Stable Diffusion family's min(int(N s), N), "ceil" that of Flux, N - int(N - N s); both in floats as
    deployed, so that int(50 * 0.58) is 28.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength} is outside 0 .. 1")
    _check_count(num_inference_steps)
    wanted = min(num_inference_steps * strength, num_inference_steps)
    return int(wanted) if rounding == "floor" else num_inference_steps - int(num_inference_steps - wanted)


def _check_count(n: int, most: int | None = None) -> None:
    if n < 1 or (most is not None and n > most):
        raise ValueError(f"{n} steps: choose at least 1" + (f" and at most {most}, the length of the table" if most else ""))


def _tensor(value: Time | npt.NDArray[np.float64]) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device="cpu")


def _numbers(value: Time) -> npt.NDArray[np.float64]:
    return np.asarray(_tensor(value).detach().numpy())
