"""What may be mixed: latents of one shape, finite, with weights of a mixture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diffprobe.measures.stats.intervals import Array

Weights = Tensor | ArrayLike

#: How far below 0 and from a sum of one rounding may take weights.
NEGATIVE, OFF = 1e-7, 1e-4


def checked_latents(latents: Tensor | Sequence[Tensor]) -> Tensor:
    """Latents [N, C, h, w] in float32, contiguous; those of a sequence are stacked. Raises ValueError for other shapes and types.

    Whether they are finite is told later, by sums that are needed anyway: `check_finite`.
    """
    if not isinstance(latents, Tensor):
        shapes = sorted({tuple(one.shape) for one in latents})
        if len(shapes) != 1:
            told = " and ".join(str(list(shape)) for shape in shapes) or "none at all"
            raise ValueError(f"latents of one shape can be mixed, not {told}: take images of one size and one model")
        latents = torch.stack(tuple(latents))
    if latents.ndim != 4 or latents.numel() == 0 or not latents.is_floating_point():
        raise ValueError(f"latents are a floating tensor [N, C, h, w] with N >= 1, not {latents.dtype} {list(latents.shape)}: stack them")
    return latents.detach().float().contiguous()


def check_finite(witness: Array) -> None:
    """Raises ValueError where what was summed over each latent, [N], is not finite, naming which."""
    bad = np.flatnonzero(~np.isfinite(witness)).tolist()
    if bad:
        told = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise ValueError(f"latents {told} of {len(witness)} are not finite, or overflow float32: leave them out, and count them")


def checked_weights(weights: Weights, count: int | None = None) -> Array:
    """Weights [..., N], float64, with none below 0 and rows that sum to one. Raises ValueError where they are no mixture."""
    given = np.array(weights.detach().cpu().double().numpy() if isinstance(weights, Tensor) else weights, np.float64)
    wanted = count or (given.shape[-1] if given.ndim else 0)
    if given.ndim == 0 or wanted == 0 or given.shape[-1] != wanted:
        raise ValueError(f"weights are [{wanted or 'N'}], one a latent, or rows of them, one a mixture, not {list(given.shape)}")
    if not np.isfinite(given).all():
        raise ValueError("weights are not finite: set those that are nan or infinite to 0, and divide by their sum")
    if (given < -NEGATIVE).any():
        raise ValueError(f"weights of a mixture are not negative, as {given.min():.3g} is: set it to 0, and divide by their sum")
    given = given.clip(min=0)
    total = given.sum(axis=-1, keepdims=True)
    if (total == 0).any():
        raise ValueError("the weights of a mixture are all 0: give one latent or more a weight")
    off = np.abs(total - 1)
    if (off > OFF).any():
        raise ValueError(f"the weights of a mixture sum to one, not to {total.flat[off.argmax()]:.6g}: divide by their sum")
    return np.asarray(given / total)
