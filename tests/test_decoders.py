"""Decoders with known derivatives: Jacobians against autograd, spectra against closed forms, round trips, regions of the ReLU network."""

from __future__ import annotations

import pickle
from math import exp, log, prod

import pytest
import torch
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.adapters.decoders import ExactCodec, LinearCodec, LowRankCodec, local_geometry, orthonormal
from diffprobe.adapters.piecewise import PiecewiseLinearCodec

LATENT, IMAGE = (3, 2, 2), (3, 4, 4)
RELU = PiecewiseLinearCodec.random(LATENT, IMAGE, (20, 15))
CODECS: dict[str, ExactCodec] = {
    "linear": LinearCodec(rng.normal((12,), "test", range(48)), LATENT, IMAGE),
    "low-rank": LowRankCodec.random(LATENT, IMAGE, (0.3, 2.0, 0.9, 0.9)),
    "one layer": PiecewiseLinearCodec.random(LATENT, IMAGE, (30,), seed=1),
    "two layers": RELU,
}
Z = rng.normal(LATENT, "test.z", range(6)).double()


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> ExactCodec:
    return CODECS[str(request.param)]


def test_jacobian_is_that_of_the_decoder(codec: ExactCodec) -> None:
    known = codec.jacobian(Z)
    assert known.shape == (6, 48, 12)
    for z, jacobian in zip(Z, known, strict=True):
        found = torch.func.jacrev(lambda one: codec.decode(one[None])[0])(z).reshape(48, 12)
        assert torch.allclose(found, jacobian, atol=1e-6 if isinstance(codec, LinearCodec) else 1e-12)


def test_singular_values_are_those_above_zero(codec: ExactCodec) -> None:
    known = codec.singular_values(Z)
    found = torch.linalg.svdvals(codec.jacobian(Z))
    assert known.shape == (6, 4 if isinstance(codec, LowRankCodec) else 12)
    assert torch.allclose(known, found[:, : known.shape[1]], atol=1e-10)
    assert float(known.min()) > 1e-3
    assert float(found[:, known.shape[1] :].sum()) < 1e-10


def test_scaling_and_trace_are_those_of_the_gram_matrix(codec: ExactCodec) -> None:
    jacobian, geometry = codec.jacobian(Z), local_geometry(codec, Z)
    assert torch.allclose(geometry.trace, jacobian.square().sum((1, 2)), rtol=1e-10)
    if not isinstance(codec, LowRankCodec):
        gram = jacobian.transpose(1, 2) @ jacobian
        assert torch.allclose(geometry.psi, gram.logdet() / 2, atol=1e-9)
    assert bool(((geometry.nu > 1) & (geometry.nu <= codec.singular_values(Z).shape[1] + 1e-9)).all())


def test_scaling_and_rank_of_known_spectra() -> None:
    psi, nu, trace = local_geometry(LowRankCodec.random(LATENT, IMAGE, (2.0, 2.0, 2.0)), Z[:1])
    assert (float(psi), float(nu), float(trace)) == pytest.approx((3 * log(2), 3, 12))
    psi, nu, trace = local_geometry(LowRankCodec.random(LATENT, IMAGE, (5.0,)), Z[:1])
    assert (float(psi), float(nu), float(trace)) == pytest.approx((log(5), 1, 25))
    psi, nu, trace = local_geometry(LowRankCodec.random(LATENT, IMAGE, (1.0, 3.0)), Z[:1])
    assert (float(psi), float(nu), float(trace)) == pytest.approx((log(3), exp(-0.25 * log(0.25) - 0.75 * log(0.75)), 10))
    psi, nu, trace = local_geometry(LinearCodec(0.5 * orthonormal(48, 12), LATENT, IMAGE), Z)
    assert psi.tolist() == pytest.approx([12 * log(0.5)] * 6)
    assert nu.tolist() == pytest.approx([12.0] * 6)
    assert trace.tolist() == pytest.approx([3.0] * 6)


def test_encoding_a_decoded_latent_gives_it_back(codec: ExactCodec) -> None:
    again = codec.encode(codec.decode(Z))
    if isinstance(codec, LowRankCodec):
        projector = codec.right @ codec.right.T
        assert torch.allclose(again.flatten(1), Z.flatten(1) @ projector, atol=1e-12)
        assert float((again - Z).abs().max()) > 0.1
        assert torch.allclose(codec.decode(again), codec.decode(Z), atol=1e-12)
    else:
        assert torch.allclose(again, Z, atol=1e-10)


def test_every_image_has_a_code_that_encodes_what_it_decodes_to(codec: ExactCodec) -> None:
    code = codec.encode(torch.from_numpy(rng.stream("test.image", 0).random((4, *IMAGE))))
    assert code.shape == (4, *LATENT)
    assert torch.allclose(codec.encode(codec.decode(code)), code, atol=1e-10)


def test_encoding_is_least_squares_where_the_decoder_is_linear() -> None:
    image = torch.from_numpy(rng.stream("test.image", 1).random((1, *IMAGE)))
    for name in ("linear", "low-rank"):
        codec = CODECS[name]
        code = codec.encode(image)
        residual = (image - codec.decode(code)).flatten()
        assert float((codec.jacobian(code)[0].T @ residual).abs().max()) < 1e-5
        assert float(residual.norm()) > 0.1


def test_dtype_and_batch(codec: ExactCodec) -> None:
    images = codec.decode(Z.float())
    assert images.dtype == codec.encode(images).dtype == torch.float32
    assert images.shape == (6, *IMAGE)
    assert torch.allclose(images.double(), codec.decode(Z), atol=1e-5)
    assert torch.allclose(codec.decode(Z[2:3]), codec.decode(Z)[2:3], atol=1e-12)
    again: ExactCodec = pickle.loads(pickle.dumps(codec))
    assert torch.equal(again.decode(Z), codec.decode(Z))


@pytest.mark.parametrize("name", ["linear", "low-rank"])
def test_gains_are_the_columns_of_the_jacobian(name: str) -> None:
    codec = CODECS[name]
    assert isinstance(codec, LinearCodec | LowRankCodec)
    assert torch.allclose(codec.gains, codec.jacobian(Z[:1])[0].square().mean(0), rtol=1e-10)


def test_the_trace_of_the_relu_codec_against_finite_differences() -> None:
    """Within its region the decoder is linear, so that differences over less than the distance to the edge are exact."""
    distances, trace = RELU.boundary_distance(Z), local_geometry(RELU, Z).trace
    assert float(distances.min()) > 1e-4
    basis = torch.eye(12, dtype=torch.float64).reshape(12, *LATENT)
    for z, step, known in zip(Z, 0.9 * distances, trace, strict=True):
        difference = (RELU.decode(z + step * basis) - RELU.decode(z - step * basis)) / (2 * step)
        assert float(difference.square().sum()) == pytest.approx(float(known), rel=1e-9)


def test_the_edge_of_a_region_is_where_it_is_said_to_be() -> None:
    """Nothing changes inside the distance, in any direction; just beyond it, towards the nearest hyperplane, one unit does."""
    values, slopes = RELU.units(Z)
    distances = RELU.boundary_distance(Z)
    directions = rng.normal(LATENT, "test.direction", range(200)).double()
    directions /= directions.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    for i, (z, distance) in enumerate(zip(Z, distances, strict=True)):
        here = RELU.region(z[None])
        assert bool((RELU.region(z + 0.999 * distance * directions) == here).all())
        nearest = (values[i].abs() / slopes[i].norm(dim=-1)).argmin()
        way = (-values[i, nearest].sign() * slopes[i, nearest] / slopes[i, nearest].norm()).reshape(LATENT)
        inside, beyond = (RELU.region((z + factor * distance * way)[None]) for factor in (0.999, 1.001))
        assert torch.equal(inside, here)
        assert not torch.equal(beyond, here)
        assert bool(beyond[0, nearest] != here[0, nearest])


def test_units_are_what_the_relus_are_given_and_their_gradients() -> None:
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, given, __: seen.append(given[0])) for layer in RELU.network if isinstance(layer, nn.ReLU)
    ]
    RELU.decode(Z)
    for hook in hooks:
        hook.remove()
    values, slopes = RELU.units(Z)
    assert torch.allclose(values, torch.cat(seen, 1), atol=1e-12)
    assert values.shape == (6, 35)
    found = torch.func.jacrev(lambda z: RELU.units(z[None]).values[0])(Z[0]).reshape(35, 12)
    assert torch.allclose(found, slopes[0], atol=1e-12)
    assert torch.equal(RELU.region(Z), values > 0)


def test_a_region_has_one_jacobian_and_others_have_others() -> None:
    near = Z[0] + 0.5 * RELU.boundary_distance(Z[:1]) * rng.normal(LATENT, "test.near", [0]).double() / 12
    assert torch.equal(RELU.region(near), RELU.region(Z[:1]))
    assert torch.allclose(RELU.jacobian(near), RELU.jacobian(Z[:1]), atol=1e-12)
    assert len(RELU.region(Z).unique(dim=0)) == len(Z)
    traces = local_geometry(RELU, Z).trace
    assert float(traces.max() / traces.min()) > 1.2
    assert float(traces.min()) > 0.25 * 12  # gain^2 d, and what the network adds


def test_relu_codec_is_of_its_seed_and_moves_no_global_generator() -> None:
    state = torch.get_rng_state()
    again, other = (PiecewiseLinearCodec.random(LATENT, IMAGE, (20, 15), seed=seed) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(RELU.parameters, again.parameters, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(RELU.parameters, other.parameters, strict=True))
    assert not any(part.requires_grad for part in RELU.parameters)


def test_a_relu_codec_by_hand() -> None:
    """decode(z) = z e_1 + relu(z - 1) e_2: slope 1 below 1, sqrt 2 above, and the edge at 1."""
    layer = nn.Linear(1, 1, dtype=torch.float64).requires_grad_(False)
    layer.weight.fill_(1.0)
    layer.bias.fill_(-1.0)
    columns = torch.eye(3, dtype=torch.float64)
    codec = PiecewiseLinearCodec(columns[:, :1], columns[:, 1:2], nn.Sequential(layer, nn.ReLU()), (1, 1, 1), (3, 1, 1))
    z = torch.tensor([-1.0, 0.75, 3.0]).reshape(3, 1, 1, 1)
    assert (codec.decode(z).flatten(1) - 0.5).tolist() == [[-1, 0, 0], [0.75, 0, 0], [3, 2, 0]]
    assert local_geometry(codec, z).trace.tolist() == pytest.approx([1, 1, 2])
    assert codec.boundary_distance(z).tolist() == pytest.approx([2, 0.25, 2])
    assert codec.region(z).tolist() == [[False], [False], [True]]


def test_orthonormal_columns() -> None:
    assert torch.allclose(orthonormal(20, 6).T @ orthonormal(20, 6), torch.eye(6).double(), atol=1e-12)
    assert torch.equal(orthonormal(20, 6, 3), orthonormal(20, 6, 3))
    assert not torch.equal(orthonormal(20, 6), orthonormal(20, 6, 1))
    assert not torch.equal(orthonormal(20, 6), orthonormal(20, 6, role="test"))


def test_bad_input() -> None:
    d, rows = prod(LATENT), prod(IMAGE)
    with pytest.raises(ValueError, match="must be 48 x 12, not 3 x 3"):
        LinearCodec(torch.zeros(3, 3), LATENT, IMAGE)
    with pytest.raises(ValueError, match="use LowRankCodec"):
        LinearCodec(torch.ones(rows, d), LATENT, IMAGE)
    for scales in ((), (1.0, 0.0), (1.0,) * 12):
        with pytest.raises(ValueError, match="scales are a list of 1 to 11 numbers"):
            LowRankCodec(torch.eye(rows)[:, : len(scales)], torch.tensor(scales), torch.eye(d)[:, : len(scales)], LATENT, IMAGE)
    with pytest.raises(ValueError, match="left must be 48 x 2"):
        LowRankCodec(torch.eye(rows)[:, :3], torch.ones(2), torch.eye(d)[:, :2], LATENT, IMAGE)
    with pytest.raises(ValueError, match="columns of right must be orthonormal"):
        LowRankCodec(torch.eye(rows)[:, :2], torch.ones(2), torch.ones(d, 2), LATENT, IMAGE)
    for widths in ((), (0,), (8, 37)):
        with pytest.raises(ValueError, match="the last of at most 36"):
            PiecewiseLinearCodec.random(LATENT, IMAGE, widths)
    basis = orthonormal(rows, d + 15)
    for linear, mix in ((basis[:, :d], basis[:, 1:16]), (basis[:, :1].expand(-1, d), basis[:, d:])):
        with pytest.raises(ValueError, match="orthogonal"):
            PiecewiseLinearCodec(linear, mix, RELU.network, LATENT, IMAGE)
    for network in (nn.Sequential(), nn.Sequential(*list(RELU.network)[:3]), nn.Sequential(nn.ReLU(), nn.Linear(12, 15))):
        with pytest.raises(ValueError, match="alternate"):
            PiecewiseLinearCodec(basis[:, :d], basis[:, d:], network, LATENT, IMAGE)
