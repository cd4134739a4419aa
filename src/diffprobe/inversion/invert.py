"""Images' latents to the noise that would have made them, and back: four ways of inversion by one name each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffprobe.errors import UserError, unknown
from diffprobe.inversion.climb import checked, climb, levels
from diffprobe.inversion.null_text import INNER_STEPS, check_optimisable, null_text, with_states
from diffprobe.model import Denoiser, Model, ToldGuidance
from diffprobe.paths import NoisePath
from diffprobe.sampling import Guidance, final, guided, trajectory

METHODS = ("ddim", "fixed-point", "null-text", "negative-prompt")
REFINEMENTS = 5


@dataclass(frozen=True)
class Inversion:
    """How to invert; the names are those of diffusers.

    "ddim": each step of the deterministic sampler backwards, from one guess (Euler's on a flow). "fixed-point": the guess refined until
    the step is met. "null-text": "ddim" without guidance, then the unconditional states optimised until guided sampling comes back
    (Mokady et al. 2023). "negative-prompt": "ddim" without guidance, undone with the prompt on both sides (Miyake et al. 2023).
    `guidance_scale` is that at which the first two climb, and for which null-text optimises. `iterations` are refinements a step of
    "fixed-point" (0: 5), or inner steps of "null-text" (0: 10). Raises UserError for what is not known or out of range.
    """

    method: str = "ddim"
    num_inference_steps: int = 50
    guidance_scale: float = 1.0
    negative_prompt: str = ""
    iterations: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown("inversion", self.method, METHODS)
        if self.num_inference_steps < 1:
            raise UserError(f"num_inference_steps {self.num_inference_steps} must be at least 1")
        if not isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise UserError("guidance_scale must be a finite number of at least 0 (1 turns guidance off)")
        if self.iterations < 0:
            raise UserError(f"iterations {self.iterations} must be at least 0, which stands for the method's own number")

    @property
    def guides(self) -> bool:
        """Whether it climbs with guidance."""
        return self.method in {"ddim", "fixed-point"} and self.guidance_scale != 1

    @property
    def refinements(self) -> int:
        """How often a step of the climb asks again."""
        return (self.iterations or REFINEMENTS) if self.method == "fixed-point" else 0

    @property
    def inner_steps(self) -> int:
        """How many inner steps at most each step of null-text takes."""
        return (self.iterations or INNER_STEPS) if self.method == "null-text" else 0

    @property
    def evaluations(self) -> int:
        """Network evaluations a sample and step, at most; one that is differentiated counts for three."""
        return (1 + self.refinements) * (1 + self.guides) + (2 + 3 * self.inner_steps if self.method == "null-text" else 0)


class Inverted(NamedTuple):
    """What an inversion found, on the CPU in float32: `latents` [B, ...] at the first level.

    `nothing` [steps, B, ...]: the optimised unconditional states of null-text, one set for each of the times as they fall; else None.
    `residual` [B] float64: how far the last iterate of the fixed point still moved x, relative, at the level where it moved most; nan
    without a fixed point.
    """

    latents: Tensor
    nothing: Tensor | None
    residual: Tensor


@torch.no_grad()
def invert(
    model: Model,
    latents: Tensor,
    prompts: Sequence[str],
    how: Inversion,
    *,
    times: Sequence[float] | None = None,
    lost: bool = False,
) -> Inverted:
    """The noise at times[0] of clean latents [B, ...], under a prompt each; `times` None: `model.path.levels(how.num_inference_steps)`.

    A row that comes out not finite is left for the caller to flag. Raises UserError where the model lacks a part, the latents are not
    its own, the times do not fall, or no row comes out finite, unless `lost` says that the caller minds.
    """
    denoiser, path, condition = parts_of(model)
    times = levels(path, how.num_inference_steps) if times is None else checked(times)
    if isinstance(denoiser, ToldGuidance) and (how.negative_prompt or how.method in {"null-text", "negative-prompt"}):
        raise UserError(
            f"{model.name} is told its guidance and guided away from nothing: choose ddim or fixed-point, and no negative_prompt"
        )
    x, cond, away = _placed(model, latents, prompts), condition(list(prompts)), _away(condition, how, len(prompts))
    if how.method == "null-text":
        check_optimisable(away, how.guidance_scale)
    climber = guided(denoiser, path, Guidance(how.guidance_scale, negative=away)) if how.guides else denoiser
    pivots, moved = list[tuple[float, Tensor]](), list[Tensor]()
    for state in climb(climber, path, x, times, cond=cond, iterations=how.refinements):
        x = state.x
        moved.append(state.moved)
        if how.method == "null-text":
            pivots.append((state.t, x.cpu()))
    if not lost and not _any_finite(x):
        raise UserError(_lost(model, float(path.alpha(times[0]))))
    nothing = None
    if how.method == "null-text":
        down = null_text(denoiser, path, pivots, (cond, away), how.guidance_scale, how.inner_steps)
        nothing = torch.stack([step.states.cpu() for step in down])
    return Inverted(x.cpu(), nothing, torch.stack(moved[1:]).amax(0))


@torch.no_grad()
def replay(  # noqa: PLR0913 (a call as diffusers' pipelines have it)
    model: Model,
    latents: Tensor,
    prompts: Sequence[str],
    how: Inversion,
    *,
    guidance_scale: float = 1.0,
    nothing: Tensor | None = None,
    times: Sequence[float] | None = None,
) -> Tensor:
    """The clean latents [B, ...] of noise at times[0], float32 on the CPU: the deterministic steps down, guided away from
    `how.negative_prompt`, or from `nothing` where null-text tuned it.

    After a negative-prompt inversion guidance pushes from the prompt to itself: whatever its scale, there is none. A row that is
    not finite stays so. Raises UserError as `invert` does, and where null-text's `nothing` is missing or is of other steps.
    """
    denoiser, path, condition = parts_of(model)
    times = levels(path, how.num_inference_steps) if times is None else checked(times)
    x, cond = _placed(model, latents, prompts), condition(list(prompts))
    if guidance_scale != 1 and how.method != "negative-prompt":
        away = _away(condition, how, len(x))
        if how.method == "null-text":
            denoiser = _retraced(denoiser, path, guidance_scale, away, dict(zip(times, _tuned(nothing, times), strict=True)))
        else:
            denoiser = guided(denoiser, path, Guidance(guidance_scale, negative=away))
    return final(trajectory(denoiser, path, x, times, cond=cond)).cpu()


def parts_of(model: Model) -> tuple[Denoiser, NoisePath, Callable[[Sequence[str]], Any]]:
    """What inversion asks of a model; raises UserError where it lacks any of it, or has no steps to invert."""
    if model.denoiser is None or model.path is None or model.condition is None:
        lacking = " and no ".join(name for name in ("denoiser", "path", "condition") if getattr(model, name) is None)
        raise UserError(f"inversion needs a denoiser, a path and a condition; {model.name} has no {lacking}: choose another model")
    if "distilled" in model.identity:
        why = f"{model.identity['distilled']} leaps to data and noises anew, which no step undoes"
        raise UserError(f"{model.name} cannot be inverted: {why}; invert the model that it was distilled from")
    return model.denoiser, model.path, model.condition


def _placed(model: Model, latents: Tensor, prompts: Sequence[str]) -> Tensor:
    """The latents where the model runs, float32; raises UserError where they are not its own (but for their sides), or none is finite."""
    shape = model.shape
    if latents.ndim < 2 or (shape is not None and (latents.ndim != len(shape) + 1 or latents.shape[1] != shape[0])):
        expected = ["B", *(shape or ("...",))]
        raise UserError(
            f"latents {list(latents.shape)} are not {model.name}'s [{', '.join(map(str, expected))}]: encode with its own codec"
        )
    if len(prompts) != len(latents):
        raise UserError(f"{len(latents)} latents and {len(prompts)} prompts: give one prompt each")
    if not _any_finite(latents):
        raise UserError("no latent is finite: check the images and the codec that encoded them")
    return latents.to(model.device, torch.float32)


def _any_finite(rows: Tensor) -> bool:
    return bool(torch.isfinite(rows).flatten(1).all(1).any())


def _away(condition: Callable[[Sequence[str]], Any], how: Inversion, count: int) -> Any:
    return condition([how.negative_prompt] * count)


def _tuned(nothing: Tensor | None, times: Sequence[float]) -> Tensor:
    if nothing is None or len(nothing) != len(times):
        given = "none" if nothing is None else f"{len(nothing)} of them"
        raise UserError(
            f"null-text is undone with the states that invert gave, for each of {len(times)} times, not {given}: pass `nothing`"
        )
    return nothing


def _retraced(denoiser: Denoiser, path: NoisePath, scale: float, away: Any, states: Mapping[float, Tensor]) -> Denoiser:
    """The denoiser with guidance away from other states at each of the times."""

    def combined(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        return guided(denoiser, path, Guidance(scale, negative=with_states(away, states[float(t)])))(x, t, cond)

    return combined


def _lost(model: Model, alpha: float) -> str:
    """What to say where no row of an inversion is finite."""
    if alpha == 0:
        why = "its first level is pure noise, where a network that predicts noise says nothing of the image"
        return f"{model.name} cannot be inverted: {why}; invert to a lower level, times=model.path.levels(n)[1:]"
    return f"no latent of {model.name} comes out of the inversion finite: use more steps, fewer iterations, or a torch_dtype of float32"
