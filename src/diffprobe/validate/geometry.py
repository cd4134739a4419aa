"""Known answers of the geometry probe: decoders with exact Jacobians, what a projection makes of them, and an exact partition.

Images are taken to [-1, 1], as the probe does. Allowances of what is sampled are four of its own standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.adapters.decoders import ExactCodec, LinearCodec, LowRankCodec, local_geometry, orthonormal
from diffprobe.adapters.exact import PATHS, three_scales
from diffprobe.adapters.piecewise import PiecewiseLinearCodec
from diffprobe.measures.geometry.complexity import frame, local_complexity, rounding_floor
from diffprobe.measures.geometry.directions import directions
from diffprobe.measures.geometry.maps import Map
from diffprobe.measures.geometry.partition import Partition, partition
from diffprobe.measures.geometry.projection import foretold, projection_offset
from diffprobe.measures.geometry.spectrum import jacobian_spectrum, local_rank, local_scaling, nonzero
from diffprobe.measures.geometry.trace import implied_trace, jacobian_trace
from diffprobe.validate.check import Check

ERRORS = 4.0
EXACT = 1e-9
_LATENT, _IMAGE = (1, 4, 4), (3, 8, 8)
_PROJECTIONS = 30


def geometry() -> Iterator[Check]:
    """Whole spectra, projected spectra, cheap traces, complexity, and the partition that all of them must agree with."""
    yield from _decoders()
    yield from _denoiser()
    yield from _projections()
    yield from _large_rank()
    yield from _traces()
    yield from _first_layer()
    yield from _deeper()
    yield from _partition()


def _decoders() -> Iterator[Check]:
    codecs: dict[str, ExactCodec] = {
        "linear": LinearCodec(_normal(192, 16, name="linear") / 14, _LATENT, _IMAGE),
        "low-rank": LowRankCodec.random(_LATENT, _IMAGE, [2.0, 1.0, 0.5, 0.1, 0.01]),
        "piecewise-linear": PiecewiseLinearCodec.random(_LATENT, _IMAGE, (48, 48)),
    }
    for name, codec in codecs.items():
        z = _normal(6, *_LATENT, name=name)
        truth = local_geometry(codec, z)
        rank = codec.singular_values(z).shape[1]
        values = jacobian_spectrum(_shown(codec), z)
        scaling = truth.psi + rank * math.log(2)  # images in [-1, 1] double the Jacobian
        yield Check(f"{name} decoder: non-zero singular values", float(nonzero(values).double().mean()), rank, 0)
        yield _worst(f"{name} decoder: local scaling", local_scaling(values), scaling)
        yield _worst(f"{name} decoder: local rank", local_rank(values), truth.nu)
        yield _worst(f"{name} decoder: trace", values.square().sum(1), 4 * truth.trace)


def _denoiser() -> Iterator[Check]:
    """Of a Gaussian with variances v: gains a v / (a² v + s²) on every direction."""
    world = three_scales()
    x = world.sample(range(4))[0]
    for name in ("vp", "ve"):
        path = PATHS[name]()
        t = path.time(0.5)
        denoiser, a, s = world.denoiser(path), float(path.alpha(t)), float(path.sigma(t))
        gains = a * world.variances[0] / (a**2 * world.variances[0] + s**2)
        values = jacobian_spectrum(partial(denoiser, t=t), x)
        yield _worst(f"exact Gaussian denoiser ({name}): local scaling", local_scaling(values), gains.log().sum().expand(4))
        yield _worst(f"exact Gaussian denoiser ({name}): local rank", local_rank(values), local_rank(gains).expand(4))


def _projections() -> Iterator[Check]:
    """Through no fewer directions than the rank, psi moves by what two digammas say, whatever the Jacobian."""
    for latents, k, known in ((5, 120, -4.075), (40, 120, -35.37), (100, 300, -39.75)):
        f, z = _linear(600, latents), torch.zeros(1, latents, dtype=torch.float64)
        offset = projection_offset(latents, k, 600)
        yield Check(f"{k} of 600 directions, rank {latents}: mean offset of psi", offset.mean, known, 0.001)
        whole = local_scaling(jacobian_spectrum(f, z))
        seen = [local_scaling(jacobian_spectrum(f, z, directions(600, k, seed))) - whole for seed in range(_PROJECTIONS)]
        moved = torch.cat(seen)
        allowed = ERRORS * offset.std / _PROJECTIONS**0.5 / abs(offset.mean)
        yield Check(f"{k} of 600 directions, rank {latents}: offset of psi measured", float(moved.mean()), offset.mean, allowed)


def _large_rank() -> Iterator[Check]:
    """Through far fewer directions than the rank, psi and nu are the trace and the effective rank by other names."""
    outputs, latents, k = 1200, 600, 60
    z = torch.zeros(1, latents, dtype=torch.float64)
    for name, decay in (("flat", 0.0), ("exp(-2 i/E)", 2.0)):
        gains = torch.exp(-decay * torch.arange(latents, dtype=torch.float64) / latents)
        f, squares = _linear(outputs, latents, gains), gains.square()
        trace = squares.sum()[None]
        expected = foretold(trace, trace.square() / squares.square().sum(), k, outputs)
        found = [jacobian_spectrum(f, z, directions(outputs, k, seed)) for seed in range(6)]
        psi, nu = (float(torch.cat([what(values) for values in found]).mean()) for what in (local_scaling, local_rank))
        yield Check(f"{k} directions, {name} spectrum of rank {latents}: psi by formula (P)", psi, float(expected.scaling), 0.01)
        yield Check(f"{k} directions, {name} spectrum of rank {latents}: nu by formula (P)", nu, float(expected.rank), 0.005)
        implied = implied_trace(torch.cat(found), outputs)
        allowed = ERRORS * float(implied.trace_error.mean() / trace) / len(found) ** 0.5
        yield Check(f"{k} directions, {name} spectrum: the trace that they imply", float(implied.trace.mean()), float(trace), allowed)


def _traces() -> Iterator[Check]:
    codec = PiecewiseLinearCodec.random(_LATENT, _IMAGE, (48, 48))
    z = _normal(1, *_LATENT, name="traces")
    values = jacobian_spectrum(_shown(codec), z).square()
    found = jacobian_trace(_shown(codec), z, range(400))
    trace, rank = float(values.sum()), float(values.sum().square() / values.square().sum())
    yield Check("trace from 400 probe vectors", float(found.trace), trace, ERRORS * float(found.trace_error) / trace)
    yield Check("effective rank from 400 probe vectors", float(found.effective_rank), rank, ERRORS * float(found.rank_error) / rank)


def _first_layer() -> Iterator[Check]:
    """A unit changes side where |w z + b| < r max_i |w b_i|: in every dimension exactly."""
    codec, dims = PiecewiseLinearCodec.random(_LATENT, _IMAGE, (150,)), 4
    z = _normal(40, *_LATENT, name="first")
    units, axes = codec.units(z), frame(16, dims)
    for radius in (0.1, 0.01):
        truth = float((units.values.abs() < radius * (units.slopes @ axes.T).abs().amax(-1)).sum())
        found = local_complexity(_shown(codec), z, radius, dims)
        yield Check(f"complexity of a first layer, radius {radius:g}", float(found.count.sum()), truth, 0)


def _deeper() -> Iterator[Check]:
    """In two dimensions the neighbourhood is a diamond: the units whose folds its exact partition has. 3 % slip between the vertices."""
    codec = PiecewiseLinearCodec.random((1, 1, 2), _IMAGE, (60, 60, 60))
    z, axes = _normal(100, 1, 1, 2, name="deeper"), frame(2, 2)
    for radius in (0.04, 0.01):
        corners = radius * torch.stack([axes[0], axes[1], -axes[0], -axes[1]])
        truth = sum(len(partition(codec.network, one.flatten() + corners).units.unique()) for one in z)
        found = local_complexity(_shown(codec), z, radius, 2)
        what = f"complexity of three layers, radius {radius:g}: units of its exact partition"
        yield Check(what, float(found.count.sum()), truth, 0.03)
    yield Check("complexity made by rounding in float64", float(rounding_floor(_shown(codec), z, 2).sum()), 0, 0)


def _partition() -> Iterator[Check]:
    square = 2 * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    weight, bias = _normal(40, 2, name="lines"), _normal(40, name="offsets")
    lines = nn.Linear(2, 40, dtype=torch.float64)
    lines.weight, lines.bias = nn.Parameter(weight), nn.Parameter(bias)
    found = partition(nn.Sequential(lines, nn.ReLU()), square)
    yield Check("partition by lines: regions by Euler's formula", len(found.points), _regions(weight, bias, square), 0)
    codec = PiecewiseLinearCodec.random((1, 1, 2), _IMAGE, (20, 20, 20))
    found = partition(codec.network, square)
    yield Check("partition by three layers: areas fill the domain", float(found.areas.sum()), 16.0, EXACT)
    f, inside = _network(codec.network), found.centres
    there = jacobian_spectrum(f, inside)
    flat = found.rank < 2
    yield _worst("partition: scaling of each region against its Jacobian", found.scaling[~flat], local_scaling(there)[~flat])
    image, size = _image_areas(found)[~flat], found.areas[~flat]
    yield Check(
        "pushed-forward uniform: its density integrates to", float((image * found.density[~flat]).sum()), float(size.sum()) / 16, EXACT
    )
    u = torch.from_numpy(rng.stream("validate.geometry.uniform").uniform(-2, 2, (2000, 2)))
    drawn = jacobian_spectrum(f, u).log().sum(1)
    drawn = drawn[drawn.isfinite()]
    truth = float((found.scaling * found.areas)[~flat].sum() / size.sum())
    allowed = ERRORS * float(drawn.std()) / len(drawn) ** 0.5 / abs(truth)
    yield Check("pushed-forward uniform: mean log density by samples", -float(drawn.mean()), -truth, allowed)


def _regions(weight: Tensor, bias: Tensor, domain: Tensor) -> int:
    """1 + lines that meet the domain + pairs that meet in it."""
    heights = weight @ domain.T + bias[:, None]
    meets = (heights.amin(1) < 0) & (heights.amax(1) > 0)
    pairs = torch.combinations(torch.arange(len(weight)))
    points = torch.linalg.solve(weight[pairs], -bias[pairs][..., None])[..., 0]
    return 1 + int(meets.sum()) + int((points.abs().amax(1) < domain.max()).sum())


def _image_areas(found: Partition) -> Tensor:
    """Of the regions' images, by triangles: sqrt(|a|² |b|² - (a b)²)/2 of their edges in the output."""
    images = torch.einsum("nde,nve->nvd", found.slopes, found.points - found.points[:, :1])
    a, b = images[:, 1:-1], images[:, 2:]
    squares: Tensor = a.square().sum(2) * b.square().sum(2) - (a * b).sum(2).square()
    return squares.clamp(min=0).sqrt().sum(1) / 2


def _shown(codec: ExactCodec) -> Map:
    return lambda z: 2 * codec.decode(z) - 1


def _network(network: nn.Sequential) -> Map:
    def f(u: Tensor) -> Tensor:
        out: Tensor = network(u)
        return out

    return f


def _linear(outputs: int, latents: int, gains: Tensor | None = None) -> Map:
    matrix = orthonormal(outputs, latents, 0, "validate.geometry.linear")
    matrix = matrix if gains is None else matrix * gains
    return lambda z: z @ matrix.T


def _normal(*shape: int, name: str) -> Tensor:
    return torch.from_numpy(rng.stream(f"validate.geometry.{name}").standard_normal(shape))


def _worst(what: str, measured: Tensor, truth: Tensor) -> Check:
    """The value that is farthest from its truth."""
    place = int((measured - truth).abs().argmax())
    return Check(what, float(measured[place]), float(truth[place]), EXACT)
