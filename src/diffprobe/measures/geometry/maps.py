"""What is differentiated: a map of rows, how it is called, and what is said where it cannot be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod

import torch
from torch import Tensor

#: [R, *in] -> [R, *out], rows independent of one another: a decoder, a denoiser at one level, a whole sampling chain.
Map = Callable[[Tensor], Tensor]


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients on, also for callers under `torch.no_grad()` or `torch.inference_mode()`."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def leaf(z: Tensor) -> Tensor:
    """A copy of z to differentiate by."""
    return z.detach().clone().requires_grad_()


def unlike(row: Tensor) -> Tensor:
    """Another row on the same side of 0, so that what is open for the one mostly is for the other."""
    return 1.5 * row + torch.full_like(row, 0.1).copysign(row)


def width(z: Tensor) -> int:
    """E, the numbers in a row of latents [B, *in]. Raises ValueError for latents that are no batch of floating-point rows."""
    if z.ndim < 2 or not z.is_floating_point():
        raise ValueError(f"latents must be floating-point rows [B, ...], not {z.dtype} {list(z.shape)}: reshape or convert them")
    return prod(z.shape[1:])


def rows_of(f: Map, x: Tensor) -> Tensor:
    """f(x) as [R, D]. Raises ValueError where it is not one row of floating-point numbers a latent."""
    try:
        y = f(x)
    except RuntimeError as error:
        if "Inference tensors" in str(error):
            raise ValueError("the map holds tensors made under torch.inference_mode(): load its weights outside of it") from error
        raise
    if not isinstance(y, Tensor) or not y.is_floating_point():
        kind = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"the map must return one floating-point tensor [R, ...], not {kind}: wrap it in a function that does")
    if y.ndim < 1 or len(y) != len(x):
        raise ValueError(f"the map must return a row for each latent: {len(x)} latents gave {list(y.shape)}")
    return y.reshape(len(x), -1)


def differentiable(f: Map, x: Tensor) -> Tensor:
    """`rows_of` with its graph back to the leaf x. Raises ValueError where there is none."""
    y = rows_of(f, x)
    if not y.requires_grad:
        raise ValueError("the map's output has no gradient: run it without torch.no_grad(), .detach(), numpy or integers on the way")
    return y


def dependent(derivative: Tensor | None) -> Tensor:
    """The derivative, where there is one. Raises ValueError where the output does not depend on the latents."""
    if derivative is None:
        raise ValueError("the map's output does not depend on the latents: return what is computed from them, undetached")
    return derivative
