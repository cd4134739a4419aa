"""Images made of mixtures: one cell a group, scheme and size, with the same draws in every scheme."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.errors import UserError
from diffprobe.inversion import Inversion
from diffprobe.measures import similarity
from diffprobe.measures.interpolation import Mixture, Scheme, effective_number, mix, signature
from diffprobe.model import Rig
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.interpolation.columns import lists, numbers, picture
from diffprobe.probes.interpolation.inversions import Pool
from diffprobe.probes.interpolation.latents import ROLE, Origin, latents_of, matrix, mixed_states, replayed, scale_of, sides
from diffprobe.probes.looks import decode, features, flaw, vectors

Kind = Literal["centroid", "random"]


@dataclass(frozen=True)
class Mixtures:
    """Images made from mixtures of `n` of a group's latents, one a draw, by one scheme.

    A draw takes the first n of its own order of the group, so that what n = 2 mixes is a part of what n = 4 does; weights are
    equal for a "centroid", uniform on the simplex for "random". Neither depends on the scheme. Distances are from the mean embedding
    of `reference`, the group's images.
    """

    version: ClassVar[int] = 1
    group: str
    origin: Origin
    prompt: str
    pool: Pool
    reference: Pool
    scheme: str
    kept: int
    kind: Kind
    n: int
    draws: tuple[int, ...]
    seed: int
    how: Inversion
    guidance_scale: float
    keep: int

    def inputs(self) -> tuple[Cell, ...]:
        return (self.pool,) if self.reference == self.pool else (self.pool, self.reference)

    def cost(self) -> Cost:
        n = len(self.draws)
        return Cost(n, n * sides(self.guidance_scale) * self.how.num_inference_steps, n, n * 900 + 4_000)

    def measure(self, rig: Rig, *records: pa.Table) -> pa.Table:
        path = rig.model.path
        assert path is not None
        rows, reference = records[0], records[-1]
        members, weights = self._drawn(len(rows))
        units, first = latents_of(rows), path.levels(self.how.num_inference_steps)[0]
        scheme = Scheme.parse(self.scheme)  # of the members alone: some schemes depend on how many there are, whatever their weights
        parts = [
            mix(units[own], torch.from_numpy(row[None, own]), scheme, kept=max(1, self.kept))
            for own, row in zip(members, weights, strict=True)
        ]
        found = Mixture(*(torch.cat(column) for column in zip(*parts, strict=True)))
        latents = found.latents * scale_of(path, first)
        nothing = mixed_states(rows, weights)
        clean = replayed(rig, latents, [self.prompt] * len(latents), self.how, self.guidance_scale, nothing)
        shown = decode(rig, clean)
        flags = [flaw(image) for image in shown]
        told = signature(found.latents)
        columns: dict[str, Any] = {
            **self._names(),
            "draw": list(self.draws),
            "members": pa.array([list(row) for row in members], pa.list_(pa.int64())),
            "effective_n": numbers(effective_number(torch.from_numpy(weights))),
            "before": numbers(found.before),
            "amplification": numbers(found.amplification),
            "channel_mean": lists(told.channel_mean),
            "norm_after": numbers(told.norm),
            "flag": pa.array(flags, pa.string()),
            **self._looks(rig, shown, flags, reference),
        }
        return pa.table(columns)

    def _names(self) -> dict[str, Any]:
        scheme = Scheme.parse(self.scheme)
        values = {
            "group": self.group,
            "origin": self.origin,
            "prompt": self.prompt,
            "scheme": self.scheme,
            "norm": scheme.norm,
            "mean": scheme.mean,
            "kind": self.kind,
            "n": self.n,
            "num_inference_steps": self.how.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }
        return {name: [value] * len(self.draws) for name, value in values.items()}

    def _drawn(self, size: int) -> tuple[list[list[int]], npt.NDArray[np.float64]]:
        """The members of each draw, as indices into the pool, and the weights [draws, pool]."""
        if self.n > size:
            raise UserError(f"only {size} latents of '{self.group}' ({self.origin}) are finite: {self.n} cannot be mixed")
        weights, members = np.zeros((len(self.draws), size)), list[list[int]]()
        for row, draw in enumerate(self.draws):
            chosen = rng.stream(f"{ROLE}.members", self.seed, draw).permutation(size)[: self.n]
            even = np.full(len(chosen), 1 / len(chosen))
            mixed = rng.stream(f"{ROLE}.weights", self.seed, self.n, draw).dirichlet(np.ones(len(chosen)))
            weights[row, chosen] = even if self.kind == "centroid" else mixed
            members.append([int(index) for index in chosen])
        return members, weights

    def _looks(self, rig: Rig, shown: Tensor, flags: list[str | None], reference: pa.Table) -> dict[str, Any]:
        clean = torch.where(shown.isfinite(), shown, 0.5).clamp(0, 1)
        columns: dict[str, Any] = {"sharpness": numbers(similarity.sharpness(clean), flags=flags)}
        for name, one in rig.embedders.items():
            found = features(rig, one, clean)
            columns[f"distance:{name}"] = numbers(_from_mean(found, reference, f"feature:{name}"), flags=flags)
            columns[f"feature:{name}"] = vectors(found)
        kept = [None if flag or draw >= self.keep else picture(image) for image, flag, draw in zip(clean, flags, self.draws, strict=True)]
        return {**columns, "picture": pa.array(kept, pa.binary())}


def _from_mean(found: Tensor, reference: pa.Table, column: str) -> Tensor:
    """The cosine distance [B] of features from the mean direction of the reference's; nan where that has none."""
    if column not in reference.column_names or not len(reference):
        return torch.full((len(found),), math.nan)
    known = torch.nn.functional.normalize(torch.from_numpy(matrix(reference[column])).double(), dim=-1)
    return similarity.cosine_distance(found.double().cpu(), known.mean(0).expand(len(found), -1))
