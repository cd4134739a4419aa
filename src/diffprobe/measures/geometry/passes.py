"""Products with a Jacobian: J^T w by backward passes over one graph, J t by forward mode or by differentiating twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, grad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from diffprobe import rng
from diffprobe.measures.geometry.maps import Map, dependent, differentiable, gradients, leaf, rows_of, width
from diffprobe.measures.geometry.memory import TOO_LARGE, attempt, footprint
from diffprobe.measures.precision import full_float32

#: (f, x [R, *in], tangents [R, *in]) -> J t [R, D], each row with its own tangent.
Push = Callable[[Map, Tensor, Tensor], Tensor]
#: What J t costs by forward mode, in backward passes: 2.5 to 4 for the embedded decoder, with its attention by the plain formula.
PUSH_COST = 3


@full_float32()
def pull(f: Map, part: Tensor, rows: int, weights: Tensor | None, outputs: int) -> Tensor:
    """J^T w for every latent of part [b, *in] and every row w of weights [k, D], or all D unit vectors for None: [b, k, E].

    One forward of up to `rows` rows, c of them copies of each latent, then ceil(k/c) backward passes over its graph with c
    directions each: few latents still fill a batch, many need c = 1 and no forward twice.
    """
    b, k = len(part), outputs if weights is None else len(weights)
    copies = _shared(k, rows // b)
    with gradients():
        found = part.new_empty(b, k, width(part))
        x = leaf(part.repeat_interleave(copies, 0))
        y = differentiable(f, x)
        for start in range(0, k, copies):
            stop = min(start + copies, k)
            some = _unit(start, stop, k, y) if weights is None else weights[start:stop].to(y)
            some = functional.pad(some, (0, 0, 0, start + copies - stop))
            (gradient,) = grad(y, x, some.repeat(b, 1), retain_graph=stop < k, allow_unused=True)
            found[:, start:stop] = dependent(gradient).reshape(b, copies, -1)[:, : stop - start]
    return found


def pushes(f: Map, part: Tensor, rows: int, push: Push, tangents: Tensor | None = None) -> Iterator[Tensor]:
    """J t for every latent of part [b, *in] and its n tangents [b, n, E], or all E unit vectors for None: [b, c, D] some at a time."""
    b, inputs = len(part), width(part)
    n = inputs if tangents is None else tangents.shape[1]
    copies = _shared(n, rows // b)
    for start in range(0, n, copies):
        stop = min(start + copies, n)
        some = _unit(start, stop, n, part).repeat(b, 1, 1) if tangents is None else tangents[:, start:stop]
        x = part.repeat_interleave(stop - start, 0)
        yield push(f, x, some.reshape(x.shape)).reshape(b, stop - start, -1)


def push_rule(f: Map, z: Tensor) -> Push | None:
    """How J t can be had for this map, tried on the first of the latents z [B, *in]: forward mode, differentiating twice, or not at all.

    A way must agree with a backward pass, (J^T w) . t = |w|^2 for w = J t: an operation that may be differentiated only once is left
    out by both without a word. So must it fit into memory. Raises ValueError for what is no differentiable map of rows, MemoryError
    where one row is too large for a backward pass too.
    """
    x = z[:1].detach().clone() if len(z) else z.new_zeros(1, *z.shape[1:])
    t = rng.normal(x.shape[1:], "geometry.tangent", [0]).to(x)
    for push in (_forward, _twice):
        try:
            agreed = attempt(partial(_agrees, f, t, push), x, 1)
        except (RuntimeError, ValueError):
            continue  # an operation without this derivative: the next way is tried, and without any the backward pass speaks
        if agreed == (True,):
            return push
    outputs = footprint(f, x).outputs
    if not attempt(lambda x, rows: pull(f, x, rows, x.new_ones(1, outputs), outputs), x, 1):
        raise MemoryError(TOO_LARGE)
    return None


def _agrees(f: Map, t: Tensor, push: Push, x: Tensor, rows: int) -> bool:
    w = push(f, x, t)
    back, length = float((pull(f, x, rows, w, w.shape[1]).double() * t.double().flatten()).sum()), float(w.double().square().sum())
    return not abs(back - length) > max(1e-3, 16 * torch.finfo(w.dtype).eps) * length  # so a nan, which tells nothing, passes


class _WholeNorm(TorchFunctionMode):
    """Group norms of contiguous inputs: their forward derivative fails for others (torch 2.13), such as what follows attention."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.group_norm and args:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


@full_float32()
def _forward(f: Map, x: Tensor, tangents: Tensor) -> Tensor:
    """J t by forward mode; fused attention has no rule for it, the plain formula has."""
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _WholeNorm(), forward_ad.dual_level():
        y = rows_of(f, forward_ad.make_dual(x.detach().clone(), tangents.detach().clone()))
        return dependent(forward_ad.unpack_dual(y).tangent)


@full_float32()
def _twice(f: Map, x: Tensor, tangents: Tensor) -> Tensor:
    """J t as the derivative of u -> (J^T u) . t, which is linear, so that u = 0 will do."""
    with gradients(), sdpa_kernel(SDPBackend.MATH):
        x = leaf(x)
        y = differentiable(f, x)
        u = torch.zeros_like(y, requires_grad=True)
        (back,) = grad(y, x, u, create_graph=True, allow_unused=True)
        (found,) = grad(dependent(back), u, tangents, allow_unused=True)
    return dependent(found)


def _shared(many: int, most: int) -> int:
    """How many to take at a time, at most `most` but at least 1, so that all times are equally large but for rounding."""
    return -(-many // -(-many // max(1, most)))


def _unit(start: int, stop: int, size: int, like: Tensor) -> Tensor:
    """The unit vectors `start` to `stop` of a space of `size` numbers, as rows."""
    rows = like.new_zeros(stop - start, size)
    rows.diagonal(start).fill_(1)
    return rows
