"""Stable Diffusion XL: a U-Net on two text encoders' states, what they pool, and the picture's size. Its refiner has no denoiser here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.conditions import TextCondition, no_text, text_and_pooled
from diffprobe.adapters.denoisers import Convention, convention
from diffprobe.adapters.families.base import Family, Pipelines, blank_text, deployed, with_network
from diffprobe.model import Model

REFINER = "none: a refiner's U-Net takes an aesthetic score and works on what another model left"


@dataclass(frozen=True, eq=False)
class XlDenoiser:
    """Stable Diffusion XL's U-Net, which also takes pooled text and the picture's size: x's own, uncropped, `pixels` a latent.

    Conditions are a `TextCondition`. None is what the deployed pipeline guides away from where no negative prompt is given, which
    is zeros for most of them and not the empty prompt.
    """

    unet: Any
    convention: Convention
    nothing: Callable[[], TextCondition]
    pixels: int

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        text = (self._nothing if cond is None else cond).expand(len(x))
        height, width = (side * self.pixels for side in x.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=text.states.dtype, device=x.device)
        added = {"text_embeds": text.pooled, "time_ids": sizes.expand(len(x), -1)}
        asked = self.convention
        shown, times = asked.shown(x, t).to(self.unet.dtype), asked.clock(x, t)
        raw = self.unet(shown, times, encoder_hidden_states=text.states, added_cond_kwargs=added).sample
        return asked.clean(x, t, raw)

    @cached_property
    def _nothing(self) -> TextCondition:
        return self.nothing()


def build(pipelines: Pipelines) -> Model:
    """A model with every capability; a refiner only edits."""
    model, pipe = deployed(pipelines), pipelines.either
    assert model.path is not None
    if not takes_sizes(pipe):
        return replace(model, generator=None, facts={"denoiser": REFINER})
    texts = text_and_pooled(pipe, 2)
    asked = convention(model.path, pipe.scheduler)
    return with_network(model, XlDenoiser(pipe.unet, asked, no_text(pipe, texts), int(pipe.vae_scale_factor)), texts)


def takes_sizes(pipe: Any) -> bool:
    """Whether the U-Net takes six numbers on the picture's size and crop; a refiner's takes a score among five."""
    settings = pipe.unet.config
    told = settings.projection_class_embeddings_input_dim - pipe.text_encoder_2.config.projection_dim
    return bool(told == 6 * settings.addition_time_embed_dim)


def blank(pipe: Any, rows: int) -> TextCondition:
    """States and pooled text as the encoders would give them."""
    settings = pipe.unet.config
    return blank_text(pipe.unet, rows, (77, int(settings.cross_attention_dim)), int(pipe.text_encoder_2.config.projection_dim))


FAMILY = Family("Stable Diffusion XL", "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", build, blank)
