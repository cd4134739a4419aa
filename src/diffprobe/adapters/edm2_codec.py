"""Between images and what EDM2's networks see: pixels from -1 to 1, or Stable Diffusion's latents on a scale of their own.

Images are from 0 to 1 on this side, as everywhere here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.weights import check_digests, damage, quiet
from diffprobe.errors import UserError


@dataclass(frozen=True)
class LatentScale:
    """Moments a channel of Stable Diffusion's latents on ImageNet, and those that EDM2's networks see in their place.

    These are the latents of an autoencoder that is shown pixels from 0 to 1 and whose pictures are taken to be from 0 to 1: NVIDIA used
    it so, where Stable Diffusion itself shows it pixels from -1 to 1. Raises ValueError where there are no moments of every channel.
    """

    raw_mean: tuple[float, ...] = (5.81, 3.25, 0.12, -2.15)
    raw_std: tuple[float, ...] = (4.17, 4.62, 3.71, 3.28)
    final_mean: float = 0.0
    final_std: float = 0.5

    def __post_init__(self) -> None:
        moments = (self.raw_mean, self.raw_std, (self.final_mean, self.final_std))
        if not all(isinstance(part, tuple) and all(type(one) in (int, float) and abs(one) < 1e6 for one in part) for part in moments):
            raise ValueError("moments that are no numbers")
        if not 0 < len(self.raw_mean) == len(self.raw_std) <= 64 or min(*self.raw_std, self.final_std) < 1e-6:
            raise ValueError("moments that are no mean and no positive deviation of every channel")


@dataclass(frozen=True, eq=False)
class LatentCodec:
    """An AutoencoderKL in float32 with EDM2's own scale: the posterior's mean, each channel to the moments that the network sees.

    Training drew from the posterior; its mean leaves that noise out. Pictures are as they come, not cut off at 0 and 1.
    """

    vae: Any
    device: torch.device
    scale: LatentScale = field(default_factory=LatentScale)

    def encode(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            raw: Tensor = self.vae.encode(images.to(self.device)).latent_dist.mean
        mean, std = self._moments
        return (raw - mean) / std * self.scale.final_std + self.scale.final_mean

    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self._moments
        raw = (latents.to(self.device) - self.scale.final_mean) / self.scale.final_std * std + mean
        images: Tensor = self.vae.decode(raw).sample
        return images

    @property
    def _moments(self) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).reshape(-1, 1, 1)
            for values in (self.scale.raw_mean, self.scale.raw_std)
        )
        return mean, std


def latent_codec(folder: Path, channels: int, device: torch.device, scale: LatentScale) -> LatentCodec:
    """The AutoencoderKL in a folder of diffusers, for a network of so many channels; raises UserError where it is none for it."""
    from diffusers import AutoencoderKL

    if channels == 3:
        raise UserError("this network draws pixels and needs no autoencoder: leave vae= out")
    check_digests(folder)
    try:
        with quiet():
            vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(damage(folder) or f"cannot load the autoencoder in {folder} ({told}): fetch it again", 4) from error
    if not vae.config.latent_channels == len(scale.raw_mean) == channels:
        told = f"the autoencoder in {folder} has {vae.config.latent_channels} channels, the network {channels}"
        raise UserError(f"{told}: give the one that it was trained with (sd-vae-ft-mse)")
    return LatentCodec(vae.to(device, torch.float32).eval().requires_grad_(False), device, scale)
