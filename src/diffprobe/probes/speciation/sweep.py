"""The guidance sweep: which scales on which intervals are tried, on which prompts, against which reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from diffprobe import images, rng, worlds
from diffprobe.errors import UserError
from diffprobe.images import Rendered, Source
from diffprobe.model import Model
from diffprobe.probes.prompts import read_prompts
from diffprobe.probes.speciation.sweep_cells import OTHERS, Guided, Range, Reference, Setting, guided_levels, sigma
from diffprobe.worlds.scenes import attributes_of

__all__ = ["Guided", "Reference", "Setting", "Sweep"]

_ROLE = "speciation.sweep"
_WORLD = 2026  # of the reference scenes; no model of the family was trained on it
_CHUNK, _REFERENCES = 100, 250  # images a cell
_KEPT = 8  # images of each setting that are shown
DENSITY_K = 5  # neighbours of density and coverage


@dataclass(frozen=True)
class Sweep:
    """Guidance by every scale, on the full range of noise levels and on every interval, beside none at all.

    `prompts`: 'scenes' (captions of the embedded world, each image with one of its own that names all there is), or a file, a list or a
    set as in the consistency probe, from which prompts are drawn where they are fewer than the images. Image i has the same prompt and
    the seed i under every setting: settings are paired. `reference`: 'scenes' (rendered ones of the same distribution), or a folder of
    images, of which up to `reference_images` are drawn. `intervals`: (lo, hi) in sigma, guided where lo < sigma <= hi; hi None is no
    upper end. With `equal_cost` each of them is set beside full guidance of as few steps as cost the same. `k`: neighbours of
    precision and recall.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # a mistyped key in a study is an error

    prompts: tuple[str, ...] = ("scenes",)
    images: int = 500
    reference: str = "scenes"
    reference_images: int = 2000
    scales: tuple[float, ...] = (1.5, 2.0, 3.0, 5.0)
    intervals: tuple[Range, ...] = ()
    num_inference_steps: int = 20
    negative_prompt: str = ""
    k: int = 3
    equal_cost: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            object.__setattr__(self, "prompts", (self.prompts,))
        object.__setattr__(self, "scales", tuple(map(float, self.scales)))  # 2 and 2.0 are one setting, and must be one cell
        object.__setattr__(self, "intervals", tuple(_range(*span) for span in self.intervals))
        if not self.prompts:
            raise UserError("a guidance sweep needs 'prompts': 'scenes', a list, or a file")
        if self.reference == "scenes" and self.prompts != ("scenes",):
            raise UserError(
                "images of these prompts are no scenes: set the sweep's 'reference' to a folder of images that they should be like"
            )
        if self.k < 1:
            raise UserError(f"k {self.k}: precision and recall look at 1 neighbour or more (3 is usual)")
        for name in ("images", "reference_images"):
            if getattr(self, name) <= self._fewest:
                raise UserError(f"a guidance sweep needs more than {self._fewest} of '{name}', for their neighbours (hundreds are usual)")
        if self.num_inference_steps < 2:
            raise UserError("num_inference_steps of a guidance sweep must be at least 2 (20 are usual)")
        self._check_settings()

    def _check_settings(self) -> None:
        if not self.scales or any(not math.isfinite(scale) or scale < 0 for scale in self.scales):
            raise UserError("a guidance sweep needs 'scales', finite numbers of at least 0")
        if 1 in self.scales:
            raise UserError("scale 1 is no guidance, which the sweep measures anyway: leave it out of 'scales'")
        for name in ("scales", "intervals"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UserError(f"the sweep's '{name}' names one twice: leave one out")
        for lo, hi in self.intervals:
            if not 0 <= lo < (math.inf if hi is None else hi):
                raise UserError(f"guidance acts where lo < sigma <= hi, and nothing lies between {lo:g} and {hi}: give 0 <= lo < hi")
            if lo == 0 and hi is None:
                raise UserError("the full range of sigma is always among the settings: leave it out of 'intervals'")

    @property
    def _fewest(self) -> int:
        return max(self.k, DENSITY_K)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Without guidance, then the full range, the intervals, and the full range at their cost, each by every scale."""
        full = [Setting(scale) for scale in self.scales]
        on = [Setting(scale, *span) for span in self.intervals for scale in self.scales]
        matched = [Setting(scale, matched=span) for span in self.intervals for scale in self.scales] if self.equal_cost else []
        return (Setting(1.0), *full, *on, *matched)

    def check(self, model: Model) -> None:
        """Raise UserError where the model lacks what a sweep needs, does not know a prompt, or has no level in an interval."""
        lacking = [name for name in ("path", "denoiser", "condition", "codec", "shape") if getattr(model, name) is None]
        if lacking:
            raise UserError(f"a guidance sweep needs {' and '.join(lacking)}; '{model.name}' has none: leave 'sweep' out")
        assert model.path is not None
        assert model.condition is not None
        try:
            model.path.levels(self.num_inference_steps)
        except ValueError as error:
            raise UserError(f"a guidance sweep cannot take {error}") from error
        for span in self.intervals:
            if not guided_levels(model.path, self.num_inference_steps, *span):
                raise UserError(
                    f"no level of {self.num_inference_steps} steps on {model.name} lies in {sigma(*span)}: widen the interval, or add steps"
                )
        model.condition([self.negative_prompt, *dict.fromkeys(text for _, text in self.asked()[:OTHERS])])

    def asked(self) -> list[tuple[str, str]]:
        """The prompt of every image, by name and text. Raises UserError for a file that cannot be read."""
        if self.prompts == ("scenes",):
            return [(f"scene {index}", _caption(index)) for index in range(self.images)]
        found = read_prompts(self.prompts, None)
        if len(found) < self.images:  # drawn, not in turn: images are then independent, as what is said of their sets takes them to be
            found = [found[int(rng.stream(f"{_ROLE}.prompt", index).integers(len(found)))] for index in range(self.images)]
        return [(prompt.id, prompt.text) for prompt in found[: self.images]]

    def cells(self) -> Iterator[Reference | Guided]:
        """The reference, then a few images under every setting, then the next few."""
        sources = self._sources()
        for begin in range(0, len(sources), _REFERENCES):
            yield Reference(sources[begin : begin + _REFERENCES])
        asked = self.asked()
        others = self._others()
        for begin in range(0, len(asked), _CHUNK):
            prompts = tuple(asked[begin : begin + _CHUNK])
            seeds, keep = tuple(range(begin, begin + len(prompts))), max(0, min(len(prompts), _KEPT - begin))
            for setting in self.settings:
                yield Guided(prompts, seeds, setting, self.num_inference_steps, self.negative_prompt, others, keep)

    def _others(self) -> tuple[str, ...]:
        """What margins are taken over: prompts drawn once for all images, one more than is used, in case an image's own is among them."""
        found = map(_caption, range(2 * OTHERS)) if self.prompts == ("scenes",) else (one.text for one in read_prompts(self.prompts, None))
        distinct = list(dict.fromkeys(found))
        return tuple(distinct[place] for place in rng.stream(f"{_ROLE}.others").permutation(len(distinct))[: OTHERS + 1])

    def _sources(self) -> tuple[Source | Rendered, ...]:
        if self.reference == "scenes":
            return tuple(Rendered(_WORLD, index) for index in range(self.reference_images))
        if not Path(self.reference).is_dir():
            raise UserError(f"no reference images at '{self.reference}': give a folder, or 'scenes' for rendered ones")
        found = images.find(Path(self.reference))
        if len(found) <= self._fewest:
            raise UserError(f"'{self.reference}' has {len(found)} images, too few to be a reference: add some (hundreds are usual)")
        drawn = rng.stream(f"{_ROLE}.reference").permutation(len(found))[: self.reference_images]
        return tuple(found[place] for place in sorted(drawn.tolist()))


def _caption(index: int) -> str:
    """What a scene is, as a caption that names all of it, so that few other captions are true of it."""
    attributes, _ = attributes_of(rng.stream(f"{_ROLE}.caption", index))
    return worlds.caption(attributes)


def _range(lo: float, hi: float | None) -> Range:
    return float(lo), None if hi is None or hi == math.inf else float(hi)
