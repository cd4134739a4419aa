"""Synthetic decoders, on which the law drift = k sigma^2 + c can be checked against Tr(J J^T) without any diffusion model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from diffprobe import rng
from diffprobe.errors import unknown

Array = npt.NDArray[np.float64]
Kind = Literal["linear", "curved", "edit", "edit-fixed", "edit-random"]
Scale = Literal["std", "variance"]


class SyntheticKernel(NamedTuple):
    """Drift ||decode(x + e) - decode(x)||^2, summed over outputs: its mean and standard deviation over trials at each sigma.

    `trace` is Tr(A A^T) of the matrix drawn, the slope in sigma^2 that theory gives the linear decoder.
    """

    sigmas: Array
    mean: Array
    std: Array
    trace: float


@dataclass(frozen=True)
class Synthetic:
    """The experiment: dimension, trials a sigma, and what N(0, 1/sqrt(D)) gives the matrices: that "std" or that "variance".

    Kinds: "linear" A x; "curved" tanh(B tanh(A x)); "edit" A x + b sign(H x) on both sides; "edit-fixed" the same bias on the
    edited side only; "edit-random" that with a strength drawn for each trial, uniform on 0 to 2.5. Elsewhere b is 0.5.
    """

    dim: int = 1024
    trials: int = 150
    sigmas: tuple[float, ...] = tuple(np.linspace(0.01, 0.40, 20).tolist())
    scale: Scale = "std"
    seed: int = 0


DEFAULT = Synthetic()


def linear_decoder(x: Array, a: Array) -> Array:
    """A x for rows x [..., D]: [..., D_out]."""
    return np.asarray(x @ a.T)


def curved_decoder(x: Array, a: Array, b: Array) -> Array:
    """tanh(B tanh(A x)) for rows x [..., D]."""
    return np.tanh(np.tanh(x @ a.T) @ b.T)


def edit_biased(x: Array, a: Array, h: Array, strength: Array | float = 0.5) -> Array:
    """A x + b sign(H x) for rows x [..., D]; `strength` is b, one number or one a row [..., 1]."""
    return np.asarray(x @ a.T + strength * np.sign(x @ h.T))


def synthetic_kernel(kind: Kind, settings: Synthetic = DEFAULT) -> SyntheticKernel:
    """Mean drift at each sigma for fresh x ~ N(0, I) and e ~ N(0, sigma^2 I) a trial, and matrices drawn once a call.

    Raises UserError for an unknown kind.
    """
    if kind not in get_args(Kind):
        raise unknown("synthetic decoder", kind, get_args(Kind))
    dim, seed = settings.dim, settings.seed
    spread = dim**-0.5 if settings.scale == "std" else dim**-0.25
    a, other = (spread * rng.stream(f"synthetic.{name}", seed).standard_normal((dim, dim)) for name in ("a", "other"))
    drift = _drift(kind, a, other)
    rows = []
    for level, sigma in enumerate(settings.sigmas):
        draw = rng.stream("synthetic.trials", seed, level)
        x, e = draw.standard_normal((2, settings.trials, dim))
        strength = draw.uniform(0, 2.5, (settings.trials, 1)) if kind == "edit-random" else np.full((settings.trials, 1), 0.5)
        rows.append(np.square(drift(x, x + sigma * e, strength)).sum(-1))
    drifts = np.stack(rows)
    return SyntheticKernel(np.asarray(settings.sigmas), drifts.mean(-1), drifts.std(-1, ddof=1), float(np.square(a).sum()))


def _drift(kind: Kind, a: Array, other: Array) -> Callable[[Array, Array, Array], Array]:
    """(x, x + e, strength) to the difference of what is decoded, each [trials, D]."""
    if kind == "linear":
        return lambda x, moved, strength: linear_decoder(moved, a) - linear_decoder(x, a)
    if kind == "curved":
        return lambda x, moved, strength: curved_decoder(moved, a, other) - curved_decoder(x, a, other)
    if kind == "edit":
        return lambda x, moved, strength: edit_biased(moved, a, other, strength) - edit_biased(x, a, other, strength)
    return lambda x, moved, strength: edit_biased(moved, a, other, strength) - linear_decoder(x, a)
