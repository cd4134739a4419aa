"""Singular values of Jacobians, and what they say: how much a map stretches, and in how many directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffprobe.measures.geometry.jacobian import jacobians
from diffprobe.measures.geometry.maps import Map, width
from diffprobe.measures.geometry.memory import footprint

#: A singular value below this many machine epsilons of the largest is rounding. A zero came out as up to 5 in float32, 9 in float64
#: and 0.9 in bfloat16, whose sums are float32, in decoders and deep networks with a bottleneck early or late.
NOISE, HALF_NOISE = 16, 2


def jacobian_spectrum(f: Map, z: Tensor, directions: Tensor | None = None, *, rows: int | None = None) -> Tensor:
    """Singular values [B, K] float64 of J at latents z [B, *in], largest first; K = min(D, E), with directions [k, D] min(k, E).

    A value below 16 machine epsilons (half precision: 2) times the largest of its row is exactly 0, the epsilon that of the coarser
    dtype of z and f(z): what rounding in the passes makes of a zero lies there. What follows the passes is in float64: by the
    smaller Gram matrix, whose own noise of 1e-8 of the largest is below that of float32, and from a float64 Jacobian itself.
    It knows rounding by the dtypes of z and f(z) only. A map that runs in half precision inside, or that is a difference of large
    terms, such as x - sigma eps(x) at high noise, has more: its zeros may be above the threshold, and then count.
    A row is nan where its Jacobian is not finite, and zero where the map is flat; no row depends on another. `rows` is for tests.
    Raises ValueError for what is no differentiable map of rows and for directions that do not fit its output, MemoryError where
    one row, or one whole Jacobian, is too large.
    """
    seen = footprint(f, z)
    epsilon = max(torch.finfo(z.dtype).eps, torch.finfo(seen.dtype).eps)
    noise = epsilon * (NOISE if epsilon < 1e-4 else HALF_NOISE)
    parts = [_singular_values(part, noise) for part in jacobians(f, z, seen, directions, rows)]
    values = min(seen.outputs if directions is None else len(directions), width(z))
    return torch.cat(parts) if parts else torch.zeros(0, values, dtype=torch.float64)


def local_scaling(singular_values: Tensor) -> Tensor:
    """psi [...] = sum_i log s_i over the values [..., K] above 0 (Humayun et al. 2024, eq. 4): the log of the volume that f gives to one.

    nan where there is none, and where the row is. It jumps where `nonzero` does.
    """
    logs = torch.where(singular_values > 0, singular_values, 1).log().sum(-1)
    return torch.where(_some(singular_values), logs, math.nan)


def local_rank(singular_values: Tensor) -> Tensor:
    """nu [...] = exp(-sum_i p_i log p_i), p_i = s_i / sum_j s_j, of values [..., K]: from 1 to K directions that f stretches alike.

    Roy and Vetterli 2007. nan where no value is above 0, and where the row is.
    """
    shares = singular_values / singular_values.sum(-1, keepdim=True)
    ranks: Tensor = torch.special.entr(shares).sum(-1).exp()
    return torch.where(_some(singular_values), ranks, math.nan)


def nonzero(singular_values: Tensor) -> Tensor:
    """How many values of [..., K] are above 0, int64 [...]; 0 for a row of nan."""
    return (singular_values > 0).sum(-1)


def _some(singular_values: Tensor) -> Tensor:
    return (singular_values > 0).any(-1) & singular_values.isfinite().all(-1)


def _singular_values(part: Tensor, noise: float) -> Tensor:
    """Those of matrices [b, m, n], with zeros and nan as `jacobian_spectrum` has them."""
    finite = part.isfinite().flatten(1).all(1)
    matrices = torch.where(finite[:, None, None], part, 0)
    matrices = (matrices.cpu() if matrices.device.type == "mps" else matrices).double()  # which has no float64
    tall = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.mT
    if noise > 1e-7:
        values = torch.linalg.eigvalsh(tall.mT @ tall).flip(-1).clamp(min=0).sqrt()
    else:
        values = torch.linalg.svdvals(torch.linalg.qr(tall, mode="r").R)
    values = torch.where(values > noise * values[:, :1], values, 0)
    return torch.where(finite.to(values.device)[:, None], values, math.nan)
