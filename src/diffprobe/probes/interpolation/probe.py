"""The interpolation probe: its settings and its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, Literal, cast, get_args

from diffprobe.errors import UserError, unknown
from diffprobe.inversion import METHODS, Inversion, check_optimisable, parts_of
from diffprobe.measures.interpolation import MEANS, NORMS, Scheme
from diffprobe.model import Model
from diffprobe.probes.base import Comparable, Findings, Load, Records
from diffprobe.probes.interpolation.compared import comparables
from diffprobe.probes.interpolation.groups import WORLD, Group, groups
from diffprobe.probes.interpolation.inversions import Alignments, Inversions, Pool
from diffprobe.probes.interpolation.latents import ORIGINS, Origin
from diffprobe.probes.interpolation.mixtures import Kind, Mixtures
from diffprobe.probes.interpolation.offsets import Offsets
from diffprobe.probes.interpolation.summary import summarise
from diffprobe.probes.interpolation.tables import Wanted
from diffprobe.probes.looks import native

_CHUNK = 16  # latents, or draws, a cell
_PICTURED, _INVERTED = {"images", "noised"}, {"images", "generated"}  # origins that begin with the group's images, and that are inverted
_SCHEMES = ("none", "fix", "nin", "slerp", "lol", "blend", "fix/global", "fix/channel", "nin/channel", "lol/channel", "nin/lowpass")


@dataclass(frozen=True)
class Interpolation:
    """Whether latents can be inverted and mixed without the images degenerating.

    `images`: 'world', whose `groups` are what scenes show ('snow', 'red circle'), or a folder or manifest, whose groups are its
    folders or domains (none named: all). `count` images of each are inverted under `source_prompt` (None: the group's own prompt, which
    for files is `prompt` with '{group}' filled in). `inversion`: ddim (Euler's step on a flow), fixed-point, null-text or
    negative-prompt; `iterations` of the fixed point a step, or of null-text's optimiser (0: the method's usual number).

    `schemes`: how latents are mixed, '<norm>' or '<norm>/<mean>'; of `sizes` latents, `draws` times each, with equal weights ("centroid")
    or "random" ones. `mixed`: of which origins mixtures are made; `controls`: which others are set beside the images, `control_count` of
    each (None: count): what the model generated and was then inverted ("generated", with noise of standard deviation `perturbation`
    added to the pixels), encodings noised forwards ("noised"), and "noise". `kept`: frequencies along each axis that a low-pass keeps.
    `guidance_scale` is that of generating (of null-text also that of tuning). `offsets`: b of the offset experiment, with
    `offset_samples` seeds. `replayed`: of each group so many are denoised again, which tells the error. `keep_images`: draws whose
    pictures are kept. `margin`: the rise in cosine distance beyond its own smallest size from which a scheme is said to degenerate.
    """

    name: ClassVar[str] = "interpolation"
    question: ClassVar[str] = "Can latents be inverted and mixed without the images degenerating, and with which correction?"
    needs: ClassVar[frozenset[str]] = frozenset({"path", "denoiser", "codec", "condition"})
    rows: ClassVar[str] = "Mixtures"
    aligned: ClassVar[tuple[str, ...]] = ("group", "origin", "kind", "n", "draw", "scheme")
    free: ClassVar[frozenset[str]] = frozenset(
        {"groups", "schemes", "sizes", "draws", "mixtures", "controls", "mixed", "offsets", "offset_samples", "replayed"}
        | {"keep_images", "margin", "level"}
    )
    cites: ClassVar[tuple[str, ...]] = (
        "Landolsi, Kahl: Addressing degeneracies in latent interpolation for diffusion models, 2025. https://arxiv.org/abs/2505.07481",
        "Song, Meng, Ermon: Denoising Diffusion Implicit Models, ICLR 2021.",
        "Mokady, Hertz, Aberman, Pritch, Cohen-Or: Null-text Inversion for Editing Real Images using Guided Diffusion Models, CVPR 2023.",
        "Bodin, Stere, Margineantu, Ek, Moss: Linear combinations of latents in generative models: subspaces and beyond, ICLR 2025.",
        "Buss, Fillmore: Spherical averages and applications to spherical splines and interpolation, ACM Transactions on Graphics, 2001.",
    )
    method: ClassVar[str] = (
        "Images are encoded, and the deterministic sampler is run backwards under the group's prompt and without guidance, up to the "
        "noisiest level of the same steps: inverted latents. Mixtures of them are denoised under the prompt and decoded. Everything is "
        "measured in units in which pure noise has variance 1, and mixed in float32 with sums in float64.\n\n"
        "What latents of different images share does not average away in a mixture while the rest does, and a scheme that restores the "
        "norm amplifies it. The shared power b^2 is the mean inner product of two images' latents over their number of entries, an "
        "unbiased estimate from all pairs; the same product of their channel means, or low frequencies, tells where it lies. By it the "
        "offset of a mixture of N grows as the root of N / (1 + N b^2) and levels off. The law is foretold from the pairs without a free "
        "parameter, and fitted beside it.\n\n"
        "Controls tell causes apart: pure noise shares nothing; encodings noised forwards share what the scheduler's last level leaves of "
        "the image (a terminal signal-to-noise ratio above 0); images that the model generated, disturbed, encoded and inverted share "
        "what that way adds, with no mismatch between images and model.\n\n"
        "The same draw mixes the same images with the same weights in every scheme, so schemes are compared in pairs; a larger N adds "
        "images to those of a smaller one. Images are scored by the cosine distance from the mean embedding of the group's own images, "
        "by set distances, and by sharpness, since bland images lie near a mean. The images that a mixture is made of are among those it "
        "is scored against, which flatters small N. Intervals of scores resample draws and speak of this pool of images, but that of "
        "the kernel distance, which counts the images' sampling too; those of the shared power resample images."
    )

    images: str = WORLD
    groups: tuple[str, ...] = ("snow", "night")
    count: int = 128
    prompt: str = "a photo of a {group}"
    source_prompt: str | None = None
    inversion: str = "ddim"
    num_inference_steps: int = 50
    iterations: int = 0
    schemes: tuple[str, ...] = _SCHEMES
    sizes: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    draws: int = 16
    mixtures: tuple[str, ...] = ("centroid", "random")
    controls: tuple[str, ...] = ("generated", "noised", "noise")
    control_count: int | None = None
    mixed: tuple[str, ...] = ("images", "noise")
    perturbation: float = 0.01
    kept: int = 3
    guidance_scale: float = 1.0
    offsets: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)
    offset_samples: int = 16
    replayed: int = 16
    resolution: int | None = None
    keep_images: int = 1
    seed: int = 0
    margin: float = 0.05
    level: float = 0.95

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "perturbation", "margin"):  # 1 and 1.0 are one setting, and must be one cell
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "offsets", tuple(float(offset) for offset in self.offsets))
        if self.images == WORLD and not self.groups:
            raise UserError("groups of 'world' are what its scenes show: name some, such as ['snow', 'red circle']")
        for name in ("groups", "schemes", "sizes", "mixtures", "controls", "mixed", "offsets"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"interpolation's '{name}' names a value twice: {', '.join(map(str, values))}")
        self._check_names()
        self._check_numbers()

    def _check_names(self) -> None:
        for name in (*self.controls, *self.mixed):
            if name not in ORIGINS:
                raise unknown("origin of latents", name, ORIGINS)
        if "images" in self.controls:
            raise UserError("the images themselves are no control: leave 'images' out of controls")
        absent = [name for name in self.mixed if name not in ("images", *self.controls)]
        if absent:
            raise UserError(f"'{absent[0]}' is mixed but not measured: add it to controls")
        for kind in self.mixtures:
            if kind not in get_args(Kind):
                raise unknown("kind of mixture", kind, get_args(Kind))
        for scheme in self.schemes:
            norm, slash, mean = scheme.partition("/")
            if norm not in NORMS or (slash and mean not in MEANS):
                raise unknown("scheme", scheme, [*NORMS, *(f"{a}/{b}" for a, b in product(NORMS, MEANS))])
            if str(Scheme.parse(scheme)) != scheme:
                raise UserError(f"the scheme '{scheme}' is called '{Scheme.parse(scheme)}'")
        if self.inversion not in METHODS:
            raise unknown("inversion", self.inversion, METHODS)

    def _check_numbers(self) -> None:
        if self.mixed and self.mixtures and not (self.schemes and self.sizes and self.draws >= 2):
            raise UserError("mixtures need 'schemes', 'sizes' and draws of at least 2: for none of them leave 'mixed' empty")
        fewest = min([self.count] + [self._count(origin) for origin in self.mixed])
        if self.sizes and (min(self.sizes) < 1 or (self.mixed and 2 * max(self.sizes) > fewest)):
            raise UserError(
                f"mixtures of {max(self.sizes)} need a pool of {2 * max(self.sizes)}, not {fewest}, or all draws take the same images: "
                "raise count (and control_count), or lower sizes, which are 1 or more"
            )
        if (
            min(self.count, self.control_count or self.count) < 2
            or self.num_inference_steps < 1
            or min(self.iterations, self.replayed, self.keep_images) < 0
        ):
            raise UserError(
                "count and control_count must be at least 2, num_inference_steps at least 1, iterations, replayed, keep_images at least 0"
            )
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise UserError("guidance_scale must be a finite number of at least 0 (1 turns guidance off)")
        if self.inversion == "null-text" and self.guidance_scale == 1:
            raise UserError("null-text inversion tunes what guidance pushes away from: give a guidance_scale other than 1 (7.5 is usual)")
        if self.inversion == "negative-prompt" and self.guidance_scale != 1:
            raise UserError("after a negative-prompt inversion guidance pushes from the prompt to itself: leave guidance_scale at 1")
        if self.kept < 1 or not 0 <= self.perturbation < math.inf:
            raise UserError("kept must be at least 1 (3 is usual), and perturbation a number of at least 0 (0.01 is usual)")
        if any(not 0 < offset < math.inf for offset in self.offsets) or (self.offsets and self.offset_samples < 2):
            raise UserError("offsets must lie above 0 (0.1 to 0.8 are usual), with offset_samples of at least 2")
        if self.resolution is not None and (self.resolution < 8 or self.resolution % 8):
            raise UserError("resolution must be a multiple of 8 pixels, or left out for the pipeline's own")
        if not 0 < self.margin < math.inf or not 0 < self.level < 1:
            raise UserError("margin must lie above 0 (0.05 is usual), and level between 0 and 1 (0.95 is usual)")

    @classmethod
    def preset(cls, budget: Literal["quick", "standard", "paper"]) -> Interpolation:
        """The probe at the size of a budget: seconds on a laptop, an evening there, and the study's 1,000 centroids a size."""
        if budget == "quick":
            few = ("none", "fix", "nin/channel", "nin/lowpass")
            small = cls(groups=("snow",), count=48, num_inference_steps=10, schemes=few, sizes=(2, 8, 24), draws=6, mixed=("images",))
            return replace(small, mixtures=("centroid",), control_count=16, offsets=(0.4,), offset_samples=4, replayed=8)
        if budget == "standard":
            return cls()
        schemes = ("fix", "nin", "fix/global", "nin/global", "fix/channel", "nin/channel")
        return cls(
            count=1_000, control_count=128, draws=1_000, mixed=("images",), schemes=schemes, mixtures=("centroid",), guidance_scale=7.5
        )

    def suited(self, model: Model) -> Interpolation:
        """This probe without what begins in pure noise, where the model does not say of which shape that is."""
        if model.shape is not None:
            return self
        known = tuple(name for name in self.controls if name == "noised")
        mixed = tuple(name for name in self.mixed if name in ("images", *known))
        return replace(self, controls=known, mixed=mixed, offsets=())

    def check(self, model: Model) -> None:
        """Raise UserError where the model does not say what its latents look like, has no such levels, or cannot be inverted."""
        if model.shape is None and (self.offsets or {"generated", "noise"} & set(self.controls)):
            raise UserError(f"'{model.name}' does not say of which shape its noise is: set Model(shape=(C, h, w))")
        if model.shape is None and self.resolution is None and model.editor is None:
            raise UserError(f"'{model.name}' does not say how large its images are: give `resolution`, or set Model(shape=(C, h, w))")
        _, path, condition = parts_of(model)
        try:
            path.levels(self.num_inference_steps)
        except ValueError as error:
            raise UserError(f"'{model.name}' cannot take {self.num_inference_steps} steps: {error}") from error
        condition([group.prompt for group in self._groups()])
        if self.inversion == "null-text":
            check_optimisable(condition([""]), self.guidance_scale)
        begins = bool(self.offsets or {"generated", "noise"} & set(self.controls))
        if begins and self.resolution is not None and self.resolution != native(model):
            raise UserError(
                f"at a resolution of {self.resolution} images and controls would differ in size, since '{model.name}' draws at "
                f"{native(model)}: leave resolution out, or the controls 'generated' and 'noise' and the offsets"
            )

    def plan(self) -> Iterator[Alignments | Mixtures | Offsets]:
        """Group by group: the latents of every origin, how alike they are, their mixtures, and the offsets."""
        for group in self._groups():
            origins = cast(Sequence[Origin], ("images", *self.controls))
            pools = {origin: Pool(group.name, origin, tuple(self._parts(group, origin))) for origin in origins}
            yield from (Alignments(pool, self.kept) for pool in pools.values())
            for origin in cast(Sequence[Origin], self.mixed):
                reference = pools["generated" if origin == "generated" else "images"]
                yield from self._mixtures(group, origin, pools[origin], reference)
            if self.offsets:
                seeds = tuple(range(self.offset_samples))
                scale = self.guidance_scale
                yield Offsets(group.name, group.prompt, seeds, self.offsets, self.num_inference_steps, scale, self.keep_images)

    def _parts(self, group: Group, origin: Origin) -> Iterator[Inversions]:
        how = self._replayed(origin)
        under = group.prompt if self.source_prompt is None else self.source_prompt
        generated = origin == "generated"
        drawn = (self.guidance_scale, self.perturbation) if generated else (1.0, 0.0)  # what an origin does not use is no part of its cells
        count = self._count(origin)
        for begin in range(0, count, _CHUNK):
            end = min(count, begin + _CHUNK)
            sources = group.sources[begin:end] if origin in _PICTURED else ()
            seeds = () if origin == "images" else tuple(range(begin, end))
            again = min(max(0, self.replayed - begin), end - begin) if origin in _INVERTED else 0
            prompts = (group.prompt if generated else "", under if origin in _INVERTED else "")
            yield Inversions(
                group.name, origin, *prompts, sources, seeds, how, *drawn, again, self.resolution if sources else None, begin == 0
            )

    def _mixtures(self, group: Group, origin: Origin, pool: Pool, reference: Pool) -> Iterator[Mixtures]:
        for kind, scheme, n in product(cast(Sequence[Kind], self.mixtures), self.schemes, self.sizes):
            if n == 1 and kind == "random":
                continue  # the same as a centroid of one
            kept = self.kept if Scheme.parse(scheme).mean == "lowpass" else 0
            for begin in range(0, self.draws, _CHUNK):
                draws = tuple(range(begin, min(self.draws, begin + _CHUNK)))
                where = (group.name, origin, group.prompt, pool, reference, scheme, kept, kind, n, draws)
                yield Mixtures(*where, self.seed, self._replayed(origin), self.guidance_scale, self.keep_images)

    def _count(self, origin: str) -> int:
        return self.count if origin == "images" else self.control_count or self.count

    @property
    def _how(self) -> Inversion:
        scale = self.guidance_scale if self.inversion == "null-text" else 1.0
        refined = self.inversion in {"fixed-point", "null-text"}  # what a method does not use is no part of its cells
        return Inversion(self.inversion, self.num_inference_steps, scale, iterations=self.iterations if refined else 0)

    def _replayed(self, origin: Origin) -> Inversion:
        """How mixtures come down again: as what was inverted, or plainly where nothing was."""
        return self._how if origin in _INVERTED else Inversion(num_inference_steps=self.num_inference_steps)

    def _groups(self) -> list[Group]:
        return groups(self.images, self.groups, self.count, self.prompt)

    def load(self, batch_size: int) -> Load:
        """A batch of latents at a time; guidance asks the network twice, one after the other. Null-text tuning differentiates it."""
        most = min(batch_size, _CHUNK)
        mixed = self.draws * bool(self.mixed and self.mixtures)
        drawn = max((self.control_count or self.count) * ("generated" in self.controls), self.offset_samples * bool(self.offsets))
        rows, shown = min(most, max(self.count, mixed, drawn)), min(most, max(self.replayed, mixed, drawn))
        tuned = rows * (self.inversion == "null-text")
        return Load(network=rows, encode=rows, decode=shown, tuned=tuned, side=self.resolution or 0)

    def summarise(self, records: Records) -> Findings:
        """Estimates, verdicts, charts and gallery from the records alone."""
        return summarise(self._wanted(records), records)

    def comparables(self, records: Records) -> tuple[Comparable, ...]:
        """What a mixture is like, a draw at a time, and how well an image is inverted."""
        return comparables(self._wanted(records), records)

    def _wanted(self, records: Records) -> Wanted:
        """The groups by the records where the settings name none: a report is made without the images."""
        known = [group for table in records.values() if "group" in table.column_names for group in table["group"].unique().to_pylist()]
        names = self.groups or tuple(sorted(set(known)))
        origins = tuple(origin for origin in ORIGINS if origin in ("images", *self.controls))
        return Wanted(names, self.schemes, self.sizes, origins, self.margin, self.draws, self.level)
