"""The maps that are described, decoder, chain and denoiser, and the latents that a model gives them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffprobe.measures.geometry import Map
from diffprobe.model import Codec, Denoiser, Model
from diffprobe.paths import NoisePath
from diffprobe.probes.geometry.settings import Field
from diffprobe.sampling import Guidance, State, final, guided, start, step, trajectory

ROLE = "geometry"


def decoder(model: Model) -> Map:
    """The model's decoder from latents in the denoiser's scale to images in [-1, 1], unclamped."""
    codec = _codec(model)
    return lambda z: 2 * codec.decode(z) - 1


def sample(model: Model, prompt: str, seeds: Sequence[int], num_inference_steps: int, guidance_scale: float) -> Tensor:
    """Latents [B, ...] that the deterministic sampler draws from a prompt, float32 on the CPU."""
    with torch.no_grad():
        return final(drawn(model, prompt, seeds, num_inference_steps, guidance_scale)).float().cpu()


def unit(path: NoisePath, state: State) -> Tensor:
    """A state scaled to unit variance, as a decoder knows its latents: itself on a variance-preserving path."""
    return state.x / (path.alpha(state.t).square() + path.sigma(state.t).square()).sqrt()


def drawn(model: Model, prompt: str, seeds: Sequence[int], steps: int, scale: float) -> Iterator[State]:
    denoiser, path = _network(model)
    assert model.condition is not None
    assert model.shape is not None
    times = path.levels(steps)
    x = start(path, times[0], model.shape, seeds, f"{ROLE}.start").to(model.device)
    chosen = guided(denoiser, path, Guidance(scale)) if scale != 1 else denoiser
    return trajectory(chosen, path, x, times, cond=model.condition([prompt] * len(seeds)))


def chain(model: Model, steps: int) -> Map:
    """From noise of unit variance to an image in [-1, 1], unconditionally, in `steps` deterministic steps."""
    denoiser, path = _network(model)
    times = path.levels(steps)
    scale = (path.alpha(times[0]).square() + path.sigma(times[0]).square()).sqrt()
    show = decoder(model)
    return lambda z: show(final(trajectory(denoiser, path, scale * z, times, cond=_conditions(model, "", len(z)))))


def field_map(model: Model, asked: Field, t: float) -> Map:
    """The denoiser at a time, or the step from there to the next less noisy level."""
    denoiser, path = _network(model)
    if asked.map == "denoiser":
        return lambda x: denoiser(x, t, _conditions(model, asked.prompt, len(x)))
    s = next((later for later in path.levels(asked.num_inference_steps) if t - later > 1e-6 * t), path.end)  # t comes by way of sigma
    return lambda x: step(path, (s, t), x, denoiser(x, t, _conditions(model, asked.prompt, len(x))))


def _network(model: Model) -> tuple[Denoiser, NoisePath]:
    assert model.denoiser is not None
    assert model.path is not None
    return model.denoiser, model.path


def _codec(model: Model) -> Codec:
    assert model.codec is not None
    return model.codec


def _conditions(model: Model, prompt: str, n: int) -> Any:
    return None if model.condition is None else model.condition([prompt] * n)
