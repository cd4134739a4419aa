"""Worlds with known answers, as models like any other: a Gaussian mixture of latents, its exact denoiser, a decoder with an exact Jacobian.

A world is made of two parts, and both can be had: `mixtures` says how latents are distributed, and so what every denoiser,
score and class posterior must be; `decoders` and `piecewise` say how they are seen, and so what every Jacobian must be.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.decoders import ExactCodec, LinearCodec, LowRankCodec, orthonormal
from diffprobe.adapters.mixtures import GaussianMixture, anisotropic, hierarchical
from diffprobe.adapters.piecewise import PiecewiseLinearCodec
from diffprobe.errors import UserError, unknown
from diffprobe.model import Denoiser, Edited, EditSettings, GenerateSettings, Level, Model
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving, executed_steps
from diffprobe.sampling import Guidance, Sampler, final, guided, noised, start, trajectory

__all__ = [
    "PATHS",
    "WORLDS",
    "ExactEditor",
    "ExactGenerator",
    "GaussianMixture",
    "LinearCodec",
    "Method",
    "World",
    "as_model",
    "exact_model",
    "exact_world",
    "four_classes",
    "named_classes",
    "three_scales",
]

Method = Literal["ode", "sample", "mean", "none"]
IMAGE = (3, 8, 8)


@dataclass(frozen=True, eq=False)
class World:
    """The truth behind a model: how its latents are distributed, the decoder that shows them, and what its editor does."""

    mixture: GaussianMixture
    codec: ExactCodec
    method: Method = "ode"

    def __post_init__(self) -> None:
        directions, latent = self.mixture.means.shape[1], self.codec.latent
        if directions != prod(latent):
            raise ValueError(f"a mixture in {directions} dimensions does not fill latents {list(latent)} of {prod(latent)}")


@dataclass(eq=False)
class ExactEditor:
    """Image-to-image as deployed (noise to the strength's level, then back), with an exact denoiser.

    `method`: "ode" is DDIM, "sample" its stochastic form (eta 1), "mean" one prediction, "none" changes nothing at all.
    """

    denoiser: Denoiser
    codec: ExactCodec
    path: NoisePath
    condition: Callable[[Sequence[str]], Tensor]
    method: Method = "ode"
    size: int = IMAGE[-1]
    strength_axis: bool = True

    def level(self, strength: float, num_inference_steps: int) -> Level:
        times = self._times(strength, num_inference_steps)
        if not times:
            return Level(0, None, 1.0, 0.0)
        return Level(len(times), times[0], float(self.path.alpha(times[0])), float(self.path.ratio(times[0])))

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        """Edit latents [B, C, h, w]; guidance is active above scale 1. The last step arrives at `path.end`, as deployed."""
        times = self._times(settings.strength, settings.num_inference_steps)
        level, is_guided = self.level(settings.strength, settings.num_inference_steps), settings.guidance_scale > 1
        if not times or self.method == "none":
            return Edited(self.codec.decode(latents), latents, level, guided=False)
        denoiser, cond = self.denoiser, self.condition(prompts)
        if is_guided:
            negative = self.condition([settings.negative_prompt] * len(prompts))
            denoiser = guided(denoiser, self.path, Guidance(settings.guidance_scale, negative=negative))
        x = noised(self.path, latents, times[0], rng.normal(latents.shape[1:], "exact.edit", seeds))
        if self.method == "mean":
            moved = denoiser(x, times[0], cond)
        else:
            sampler = Sampler(1.0 if self.method == "sample" else 0.0, tuple(seeds), "exact.edit")
            moved = final(trajectory(denoiser, self.path, x, times, cond=cond, sampler=sampler))
        return Edited(self.codec.decode(moved), moved, level, is_guided)

    def _times(self, strength: float, num_inference_steps: int) -> tuple[float, ...]:
        times = self.path.levels(num_inference_steps)
        return times[num_inference_steps - executed_steps(strength, num_inference_steps) :]


@dataclass(frozen=True, eq=False)
class ExactGenerator:
    """Text-to-image by DDIM with an exact denoiser; conditions as `named_classes` reads them from prompts."""

    denoiser: Denoiser
    codec: ExactCodec
    path: NoisePath
    condition: Callable[[Sequence[str]], Tensor]

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings) -> Tensor:
        """One image a prompt and seed; guidance is active above scale 1. Raises UserError for a size other than the world's own."""
        own = self.codec.image[1:]
        asked = tuple(side if given is None else given for side, given in zip(own, (settings.height, settings.width), strict=True))
        if asked != own:
            told = " x ".join(map(str, asked))
            raise UserError(f"this world's images are {own[0]} x {own[1]} pixels, not {told}: leave height and width out")
        times, denoiser = self.path.levels(settings.num_inference_steps), self.denoiser
        if settings.guidance_scale > 1:
            negative = None if settings.negative_prompt is None else self.condition([settings.negative_prompt] * len(prompts))
            denoiser = guided(denoiser, self.path, Guidance(settings.guidance_scale, negative=negative))
        x = start(self.path, times[0], self.codec.latent, seeds, "exact.generate")
        return self.codec.decode(final(trajectory(denoiser, self.path, x, times, cond=self.condition(prompts)))).clamp(0, 1)


def exact_world(name: str) -> World:
    """The truth behind `exact_model(name)`, whatever its path. Raises UserError for an unknown name.

    Images are [3, 8, 8]. With a linear codec: "gmm", four classes in two pairs, latent [1, 4, 4]; "anisotropic", four classes
    with variances of their own, and "hierarchical", three classes in each of three groups, likewise; "gaussian", one Gaussian,
    latent [1, 8, 8], with 8 directions of variance 1, 16 of .05 and 40 of .001; "identity", that Gaussian with an editor that
    changes nothing. "low-rank" is the Gaussian seen through a decoder of rank 24, "relu" the four classes through a ReLU network.
    """
    name = name.partition("@")[0]
    if name not in WORLDS:
        raise unknown("exact world", name, WORLDS)
    return WORLDS[name]()


def exact_model(name: str, path: NoisePath | None = None) -> Model:
    """A world by name as a model: "<world>", or "<world>@<path>" with a path of "vp" (the default), "ve" and "flow".

    Those are Stable Diffusion 1.5's, EDM's (sigma from 80 to .002) and the unshifted rectified flow; `path` is any other.
    Raises UserError for an unknown name of either.
    """
    world, (title, at, kind) = exact_world(name), name.partition("@")
    if at and kind not in PATHS:
        raise unknown("noise path", kind, PATHS)
    if at and path is not None:
        raise UserError(f"'{name}' names a path and another was given: leave one of them out")
    title = f"exact:{title}" + (f"@{kind}" if at and kind != "vp" else "")
    return as_model(world, path or PATHS[kind or "vp"](), title)


def as_model(world: World, path: NoisePath, name: str) -> Model:
    """Any world on any path as a model, with an editor and a generator that follow the exact denoiser.

    Its identity digests the world's parameters and, where it is not Stable Diffusion 1.5's, the path.
    """
    mixture, codec = world.mixture, world.codec
    condition, denoiser = named_classes(mixture), mixture.denoiser(path)
    elsewhere = {} if path == PATHS["vp"]() else {"path": _sha256(repr(path).encode())}
    return Model(
        name=name,
        path=path,
        denoiser=denoiser,
        codec=codec,
        condition=condition,
        editor=ExactEditor(denoiser, codec, path, condition, world.method, codec.image[-1]),
        generator=ExactGenerator(denoiser, codec, path, condition),
        identity={"source": name, "weights": _digest(world), **elsewhere},
        shape=codec.latent,
    )


def named_classes(mixture: GaussianMixture) -> Callable[[Sequence[str]], Tensor]:
    """Prompts to the classes that each allows, bool [B, K]: "class k" in a prompt means one, "group k" those of a super-class.

    A class goes before a group; a prompt that names neither allows all. Prompts that ask for what is not there raise UserError.
    """

    def asked(prompt: str, word: str, count: int) -> int | None:
        found = re.search(rf"\b{word} (\d+)\b", prompt)
        if found is None or count == 0:
            return None
        if int(found[1]) >= count:
            raise UserError(f"this world has {word} 0 to {word} {count - 1}: no prompt can ask for {found[0]}")
        return int(found[1])

    def allowed(prompt: str) -> Tensor:
        one, group = asked(prompt, "class", mixture.classes), asked(prompt, "group", mixture.groups)
        if one is not None:
            return torch.arange(mixture.classes) == one
        return torch.ones(mixture.classes, dtype=torch.bool) if group is None else mixture.members(group)

    def condition(prompts: Sequence[str]) -> Tensor:
        return torch.stack([allowed(prompt) for prompt in prompts]) if prompts else torch.ones(0, mixture.classes, dtype=torch.bool)

    return condition


def four_classes() -> GaussianMixture:
    """Classes 0, 1 against 2, 3 far apart and each pair's two nearer, in 16 dimensions, variance .1 within; near unit variance in all."""
    far, near = (1.2 * direction for direction in orthonormal(16, 2).T)
    means = [2.6 * sign * far + 1.2 * side * near for sign in (-1, 1) for side in (-1, 1)]
    return GaussianMixture(torch.stack(means), torch.full((4,), 0.1), torch.full((4,), 0.25))


def four_shapes() -> GaussianMixture:
    """Four classes of 16 variances each, from .02 to .5, in 16 dimensions; near unit variance in all."""
    return anisotropic(16, 4, separation=6.0, variances=(0.02, 0.5))


def three_groups() -> GaussianMixture:
    """Three groups of three classes in 16 dimensions: distances 6 between groups, 3 within; unit variance in all."""
    return hierarchical(16, (3, 3), separations=(6.0, 3.0), variance=0.0625)


def three_scales() -> GaussianMixture:
    """One Gaussian whose 64 directions have variances 1 (8 of them), .05 (16) and .001 (40)."""
    variances = torch.tensor([1.0] * 8 + [0.05] * 16 + [0.001] * 40, dtype=torch.float64)
    return GaussianMixture(torch.zeros(1, 64), variances[None], torch.ones(1))


def _isometry(mixture: GaussianMixture, method: Method = "ode") -> World:
    """A mixture seen through orthonormal directions, each of gain .25/192."""
    directions = mixture.means.shape[1]
    return World(mixture, LinearCodec(0.5 * orthonormal(prod(IMAGE), directions), _square(directions), IMAGE), method)


def _low_rank() -> World:
    """24 of the Gaussian's directions, mixed at random, with singular values from .8 to .2."""
    return World(three_scales(), LowRankCodec.random(_square(64), IMAGE, np.geomspace(0.8, 0.2, 24).tolist()))


def _relu() -> World:
    """The four classes through two layers of 32 ReLUs."""
    return World(four_classes(), PiecewiseLinearCodec.random(_square(16), IMAGE, (32, 32)))


def _square(directions: int) -> tuple[int, int, int]:
    return (1, isqrt(directions), isqrt(directions))


def _digest(world: World) -> str:
    """A digest of the parameters to six decimals, so that the last bits of another machine's algebra do not change it."""
    mixture = world.mixture
    hierarchy = [torch.tensor(mixture.parents)] if mixture.parents else []
    parameters = (mixture.means, mixture.variances, mixture.weights, *hierarchy, *world.codec.parameters)
    return _sha256(b"".join((part.detach().double() * 1e6).round().long().numpy().tobytes() for part in parameters))


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


WORLDS: dict[str, Callable[[], World]] = {
    "gmm": lambda: _isometry(four_classes()),
    "anisotropic": lambda: _isometry(four_shapes()),
    "hierarchical": lambda: _isometry(three_groups()),
    "gaussian": lambda: _isometry(three_scales()),
    "identity": lambda: _isometry(three_scales(), "none"),
    "low-rank": _low_rank,
    "relu": _relu,
}
PATHS: dict[str, Callable[[], NoisePath]] = {"vp": VariancePreserving.scaled_linear, "ve": VarianceExploding, "flow": RectifiedFlow}
