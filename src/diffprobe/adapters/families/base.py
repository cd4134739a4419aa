"""What a family of pipelines is: which classes it has, and how their parts make a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.codecs import VaeCodec
from diffprobe.adapters.conditions import TextCondition
from diffprobe.adapters.pipelines import PipelineEditor, PipelineGenerator, Spacing, alone, side
from diffprobe.adapters.schedulers import path_of, visited
from diffprobe.model import Model


@dataclass(frozen=True, eq=False)
class Pipelines:
    """The pipelines of one folder on the same parts: `made` generates, `edits` edits; None where the family has no such class.

    Their parts may lie on the meta device, without numbers: a model of them says what it is and can do, and runs nothing.
    """

    made: Any
    edits: Any
    device: torch.device

    @property
    def either(self) -> Any:
        """One of the two, for what they share."""
        return self.made if self.edits is None else self.edits


@dataclass(frozen=True)
class Family:
    """A family of diffusers pipelines: what it is, the classes that generate and edit, and what they are made of.

    `build` makes of its pipelines a Model, without name and identity. `blank` gives a number of rows of an empty condition
    on the network's device, by its configuration alone: what a call of the denoiser needs where there is no text encoder to ask.
    """

    title: str
    generator: str | None
    editor: str | None
    build: Callable[[Pipelines], Model]
    blank: Callable[[Any, int], Any]


def deployed(pipelines: Pipelines, spacing: Spacing = alone) -> Model:
    """What most families share: path, autoencoder, and the pipelines as they are deployed; the denoiser is the family's to add.

    Where `spacing` goes with the image's size, the path's levels are those of the native one.
    """
    pipe = pipelines.either
    codec, size, (_, height, width) = VaeCodec(pipe.vae, pipelines.device), side(pipe), square(pipe)
    path = visited(path_of(pipe.scheduler), pipe.scheduler, lambda n: spacing(n, (height, width)))
    return Model(
        name="",
        path=path,
        codec=codec,
        editor=None if pipelines.edits is None else PipelineEditor(pipelines.edits, codec, path, size, spacing),
        generator=None if pipelines.made is None else PipelineGenerator(pipelines.made, codec, size),
        device=str(pipelines.device),
        shape=square(pipe),
    )


def square(pipe: Any) -> tuple[int, int, int]:
    """The shape of one latent at the native size; an editor of instructions takes its picture in further channels."""
    latents = side(pipe) // int(pipe.vae_scale_factor)
    return int(pipe.vae.config.latent_channels), latents, latents


def with_network(model: Model, denoiser: Any, condition: Callable[[Sequence[str]], Any] | None) -> Model:
    """The model with its network as a denoiser, and what tells it of prompts."""
    return replace(model, denoiser=denoiser, condition=condition)


def blank_states(network: Any, rows: int, tokens: int, width: int) -> Tensor:
    """Text states of zeros [rows, tokens, width], where the network is and in its number format."""
    return torch.zeros(rows, tokens, width, device=network.device, dtype=network.dtype)


def blank_text(network: Any, rows: int, text: tuple[int, int], pooled: int) -> TextCondition:
    """The same of (tokens, width), with what the text pools."""
    return TextCondition(blank_states(network, rows, *text), blank_states(network, rows, 1, pooled)[:, 0])
