"""The exact partition of a piecewise-linear network over a polygon of the plane: its linear regions, and the network on each.

Unit by unit, every convex region that a unit's zero line crosses is cut in two; behind a layer each region's affine map is known, so
that the next layer's zero sets are lines there again (Humayun et al. 2023, SplineCam, do the same by graph search). All in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffprobe.measures.geometry.spectrum import local_scaling, nonzero

#: A line that comes no nearer to a region's inside than this share of the domain's size does not cut it.
NEAR = 1e-12
#: Regions whose corners are tried on all units of a layer at once.
CHUNK = 1024
#: Singular values below this share of the largest are 0: the region's image is a line or a point.
FLAT = 1e-12


class Partition(NamedTuple):
    """N convex regions that tile the domain, float64, in coordinates u of the plane; on region i the network is slopes_i u + offsets_i.

    points [N, V, 2] are each region's corners counter-clockwise, of which it has corners [N], the last repeated up to V; slopes
    [N, D, 2]; offsets [N, D]. folds [S, 2, 2] are the straight pieces along which the network bends, and units [S] whose they are:
    ReLUs numbered through all layers in order. A unit's folds need not all bend the output: later layers may be closed there.
    """

    points: Tensor
    corners: Tensor
    slopes: Tensor
    offsets: Tensor
    folds: Tensor
    units: Tensor

    @property
    def polygons(self) -> list[Tensor]:
        """The corners of each region, [n_i, 2]."""
        return [points[:count] for points, count in zip(self.points, self.corners.tolist(), strict=True)]

    @property
    def areas(self) -> Tensor:
        """Of the regions in the plane [N]."""
        return _area(self.points)

    @property
    def rank(self) -> Tensor:
        """Of the slopes [N]: 2, or less where the region's image is a line (1) or a point (0)."""
        return nonzero(self._stretch)

    @property
    def scaling(self) -> Tensor:
        """psi [N], the sum of the logs of the slopes' singular values above 0, nan without any: areas grow by exp(psi)."""
        return local_scaling(self._stretch)

    @property
    def density(self) -> Tensor:
        """That of a uniform distribution on the domain, pushed forward, on each region's image: exp(-psi)/area [N].

        Per unit of area in the output, where images do not overlap; infinite where rank is below 2. Humayun et al. 2024, eq. 3.
        """
        return torch.where(self.rank == 2, (-self.scaling).exp() / self.areas.sum(), torch.inf)

    @property
    def centres(self) -> Tensor:
        """A point inside each region [N, 2]: the mean of its corners."""
        return _centres(self.points, self.corners)

    @property
    def _stretch(self) -> Tensor:
        values: Tensor = torch.linalg.svdvals(self.slopes)
        return torch.where(values > FLAT * values[:, :1], values, 0.0)


def partition(
    network: nn.Sequential, domain: Tensor, *, origin: Tensor | None = None, basis: Tensor | None = None, limit: int = 200_000
) -> Partition:
    """The regions of a network of nn.Linear, nn.ReLU and nn.LeakyReLU over a convex polygon `domain` [n, 2].

    Over a plane of a larger input, u stands for origin + u basis, basis [2, E] (orthonormal rows keep psi that of the map along the
    plane) and origin [E]. Raises ValueError for other layers, a domain that is not convex, and more than `limit` regions.
    """
    points = _convex(domain.detach().double())[None]
    maps = _plane(origin, basis)
    size, numbered = float((points[0].amax(0) - points[0].amin(0)).norm()), 0
    corners = torch.tensor([points.shape[1]])
    folds, units = [torch.zeros(0, 2, 2, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int64)]
    for layer in _layers(network):
        if isinstance(layer, nn.Linear):
            maps = _through(layer, maps)
            continue
        state = _State(points, corners, torch.arange(len(points)))
        for unit in _live(points, maps):
            state, cut = _fold(state, maps[:, unit], size)
            folds.append(cut)
            units.append(torch.full((len(cut),), numbered + unit))
            if len(state.points) > limit:
                raise ValueError(f"more than {limit} linear regions: choose a smaller domain, or raise limit")
        numbered += maps.shape[1]
        points, corners, maps = state.points, state.corners, _gated(state, maps, layer)
    return Partition(points, corners, maps[..., :2], maps[..., 2], torch.cat(folds), torch.cat(units))


class _State(NamedTuple):
    """Regions while a layer's units cut them: points [N, V, 2], corners [N], and whose map each has, parents [N]."""

    points: Tensor
    corners: Tensor
    parents: Tensor


def _live(points: Tensor, maps: Tensor) -> list[int]:
    """The units whose zero line meets a region at all: the others need not be tried on the regions that these will make."""
    live = torch.zeros(maps.shape[1], dtype=torch.bool)
    for start in range(0, len(points), CHUNK):
        own = maps[start : start + CHUNK]
        heights = points[start : start + CHUNK] @ own[..., :2].mT + own[:, None, :, 2]
        live |= ((heights.amax(1) > 0) & (heights.amin(1) < 0)).any(0)
    found: list[int] = live.nonzero()[:, 0].tolist()
    return found


def _fold(state: _State, lines: Tensor, size: float) -> tuple[_State, Tensor]:
    """Every region cut by the zero line [.., 3] of one unit on it, and the pieces of line [S, 2, 2] inside regions."""
    line = lines[state.parents]
    heights = (state.points * line[:, None, :2]).sum(2) + line[:, 2:]
    slope = line[:, :2].norm(dim=1, keepdim=True)
    heights = heights.masked_fill(heights.abs() <= NEAR * size * slope, 0.0)
    cut = (heights.amax(1) > 0) & (heights.amin(1) < 0)
    if not bool(cut.any()):
        return state, state.points.new_zeros(0, 2, 2)
    above, below, counts, ends = _halves(state.points[cut], state.corners[cut], heights[cut])
    kept = _widen(state.points[~cut], above.shape[1])
    points = torch.cat([kept, above, below])
    corners = torch.cat([state.corners[~cut], *counts])
    own = state.parents[cut]
    return _State(points[:, : int(corners.max())], corners, torch.cat([state.parents[~cut], own, own])), ends


def _halves(points: Tensor, corners: Tensor, heights: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """Convex polygons [M, V, 2] with heights [M, V] of both signs at their corners, cut at height 0: above, below, corners, cuts."""
    place = torch.arange(points.shape[1])
    inside = place < corners[:, None]
    up, down = (heights > 0) & inside, (heights < 0) & inside
    ahead, behind = (place + 1) % corners[:, None], (place - 1) % corners[:, None]
    first, last = ((up & ~up.gather(1, near)).int().argmax(1) for near in (behind, ahead))
    enter = _crossing(points, heights, first, behind.gather(1, first[:, None])[:, 0])
    leave = _crossing(points, heights, last, ahead.gather(1, last[:, None])[:, 0])
    lowest = (down & ~down.gather(1, behind)).int().argmax(1)
    above = _run(points, corners, first, up.sum(1), (enter, leave))
    below = _run(points, corners, lowest, down.sum(1), (leave, enter))
    return above, below, (up.sum(1) + 2, down.sum(1) + 2), torch.stack([enter, leave], 1)


def _crossing(points: Tensor, heights: Tensor, above: Tensor, other: Tensor) -> Tensor:
    """Where the edge from a corner above 0 to one that is not meets 0, [M, 2]: that corner itself where it is at 0."""
    rows = torch.arange(len(points))
    high, low = heights[rows, above], heights[rows, other]
    share = (high / (high - low))[:, None]
    return torch.lerp(points[rows, above], points[rows, other], share)


def _run(points: Tensor, corners: Tensor, start: Tensor, count: Tensor, ends: tuple[Tensor, Tensor]) -> Tensor:
    """The polygons of one end, `count` corners from `start` on around, and the other end, which is repeated: [M, V + 1, 2]."""
    place = torch.arange(points.shape[1] + 1)
    taken = (start[:, None] + (place - 1).clamp(min=0)) % corners[:, None]
    out = points.gather(1, taken[..., None].expand(-1, -1, 2))
    out[:, 0] = ends[0]
    return torch.where((place > count[:, None])[..., None], ends[1][:, None], out)


def _widen(points: Tensor, width: int) -> Tensor:
    """The last corner repeated up to `width` of them."""
    return torch.cat([points, points[:, -1:].expand(-1, width - points.shape[1], -1)], 1)


def _gated(state: _State, maps: Tensor, layer: nn.ReLU | nn.LeakyReLU) -> Tensor:
    """What leaves the layer on each region: its units' maps, times the slope of the side on which the region lies."""
    centres = _centres(state.points, state.corners)
    own = maps[state.parents]
    heights = (own[..., :2] * centres[:, None]).sum(2) + own[..., 2]
    closed = layer.negative_slope if isinstance(layer, nn.LeakyReLU) else 0.0
    return torch.where((heights > 0)[..., None], own, closed * own)


def _through(layer: nn.Linear, maps: Tensor) -> Tensor:
    if maps.shape[1] != layer.in_features:
        raise ValueError(f"a layer takes {layer.in_features} numbers but gets {maps.shape[1]}: give a plane (origin, basis) of its input")
    out: Tensor = layer.weight.detach().double() @ maps
    if layer.bias is not None:
        out = out + torch.stack([torch.zeros_like(layer.bias)] * 2 + [layer.bias], 1).detach().double()
    return out


def _layers(network: nn.Sequential) -> Iterator[nn.Linear | nn.ReLU | nn.LeakyReLU]:
    for layer in network:
        if isinstance(layer, nn.Sequential):
            yield from _layers(layer)
        elif isinstance(layer, nn.Linear | nn.ReLU | nn.LeakyReLU):
            yield layer
        elif not isinstance(layer, nn.Identity):
            raise ValueError(f"{type(layer).__name__} has no exact partition: use nn.Linear, nn.ReLU and nn.LeakyReLU")


def _plane(origin: Tensor | None, basis: Tensor | None) -> Tensor:
    """The map [1, E, 3] from u to the network's input."""
    axes = torch.eye(2, dtype=torch.float64) if basis is None else basis.detach().double()
    start = axes.new_zeros(axes.shape[-1]) if origin is None else origin.detach().double()
    if axes.ndim != 2 or len(axes) != 2 or start.shape != axes.shape[1:]:
        raise ValueError(f"a plane is an origin [E] and a basis [2, E], not {list(start.shape)} and {list(axes.shape)}")
    return torch.cat([axes.T, start[:, None]], 1)[None]


def _convex(domain: Tensor) -> Tensor:
    """The polygon counter-clockwise."""
    wrong = "the domain is a convex polygon: three or more corners [n, 2] in order around it"
    if domain.ndim != 2 or len(domain) < 3 or domain.shape[1] != 2 or not bool(domain.isfinite().all()):
        raise ValueError(wrong)
    around = domain if float(_area(domain[None])) > 0 else domain.flip(0)
    edges = around.roll(-1, 0) - around
    turns = _cross(edges, edges.roll(-1, 0))
    if not bool((turns > 0).all()) or float(turns.sum()) <= 0 or not _once(edges):
        raise ValueError(wrong)
    return around


def _once(edges: Tensor) -> bool:
    """Whether edges that only turn left go around once (a pentagram goes twice)."""
    angles = torch.atan2(_cross(edges, edges.roll(-1, 0)), (edges * edges.roll(-1, 0)).sum(1))
    return float(angles.sum()) < 3 * torch.pi


def _area(points: Tensor) -> Tensor:
    from_first = points - points[:, :1]
    return 0.5 * _cross(from_first, from_first.roll(-1, 1)).sum(1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _centres(points: Tensor, corners: Tensor) -> Tensor:
    real = torch.arange(points.shape[1]) < corners[:, None]
    return (points * real[..., None]).sum(1) / corners[:, None]
