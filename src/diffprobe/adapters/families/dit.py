"""DiT (Peebles and Xie 2023): a class-conditional transformer, which also says a variance that nobody reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.codecs import VaeCodec
from diffprobe.adapters.denoisers import Convention, convention
from diffprobe.adapters.families.base import Family, Pipelines, with_network
from diffprobe.adapters.pipelines import execution
from diffprobe.adapters.schedulers import path_of, visited
from diffprobe.errors import UserError
from diffprobe.model import GenerateSettings, Model

#: The class that stands for none, in the network and in the pipeline.
NO_CLASS = 1000


@dataclass(frozen=True, eq=False)
class DitDenoiser:
    """DiT's transformer. Conditions are class indices [B]; None is the class that stands for none."""

    transformer: Any
    convention: Convention

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        classes = torch.as_tensor(NO_CLASS if cond is None else cond, device=x.device).expand(len(x))
        shown = self.convention.shown(x, t).to(self.transformer.dtype)
        raw = self.transformer(shown, timestep=self.convention.clock(x, t), class_labels=classes).sample
        return self.convention.clean(x, t, raw[:, : x.shape[1]])


@dataclass(frozen=True, eq=False)
class DitGenerator:
    """A deployed DiT pipeline: one class a prompt. It draws its own size alone, and is guided away from no class by one scale for all."""

    pipe: Any
    size: int

    def generate(self, prompts: Sequence[str], seeds: Sequence[int], settings: GenerateSettings) -> Tensor:
        """One image a prompt and seed; raises UserError for another size, a negative prompt, or what names no class."""
        if any(asked not in (None, self.size) for asked in (settings.height, settings.width)):
            raise UserError(f"this pipeline draws {self.size} x {self.size} pixels alone: leave height and width out")
        if settings.negative_prompt:
            raise UserError("a class-conditional pipeline is guided away from no class alone: leave negative_prompt out")
        labels = classes_of(self.pipe, prompts).tolist()
        with torch.no_grad(), decoding_whole(self.pipe.vae):
            images: Tensor = self.pipe(
                class_labels=labels,
                guidance_scale=settings.guidance_scale,
                generator=rng.generators(seeds),
                num_inference_steps=settings.num_inference_steps,
                output_type="pt",
                return_dict=False,
            )[0]
        return images.float()


@contextmanager
def decoding_whole(vae: Any) -> Iterator[None]:
    """The autoencoder decodes in float32 what a network in half precision gives it."""
    decode = vae.decode
    vae.decode = lambda latents, **more: decode(latents.float(), **more)
    try:
        yield
    finally:
        del vae.decode


def classes_of(pipe: Any, prompts: Sequence[str]) -> Tensor:
    """The class of each prompt, int64 [B]: 'class <number>', a label of the pipeline, or nothing. Raises UserError for anything else."""
    labels = {label.lower(): index for label, index in pipe.labels.items()}
    count = int(pipe.transformer.config.num_embeds_ada_norm)

    def found(prompt: str) -> int:
        words = prompt.strip().lower()
        number = words.removeprefix("class ").strip()
        if not words:
            return NO_CLASS
        if words in labels:
            return int(labels[words])
        if words.startswith("class ") and number.isdecimal() and int(number) < count:
            return int(number)
        raise UserError(f"'{prompt}' is no class: give 'class <0 to {count - 1}>', a label of the pipeline, or '' for none")

    return torch.tensor([found(prompt) for prompt in prompts], device=execution(pipe))


def build(pipelines: Pipelines) -> Model:
    """A model that generates classes; diffusers has no class of this family that edits."""
    pipe, settings = pipelines.made, pipelines.made.transformer.config
    codec, path = VaeCodec(pipe.vae, pipelines.device), visited(path_of(pipe.scheduler), pipe.scheduler)
    channels, latents = int(settings.in_channels), int(settings.sample_size)
    size = latents * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    model = Model(
        "", path, codec=codec, generator=DitGenerator(pipe, size), device=str(pipelines.device), shape=(channels, latents, latents)
    )
    return with_network(model, DitDenoiser(pipe.transformer, convention(path, pipe.scheduler)), lambda prompts: classes_of(pipe, prompts))


def blank(pipe: Any, rows: int) -> Tensor:
    """No class."""
    return torch.full((rows,), NO_CLASS, device=pipe.transformer.device)


FAMILY = Family("DiT", "DiTPipeline", None, build, blank)
