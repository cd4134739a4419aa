"""The speciation probe: its settings and its plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from diffprobe.errors import UserError
from diffprobe.model import Model
from diffprobe.probes.base import Comparable, Findings, Load, Records
from diffprobe.probes.speciation.cells import Paths, Snapshots
from diffprobe.probes.speciation.compared import comparables
from diffprobe.probes.speciation.partitions import Partition, Push, drawn, expanded, ladder
from diffprobe.probes.speciation.summary import summarise, with_sweep
from diffprobe.probes.speciation.sweep import Guided, Reference, Sweep
from diffprobe.probes.speciation.swept import swept

_CHUNK = 32  # trajectories a cell
_TOGETHER = 16  # conditions at once, where partitions can be kept apart

BASE = "a large red star with eyes on a teal background"
#: What of the base each variant changes, from the whole picture to a detail.
VARIANTS = (
    "a black and white picture of a large star with eyes on a teal background",
    "a large red star with eyes in the snow",
    "a large blue star with eyes on a teal background",
    "a large red square with eyes on a teal background",
    "a large red star with a hat on a teal background",
)


@dataclass(frozen=True)
class Speciation:
    """At which noise level a sample decides between conditions, and where guidance should act.

    `base` and `variants`: every variant is set against the base; `{0..9}` in a variant stands for each number. "" is the
    unconditional model: as the base it stands for the complement of each variant. `partitions`: any others, each two sides or
    more, which cost no new trajectories where their conditions are drawn together already. `samples`: trajectories a condition, the
    same seeds for all: the first of `seeds`, or 0, 1, 2, ... `pushes`: guidance to try on the sampled trajectories, away from
    `negative_prompt`. `sweep`: scales and intervals of guidance to draw images with, and to judge them by. `eta` can only be 1.
    `keep_images`: of how many seeds the report shows `snapshots` levels, or those nearest to `snapshot_sigmas`.
    """

    name: ClassVar[str] = "speciation"
    question: ClassVar[str] = "At which noise level does a sample decide what it is, and where should guidance act?"
    rows: ClassVar[str] = "Paths"
    aligned: ClassVar[tuple[str, ...]] = ("seed", "prompt", "guidance", "group")
    free: ClassVar[frozenset[str]] = frozenset(
        {"base", "variants", "partitions", "samples", "seeds", "sweep", "keep_images", "snapshots", "snapshot_sigmas", "level"}
    )
    cites: ClassVar[tuple[str, ...]] = (
        "The Entropic Signature of Class Speciation in Diffusion Models, 2026. https://arxiv.org/abs/2602.09651",
        "Biroli, Bonnaire, de Bortoli, Mezard: Dynamical Regimes of Diffusion Models, Nature Communications 2024.",
        "Guo, Shamai, Verdu: Mutual Information and Minimum Mean-Square Error in Gaussian Channels, IEEE Trans. Inf. Theory 2005.",
        "Kynkaanniemi et al.: Applying Guidance in a Limited Interval Improves Sample and Distribution Quality, NeurIPS 2024.",
    )
    method: ClassVar[str] = (
        "Trajectories are drawn from every condition with the stochastic sampler (eta 1) on the model's own noise path. At each step "
        "all conditions predict the clean sample from the same state; how likely the next state is under each is a Gaussian, so the "
        "log odds between conditions add up along the path. They are exact for the discretised sampler, for any number of steps and "
        "any network.\n\n"
        "The entropy of the class given the path is the mean of the posterior's own entropy (posterior form), which varies less between "
        "samples than minus the log probability of the condition that was drawn (label form). The two have one mean when nothing "
        "guides, so their difference tests the calculation. The squared distances between predictions give the entropy a third time "
        "(I-MMSE), to a coarser order in the steps.\n\n"
        "Sets of conditions are compared by their paths' likelihoods, never by averaged predictions. With guidance, trajectories are "
        "guided and likelihoods are not: the curve is then the cross entropy, and only the label form means anything.\n\n"
        "Intervals resample seeds. A seed has the same noise under every condition, so differences between variants are paired. "
        "Curves are smoothed over steps before they are differentiated, as widely as cross-validation over seeds says."
    )

    base: str = BASE
    variants: tuple[str, ...] = VARIANTS
    partitions: tuple[Partition, ...] = ()
    samples: int = 64
    seeds: tuple[int, ...] = ()
    num_inference_steps: int = 50
    pushes: tuple[Push, ...] = ()
    negative_prompt: str = ""
    sweep: Sweep | None = None
    eta: float = 1.0
    keep_images: int = 2
    snapshots: int = 8
    snapshot_sigmas: tuple[float, ...] = ()
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.eta != 1:
            raise UserError(
                f"eta {self.eta:g}: the class posterior follows from the density of each step, which a deterministic sampler does not "
                "have and any other eta biases: leave eta at 1"
            )
        if self.samples < 2:
            raise UserError(f"samples {self.samples}: an interval needs two trajectories at least (64 a condition are usual)")
        if self.seeds and len(set(self.seeds)) < max(self.samples, len(self.seeds)):
            raise UserError(f"{self.samples} samples need as many different seeds, each once: {len(set(self.seeds))} are given")
        if self.num_inference_steps < 2:
            raise UserError("num_inference_steps must be at least 2 (50 are usual): the first step begins in pure noise")
        if self.keep_images < 0 or (self.keep_images and self.snapshots < 2) or any(not sigma > 0 for sigma in self.snapshot_sigmas):
            raise UserError("keep_images is 0 or more, snapshots at least 2, and snapshot_sigmas above 0")
        if not 0 < self.level < 1:
            raise UserError("level must lie between 0 and 1 (0.95 is usual)")
        if len(set(self.pushes)) < len(self.pushes):
            raise UserError("a push comes twice: name each once")
        names = [partition.name for partition in self.asked]
        twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if twice is not None:
            raise UserError(f"'{twice}' comes twice among the variants and partitions: name each once")
        if not names:
            raise UserError("speciation needs 'variants' of a base, or 'partitions'")

    @classmethod
    def preset(cls, budget: Literal["quick", "standard", "paper"]) -> Speciation:
        """The probe at the size of a budget: seconds on a laptop, an ordered ladder, and the study's 200 + 200 paths of 100 steps."""
        if budget == "quick":
            return cls(samples=12, keep_images=1)
        return cls() if budget == "standard" else cls(samples=200, num_inference_steps=100)

    @property
    def needs(self) -> frozenset[str]:
        """What trajectories need; a sweep's images need something that looks at them."""
        return frozenset({"path", "denoiser", "condition"} | ({"embedder"} if self.sweep is not None else set()))

    @property
    def asked(self) -> tuple[Partition, ...]:
        """The ladder, and the other partitions."""
        return (*ladder(self.base, expanded(self.variants)), *self.partitions)

    def suited(self, model: Model) -> Speciation:
        """This probe, without pictures where the model shows none."""
        return self if model.codec is not None else replace(self, keep_images=0)

    def check(self, model: Model) -> None:
        """Raise UserError where the model does not say what its noise looks like, or does not know a condition."""
        if model.shape is None:
            raise UserError(f"speciation begins in pure noise, and '{model.name}' does not say of which shape: set Model(shape=(C, h, w))")
        assert model.condition is not None
        for partition in self.asked:
            model.condition(partition.conditions)
        if self.pushes:
            model.condition([self.negative_prompt])
        if self.sweep is not None:
            self.sweep.check(model)

    def plan(self) -> Iterator[Paths | Snapshots | Reference | Guided]:
        """The unguided trajectories of every condition, then those of each push, then the pictures, then the sweep's images."""
        seeds = (self.seeds or tuple(range(self.samples)))[: self.samples]
        for push in (None, *self.pushes):
            negative, groups = self.negative_prompt if push is not None else "", Counter[str]()
            for conditions in drawn(self.asked, push, negative, _TOGETHER):
                for begin in range(0, len(seeds), _CHUNK):
                    chunk = seeds[begin : begin + _CHUNK]
                    yield Paths(conditions, chunk, self.num_inference_steps, push, negative, groups[conditions[0]])
                groups[conditions[0]] += 1
        if self.keep_images:
            for prompt in dict.fromkeys(prompt for partition in self.asked for prompt in partition.conditions):
                yield Snapshots(prompt, seeds[: self.keep_images], self.num_inference_steps, self.snapshots, self.snapshot_sigmas)
        if self.sweep is not None:
            yield from self.sweep.cells()

    def load(self, batch_size: int) -> Load:
        """All conditions of a trajectory at once, of as many trajectories as make two rows an image of a batch; a sweep's images alone."""
        sizes = {len(each) for push in (None, *self.pushes) for each in drawn(self.asked, push, self.negative_prompt, _TOGETHER)}
        rows = max(size * min(max(1, 2 * batch_size // size), self.samples, _CHUNK) for size in sizes)
        swept = 0 if self.sweep is None else min(batch_size, self.sweep.images)
        return Load(network=max(rows, swept), decode=max(min(batch_size, self.samples, _CHUNK), swept))

    def summarise(self, records: Records) -> Findings:
        """The curves with their levels and windows, the order of the ladder, and what guidance moves; from the records alone."""
        findings = summarise(self.asked, self.pushes, records, self.level)
        return findings if self.sweep is None else with_sweep(findings, swept(self.sweep, records, self.level))

    def comparables(self, records: Records) -> tuple[Comparable, ...]:
        """The level at which each partition is decided, and its mean entropy on the way, a value a seed."""
        return comparables(self.asked, records)
