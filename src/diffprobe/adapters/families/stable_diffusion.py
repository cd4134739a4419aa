"""Stable Diffusion 1.x and 2.x: a U-Net on one text encoder's states, which predicts eps, v, or a flow's velocity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from diffprobe.adapters.conditions import text_states
from diffprobe.adapters.denoisers import Convention, convention
from diffprobe.adapters.families.base import Family, Pipelines, blank_states, deployed, with_network
from diffprobe.model import Model


@dataclass(frozen=True, eq=False)
class UNetDenoiser:
    """A text-conditioned U-Net. Conditions are text states [B, tokens, width].

    None is what `nothing` gives, the empty prompt: a row that is asked for once and kept.
    """

    unet: Any
    convention: Convention
    nothing: Callable[[], Tensor]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        states = self._nothing if cond is None else cond
        states = states.expand(len(x), *states.shape[1:])
        asked = self.convention
        raw = self.unet(asked.shown(x, t).to(self.unet.dtype), asked.clock(x, t), encoder_hidden_states=states).sample
        return asked.clean(x, t, raw)

    @cached_property
    def _nothing(self) -> Tensor:
        return self.nothing()


def build(pipelines: Pipelines) -> Model:
    """A model with every capability."""
    model, pipe = deployed(pipelines), pipelines.either
    assert model.path is not None
    states = text_states(pipe)
    return with_network(model, UNetDenoiser(pipe.unet, convention(model.path, pipe.scheduler), lambda: states([""])), states)


def blank(pipe: Any, rows: int) -> Tensor:
    """States as the text encoder would give them."""
    return blank_states(pipe.unet, rows, 77, int(pipe.unet.config.cross_attention_dim))


FAMILY = Family("Stable Diffusion 1 and 2", "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", build, blank)
