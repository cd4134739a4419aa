"""The geometry probe: its settings and its plan."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal

from diffprobe import images
from diffprobe.errors import UserError, unknown
from diffprobe.images import Picture
from diffprobe.model import Model
from diffprobe.probes.base import Comparable, Findings, Load, Records
from diffprobe.probes.geometry.cells import Anchor, Anchors, Samples
from diffprobe.probes.geometry.compared import comparables
from diffprobe.probes.geometry.descriptors import How
from diffprobe.probes.geometry.places import Encodings, Grid, Place, Plane, Priors, Trajectories
from diffprobe.probes.geometry.settings import Field, Generated, Slice
from diffprobe.probes.geometry.summary import summarise
from diffprobe.probes.geometry.tables import Wanted
from diffprobe.probes.prompts import read_prompts

_CHUNK = 16  # samples a cell
_POINTS = 256  # points of a slice or a field a cell
_SHOWN = 9  # pictures along each side of a slice
_PROJECTIONS = 16  # at most, where a precision is asked for


@dataclass(frozen=True)
class Geometry:
    """How the decoder stretches and folds the space around a sample, and what that tells.

    `sets`: images to encode, 'world', 'inverted', 'strokes', 'shuffled', 'noise', a folder or a manifest, or 'name=<any of these>';
    the first is the reference that others are told from. `count`: of each (None: all of a folder). `priors`: latents of pure noise;
    with `prior_steps` the map is the whole chain of so many steps. `generated`, `slices`, `fields`: see `Generated`, `Slice`,
    `Field`. `checkpoints`: names of the model's checkpoints at which all of it is measured, in their order; empty: the model alone.
    `directions`: of the output, on which the Jacobian is projected, the same for every sample and model that share `projection_seed`;
    a latent with no more coordinates than that is described exactly. `projections`: how many such sets of directions; with
    `precision` further ones, until the standard error of psi is at most that. `radius` (in latent units) and `dims` set the
    neighbourhood of delta. `resolution`: the side in pixels that images are encoded at. `level_sets`: bins of psi and nu.
    """

    name: ClassVar[str] = "geometry"
    question: ClassVar[str] = "How does the decoder stretch, fold and flatten the space around a sample?"
    rows: ClassVar[str] = "Samples"
    aligned: ClassVar[tuple[str, ...]] = (
        *("sample", "set", "seed", "step", "num_inference_steps", "guidance_scale", "checkpoint"),
        *("directions", "latent_size", "output_size"),
    )
    free: ClassVar[frozenset[str]] = frozenset(
        {"sets", "count", "priors", "generated", "slices", "fields", "checkpoints", "keep_images", "level_sets", "level"}
    )
    cites: ClassVar[tuple[str, ...]] = (
        "Humayun, Amara, Vasconcelos, Ramachandran, Schumann, He, Heller, Farnadi, Rostamzadeh, Havaei: What Secrets Do Your Manifolds "
        "Hold? Understanding the Local Geometry of Generative Models, ICLR 2025. https://arxiv.org/abs/2408.08307",
        "Garrido, Balestriero, Najman, LeCun: RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations "
        "by Their Rank, ICML 2023.",
        "Humayun, Balestriero, Baraniuk: Deep Networks Always Grok and Here is Why, ICML 2024.",
    )
    method: ClassVar[str] = (
        "The Jacobian of the decoder, from latents in the denoiser's scale to images in [-1, 1], is projected on random orthonormal "
        "directions of the image, the same for every sample. Of its singular values, psi is the sum of logarithms (local scaling), nu "
        "the exponential of the entropy of their shares (local rank). delta counts the non-linearities of the network that change sign "
        "over a small neighbourhood of the latent (local complexity).\n\n"
        "What a projection sees depends on its size. With at least as many directions as the latent has coordinates psi is the log volume, "
        "and it is computed exactly. With far fewer, psi is half the number of directions times the logarithm of the mean squared gain "
        "Tr(J J^T)/D, less a term that the effective rank decides, and nu is a monotone function of that rank alone: both of which "
        "are given beside them.\n\n"
        "A change of scale g of latents or images shifts psi by the number of directions times log g. psi of two models can be compared "
        "where size, number and seed of the directions agree.\n\n"
        "A count of sign changes has a floor: rounding alone flips some. It is measured, at one latent of every cell, with a "
        "neighbourhood as small as the number format allows, and given beside the count.\n\n"
        "Intervals resample independent units: images, or the means of prompts where a set is generated from several. Whether a set is "
        "told from the reference is an AUROC, set against plain rivals on the same samples where both sides have them: the error of "
        "reconstruction, and the sharpness of the image."
    )

    sets: tuple[str, ...] = ("world", "inverted", "strokes", "noise")
    count: int | None = 100
    priors: int = 0
    prior_steps: int = 0
    generated: tuple[Generated, ...] = ()
    slices: tuple[Slice, ...] = ()
    fields: tuple[Field, ...] = ()
    checkpoints: tuple[str, ...] = ()
    directions: int = 120
    projections: int = 1
    projection_seed: int = 0
    precision: float | None = None
    radius: float = 0.01
    dims: int = 4
    resolution: int | None = None
    keep_images: int = 100
    level_sets: int = 5
    level: float = 0.95

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", float(self.radius))  # 1 and 1.0 are one setting, and must be one cell
        object.__setattr__(self, "precision", None if self.precision is None else float(self.precision))
        if not (self.sets or self.priors or self.generated or self.slices or self.fields):
            raise UserError("geometry needs somewhere to measure: 'sets', 'priors', 'generated', 'slices' or 'fields'")
        if (self.count is not None and self.count < 1) or self.priors < 0 or self.prior_steps < 0 or self.keep_images < 0:
            raise UserError("count must be at least 1, and priors, prior_steps and keep_images at least 0")
        if self.directions < 1 or self.projections < 1:
            raise UserError("directions and projections must be at least 1 (120 directions, one projection are usual)")
        if not 0 < self.radius < float("inf"):
            raise UserError(f"radius {self.radius:g} has no neighbourhood: give a length above 0, in latent units (0.01 is usual)")
        if self.dims < 1:
            raise UserError("dims must be at least 1 (4 are usual)")
        if self.precision is not None and not self.precision > 0:
            raise UserError("precision is the standard error of psi that is wanted, above 0; leave it out for one projection")
        if self.resolution is not None and (self.resolution < 8 or self.resolution % 8):
            raise UserError("resolution must be a multiple of 8 pixels, or left out for the pipeline's own")
        if self.level_sets < 2 or not 0 < self.level < 1:
            raise UserError("level_sets must be at least 2, and level between 0 and 1 (0.95 is usual)")
        labels = [images.label(spec) for spec in self.sets] + ["prior"] * bool(self.priors)
        labels += [one.name for group in (self.generated, self.slices, self.fields) for one in group]
        twice = next((name for index, name in enumerate(labels) if name in labels[:index]), None)
        if twice is not None:
            raise UserError(f"two places to measure are called '{twice}': give each a name of its own, as in 'name={twice}'")
        if len(set(self.checkpoints)) < len(self.checkpoints):
            raise UserError("a checkpoint comes twice: name each once")

    @classmethod
    def preset(cls, budget: Literal["quick", "standard", "paper"]) -> Geometry:
        """The probe at the size of a budget: seconds on a laptop, an hour there, and the study's 20,000 images a set."""
        if budget == "quick":
            return cls(sets=("world", "inverted", "noise"), count=12, directions=24)
        generated = (Generated(("scenes",), count=40, guidance_scale=(1.0, 5.0, 9.0), num_inference_steps=25, points=6),)
        slices = (Slice(("world:0", "world:1", "world:2"), size=24),)
        if budget == "standard":
            return cls(priors=50, generated=generated, slices=slices)
        return cls(count=20_000)

    @property
    def needs(self) -> frozenset[str]:
        """A codec for whatever is decoded; a denoiser for what is drawn or is itself described."""
        drawn = bool(self.generated) or any(anchor.picture is None for one in self.slices for anchor in anchors(one))
        decoded = bool(self.sets or self.priors or self.generated or self.slices)
        needs = {"codec"} if decoded else set()
        if drawn or self.fields or self.prior_steps:
            needs |= {"denoiser", "path"}
        return frozenset(needs | ({"condition"} if drawn else set()))

    def suited(self, model: Model) -> Geometry:
        """This probe without what needs a denoiser, or a codec, where the model has none and something is left to ask."""
        found = self
        if not {"denoiser", "path", "condition"} <= model.capabilities:
            kept = tuple(one for one in self.slices if all(anchor.picture is not None for anchor in anchors(one)))
            found = found._without(generated=(), slices=kept)
        if not {"denoiser", "path"} <= model.capabilities:
            found = found._without(fields=(), prior_steps=0)
        if model.codec is None:
            found = found._without(sets=(), priors=0, generated=(), slices=())
        return found

    def _without(self, **changes: object) -> Geometry:
        try:
            return replace(self, **changes)  # type: ignore[arg-type]
        except UserError:  # nothing would be left: what the model lacks is then told by name
            return self

    def check(self, model: Model) -> None:
        """Raise UserError where the model does not say what its latents look like, or lacks a checkpoint or a condition."""
        if model.shape is None and (self.priors or self.generated or self.slices or self.fields):
            raise UserError(f"geometry needs the shape of a latent, and '{model.name}' does not say it: set Model(shape=(C, h, w))")
        if self.sets and self.resolution is None and model.shape is None and model.editor is None:
            raise UserError(f"'{model.name}' does not say how large its images are: give `resolution`, or set Model(shape=(C, h, w))")
        for name in self.checkpoints:
            if name not in model.checkpoints:
                raise (
                    unknown("checkpoint", name, model.checkpoints)
                    if model.checkpoints
                    else UserError(f"'{model.name}' has no checkpoints: load it with `checkpoints`, or leave them out")
                )
        prompts = [read_prompts(one.prompts, one.count)[0].text for one in self.generated]
        prompts += [anchor.name for one in self.slices for anchor in anchors(one) if anchor.picture is None]
        prompts += [one.prompt for one in self.fields if one.prompt or model.condition is not None]
        if prompts and model.condition is None:
            raise UserError(f"'{model.name}' knows no prompts: leave `prompt` out of its fields")
        if prompts and model.condition is not None:
            model.condition(prompts)
        self._check_levels(model)

    def _check_levels(self, model: Model) -> None:
        """Raise UserError for steps and sigmas that the model's path does not have, and for half precision under a derivative."""
        path, steps = model.path, {self.prior_steps} - {0}
        steps |= {one.num_inference_steps for group in (self.generated, self.slices, self.fields) for one in group}
        if path is None or not (steps or self.fields):
            return
        for count in sorted(steps):
            try:
                path.levels(count)
            except ValueError as error:
                raise UserError(f"'{model.name}' cannot take {count} steps: {error}") from error
        for sigma in (sigma for one in self.fields for sigma in one.sigmas):
            low, high = float(path.ratio(path.end)), float(path.ratio(path.time(sigma)))
            if not sigma > low or abs(high / sigma - 1) > 0.01:
                near = f"above {low:.3g}" if not sigma > low else f"up to {high:.4g}"
                raise UserError(f"the noise of '{model.name}' has no level of sigma {sigma:g}: its levels are {near}")
        kind = model.identity.get("dtype", "float32")
        if kind not in ("float32", "float64") and (self.fields or self.prior_steps):
            raise UserError(f"a denoiser's Jacobian is lost in the rounding of {kind}: load the model with torch_dtype float32")

    def plan(self) -> Iterator[Samples | Anchors]:
        """Every place in order, at each checkpoint in turn."""
        seeds = tuple(range(self.projection_seed, self.projection_seed + (_PROJECTIONS if self.precision else self.projections)))
        how = How(self.directions, seeds, self.precision, self.radius, self.dims)
        for checkpoint in self.checkpoints or (None,):
            for place, keep in self._places():
                yield Samples(place, how, checkpoint, keep, not isinstance(place, Plane | Grid))

    def _places(self) -> Iterator[tuple[Place, bool]]:
        for spec in self.sets:
            name, sources = images.sets(spec, self.count)
            for begin in range(0, len(sources), _CHUNK):
                yield Encodings(name, tuple(sources[begin : begin + _CHUNK]), self.resolution), begin < self.keep_images
        for begin in range(0, self.priors, _CHUNK):
            yield Priors(tuple(range(begin, min(self.priors, begin + _CHUNK))), self.prior_steps), begin < self.keep_images
        for generated in self.generated:
            yield from self._generated(generated)
        for one in self.slices:
            named = anchors(one)
            drawn = any(anchor.picture is None for anchor in named)  # what no anchor needs is no part of the cell
            sampled = (one.num_inference_steps, one.guidance_scale) if drawn else (0, 0.0)
            corners = Anchors(one.name, named, *sampled, self.resolution)
            for begin in range(0, one.size**2, _POINTS):
                end = min(one.size**2, begin + _POINTS)
                yield Plane(corners, one.name, one.size, one.margin, begin, end, _SHOWN if self.keep_images else 0), False
        for field in self.fields:
            for sigma in field.sigmas:
                level = replace(field, sigmas=(sigma,))  # so that a further sigma leaves the others' cells as they are
                for begin in range(0, field.size**2, _POINTS):
                    yield Grid(level, begin, min(field.size**2, begin + _POINTS)), False

    def _generated(self, asked: Generated) -> Iterator[tuple[Trajectories, bool]]:
        prompts, chunk = read_prompts(asked.prompts, asked.count), max(1, _CHUNK // asked.points)
        kept = 0
        for index, prompt in enumerate(prompts):
            own = tuple(range(index * asked.samples, (index + 1) * asked.samples))  # prompts share no noise, so their means are independent
            for scale in asked.guidance_scale:
                for begin in range(0, asked.samples, chunk):
                    seeds = own[begin : begin + chunk]
                    place = Trajectories(
                        asked.name, prompt.id, prompt.text, seeds, asked.num_inference_steps, scale, asked.points, asked.at
                    )
                    yield place, kept < self.keep_images
                    kept += place.rows

    def load(self, batch_size: int) -> Load:
        """The graph of the map, of as many rows as memory holds; neighbourhoods of a latent without it; and batches as everywhere."""
        decoded, drawn = bool(self.sets or self.priors or self.generated or self.slices), bool(self.generated or self.slices)
        rows, corners = min(batch_size, _CHUNK), 2 * self.dims
        chain = max(self.prior_steps, bool(self.fields))
        return Load(
            network=max(rows * drawn, corners * bool(chain)),
            encode=rows * bool(self.sets or self.slices),
            decode=max(rows, corners) * decoded,
            graph=_CHUNK * self.directions,
            directions=self.directions,
            chain=chain,
            side=self.resolution or 0,
            models=1 + bool(self.checkpoints),
        )

    def summarise(self, records: Records) -> Findings:
        """Estimates, verdicts, charts and gallery from the records alone."""
        return summarise(self._wanted(), records)

    def comparables(self, records: Records) -> tuple[Comparable, ...]:
        """psi, nu and delta of every sample, a set at a time."""
        return comparables(self._wanted(), records)

    def _wanted(self) -> Wanted:
        sets = tuple(images.label(spec) for spec in self.sets)
        drawn = tuple(one.name for one in self.generated)
        maps = tuple(one.name for group in (self.slices, self.fields) for one in group)
        return Wanted(sets + ("prior",) * bool(self.priors) + drawn, sets, maps, self.checkpoints, self.level_sets, self.level)


def anchors(one: Slice) -> tuple[Anchor, ...]:
    """The anchors of a slice, as images of sets or as prompts."""
    return tuple(Anchor(name, picture(name)) for name in one.anchors)


@lru_cache(maxsize=64)
def picture(anchor: str) -> Picture | None:
    """Image number n of a set, for '<set>:<n>'; None for anything else, which is a prompt. Raises UserError for a set that has none."""
    spec, colon, number = anchor.rpartition(":")
    drawn = images.is_drawn(spec)
    if not colon or not number.isdigit() or (" " in spec and not os.path.exists(spec)):
        return None
    _, sources = images.sets(spec, int(number) + 1 if drawn else None)
    if int(number) >= len(sources):
        raise UserError(f"'{anchor}' is not there: the set has {len(sources)} images, counted from 0")
    return sources[int(number)]
