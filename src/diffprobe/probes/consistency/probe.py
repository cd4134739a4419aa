"""The consistency probe: its settings and its plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from diffprobe.errors import UserError
from diffprobe.model import GenerateSettings, Model
from diffprobe.probes.base import Comparable, Findings, Load, Records
from diffprobe.probes.consistency.cells import Asked, Samples
from diffprobe.probes.consistency.compared import comparables
from diffprobe.probes.consistency.summary import Wanted, summarise
from diffprobe.probes.prompts import read_prompts

_CHUNK = 20  # images a cell


@dataclass(frozen=True)
class Consistency:
    """How alike the images are that one prompt gives.

    `prompts`: 'scenes' (the embedded world), 'everyday', a file (.txt, .csv, .json), or the prompts themselves. `count`: the first
    so many; None takes all of a file, 100 of a set. `repetitions`: images a prompt, the same seeds for every prompt: the first of
    `seeds`, or 0, 1, 2, ... where none are given. `prefix` and `suffix` stand around each prompt's text, not in its name, by which
    runs are paired. `negative_prompt`, `height`, `width`: None is the pipeline's own choice. `jpeg_quality`: images pass
    through JPEG before they are looked at. `keep_images`: of how many prompts pictures are kept. `half_width`: the precision,
    in points, for which the summary says how many repetitions it needs.
    """

    name: ClassVar[str] = "consistency"
    question: ClassVar[str] = "How alike are the images that one prompt gives?"
    needs: ClassVar[frozenset[str]] = frozenset({"generator", "embedder"})
    rows: ClassVar[str] = "Samples"
    aligned: ClassVar[tuple[str, ...]] = ("prompt_id", "seed")
    free: ClassVar[frozenset[str]] = frozenset({"prompts", "count", "repetitions", "seeds", "keep_images", "half_width", "level"})
    cites: ClassVar[tuple[str, ...]] = (
        "Bent: Semantic Approach to Quantifying the Consistency of Diffusion Model Image Generation, 2024. https://arxiv.org/abs/2404.08799",
        "Friedman, Dieng: The Vendi Score: A Diversity Evaluation Metric for Machine Learning, TMLR 2023.",
        "Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.",
    )
    method: ClassVar[str] = (
        "The deployed pipeline draws each prompt several times, with seeds that are the same for every prompt and every model. The "
        "semantic consistency score (SCS) of a prompt is 100 times the mean cosine of all pairs of its images' embeddings.\n\n"
        "Pairs share images and are not independent. The interval of one prompt's score is that of a U-statistic: the jackknife over "
        "images, with Student's t, on a scale where the score is not skewed. The interval of the mean over prompts resamples prompts.\n\n"
        "Cosines are not clipped. The published score takes each negative cosine as 0; it is given beside ours, and is the same "
        "where no cosine is negative. The Vendi score is the number of different images that the set amounts to, from the same cosines.\n\n"
        "How many repetitions a precision needs follows from the variance law of U-statistics, with components estimated from the images "
        "at hand without bias. No interval from a few images can know of a kind of image that is rare: twenty equal ones may be luck.\n\n"
        "A score belongs to its instrument: numbers of two embedders cannot be compared with each other."
    )

    prompts: tuple[str, ...] = ("scenes",)
    count: int | None = None
    repetitions: int = 20
    seeds: tuple[int, ...] = ()
    prefix: str = ""
    suffix: str = ""
    negative_prompt: str | None = None
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    jpeg_quality: int | None = None
    keep_images: int = 100
    half_width: float = 1.0
    level: float = 0.95

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            object.__setattr__(self, "prompts", (self.prompts,))
        object.__setattr__(self, "guidance_scale", float(self.guidance_scale))  # 5 and 5.0 are one setting, and must be one cell
        if int(self.repetitions) != self.repetitions or self.repetitions < 2:
            raise UserError(f"repetitions {self.repetitions}: one image has nothing to agree with: give at least 2 (20 is usual)")
        if self.seeds and len(set(self.seeds)) < self.repetitions:
            raise UserError(f"{self.repetitions} repetitions need as many different seeds, not {len(set(self.seeds))}: give more seeds")
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError("a seed comes twice: equal seeds give equal images, which would count as agreement")
        if not self.prompts:
            raise UserError("consistency needs 'prompts': a list, a file, or a set (scenes, everyday)")
        if self.count is not None and self.count < 1:
            raise UserError("count must be at least 1")
        if self.num_inference_steps < 1 or not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise UserError(
                "num_inference_steps must be at least 1, and guidance_scale a finite number of at least 0 (1 turns guidance off)"
            )
        if any(size is not None and (size < 8 or size % 8) for size in (self.height, self.width)):
            raise UserError("height and width must be multiples of 8 pixels, or left out for the pipeline's own")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 95:
            raise UserError("jpeg_quality lies between 1 and 95 (75 is usual); leave it out for none")
        if not 0 < self.level < 1 or not self.half_width > 0:
            raise UserError("level must lie between 0 and 1 (0.95 is usual), and half_width above 0")

    @classmethod
    def preset(cls, budget: Literal["quick", "standard", "paper"]) -> Consistency:
        """The probe at the size of a budget: seconds on a laptop, the study's 100 prompts of 20, and these with the study's file format."""
        if budget == "quick":
            return cls(count=16, repetitions=10)
        return cls(count=100) if budget == "standard" else cls(count=100, jpeg_quality=75)

    def suited(self, model: Model) -> Consistency:
        """This probe; without words where the model knows none."""
        return replace(self, prompts=("none",), count=None, prefix="", suffix="", negative_prompt=None) if model.wordless else self

    def check(self, model: Model) -> None:
        """Raise UserError where the model cannot be asked for what the prompts say: it knows no words, or other ones."""
        texts = [f"{self.prefix}{prompt.text}{self.suffix}" for prompt in read_prompts(self.prompts, self.count)]
        if model.wordless and any(texts):
            raise UserError(f"'{model.name}' knows no words: set prompts to [none], which asks for nothing in particular")
        if model.condition is not None:
            model.condition(texts[:1])

    def plan(self) -> Iterator[Asked | Samples]:
        """The prompts, then all cells of a prompt together."""
        found = read_prompts(self.prompts, self.count)
        yield Asked(tuple(found))
        seeds = (self.seeds or tuple(range(self.repetitions)))[: self.repetitions]
        settings = GenerateSettings(self.num_inference_steps, self.guidance_scale, self.negative_prompt, self.height, self.width)
        for index, prompt in enumerate(found):
            for start in range(0, len(seeds), _CHUNK):
                text = f"{self.prefix}{prompt.text}{self.suffix}"
                yield Samples(prompt.id, text, seeds[start : start + _CHUNK], settings, self.jpeg_quality, index < self.keep_images)

    def load(self, batch_size: int) -> Load:
        """A batch of images of one prompt, drawn by the pipeline and decoded."""
        rows = min(batch_size, _CHUNK, self.repetitions)
        return Load(network=rows, guided=rows * (self.guidance_scale > 1), decode=rows, side=max(self.height or 0, self.width or 0))

    def summarise(self, records: Records) -> Findings:
        """Estimates, verdicts, charts and gallery from the records alone."""
        return summarise(Wanted(self.level, self.half_width), records)

    def comparables(self, records: Records) -> tuple[Comparable, ...]:
        """The consistency and the diversity of each prompt's images, in every instrument."""
        return comparables(records)
