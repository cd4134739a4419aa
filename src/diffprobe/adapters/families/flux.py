"""Flux: a transformer on packed latents, which predicts a flow's velocity and is told its guidance instead of being asked twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffprobe.adapters.conditions import TextCondition, expanded
from diffprobe.adapters.denoisers import Convention, convention
from diffprobe.adapters.families.base import Family, Pipelines, blank_text, deployed, with_network
from diffprobe.adapters.pipelines import PipelineEditor, PipelineGenerator, execution
from diffprobe.adapters.schedulers import shift_of
from diffprobe.model import Model


@dataclass(frozen=True, eq=False)
class FluxDenoiser:
    """Flux's transformer on latents [B, 16, h, w] with even sides. Conditions are a `TextCondition`; None is the empty prompt.

    A network distilled from a guided one (Flux.1-dev) is told the scale `guidance`: at 1 it is to answer as if nothing guided it.
    """

    transformer: Any
    convention: Convention
    nothing: Callable[[], TextCondition]
    guidance: float = 1.0

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        text = (self._nothing if cond is None else cond).expand(len(x))
        height, width = x.shape[-2:]
        scale = torch.full((len(x),), self.guidance, device=x.device) if self.transformer.config.guidance_embeds else None
        raw = self.transformer(
            hidden_states=packed(x).to(self.transformer.dtype),
            timestep=self.convention.clock(x, t) / 1000,
            guidance=scale,
            encoder_hidden_states=text.states,
            pooled_projections=text.pooled,
            txt_ids=torch.zeros(text.states.shape[1], 3, device=x.device, dtype=text.states.dtype),
            img_ids=positions(height // 2, width // 2).to(x.device, text.states.dtype),
        ).sample
        return self.convention.clean(x, t, unpacked(raw, (height, width)))

    def told(self, scale: float) -> FluxDenoiser:
        """This denoiser told another scale; itself where the network is told none."""
        return replace(self, guidance=scale) if self.transformer.config.guidance_embeds and scale != self.guidance else self

    @cached_property
    def _nothing(self) -> TextCondition:
        return self.nothing()


def build(pipelines: Pipelines) -> Model:
    """A model with every capability. Its shift goes with the image's size: the path's levels are those of the native one."""
    pipe = pipelines.either
    embeds = bool(pipe.transformer.config.guidance_embeds)
    facts = {"guidance": "a scale that the network is told; 1 in the denoiser" if embeds else "none: guidance_scale does nothing"}

    def encode(prompts: list[str]) -> TextCondition:
        states, pooled, _ = pipe.encode_prompt(prompts, prompt_2=None, device=execution(pipe))
        return TextCondition(states, pooled)

    def condition(prompts: Sequence[str]) -> TextCondition:
        return expanded(encode, prompts)

    shared = deployed(pipelines, partial(_spacing, pipe))
    assert shared.path is not None
    editor = replace(shared.editor, unpacked=unpacked) if isinstance(shared.editor, PipelineEditor) else None
    generator = replace(shared.generator, unpacked=unpacked) if isinstance(shared.generator, PipelineGenerator) else None
    denoiser = FluxDenoiser(pipe.transformer, convention(shared.path, pipe.scheduler), lambda: condition([""]))
    return with_network(replace(shared, editor=editor, generator=generator, facts=facts), denoiser, condition)


def packed(x: Tensor) -> Tensor:
    """Latents [B, C, h, w] as the network takes them, a row a square of 2 x 2: [B, h/2 w/2, 4 C]."""
    rows: Tensor = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    return rows


def unpacked(rows: Tensor, sides: tuple[int, int]) -> Tensor:
    """Rows as `packed` gives them, back as latents of a height and a width."""
    grid: Tensor = rows.unflatten(2, (-1, 2, 2)).unflatten(1, (sides[0] // 2, sides[1] // 2))
    latents: Tensor = grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    return latents


def positions(height: int, width: int) -> Tensor:
    """Where each row of packed latents lies: [height width, 3], of which the first is 0."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1)


def _spacing(pipe: Any, num_inference_steps: int, sides: tuple[int, int]) -> Mapping[str, Any]:
    """Sigmas of its own, equally spaced down to 1/n, but for solvers that space flows themselves; and the shift of the image's size."""
    own = {} if pipe.scheduler.config.get("use_flow_sigmas") else {"sigmas": np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)}
    return {**own, **shift_of(pipe.scheduler, (sides[0] // 2) * (sides[1] // 2))}


def blank(pipe: Any, rows: int) -> TextCondition:
    """States as the T5 would give them, and what the CLIP pools."""
    settings = pipe.transformer.config
    return blank_text(pipe.transformer, rows, (512, int(settings.joint_attention_dim)), int(settings.pooled_projection_dim))


FAMILY = Family("Flux", "FluxPipeline", "FluxImg2ImgPipeline", build, blank)
