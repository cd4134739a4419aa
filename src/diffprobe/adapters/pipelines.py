"""Deployed diffusers pipelines behind the protocols of probes: what encodes, edits and generates is the pipeline itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.codecs import VaeCodec
from diffprobe.errors import UserError
from diffprobe.model import Edited, EditSettings, GenerateSettings, Level
from diffprobe.paths import NoisePath, VariancePreserving

#: What a family's pipeline passes to its scheduler beside a number of steps, for latents of a height and a width.
Spacing = Callable[[int, tuple[int, int]], Mapping[str, Any]]
#: What a pipeline gives as latents, as latents [B, C, h, w] of that height and width.
Unpacking = Callable[[Tensor, tuple[int, int]], Tensor]


def alone(num_inference_steps: int, sides: tuple[int, int]) -> Mapping[str, Any]:
    """Nothing."""
    return {}


def _as_given(latents: Tensor, sides: tuple[int, int]) -> Tensor:
    return latents


@dataclass(frozen=True, eq=False)
class PipelineEditor:
    """A deployed image-to-image pipeline. It gets latents in place of images, so that it need not encode them again."""

    pipe: Any
    codec: VaeCodec
    path: NoisePath
    size: int
    spacing: Spacing = alone
    unpacked: Unpacking = _as_given
    strength_axis: ClassVar[bool] = True

    def level(self, strength: float, num_inference_steps: int) -> Level:
        """Where the pipeline would start at its native size, by its own timestep rule and its scheduler's own noising."""
        native = self.size // int(self.pipe.vae_scale_factor)
        return self._level(strength, num_inference_steps, (native, native))

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        sides = (int(latents.shape[-2]), int(latents.shape[-1]))
        level = self._level(settings.strength, settings.num_inference_steps, sides)
        if level.steps == 0:
            raise UserError(f"strength {settings.strength} runs no step of {settings.num_inference_steps}: raise either")
        image = latents.to(execution(self.pipe), self.pipe.dtype)
        call = {**_pixels(self.pipe, sides), **called(self.pipe, prompts, seeds, settings)}
        with torch.no_grad():
            result = self.pipe(image=image, strength=settings.strength, **call)[0]
            edited = self.unpacked(result, sides).float()
            images = self.codec.decode(edited)
        return Edited(images, edited, level, guided(self.pipe))

    def _level(self, strength: float, num_inference_steps: int, sides: tuple[int, int]) -> Level:
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(num_inference_steps, **self.spacing(num_inference_steps, sides))
        times, executed = self.pipe.get_timesteps(num_inference_steps, strength, execution(self.pipe))
        if executed < 1 or len(times) == 0:
            return Level(0, None, 1.0, 0.0)
        steps = len(times) if scheduler.order == 1 else int(executed)  # PNDM visits one level twice
        return _level(scheduler, self.path, steps, times[:1].cpu())


@dataclass(frozen=True, eq=False)
class InstructEditor:
    """A deployed InstructPix2Pix pipeline (Brooks et al. 2023), which always starts from pure noise: it has no strength axis.

    It swallows a `strength` without a word, so only strength 1 is taken here. `image_guidance_scale` is how closely
    it keeps to the image; 1.5 is the pipeline's own choice. At guidance scale 1 the pipeline uses neither.
    """

    pipe: Any
    codec: VaeCodec
    path: NoisePath
    size: int
    image_guidance_scale: float = 1.5
    strength_axis: ClassVar[bool] = False

    def level(self, strength: float, num_inference_steps: int) -> Level:
        """All steps from the first level, which is the noisiest; raises UserError for a strength other than 1."""
        if strength != 1:
            raise UserError(f"an InstructPix2Pix pipeline has no strength axis and ignores strength {strength}: use strength 1 alone")
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(num_inference_steps)
        return _level(scheduler, self.path, len(scheduler.timesteps), scheduler.timesteps[:1].cpu())

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        level = self.level(settings.strength, settings.num_inference_steps)
        image = self.codec.unscaled(latents).to(execution(self.pipe), self.pipe.dtype)  # what this pipeline shows the network
        scale = self.image_guidance_scale
        with torch.no_grad():
            result = self.pipe(image=image, image_guidance_scale=scale, **called(self.pipe, prompts, seeds, settings))[0]
            edited = result.float()
            images = self.codec.decode(edited)
        return Edited(images, edited, level, guided(self.pipe))


@dataclass(frozen=True, eq=False)
class PipelineGenerator:
    """A deployed text-to-image pipeline: images [B, 3, H, W] in [0, 1]. Decoding is float32, whatever the network runs in.

    `size` is its native side in pixels, `resizes` false where it draws no other.
    """

    pipe: Any
    codec: VaeCodec
    size: int
    resizes: bool = True
    unpacked: Unpacking = _as_given

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings) -> Tensor:
        """One image a prompt and seed; raises UserError for a size that the pipeline cannot draw."""
        height, width = _sides(settings, self.size)
        if self.resizes:
            _check_sides(self.pipe, height, width)
        elif (height, width) != (self.size, self.size):
            raise UserError(
                f"this pipeline draws {self.size} x {self.size} pixels alone, not {height} x {width}: leave height and width out"
            )
        sides = {"height": height, "width": width} if self.resizes else {}
        with torch.no_grad():
            result = self.pipe(**sides, **called(self.pipe, prompts, seeds, settings))[0]
            scale = int(self.pipe.vae_scale_factor)
            latents = self.unpacked(result, (height // scale, width // scale)).float()
            return self.codec.decode(latents).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class PixArtGenerator:
    """A deployed PixArt pipeline (Chen et al. 2024). Where `binned`, it draws at the one of its own resolutions with the nearest aspect
    ratio and then resizes and crops, so that any size can be asked for; a network that has no such resolutions draws what is asked.

    Captions are lowered and stripped, not cleaned: the pipeline's cleaning hangs on packages that may or may not be there.
    """

    pipe: Any
    codec: VaeCodec
    size: int
    binned: bool

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings) -> Tensor:
        """One image a prompt and seed; raises UserError for a size that the pipeline cannot draw."""
        height, width = _sides(settings, self.size)
        if not self.binned:
            _check_sides(self.pipe, height, width)
        call = called(self.pipe, prompts, seeds, settings)
        with torch.no_grad():
            latents = self.pipe(height=height, width=width, use_resolution_binning=self.binned, clean_caption=False, **call)[0]
            return _fitted(self.codec.decode(latents.float()), height, width).clamp(0, 1)


def network_of(pipe: Any) -> Any:
    """What denoises in a pipeline: its U-Net or its transformer."""
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def side(pipe: Any) -> int:
    """The native side in pixels; Flux has it in the pipeline and not in the network's settings."""
    latents = getattr(network_of(pipe).config, "sample_size", None) or pipe.default_sample_size
    return int(latents) * int(pipe.vae_scale_factor)


def execution(pipe: Any) -> torch.device:
    """Where the pipeline computes, which is not where its parts lie while they are offloaded."""
    device: torch.device = pipe._execution_device
    return device


def guided(pipe: Any) -> bool:
    """Whether the last call was guided: away from something, or by a scale that the network itself was told."""
    told = getattr(network_of(pipe).config, "guidance_embeds", None)
    return bool(pipe.do_classifier_free_guidance if told is None else told)


def _sides(settings: GenerateSettings, size: int) -> tuple[int, int]:
    """The height and width asked for; a pipeline that is given one of the two alone may ignore it."""
    height, width = (size if side is None else side for side in (settings.height, settings.width))
    if min(height, width) < 1:
        raise UserError(f"an image of {height} x {width} pixels has no pixel: leave height and width out for {size} x {size}")
    return height, width


def _check_sides(pipe: Any, height: int, width: int) -> None:
    """Raise UserError for sides that are not whole patches of whole latents, or outgrow a table of positions."""
    config, scale = network_of(pipe).config, int(pipe.vae_scale_factor)
    patch = 2 if hasattr(pipe, "_unpack_latents") else int(getattr(config, "patch_size", 1))
    step = lcm(8, scale * patch)
    if height % step or width % step:
        near = " x ".join(str(max(round(side / step), 1) * step) for side in (height, width))
        raise UserError(f"this pipeline draws sides in multiples of {step} pixels, not {height} x {width}: try {near}")
    most = scale * patch * int(getattr(config, "pos_embed_max_size", None) or max(height, width))
    if max(height, width) > most:
        raise UserError(f"this pipeline draws sides of at most {most} pixels, not {height} x {width}: ask for less")


def _fitted(images: Tensor, height: int, width: int) -> Tensor:
    """Images resized to cover height x width, and their middle: PixArt's own rule, which loses a pixel where a ratio rounds down."""
    old_height, old_width = images.shape[-2:]
    if (old_height, old_width) == (height, width):
        return images
    ratio = max(height / old_height, width / old_width)
    covering = (max(int(old_height * ratio), height), max(int(old_width * ratio), width))
    resized = torch.nn.functional.interpolate(images, size=covering, mode="bilinear", align_corners=False)
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return resized[..., top : top + height, left : left + width]


def called(pipe: Any, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings | GenerateSettings) -> dict[str, Any]:
    """The arguments of a call of a text pipeline. Raises UserError for a negative prompt where the pipeline would ignore it."""
    negative = settings.negative_prompt
    if negative and getattr(network_of(pipe).config, "guidance_embeds", None) is not None:
        raise UserError(f"a {type(pipe).__name__} is guided by no negative prompt: leave negative_prompt out")
    against = {} if negative is None else {"negative_prompt": [negative] * len(prompts)}
    return {
        "prompt": list(prompts),
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        **against,
        "generator": rng.generators(seeds),
        "output_type": "latent",
        "return_dict": False,
    }


def _pixels(pipe: Any, sides: tuple[int, int]) -> dict[str, int]:
    """The size of latents in pixels, for a pipeline that wants to be told."""
    if "height" not in inspect.signature(type(pipe).__call__).parameters:
        return {}
    return dict(zip(("height", "width"), (side * int(pipe.vae_scale_factor) for side in sides), strict=True))


def _level(scheduler: Any, path: NoisePath, steps: int, first: Tensor) -> Level:
    """The level at the first time, by the scheduler's own noising of one and of nothing."""
    one, zero = torch.ones(1, 1), torch.zeros(1, 1)
    alpha = float(_noised(scheduler, one, zero, first))
    sigma = float(_noised(scheduler, zero, one, first)) / alpha if alpha > 0 else float("inf")
    if isinstance(path, VariancePreserving):  # Euler and its kin rescale such a path to alpha 1
        alpha = (1 + sigma**2) ** -0.5
    return Level(steps, float(first[0]), alpha, sigma)


def _noised(scheduler: Any, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t by the scheduler's own rule; flow schedulers have another name and order for it."""
    if hasattr(scheduler, "scale_noise"):
        flowed: Tensor = scheduler.scale_noise(x0, times, noise)
        return flowed
    noisy: Tensor = scheduler.add_noise(x0, noise, times)
    return noisy
