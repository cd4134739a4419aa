"""Deployed diffusers pipelines behind the protocols of probes: what encodes, edits and generates is the pipeline itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.errors import UserError
from diffprobe.model import Edited, EditSettings, Level
from diffprobe.paths import NoisePath, VariancePreserving


@dataclass(frozen=True, eq=False)
class VaeCodec:
    """An AutoencoderKL in float32: the posterior's mean, shifted and scaled as the denoiser wants it."""

    vae: Any
    device: torch.device

    def encode(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            mean = self.vae.encode(images.to(self.device) * 2 - 1).latent_dist.mean
        latents: Tensor = (mean - self._shift) * self.vae.config.scaling_factor
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(self.unscaled(latents.to(self.device))).sample / 2 + 0.5
        return images

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents in the autoencoder's own scale."""
        raw: Tensor = latents / self.vae.config.scaling_factor + self._shift
        return raw

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


@dataclass(frozen=True, eq=False)
class PipelineEditor:
    """A deployed image-to-image pipeline. It gets latents in place of images, so that it need not encode them again."""

    pipe: Any
    codec: VaeCodec
    path: NoisePath
    size: int
    strength_axis: ClassVar[bool] = True

    def level(self, strength: float, num_inference_steps: int) -> Level:
        """Where the pipeline would start, asked of its own timestep rule and of its scheduler's own noising."""
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(num_inference_steps)
        times, executed = self.pipe.get_timesteps(num_inference_steps, strength, self.pipe.device)
        if executed < 1 or len(times) == 0:
            return Level(0, None, 1.0, 0.0)
        return _level(scheduler, self.path, int(executed), times[:1].cpu())

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        level = self.level(settings.strength, settings.num_inference_steps)
        if level.steps == 0:
            raise UserError(f"strength {settings.strength} runs no step of {settings.num_inference_steps}: raise either")
        image = latents.to(self.pipe.device, self.pipe.dtype)
        with torch.no_grad():
            result = self.pipe(image=image, strength=settings.strength, **_call(prompts, seeds, settings))[0]
            edited = result.float()
            images = self.codec.decode(edited)
        return Edited(images, edited, level, bool(self.pipe.do_classifier_free_guidance))


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
        image = self.codec.unscaled(latents).to(self.pipe.device, self.pipe.dtype)  # what this pipeline shows the network
        scale = self.image_guidance_scale
        with torch.no_grad():
            result = self.pipe(image=image, image_guidance_scale=scale, **_call(prompts, seeds, settings))[0]
            edited = result.float()
            images = self.codec.decode(edited)
        return Edited(images, edited, level, bool(self.pipe.do_classifier_free_guidance))


@dataclass(frozen=True, eq=False)
class PipelineGenerator:
    """A deployed text-to-image pipeline: images [B, 3, H, W] in [0, 1]. Decoding is float32, whatever the network runs in."""

    pipe: Any
    codec: VaeCodec

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], num_inference_steps: int, guidance_scale: float) -> Tensor:
        with torch.no_grad():
            latents = self.pipe(
                prompt=list(prompts),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=rng.generators(seeds),
                output_type="latent",
                return_dict=False,
            )[0]
            return self.codec.decode(latents.float()).clamp(0, 1)


def _call(prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> dict[str, Any]:
    return {
        "prompt": list(prompts),
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "negative_prompt": [settings.negative_prompt] * len(prompts),
        "generator": rng.generators(seeds),
        "output_type": "latent",
        "return_dict": False,
    }


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
