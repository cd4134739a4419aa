"""Geometry guides with random weights, and a world whose decoder has a known psi."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.mixtures import GaussianMixture
from diffprobe.controls.geometry_guidance import GeometryGuide
from diffprobe.controls.guide_network import GuideNetwork
from diffprobe.errors import UserError
from diffprobe.model import Denoiser
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving

PATHS: tuple[NoisePath, ...] = (VariancePreserving.scaled_linear(), VarianceExploding(), RectifiedFlow(3.0))
SHAPE = (1, 4, 4)


def untrained(shape: tuple[int, int, int] = SHAPE, seed: int = 0, **changes: Any) -> GeometryGuide:
    """A guide with random weights that says much: its head is 30 times that of one to be trained."""
    network = GuideNetwork(shape, 5, 16).settle(seed)
    with torch.no_grad():
        network.head.weight.mul_(30)
    return GeometryGuide(network, (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0), -0.5, 1.2, (0.01, 80.0), **changes)


def gaussian(path: NoisePath) -> tuple[Denoiser, GaussianMixture]:
    """Two classes of latents of 16 numbers, and their exact denoiser."""
    means = torch.stack([torch.full((16,), 0.4), torch.full((16,), -0.4)]).double()
    mixture = GaussianMixture(means, torch.full((2,), 0.8), torch.full((2,), 0.5))
    return mixture.denoiser(path), mixture


@dataclass(frozen=True)
class Bent:
    """Images whose 16 first values are softplus(z)/2 of the latent's: psi = sum log sigmoid(z) of all outputs, known and smooth."""

    def encode(self, images: Tensor) -> Tensor:
        latents: Tensor = torch.expm1(2 * images.flatten(1)[:, :16]).log().reshape(-1, *SHAPE)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        seen = torch.nn.functional.softplus(latents.flatten(1)) / 2
        return torch.cat([seen, seen.new_zeros(len(seen), 32)], 1).reshape(-1, 3, 4, 4)


def psi_of(latents: Tensor) -> Tensor:
    found: Tensor = torch.nn.functional.logsigmoid(latents).flatten(1).sum(1)
    return found


def drawn(count: int) -> Tensor:
    sides = torch.where(torch.arange(count) % 2 == 0, 0.4, -0.4)[:, None, None, None]
    latents: Tensor = sides + 0.8**0.5 * rng.normal(SHAPE, "test.guide", range(count))
    return latents


def told(match: str, work: Callable[[], object]) -> None:
    with pytest.raises(UserError, match=match) as caught:
        work()
    assert "\n" not in str(caught.value)
