"""The small network of a geometry guide: a noisy latent and its level to logits over bins of psi."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffprobe import rng

GROUPS = 8
_WAVES = 16


class GuideNetwork(nn.Module):
    """Unit latents [B, C, h, w] and log(sigma/alpha) [B] to logits [B, bins]: residual blocks, each told of the level.

    Halved in size while a side keeps 4; group norms and smooth activations alone, so that a row stands by itself and has a gradient
    everywhere. Made without storage or random numbers: `settle` it with a seed, or load a state.
    """

    def __init__(self, shape: tuple[int, int, int], bins: int, width: int = 32) -> None:
        super().__init__()
        self.shape, self.bins, self.width = shape, bins, width
        halvings = min(max(0, int(math.log2(min(shape[1:]) / 4))) if min(shape[1:]) >= 4 else 0, 4)
        widths = [width] + [2 * width] * halvings
        with torch.device("meta"):
            self.told = nn.Sequential(nn.Linear(2 * _WAVES, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU())
            self.stem = nn.Conv2d(shape[0], width, 3, padding=1)
            self.blocks = nn.ModuleList([_Block(width, width, 2 * width)])
            self.blocks.extend(_Block(before, after, 2 * width) for before, after in pairwise(widths))
            self.blocks.append(_Block(widths[-1], widths[-1], 2 * width))
            self.norm = nn.GroupNorm(GROUPS, widths[-1])
            self.head = nn.Linear(widths[-1], bins)

    def forward(self, unit: Tensor, log_ratio: Tensor) -> Tensor:
        level = self.told(_waves(log_ratio))
        x = self.stem(unit)
        for index, block in enumerate(self.blocks):
            x = block(F.avg_pool2d(x, 2) if 0 < index < len(self.blocks) - 1 else x, level)
        pooled = F.silu(self.norm(x)).mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits

    def settle(self, seed: int) -> GuideNetwork:
        """Weights by address (He et al. 2015), float32 on the CPU; each block adds a little at first, and the head says little."""
        self.to_empty(device="cpu")
        for name, part in self.named_modules():
            if isinstance(part, nn.GroupNorm):
                nn.init.ones_(part.weight)
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Conv2d | nn.Linear):
                scale = 0.1 if name == "head" or name.endswith("last") else 1.0
                draw = rng.stream(f"guide.weights.{name}", seed)
                fan_in = part.weight[0].numel()
                with torch.no_grad():
                    part.weight.copy_(torch.from_numpy(draw.standard_normal(part.weight.shape)) * scale * (2 / fan_in) ** 0.5)
                    assert part.bias is not None
                    part.bias.copy_(torch.from_numpy(draw.standard_normal(part.bias.shape)) * scale * 0.1)
        return self

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """The weights by name, in the order of their names."""
        yield from sorted(self.state_dict().items())


class _Block(nn.Module):
    """x + what two convolutions make of it; the level scales and shifts what is between them."""

    def __init__(self, before: int, after: int, told: int) -> None:
        super().__init__()
        self.norm, self.first = nn.GroupNorm(GROUPS, before), nn.Conv2d(before, after, 3, padding=1)
        self.level = nn.Linear(told, 2 * after)
        self.between, self.last = nn.GroupNorm(GROUPS, after), nn.Conv2d(after, after, 3, padding=1)
        self.past = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.level(level)[:, :, None, None].chunk(2, 1)
        inner = self.first(F.silu(self.norm(x)))
        inner = self.last(F.silu(self.between(inner) * (1 + scale) + shift))
        added: Tensor = self.past(x) + inner
        return added


def _waves(log_ratio: Tensor) -> Tensor:
    """Sines and cosines [B, 2 waves] of log(sigma/alpha), with periods from 1/2 to 64 of its units."""
    periods = torch.logspace(-1, 6, _WAVES, base=2, device=log_ratio.device)
    angles = 2 * math.pi * log_ratio[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], 1)
