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
from diffprobe.measures.geometry import Map
from diffprobe.model import Rig

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
    singular values above 0. `delta_floor` is what rounding alone would count, asked at the last latent; nan at the others.
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
        first = _spectrum(rig, f, z, None if whole else (how.directions, how.projections[0]), outputs).cpu()
        scaled = _whole(first) if whole else _projected(f, z, how, outputs, first)
        dims, rows = min(how.dims, latents), geometry.rows_that_fit(f, z)
        knots = geometry.local_complexity(f, z, how.radius, dims, rows=rows)
        floor = torch.full((len(z),), math.nan, dtype=torch.float64)
        floor[-1] = geometry.rounding_floor(f, z[-1:], dims, rows=rows)[0]  # the arithmetic's own, alike at all latents of one map
    except (ValueError, MemoryError, NotImplementedError, torch.OutOfMemoryError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the map cannot be described: {told}") from error
    columns = {**scaled, "rank": geometry.nonzero(first), "delta": knots.count, "delta_floor": floor}
    numbers = {name: columns[name].cpu().double().numpy() for name in NUMBERS}
    return Described(numbers, first.numpy(), 0 if whole else how.directions, latents, outputs, int(knots.units))


def _spectrum(rig: Rig, f: Map, z: Tensor, projection: tuple[int, int] | None, outputs: int) -> Tensor:
    """Singular values [B, K]: of the whole Jacobian, or of the first projection, a number of directions and a seed."""
    if projection is None:
        return geometry.jacobian_spectrum(f, z)
    address = ("geometry.directions", outputs, *projection)
    chosen = rig.memo(address, lambda: geometry.directions(outputs, *projection).to(z.device))
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


def _projected(f: Map, z: Tensor, how: How, outputs: int, first: Tensor) -> dict[str, Tensor]:
    """What the projections say: psi with its standard error over them, nu, trace, effective rank, and how many each latent had.

    The error of one projection is that of the law of random projections, which also tells how many a precision takes. Where there
    is no law, since the effective rank is below the directions, the scatter of psi over three projections or more tells it, and
    a precision is reached in two stages (Stein 1945): half of the projections, then as many as their scatter says it takes.
    """
    scaling, rank, moments = geometry.local_scaling(first)[:, None], geometry.local_rank(first)[:, None], _implied(first, outputs)
    trace, effective_rank = moments.clone().unbind(-1)
    law = geometry.foretold(trace, effective_rank, how.directions, outputs).scaling_error
    count, single = torch.ones(len(z), dtype=torch.float64), law
    for _ in range(2):
        wanted = _wanted(how, single)
        for place, seed in enumerate(how.projections[1:], 1):
            todo = (count == place) & (count < wanted)
            if not bool(todo.any()):
                continue
            chosen = geometry.directions(outputs, how.directions, seed).to(z.device)
            values = geometry.jacobian_spectrum(f, z[todo.to(z.device)], chosen).cpu()
            more = torch.full((2, len(z)), math.nan, dtype=torch.float64)
            more[:, todo] = torch.stack([geometry.local_scaling(values), geometry.local_rank(values)])
            scaling, rank = torch.cat([scaling, more[0, :, None]], 1), torch.cat([rank, more[1, :, None]], 1)
            moments[todo] += (_implied(values, outputs) - moments[todo]) / (count[todo, None] + 1)
            count[todo] += 1
        scatter = (scaling - scaling.nanmean(1, keepdim=True)).square().nansum(1).div((count - 1).clamp(min=1)).sqrt()
        single = torch.where(law.isfinite(), law, torch.where(count > 2, scatter, math.nan))
    return {
        "psi": scaling.nanmean(1),
        "psi_error": single / count.sqrt(),
        "projections": count,
        "nu": rank.nanmean(1),
        "trace": moments[:, 0],
        "effective_rank": moments[:, 1],
    }


def _implied(spectrum: Tensor, outputs: int) -> Tensor:
    """Trace and effective rank [B, 2] of the whole Jacobian, by a projected spectrum."""
    found = geometry.implied_trace(spectrum, outputs)
    return torch.stack([found.trace, found.effective_rank], -1)


def _wanted(how: How, error: Tensor) -> Tensor:
    """How many projections each latent gets: all, or what a precision takes by the error of one, or half of all where it is not known."""
    most = float(len(how.projections))
    if how.precision is None:
        return torch.full_like(error, most)
    needed = (error / how.precision).square().ceil().nan_to_num(most // 2)
    return needed.clamp(1, most)
