"""The first cells of the interpolation probe: latents at the noisiest level, each made once, and how alike they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from diffprobe import images, rng
from diffprobe.errors import UserError
from diffprobe.images import Picture
from diffprobe.inversion import Inversion, invert
from diffprobe.measures import similarity
from diffprobe.measures.interpolation import Signature, alignment, signature
from diffprobe.model import Rig
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.interpolation.columns import finite, lists, numbers, picture
from diffprobe.probes.interpolation.latents import (
    Begun,
    Origin,
    generated,
    kept_states,
    latents_of,
    pictured,
    replayed,
    role,
    scale_of,
    sides,
)
from diffprobe.probes.looks import decode, features, native, vectors
from diffprobe.sampling import noised, start

_GATHERED = ("group", "origin", "image", "channel_mean", "latent", "shape", "nothing", "nothing_shape")


@dataclass(frozen=True)
class Inversions:
    """A few latents of a group at the noisiest level, what betrays that they are no pure noise, and the error of going back.

    `sources` are the group's images, `seeds` the noise of what needs some. `source_prompt` is that of the inversion, `prompt` the
    group's own, under which images are generated, at `guidance_scale`; `perturbation` is then added to their pixels. The first
    `replayed` are denoised again. The record holds latents in units in which pure noise has variance 1.
    """

    version: ClassVar[int] = 1
    group: str
    origin: Origin
    prompt: str
    source_prompt: str
    sources: tuple[Picture, ...]
    seeds: tuple[int, ...]
    how: Inversion
    guidance_scale: float
    perturbation: float
    replayed: int
    resolution: int | None
    keep: bool

    @property
    def count(self) -> int:
        """How many latents."""
        return len(self.sources or self.seeds)

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        steps, n = self.how.num_inference_steps, self.count
        inverted, drawn = self.origin in {"images", "generated"}, self.origin == "generated"
        down = sides(self.how.guidance_scale)
        evaluations = steps * (n * drawn * sides(self.guidance_scale) + n * inverted * self.how.evaluations + self.replayed * down)
        return Cost(n, evaluations, n * drawn + 2 * inverted * self.replayed, n * 9_000 + 4_000)

    def measure(self, rig: Rig) -> pa.Table:
        path = rig.model.path
        assert path is not None
        first = path.levels(self.how.num_inference_steps)[0]
        scale, begun, nothing = scale_of(path, first), self._begun(rig), None
        residual = torch.full((self.count,), torch.nan, dtype=torch.float64)
        if begun is None:
            assert rig.model.shape is not None
            latents = start(path, first, rig.model.shape, self.seeds, role("noise", self.group))
        elif self.origin == "noised":
            latents = noised(path, begun.encoded, first, rng.normal(begun.encoded.shape[1:], role("noised", self.group), self.seeds))
        else:
            latents, residual, nothing = self._inverted(rig, begun.encoded)
        units, sound = latents / scale, latents.flatten(1).isfinite().all(1)
        flags, told = [None if fine else "not finite" for fine in sound.tolist()], self._told(units, sound)
        columns: dict[str, Any] = {
            **self._names(),
            "flag": pa.array(flags, pa.string()),
            "latent": vectors(units.flatten(1)),
            "shape": [list(units.shape[1:])] * len(units),
            "alpha_T": [float(path.alpha(first))] * len(units),
            "sigma": [finite(float(path.ratio(first)))] * len(units),
            **{name: numbers(getattr(told, name)) for name in ("norm", "kurtosis", "correlation")},
            **{name: lists(getattr(told, name)) for name in ("channel_mean", "channel_std", "spectrum")},
            "leak": self._leak(begun, float(path.alpha(first)) / scale),
            "residual": numbers(residual),
            **self._errors(rig, begun, latents, nothing),
            **self._looks(rig, begun, flags),
        }
        return pa.table(columns if nothing is None else {**columns, **kept_states(nothing)})

    def _begun(self, rig: Rig) -> Begun | None:
        if self.origin == "noise":
            return None
        if self.origin == "generated":
            return generated(rig, self.group, self.prompt, self.seeds, self.how, (self.guidance_scale, self.perturbation))
        return pictured(rig, self.sources, self.resolution or native(rig.model))

    def _inverted(self, rig: Rig, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The latents, nan where the encoding is not finite; how far the fixed point missed; and what null-text tuned."""
        sound = encoded.flatten(1).isfinite().all(1)
        batches = encoded[sound].split(rig.batch_size)
        parts = [invert(rig.model, part, [self.source_prompt] * len(part), self.how, lost=True) for part in batches if len(part)]
        latents, residual = torch.full_like(encoded, torch.nan), torch.full((len(encoded),), torch.nan, dtype=torch.float64)
        if parts:
            latents[sound] = torch.cat([part.latents for part in parts])
            residual[sound] = torch.cat([part.residual for part in parts])
        tuned = [part.nothing for part in parts if part.nothing is not None]
        if not tuned:
            return latents, residual, None
        states = torch.cat(tuned, 1)
        nothing = torch.full((len(states), len(encoded), *states.shape[2:]), torch.nan)
        nothing[:, sound] = states
        return latents, residual, nothing

    def _told(self, units: Tensor, sound: Tensor) -> Signature:
        """The signatures of the latents that are finite; nan for the others."""
        if not sound.any():
            raise UserError(f"no latent of '{self.group}' ({self.origin}) is finite: load the model in float32, or look at its codec")
        found = signature(units[sound])
        whole = [torch.full((len(units), *values.shape[1:]), torch.nan, dtype=values.dtype) for values in found]
        for values, known in zip(whole, found, strict=True):
            values[sound] = known
        return Signature(*whole)

    def _names(self) -> dict[str, Any]:
        n, pictures = self.count, self.origin in {"images", "noised"}
        names = [images.name(source) for source in self.sources] if pictures else [f"{self.origin} {seed}" for seed in self.seeds]
        return {
            "group": [self.group] * n,
            "origin": [self.origin] * n,
            "image": names,
            "seed": pa.array(self.seeds, pa.int64()) if self.seeds else pa.nulls(n, pa.int64()),
            "prompt": [self.source_prompt] * n,
            "method": [self.how.method] * n,
            "num_inference_steps": [self.how.num_inference_steps] * n,
        }

    def _leak(self, begun: Begun | None, share: float) -> pa.Array:
        if begun is None:
            return pa.array([None] * self.count, pa.list_(pa.float64()))
        return lists(share * begun.encoded.double().flatten(2).mean(2))

    def _errors(self, rig: Rig, begun: Begun | None, latents: Tensor, nothing: Tensor | None) -> dict[str, Any]:
        """How far the clean latents and the pictures are from where they began, once the inversion is undone."""
        n, k = self.count, self.replayed
        if begun is None or self.origin == "noised" or k == 0:
            return {name: pa.array([None] * n, pa.float64()) for name in ("reconstruction", "reconstruction_pixels")}
        tuned = None if nothing is None else nothing[:, :k]
        back = replayed(rig, latents[:k], [self.source_prompt] * len(latents[:k]), self.how, self.how.guidance_scale, tuned)
        clean = begun.encoded[:k]
        seen, again = (decode(rig, part).clamp(0, 1) for part in (clean, back))
        found = {
            "reconstruction": (back - clean).double().square().flatten(1).mean(1),
            "reconstruction_pixels": similarity.mse(seen, again),
        }
        return {name: numbers(values, n) for name, values in found.items()}

    def _looks(self, rig: Rig, begun: Begun | None, flags: list[str | None]) -> dict[str, Any]:
        if begun is None or self.origin == "noised":
            return {}
        columns = {f"feature:{name}": vectors(features(rig, one, begun.seen)) for name, one in rig.embedders.items()}
        pictures = [picture(image) if self.keep else None for image in begun.seen]
        return {**columns, "sharpness": numbers(similarity.sharpness(begun.seen)), "picture": pa.array(pictures, pa.binary())}


@dataclass(frozen=True)
class Pool:
    """The latents of a group that count, together: what mixes them reads this one record in place of many."""

    version: ClassVar[int] = 1
    group: str
    origin: Origin
    parts: tuple[Inversions, ...]

    def __hash__(self) -> int:
        """Of its ends alone: it stands in every mixture of the group, and a large group is slow to hash."""
        return hash((self.group, self.origin, len(self.parts), self.parts[0], self.parts[-1]))

    def inputs(self) -> tuple[Cell, ...]:
        return self.parts

    def cost(self) -> Cost:
        n = sum(cell.count for cell in self.parts)
        return Cost(bytes=5_000 * n + 4_000)

    def measure(self, rig: Rig, *records: pa.Table) -> pa.Table:
        rows = pa.concat_tables(records)
        rows = rows.filter(pc.is_null(rows["flag"]))
        if len(rows) < 2:
            raise UserError(f"{len(rows)} latents of '{self.group}' ({self.origin}) are finite: load the model in float32, or raise count")
        own = [name for name in rows.column_names if name in _GATHERED or name.startswith("feature:")]
        return pa.table({"index": list(range(len(rows))), **{name: rows[name] for name in own}})


@dataclass(frozen=True)
class Alignments:
    """How alike the latents of a group are: all inner products, whole and of their low frequencies, and every channel's mean."""

    version: ClassVar[int] = 1
    pool: Pool
    kept: int

    def inputs(self) -> tuple[Cell, ...]:
        return (self.pool,)

    def cost(self) -> Cost:
        n = sum(cell.count for cell in self.pool.parts)
        return Cost(bytes=16 * n * n + 4_000)

    def measure(self, rig: Rig, pool: pa.Table) -> pa.Table:
        found = alignment(latents_of(pool), kept=self.kept)
        return pa.table(
            {
                **{name: pool[name] for name in ("group", "origin", "image", "index", "channel_mean")},
                "gram": lists(found.gram),
                "gram_lowpass": lists(found.lowpass),
                "size": [int(found.size)] * len(pool),
                "area": [int(found.area)] * len(pool),
            }
        )
