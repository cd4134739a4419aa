"""How many rows fit into memory at once: measured before, and halved where it was not enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from diffprobe.measures.geometry.maps import Map, gradients, leaf, rows_of, width

T = TypeVar("T")

#: The share of a device's whole memory that the graph of one batch may take; the rest is for weights, passes and other processes.
SHARE = {"cpu": 0.125, "cuda": 0.4}
#: A batch whose graph takes this many bytes is large enough. On a CPU a backward pass of a row of the embedded decoder (14 MiB) takes
#: 17 to 19 ms in batches of 1 to 8; rows of small networks get faster up to some hundreds of them. For accelerators not measured.
ENOUGH = {"cpu": 64 << 20, "cuda": 4 << 30}
#: No batch is larger.
MOST = 512
#: What a machine has that does not tell.
UNKNOWN = 8 << 30
TOO_LARGE = "one latent alone exceeds the memory of its device: take a smaller resolution or half precision"


class Footprint(NamedTuple):
    """One row of a map: the bytes that its graph keeps, the numbers that it gives, their dtype, and where they lie."""

    kept: int
    outputs: int
    dtype: torch.dtype
    device: torch.device


def footprint(f: Map, z: Tensor) -> Footprint:
    """Measured on the first row of z [B, ...], and on it twice, so that what does not grow with the rows (weights) is not counted.

    Nothing is kept while it is counted: this takes little more memory than a forward without gradients. Raises ValueError for what
    is no map of rows, MemoryError where one row is too large.
    """
    width(z)
    with gradients():
        first = z[:1].detach().clone() if len(z) else z.new_zeros(1, *z.shape[1:])
        once, twice = (_attempt(lambda part, _: _kept(f, part), torch.cat([first] * many), many) for many in (1, 2))
    if not once:
        raise MemoryError(TOO_LARGE)
    (one, y), two = once[0], twice[0][0] if twice else 2 * once[0][0]
    return Footprint(max(two - one, y.shape[1] * y.element_size()), y.shape[1], y.dtype, y.device)


def rows_that_fit(f: Map, z: Tensor, *, memory: int | None = None) -> int:
    """How many rows of f to hold at once with their graph, at least 1, for latents like z [B, ...], of which one is tried.

    As many as a fixed share of the device's `memory` in bytes holds, by default of all that it has, used or not, so that equal
    machines choose alike; and no more than pay: with a graph of 64 MiB (on a GPU 4 GiB) or 512 rows a batch is large enough.
    Raises ValueError for what is no map of rows, MemoryError where one row is too large.
    """
    seen = footprint(f, z)
    return fitting(seen.kept, seen.device, memory)


def fitting(kept: int, device: torch.device, memory: int | None = None) -> int:
    """The rows of `rows_that_fit`, each of which keeps so many bytes."""
    return max(1, min(MOST, min(_room(device, memory), _of(ENOUGH, device)) // max(1, kept)))


def latents_that_fit(held: int, device: torch.device) -> int:
    """How many latents to treat at once, at least 1, where the result of each takes so many bytes. Raises MemoryError as `check_room`."""
    check_room(held, device)
    return max(1, min(_room(device), _of(ENOUGH, device)) // max(1, held))


def check_room(held: int, device: torch.device) -> None:
    """Raises MemoryError where a result of so many bytes is larger than half of what the device has."""
    if held > _memory(device) / 2:
        raise MemoryError(f"the Jacobian would take {held / 2**30:.1f} GiB: take fewer latents, or project it on directions(outputs, k)")


def batches(work: Callable[[Tensor, int], T], z: Tensor, rows: int, most: int | None = None) -> Iterator[T]:
    """work(part, rows) of the parts of z [B, ...] in order, each of at most `rows` latents, and of `most`.

    Where memory runs out, rows are halved for good. Raises MemoryError where one row is too much.
    """
    start = 0
    while start < len(z):
        part = z[start : start + min(rows, most or rows)]
        done = _attempt(work, part, rows)
        if done:
            yield done[0]
            start += len(part)
        elif rows == 1:
            raise MemoryError(TOO_LARGE)
        else:
            rows //= 2


def out_of_memory(error: Exception) -> bool:
    """torch.OutOfMemoryError of accelerators, and the plain RuntimeError of the CPU's allocator."""
    told = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in told for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _attempt(work: Callable[[Tensor, int], T], part: Tensor, rows: int) -> tuple[T] | None:
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


def _kept(f: Map, x: Tensor) -> tuple[int, Tensor]:
    """The bytes of all storages that the graph of f(x) would keep, each counted once, and f(x) [R, D]."""
    sizes: dict[int, int] = {}
    alive = []  # an address names a storage for as long as a weak reference to it lives

    def count(saved: Tensor) -> None:
        storage = saved.untyped_storage()
        reference = StorageWeakRef(storage)
        alive.append(reference)
        sizes[reference.cdata] = storage.nbytes()

    with saved_tensors_hooks(count, lambda _: _):
        y = rows_of(f, leaf(x))
    return sum(sizes.values()), y.detach()
