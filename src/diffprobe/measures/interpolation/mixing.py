"""Mixtures of terminal latents: one pass over them, or one product of matrices for many mixtures of the same latents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffprobe.measures.interpolation.checks import Weights, check_finite, checked_latents, checked_weights
from diffprobe.measures.interpolation.parts import channel_sums, coefficients, noise, noise_lengths, rank, rendered, squares
from diffprobe.measures.interpolation.scheme import Scheme
from diffprobe.measures.interpolation.sphere import spherical_means
from diffprobe.measures.stats.intervals import Array

#: Bytes of latents that stay in a processor's cache between their sums, their squares and their mixture.
CACHE = 4 << 20
#: Noise shorter than this share of what it was mixed from is rounding.
RESOLVED = 1e-6
CANCELS = "degenerate: the noise of the latents cancels, which leaves nothing to normalise: change the weights, or take the norm 'none'"


class Mixture(NamedTuple):
    """Mixtures of latents, float32 [K, C, h, w], and what was done to them, float64 [K] on the CPU."""

    latents: Tensor
    before: Tensor  # the length of sum w e over that of pure noise, scale sqrt(L)
    amplification: Tensor  # the length of the mixture's noise over that of sum w e


class _Mixed(NamedTuple):
    """Weighted sums of latents, before their noise gets its length."""

    sums: Tensor  # float32 [K, C, h, w]
    lengths: Array  # of their noise [K]
    within: Array  # coefficients of the d that is scaled with them [K, rank]
    wanted: Array  # and of the d that the mixture is to have
    before: Array  # the length of sum w e [K]
    inputs: Array  # sum w ||e|| [K], nan where no norm asks for it


def interpolate(
    latents: Tensor | Sequence[Tensor], weights: Weights, norm: str = "nin", mean: str = "channel", *, scale: float = 1.0, kept: int = 3
) -> Tensor:
    """Mix terminal latents [N, C, h, w] with weights [N] to [C, h, w], or with weights [K, N] to [K, C, h, w]: float32.

    How is told by `Scheme`, `split` and `mix`. The default keeps the means of channels out of what is normalised, so that an offset
    that inverted latents share does not grow with their number, and gives an input back that has all the weight.
    """
    w = checked_weights(weights)
    found = mix(latents, w if w.ndim > 1 else w[None], Scheme(norm, mean), scale=scale, kept=kept).latents
    return found if w.ndim > 1 else found[0]


def effective_number(weights: Weights) -> Tensor:
    """1 / ||w||² of weights [..., N], float64 [...]: the number of equal weights that mix as much. Raises ValueError as `mix`."""
    return torch.as_tensor(1 / (checked_weights(weights) ** 2).sum(-1))


@torch.no_grad()
def mix(latents: Tensor | Sequence[Tensor], weights: Weights, scheme: Scheme, *, scale: float = 1.0, kept: int = 3) -> Mixture:
    """Mixtures of latents [N, C, h, w] under weights [K, N], none below 0, each row with the sum one.

    `scale` is the standard deviation of an entry of pure noise, at which "fix" and "blend" aim. "fix" gives the noise the length
    scale sqrt(L), whatever d is. "blend" gives it the length of pure noise without d, scale sqrt(L - rank of d), where all weights
    are equal, and sum w ||e|| at the inputs, in proportion to kappa = (N ||w||² - 1) / (N - 1). "lol" gives (1 - 1 / ||w||) mu + sum
    w z / ||w||, with mu the mean of the inputs' d: a mixture of normal latents has their law (Bodin et al. 2024). `kept` belongs to
    "lowpass", see `split`. Latents in other precisions are mixed in float32.

    Raises ValueError for latents or weights that are none, for latents that are not finite, naming them, and where there is nothing
    to normalise: noise that cancels, and for "slerp" opposite latents or zero ones.
    """
    z = checked_latents(latents)
    w = checked_weights(weights, len(z))
    if w.ndim != 2:
        raise ValueError(f"mix takes weights [K, N], a row a mixture, not {list(w.shape)}: add a dimension, or call interpolate")
    if not 0 < scale < math.inf:
        raise ValueError(f"the scale of pure noise is above 0, not {scale:g}: the root of alpha² + sigma² where the latents lie")
    mixed = _on_sphere(z, w, scheme.mean, kept) if scheme.norm == "slerp" else _plain(z, w, scheme, kept)
    nominal = scale * math.sqrt(z[0].numel())
    ideal = scale * math.sqrt(z[0].numel() - rank(z.shape[1:], scheme.mean, kept))
    factor = _factor(mixed, (w**2).sum(1), len(z), scheme.norm, nominal if scheme.norm == "fix" else ideal)
    added = mixed.wanted - factor[:, None] * mixed.within
    if scheme.reproduces:  # one latent comes back to the last bit
        alone = (w == 1).any(1)
        factor[alone], added[alone] = 1, 0
    found = mixed.sums
    if (factor != 1).any():
        found *= torch.from_numpy(factor).to(z)[:, None, None, None]
    if added.any():
        found += rendered(added, z, scheme.mean, kept)
    longer = factor * mixed.lengths / mixed.before if scheme.norm == "slerp" else factor
    return Mixture(found, torch.from_numpy(mixed.before / nominal), torch.from_numpy(longer))


def _factor(mixed: _Mixed, square: Array, count: int, norm: str, nominal: float) -> Array:
    """What the sums are multiplied with [K], from ||w||² [K]. Raises ValueError where their noise is nothing but rounding."""
    if norm == "none":
        return np.ones_like(square)
    if norm == "lol":
        return np.asarray(1 / np.sqrt(square))
    compared = np.full_like(square, nominal) if norm == "fix" else mixed.inputs
    if (mixed.lengths <= RESOLVED * np.maximum(compared, np.linalg.norm(mixed.within, axis=1))).any():
        raise ValueError(CANCELS)
    kappa = (count * square - 1) / (count - 1) if norm == "blend" and count > 1 else 1.0
    return np.asarray((nominal + kappa * (compared - nominal)) / mixed.lengths)


def _plain(z: Tensor, w: Array, scheme: Scheme, kept: int) -> _Mixed:
    """sum w z, in groups of latents that stay in a cache from one reading to the next; at once where there are many sums."""
    mean, lol, asks = scheme.mean, scheme.norm == "lol", scheme.norm in {"nin", "blend"}
    rows, sums = torch.from_numpy(w).to(z), z.new_zeros(len(w), z[0].numel())
    step = max(1, CACHE // (4 * z[0].numel())) if len(w) == 1 and z.device.type == "cpu" else len(z)
    read = []
    for part, weights in zip(z.split(step), rows.split(step, 1), strict=True):
        read.append((coefficients(part, mean if asks or lol else "none", kept), squares(part) if asks else np.zeros(0)))
        sums.addmm_(weights, part.flatten(1))
    parts, square = (np.concatenate(found) for found in zip(*read, strict=True))
    mixed = sums.view(len(w), *z.shape[1:])
    own, whole = coefficients(mixed, mean, kept), squares(mixed)
    if asks:
        check_finite(square)
    elif (w == 0).all(0).any() or not np.isfinite(whole).all():  # no sum is finite that has a weight on what is not
        check_finite(channel_sums(z).sum(1))
    before, d = noise_lengths(mixed, whole, own, mean, kept), np.broadcast_to(parts.mean(0), own.shape) if lol else own
    inputs = w @ noise_lengths(z, square, parts, mean, kept) if asks else np.full(len(w), math.nan)
    return _Mixed(mixed, before, d, d, before, inputs)


def _on_sphere(z: Tensor, w: Array, mean: str, kept: int) -> _Mixed:
    """The mean directions of e, at the length sum w ||e||: from inner products, of which the product of matrices is all the work."""
    square, parts = squares(z), coefficients(z, mean, kept)
    check_finite(square)
    lengths = noise_lengths(z, square, parts, mean, kept)
    if ((lengths <= RESOLVED * np.sqrt(square)) & (w > 0).any(0)).any():
        raise ValueError("the noise of a latent is zero and has no direction: leave that latent out, or take the norm 'none'")
    gram = _gram(z, parts, mean, kept, apart=bool((lengths < np.sqrt(square) / 2).any()))
    inputs, before = w @ lengths, np.sqrt(np.maximum(((w @ gram) * w).sum(1), 0))
    inverse, own = (np.divide(1, one, out=np.zeros_like(one), where=one > 0) for one in (lengths, np.sqrt(np.diagonal(gram).clip(min=0))))
    cosines = own[:, None] * gram * own
    np.fill_diagonal(cosines, 1)
    rows = spherical_means(cosines, w) * inputs[:, None] * inverse
    mixed = (torch.from_numpy(rows).to(z) @ z.flatten(1)).view(len(w), *z.shape[1:])
    within = coefficients(mixed, mean, kept)
    return _Mixed(mixed, noise_lengths(mixed, squares(mixed), within, mean, kept), within, w @ parts, before, inputs)


def _gram(z: Tensor, parts: Array, mean: str, kept: int, *, apart: bool) -> Array:
    """<e, e'> of latents [N, N]: of e itself where d would bury it (`apart`)."""
    flat = (noise(z, parts, mean, kept) if apart else z).flatten(1)
    gram = (flat @ flat.T).double().cpu().numpy()
    gram = (gram + gram.T) / 2  # rounding is not symmetric everywhere, and the search for a mean would not come to rest
    return np.asarray(gram if apart else gram - parts @ parts.T)
