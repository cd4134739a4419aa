"""The layers of EDM2's network, which keep the magnitude of what passes through them (Karras et al. 2024, section 2 and appendix B).

Written from the paper. "Magnitude" is the root mean square; every operation is scaled so that inputs of unit magnitude give outputs
of unit magnitude in expectation. Names of parameters are those of the published files, which a loader must match.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, interpolate, linear, scaled_dot_product_attention
from torch.nn.functional import silu as plain_silu

EPSILON = 1e-4


class Balance(NamedTuple):
    """What the blocks of a network share: the weights of their branches, the width of a head, and the bound on activations."""

    residual: float = 0.3
    attention: float = 0.3
    head: int = 64
    bound: float | None = 256.0


class Place(NamedTuple):
    """Where a block stands: its name in published files, its channels, and what it does besides. `resample` is "down", "up" or None."""

    name: str
    inside: int
    outside: int
    attends: bool = False
    resample: str | None = None


def normalise(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """x over its magnitude along `dims`, x/(magnitude + 1e-4) (over the channels: pixel normalisation)."""
    count = math.prod(x.shape[dim] for dim in dims)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    unit: Tensor = x / (norm / math.sqrt(count) + EPSILON).to(x.dtype)
    return unit


def silu(x: Tensor) -> Tensor:
    """x sigmoid(x) over .596, the magnitude that it gives to a unit normal (eq. 81)."""
    return plain_silu(x) / 0.596


def blend(a: Tensor, b: Tensor, share: float) -> Tensor:
    """((1 - t) a + t b)/sqrt((1 - t)^2 + t^2): the sum that keeps the magnitude of independent terms, t = `share` (eq. 88)."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def join(a: Tensor, b: Tensor, share: float) -> Tensor:
    """a and b one after the other along the channels, b with a `share` t of the magnitude whatever their widths (eq. 103)."""
    scale = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - share) ** 2 + share**2))
    return torch.cat([a * (scale * (1 - share) / math.sqrt(a.shape[1])), b * (scale * share / math.sqrt(b.shape[1]))], dim=1)


class Fourier(nn.Module):
    """Noise levels [B] to sqrt(2) cos(frequency c + phase) [B, channels] (eq. 75); both are drawn before training, and saved."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels))
        self.register_buffer("phases", torch.empty(channels))

    def forward(self, noise: Tensor) -> Tensor:
        return math.sqrt(2) * torch.cos(torch.outer(noise, self.freqs) + self.phases)


class Weighted(nn.Module):
    """A linear map (`kernel` 0) or a convolution without bias, by weights of unit magnitude over sqrt(fan-in) (eq. 47, 66).

    What is saved is what training moved, of about that magnitude; `settle` normalises it once for all calls that follow.
    """

    def __init__(self, inside: int, outside: int, kernel: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outside, inside, *((kernel, kernel) if kernel else ())))
        self.settled = False

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.weight if self.settled else self.effective()).to(x.dtype)
        return linear(x, weight) if weight.ndim == 2 else conv2d(x, weight, padding=weight.shape[-1] // 2)

    def effective(self) -> Tensor:
        """The weights as they act."""
        return normalise(self.weight, tuple(range(1, self.weight.ndim))) / math.sqrt(self.weight[0].numel())

    def settle(self, dtype: torch.dtype) -> None:
        """Keep the weights as they act, in `dtype`; linear maps, which carry the condition, stay as they are."""
        if not self.settled:
            with torch.no_grad():
                kept = self.effective()
            self.weight = nn.Parameter(kept if kept.ndim == 2 else kept.to(dtype), requires_grad=False)
            self.settled = True


class Block(nn.Module):
    """A residual block of the encoder or the decoder, with self-attention where its place says so (config G).

    The condition scales the channels by 1 + gain * linear(emb); the gain is learned, and 0 before training.
    """

    def __init__(self, place: Place, condition: int, balance: Balance, *, decodes: bool) -> None:
        super().__init__()
        self.place, self.balance, self.decodes = place, balance, decodes
        inside, outside = place.inside, place.outside
        self.emb_gain = nn.Parameter(torch.empty(()))
        self.conv_res0 = Weighted(inside if decodes else outside, outside, 3)
        self.emb_linear = Weighted(condition, outside)
        self.conv_res1 = Weighted(outside, outside, 3)
        self.conv_skip = Weighted(inside, outside, 1) if inside != outside else None
        self.attn_qkv = Weighted(outside, 3 * outside, 1) if place.attends else None
        self.attn_proj = Weighted(outside, outside, 1) if place.attends else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.place.resample == "down":
            x = avg_pool2d(x, 2)  # the box filter [1, 1]
        elif self.place.resample == "up":
            x = interpolate(x, scale_factor=2, mode="nearest")
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if not self.decodes:
            x = skip = normalise(skip, (1,))
        scale = 1 + self.emb_gain * self.emb_linear(emb)
        y = self.conv_res0(silu(x)) * scale[:, :, None, None].to(x.dtype)
        x = blend(skip, self.conv_res1(silu(y)), self.balance.residual)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = blend(x, self.attn_proj(self._attended(self.attn_qkv(x))), self.balance.attention)
        return x if self.balance.bound is None else x.clamp(-self.balance.bound, self.balance.bound)

    def _attended(self, mixed: Tensor) -> Tensor:
        """Attention over the pixels by queries, keys and values of unit magnitude (section 2.3).

        Channels [3 C] are saved as (head, channel of the head, which of the three).
        """
        batch, channels, *sides = mixed.shape
        parts = mixed.reshape(batch, -1, self.balance.head, 3, math.prod(sides))
        q, k, v = (part.transpose(-1, -2).contiguous() for part in normalise(parts, (2,)).unbind(3))
        seen = scaled_dot_product_attention(q, k, v)
        return seen.transpose(-1, -2).reshape(batch, channels // 3, *sides)
