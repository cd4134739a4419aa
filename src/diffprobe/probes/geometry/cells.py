"""What the geometry probe measures: latents wherever they come from, each with the descriptors of the map there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from diffprobe import images
from diffprobe.errors import UserError
from diffprobe.images import Picture
from diffprobe.measures import similarity
from diffprobe.model import Model, Rig
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.geometry.descriptors import NUMBERS, Described, How, describe
from diffprobe.probes.geometry.maps import sample
from diffprobe.probes.geometry.places import Place, plane
from diffprobe.probes.looks import LOSSLESS, decode, encoded, features, flaw, native, vectors, webp

_HELD = "geometry.checkpoint"
_READ = frozenset({"codec", "denoiser", "path", "condition"})  # what is measured of a model
#: The columns that tell samples apart, in every record whatever the place; null where they do not apply.
PLACE = {
    "set": pa.string(),
    "sample": pa.string(),
    "population": pa.string(),
    "seed": pa.int64(),
    "step": pa.int64(),
    "num_inference_steps": pa.int64(),
    "last": pa.bool_(),
    "sigma": pa.float64(),
    "guidance_scale": pa.float64(),
    "x": pa.float64(),
    "y": pa.float64(),
    "error": pa.float64(),
}


@dataclass(frozen=True)
class Samples:
    """The descriptors at the latents of one place, with the images there in the eyes of the instruments.

    `checkpoint` names one of the model's; None is the model itself. `spectra`: whether singular values are kept.
    """

    version: ClassVar[int] = 1
    place: Place
    how: How
    checkpoint: str | None
    keep: bool
    spectra: bool

    def inputs(self) -> tuple[Cell, ...]:
        return self.place.inputs()

    def cost(self) -> Cost:
        n, how = self.place.rows, self.how
        # A backward pass has a forward's price; of the projections that a precision may take, half.
        passes = 2 * how.directions * max(1, len(how.projections) // (2 if how.precision else 1)) + 4 * how.dims
        size = 120 + (4 * how.directions + 2_500 if self.spectra else 0) + 4_500 * self.keep
        return self.place.cost() + Cost(samples=n, decodings=n * passes, bytes=n * size + 4_000)

    def measure(self, rig: Rig, *records: pa.Table) -> pa.Table:
        model = at_checkpoint(rig, self.checkpoint)
        taken = self.place.take(rig, model, *records)
        found = describe(rig, taken.map, taken.latents.to(model.device), self.how)
        flags = [_flag(found, i, None if taken.kept else taken.seen) for i in range(len(taken.latents))]
        columns: dict[str, Any] = {name: pa.array(taken.columns.get(name, [None] * len(flags)), kind) for name, kind in PLACE.items()}
        columns |= {
            "checkpoint": pa.array([self.checkpoint] * len(flags), pa.string()),
            "weights": pa.array([model.identity.get("weights")] * len(flags), pa.string()),
            "flag": pa.array(flags, pa.string()),
            "directions": [found.directions] * len(flags),
            "projection_seed": [self.how.projections[0]] * len(flags),
            "latent_size": [found.latent_size] * len(flags),
            "output_size": [found.output_size] * len(flags),
            "units": [found.units] * len(flags),
            **{name: _column(found.numbers[name], flags) for name in NUMBERS},
        }
        if self.spectra:
            columns["spectrum"] = _lists(found.spectrum)
        if taken.seen is not None:
            columns |= self._looks(rig, taken.seen, flags, taken.kept)
        return pa.table(columns)

    def _looks(self, rig: Rig, seen: Tensor, flags: list[str | None], kept: tuple[bool, ...]) -> dict[str, Any]:
        """Features and scores of the images, and their pictures; of a slice or a field, whose images are few, the pictures alone."""
        clean = torch.where(seen.isfinite(), seen, 0.5).clamp(0, 1)
        if kept:
            shown = iter(clean)
            return {
                "picture": pa.array([_webp(next(shown), flag) if one else None for one, flag in zip(kept, flags, strict=True)], pa.binary())
            }
        columns: dict[str, Any] = {"sharpness": _column(similarity.sharpness(clean).numpy(), flags)}
        columns |= {f"feature:{name}": vectors(features(rig, one, clean)) for name, one in rig.embedders.items()}
        for name, scorer in rig.scorers.items():
            scores = torch.cat([scorer(part) for part in clean.split(rig.batch_size)])
            columns[f"score:{name}"] = _column(scores.double().numpy(), flags)
        pictures = [_webp(image, flag) if self.keep else None for image, flag in zip(clean, flags, strict=True)]
        return {**columns, "picture": pa.array(pictures, pa.binary())}


@dataclass(frozen=True)
class Anchor:
    """One corner of a slice: an image of a set, or a prompt to draw a sample from."""

    name: str
    picture: Picture | None


@dataclass(frozen=True)
class Anchors:
    """The latents of a slice's three anchors, with their pictures."""

    version: ClassVar[int] = 1
    slice: str
    anchors: tuple[Anchor, ...]
    num_inference_steps: int
    guidance_scale: float
    resolution: int | None

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        drawn = sum(anchor.picture is None for anchor in self.anchors)
        return Cost(len(self.anchors), drawn * self.num_inference_steps * 2, len(self.anchors), 200_000)

    def measure(self, rig: Rig) -> pa.Table:
        latents = torch.cat([self._latent(rig, anchor) for anchor in self.anchors])
        shown, (_, _, at) = decode(rig, latents), plane(latents.double().flatten(1))
        return pa.table(
            {
                "slice": [self.slice] * len(latents),
                "anchor": [anchor.name for anchor in self.anchors],
                "x": at[:, 0].tolist(),
                "y": at[:, 1].tolist(),
                "latent": vectors(latents.flatten(1)),
                "shape": [list(latents.shape[1:])] * len(latents),
                "picture": pa.array([webp(image.nan_to_num(0.5)) for image in shown], pa.binary()),
            }
        )

    def _latent(self, rig: Rig, anchor: Anchor) -> Tensor:
        if anchor.picture is None:
            return sample(rig.model, anchor.name, (0,), self.num_inference_steps, self.guidance_scale)
        return encoded(rig, rig.model, images.load([anchor.picture], self.resolution or native(rig.model)))


def at_checkpoint(rig: Rig, name: str | None) -> Model:
    """The rig's model, or it at one of its checkpoints, of which the last is kept. Raises UserError for one that is another model."""
    if name is None:
        return rig.model
    if name not in rig.model.checkpoints:
        raise UserError(f"'{rig.model.name}' has no checkpoint '{name}': it has {', '.join(rig.model.checkpoints) or 'none'}")
    held, found = rig.memo(_HELD, lambda: ("", rig.model))
    if held != name:
        rig.memo.keep(_HELD, ("", rig.model))  # the last one goes before the next one comes
        del found
        found = rig.model.checkpoints[name]()
        lacking = (rig.model.capabilities & _READ) - found.capabilities
        if lacking or found.shape != rig.model.shape:
            what = f"no {' and no '.join(sorted(lacking))}" if lacking else f"latents of shape {found.shape}, not {rig.model.shape}"
            raise UserError(f"the checkpoint '{name}' of '{rig.model.name}' has {what}: it must be the same model at another moment")
        rig.memo.keep(_HELD, (name, found))
    return found


def _webp(image: Tensor, flag: str | None) -> bytes | None:
    return None if flag else webp(image, lossless=max(image.shape[-2:]) <= LOSSLESS)


def _flag(found: Described, index: int, seen: Tensor | None) -> str | None:
    if seen is not None and (bad := flaw(seen[index])) == "not finite":
        return bad
    if not np.isfinite(found.numbers["trace"][index]):
        return "not finite"
    return "dead: every derivative is 0" if found.numbers["rank"][index] == 0 else None


def _column(values: npt.NDArray[Any], flags: list[str | None]) -> pa.Array:
    """Numbers as a column, null where the sample does not count or the number does not exist."""
    numbers = [None if flag or not np.isfinite(value) else float(value) for value, flag in zip(values, flags, strict=True)]
    return pa.array(numbers, pa.float64())


def _lists(matrix: npt.NDArray[np.float64]) -> pa.ListArray:
    """Rows as a column of lists in single precision."""
    return pa.array(list(matrix.astype(np.float32)), pa.list_(pa.float32()))
