"""A decoder that is linear in each of very many regions, like a trained ReLU network, and yet can be inverted exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.adapters.decoders import Shape, check_shape, orthonormal


class Units(NamedTuple):
    """What goes into each ReLU at each latent, values [B, N], and its gradient there in the latent, slopes [B, N, d].

    In the region of a latent z every unit's input is linear: values + slopes (z' - z). Units are in the order of the layers.
    """

    values: Tensor
    slopes: Tensor


@dataclass(frozen=True, eq=False)
class PiecewiseLinearCodec:
    """Images 0.5 + linear z + mix g(z), g a ReLU network: continuous, and linear in each of very many regions.

    linear [D, d] has full column rank and mix [D, w] is orthogonal to it, so that the pseudo-inverse of `linear` takes every
    decoded latent back exactly, whatever g is. With G the Jacobian of g, J = linear + mix G and J^T J = linear^T linear +
    (mix G)^T (mix G). `network` maps [B, d] to [B, w] and alternates nn.Linear and nn.ReLU, in float64; so is all that is computed,
    given back in the dtype of the input.
    """

    linear: Tensor
    mix: Tensor
    network: nn.Sequential
    latent: Shape
    image: Shape

    def __post_init__(self) -> None:
        rows, d = prod(self.image), prod(self.latent)
        kinds = [type(layer) for layer in self.network]
        if not kinds or kinds != [nn.Linear, nn.ReLU] * (len(kinds) // 2):
            raise ValueError("the network must alternate nn.Linear and nn.ReLU, and end with nn.ReLU")
        check_shape("linear", self.linear, rows, d)
        check_shape("mix", self.mix, rows, self._linears[-1].out_features)
        check_shape("the first layer", self._linears[0].weight, self._linears[0].out_features, d)
        for name in ("linear", "mix"):
            object.__setattr__(self, name, getattr(self, name).double())
        if int(torch.linalg.matrix_rank(self.linear)) < d or float((self.linear.T @ self.mix).abs().max()) > 1e-9:
            raise ValueError("linear must have full column rank, and mix must be orthogonal to it")

    @classmethod
    def random(cls, latent: Shape, image: Shape, widths: Sequence[int], *, gain: float = 0.5, seed: int = 0) -> PiecewiseLinearCodec:
        """A random network of these widths (weights as He et al. 2015, biases of standard deviation .5), laid beside an isometry.

        `linear` and `mix` are `gain` times orthonormal columns, so that J^T J = gain^2 (I + G^T G). Raises ValueError where
        the latent and the last width do not fit beside one another into an image.
        """
        rows, d = prod(image), prod(latent)
        if not widths or min(widths) < 1 or d + widths[-1] > rows:
            raise ValueError(f"widths {tuple(widths)}: give one or more of at least 1, the last of at most {rows - d}")
        draw, layers = rng.stream("exact.relu", seed), list[nn.Module]()
        for fan_in, width in pairwise((d, *widths)):
            weight, bias = (2 / fan_in) ** 0.5 * draw.standard_normal((width, fan_in)), 0.5 * draw.standard_normal(width)
            layers += [_layer(torch.from_numpy(weight), torch.from_numpy(bias)), nn.ReLU()]
        basis = gain * orthonormal(rows, d + widths[-1], seed, "exact.relu.basis")
        return cls(basis[:, :d], basis[:, d:], nn.Sequential(*layers), latent, image)

    def encode(self, images: Tensor) -> Tensor:
        codes: Tensor = (images.double() - 0.5).flatten(1) @ self._inverse.T
        return codes.reshape(-1, *self.latent).to(images)

    def decode(self, latents: Tensor) -> Tensor:
        flat = latents.double().flatten(1)
        pixels: Tensor = 0.5 + flat @ self.linear.T + self.network(flat) @ self.mix.T
        return pixels.reshape(-1, *self.image).to(latents)

    def jacobian(self, latents: Tensor) -> Tensor:
        *_, last = self._layers(latents)
        return self.linear + self.mix @ _passed(last)

    def singular_values(self, latents: Tensor) -> Tensor:
        values: Tensor = torch.linalg.svdvals(self.jacobian(latents))
        return values

    def units(self, latents: Tensor) -> Units:
        """Every ReLU's input and its gradient in the latent."""
        values, slopes = zip(*self._layers(latents), strict=True)
        return Units(torch.cat(values, 1), torch.cat(slopes, 1))

    def region(self, latents: Tensor) -> Tensor:
        """Which ReLUs are open, bool [B, N]: latents with equal rows share a region, and so a Jacobian."""
        return self.units(latents).values > 0

    def boundary_distance(self, latents: Tensor) -> Tensor:
        """How far each latent is from the edge of its region, float64 [B].

        A region is the convex polytope in which no unit's (there linear) input changes sign, so that the nearest of the
        hyperplanes where one vanishes is the edge: min_j |values_j| / ||slopes_j||, at any depth.
        """
        values, slopes = self.units(latents)
        distances: Tensor = values.abs() / slopes.norm(dim=-1)
        return distances.amin(-1)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.linear, self.mix, *self.network.parameters())

    @cached_property
    def _inverse(self) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self.linear)
        return inverse

    @property
    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.network if isinstance(layer, nn.Linear)]

    def _layers(self, latents: Tensor) -> Iterator[Units]:
        """The units of one layer after the other."""
        x = latents.double().flatten(1)
        slopes = torch.eye(x.shape[1], dtype=torch.float64).expand(len(x), -1, -1)
        for layer in self._linears:
            units = Units(layer(x), layer.weight @ slopes)
            yield units
            x, slopes = units.values.relu(), _passed(units)


def _passed(units: Units) -> Tensor:
    """The gradients of what leaves the units' ReLUs, [B, N, d]; as in torch, a ReLU is closed at 0 itself."""
    return (units.values > 0)[..., None] * units.slopes


def _layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A fixed layer; made without storage, so that no global generator is asked for weights that would be thrown away."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = (nn.Parameter(part, requires_grad=False) for part in (weight, bias))
    return layer
