"""Means on the sphere: of two latents by the closed form, of many from their inner products alone."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from diffprobe.measures.interpolation.checks import check_finite
from diffprobe.measures.stats.intervals import Array

#: The length of the gradient at which a mean is found: what inner products in float32 resolve.
FOUND = 1e-8
#: And of near vectors in float32, where none shorter is reached.
RESOLVED32 = 1e-5
#: Newton's steps: four are enough for points within half a sphere, some ninety for any.
STEPS = 200
#: How near to -1 the cosine of opposite latents is: in float64, and from inner products in float32.
OPPOSITE, OPPOSITE32 = 1e-7, 1e-6
#: Numbers of the linear systems that are solved at once.
CHUNK = 1 << 22
NONE = "the latents lie opposite one another, so that they have no mean on the sphere: take other weights, or the norm 'nin'"


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """[sin((1 - t) angle) a + sin(t angle) b] / sin(angle) of two latents of one shape (Shoemake 1985), float32: a at t = 0, b at 1.

    Linear where they have one direction. The length of the result need not lie between those of a and b; where that matters, take the
    norm "slerp" of `interpolate`, which mixes directions and interpolates lengths. Raises ValueError for opposite latents, for zero
    ones, for shapes that differ, and for what is not finite.
    """
    if a.shape != b.shape:
        raise ValueError(f"two latents of one shape can be mixed, not {list(a.shape)} and {list(b.shape)}: take images of one size")
    x, y = a.detach().double(), b.detach().double()
    lengths = torch.stack([torch.linalg.vector_norm(x), torch.linalg.vector_norm(y)])
    check_finite(lengths.cpu().numpy())
    if not lengths.all():
        raise ValueError("a zero latent has no direction: leave it out, or mix plainly")
    cosine = float((x / lengths[0]).flatten() @ (y / lengths[1]).flatten())
    if cosine < OPPOSITE - 1:
        raise ValueError(NONE)
    if cosine > 1 - OPPOSITE:
        return ((1 - t) * x + t * y).float()
    angle = math.acos(cosine)
    return ((math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)).float()


def spherical_means(cosines: Array, weights: Array) -> Array:
    """The means of unit vectors p with inner products [N, N] under weights [K, N], as combinations of them: [K, N].

    That is the unit vector q with the least sum w angle(p, q)² (Buss and Fillmore 2001), by Newton's method on the sphere. As q, the
    gradient and the step lie in the span of p, an iteration costs O(N³) whatever the dimension. Raises ValueError where the mean is
    not unique: opposite vectors.
    """
    step = max(1, CHUNK // len(cosines) ** 2)
    return np.concatenate([_means(cosines, weights[i : i + step]) for i in range(0, max(1, len(weights)), step)])


def _means(gram: Array, w: Array) -> Array:
    c, gradient = _unit(w, gram), np.full_like(w, math.inf)
    for _ in range(STEPS):
        cosines = np.clip(c @ gram, -1, 1)
        if ((cosines < OPPOSITE32 - 1) & (w > 0)).any():
            break
        angles = np.arccos(cosines)
        s = w / np.sinc(angles / math.pi)
        gradient = _tangent(s, cosines, c)
        if (_length(gradient, gram) < FOUND).all():
            return c
        step = _tangent(_newton(gram, cosines, angles, w, s), cosines, c)
        step = np.where(_length(step, gram) < math.pi / 2, step, gradient)
        length = _length(step, gram)
        c = _unit(np.cos(length) * c + np.sinc(length / math.pi) * step, gram)
    else:
        if (_length(gradient, gram) < RESOLVED32).all():  # of near vectors, whose products in float32 resolve no more
            return c
    raise ValueError(NONE)


def _newton(gram: Array, cosines: Array, angles: Array, w: Array, s: Array) -> Array:
    """Newton's step v in the tangents p - cos q: (h + D G) v = s, with G their inner products; s, the gradient, where h <= 0.

    The Hessian of half the sum is h + sum w (1 - k) t t', with t the unit tangents, k = angle cot(angle) and h = sum w k.
    """
    sines = np.maximum(np.sin(angles), 1e-150)
    small = angles < 1e-3
    k = np.where(small, 1 - angles**2 / 3, angles * cosines / sines)
    d = w * np.where(small, 1 / 3, (1 - k) / sines**2)
    h = (w * k).sum(1)
    system = d[:, :, None] * (gram - cosines[:, :, None] * cosines[:, None])
    system += np.where(h > 0, h, 1)[:, None, None] * np.eye(len(gram))
    return np.where(h[:, None] > 0, np.linalg.solve(system, s[:, :, None])[:, :, 0], s)


def _tangent(s: Array, cosines: Array, c: Array) -> Array:
    """sum s (p - cos q) as a combination of p."""
    return np.asarray(s - (s * cosines).sum(1, keepdims=True) * c)


def _length(c: Array, gram: Array) -> Array:
    return np.asarray(np.sqrt(np.maximum(((c @ gram) * c).sum(1, keepdims=True), 0)))


def _unit(c: Array, gram: Array) -> Array:
    length = _length(c, gram)
    if (length < OPPOSITE32 * np.abs(c).sum(1, keepdims=True)).any():
        raise ValueError(NONE)
    return np.asarray(c / length)
