"""The picture of docs/geometry.md about an exact partition, in the report's style: a toy generator cut into its linear regions.

    python -m benchmarks.geometry_pictures docs/geometry-partition.png

The generator is that of Humayun et al. 2024, figure 2: R^2 -> R^3 on [-10, 10]^2, three layers of 20 ReLUs, trained by regression on the
surface over the plane whose height is a mixture of five Gaussians.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import vl_convert
from scipy.spatial import cKDTree
from scipy.stats import spearmanr
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.measures.geometry.partition import Partition, partition
from diffprobe.report import theme
from diffprobe.report.figures import VEGA_LITE

Spec = dict[str, Any]
SQUARE = 10 * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
CENTRES = torch.tensor([[-5.5, -4.5], [5, -5.5], [0.5, 0.5], [-4.5, 5.5], [6, 4.5]], dtype=torch.float64)
WIDTHS = torch.tensor([1.6, 2.0, 1.3, 2.2, 1.7], dtype=torch.float64)
HEIGHT = 8.0
RAMP = ("#e8f1f9", "#bcd7ee", "#7fb2e8", "#3f8fcc", "#0b6ba8", "#06385a")
#: psi of most regions; the few outside have the colours of the ends.
SHOWN = (-0.5, 2.0)
STEPS, BATCH = 3000, 512
SAMPLES, REACH, ASKED = 2_000_000, 0.15, 700


def surface(u: Tensor) -> Tensor:
    """(u, height): five Gaussian hills over the plane, of equal height."""
    distances = (u[:, None] - CENTRES).square().sum(2)
    return torch.cat([u, HEIGHT * (-distances / (2 * WIDTHS.square())).exp().sum(1, keepdim=True)], 1)


def generator() -> nn.Sequential:
    """The trained network: the same on every run, since weights and batches have addresses."""
    draw, layers = rng.stream("picture.partition.weights"), list[nn.Module]()
    for fan, width in pairwise((2, 20, 20, 20, 3)):
        layer = nn.Linear(fan, width, dtype=torch.float64)
        layer.weight = nn.Parameter(torch.from_numpy(draw.standard_normal((width, fan)) * (2 / fan) ** 0.5))
        layer.bias = nn.Parameter(torch.from_numpy(draw.standard_normal(width)))
        layers += [layer, nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for batch in torch.from_numpy(rng.stream("picture.partition.batches").uniform(-10, 10, (STEPS, BATCH, 2))):
        optimiser.zero_grad()
        (network(batch) - surface(batch)).square().mean().backward()
        optimiser.step()
        schedule.step()
    return network.requires_grad_(False)


def crowd(network: nn.Sequential, found: Partition) -> list[Spec]:
    """At the images of the largest regions, the density by formula, and that of samples in a small ball around."""
    draw = rng.stream("picture.partition.samples")
    cloud = cKDTree(network(torch.from_numpy(draw.uniform(-10, 10, (SAMPLES, 2)))).numpy())
    roomy = found.areas.sort(descending=True).indices[:ASKED]
    images = torch.einsum("nde,ne->nd", found.slopes[roomy], found.centres[roomy]) + found.offsets[roomy]
    inner = (found.centres[roomy].abs() < 9.5).all(1)  # a ball over the rim is half empty
    seen = cloud.query_ball_point(images[inner].numpy(), REACH, return_length=True) / (SAMPLES * np.pi * REACH**2)
    keep = roomy[inner]
    rows = zip(found.scaling[keep].tolist(), found.density[keep].tolist(), seen.tolist(), strict=True)
    return [{"psi": psi, "exact": exact, "seen": value} for psi, exact, value in rows]


def draw_partition(path: Path) -> None:
    """Left the regions coloured by psi, in the middle their images, right the density of a pushed-forward uniform against exp(-psi)."""
    network = generator()
    found = partition(network, SQUARE)
    rows = crowd(network, found)
    rho = spearmanr([row["psi"] for row in rows], [row["seen"] for row in rows]).statistic
    flat = int((found.rank < 2).sum())
    lattice = torch.cartesian_prod(*[torch.linspace(-10, 10, 81, dtype=torch.float64)] * 2)
    fit = float((network(lattice) - surface(lattice)).square().mean().sqrt())
    print(f"{len(found.points)} regions ({flat} flat), root mean square error {fit:.3f}, Spearman of samples' density with psi {rho:.3f}")
    psi = found.scaling.tolist()
    plane = [polygon.tolist() for polygon in found.polygons]
    images = [polygon @ found.slopes[i].T + found.offsets[i] for i, polygon in enumerate(found.polygons)]
    order = sorted(range(len(images)), key=lambda i: -float(images[i][:, 1].mean()))
    seen = [[[x + 0.35 * y, 0.45 * y + 0.9 * z] for x, y, z in images[i].tolist()] for i in order]
    grid = [
        _shapes(plane, psi, (330, 330), f"{len(plane):,} linear regions of the plane"),
        _shapes(seen, [psi[i] for i in order], (400, 330), "their images in space"),
        _scatter(rows, f"rank correlation with psi {rho:.2f}".replace("-", "\N{MINUS SIGN}")),
    ]
    title = "A toy generator: where it stretches space, its samples are thin"
    whole = {"hconcat": grid, "spacing": 30, "title": title, "resolve": {"scale": {"color": "shared"}}}
    _write(whole, path)


def _shapes(polygons: Sequence[Any], psi: Sequence[float], size: tuple[int, int], title: str) -> Spec:
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[*polygon[::-1], polygon[-1]]]}, "psi": value}
        for polygon, value in zip(polygons, psi, strict=True)
    ]
    return {
        "width": size[0],
        "height": size[1],
        "title": {"text": title, "fontSize": 12},
        "data": {"values": features},
        "projection": {"type": "identity", "reflectY": True},
        "mark": {"type": "geoshape", "stroke": "--surface", "strokeWidth": 0.3},
        "encoding": {"color": _colour()},
    }


def _colour() -> Spec:
    scale = {"range": [*RAMP], "domain": [*SHOWN], "clamp": True}
    return {"field": "psi", "type": "quantitative", "title": "psi", "scale": scale, "legend": {"gradientLength": 160}}


def _scatter(rows: Sequence[Spec], title: str) -> Spec:
    ends = [min(row["exact"] for row in rows), max(row["exact"] for row in rows)]
    scale = {"type": "log", "nice": False, "domain": [ends[0] * 0.7, ends[1] * 1.5]}

    def axis(field: str, title: str) -> Spec:
        look = {"grid": True, "format": "~g", "values": [0.0002, 0.0005, 0.001, 0.002, 0.005]}
        return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": look}

    place = {"x": axis("exact", "exp(-psi) / area of the domain"), "y": axis("seen", "samples per unit of area")}
    line = [{"exact": end, "seen": end} for end in (ends[0] * 0.7, ends[1] * 1.5)]
    dots = {"type": "point", "filled": True, "size": 16, "opacity": 0.8, "stroke": "--soft", "strokeWidth": 0.3}
    return {
        "width": 300,
        "height": 330,
        "title": {"text": title, "fontSize": 12},
        "layer": [
            {"data": {"values": line}, "mark": {"type": "line", "style": "guide"}, "encoding": place},
            {"data": {"values": list(rows)}, "mark": dots, "encoding": place | {"color": _colour()}},
        ],
    }


def _write(spec: Spec, path: Path) -> None:
    whole = theme.paint(spec, theme.LIGHT) | {
        "$schema": f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE.split('.')[0]}.json",
        "config": {**theme.paint(theme.CONFIG, theme.LIGHT), "font": "sans-serif"},
        "padding": 14,
    }
    path.write_bytes(vl_convert.vegalite_to_png(whole, vl_version=VEGA_LITE, scale=2))


if __name__ == "__main__":
    draw_partition(Path(sys.argv[1]))
