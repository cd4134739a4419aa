"""Decoders with known derivatives: linear and of low rank here, a ReLU network in `piecewise`.

With d = C h w and D = 3 H W, each takes latents [B, C, h, w] to images 0.5 + ... [B, 3, H, W], unclamped, and knows its Jacobian
[D, d] at every latent. Units: images in [0, 1]; for images in [-1, 1] the Jacobian doubles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.geometry.directions import haar
from diffprobe.model import Codec

Shape = tuple[int, int, int]


class ExactCodec(Codec, Protocol):
    """A codec that knows its derivatives. `parameters` are the tensors that define it."""

    @property
    def latent(self) -> Shape: ...

    @property
    def image(self) -> Shape: ...

    @property
    def parameters(self) -> tuple[Tensor, ...]: ...

    def jacobian(self, latents: Tensor) -> Tensor:
        """d image / d latent, float64 [B, D, d]."""
        ...

    def singular_values(self, latents: Tensor) -> Tensor:
        """Those of the Jacobian above 0, largest first, float64 [B, rank]."""
        ...


class LocalGeometry(NamedTuple):
    """How a decoder stretches space at each latent, float64 [B] each, from the singular values s_i above 0 of its Jacobian.

    psi = sum_i log s_i; nu = exp(-sum_i p_i log p_i), p_i = s_i / sum_j s_j (Humayun et al. 2024); trace = Tr(J J^T) = sum_i s_i^2.
    """

    psi: Tensor
    nu: Tensor
    trace: Tensor


def local_geometry(codec: ExactCodec, latents: Tensor) -> LocalGeometry:
    """Scaling, effective rank and trace at latents [B, C, h, w], without a projection; doubling J adds rank log 2 to psi."""
    s = codec.singular_values(latents)
    shares = s / s.sum(-1, keepdim=True)
    return LocalGeometry(s.log().sum(-1), torch.special.entr(shares).sum(-1).exp(), s.square().sum(-1))


@dataclass(frozen=True, eq=False)
class LinearCodec:
    """Images 0.5 + matrix z: matrix [D, d] of full column rank, computed in the dtype of what it is given.

    `encode` is the pseudo-inverse, so that encoding a decoded latent gives it back; Tr(J J^T) is the matrix's sum of squares.
    """

    matrix: Tensor
    latent: Shape
    image: Shape

    def __post_init__(self) -> None:
        check_shape("the matrix", self.matrix, prod(self.image), prod(self.latent))
        if int(torch.linalg.matrix_rank(self.matrix.double())) < prod(self.latent):
            raise ValueError("the matrix's columns depend on one another: use LowRankCodec")

    def encode(self, images: Tensor) -> Tensor:
        codes: Tensor = (images - 0.5).flatten(1) @ self._inverse.to(images).T
        return codes.reshape(-1, *self.latent)

    def decode(self, latents: Tensor) -> Tensor:
        return 0.5 + (latents.flatten(1) @ self.matrix.to(latents).T).reshape(-1, *self.image)

    def jacobian(self, latents: Tensor) -> Tensor:
        return self.matrix.double().expand(len(latents), -1, -1)

    def singular_values(self, latents: Tensor) -> Tensor:
        values: Tensor = torch.linalg.svdvals(self.matrix.double())
        return values.expand(len(latents), -1)

    @property
    def gains(self) -> Tensor:
        """What each latent direction adds to the mean square of an image, g_i = ||J e_i||^2 / D, float64 [d]."""
        return self.matrix.double().square().mean(0)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    @cached_property
    def _inverse(self) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self.matrix.double())
        return inverse


@dataclass(frozen=True, eq=False)
class LowRankCodec:
    """Images 0.5 + left diag(scales) right^T z: left [D, r] and right [d, r] with orthonormal columns, scales [r] above 0, r < d.

    The decoder is blind outside the span of `right`. `encode` is the pseudo-inverse: encode(decode(z)) is z projected on that
    span. The scales are the singular values. Computed in float64, given back in the dtype of the input.
    """

    left: Tensor
    scales: Tensor
    right: Tensor
    latent: Shape
    image: Shape

    def __post_init__(self) -> None:
        rank, d = self.scales.numel(), prod(self.latent)
        if self.scales.ndim != 1 or not 0 < rank < d or bool((self.scales <= 0).any()):
            raise ValueError(f"scales are a list of 1 to {d - 1} numbers above 0: with as many as the latent has, use LinearCodec")
        for name, rows in (("left", prod(self.image)), ("right", d)):
            part: Tensor = getattr(self, name).double()
            check_shape(name, part, rows, rank)
            if not torch.allclose(part.T @ part, torch.eye(rank, dtype=torch.float64), atol=1e-9):
                raise ValueError(f"the columns of {name} must be orthonormal")
            object.__setattr__(self, name, part)
        object.__setattr__(self, "scales", self.scales.double())

    @classmethod
    def random(cls, latent: Shape, image: Shape, scales: Sequence[float], seed: int = 0) -> LowRankCodec:
        """Random directions on both sides, with these singular values."""
        left, right = (orthonormal(prod(shape), len(scales), seed, f"exact.{side}") for side, shape in (("left", image), ("right", latent)))
        return cls(left, torch.tensor(scales, dtype=torch.float64), right, latent, image)

    def encode(self, images: Tensor) -> Tensor:
        codes = (images.double() - 0.5).flatten(1) @ self.left / self.scales
        return (codes @ self.right.T).reshape(-1, *self.latent).to(images)

    def decode(self, latents: Tensor) -> Tensor:
        seen = latents.double().flatten(1) @ self.right
        return (0.5 + (seen * self.scales) @ self.left.T).reshape(-1, *self.image).to(latents)

    def jacobian(self, latents: Tensor) -> Tensor:
        return ((self.left * self.scales) @ self.right.T).expand(len(latents), -1, -1)

    def singular_values(self, latents: Tensor) -> Tensor:
        return self.scales.sort(descending=True).values.expand(len(latents), -1)

    @property
    def gains(self) -> Tensor:
        """What each latent direction adds to the mean square of an image, g_i = ||J e_i||^2 / D, float64 [d]."""
        return (self.right * self.scales).square().sum(1) / len(self.left)

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        return (self.left, self.scales, self.right)


def orthonormal(rows: int, columns: int, seed: int = 0, role: str = "exact.orthonormal") -> Tensor:
    """A fixed matrix [rows, columns] with orthonormal columns, uniformly distributed over the seeds (Haar), float64."""
    return torch.from_numpy(haar(rng.stream(role, seed).standard_normal((rows, columns))))


def check_shape(name: str, part: Tensor, rows: int, columns: int) -> None:
    """Raises ValueError where a matrix has another shape."""
    if part.shape != (rows, columns):
        raise ValueError(f"{name} must be {rows} x {columns}, not {' x '.join(map(str, part.shape))}")
