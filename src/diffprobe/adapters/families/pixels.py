"""Unconditional DDPMs of pixels (Ho et al. 2020) on diffusers' UNet2DModel, sampled by chance (DDPM) or without (DDIM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.codecs import PixelCodec
from diffprobe.adapters.denoisers import Convention, convention
from diffprobe.adapters.families.base import Family, Pipelines
from diffprobe.adapters.schedulers import path_of, visited
from diffprobe.errors import UserError
from diffprobe.model import GenerateSettings, Model


@dataclass(frozen=True, eq=False)
class PixelDenoiser:
    """An unconditional U-Net of images in [-1, 1]. Its answer is not cut off there, as some schedulers do on their way."""

    unet: Any
    convention: Convention

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        raw = self.unet(self.convention.shown(x, t).to(self.unet.dtype), self.convention.clock(x, t)).sample
        return self.convention.clean(x, t, raw[:, : x.shape[1]])


@dataclass(frozen=True, eq=False)
class PixelGenerator:
    """A deployed DDPM or DDIM pipeline. It knows no words and is guided by none: prompts must be empty, and the scale does nothing."""

    pipe: Any
    size: int

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings) -> Tensor:
        """One image a seed; raises UserError for a prompt, or a size that is not the network's own."""
        words = next((prompt for prompt in (*prompts, settings.negative_prompt) if prompt), None)
        if words:
            raise UserError(f"this model is unconditional and cannot be asked for '{words}': set prompts to ['']")
        if any(asked not in (None, self.size) for asked in (settings.height, settings.width)):
            raise UserError(f"this pipeline draws {self.size} x {self.size} pixels alone: leave height and width out")
        with torch.no_grad():
            images = self.pipe(
                batch_size=len(prompts),
                generator=rng.generators(seeds),
                num_inference_steps=settings.num_inference_steps,
                output_type="pt",
                return_dict=False,
            )[0]
        found: Tensor = images.float().clamp(0, 1)
        return found


def build(pipelines: Pipelines) -> Model:
    """A model that generates, without words; x are the pixels themselves."""
    pipe, settings = pipelines.made, pipelines.made.unet.config
    path = visited(path_of(pipe.scheduler), pipe.scheduler)
    channels, size = int(settings.in_channels), _size(settings.sample_size)
    scheduler = pipe.scheduler.config
    facts = {"guidance": "none: the network takes no condition"}
    if scheduler.get("clip_sample"):
        facts["clipping"] = f"the scheduler cuts x0 off at {scheduler.get('clip_sample_range', 1.0):g}; the denoiser does not"
    return Model(
        name="",
        path=path,
        denoiser=PixelDenoiser(pipe.unet, convention(path, pipe.scheduler)),
        codec=PixelCodec(device=pipelines.device),
        generator=PixelGenerator(pipe, size),
        device=str(pipelines.device),
        shape=(channels, size, size),
        facts=facts,
        wordless=True,
    )


def _size(sides: int | Sequence[int]) -> int:
    height, width = (sides, sides) if isinstance(sides, int) else sides
    if height != width:
        raise UserError(f"this network draws {height} x {width} pixels, and only squares are known: wrap it with dp.wrap")
    return int(height)


def blank(pipe: Any, rows: int) -> None:
    """Nothing: the network takes no condition."""


DDPM = Family("unconditional DDPM of pixels", "DDPMPipeline", None, build, blank)
DDIM = Family("unconditional DDIM of pixels", "DDIMPipeline", None, build, blank)
