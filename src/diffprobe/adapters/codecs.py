"""Autoencoders as codecs: those of pipelines, and any that stands alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.weights import LoadOptions, check_digests, damage, digest_folder, quiet, resolve
from diffprobe.errors import UserError
from diffprobe.model import Model

#: Autoencoders of diffusers that are read, and what their `encode` gives: a distribution, whose mean is taken, or latents.
AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC", "AsymmetricAutoencoderKL")


@dataclass(frozen=True, eq=False)
class VaeCodec:
    """An autoencoder in float32: the posterior's mean where it has one, shifted and scaled as the denoiser wants it.

    Latents are (raw - shift) scaling, or (raw - mean) scaling/std a channel where the autoencoder has `latents_mean` and `latents_std`.
    """

    vae: Any
    device: torch.device

    def encode(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.vae.encode(images.to(self.device) * 2 - 1)
        raw: Tensor | None = found.latent_dist.mean if hasattr(found, "latent_dist") else getattr(found, "latents", None)
        if raw is None:  # AutoencoderDC has another name for them
            raw = found.latent
        mean, std = self._moments(raw)
        latents: Tensor = (raw - mean) * (self.vae.config.scaling_factor / std)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(self.unscaled(latents.to(self.device))).sample / 2 + 0.5
        return images

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents in the autoencoder's own scale."""
        mean, std = self._moments(latents)
        raw: Tensor = latents * std / self.vae.config.scaling_factor + mean
        return raw

    def _moments(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """What is taken off raw latents, and what they are divided by beside their scaling."""
        mean, std = (getattr(self.vae.config, f"latents_{name}", None) for name in ("mean", "std"))
        if mean is None or std is None:
            return getattr(self.vae.config, "shift_factor", None) or 0.0, 1.0
        spread = torch.tensor([mean, std], device=like.device, dtype=like.dtype)[..., None, None]
        return spread[0], spread[1]

    def facts(self) -> dict[str, str]:
        """What scales its latents."""
        settings = self.vae.config
        if getattr(settings, "latents_mean", None) is not None:
            return {"latents": f"{type(self.vae).__name__}, standardised a channel, times {settings.scaling_factor:g}"}
        shift = getattr(settings, "shift_factor", None) or 0.0
        return {"latents": f"{type(self.vae).__name__}, less {shift:g}, times {settings.scaling_factor:g}"}


@dataclass(frozen=True, eq=False)
class PixelCodec:
    """Images [B, 3, H, W] in [0, 1] are what the network sees, on a scale on which black is `low` and white `high`."""

    low: float = -1.0
    high: float = 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def fingerprint(self) -> str:
        """Its scale, by which a run knows it again."""
        return f"identity/{self.low:g}/{self.high:g}"

    def encode(self, images: Tensor) -> Tensor:
        return images.to(self.device) * (self.high - self.low) + self.low

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.to(self.device) - self.low) / (self.high - self.low)


def kind_of_codec(folder: Path) -> str | None:
    """The class of an autoencoder saved alone in a folder; None where it holds none."""
    file = folder / "config.json"
    if not file.is_file() or (folder / "model_index.json").is_file():
        return None
    try:
        kind = json.loads(file.read_text()).get("_class_name")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): fetch it again", 4) from error
    return kind if kind in AUTOENCODERS else None


def load_codec(spec: str, options: LoadOptions) -> Model:
    """An autoencoder alone, a folder written by its `save_pretrained` or a hub id, as a Model that has a codec and nothing else.

    Raises UserError where it is not found, not known or damaged.
    """
    import diffusers

    folder, origin = resolve(spec, options.revision, options.local_files_only, options.variant)
    kind = kind_of_codec(folder)
    assert kind is not None
    check_digests(folder)
    device, _ = options.place()
    try:
        with quiet():
            found = getattr(diffusers, kind).from_pretrained(folder, use_safetensors=True, local_files_only=True, variant=options.variant)
            vae = found.to(device, torch.float32).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(damage(folder) or f"cannot load the {kind} in {folder}: {told}; fetch it again", 4) from error
    codec = VaeCodec(vae, device)
    identity = {**origin, "weights": digest_folder(folder, options.variant), "family": kind, "dtype": "float32"}
    shape = _shape(codec, _native(vae))
    return Model(name=Path(spec).name, codec=codec, device=str(device), identity=identity, shape=shape, facts=codec.facts())


def _native(vae: Any) -> int:
    """The side in pixels that an autoencoder was made for; 512 where it does not say."""
    told = getattr(vae.config, "sample_size", None) or 512
    return int(told[0] if isinstance(told, list | tuple) else told)


def _shape(codec: VaeCodec, size: int) -> tuple[int, int, int]:
    """That of the latent of an image with so many pixels a side, asked of a small one."""
    small = 64
    with torch.no_grad():
        channels, height, width = codec.encode(torch.zeros(1, 3, small, small)).shape[1:]
    return channels, height * size // small, width * size // small
