"""How many rows fit into memory at once: measured before, and halved where it was not enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import grad
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from diffprobe.measures.geometry.maps import Map, gradients, leaf, rows_of, unlike, width
from diffprobe.measures.precision import full_float32

T = TypeVar("T")

#: The share of a device's whole memory that the graph of one batch may take; the rest is for weights, passes and other processes.
SHARE = {"cpu": 0.125, "cuda": 0.4}
#: A batch whose graph takes this many bytes is large enough. On a CPU a backward pass of a row of the embedded decoder (14 MiB) takes
#: 17 to 19 ms in batches of 1 to 8; rows of small networks get faster up to some hundreds of them. For accelerators not measured:
#: a row of Stable Diffusion's decoder at 512 pixels takes 5.6 GiB, so that eight of them go together where there is room.
ENOUGH = {"cpu": 64 << 20, "cuda": 48 << 30}
#: And what the Jacobians of one batch may take.
RESULT = {"cpu": 64 << 20, "cuda": 4 << 30}
#: No batch is larger.
MOST = 512
#: What a machine has that does not tell.
UNKNOWN = 8 << 30
TOO_LARGE = "one latent alone exceeds the memory of its device: take a smaller resolution or half precision"
COUPLED = (
    "rows of the map depend on one another, as batch norms make them while they train: set the network to eval()"
    " (its running statistics have moved: load it again)"
)


class Footprint(NamedTuple):
    """One row of a map: the bytes that its graph keeps, the numbers that it gives, their dtype, and where they lie."""

    kept: int
    outputs: int
    dtype: torch.dtype
    device: torch.device


def footprint(f: Map, z: Tensor) -> Footprint:
    """Measured on the first row of z [B, ...], and on it and another, so that what does not grow with the rows (weights) is not counted.

    Given up as soon as the graph exceeds all memory of the device, since not every system refuses what it does not have. Raises
    ValueError for what is no map of rows, or where the first of two rows has a gradient in the other, as with batch norms that train:
    looking has then moved their running statistics, which no caller of f can see. MemoryError where one row is too large.
    """
    width(z)
    with gradients():
        first = z[:1].detach().clone() if len(z) else z.new_zeros(1, *z.shape[1:])
        once = attempt(lambda x, _: _kept(f, x), first, 1)
        if not once:
            raise MemoryError(TOO_LARGE)
        one, y = once[0]
        twice = attempt(lambda x, _: _kept(f, x), torch.cat([first, unlike(first)]), 2) if 2 * one <= _memory(y.device) else None
    two = twice[0][0] if twice else 2 * one
    return Footprint(max(two - one, y.shape[1] * y.element_size()), y.shape[1], y.dtype, y.device)


def rows_that_fit(f: Map, z: Tensor, *, memory: int | None = None) -> int:
    """How many rows of f to hold at once with their graph, at least 1, for latents like z [B, ...], of which one is tried.

    As many as a fixed share of the device's `memory` in bytes holds, by default of all that it has, used or not, so that equal
    machines choose alike; and no more than pay: with a graph of 64 MiB (on a GPU 48 GiB) or 512 rows a batch is large enough.
    Raises ValueError for what is no map of rows, MemoryError where one row is too large.
    """
    seen = footprint(f, z)
    return fitting(seen.kept, seen.device, memory)


def fitting(kept: int, device: torch.device, memory: int | None = None) -> int:
    """The rows of `rows_that_fit`, each of which keeps so many bytes."""
    return max(1, min(MOST, min(_room(device, memory), _of(ENOUGH, device)) // max(1, kept)))


def vertices_that_fit(row: int, corners: int, device: torch.device) -> int:
    """How many rows of a forward alone, each of so many bytes, to run at once. Raises MemoryError where `corners` exceed all memory."""
    if row * corners > _memory(device):
        raise MemoryError(TOO_LARGE)
    return _room(device) // max(1, row)


def latents_that_fit(held: int, device: torch.device) -> int:
    """How many latents to treat at once, at least 1, where the result of each takes so many bytes. Raises MemoryError as `check_room`."""
    check_room(held, device)
    return max(1, min(_room(device), _of(RESULT, device)) // max(1, held))


def check_room(held: int, device: torch.device) -> None:
    """Raises MemoryError where a result of so many bytes is larger than a sixth of what the device has: it takes up to 2.8 times that."""
    if held > _memory(device) / 6:
        raise MemoryError(f"the Jacobian would take {held / 2**30:.1f} GiB: take fewer latents, or project it on directions(outputs, k)")


def batches(work: Callable[[Tensor, int], T], z: Tensor, rows: int, most: int | None = None) -> Iterator[T]:
    """work(part, rows) of the parts of z [B, ...] in order, each of at most `rows` latents, and of `most`.

    Where memory runs out, rows are halved for good. Raises MemoryError where one row is too much.
    """
    start = 0
    while start < len(z):
        part = z[start : start + min(rows, most or rows)]
        done = attempt(work, part, rows)
        if done:
            yield done[0]
            start += len(part)
        elif rows == 1:
            raise MemoryError(TOO_LARGE)
        else:
            rows //= 2


def out_of_memory(error: Exception) -> bool:
    """torch.OutOfMemoryError of accelerators, and the plain RuntimeError of their libraries and of the CPU's allocator."""
    told = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in told for sign in ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
    )


def attempt(work: Callable[[Tensor, int], T], part: Tensor, rows: int) -> tuple[T] | None:
    """The result, or None where memory ran out: what the failed attempt holds is free only after the exception is gone."""
    try:
        return (work(part, rows),)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _of(table: Mapping[str, T], device: torch.device) -> T:
    """The entry of a kind of device; all accelerators are like the one that is listed."""
    return table["cpu" if device.type == "cpu" else "cuda"]


def _room(device: torch.device, memory: int | None = None) -> int:
    return int(_of(SHARE, device) * (_memory(device) if memory is None else memory))


def _memory(device: torch.device) -> int:
    """The bytes that a device has."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else UNKNOWN


@full_float32()
def _kept(f: Map, x: Tensor) -> tuple[int, Tensor]:
    """The bytes of all storages that the graph of f(x) keeps, each counted once, and f(x) [R, D]. Raises MemoryError, ValueError."""
    held, most = 0, _memory(x.device)
    alive: dict[int, StorageWeakRef] = {}  # an address names a storage for as long as a weak reference to it lives

    def count(saved: Tensor) -> Tensor:
        nonlocal held
        storage = saved.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference.cdata not in alive:
            alive[reference.cdata] = reference
            held += storage.nbytes()
        if held > most:
            raise MemoryError(TOO_LARGE)
        return saved.detach()  # for maps that differentiate inside; itself it would hold its own graph

    x = leaf(x)
    with saved_tensors_hooks(count, lambda saved: saved):
        y = rows_of(f, x)
    if len(x) > 1:
        _check_apart(x, y)
    return held, y.detach()


def _check_apart(x: Tensor, y: Tensor) -> None:
    """Raises ValueError where y[0] has a gradient in x[1], beyond rounding; nan tells nothing."""
    if not y.requires_grad:
        return
    weights = torch.zeros_like(y)
    weights[0] = torch.linspace(1, 2, y.shape[1])
    (gradient,) = grad(y, x, weights, allow_unused=True)
    own, other = (0.0, 0.0) if gradient is None else gradient.abs().flatten(1).amax(1).tolist()
    if other > torch.finfo(x.dtype).eps * own:
        raise ValueError(COUPLED)
