"""EDM2's network of Karras et al. 2024 (config G) and its preconditioning, written from the paper, for every published size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.adapters.edm2_layers import Balance, Block, Fourier, Place, Weighted, blend, join, silu
from diffprobe.errors import unknown

#: The channels of the first level, by which the published sizes differ.
SIZES = {"xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
#: What a configuration may hold, well beyond what was published: a file can ask for any network.
_WHOLE = {
    "img_resolution": (1, 4096),
    "img_channels": (1, 64),
    "label_dim": (0, 100_000),
    "model_channels": (1, 4096),
    "channel_mult_noise": (1, 64),
    "channel_mult_emb": (1, 64),
    "num_blocks": (1, 64),
    "channels_per_head": (1, 4096),
    "logvar_channels": (1, 4096),
}
_REAL = {
    "label_balance": (0.0, 1.0),
    "concat_balance": (0.0, 1.0),
    "res_balance": (0.0, 1.0),
    "attn_balance": (0.0, 1.0),
    "clip_act": (1e-3, 1e6),
    "sigma_data": (1e-3, 1e3),
}
_OPTIONAL = {"channel_mult_noise", "channel_mult_emb", "clip_act"}


@dataclass(frozen=True)
class Edm2Config:
    """What a network was made with; the names are those of the published files, the defaults those of every published size.

    `label_dim` 0 is an unconditional network. Raises ValueError for what makes no network, before anything of its size is made.
    """

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    channel_mult_noise: int | None = None
    channel_mult_emb: int | None = None
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    label_balance: float = 0.5
    concat_balance: float = 0.5
    channels_per_head: int = 64
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256.0
    sigma_data: float = 0.5
    logvar_channels: int = 128

    def __post_init__(self) -> None:
        for name, (least, most) in _WHOLE.items():
            value = getattr(self, name)
            if not (type(value) is int and least <= value <= most) and not (value is None and name in _OPTIONAL):
                raise ValueError(f"{name} is no whole number from {least} to {most}")
        for name, (lowest, highest) in _REAL.items():
            value = getattr(self, name)
            if not (type(value) in (int, float) and lowest <= value <= highest) and not (value is None and name in _OPTIONAL):
                raise ValueError(f"{name} is no number from {lowest:g} to {highest:g}")
        for name, fewest in (("channel_mult", 1), ("attn_resolutions", 0)):
            values = getattr(self, name)
            if not (type(values) is tuple and fewest <= len(values) <= 8 and all(type(one) is int and 0 < one <= 4096 for one in values)):
                raise ValueError(f"{name} is no row of {fewest} to 8 whole numbers from 1 to 4096")
        if self.img_resolution % 2 ** (len(self.channel_mult) - 1):
            raise ValueError(f"{self.img_resolution} pixels cannot be halved {len(self.channel_mult) - 1} times")
        uneven = [place.outside for place in (*encoder(self), *decoder(self)) if place.attends and place.outside % self.channels_per_head]
        if uneven:
            raise ValueError(f"{uneven[0]} channels are no whole number of heads of {self.channels_per_head}")

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of each level, from the finest."""
        return tuple(self.model_channels * times for times in self.channel_mult)

    @property
    def noise_width(self) -> int:
        """The channels of the Fourier features."""
        return self.widths[0] if self.channel_mult_noise is None else self.model_channels * self.channel_mult_noise

    @property
    def condition_width(self) -> int:
        """The channels of the embedding that the blocks see."""
        return max(self.widths) if self.channel_mult_emb is None else self.model_channels * self.channel_mult_emb


def preset(size: str, *, latent: bool = True, classes: int = 1000) -> Edm2Config:
    """A published size, xs to xxl: of ImageNet-512's latents (4 x 64 x 64) or of ImageNet-64's pixels; `classes` 0 is unconditional."""
    if size not in SIZES:
        raise unknown("size of EDM2", size, SIZES)
    return Edm2Config(64, 4 if latent else 3, classes, SIZES[size])


def encoder(config: Edm2Config) -> list[Place]:
    """The encoder's places in their order: a convolution, then levels of blocks, each but the first after a halving."""
    places, width = [], config.img_channels + 1
    for level, channels in enumerate(config.widths):
        side = config.img_resolution >> level
        if level == 0:
            places.append(Place(f"{side}x{side}_conv", width, channels))
            width = channels
        else:
            places.append(Place(f"{side}x{side}_down", width, width, resample="down"))
        for index in range(config.num_blocks):
            places.append(Place(f"{side}x{side}_block{index}", width, channels, side in config.attn_resolutions))
            width = channels
    return places


def decoder(config: Edm2Config) -> list[Place]:
    """The decoder's places: two blocks in the middle, then levels of one block more than the encoder's, each of which joins one of its."""
    skips, width = [place.outside for place in encoder(config)], config.widths[-1]
    places = []
    for level, channels in reversed(list(enumerate(config.widths))):
        side = config.img_resolution >> level
        if level == len(config.widths) - 1:
            places += [Place(f"{side}x{side}_in0", width, width, attends=True), Place(f"{side}x{side}_in1", width, width)]
        else:
            places.append(Place(f"{side}x{side}_up", width, width, resample="up"))
        for index in range(config.num_blocks + 1):
            places.append(Place(f"{side}x{side}_block{index}", width + skips.pop(), channels, side in config.attn_resolutions))
            width = channels
    return places


class UNet(nn.Module):
    """The network proper, F(x, c_noise, labels): x [B, C, H, W], noise levels [B], class vectors [B, label_dim] or None."""

    def __init__(self, config: Edm2Config) -> None:
        super().__init__()
        self.config = config
        balance = Balance(config.res_balance, config.attn_balance, config.channels_per_head, config.clip_act)
        self.out_gain = nn.Parameter(torch.empty(()))
        self.emb_fourier = Fourier(config.noise_width)
        self.emb_noise = Weighted(config.noise_width, config.condition_width)
        self.emb_label = Weighted(config.label_dim, config.condition_width) if config.label_dim else None
        first, *others = encoder(config)
        self.enc = nn.ModuleDict({first.name: Weighted(first.inside, first.outside, 3)})
        self.enc.update({place.name: Block(place, config.condition_width, balance, decodes=False) for place in others})
        self.dec = nn.ModuleDict({place.name: Block(place, config.condition_width, balance, decodes=True) for place in decoder(config)})
        self.out_conv = Weighted(config.widths[0], config.img_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None and labels is not None:
            emb = blend(emb, self.emb_label(labels * math.sqrt(labels.shape[1])), self.config.label_balance)
        emb = silu(emb)
        skips: list[Tensor] = []
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # a channel of ones does for biases
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in cast(Iterable[Block], self.dec.values()):
            if layer.place.inside != x.shape[1]:
                x = join(x, skips.pop(), self.config.concat_balance)
            x = layer(x, emb)
        out: Tensor = self.out_gain * self.out_conv(x).to(self.out_gain.dtype)
        return out


class Edm2(nn.Module):
    """D(x; sigma, labels), the preconditioned network (Karras et al. 2022, table 1), with the head that weighed its training loss.

    That head is read with the rest and not used. Parameters are empty until a loader fills them.
    """

    def __init__(self, config: Edm2Config) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config)
        self.logvar_fourier = Fourier(config.logvar_channels)
        self.logvar_linear = Weighted(config.logvar_channels, 1)
        self.dtype: torch.dtype = torch.float32

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [B, C, H, W] and sigma [B] to E[x_0 | x], in the float format of x; x itself where sigma is 0.

        Without labels those of a conditional network are zeros.
        """
        if labels is None and self.config.label_dim:
            labels = x.new_zeros(len(x), self.config.label_dim)
        data, s = self.config.sigma_data, sigma.reshape(-1, 1, 1, 1)
        total = (s.square() + data**2).sqrt()
        shown = x / total
        noise = torch.where(sigma == 0, 1.0, sigma).log() / 4  # any level does for rows without noise, but one whose logarithm is infinite
        raw = self.unet(shown.to(self.dtype) if self.dtype != torch.float32 else shown, noise, labels)
        return torch.where(s == 0, x, data**2 / total.square() * x + s * data / total * raw)

    def settle(self, dtype: torch.dtype = torch.float32) -> Edm2:
        """Ready to look: weights normalised once, convolutions in `dtype`; the embedding and what comes out stay float32."""
        for layer in self.modules():
            if isinstance(layer, Weighted):
                layer.settle(dtype)
        self.dtype = dtype
        return self.eval().requires_grad_(False)


def untrained(config: Edm2Config, seed: int = 0, gain: float = 1.0) -> dict[str, Tensor]:
    """A state dict of this architecture with the weights that training starts from, and all learned gains at `gain` (there they are 0).

    For tests of magnitudes and of speed; the numbers are those of the address ("edm2.untrained", seed).
    """
    with torch.device("meta"):
        wanted = Edm2(config).state_dict()
    draws = rng.stream("edm2.untrained", seed)
    state = {}
    for name, value in wanted.items():
        if name.endswith("gain"):
            state[name] = torch.tensor(gain)
        elif name.endswith("phases"):
            state[name] = torch.from_numpy(2 * math.pi * draws.random(value.shape, dtype=np.float32))
        else:
            scale = 2 * math.pi if name.endswith("freqs") else 1.0
            state[name] = torch.from_numpy(scale * draws.standard_normal(tuple(value.shape), dtype=np.float32))
    return state
