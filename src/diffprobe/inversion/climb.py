"""From data to noise: the deterministic step of `sampling` backwards, one level at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffprobe.errors import UserError
from diffprobe.model import Denoiser
from diffprobe.paths import NoisePath, RectifiedFlow, like


class Climbed(NamedTuple):
    """Where a climb is: x at time t, and the x0 that led there. The first state is x as it was, at `path.end`, and has it for its x0.

    `moved` [B] float64: how far the last iterate of the fixed point moved x, over the norm of x; nan where there is none.
    """

    step: int
    t: float
    x: Tensor
    x0: Tensor
    moved: Tensor


def climb(
    denoiser: Denoiser, path: NoisePath, x: Tensor, times: Sequence[float], *, cond: Any = None, iterations: int = 0
) -> Iterator[Climbed]:
    """The states of x [B, ...] from data, at `path.end`, to noise, at times[0]; `times` fall, as for `sampling.trajectory`.

    A step down asks the network at the level that it leaves, where a climb does not know x yet: it guesses with the x below, at the
    size that x has at the level above. Each of `iterations` asks again at what came of the last guess; where that settles, and `moved`
    falls to 0, the climb is the exact inverse of the steps down. The network runs 1 + iterations times a level. Raises UserError where
    times do not fall.
    """
    times = checked(times)
    unknown = torch.full((len(x),), nan, dtype=torch.float64)
    yield Climbed(0, path.end, x, x, unknown)
    for index, from_to in enumerate(pairwise((path.end, *reversed(times))), 1):
        guess, before = _sized(path, from_to, x), None
        for _ in range(1 + iterations):
            x0 = denoiser(guess, from_to[1], cond)
            found = ascend(path, from_to, x, x0, guess)
            missed = found - guess
            guess, before = found if before is None else _mixed((found, missed), before), (found, missed)
        x = guess
        yield Climbed(index, from_to[1], x, x0, (_norm(missed) / _norm(found)).cpu().double() if iterations else unknown)


def ascend(path: NoisePath, from_to: tuple[float, float], x: Tensor, x0: Tensor, guess: Tensor) -> Tensor:
    """x_t from x_s, with from_to = (s, t), where the network says x0 of a guess at x_t: `sampling.step` backwards.

    What the network says of the noise is held over the step, eps = (guess - alpha_t x0)/sigma_t (Song et al. 2021, section 4.3); on
    a rectified flow its velocity, (guess - x0)/t. At alpha_t = 0 a guess says nothing of eps, and x0 is held. Whichever is held, a guess
    that comes out as it went in is the x_t that steps down to x_s. Not finite where no x_t does.
    """
    s, t = from_to
    if isinstance(path, RectifiedFlow):
        return x + (t - s) / t * (guess - x0)
    alpha_s, sigma_s, alpha_t, sigma_t = path.alpha(s), path.sigma(s), path.alpha(t), path.sigma(t)
    if alpha_t == 0:
        return (sigma_t / sigma_s) * (x - alpha_s * x0)
    eps = (guess - alpha_t * x0) / sigma_t
    return (alpha_t / alpha_s) * (x - sigma_s * eps) + sigma_t * eps


def levels(path: NoisePath, num_inference_steps: int) -> tuple[float, ...]:
    """The path's own times for a number of steps; raises UserError where it has not so many."""
    try:
        return path.levels(num_inference_steps)
    except ValueError as error:
        raise UserError(f"num_inference_steps: {error}") from error


def checked(times: Sequence[float]) -> tuple[float, ...]:
    """The times; raises UserError where there is none, or they do not fall strictly."""
    if not times or any(later >= earlier for earlier, later in pairwise(times)):
        raise UserError("times must be one or more and fall strictly, from noise to data: pass path.levels(n) or the last of them")
    return tuple(times)


def _mixed(now: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> Tensor:
    """The next guess from the last two results and what each missed its guess by: Anderson's acceleration of depth 1, a sample each.

    Of the line through the two results, the point where the line through the two misses comes nearest to 0.
    """
    (found, missed), (earlier, missed_earlier) = now, before
    turned = (missed - missed_earlier).flatten(1)
    size = turned.square().sum(1)
    share = (turned * missed.flatten(1)).sum(1) / size.where(size != 0, 1)
    return found - like(share, found) * (found - earlier)


def _sized(path: NoisePath, from_to: tuple[float, float], x: Tensor) -> Tensor:
    """x at the size that data of unit variance have at the level above; on a variance-preserving path and on a flow x itself.

    Without it a network on a variance-exploding path is shown an x as small as the level below, and takes it for a part of the image.
    """
    if isinstance(path, RectifiedFlow):
        return x
    s, t = (path.alpha(time).square() + path.sigma(time).square() for time in from_to)
    return x * (t / s).sqrt()


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).square().sum(1).sqrt()
