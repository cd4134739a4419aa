"""Local complexity: how many non-linearities of a map change side within a small neighbourhood of a latent.

Each scalar that goes into a non-linearity is a unit, with one knot or two:

- 0: relu, leaky_relu, prelu, rrelu, elu, celu, selu, abs, and, where a smooth gate is half open or a curve turns, silu, gelu,
  mish, softplus, log_sigmoid, sigmoid, tanh, erf, and the gating half of glu;
- both ends: hardtanh, relu6, clamp (whatever it is there for: it folds the map); -3 and 3: hardswish, hardsigmoid; plus and minus
  lambda: softshrink, hardshrink; its own threshold: threshold;
- where the operands are equal: maximum, minimum, clamp by a tensor; where another entry becomes the largest: max-pooling.

A unit with two knots counts as two. Softmax, normalisation, exp, sin and powers are smooth and have none; masks made by comparison,
sorting and maxima over an axis are not seen. Source: Humayun et al. 2024, section 2.2.1, for ReLU units; with smooth activations the
count says how many gates switch, not how many linear regions there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.geometry.directions import haar
from diffprobe.measures.geometry.knots import Knots, watching
from diffprobe.measures.geometry.maps import Map, unlike, width
from diffprobe.measures.geometry.memory import TOO_LARGE, attempt, batches, vertices_that_fit
from diffprobe.measures.precision import full_float32

#: Rows of one batch where the caller names no bound.
ROWS = 64


@dataclass(frozen=True, eq=False)
class Complexity:
    """Knots that a neighbourhood of each latent crosses, counted in float64: NaN where a value was not finite.

    count [B] is the sum of layers [B, L], one for each non-linearity in the order of execution; `names` says what they are, `sizes`
    how many knots each has in all, and `units` is the sum of these: 0 for a linear map, whose count is 0.
    """

    count: Tensor
    units: int
    layers: Tensor
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    radius: float

    @property
    def fraction(self) -> Tensor:
        """The share of all knots [B]; NaN for a map without any."""
        return self.count / self.units if self.units else torch.full_like(self.count, torch.nan)

    @property
    def per_length(self) -> Tensor:
        """count/(2 r), [B]: the same at any radius where the count is linear in it."""
        return self.count / (2 * self.radius)


def frame(size: int, dims: int, seed: int = 0) -> Tensor:
    """Random orthonormal directions [dims, size] of a flattened latent, float64, by the address ("geometry.frame", seed).

    Raises ValueError where the latent has not that many dimensions.
    """
    if not 1 <= dims <= size:
        raise ValueError(f"a latent of {size} numbers has 1 to {size} orthonormal directions: choose dims among them, not {dims}")
    return torch.from_numpy(np.ascontiguousarray(haar(rng.stream("geometry.frame", seed).standard_normal((size, dims))).T))


def local_complexity(f: Map, z: Tensor, radius: float, dims: int, *, seed: int = 0, rows: int | None = None) -> Complexity:
    """Knots that have not one sign (-1, 0 or 1) at all of the 2 dims vertices z +- radius b_i about each latent z [B, ...].

    The b_i are `dims` orthonormal directions, the same for all latents: the vertices span an l1 ball of that radius. For the first
    layer of a ReLU network the count is exact, |w z + b| < radius max_i |w b_i|; for deeper ones it is while nothing before them
    folds between the vertices, which a small radius makes true. In float32 a radius of 1e-5 counts rounding too: `rounding_floor`.

    f takes any number of rows, which must not depend on one another, and may return anything. It runs without gradients in the
    dtype of z: on two rows of which one is NaN, which shows what inside depends on the rows and along which axis; where the NaN did
    not arrive everywhere (a time embedding; or an operation lost it), on two sound rows too; then on batches of at most `rows` rows
    (64, or fewer where memory has not room for them), never less than one latent's. Raises ValueError for a radius or dims that make
    no neighbourhood, and for a network whose rows do depend on one another; MemoryError where one neighbourhood is too large. Known
    beforehand are its output and its largest input of a non-linearity: it does not run where these exceed the memory. What else it
    takes is not, and a system that grants memory which it does not have may end the process.
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius {radius} makes no neighbourhood: give a number above 0, such as 0.01")
    steps = _both(radius * frame(width(z), dims, seed), z)
    layers, counts = _watched(f, z.detach(), lambda centres: centres[:, None] + steps, 2 * dims, rows)
    sizes = tuple(layer.size for layer in layers)
    return Complexity(_total(counts, z), sum(sizes), counts, sizes, tuple(layer.name for layer in layers), float(radius))


def rounding_floor(f: Map, z: Tensor, dims: int, *, seed: int = 0, rows: int | None = None) -> Tensor:
    """The count [B] that rounding alone makes: vertices that differ from z by one or two units in the last place of each number.

    Equal rows of one batch agree to the last bit, so that a radius of 0 counts none in any arithmetic. Here the rows round
    differently all the way while the map itself hardly moves. A count not well above its floor measures the arithmetic.
    """
    signs = _both(frame(width(z), dims, seed).sign(), z) * torch.finfo(z.dtype).eps
    _, counts = _watched(f, z.detach(), lambda centres: centres[:, None] + centres.abs()[:, None] * signs, 2 * dims, rows)
    return _total(counts, z)


def linearity(whole: Complexity, half: Complexity) -> Tensor:
    """count(r) over 2 count(r/2), [B], of one frame: 1 while the count is linear in the radius; NaN where the half has none.

    Raises ValueError unless the second radius is half of the first.
    """
    if not math.isclose(whole.radius, 2 * half.radius, rel_tol=1e-9):
        raise ValueError(f"the second radius must be half of the first, {whole.radius / 2:g}, not {half.radius:g}")
    return torch.where(half.count == 0, torch.nan, whole.count / (2 * half.count))


def _both(axes: Tensor, z: Tensor) -> Tensor:
    """Directions [P, E] and their opposites, in the shape, dtype and place of latents: [2 P, ...]."""
    return torch.cat([axes, -axes]).reshape(-1, *z.shape[1:]).to(z)


class _UnlikeError(ValueError):
    """A batch ran other non-linearities than two rows did."""


class _Layer(NamedTuple):
    """A non-linearity, and what it looks like on two rows.

    The rows lie on one axis, as [outer, rows, inner]: there may be two of each for guidance, or they are split into frames or tokens.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    outer: int
    inner: int
    knots: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) // 2 * self.knots

    def on(self, rows: int) -> tuple[int, ...]:
        """Its shape on another number of rows."""
        return (*self.shape[: self.axis], self.outer * rows * self.inner, *self.shape[self.axis + 1 :])


def _watched(f: Map, z: Tensor, around: Callable[[Tensor], Tensor], corners: int, rows: int | None) -> tuple[list[_Layer], Tensor]:
    """The non-linearities that depend on the latents, and the knots [B, L] that each crosses between the vertices around them."""
    if rows is not None and rows < 1:
        raise ValueError(f"a batch of {rows} rows measures nothing: choose 1 or more")
    sound = z[_finite(z)]
    layers, held = _layers(f, sound[:1] if len(sound) else torch.ones_like(z[:1]))
    most = min(ROWS if rows is None else rows, vertices_that_fit(held, corners, z.device))
    counts = list(batches(lambda part, _: _counts(f, around(part), layers), z, max(1, most // corners)))
    seen = [layer for layer in layers if layer]
    return seen, torch.cat([torch.zeros(0, len(seen), dtype=torch.float64), *counts])


def _finite(z: Tensor) -> Tensor:
    return z.detach().flatten(1).isfinite().all(1)


def _total(counts: Tensor, z: Tensor) -> Tensor:
    """Over the layers; a linear map has none that could tell of a latent that is not finite."""
    return counts.sum(1).masked_fill(~_finite(z).cpu(), torch.nan)


def _layers(f: Map, example: Tensor) -> tuple[list[_Layer | None], int]:
    """One entry for each non-linearity that runs on an example and another row, and the bytes of the largest that one row makes.

    None where nothing depends on the row. Raises ValueError, MemoryError.
    """
    if not len(example):
        return [], 0
    both = torch.cat([example, unlike(example)])
    for last in (False, True):
        try:
            found = attempt(lambda rows, _: _told(f, rows), both, 2)
        except _UnlikeError:
            if last:
                raise
            continue  # a first call also ran what is kept since, such as the encoder of a prompt
        if found:
            return found[0]
    raise MemoryError(TOO_LARGE)


@full_float32()
def _told(f: Map, both: Tensor) -> tuple[list[_Layer | None], int]:
    """`_layers` by what a NaN in the second of two rows reaches; where it reaches nothing, by what changes with that row."""
    found, unsure, held = list[_Layer | None](), dict[int, tuple[str, Tensor]](), 0
    changed = dict[int, tuple[str, Tensor, int]]()
    other = "the map runs other non-linearities a second time: it must treat all calls alike"

    def see(name: str, values: Tensor, knots: Knots) -> None:
        nonlocal held
        held = max(held, values.nbytes // 2)
        layer = _layer(name, values.isnan(), max(1, len(knots[1])))
        if layer is None:
            unsure[len(found)] = name, values.clone()
        found.append(layer)

    def compare(name: str, values: Tensor, knots: Knots) -> None:
        place = next(places)
        before, known = unsure.get(place, (name, values))
        if place >= len(found) or before != name or known.shape != values.shape:
            raise _UnlikeError(other)
        if known is not values:
            changed[place] = name, known != values, max(1, len(knots[1]))

    with watching(see):
        y = f(torch.cat([both[:1], torch.full_like(both[:1], torch.nan)]))
    if unsure:
        places = itertools.count()
        with watching(compare):
            f(both)
        if next(places) != len(found):
            raise _UnlikeError(other)
    for place, told in changed.items():
        found[place] = _layer(*told)
    return found, held + (y.nbytes // 2 if isinstance(y, Tensor) else 0)


def _layer(name: str, lost: Tensor, knots: int) -> _Layer | None:
    """Where the rows are, from what the second row's NaN has reached, or a change of it."""
    if not bool(lost.any()):
        return None
    for axis, length in enumerate(lost.shape):
        hit = lost.movedim(axis, 0).reshape(length, -1).any(1)
        inner = int(hit.int().argmax())
        if inner and length % (2 * inner) == 0 and not bool(hit.reshape(-1, 2, inner)[:, 0].any()):
            return _Layer(name, tuple(lost.shape), axis, length // (2 * inner), inner, knots)
    raise ValueError(f"rows depend on one another at a {name}, or run one by one: set the network to eval(), and slicing and tiling off")


@full_float32()
def _counts(f: Map, vertices: Tensor, layers: Sequence[_Layer | None]) -> Tensor:
    """Knots crossed [b, L] between the vertices [b, 2 P, ...] of b latents, in one batch."""
    samples, corners = vertices.shape[:2]
    rows, left, counts = samples * corners, list(layers), list[Tensor]()
    other = f"the map runs other non-linearities on {rows} rows than on 2: it must treat all rows alike"

    def see(name: str, values: Tensor, knots: Knots) -> None:
        if not left:
            raise _UnlikeError(other)
        layer = left.pop(0)
        if layer is None:
            return
        if layer.name != name or layer.on(rows) != values.shape:
            raise _UnlikeError(other)
        tensor, places = knots
        counts.append(_crossed(tensor.movedim(layer.axis, 0).reshape(layer.outer, samples, corners, layer.inner, -1), places))

    with watching(see):
        f(vertices.flatten(0, 1))
    if left:
        raise _UnlikeError(other)
    return torch.stack(counts, 1) if counts else torch.zeros(samples, 0, dtype=torch.float64)


def _crossed(values: Tensor, knots: tuple[float, ...]) -> Tensor:
    """How many units [outer, b, 2 P, inner, ...] have vertices that differ, about a knot where there are knots: float64 [b]."""
    low, high = values.amin(2), values.amax(2)  # aminmax takes forty times as long
    moved = low < high
    met = [moved & (low <= knot) & (high >= knot) for knot in knots] or [moved]
    count = torch.stack([part.sum((0, 2, 3)) for part in met]).sum(0).cpu().double()
    return count.masked_fill((low != low).transpose(0, 1).flatten(1).any(1).cpu(), torch.nan)  # noqa: PLR0124 - NaN, of integers too
