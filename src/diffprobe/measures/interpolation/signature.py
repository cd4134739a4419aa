"""What betrays that a terminal latent is no pure noise: statistics of each latent, and how far those of noise scatter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffprobe.measures.interpolation.checks import check_finite, checked_latents
from diffprobe.measures.interpolation.parts import channel_sums


class Signature(NamedTuple):
    """Statistics of latents, float32, or standard deviations of them: of `white_noise`, without the dimensions B and C."""

    norm: Tensor  # ||z|| / (scale sqrt(L)) [B]; 1 for pure noise
    channel_mean: Tensor  # in units of the scale [B, C]; 0
    channel_std: Tensor  # [B, C]; 1
    kurtosis: Tensor  # in excess of a normal law's, mean over channels [B]; 0
    correlation: Tensor  # of neighbouring entries, in a row or a column, mean over channels [B]; 0
    spectrum: Tensor  # mean power by radial frequency, without the means of channels [B, bins]; 1 in each


def signature(latents: Tensor | Sequence[Tensor], *, scale: float = 1.0, bins: int = 8) -> Signature:
    """Of latents [B, C, h, w], each by itself; `scale` is the standard deviation of an entry of pure noise.

    Kurtosis and correlation are of each channel about its own mean, over its own variance, and without bias: under white noise, whatever
    its mean and power, they are 0 on average. (So neighbours that are opposite have the correlation -1 + 1 / (h w - 1).) The bins of
    the spectrum are equally wide up to half a cycle an entry, upper ends included; the last takes the corners. A bin without a
    frequency, in latents of less than 2 `bins` entries a side, is nan, as are kurtosis and correlation of a constant channel.
    Raises ValueError for latents that are none or not finite, and for fewer than 1 bin.
    """
    z = checked_latents(latents).double() / scale
    check_finite(channel_sums(z).sum(1))
    means = z.mean((2, 3), keepdim=True)
    rest = z - means
    spread = rest.square().mean((2, 3))
    return Signature(
        z.flatten(1).square().mean(1).sqrt().float(),
        means[..., 0, 0].float(),
        (spread / (1 - 1 / (z.shape[2] * z.shape[3]))).sqrt().float(),
        _kurtosis(rest, spread).mean(1).float(),
        _correlation(rest, spread).mean(1).float(),
        _spectrum(rest, bins).float(),
    )


def white_noise(shape: Sequence[int], n: int = 1, *, bins: int = 8) -> Signature:
    """The standard deviation of each statistic under pure noise of the shape [C, h, w], or of its mean over n latents.

    Exact for the spectrum, the means and the kurtosis (Fisher 1930); for the others to a few parts in h w. Scalars, but [bins].
    """
    c, h, w = shape
    area = h * w
    fourth = 24 * area * (area - 1) ** 2 / ((area - 3) * (area - 2) * (area + 3) * (area + 5)) if area > 3 else math.nan
    counts = torch.bincount(_bins(h, w, bins), minlength=bins + 1)[:bins].double()
    variances = (
        1 / (2 * c * area),
        1 / area,
        1 / (2 * (area - 1)) if area > 1 else math.nan,
        fourth / c,
        1 / (c * _pairs(h, w)) if area > 1 else math.nan,
        torch.where(counts > 0, 2 / (c * counts), math.nan),
    )
    return Signature(*(torch.as_tensor(variance, dtype=torch.float64).div(n).sqrt().float() for variance in variances))


def _kurtosis(rest: Tensor, spread: Tensor) -> Tensor:
    """Of each channel, in excess and without bias for a normal law [B, C]; nan for fewer than 4 entries."""
    n = rest.shape[2] * rest.shape[3]
    if n < 4:
        return torch.full_like(spread, math.nan)
    excess = rest.square().square().mean((2, 3)) / spread.square() - 3
    return ((n + 1) * excess + 6) * (n - 1) / ((n - 2) * (n - 3))


def _correlation(rest: Tensor, spread: Tensor) -> Tensor:
    """Of each channel [B, C]. Two entries of n that are exchangeable have -1 / (n - 1) about their own mean, which is added."""
    h, w = rest.shape[2:]
    if h * w < 2:
        return torch.full_like(spread, math.nan)
    products = (rest[..., 1:] * rest[..., :-1]).sum((2, 3)) + (rest[..., 1:, :] * rest[..., :-1, :]).sum((2, 3))
    return products / (_pairs(h, w) * spread) + 1 / (h * w - 1)


def _pairs(h: int, w: int) -> int:
    return h * (w - 1) + (h - 1) * w


def _spectrum(rest: Tensor, bins: int) -> Tensor:
    power: Tensor = torch.fft.fft2(rest, norm="ortho").abs().square().mean(1).flatten(1)
    place = _bins(rest.shape[2], rest.shape[3], bins).to(rest.device)
    sums = power.new_zeros(len(power), bins + 1).index_add_(1, place, power)
    counts = torch.bincount(place, minlength=bins + 1)
    found: Tensor = sums[:, :bins] / counts[:bins]
    return found


def _bins(h: int, w: int, bins: int) -> Tensor:
    """The bin of each frequency of an [h, w] transform, [h w]; that of the mean is `bins`, beyond the last."""
    if bins < 1:
        raise ValueError(f"a spectrum has at least 1 bin, not {bins}")
    down, across = (torch.fft.fftfreq(size, dtype=torch.float64) for size in (h, w))
    radius = (down[:, None].square() + across.square()).sqrt().flatten()
    place: Tensor = (2 * bins * radius - 1e-9).ceil().long().sub(1).clamp(0, bins - 1)
    place[0] = bins
    return place
