"""Diffusers pipelines: Stable Diffusion 1.x/2.x, SDXL and SD3 through one door, the deployed pipeline itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.weights import LoadOptions, digest_folder, quiet, resolve
from diffprobe.errors import UserError
from diffprobe.model import Edited, EditSettings, Level, Model
from diffprobe.paths import NoisePath, RectifiedFlow, VariancePreserving

#: Families that this adapter knows; a folder saved from either class of one will do.
FAMILIES = ("StableDiffusion", "StableDiffusionXL", "StableDiffusion3")


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
        raw = latents.to(self.device) / self.vae.config.scaling_factor + self._shift
        images: Tensor = self.vae.decode(raw).sample / 2 + 0.5
        return images

    @property
    def _shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0


@dataclass(frozen=True, eq=False)
class PipelineEditor:
    """A deployed image-to-image pipeline. It gets latents in place of images, so that it need not encode them again."""

    pipe: Any
    codec: VaeCodec
    size: int
    strength_axis: bool = True

    def level(self, strength: float, num_inference_steps: int) -> Level:
        """Where the pipeline would start, asked of its own timestep rule and of its scheduler's own noising."""
        scheduler = self.pipe.scheduler
        scheduler.set_timesteps(num_inference_steps)
        times, executed = self.pipe.get_timesteps(num_inference_steps, strength, self.pipe.device)
        if executed < 1 or len(times) == 0:
            return Level(0, None, 1.0, 0.0)
        one, zero, first = torch.ones(1, 1), torch.zeros(1, 1), times[:1].cpu()
        alpha = float(_noised(scheduler, one, zero, first))
        sigma = float(_noised(scheduler, zero, one, first)) / alpha if alpha > 0 else float("inf")
        if hasattr(scheduler.config, "beta_schedule"):  # Euler and its kin rescale a variance-preserving path to alpha 1
            alpha = (1 + sigma**2) ** -0.5
        return Level(int(executed), float(times[0]), alpha, sigma)

    def edit(self, latents: Tensor, prompts: Sequence[str], seeds: Sequence[int], settings: EditSettings) -> Edited:
        level = self.level(settings.strength, settings.num_inference_steps)
        if level.steps == 0:
            raise UserError(f"strength {settings.strength} runs no step of {settings.num_inference_steps}: raise either")
        with torch.no_grad():
            result = self.pipe(
                prompt=list(prompts),
                image=latents.to(self.pipe.device, self.pipe.dtype),
                strength=settings.strength,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                negative_prompt=[settings.negative_prompt] * len(prompts),
                generator=rng.generators(seeds),
                output_type="latent",
                return_dict=False,
            )[0]
            edited = result.float()
            images = self.codec.decode(edited)
        return Edited(images, edited, level, bool(self.pipe.do_classifier_free_guidance))


@dataclass(frozen=True, eq=False)
class PipelineGenerator:
    """A deployed text-to-image pipeline: images [B, 3, H, W] in [0, 1]."""

    pipe: Any

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], num_inference_steps: int, guidance_scale: float) -> Tensor:
        with torch.no_grad():
            images: Tensor = self.pipe(
                prompt=list(prompts),
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=rng.generators(seeds),
                output_type="pt",
                return_dict=False,
            )[0]
        return images.float()


@dataclass(frozen=True, eq=False)
class UNetDenoiser:
    """A U-Net that predicts eps, v or x_0, as D(x, t, cond) -> E[x_0 | x_t] on a variance-preserving path."""

    unet: Any
    path: VariancePreserving
    prediction: str

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        times = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        raw = self.unet(x.to(self.unet.dtype), times, encoder_hidden_states=cond).sample.float()
        shape = (-1, *[1] * (x.ndim - 1))
        a = torch.as_tensor(self.path.alpha(times.cpu()), dtype=torch.float32).to(x.device).reshape(shape)
        s = torch.as_tensor(self.path.sigma(times.cpu()), dtype=torch.float32).to(x.device).reshape(shape)
        by_kind: dict[str, Callable[[], Tensor]] = {
            "epsilon": lambda: (x - s * raw) / a,
            "v_prediction": lambda: a * x - s * raw,
            "sample": lambda: raw,
        }
        return by_kind[self.prediction]()


def load_pipeline(spec: str, options: LoadOptions, name: str | None = None) -> Model:
    """A folder written by `save_pretrained`, or a hub id, as a Model; raises UserError where it is not found or not known."""
    import diffusers

    folder, origin = resolve(spec, options.revision, options.local_files_only)
    family, absent = _family(folder, spec)
    device, dtype = options.place()
    weights = digest_folder(folder)
    try:
        with quiet():
            made = getattr(diffusers, f"{family}Pipeline").from_pretrained(
                folder, dtype=dtype, variant=options.variant, use_safetensors=True, local_files_only=True, **absent
            )
            pipe = getattr(diffusers, f"{family}Img2ImgPipeline").from_pipe(made, torch_dtype=None)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        broken = "torchvision" in str(error)
        remedy = "pip uninstall torchvision, which nothing here needs" if broken else "fetch it again or check its files"
        raise UserError(f"cannot load the pipeline in {folder}: {_first_line(error)}; {remedy}", 4) from error
    pipe.to(device)
    if pipe.vae.dtype != torch.float32:  # half precision overflows in SDXL's decoder, and blurs what is to be measured in any
        with quiet():
            pipe.vae.to(torch.float32)
    for one in (made, pipe):
        one.set_progress_bar_config(disable=True)
    codec = VaeCodec(pipe.vae, device)
    path = _path(pipe.scheduler)
    denoiser, condition = None, None
    if isinstance(path, VariancePreserving) and family == "StableDiffusion":
        denoiser, condition = UNetDenoiser(pipe.unet, path, pipe.scheduler.config.prediction_type), _conditioner(pipe)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return Model(
        name=name or Path(spec).name,
        path=path,
        denoiser=denoiser,
        codec=codec,
        condition=condition,
        editor=PipelineEditor(pipe, codec, int(network.config.sample_size) * int(pipe.vae_scale_factor)),
        generator=PipelineGenerator(made),
        device=str(device),
        identity={**origin, "weights": weights, "family": family, "dtype": str(dtype).removeprefix("torch.")},
    )


def _noised(scheduler: Any, x0: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t by the scheduler's own rule; flow schedulers have another name and order for it."""
    if hasattr(scheduler, "scale_noise"):
        flowed: Tensor = scheduler.scale_noise(x0, times, noise)
        return flowed
    noisy: Tensor = scheduler.add_noise(x0, noise, times)
    return noisy


def _family(folder: Path, spec: str) -> tuple[str, dict[str, None]]:
    """The family of a saved pipeline, and the parts that it was saved without."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(f"'{spec}' holds no model_index.json: give a folder that a diffusers pipeline was saved to, or a hub id")
    content = json.loads(index.read_text())
    kind = str(content.get("_class_name"))
    family = kind.removesuffix("Pipeline").removesuffix("Img2Img")
    if family not in FAMILIES:
        known = ", ".join(f"{name}Pipeline" for name in FAMILIES)
        raise UserError(f"'{spec}' is a {kind}, which no adapter knows: use a {known}, or wrap it as a diffprobe.Model")
    return family, {name: None for name, part in content.items() if isinstance(part, list) and part[0] is None}


def _path(scheduler: Any) -> NoisePath:
    if hasattr(scheduler, "alphas_cumprod"):
        table = tuple(scheduler.alphas_cumprod.double().tolist())
        end = -1.0 if getattr(scheduler.config, "set_alpha_to_one", False) else 0.0
        return VariancePreserving(table, offset=int(scheduler.config.steps_offset), end=end)
    return RectifiedFlow(shift=float(getattr(scheduler.config, "shift", None) or 1.0))


def _conditioner(pipe: Any) -> Callable[[Sequence[str]], Tensor]:
    def condition(prompts: Sequence[str]) -> Tensor:
        with torch.no_grad():
            states: Tensor = pipe.encode_prompt(list(prompts), pipe.device, 1, do_classifier_free_guidance=False)[0]
        return states

    return condition


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
