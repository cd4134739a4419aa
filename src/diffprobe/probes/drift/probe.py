"""The drift probe: its settings and its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, Literal

from diffprobe import images
from diffprobe.errors import UserError, unknown
from diffprobe.images import Picture, caption
from diffprobe.inversion import check_optimisable, parts_of
from diffprobe.model import Model
from diffprobe.probes.base import Comparable, Findings, Load, Records
from diffprobe.probes.drift.cells import DecoderNoise, Edits, Originals
from diffprobe.probes.drift.editors import EDITORS, PIPELINE, level_of, needs_of
from diffprobe.probes.drift.prompts import PROMPT_SETS
from diffprobe.probes.drift.slices import SETTING, Asked
from diffprobe.probes.drift.summary import comparables, summarise

_CHUNK = 16  # images a cell
_LISTS = {name: {"prompt_set": "prompt_sets", "editor": "editors"}.get(name, name) for name in SETTING}  # a column to its setting


@dataclass(frozen=True)
class Drift:
    """What an edit pipeline changes when it is told to change nothing.

    `images`: 'world' (rendered scenes), a folder, or a manifest (.json, .jsonl, .csv). `count`: how many; None takes all of a
    folder, or 24 scenes. `strengths` are the pipeline's own, in (0, 1]. `editors`: 'pipeline', or ways of inversion ('ddim',
    'fixed-point', 'null-text', 'negative-prompt'), which climb from the image to the strength's level instead of adding noise.
    Every list is crossed with every other; an ablation is a list of more than one. `equal_start`: at each number of steps use the
    strength that starts nearest to the noise level of the first. `resolution`: what the pipeline works at (0: native);
    `measured`: what images are compared at (None: the same). `seeds`: image i gets seed + i, or the seed itself where `same_seed`.
    `budget`: decompose the drift. `tolerance`: the mean squared error, of images in [0, 1], that the strength budget allows. The last
    two settings shape no measurement: changing them recomputes nothing.
    """

    name: ClassVar[str] = "drift"
    question: ClassVar[str] = "What does an edit pipeline change when it is told to change nothing, and which part of it does so?"
    rows: ClassVar[str] = "Edits"
    aligned: ClassVar[tuple[str, ...]] = ("image", "content", "prompt", "seed", "requested_strength", *SETTING[1:])
    free: ClassVar[frozenset[str]] = frozenset(
        {"images", "count", "strengths", "seeds", "same_seed", "budget", "keep_images", "tolerance", "level", *_LISTS.values()}
    )
    cites: ClassVar[tuple[str, ...]] = (
        "Seetha Ram, Elavazhagan: The Drift Kernel: Why Diffusion Models Change Even When Told Not To (NoOp-Bench), CVPR 2026.",
        "Meng et al.: SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations, ICLR 2022.",
        "Song, Meng, Ermon: Denoising Diffusion Implicit Models, ICLR 2021.",
        "Mokady et al.: Null-text Inversion for Editing Real Images using Guided Diffusion Models, CVPR 2023.",
        "Pan et al.: Effective Real Image Editing with Accelerated Iterative Diffusion Inversion, ICCV 2023.",
    )
    method: ClassVar[str] = (
        "Each image is encoded once (the posterior's mean), noised to the level at which the pipeline starts for the strength asked, "
        "denoised by the deployed pipeline itself under a prompt that asks for no change, decoded and compared with the original.\n\n"
        "A strength is no noise level: it becomes a whole number of executed steps, which decides the starting time. Every row keeps "
        "both. Kernel laws are fitted by least squares to the mean over images at each distinct level; intervals come from "
        "resampling whole images, so that the prompts and levels of an image stay together. A law is selected by its error at levels "
        "left out, and the share of resamples in which it wins is reported with it.\n\n"
        "The total squared error splits exactly into the autoencoder's own round trip (floor), what the edit moves beyond it (move), and "
        "their cross term. To first order the move is what the decoder makes of pure noise of that level, times the share of that "
        "noise which the denoiser leaves (contraction), times how far what is left points where the decoder amplifies (alignment).\n\n"
        "An editor that inverts adds no noise: from the encoded image it climbs to that level by the deterministic sampler's steps "
        "backwards, under the same prompt, and comes down from there. It climbs without guidance, but for the fixed point, which undoes "
        "the very steps that come down. There is no noise then to leave a share of.\n\n"
        "An editor that does not say where it starts, such as a remote service, is given the image itself. Its edits are compared with the "
        "image and set against the strength alone."
    )

    images: str = "world"
    count: int | None = None
    prompt_sets: tuple[str, ...] = ("null", "copy", "empty")
    editors: tuple[str, ...] = (PIPELINE,)
    negative_prompt: str = ""
    strengths: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4)
    num_inference_steps: tuple[int, ...] = (15,)
    equal_start: bool = False
    guidance_scale: tuple[float, ...] = (5.0,)
    resolution: tuple[int, ...] = (0,)
    measured: int | None = None
    seeds: tuple[int, ...] = (42,)
    same_seed: bool = False
    budget: bool = True
    keep_images: int = 64
    tolerance: float = 0.005
    level: float = 0.95

    def __post_init__(self) -> None:
        for field in ("strengths", "guidance_scale"):  # 5 and 5.0 are one setting, and must be one cell
            object.__setattr__(self, field, tuple(float(value) for value in getattr(self, field)))
        for kind, named, known in (("prompt set", self.prompt_sets, PROMPT_SETS), ("editor", self.editors, EDITORS)):
            for name in named:
                if name not in known:
                    raise unknown(kind, name, known)
        for field in ("prompt_sets", "editors", "strengths", "num_inference_steps", "guidance_scale", "resolution", "seeds"):
            values = getattr(self, field)
            if not values:
                raise UserError(f"drift needs at least one value in '{field}'")
            if len(set(values)) < len(values):
                raise UserError(f"drift's '{field}' names a value twice: {', '.join(map(str, values))}")
        for strength in self.strengths:
            if not (math.isfinite(strength) and 0 < strength <= 1):
                raise UserError(f"strength {strength} is outside (0, 1]: 0 would change nothing, 1 replaces the image by noise")
        for strength, steps in product(self.strengths, self.num_inference_steps[: 1 if self.equal_start else None]):
            if steps < 1:
                raise UserError(f"num_inference_steps {steps} must be at least 1")
            if strength * steps < 1 - 1e-9:
                raise UserError(
                    f"strength {strength} runs no step of {steps}: use a strength of at least {math.ceil(1000 / steps) / 1000}, "
                    f"or at least {math.ceil(1 / strength)} num_inference_steps"
                )
        self._check_numbers()

    def _check_numbers(self) -> None:
        if any(not math.isfinite(scale) or scale < 0 for scale in self.guidance_scale):
            raise UserError("guidance_scale must be a finite number of at least 0 (1 turns guidance off)")
        if "null-text" in self.editors and min(self.guidance_scale) <= 1:
            raise UserError("the editor 'null-text' tunes what guidance pushes away from: raise guidance_scale above 1, or leave it out")
        if any(size < 0 or size % 8 for size in self.resolution):
            raise UserError("resolution must be a multiple of 8 pixels, or 0 for the pipeline's own")
        if self.count is not None and self.count < 1:
            raise UserError("count must be at least 1")
        if not 0 < self.level < 1 or not self.tolerance > 0:
            raise UserError("level must lie between 0 and 1 (0.95 is usual), and tolerance above 0")

    @property
    def needs(self) -> frozenset[str]:
        """What its editors need."""
        return frozenset[str]().union(*map(needs_of, self.editors))

    @classmethod
    def preset(cls, budget: Literal["quick", "standard", "paper"]) -> Drift:
        """The probe at the size of a budget: a minute on a laptop, an evening, or the study's own scale."""
        if budget == "quick":
            return cls(count=16, prompt_sets=("null", "empty"), strengths=(0.1, 0.2, 0.3, 0.4, 0.6))
        if budget == "standard":
            return cls(count=100, prompt_sets=("null", "copy", "identity", "empty", "caption"), strengths=(0.1, 0.2, 0.3, 0.4, 0.6, 0.8))
        return cls(count=10_000, prompt_sets=("null",), strengths=(0.4,), keep_images=64)

    def suited(self, model: Model) -> Drift:
        """This probe without editors that the model cannot have; with one strength, 1, where its pipeline ignores strength.

        Without the parts of the drift where the pipeline tells none apart.
        """
        able = tuple(name for name in self.editors if needs_of(name) <= model.capabilities) or self.editors
        axis = model.editor is None or model.editor.strength_axis or PIPELINE not in able
        if PIPELINE in able and not self._told(model):
            able = (PIPELINE,)  # an inversion begins where the pipeline does
        parts = PIPELINE not in able or model.editor is None or (model.codec is not None and self._told(model))
        return replace(self, editors=able, strengths=self.strengths if axis else (1.0,), budget=self.budget and parts)

    def check(self, model: Model) -> None:
        """Raise UserError where this model cannot be asked: no strength axis, a strength that runs no step, no inversion, no parts."""
        if PIPELINE in self.editors and model.editor is not None and not model.editor.strength_axis and self.strengths != (1.0,):
            raise UserError(
                f"{model.name} has no strength axis (its pipeline ignores `strength` and starts from pure noise), so a sweep would measure "
                "one level many times: set strengths to [1.0], or drop the drift probe for it"
            )
        self._check_parts(model)
        for strength in self.strengths:
            for steps in self.num_inference_steps[: 1 if self.equal_start else None]:
                level = level_of(model, strength, steps)
                if level.told and level.steps < 1:
                    raise UserError(f"strength {strength} runs no step of {steps} on {model.name}: raise either")
        if set(self.editors) != {PIPELINE}:
            _, _, condition = parts_of(model)
            if "null-text" in self.editors:
                check_optimisable(condition([""]), max(self.guidance_scale))

    def _check_parts(self, model: Model) -> None:
        """Raise UserError where the settings ask a pipeline for what it does not say of itself."""
        told = self._told(model)
        why = f"'{model.name}' does not say at which noise level its edits start" if not told else f"'{model.name}' has no codec"
        if self.budget and PIPELINE in self.editors and not (told and model.codec is not None):
            raise UserError(f"{why}, so no part of its drift can be told from another: set budget to false")
        if not told and set(self.editors) != {PIPELINE}:
            raise UserError(f"{why}, where an inversion would have to begin: set editors to ['{PIPELINE}']")
        if not told and self.equal_start:
            raise UserError(f"{why}, so none can be kept over numbers of steps: set equal_start to false")

    def _told(self, model: Model) -> bool:
        """Whether the model's pipeline, if it has one, says at which noise level a strength starts."""
        return model.editor is None or model.editor.level(1.0, self.num_inference_steps[0]).told

    def plan(self) -> Iterator[Originals | DecoderNoise | Edits]:
        """All cells, the cells of the same images together."""
        sources = self.sources()
        if "caption" in self.prompt_sets:
            for source in sources:
                caption(source)  # raises for an image without one, before anything is measured
        for start in range(0, len(sources), _CHUNK):
            chunk = tuple(sources[start : start + _CHUNK])
            for resolution in self.resolution:
                originals = Originals(chunk, resolution or None, self.measured, keep=start < self.keep_images, gain=self.budget)
                yield originals
                for seed, steps, strength in product(self.seeds, self.num_inference_steps, self.strengths):
                    # An inversion draws nothing: it is the same for every seed.
                    editors = self.editors if seed == self.seeds[0] else tuple(name for name in self.editors if name == PIPELINE)
                    yield from self._at_level(originals, self._seeds(seed, start, len(chunk)), steps, strength, editors)

    def _at_level(
        self, originals: Originals, seeds: tuple[int, ...], steps: int, strength: float, editors: tuple[str, ...]
    ) -> Iterator[DecoderNoise | Edits]:
        reference = self.num_inference_steps[0] if self.equal_start and len(self.num_inference_steps) > 1 else None
        if self.budget and PIPELINE in editors:
            yield DecoderNoise(originals, strength, steps, reference, seeds)
        for editor, scale, group in product(editors, self.guidance_scale, self.prompt_sets):
            for prompt in PROMPT_SETS[group]:
                asked = (originals, group, prompt, self.negative_prompt, strength, steps, reference, scale, seeds, self.budget)
                yield Edits(*asked, editor)

    def _seeds(self, seed: int, start: int, n: int) -> tuple[int, ...]:
        return (seed,) * n if self.same_seed else tuple(range(seed + start, seed + start + n))

    def sources(self) -> Sequence[Picture]:
        """The images of the study; raises UserError for what is missing, unreadable or not as the manifest says."""
        if self.images == "world":
            return images.sets("world", self.count or 24)[1]
        return images.listed(self.images, "'world' for rendered scenes")[: self.count]

    def load(self, batch_size: int) -> Load:
        """A batch of images through the deployed pipeline, or inverted; null-text tuning differentiates the network."""
        rows = min(batch_size, _CHUNK, self.count or _CHUNK)
        guided = rows * (PIPELINE in self.editors and max(self.guidance_scale) > 1)
        tuned = rows * ("null-text" in self.editors)
        return Load(network=rows, guided=guided, encode=rows, decode=rows, tuned=tuned, side=max(self.resolution))

    def summarise(self, records: Records) -> Findings:
        """Estimates, verdicts, charts and gallery from the records alone."""
        return summarise(self._asked(), records)

    def comparables(self, records: Records) -> tuple[Comparable, ...]:
        """Each metric's mean over prompts and seeds by image; at each strength of each setting."""
        return comparables(self._asked(), records)

    def _asked(self) -> Asked:
        return Asked({column: getattr(self, name) for column, name in _LISTS.items()}, self.level, self.tolerance)
