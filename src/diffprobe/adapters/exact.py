"""Worlds with known answers, as models like any other: Gaussian mixtures with their exact denoiser, seen through a linear decoder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt, log, pi, prod
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.errors import UserError, unknown
from diffprobe.model import Denoiser, Edited, EditSettings, Level, Model
from diffprobe.paths import NoisePath, Time, VariancePreserving, executed_steps
from diffprobe.sampling import Guidance, Sampler, final, guided, noised, start, trajectory

Method = Literal["ode", "sample", "mean", "none"]
IMAGE = (3, 8, 8)


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """sum_k weights_k N(means_k, diag variances_k): means [K, D], variances [K] or [K, D] above 0, weights [K] that sum to 1.

    Everything is computed in float64. Conditions are class indices [B] (or one), where -1, like None, is the whole mixture.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        means, variances, weights = (part.detach().double() for part in (self.means, self.variances, self.weights))
        spread = variances[:, None].expand(-1, means.shape[-1]) if variances.ndim == 1 else variances
        if means.ndim != 2 or spread.shape != means.shape or weights.shape != means.shape[:1]:
            raise ValueError("a mixture takes means [K, D], variances [K] or [K, D] and weights [K]")
        if bool((spread <= 0).any()) or bool((weights <= 0).any()) or abs(float(weights.sum()) - 1) > 1e-9:
            raise ValueError("a mixture's variances and weights are above 0, and the weights sum to 1")
        for name, value in (("means", means), ("variances", spread), ("weights", weights)):
            object.__setattr__(self, name, value.contiguous())

    @property
    def classes(self) -> int:
        return len(self.weights)

    def denoiser(self, path: NoisePath) -> Denoiser:
        """E[x_0 | x_t] and, given classes, E[x_0 | x_t, class], on `path`; x [B, ...] of any shape with D numbers a sample."""

        def exact(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
            flat, a, s = _flat(x), _column(path.alpha(t)), _column(path.sigma(t))
            gain = a * self.variances / (a.square() * self.variances + s.square())
            means = self.means + gain * (flat[:, None] - a * self.means)  # E[x_0 | x_t, k], [B, K, D]
            return (self._shares(flat, path, t, cond)[..., None] * means).sum(1).reshape(x.shape).to(x)

        return exact

    def log_posterior(self, x: Tensor, t: Time, path: NoisePath) -> Tensor:
        """log p(k | x_t), [B, K]."""
        joint = self.weights.log() + self.log_likelihoods(x, t, path)
        return joint - joint.logsumexp(-1, keepdim=True)

    def log_likelihoods(self, x: Tensor, t: Time, path: NoisePath) -> Tensor:
        """log p_t(x | k), [B, K]."""
        a, s = _column(path.alpha(t)), _column(path.sigma(t))
        variance = a.square() * self.variances + s.square()
        squares: Tensor = (_flat(x)[:, None] - a * self.means).square() / variance
        return -0.5 * (squares + variance.log() + log(2 * pi)).sum(-1)

    def score(self, x: Tensor, t: Time, path: NoisePath, cond: Any = None) -> Tensor:
        """grad log p_t(x) in float64 and of the shape of x, directly from the mixture; given classes, of those."""
        flat, a, s = _flat(x), _column(path.alpha(t)), _column(path.sigma(t))
        each = (a * self.means - flat[:, None]) / (a.square() * self.variances + s.square())
        return (self._shares(flat, path, t, cond)[..., None] * each).sum(1).reshape(x.shape)

    def sample(self, seeds: Sequence[int], role: str = "exact.sample") -> tuple[Tensor, Tensor]:
        """One sample a seed: x_0 [B, D] float64 and its class [B]."""
        draws = [rng.stream(f"{role}.class", seed).random() for seed in seeds]
        classes = torch.searchsorted(self.weights.cumsum(0), torch.tensor(draws, dtype=torch.float64)).clamp(max=self.classes - 1)
        noise = rng.normal(self.means.shape[1:], role, seeds).double()
        return self.means[classes] + self.variances[classes].sqrt() * noise, classes

    def _shares(self, flat: Tensor, path: NoisePath, t: Time, cond: Any) -> Tensor:
        """The weight of each component's answer: the posterior, or one class where `cond` names it. [B, K]"""
        posterior = self.log_posterior(flat, t, path).exp()
        if cond is None:
            return posterior
        classes = torch.as_tensor(cond, dtype=torch.long).expand(len(flat))
        if bool((classes >= self.classes).any()):
            raise ValueError(f"a class is one of 0 .. {self.classes - 1}, or -1 for the whole mixture")
        one = torch.nn.functional.one_hot(classes.clamp(min=0), self.classes).double()
        return torch.where((classes < 0)[:, None], posterior, one)


@dataclass(frozen=True, eq=False)
class LinearCodec:
    """Images 0.5 + matrix z, unclamped: matrix [3 H W, C h w] of full column rank, latent [C, h, w], image [3, H, W].

    `encode` is the pseudo-inverse, so that encoding a decoded latent gives it back; Tr(J J^T) is the matrix's sum of squares.
    """

    matrix: Tensor
    latent: tuple[int, int, int]
    image: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.matrix.shape != (prod(self.image), prod(self.latent)):
            raise ValueError(f"the matrix must be {prod(self.image)} x {prod(self.latent)}, not {' x '.join(map(str, self.matrix.shape))}")

    def encode(self, images: Tensor) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self.matrix.double()).to(images)
        return ((images - 0.5).flatten(1) @ inverse.T).reshape(-1, *self.latent)

    def decode(self, latents: Tensor) -> Tensor:
        return 0.5 + (latents.flatten(1) @ self.matrix.to(latents).T).reshape(-1, *self.image)

    @property
    def gains(self) -> Tensor:
        """What each latent direction adds to the mean square of an image, g_i = ||J e_i||^2 / (3 H W), float64 [C h w]."""
        return self.matrix.double().square().mean(0)


@dataclass(eq=False)
class ExactEditor:
    """Image-to-image as deployed (noise to the strength's level, then back), with an exact denoiser.

    `method`: "ode" is DDIM, "sample" its stochastic form (eta 1), "mean" one prediction, "none" changes nothing at all.
    """

    denoiser: Denoiser
    codec: LinearCodec
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
    """Text-to-image by DDIM with an exact denoiser; a prompt with "class k" asks for component k, any other for the mixture."""

    denoiser: Denoiser
    codec: LinearCodec
    path: NoisePath
    condition: Callable[[Sequence[str]], Tensor]

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], num_inference_steps: int, guidance_scale: float) -> Tensor:
        times = self.path.levels(num_inference_steps)
        x = start(self.path, times[0], self.codec.latent, seeds, "exact.generate")
        denoiser = guided(self.denoiser, self.path, Guidance(max(guidance_scale, 1.0)))
        return self.codec.decode(final(trajectory(denoiser, self.path, x, times, cond=self.condition(prompts)))).clamp(0, 1)


def exact_model(name: str, path: NoisePath | None = None) -> Model:
    """A world by name, its images [3, 8, 8]; the path defaults to Stable Diffusion 1.5's. Raises UserError for an unknown name.

    "gmm": four classes in two pairs, latent [1, 4, 4]. "gaussian": one Gaussian, latent [1, 8, 8], with 8 directions of
    variance 1, 16 of .05 and 40 of .001. "identity": that Gaussian with an editor that changes nothing.
    """
    if name not in WORLDS:
        raise unknown("exact world", name, WORLDS)
    world, path = WORLDS[name](), path or VariancePreserving.scaled_linear()
    directions = world.means.shape[1]
    codec = LinearCodec(0.5 * orthonormal(prod(IMAGE), directions), (1, isqrt(directions), isqrt(directions)), IMAGE)
    condition, denoiser = named_class(world.classes), world.denoiser(path)
    return Model(
        name=f"exact:{name}",
        path=path,
        denoiser=denoiser,
        codec=codec,
        condition=condition,
        editor=ExactEditor(denoiser, codec, path, condition, "none" if name == "identity" else "ode"),
        generator=ExactGenerator(denoiser, codec, path, condition),
        identity={"source": f"exact:{name}", "weights": _digest(world.means, world.variances, world.weights, codec.matrix)},
    )


def four_classes() -> GaussianMixture:
    """Classes 0, 1 against 2, 3 far apart and each pair's two nearer, in 16 dimensions, variance .1 within; near unit variance in all."""
    far, near = (1.2 * direction for direction in orthonormal(16, 2).T)
    means = [2.6 * sign * far + 1.2 * side * near for sign in (-1, 1) for side in (-1, 1)]
    return GaussianMixture(torch.stack(means), torch.full((4,), 0.1), torch.full((4,), 0.25))


def three_scales() -> GaussianMixture:
    """One Gaussian whose 64 directions have variances 1 (8 of them), .05 (16) and .001 (40)."""
    variances = torch.tensor([1.0] * 8 + [0.05] * 16 + [0.001] * 40, dtype=torch.float64)
    return GaussianMixture(torch.zeros(1, 64), variances[None], torch.ones(1))


def named_class(classes: int) -> Callable[[Sequence[str]], Tensor]:
    """Prompts to class indices [B]: "class k" anywhere in a prompt means component k, and its absence -1, the whole mixture."""

    def condition(prompts: Sequence[str]) -> Tensor:
        found = [re.search(r"\bclass (\d+)\b", prompt) for prompt in prompts]
        chosen = [int(match[1]) if match else -1 for match in found]
        if max(chosen, default=-1) >= classes:
            raise UserError(f"this world has the classes 0 to {classes - 1}: no prompt can ask for class {max(chosen)}")
        return torch.tensor(chosen, dtype=torch.long)

    return condition


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    """A fixed matrix [rows, columns] with orthonormal columns, uniformly distributed over the seeds (Haar), float64."""
    q, r = np.linalg.qr(rng.stream("exact.orthonormal", seed).standard_normal((rows, columns)))
    return torch.from_numpy(q * np.sign(np.diag(r)))


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).double()


def _column(coefficient: Tensor) -> Tensor:
    """A coefficient, scalar or one a sample, to multiply [B, K, D]."""
    return coefficient.reshape(-1, 1, 1)


def _digest(*parameters: Tensor) -> str:
    """A digest of the parameters to six decimals, so that the last bits of another machine's algebra do not change it."""
    text = b"".join((part.double() * 1e6).round().long().numpy().tobytes() for part in parameters)
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


WORLDS: dict[str, Callable[[], GaussianMixture]] = {"gmm": four_classes, "gaussian": three_scales, "identity": three_scales}
