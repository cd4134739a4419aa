"""Where a decoder or a denoiser is described: latents with the map that is differentiated there, and what tells them apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diffprobe import images, rng
from diffprobe.errors import UserError
from diffprobe.images import Picture
from diffprobe.measures import similarity
from diffprobe.measures.geometry import Map
from diffprobe.measures.geometry.directions import haar
from diffprobe.model import Model, Rig
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.geometry.maps import ROLE, chain, decoder, drawn, field_map, unit
from diffprobe.probes.geometry.settings import Field
from diffprobe.probes.looks import decode, encoded, native, resized
from diffprobe.sampling import State


@dataclass(frozen=True)
class Taken:
    """Latents [B, ...] on the CPU, the map to describe there, columns that tell the rows apart, and the images that instruments see.

    Where `kept` is not empty it says which rows have an image, and these are for a look alone.
    """

    latents: Tensor
    map: Map
    columns: dict[str, Any]
    seen: Tensor | None = None
    kept: tuple[bool, ...] = field(default=())


class Place(Protocol):
    """Somewhere in the space of latents. It names its rows, and takes its latents from the model when it is measured."""

    @property
    def rows(self) -> int: ...

    def inputs(self) -> tuple[Cell, ...]: ...

    def cost(self) -> Cost: ...

    def take(self, rig: Rig, model: Model, *records: pa.Table) -> Taken: ...


@dataclass(frozen=True)
class Encodings:
    """The encodings of a few images of a set, with the error of their reconstruction."""

    set: str
    sources: tuple[Picture, ...]
    resolution: int | None

    @property
    def rows(self) -> int:
        return len(self.sources)

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        return Cost(decodings=self.rows)

    def take(self, rig: Rig, model: Model, *records: pa.Table) -> Taken:
        seen = images.load(self.sources, self.resolution or native(model))
        latents = encoded(rig, model, seen)
        rebuilt = resized(decode(_with(rig, model), latents), seen.shape[-1]).clamp(0, 1)
        columns = {
            "set": [self.set] * self.rows,
            "sample": [images.name(source) for source in self.sources],
            "population": [images.domain(source) for source in self.sources],
            "error": similarity.mse(seen, rebuilt).tolist(),
        }
        return Taken(latents, decoder(model), columns, seen)


@dataclass(frozen=True)
class Priors:
    """Latents of pure noise, of unit variance. With `steps` the map is the whole deterministic chain from noise to image."""

    seeds: tuple[int, ...]
    steps: int

    @property
    def rows(self) -> int:
        return len(self.seeds)

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        return Cost(evaluations=self.rows * self.steps, decodings=self.rows)

    def take(self, rig: Rig, model: Model, *records: pa.Table) -> Taken:
        assert model.shape is not None
        latents = rng.normal(model.shape, f"{ROLE}.prior", self.seeds)
        shown = chain(model, self.steps) if self.steps else decoder(model)
        columns = {"set": ["prior"] * self.rows, "sample": [f"prior {seed}" for seed in self.seeds], "seed": list(self.seeds)}
        return Taken(latents, shown, columns, _shown(rig, shown, latents))


@dataclass(frozen=True)
class Trajectories:
    """Where the samples of one prompt pass on their way from noise, at `points` states; one is where they end."""

    set: str
    prompt_id: str
    prompt: str
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float
    points: int
    at: str

    @property
    def rows(self) -> int:
        return len(self.seeds) * self.points

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        calls = 2 if self.guidance_scale != 1 else 1
        return Cost(evaluations=len(self.seeds) * self.num_inference_steps * calls, decodings=self.rows)

    def steps(self) -> list[int]:
        """The states that are described, from 0 (noise) to the number of steps (data)."""
        if self.points == 1:
            return [self.num_inference_steps]
        return [int(step) for step in np.linspace(0, self.num_inference_steps, self.points).round()]

    def take(self, rig: Rig, model: Model, *records: pa.Table) -> Taken:
        path, wanted, states = model.path, set(self.steps()), list[State]()
        assert path is not None
        parts = [self.seeds[i : i + rig.batch_size] for i in range(0, len(self.seeds), rig.batch_size)]
        for part in parts:
            with torch.no_grad():
                run = drawn(model, self.prompt, part, self.num_inference_steps, self.guidance_scale)
                states += [state for state in run if state.step in wanted]
        latents = torch.cat([state.x0 if self.at == "prediction" else unit(path, state) for state in states]).float().cpu()
        found = [(state.step, seed, float(path.ratio(state.t))) for state, seed in self._known(states, parts)]
        order = sorted(range(len(found)), key=lambda index: found[index][:2])  # whatever the batches were
        steps, seeds, sigmas = zip(*(found[index] for index in order), strict=True)
        columns = {
            "set": [self.set] * len(order),
            "sample": [self.prompt_id] * len(order),
            "population": [self.prompt_id] * len(order),
            "seed": seeds,
            "step": steps,
            "num_inference_steps": [self.num_inference_steps] * len(order),
            "last": [one == self.num_inference_steps for one in steps],
            "sigma": sigmas,
            "guidance_scale": [self.guidance_scale] * len(order),
        }
        latents = latents[order]
        return Taken(latents, decoder(model), columns, _shown(rig, decoder(model), latents))

    def _known(self, states: Sequence[State], parts: Sequence[tuple[int, ...]]) -> Iterator[tuple[State, int]]:
        """Each row of the states, part by part, with its seed."""
        per_part = len(states) // len(parts)
        for index, state in enumerate(states):
            yield from ((state, seed) for seed in parts[index // per_part])


@dataclass(frozen=True)
class Plane:
    """Points `begin` to `end` of a slice, row by row, from the record of its anchors."""

    anchors: Cell
    name: str
    size: int
    margin: float
    begin: int
    end: int
    shown: int  # pictures along each side

    @property
    def rows(self) -> int:
        return self.end - self.begin

    def inputs(self) -> tuple[Cell, ...]:
        return (self.anchors,)

    def cost(self) -> Cost:
        return Cost(decodings=self.rows)

    def take(self, rig: Rig, model: Model, *records: pa.Table) -> Taken:
        points = torch.from_numpy(np.array(records[0]["latent"].to_pylist(), np.float64))
        shape = tuple(records[0]["shape"][0].as_py())
        origin, basis, at = plane(points)
        x, y, indices = self._grid(at)
        flat = origin + torch.from_numpy(np.stack([x, y], 1)) @ basis
        latents = flat.float().reshape(-1, *shape)
        rows, columns = np.divmod(indices, self.size)
        lines = np.linspace(0, self.size - 1, min(self.shown, self.size)).round()
        kept = np.isin(rows, lines) & np.isin(columns, lines)
        return Taken(
            latents,
            decoder(model),
            {"set": [self.name] * self.rows, "sample": _points(self.name, indices), "x": x.tolist(), "y": y.tolist()},
            _shown(rig, decoder(model), latents[kept]) if kept.any() else None,
            tuple(bool(one) for one in kept),
        )

    def _grid(self, at: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Coordinates in the plane of the points of this cell, and their numbers."""
        low, high = at.min(0).values.numpy(), at.max(0).values.numpy()
        wider = self.margin / 2 * (high - low)
        indices = np.arange(self.begin, self.end)
        rows, columns = np.divmod(indices, self.size)
        sides = [np.linspace(low[i] - wider[i], high[i] + wider[i], self.size) for i in (0, 1)]
        return sides[0][columns], sides[1][rows], indices


@dataclass(frozen=True)
class Grid:
    """Points `begin` to `end` of a denoiser's field at its one level, row by row."""

    field: Field
    begin: int
    end: int

    @property
    def rows(self) -> int:
        return self.end - self.begin

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        return Cost(evaluations=self.rows)

    def take(self, rig: Rig, model: Model, *records: pa.Table) -> Taken:
        assert model.shape is not None
        assert model.path is not None
        ticks, indices = np.linspace(-self.field.span, self.field.span, self.field.size), np.arange(self.begin, self.end)
        rows, columns = np.divmod(indices, self.field.size)
        t = float(model.path.time(self.field.sigmas[0]))
        scale = float((model.path.alpha(t).square() + model.path.sigma(t).square()).sqrt())
        latents = torch.from_numpy(np.stack([ticks[columns], ticks[rows]], 1)) @ _axes(math.prod(model.shape)) * scale
        places = {
            "set": [self.field.name] * self.rows,
            "sample": _points(f"{self.field.name} at {self.field.sigmas[0]:g}", indices),
            "x": ticks[columns].tolist(),
            "y": ticks[rows].tolist(),
            "sigma": [float(model.path.ratio(t))] * self.rows,
        }
        return Taken(latents.float().reshape(-1, *model.shape), field_map(model, self.field, t), places)


def plane(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The plane through three points [3, E]: the first as origin, an orthonormal basis [2, E], and the points' coordinates [3, 2].

    Raises UserError for points on one line.
    """
    along, across = points[1] - points[0], points[2] - points[0]
    first = along / along.norm()
    second = across - (across @ first) * first
    if not bool(second.norm() > 1e-5 * max(along.norm(), across.norm())):
        raise UserError("the three anchors of a slice lie on one line, or two are the same: choose others")
    basis = torch.stack([first, second / second.norm()])
    return points[0], basis, (points - points[0]) @ basis.T


def _axes(size: int) -> Tensor:
    """Two orthonormal directions [2, E]: the axes themselves where there are two."""
    if size == 2:
        return torch.eye(2, dtype=torch.float64)
    normal = rng.stream(f"{ROLE}.plane", 0).standard_normal((size, 2))
    return torch.from_numpy(haar(normal).T.copy())


def _with(rig: Rig, model: Model) -> Rig:
    return rig if model is rig.model else Rig(model, rig.embedders, rig.batch_size)


def _shown(rig: Rig, f: Map, latents: Tensor) -> Tensor:
    """What a map to images in [-1, 1] gives, as images in [0, 1] before any clamping, float32 on the CPU."""
    with torch.no_grad():
        return torch.cat([f(part.to(rig.model.device)).float().cpu() / 2 + 0.5 for part in latents.split(rig.batch_size)])


def _points(name: str, indices: np.ndarray[Any, Any]) -> list[str]:
    return [f"{name} {index}" for index in indices.tolist()]
