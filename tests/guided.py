"""Tiny pipelines that guide: called as they are deployed, and their network's rows counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.load import load
from diffprobe.adapters.pipelines import PipelineGenerator
from diffprobe.controls.guidance_interval import GuidanceInterval
from diffprobe.model import Model

Folder = Callable[[str], Path]
PROMPTS, SEEDS, STEPS, SCALE = ["a red star", "blue star", "b"], [3, 4, 5], 8, 5.0
FAMILIES = ["sd", "sdxl", "sd3", "flow", "edm"]
EVERYWHERE, NOWHERE = GuidanceInterval(), GuidanceInterval(1e6, 2e6)


def loader(pipelines: Folder) -> Callable[[str], Model]:
    """Each family's model, loaded once."""
    kept: dict[str, Model] = {}

    def model(family: str) -> Model:
        if family not in kept:
            kept[family] = load(str(pipelines(family)))
        return kept[family]

    return model


def pipe_of(model: Model) -> Any:
    assert isinstance(model.generator, PipelineGenerator)
    return model.generator.pipe


def network_of(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def deployed(pipe: Any, scale: float = SCALE, **more: Any) -> Tensor:
    called = {"prompt": PROMPTS, "num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "latent", "return_dict": False}
    latents: Tensor = pipe(**(called | more), generator=rng.generators(SEEDS))[0]
    return latents


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """The rows that the network evaluates, a number a call."""
    rows: list[int] = []
    network = network_of(pipe)
    inner = network.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(args[0] if args else kwargs["hidden_states"]))
        return inner(*args, **kwargs)

    network.forward = forward
    try:
        yield rows
    finally:
        del network.forward
