"""Class-conditional latent models on an EDM scheduler, for which diffprobe has a pipeline of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.denoisers import Convention, convention
from diffprobe.adapters.families.base import Family, Pipelines, deployed, with_network
from diffprobe.adapters.pipelines import PipelineGenerator
from diffprobe.model import Model


@dataclass(frozen=True, eq=False)
class ClassDenoiser:
    """A class-conditional U-Net. Conditions are class indices; None is `no_class`. `tokens` turns indices [B] into what it takes."""

    unet: Any
    convention: Convention
    no_class: int
    tokens: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        classes = torch.as_tensor(self.no_class if cond is None else cond, device=x.device).expand(len(x))
        asked = self.convention
        raw = self.unet(asked.shown(x, t).to(self.unet.dtype), asked.clock(x, t), encoder_hidden_states=self.tokens(classes)).sample
        return asked.clean(x, t, raw)


def build(pipelines: Pipelines) -> Model:
    """A model with every capability, which draws no other size than its own."""
    model, pipe = deployed(pipelines), pipelines.either
    assert model.path is not None
    generator = replace(model.generator, resizes=False) if isinstance(model.generator, PipelineGenerator) else None
    denoiser = ClassDenoiser(pipe.unet, convention(model.path, pipe.scheduler), pipe.labels[""], pipe.tokens)
    return with_network(replace(model, generator=generator), denoiser, pipe.classes)


def blank(pipe: Any, rows: int) -> Tensor:
    """No class."""
    return torch.full((rows,), pipe.labels[""], device=pipe.unet.device)


FAMILY = Family("class-conditional EDM", "ClassConditionalPipeline", "ClassConditionalPipeline", build, blank)
