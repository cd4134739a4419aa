"""PixArt-alpha and PixArt-sigma (Chen et al. 2024): a transformer on a T5's states, which also says a variance that nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.codecs import VaeCodec
from diffprobe.adapters.conditions import TextCondition, expanded
from diffprobe.adapters.denoisers import Convention, convention
from diffprobe.adapters.families.base import Family, Pipelines, blank_states, deployed, with_network
from diffprobe.adapters.pipelines import PixArtGenerator, side
from diffprobe.model import Model

#: The sides in latents for which a pipeline has resolutions of its own, and resizes from them to what is asked.
ALPHA_BINS, SIGMA_BINS = (32, 64, 128), (32, 64, 128, 256)


@dataclass(frozen=True, eq=False)
class PixArtDenoiser:
    """PixArt's transformer, whose channels beyond those of x are a learned variance. Conditions are a `TextCondition` with a mask.

    `pixels` a latent: the network for 1,024 pixels is told size and aspect of its picture, others (None) are not. None is the empty prompt.
    """

    transformer: Any
    convention: Convention
    nothing: Callable[[], TextCondition]
    pixels: int | None

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        text = (self._nothing if cond is None else cond).expand(len(x))
        raw = self.transformer(
            self.convention.shown(x, t).to(self.transformer.dtype),
            encoder_hidden_states=text.states,
            encoder_attention_mask=text.mask if text.mask is None or text.mask.ndim == 2 else text.mask.to(text.states.dtype),
            timestep=self.convention.clock(x, t),
            added_cond_kwargs=self._told(x, text.states.dtype),
        ).sample
        return self.convention.clean(x, t, raw[:, : x.shape[1]])

    @cached_property
    def _nothing(self) -> TextCondition:
        return self.nothing()

    def _told(self, x: Tensor, dtype: torch.dtype) -> dict[str, Tensor | None]:
        if self.pixels is None:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.pixels for side in x.shape[-2:])
        size = torch.tensor([[height, width]], dtype=dtype, device=x.device)
        aspect = torch.tensor([[height / width]], dtype=dtype, device=x.device)
        return {"resolution": size.expand(len(x), -1), "aspect_ratio": aspect.expand(len(x), -1)}


def _build(bins: tuple[int, ...], pipelines: Pipelines) -> Model:
    """A model that generates; diffusers has no class of this family that edits."""
    model, pipe = deployed(pipelines), pipelines.made
    assert isinstance(model.codec, VaeCodec)
    assert model.path is not None
    settings = pipe.transformer.config

    def encode(prompts: list[str]) -> TextCondition:
        states, mask, _, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, clean_caption=False)
        return TextCondition(states, mask=mask)

    def condition(prompts: Sequence[str]) -> TextCondition:
        return expanded(encode, prompts)

    told = int(pipe.vae_scale_factor) if pipe.transformer.use_additional_conditions else None
    generator = PixArtGenerator(pipe, model.codec, side(pipe), binned=int(settings.sample_size) in bins)
    denoiser = PixArtDenoiser(pipe.transformer, convention(model.path, pipe.scheduler), lambda: condition([""]), told)
    return with_network(replace(model, generator=generator), denoiser, condition)


def _blank(tokens: int, pipe: Any, rows: int) -> TextCondition:
    """States as the T5 would give them, and a mask by which all count."""
    network = pipe.transformer
    mask = torch.ones(rows, tokens, dtype=torch.int64, device=network.device)
    return TextCondition(blank_states(network, rows, tokens, int(network.config.caption_channels)), mask=mask)


ALPHA = Family("PixArt-alpha", "PixArtAlphaPipeline", None, partial(_build, ALPHA_BINS), partial(_blank, 120))
SIGMA = Family("PixArt-sigma", "PixArtSigmaPipeline", None, partial(_build, SIGMA_BINS), partial(_blank, 300))
