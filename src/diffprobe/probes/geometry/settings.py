"""Where a geometry study measures beside sets of images: generated samples, planes through latents, and the denoiser's own field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from diffprobe.errors import UserError

_STRICT = {"extra": "forbid"}  # a mistyped key in a study is an error


@dataclass(frozen=True)
class Generated:
    """Latents that the model draws from prompts with the deterministic sampler, a set of their own under `name`.

    `prompts` as in the consistency probe: a set, a file, or the prompts; `count`: the first so many. `samples` seeds a prompt:
    prompt i begins at i times that number, so that no two share noise. `points`: at how many states of the trajectory the decoder
    is described, evenly spaced from noise to data; 1 is where it ends. `at`: the state itself, scaled to unit variance as
    `x / sqrt(alpha^2 + sigma^2)`, or the denoiser's prediction of x_0 there.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    prompts: tuple[str, ...]
    name: str = "generated"
    count: int | None = None
    samples: int = 1
    num_inference_steps: int = 50
    guidance_scale: tuple[float, ...] = (7.5,)
    points: int = 1
    at: Literal["state", "prediction"] = "state"

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str):
            object.__setattr__(self, "prompts", (self.prompts,))
        scales = (self.guidance_scale,) if isinstance(self.guidance_scale, int | float) else self.guidance_scale
        object.__setattr__(self, "guidance_scale", tuple(float(scale) for scale in scales))
        if not self.prompts or not self.name:
            raise UserError("a generated set needs 'prompts' (a list, a file, or a set) and a name")
        if self.samples < 1 or self.num_inference_steps < 1 or not 1 <= self.points <= self.num_inference_steps + 1:
            raise UserError(
                f"the generated set '{self.name}' needs samples and num_inference_steps of at least 1, and points from 1 to the steps + 1"
            )
        if not self.guidance_scale or any(not math.isfinite(scale) or scale < 0 for scale in self.guidance_scale):
            raise UserError(f"guidance_scale of the generated set '{self.name}' must be finite and at least 0 (1 turns guidance off)")
        if len(set(self.guidance_scale)) < len(self.guidance_scale):
            raise UserError(f"a guidance_scale of the generated set '{self.name}' comes twice: name each once")


@dataclass(frozen=True)
class Slice:
    """A plane through three latents, over the rectangle that holds them, wider by `margin` of its sides in all, on `size` x `size` points.

    An anchor is an image of a set, such as 'world:0', or a prompt, for which the model draws a sample with the seed 0.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    anchors: tuple[str, str, str]
    name: str = "slice"
    size: int = 32
    margin: float = 0.5
    num_inference_steps: int = 50
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "margin"):  # 1 and 1.0 are one setting, and must be one cell
            object.__setattr__(self, name, float(getattr(self, name)))
        if len(self.anchors) != 3 or len(set(self.anchors)) < 3:
            raise UserError(f"the slice '{self.name}' needs three different anchors: three points span a plane")
        if self.size < 2 or not math.isfinite(self.margin) or self.margin < 0 or self.num_inference_steps < 1:
            raise UserError(f"the slice '{self.name}' needs a size of at least 2, a margin of at least 0, and a step at least")
        if not math.isfinite(self.guidance_scale) or self.guidance_scale < 0:
            raise UserError(f"guidance_scale of the slice '{self.name}' must be finite and at least 0 (1 turns guidance off)")


@dataclass(frozen=True)
class Field:
    """The denoiser itself, over `size` x `size` noisy points x within `span` standard deviations of the origin, at several `sigmas`.

    `map`: "denoiser" is E[x_0 | x_t], "step" the deterministic step to the next of `num_inference_steps` levels. Where x has two
    coordinates they are the axes; else a random plane through the origin is. `prompt` is its condition.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    sigmas: tuple[float, ...]
    name: str = "field"
    span: float = 2.5
    size: int = 33
    map: Literal["denoiser", "step"] = "denoiser"
    num_inference_steps: int = 50
    prompt: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "span", float(self.span))
        object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in self.sigmas))
        if not self.sigmas or any(not 0 < sigma < math.inf for sigma in self.sigmas) or len(set(self.sigmas)) < len(self.sigmas):
            raise UserError(f"the field '{self.name}' needs sigmas above 0, each once: noise-to-signal ratios, such as [0.1, 1, 10]")
        if self.size < 2 or not 0 < self.span < math.inf or self.num_inference_steps < 1:
            raise UserError(f"the field '{self.name}' needs a size of at least 2, a span above 0, and a step at least")
