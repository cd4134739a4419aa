"""Scaling, rank and complexity of a map at given latents, with what the projection adds of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffprobe.errors import UserError
from diffprobe.measures import geometry
from diffprobe.model import Rig
from diffprobe.probes.geometry.maps import Map

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class How:
    """The settings of a study that decide what is measured at a latent. `projections` are seeds, one a projection."""

    directions: int
    projections: tuple[int, ...]
    precision: float | None
    radius: float
    dims: int


class Described(NamedTuple):
    """The descriptors of B latents, by name as `NUMBERS` has them, float64 [B] each; `spectrum` [B, K] is that of the first projection.

    `directions` is the number that was projected on, 0 where the whole Jacobian was taken; then `psi_error` is 0. `rank` counts the
    singular values above 0. `delta_floor` is what rounding alone would count, asked at the first latent; nan at the others.
    """

    numbers: dict[str, Array]
    spectrum: Array
    directions: int
    latent_size: int
    output_size: int
    units: int


#: The descriptors of a latent.
NUMBERS = ("psi", "psi_error", "projections", "nu", "rank", "trace", "effective_rank", "delta", "delta_floor")


def describe(rig: Rig, f: Map, z: Tensor, how: How) -> Described:
    """All descriptors of the map at latents z [B, ...]. Raises UserError with the remedy where it cannot be differentiated."""
    try:
        with torch.no_grad():
            outputs = prod(f(z[:1]).shape[1:])
        latents = prod(z.shape[1:])
        whole = min(latents, outputs) <= how.directions
        first = _spectrum(rig, f, z, None if whole else (how.directions, how.projections[0]), outputs)
        scaled = _whole(first) if whole else _projected(rig, f, z, how, outputs, first)
        dims = min(how.dims, latents)
        knots = geometry.local_complexity(f, z, how.radius, dims)
        floor = torch.full((len(z),), math.nan, dtype=torch.float64)
        floor[0] = geometry.rounding_floor(f, z[:1], dims)[0]  # the arithmetic's own, alike at all latents of one map
    except (ValueError, MemoryError) as error:
        raise UserError(f"the map cannot be described: {error}") from error
    columns = {**scaled, "rank": geometry.nonzero(first), "delta": knots.count, "delta_floor": floor}
    numbers = {name: columns[name].double().cpu().numpy() for name in NUMBERS}
    return Described(numbers, first.cpu().numpy(), 0 if whole else how.directions, latents, outputs, int(knots.units))


def _spectrum(rig: Rig, f: Map, z: Tensor, projection: tuple[int, int] | None, outputs: int) -> Tensor:
    """Singular values [B, K]: of the whole Jacobian, or of one projection, a number of directions and a seed."""
    if projection is None:
        return geometry.jacobian_spectrum(f, z)
    chosen = rig.memo(("geometry.directions", outputs, *projection), lambda: geometry.directions(outputs, *projection))
    return geometry.jacobian_spectrum(f, z, chosen)


def _whole(spectrum: Tensor) -> dict[str, Tensor]:
    """What a whole spectrum says, without any error of a projection."""
    squares, one = spectrum.square(), torch.ones(len(spectrum), dtype=torch.float64)
    trace = squares.sum(-1)
    return {
        "psi": geometry.local_scaling(spectrum),
        "psi_error": 0 * one,
        "projections": one,
        "nu": geometry.local_rank(spectrum),
        "trace": trace,
        "effective_rank": trace.square() / squares.square().sum(-1),
    }


def _projected(rig: Rig, f: Map, z: Tensor, how: How, outputs: int, first: Tensor) -> dict[str, Tensor]:
    """What the projections say: psi with its standard error over them, nu, trace, effective rank, and how many each latent had.

    Further projections are drawn for the latents that are not precise enough yet. With one or two the error is that of the law of
    random projections; with three or more the scatter of psi itself says it.
    """
    scaling, rank = geometry.local_scaling(first)[:, None], geometry.local_rank(first)[:, None]
    moments = torch.stack(list(geometry.implied_trace(first, outputs)[:2]), -1)
    law = geometry.foretold(moments[:, 0], moments[:, 1], how.directions, outputs).scaling_error
    count, error = torch.ones(len(z), dtype=torch.float64), law.clone()
    for seed in how.projections[1:]:
        todo = (error > (how.precision or math.inf)) if how.precision is not None else torch.ones(len(z), dtype=torch.bool)
        todo &= error.isfinite() | torch.tensor(how.precision is None)
        if not bool(todo.any()):
            break
        values = _spectrum(rig, f, z[todo.to(z.device)], (how.directions, seed), outputs)
        more = torch.full((2, len(z)), math.nan, dtype=torch.float64)
        more[:, todo] = torch.stack([geometry.local_scaling(values), geometry.local_rank(values)])
        scaling, rank = torch.cat([scaling, more[0, :, None]], 1), torch.cat([rank, more[1, :, None]], 1)
        moments[todo] += (torch.stack(list(geometry.implied_trace(values, outputs)[:2]), -1) - moments[todo]) / (count[todo, None] + 1)
        count[todo] += 1
        spread = (scaling - scaling.nanmean(1, keepdim=True)).square().nansum(1).div((count - 1).clamp(min=1)).sqrt()
        error = torch.where(count > 2, spread, law) / count.sqrt()
    return {
        "psi": scaling.nanmean(1),
        "psi_error": error,
        "projections": count,
        "nu": rank.nanmean(1),
        "trace": moments[:, 0],
        "effective_rank": moments[:, 1],
    }
