"""The part d of a latent that a correction of its noise e leaves alone: an orthogonal projection, told by a few coefficients.

Latents are tensors wherever they lie; what is told of them, a few numbers each, are float64 arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffprobe.measures.interpolation.checks import check_finite, checked_latents
from diffprobe.measures.interpolation.scheme import Scheme
from diffprobe.measures.stats.intervals import Array

#: Where the noise has less than this share of the whole square, it is measured by itself, not as a difference.
SHARE = 0.25


def split(latents: Tensor | Sequence[Tensor], mean: str, *, kept: int = 3) -> tuple[Tensor, Tensor]:
    """Latents [N, C, h, w] as d + e, float32: every d is orthogonal to every e.

    d is 0 for the mean "none", the mean of all entries for "global", of each channel for "channel"; for "lowpass" the `kept` x `kept`
    lowest frequencies of each channel's orthonormal cosine transform (DCT-II), which for `kept` 1 is "channel" again. Raises
    ValueError for another name, for `kept` below 1, and for latents that are none or not finite.
    """
    Scheme("none", mean)
    z = checked_latents(latents).double()
    check_finite(channel_sums(z).sum(1))
    d = rendered(coefficients(z, mean, kept), z, mean, kept).expand_as(z)
    return d.float(), (z - d).float()


def rank(shape: Sequence[int], mean: str, kept: int) -> int:
    """The number of coefficients that d has in latents [C, h, w]."""
    c, h, w = shape
    return {"none": 0, "global": 1, "channel": c, "lowpass": c * min(kept, h) * min(kept, w)}[mean]


@np.errstate(invalid="ignore")  # infinities of both signs: `check_finite` tells of them
def coefficients(z: Tensor, mean: str, kept: int) -> Array:
    """Of the latents [N, C, h, w] in an orthonormal basis of d: [N, rank]."""
    count, c, h, w = z.shape
    if mean == "none":
        return np.zeros((count, 0))
    if mean == "lowpass":
        down = (_cosines(h, kept).to(z) @ z).double()
        return _told((down @ _cosines(w, kept).to(down).T).flatten(1))
    sums = channel_sums(z)
    return sums / math.sqrt(h * w) if mean == "channel" else sums.sum(1, keepdims=True) / math.sqrt(c * h * w)


def rendered(found: Array, like: Tensor, mean: str, kept: int) -> Tensor:
    """The d with these coefficients [K, rank], of the type of latents `like` and of a shape that broadcasts to [K, C, h, w]."""
    c, h, w = like.shape[1:]
    if mean == "none":
        return like.new_zeros(len(found), 1, 1, 1)
    if mean == "lowpass":
        down, across = _cosines(h, kept), _cosines(w, kept)
        return (down.T @ torch.from_numpy(found).reshape(len(found), c, len(down), len(across)) @ across).to(like)
    return torch.from_numpy(found / math.sqrt(h * w if mean == "channel" else c * h * w)).to(like)[:, :, None, None]


@np.errstate(invalid="ignore")
def channel_sums(z: Tensor) -> Array:
    """Of latents [N, C, h, w]: [N, C], rows in their own precision and the rest in float64, so that a large mean keeps its digits."""
    return np.asarray(_told(z.sum(3)).sum(2))


def squares(z: Tensor) -> Array:
    """||z||² of latents [N, C, h, w]: [N] to 1e-7, channels in their own precision and the rest in float64.

    On a CPU by numpy's inner products of vectors, which take half the time of torch's norm and err by a fifth of its error.
    """
    planes = z.flatten(2)
    if z.device.type == "cpu":
        values = planes.numpy()
        return np.asarray(np.vecdot(values, values).sum(1, dtype=np.float64))
    return _told(torch.linalg.vector_norm(planes, dim=2, dtype=torch.float64).square().sum(1))


def noise(z: Tensor, found: Array, mean: str, kept: int) -> Tensor:
    """The e of latents [N, C, h, w] with these coefficients."""
    return z - rendered(found, z, mean, kept)


def noise_lengths(z: Tensor, square: Array, found: Array, mean: str, kept: int) -> Array:
    """||e|| of latents [N, C, h, w] with these squares and coefficients: [N], from ||e||² = ||z||² - ||d||².

    Where d has the most of a latent, that difference would lose its digits, and e is formed.
    """
    rest = square - (found**2).sum(1)
    buried = np.flatnonzero(rest < SHARE * square)
    if len(buried):
        rest[buried] = squares(noise(z[torch.from_numpy(buried).to(z.device)], found[buried], mean, kept))
    return np.asarray(np.sqrt(rest))


def _told(values: Tensor) -> Array:
    return np.asarray(values.double().cpu().numpy())


def _cosines(size: int, kept: int) -> Tensor:
    """The lowest vectors of the orthonormal DCT-II, float64 [min(kept, size), size]."""
    if kept < 1:
        raise ValueError(f"a low-pass keeps 1 frequency or more a side, not {kept}")
    k, i = torch.arange(min(kept, size), dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi * k * (2 * i + 1) / (2 * size)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows
