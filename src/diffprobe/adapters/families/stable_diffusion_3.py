"""Stable Diffusion 3 and 3.5: a transformer on three text encoders' states (the T5 may be left out), which predicts a flow's velocity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from diffprobe.adapters.conditions import TextCondition, no_text, text_and_pooled
from diffprobe.adapters.denoisers import Convention, convention
from diffprobe.adapters.families.base import Family, Pipelines, blank_text, deployed, with_network
from diffprobe.adapters.schedulers import shift_of
from diffprobe.model import Model


@dataclass(frozen=True, eq=False)
class FlowTransformer:
    """Stable Diffusion 3's transformer. Conditions are a `TextCondition`; None is the empty prompt."""

    transformer: Any
    convention: Convention
    nothing: Callable[[], TextCondition]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        text = (self._nothing if cond is None else cond).expand(len(x))
        raw = self.transformer(
            hidden_states=self.convention.shown(x, t).to(self.transformer.dtype),
            timestep=self.convention.clock(x, t),
            encoder_hidden_states=text.states,
            pooled_projections=text.pooled,
        ).sample
        return self.convention.clean(x, t, raw)

    @cached_property
    def _nothing(self) -> TextCondition:
        return self.nothing()


def build(pipelines: Pipelines) -> Model:
    """A model with every capability."""
    pipe = pipelines.either
    model = deployed(pipelines, partial(_spacing, pipe))
    assert model.path is not None
    texts = text_and_pooled(pipe, 3)
    return with_network(model, FlowTransformer(pipe.transformer, convention(model.path, pipe.scheduler), no_text(pipe, texts)), texts)


def _spacing(pipe: Any, num_inference_steps: int, sides: tuple[int, int]) -> Mapping[str, Any]:
    """The shift of the image's size, where the scheduler has one."""
    patch = int(pipe.transformer.config.patch_size)
    return shift_of(pipe.scheduler, (sides[0] // patch) * (sides[1] // patch))


def blank(pipe: Any, rows: int) -> TextCondition:
    """States as both CLIPs and the T5 would give them, one after the other, and pooled text."""
    settings = pipe.transformer.config
    tokens = 77 + 256  # zeros stand in for a T5 that is not there
    return blank_text(pipe.transformer, rows, (tokens, int(settings.joint_attention_dim)), int(settings.pooled_projection_dim))


FAMILY = Family("Stable Diffusion 3 and 3.5", "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", build, blank)
