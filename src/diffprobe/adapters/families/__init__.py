"""The families of diffusers pipelines that are known, one file each: what adding one costs."""

from diffprobe.adapters.families import (
    class_conditional,
    dit,
    flux,
    instruct_pix2pix,
    pixart,
    pixels,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
)
from diffprobe.adapters.families.base import Family, Pipelines

#: The name of a saved pipeline's class, without "Img2Img" and "Pipeline", to its family. A folder of either class of a family will do.
FAMILIES: dict[str, Family] = {
    "StableDiffusion": stable_diffusion.FAMILY,
    "StableDiffusionXL": stable_diffusion_xl.FAMILY,
    "StableDiffusion3": stable_diffusion_3.FAMILY,
    "StableDiffusionInstructPix2Pix": instruct_pix2pix.FAMILY,
    "PixArtAlpha": pixart.ALPHA,
    "PixArtSigma": pixart.SIGMA,
    "Flux": flux.FAMILY,
    "DiT": dit.FAMILY,
    "DDPM": pixels.DDPM,
    "DDIM": pixels.DDIM,
    "ClassConditional": class_conditional.FAMILY,
}

__all__ = ["FAMILIES", "Family", "Pipelines"]
