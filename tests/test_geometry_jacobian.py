"""Jacobians and their spectra: known matrices, other implementations, every route, invariances."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from diffprobe import rng
from diffprobe.adapters.decoders import ExactCodec, LinearCodec, LowRankCodec
from diffprobe.adapters.piecewise import PiecewiseLinearCodec
from diffprobe.measures.geometry import (
    directions,
    jacobian,
    jacobian_spectrum,
    jacobian_trace,
    local_scaling,
    nonzero,
    projected_jacobian,
)
from diffprobe.measures.geometry.passes import push_rule
from diffprobe.paths import VariancePreserving
from diffprobe.sampling import final, trajectory

LATENT, IMAGE = (3, 2, 2), (3, 4, 4)
Z = rng.normal(LATENT, "test.z", range(6)).double()
CODECS: dict[str, ExactCodec] = {
    "linear": LinearCodec(rng.normal((12,), "test", range(48)), LATENT, IMAGE),
    "low-rank": LowRankCodec.random(LATENT, IMAGE, (0.3, 2.0, 0.9, 0.9)),
    "piecewise": PiecewiseLinearCodec.random(LATENT, IMAGE, (20, 15)),
}


def matrix(rows: int, columns: int, role: str = "test.matrix") -> Tensor:
    return rng.normal((columns,), role, range(rows)).double()


def silu_net(x: Tensor) -> Tensor:
    """12 numbers a row to 40, smooth."""
    first, last = matrix(16, 12, "test.first").to(x), matrix(40, 16, "test.last").to(x)
    return functional.silu(x.flatten(1) @ first.T / 3) @ last.T / 4


class OneWay(torch.autograd.Function):
    """Doubles; knows a first derivative by backward passes only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class TwoWays(torch.autograd.Function):
    """Squares; has no rule for forward mode, but its backward pass may be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return 2 * x * gradient


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """A small decoder of the usual architecture, attention in the middle, random weights; its latents have 64 numbers, images 768."""
    model = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=1,
        norm_num_groups=4,
        layers_per_block=1,
    )
    draw = rng.stream("test.vae")
    for weights in model.parameters():
        scale = 1 / math.sqrt(max(1, weights[0].numel())) if weights.ndim > 1 else 0.1
        weights.data = torch.from_numpy((scale * draw.standard_normal(tuple(weights.shape))).astype(np.float32) + (weights.ndim == 1))
    return model.eval()


# Known answers


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("k", [5, 40])
def test_jacobians_of_decoders_are_those_that_they_know(name: str, k: int) -> None:
    codec, w = CODECS[name], directions(48, k)
    assert torch.allclose(jacobian(codec.decode, Z).double(), codec.jacobian(Z), atol=1e-6)
    found = projected_jacobian(codec.decode, Z, w)
    assert found.dtype == torch.float64
    assert torch.allclose(found, w.double() @ codec.jacobian(Z), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["low-rank", "piecewise"])
def test_spectra_are_exact_and_zeros_are_zero(name: str, dtype: torch.dtype) -> None:
    codec = CODECS[name]
    found, known = jacobian_spectrum(codec.decode, Z.to(dtype)), codec.singular_values(Z.to(dtype))
    rank = known.shape[1]
    assert found.shape == (6, 12)
    assert found.dtype == torch.float64
    assert torch.allclose(found[:, :rank], known, rtol=1e-5 if dtype == torch.float32 else 1e-12)
    assert float(found[:, rank:].sum()) == 0
    assert nonzero(found).tolist() == [rank] * 6


@pytest.mark.parametrize("k", [7, 20, 40])
def test_a_projected_spectrum_is_that_of_the_projected_jacobian(k: int) -> None:
    """40 directions of 12 latents take the forward route, 7 and 20 the other."""
    codec, w = CODECS["piecewise"], directions(48, k)
    known = torch.linalg.svdvals(w.double() @ codec.jacobian(Z))
    assert torch.allclose(jacobian_spectrum(codec.decode, Z, w), known, atol=1e-12)
    assert torch.allclose(jacobian_spectrum(codec.decode, Z.float(), w), known, rtol=1e-5)


def test_the_gaussian_denoiser() -> None:
    """D(x) = a v/(a^2 v + s^2) x for data of variances v: its derivative in each direction is that factor."""
    v, path, t = torch.tensor([4.0, 1.0, 0.25, 0.01]).double(), VariancePreserving.scaled_linear(), 400
    a, s = path.alpha(t), path.sigma(t)
    found = jacobian_spectrum(lambda x: a * v / (a**2 * v + s**2) * x, matrix(3, 4))
    assert torch.allclose(found, (a * v / (a**2 * v + s**2)).sort(descending=True).values.expand(3, -1), rtol=1e-12)


def test_a_sampling_chain_is_differentiated_through() -> None:
    """Deterministic sampling from a Gaussian is a product of factors, one a step."""
    v, path = torch.tensor([4.0, 1.0, 0.25]).double(), VariancePreserving.scaled_linear()
    times = path.levels(6)

    def denoise(x: Tensor, t: Tensor | float, cond: object = None) -> Tensor:
        return path.alpha(t) * v / (path.alpha(t) ** 2 * v + path.sigma(t) ** 2) * x

    def chain(x: Tensor) -> Tensor:
        return final(trajectory(denoise, path, x, times))

    z = matrix(2, 3)
    by_hand = torch.autograd.functional.jacobian(lambda x: chain(x[None])[0], z[0])
    assert torch.allclose(jacobian(chain, z)[0], by_hand, rtol=1e-12)
    assert torch.allclose(jacobian_spectrum(chain, z), by_hand.diagonal().sort(descending=True).values.expand(2, -1), rtol=1e-12)
    assert float(by_hand.diagonal().max() / by_hand.diagonal().min()) > 2


# Parity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parity_with_other_implementations(dtype: torch.dtype) -> None:
    z, w = Z.to(dtype), directions(40, 8).to(dtype)
    whole = torch.stack([torch.func.jacrev(lambda x: silu_net(x[None])[0])(one).reshape(40, 12) for one in z])
    other = torch.autograd.functional.jacobian(lambda x: silu_net(x).sum(0), z).reshape(40, 6, 12).transpose(0, 1)
    limit = 1e-5 if dtype == torch.float32 else 1e-12
    assert torch.allclose(whole, other, atol=limit)
    assert torch.allclose(jacobian(silu_net, z), whole, atol=limit)
    assert torch.allclose(projected_jacobian(silu_net, z, w), w @ whole, atol=limit)
    assert torch.allclose(jacobian_spectrum(silu_net, z, w), torch.linalg.svdvals(w @ whole).double(), rtol=1e-4)


def test_more_latents_than_outputs_take_backward_passes() -> None:
    a = matrix(3, 12)
    seen: list[int] = []

    def f(x: Tensor) -> Tensor:
        seen.append(torch.autograd.forward_ad._current_level)
        return x.flatten(1) @ a.T

    assert torch.allclose(jacobian(f, Z), a.expand(6, -1, -1))
    assert jacobian_spectrum(f, Z).shape == (6, 3)
    assert max(seen) == -1


# Routes


def test_attention_by_both_routes(vae: AutoencoderKL) -> None:
    z = rng.normal((1, 8, 8), "test.vae.z", range(2))

    def f(x: Tensor) -> Tensor:
        images: Tensor = vae.decode(x).sample
        return 2 * images - 1

    w = directions(768, 30)
    by_rows = torch.stack(
        [torch.stack([torch.autograd.functional.vjp(f, one[None], row.reshape(1, 3, 16, 16))[1].flatten() for row in w]) for one in z]
    )
    found = projected_jacobian(f, z, w)
    assert torch.allclose(found, by_rows, atol=1e-5 * float(by_rows.abs().max()))
    rule = push_rule(f, z)
    assert rule is not None
    assert rule.__name__ == "_forward"
    whole = jacobian(f, z)
    assert whole.shape == (2, 768, 64)
    assert torch.allclose(w @ whole, by_rows, atol=1e-5 * float(by_rows.abs().max()))
    double = AutoencoderKL.from_config(vae.config).double().eval()
    double.load_state_dict(vae.state_dict())
    exact = projected_jacobian(lambda x: 2 * double.decode(x).sample - 1, z.double(), w)
    assert torch.allclose(found.double(), exact, atol=1e-5 * float(by_rows.abs().max()))


@pytest.mark.parametrize(("one_way", "name"), [(TwoWays, "_twice"), (OneWay, None)])
def test_operations_without_a_forward_rule(one_way: Any, name: str | None) -> None:
    """Differentiating twice, and where that fails as well, backward passes over all outputs."""

    def f(x: Tensor) -> Tensor:
        return silu_net(one_way.apply(x) + x)

    def plain(x: Tensor) -> Tensor:
        return silu_net(3 * x if one_way is OneWay else x * x + x)

    rule = push_rule(f, Z)
    assert (rule.__name__ if rule else None) == name
    assert torch.allclose(jacobian(f, Z), jacobian(plain, Z), atol=1e-12)
    w = directions(40, 38)
    assert torch.allclose(jacobian_spectrum(f, Z, w), jacobian_spectrum(plain, Z, w), rtol=1e-10)
    if name:
        assert torch.allclose(jacobian_trace(f, Z, range(3)).trace, jacobian_trace(plain, Z, range(3)).trace, rtol=1e-10)
    else:
        with pytest.raises(ValueError, match="no second derivative, or no memory for it: use implied_trace"):
            jacobian_trace(f, Z, range(3))


@pytest.mark.parametrize("level", ["forward", "either"])
def test_forward_mode_that_runs_out_of_memory_gives_way(level: str) -> None:
    """To differentiating twice, and where that does not fit either, to backward passes."""

    def f(x: Tensor) -> Tensor:
        dual, plain = torch.autograd.forward_ad._current_level >= 0, torch.backends.cuda.flash_sdp_enabled() is False
        if dual or (plain and level == "either"):  # both take attention by its plain formula, which is larger
            raise torch.OutOfMemoryError("CUDA out of memory")
        return silu_net(x)

    rule = push_rule(f, Z)
    assert (rule.__name__ if rule else None) == ("_twice" if level == "forward" else None)
    assert torch.allclose(jacobian(f, Z), jacobian(silu_net, Z), atol=1e-12)


def test_maps_that_differentiate_inside_themselves() -> None:
    """x + grad E(x) of E = |x|^2/2 + sum sin x has the derivative 2 - sin x, on every route."""

    def f(x: Tensor) -> Tensor:
        energy = (x.square() / 2 + x.sin()).sum()
        (slope,) = torch.autograd.grad(energy, x, create_graph=True)
        return x + slope

    z = Z.flatten(1)
    known = 2 - z.sin()
    assert torch.allclose(jacobian(f, z), torch.diag_embed(known), atol=1e-12)
    assert torch.allclose(jacobian_spectrum(f, z), known.sort(descending=True).values, rtol=1e-12)
    assert torch.allclose(jacobian_trace(f, z, range(3)).trace, jacobian_trace(lambda x: 2 * x + x.cos(), z, range(3)).trace, rtol=1e-12)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode])
def test_callers_that_switched_gradients_off(around: Callable[[], Any]) -> None:
    w = directions(40, 5)
    known = jacobian(silu_net, Z), jacobian_spectrum(silu_net, Z, w), jacobian_trace(silu_net, Z, range(2)).trace
    with around():
        z = Z + 0  # an inference tensor, where that is the mode
        found = jacobian(silu_net, z), jacobian_spectrum(silu_net, z, w + 0), jacobian_trace(silu_net, z, range(2)).trace
    for one, other in zip(known, found, strict=True):
        assert torch.equal(one, other)


def test_weights_that_require_gradients_get_none() -> None:
    layer = nn.Linear(12, 20, dtype=torch.float64)
    found = projected_jacobian(lambda x: layer(x.flatten(1)), Z, directions(20, 4))
    assert torch.allclose(found, directions(20, 4).double() @ layer.weight.detach(), atol=1e-12)
    assert not found.requires_grad
    assert layer.weight.grad is None


# Invariances


@pytest.mark.parametrize("route", [jacobian, lambda f, z, rows: jacobian_spectrum(f, z, directions(40, 7), rows=rows)])
def test_neither_rows_nor_order_nor_company_change_a_row(route: Callable[..., Tensor]) -> None:
    known = route(silu_net, Z, rows=512)
    for rows in (1, 2, 3, 5, 6, 7, 13, 100):
        assert torch.allclose(route(silu_net, Z, rows=rows), known, atol=1e-12)
    assert torch.allclose(route(silu_net, Z.flip(0), rows=4).flip(0), known, atol=1e-12)
    assert torch.allclose(route(silu_net, Z[2:3], rows=4), known[2:3], atol=1e-12)


def test_spectra_do_not_change_when_outputs_or_latents_are_rotated() -> None:
    turn = torch.linalg.qr(matrix(40, 40)).Q
    lean = torch.linalg.qr(matrix(12, 12)).Q
    known = jacobian_spectrum(silu_net, Z)
    assert torch.allclose(jacobian_spectrum(lambda x: silu_net(x) @ turn, Z), known, atol=1e-12)
    assert torch.allclose(jacobian_spectrum(lambda x: silu_net(x.flatten(1) @ lean), Z.flatten(1) @ lean.T), known, atol=1e-12)


def test_one_bad_latent_spoils_no_other_and_a_dead_map_is_zero() -> None:
    z = Z.clone()
    z[2, 0, 0, 0] = math.nan
    for w in (None, directions(40, 7)):
        found, known = jacobian_spectrum(silu_net, z, w), jacobian_spectrum(silu_net, Z, w)
        assert bool(found[2].isnan().all())
        others = [0, 1, 3, 4, 5]
        assert torch.allclose(found[others], known[others], atol=1e-12)
    dead = jacobian_spectrum(lambda x: silu_net(functional.relu(-x.abs())), Z)
    assert torch.equal(dead, torch.zeros(6, 12, dtype=torch.float64))


def test_half_precision_agrees_with_single() -> None:
    z = Z.to(torch.bfloat16)
    found = jacobian_spectrum(silu_net, z, directions(40, 6))
    assert torch.allclose(local_scaling(found), local_scaling(jacobian_spectrum(silu_net, z.float(), directions(40, 6))), atol=0.1)
    low_rank = CODECS["low-rank"]
    assert isinstance(low_rank, LowRankCodec)
    left, right = (part.to(torch.bfloat16) for part in (low_rank.left, low_rank.right))
    assert nonzero(jacobian_spectrum(lambda x: x.flatten(1) @ right @ left.T, z)).tolist() == [4] * 6
