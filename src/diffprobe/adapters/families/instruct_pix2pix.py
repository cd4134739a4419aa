"""InstructPix2Pix (Brooks et al. 2023): Stable Diffusion 1's U-Net with an image to be edited in four further channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.codecs import VaeCodec
from diffprobe.adapters.conditions import TextCondition, expanded
from diffprobe.adapters.denoisers import Convention, convention
from diffprobe.adapters.families.base import Family, Pipelines, blank_states, deployed, with_network
from diffprobe.adapters.pipelines import InstructEditor, execution, side
from diffprobe.model import Model


@dataclass(frozen=True, eq=False)
class PicturedDenoiser:
    """InstructPix2Pix's U-Net. Conditions are a `TextCondition`, whose `picture` is the image's latents in the autoencoder's own scale.

    Without a picture the network sees zeros, by which it was trained to draw what the text alone says; None is the empty prompt, too.
    """

    unet: Any
    convention: Convention
    nothing: Callable[[], TextCondition]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        text = (self._nothing if cond is None else cond).expand(len(x))
        picture = torch.zeros_like(x) if text.picture is None else text.picture
        shown = torch.cat([self.convention.shown(x, t), picture.to(x)], dim=1).to(self.unet.dtype)
        raw = self.unet(shown, self.convention.clock(x, t), encoder_hidden_states=text.states).sample
        return self.convention.clean(x, t, raw)

    @cached_property
    def _nothing(self) -> TextCondition:
        return self.nothing()


def build(pipelines: Pipelines) -> Model:
    """A model that edits by instructions from pure noise, and generates nothing: its denoiser is asked without a picture."""
    model, pipe = deployed(pipelines), pipelines.edits
    assert isinstance(model.codec, VaeCodec)
    assert model.path is not None

    def encode(prompts: list[str]) -> TextCondition:
        return TextCondition(pipe._encode_prompt(prompts, execution(pipe), 1, do_classifier_free_guidance=False))

    def condition(prompts: Sequence[str]) -> TextCondition:
        return expanded(encode, prompts)

    editor = InstructEditor(pipe, model.codec, model.path, side(pipe))
    facts = {"strength": "none: the pipeline starts from pure noise", "denoiser": "text alone, with zeros for the picture"}
    denoiser = PicturedDenoiser(pipe.unet, convention(model.path, pipe.scheduler), lambda: condition([""]))
    return with_network(replace(model, editor=editor, facts=facts), denoiser, condition)


def blank(pipe: Any, rows: int) -> TextCondition:
    """States as the text encoder would give them."""
    return TextCondition(blank_states(pipe.unet, rows, 77, int(pipe.unet.config.cross_attention_dim)))


FAMILY = Family("InstructPix2Pix", None, "StableDiffusionInstructPix2PixPipeline", build, blank)
