"""The exact partition: regions counted by Euler, maps by autograd, areas, continuity, complexity by counting, and the density."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats as ss
from scipy.spatial import cKDTree
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.measures.geometry.complexity import frame, local_complexity
from diffprobe.measures.geometry.partition import Partition, partition

SQUARE = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng.stream("test.partition", seed).standard_normal(shape))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(rng.stream("test.partition.uniform", seed).uniform(size=shape))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0]).double()
    made.weight, made.bias = nn.Parameter(weight.double()), nn.Parameter(bias.double())
    return made


def network(
    widths: tuple[int, ...], inputs: int = 2, outputs: int = 3, seed: int = 0, kind: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    parts, fan = list[nn.Module](), inputs
    for index, width in enumerate(widths):
        weight, bias = normal(width, fan, seed=seed + index), 0.5 * normal(width, seed=seed + 50 + index)
        parts += [linear(weight * (2 / fan) ** 0.5, bias), kind()]
        fan = width
    return nn.Sequential(*parts, linear(normal(outputs, fan, seed=seed + 99) / fan**0.5, torch.zeros(outputs)))


def inside(found: Partition, seed: int = 0) -> Tensor:
    """A random point in each region."""
    shares = uniform(*found.points.shape[:2], seed=seed) + 0.01
    shares = shares * (torch.arange(found.points.shape[1]) < found.corners[:, None])
    return (found.points * (shares / shares.sum(1, keepdim=True))[..., None]).sum(1)


def at(found: Partition, points: Tensor) -> Tensor:
    """Each region's map at its own points [N, ..., 2]."""
    return torch.einsum("nde,n...e->n...d", found.slopes, points) + found.offsets.reshape(len(found.offsets), *[1] * (points.ndim - 2), -1)


def crossings(weight: Tensor, bias: Tensor) -> int:
    """Pairs of lines that meet inside the square."""
    count = 0
    for i in range(len(weight)):
        for j in range(i):
            point = torch.linalg.solve(weight[[i, j]], -bias[[i, j]])
            count += int(point.abs().max() < 1)
    return count


# Regions.


@pytest.mark.parametrize("seed", range(4))
def test_lines_in_general_position_make_as_many_regions_as_euler_says(seed: int) -> None:
    weight, bias = normal(30, 2, seed=seed), 0.6 * normal(30, seed=seed + 10)
    found = partition(nn.Sequential(linear(weight, bias), nn.ReLU()), SQUARE)
    meeting = ((weight @ SQUARE.T + bias[:, None]).sign().sum(1).abs() < 4).nonzero()[:, 0]
    assert len(found.points) == 1 + len(meeting) + crossings(weight[meeting], bias[meeting])
    assert found.units.unique().tolist() == meeting.tolist()
    heights = (found.folds * weight[found.units][:, None]).sum(2) + bias[found.units][:, None]
    assert heights.abs().max() < 1e-12


def test_lines_through_one_point_and_the_corners() -> None:
    """Zeros at corners cut nothing off: eight slices of a square by its diagonals and axes, of equal area, with three corners each."""
    weight = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1], [2, 2]])
    found = partition(nn.Sequential(linear(weight, torch.zeros(5)), nn.ReLU()), SQUARE)
    assert found.corners.tolist() == [3] * 8
    assert found.areas.tolist() == pytest.approx([0.5] * 8, abs=1e-15)
    edge = partition(nn.Sequential(linear(torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([-1.0, 0])), nn.ReLU()), SQUARE)
    assert (len(edge.points), len(edge.folds)) == (1, 0)


def test_a_linear_network_is_one_region() -> None:
    weight, bias = normal(5, 2), normal(5, seed=1)
    found = partition(nn.Sequential(linear(weight, bias)), SQUARE.flip(0))
    assert torch.equal(found.slopes[0], weight)
    assert torch.equal(found.offsets[0], bias)
    assert float(found.areas) == 4
    assert float(found.scaling) == pytest.approx(float(torch.logdet(weight.T @ weight)) / 2)


@pytest.mark.parametrize("kind", [nn.ReLU, lambda: nn.LeakyReLU(0.1)])
def test_maps_are_autograds_and_areas_fill_the_domain(kind: Callable[[], nn.Module]) -> None:
    net = network((24, 24, 24), kind=kind)
    triangle = torch.tensor([[-3.0, -2], [4, -1], [0, 5]])
    found = partition(net, triangle)
    assert len(found.points) > 500
    assert float(found.areas.sum()) == pytest.approx(0.5 * abs(7 * 7 - 3 * 1), rel=1e-12)
    assert found.areas.min() > 0
    points = inside(found).requires_grad_()
    values = net(points)
    slopes = torch.stack([torch.autograd.grad(values[:, i].sum(), points, retain_graph=True)[0] for i in range(3)], 1)
    assert torch.allclose(found.slopes, slopes, rtol=0, atol=1e-12)
    assert torch.allclose(at(found, points), values, rtol=0, atol=1e-12)
    assert all(len(polygon) == count for polygon, count in zip(found.polygons, found.corners.tolist(), strict=True))
    assert torch.allclose(at(found, found.points), net(found.points), rtol=0, atol=1e-11)  # corners are shared by neighbours


def test_every_fold_bends_where_neighbours_meet() -> None:
    """Across a fold of the last hidden layer the gradient jumps, and the value does not."""
    net = network((12, 12))
    found = partition(net, SQUARE)
    middle, along = found.folds.mean(1), found.folds[:, 1] - found.folds[:, 0]
    long = (along.norm(dim=1) > 1e-3) & (found.units >= 12)
    normal_ = torch.stack([-along[:, 1], along[:, 0]], 1) / along.norm(dim=1, keepdim=True)
    sides = [(middle + sign * 1e-7 * normal_)[long].requires_grad_() for sign in (1, -1)]
    slopes = [torch.autograd.grad(net(side).sum(), side)[0] for side in sides]
    assert long.sum() > 10
    assert (slopes[0] - slopes[1]).norm(dim=1).min() > 1e-4


def test_a_plane_of_a_larger_input() -> None:
    net = network((20, 20), inputs=7, outputs=5)
    basis, origin = torch.linalg.qr(normal(7, 2, seed=3)).Q.T, normal(7, seed=4)
    found = partition(net, 2 * SQUARE, origin=origin, basis=basis)
    points = inside(found)
    assert len(found.points) > 100
    assert torch.allclose(at(found, points), net(origin + points @ basis), rtol=0, atol=1e-12)
    first = net[0]
    assert isinstance(first, nn.Linear)
    flat = partition(nn.Sequential(linear(first.weight.data @ basis.T, first(origin).data), *list(net)[1:]), 2 * SQUARE)
    assert torch.allclose(flat.scaling.sort().values, found.scaling.sort().values, rtol=0, atol=1e-9)


def test_nested_layers_without_bias_and_float32() -> None:
    first, last = nn.Linear(2, 6, bias=False), linear(normal(2, 6, seed=1), normal(2)).float()
    first.weight = nn.Parameter(normal(6, 2).float())
    net = nn.Sequential(first, nn.Sequential(nn.ReLU(), nn.Identity(), last))
    found = partition(net, SQUARE)
    assert len(found.points) == 12
    assert torch.allclose(at(found, inside(found)).float(), net(inside(found).float()), atol=1e-5)


# Local complexity by counting.


@pytest.mark.parametrize("seed", range(3))
def test_a_first_layers_complexity_is_the_number_of_lines_that_meet_the_diamond(seed: int) -> None:
    net, z = network((400,)), normal(1, 2, seed=seed + 20)
    axes = frame(2, 2, seed=seed)
    for radius in (0.03, 0.1, 0.4):
        diamond = z + radius * torch.stack([axes[0], axes[1], -axes[0], -axes[1]])
        counted = partition(net, diamond).units.unique().numel()
        assert counted > 0
        assert local_complexity(net, z, radius, 2, seed=seed).count.tolist() == [counted]


def test_deep_complexity_is_that_of_the_partition_for_small_radii_and_never_more() -> None:
    net = network((60, 60, 60))
    centres, axes = normal(60, 2, seed=30), frame(2, 2)
    corners = torch.stack([axes[0], axes[1], -axes[0], -axes[1]])
    shares = []
    for radius in (1e-2, 0.3):
        found = local_complexity(net, centres, radius, 2).count
        counted = torch.tensor([partition(net, z + radius * corners).units.unique().numel() for z in centres])
        assert (found <= counted).all()
        assert counted.sum() > 20
        shares.append(float((found == counted).double().mean()))
    assert shares[0] >= 0.95
    assert shares[1] < 0.8  # bent folds slip in between the vertices


# The density.


def surface() -> nn.Sequential:
    """A network whose image does not overlap: its first two outputs are a homeomorphism of the plane, u + small g(u)."""
    net = network((16, 16), outputs=1)
    first, middle, last = (layer for layer in net if isinstance(layer, nn.Linear))
    copy = torch.eye(2, dtype=torch.float64)
    weight, bias = torch.cat([first.weight.data, copy, -copy]), torch.cat([first.bias.data, torch.zeros(4)])
    hidden = torch.block_diag(middle.weight.data, torch.eye(4, dtype=torch.float64))
    hidden_bias = torch.cat([middle.bias.data, torch.zeros(4)])
    out = torch.cat([torch.cat([torch.zeros(2, 16), copy, -copy], 1), torch.cat([3 * last.weight.data, torch.zeros(1, 4)], 1)])
    return nn.Sequential(linear(weight, bias), nn.ReLU(), linear(hidden, hidden_bias), nn.ReLU(), linear(out, torch.zeros(3)))


def test_image_areas_are_exp_psi_and_the_density_sums_to_one() -> None:
    found = partition(surface(), SQUARE)
    images = at(found, found.points)
    spokes = images - images[:, :1]
    areas = 0.5 * torch.linalg.cross(spokes[:, 1:-1], spokes[:, 2:]).norm(dim=2).sum(1)
    assert torch.allclose(areas, found.areas * found.scaling.exp(), rtol=1e-9, atol=1e-15)
    assert float((areas * found.density).sum()) == pytest.approx(1, rel=1e-12)


def test_a_count_of_samples_is_the_density() -> None:
    """Uniform points pushed forward, counted in small balls around the images of the largest regions' centres."""
    net = surface()
    found = partition(net, SQUARE)
    size, reach = 400_000, 0.02
    cloud = cKDTree(net(2 * uniform(size, 2) - 1).detach().numpy())
    room = found.areas.sort(descending=True).indices[:60]
    seen = np.array([len(part) for part in cloud.query_ball_point(at(found, found.centres)[room].numpy(), reach)]) / (
        size * math.pi * reach**2
    )
    truth = found.density[room].numpy()
    assert np.median(np.abs(np.log(seen / truth))) < 0.1
    assert ss.spearmanr(seen, found.scaling[room].numpy()).statistic < -0.8


def test_flat_images_are_told() -> None:
    """Left of 0 the image is a line, and below it a point."""
    net = nn.Sequential(linear(torch.eye(2), torch.zeros(2)), nn.ReLU(), linear(3 * torch.eye(2), torch.zeros(2)))
    found = partition(net, SQUARE)
    order = (found.centres * torch.tensor([2.0, 1])).sum(1).argsort()
    assert found.rank[order].tolist() == [0, 1, 1, 2]
    assert found.scaling[order].tolist() == pytest.approx([math.nan, math.log(3), math.log(3), math.log(9)], nan_ok=True)
    assert found.density[order].tolist() == pytest.approx([math.inf, math.inf, math.inf, 1 / 36])


# Bad input.


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (SQUARE[:2], "convex polygon"),
        (SQUARE[[0, 2, 1, 3]], "convex polygon"),
        (torch.tensor([[0.0, 0], [2, 0], [0.5, 0.5], [0, 2]]), "convex polygon"),
        (torch.tensor([[0.0, 0], [1, 1], [2, 2]]), "convex polygon"),
        (torch.tensor([[math.cos(4 * math.pi * i / 5), math.sin(4 * math.pi * i / 5)] for i in range(5)]), "convex polygon"),
        (SQUARE * torch.nan, "convex polygon"),
        (normal(4, 3), "convex polygon"),
    ],
)
def test_the_domain_is_convex(domain: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        partition(network((4,)), domain)


def test_other_bad_input_is_one_line() -> None:
    with pytest.raises(ValueError, match="Tanh has no exact partition"):
        partition(nn.Sequential(nn.Linear(2, 3), nn.Tanh()), SQUARE)
    with pytest.raises(ValueError, match="takes 5 numbers but gets 2"):
        partition(network((4,), inputs=5), SQUARE)
    with pytest.raises(ValueError, match=r"an origin \[E\] and a basis"):
        partition(network((4,), inputs=5), SQUARE, basis=normal(2, 5), origin=normal(4))
    with pytest.raises(ValueError, match="more than 50 linear regions"):
        partition(network((40,)), SQUARE, limit=50)
