"""Jacobians of maps of rows, whole or seen through some output directions.

Latents z are [B, *in] with E numbers a row, outputs [B, *out] with D. A Jacobian comes in the dtype of z, which is that of the passes,
and is of the input alone: weights that require gradients cost nothing. How many rows a batch has is found by measured memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffprobe.measures.geometry.maps import Map, gradients, width
from diffprobe.measures.geometry.memory import Footprint, batches, check_room, fitting, footprint, latents_that_fit
from diffprobe.measures.geometry.passes import PUSH_COST, pull, push_rule, pushes


def jacobian(f: Map, z: Tensor, *, rows: int | None = None) -> Tensor:
    """The whole Jacobian [B, D, E] at latents z [B, *in]: E forward-mode passes a latent where those are cheaper than D backward ones.

    In forward mode attention is computed by its plain formula, since fused kernels have no rule for it. Where another operation
    lacks one, or memory runs out, J e is the derivative of u -> (J^T u) . e, and where that fails too, D backward passes do it.
    `rows` is for tests. Raises ValueError for what is no differentiable map of rows, MemoryError where the Jacobians or one row are
    too large.
    """
    return _together(f, z, None, rows)


def projected_jacobian(f: Map, z: Tensor, directions: Tensor, *, rows: int | None = None) -> Tensor:
    """W J [B, k, E] for output directions W [k, D], such as `directions` makes: row i is J^T w_i.

    By k backward passes a latent, which any attention knows, or by E forward-mode passes where they are cheaper, as in `jacobian`.
    `rows` is for tests. Raises ValueError for what is no differentiable map of rows and for directions that do not fit its output,
    MemoryError where the Jacobians or one row are too large.
    """
    return _together(f, z, directions, rows)


def jacobians(f: Map, z: Tensor, seen: Footprint, directions: Tensor | None, rows: int | None) -> Iterator[Tensor]:
    """J [b, D, E] of z in parts, or W J [b, k, E] for directions [k, D]: what is not needed at once is not held at once."""
    inputs, k = width(z), seen.outputs if directions is None else _checked(directions, seen.outputs)
    rows = rows or fitting(seen.kept, seen.device)
    most = latents_that_fit(k * inputs * (z.element_size() + 8), z.device)  # its float64 copy included
    push = push_rule(f, z) if PUSH_COST * inputs < k else None

    def work(part: Tensor, rows: int) -> Tensor:
        if push is None:
            return pull(f, part, rows, directions, seen.outputs)
        columns = pushes(f, part, rows, push)
        return torch.cat([some if directions is None else some @ directions.to(some).T for some in columns], 1).mT

    return batches(work, z, rows, most)


def _together(f: Map, z: Tensor, directions: Tensor | None, rows: int | None) -> Tensor:
    """All parts of `jacobians`."""
    seen = footprint(f, z)
    k = seen.outputs if directions is None else len(directions)
    check_room(len(z) * k * width(z) * z.element_size(), z.device)
    with gradients():
        found, start = z.new_empty(len(z), k, width(z)), 0
    for part in jacobians(f, z, seen, directions, rows):
        found[start : start + len(part)] = part
        start += len(part)
    return found


def _checked(directions: Tensor, outputs: int) -> int:
    """How many directions [k, D] there are. Raises ValueError where they do not fit the output."""
    if directions.ndim != 2 or not len(directions) or directions.shape[1] != outputs or not directions.is_floating_point():
        raise ValueError(f"directions must be [k, {outputs}] here, not {list(directions.shape)}: make them by directions({outputs}, k)")
    if len(directions) > outputs:
        raise ValueError(f"{len(directions)} directions of {outputs} outputs: take at most {outputs}, or the whole Jacobian")
    return len(directions)
