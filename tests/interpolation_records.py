"""Records of the interpolation probe that are made up, without a model, and what is read from its findings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diffprobe.measures.interpolation import Scheme, alignment, mix, signature
from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Chart, Findings
from diffprobe.probes.interpolation.tables import Wanted

Row = dict[str, Any]
Matrix = np.ndarray[Any, Any]
Curve = Callable[[str, int], float]
SHAPE = (4, 16, 16)
#: A channel offset that a group's latents share: b² = 0.006.
OFFSET = np.array([0.09, -0.06, 0.03, 0.12])
SIZES = (2, 4, 8, 16)
SCHEMES = ("none", "fix", "nin", "nin/channel")
WANTED = Wanted(("cats", "dogs"), SCHEMES, SIZES, ("images", "generated", "noised", "noise"), 0.05, 12, 0.95)
#: What a mixture's distance from its group is, unless a test says otherwise, less its own luck.
BASE = 0.2


def failing(*schemes: str) -> Curve:
    """Distances of schemes that leave their group with N: by 0.128 at 16, by 0.04 at 8; of others that stay."""
    return lambda scheme, n: BASE + (5e-4 * (n**2 - 4) if scheme in schemes else 0.0)


def noise(*shape: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal(shape)


def latents(count: int, offset: Matrix | float = 0.0, seed: int = 0) -> torch.Tensor:
    """Pure noise [count, C, h, w] whose channels are offset."""
    return torch.from_numpy(noise(count, *SHAPE, seed=seed) + np.broadcast_to(offset, SHAPE[0])[:, None, None]).float()


def inversions(group: str, origin: str, z: torch.Tensor, **more: Any) -> list[Row]:
    """The rows of latents; a callable in `more` is asked for each number."""
    told = signature(z)
    features = group_features(group, len(z))
    rows = []
    for i in range(len(z)):
        row = {
            "group": group, "origin": origin, "image": f"{group} {origin} {i}", "seed": None if origin == "images" else i, "flag": None,
            "latent": z[i].flatten().tolist(), "shape": list(z.shape[1:]), "reconstruction": None, "reconstruction_pixels": None,
            "norm": float(told.norm[i]), "kurtosis": float(told.kurtosis[i]), "correlation": float(told.correlation[i]), "picture": None,
            "channel_mean": told.channel_mean[i].tolist(), "channel_std": told.channel_std[i].tolist(),
            "spectrum": told.spectrum[i].tolist(),
            "leak": None if origin == "noise" else [0.0] * SHAPE[0], "alpha_T": 0.05, "sigma": 20.0, "sharpness": 2.0,
            "feature:eye": features[i].tolist() if origin in ("images", "generated") else None,
        }  # fmt: skip
        rows.append(row | {name: value(i) if callable(value) else value for name, value in more.items()})
    return rows


def group_features(group: str, count: int, seed: int = 0) -> Matrix:
    """Features [count, 3] of a group's images, around a direction of its own."""
    found: Matrix = np.eye(3)[len(group) % 2] + 0.3 * noise(count, 3, seed=seed + sum(map(ord, group)))
    return found


def alignments(group: str, origin: str, z: torch.Tensor) -> list[Row]:
    found = alignment(z)
    return [
        {
            "group": group, "origin": origin, "image": f"{group} {origin} {i}", "index": i, "channel_mean": found.channels[i].tolist(),
            "gram": found.gram[i].tolist(), "gram_lowpass": found.lowpass[i].tolist(), "size": found.size, "area": found.area,
        }
        for i in range(len(z))
    ]  # fmt: skip


def dull(scheme: str, n: int) -> float:
    """The sharpness of mixtures: plain averaging washes out."""
    return float(1 / np.sqrt(n)) if scheme == "none" else 1.0


def mixtures(
    group: str,
    z: torch.Tensor,
    distance: Callable[[str, int], float] = lambda scheme, n: BASE,
    sharpness: Callable[[str, int], float] = dull,
    wanted: Wanted = WANTED,
    **more: Any,
) -> list[Row]:
    """Centroids of a group's latents in every scheme; luck of 0.02 that all schemes share and 0.005 that each has of its own."""
    rows, origin = [], more.pop("origin", "images")
    shared = 0.02 * noise(wanted.draws, seed=sum(map(ord, group)))
    for place, scheme in enumerate(wanted.schemes):
        parsed = Scheme.parse(scheme)
        for n in wanted.sizes:
            own = 0.005 * noise(wanted.draws, seed=1000 * place + n + sum(map(ord, group)))
            orders = [np.random.default_rng(draw).permutation(len(z))[:n] for draw in range(wanted.draws)]
            weights = np.zeros((wanted.draws, len(z)))
            for draw, order in enumerate(orders):
                weights[draw, order] = 1 / len(order)
            found = mix(z, torch.from_numpy(weights), parsed)
            means = found.latents.mean((2, 3))
            features = group_features(group, wanted.draws, seed=n)
            for draw in range(wanted.draws):
                row = {
                    "group": group, "origin": origin, "scheme": scheme, "norm": parsed.norm, "mean": parsed.mean, "kind": "centroid",
                    "n": n, "draw": draw, "members": orders[draw].tolist(), "flag": None, "channel_mean": means[draw].tolist(),
                    "picture": None,
                    "sharpness": 2 * (sharpness(scheme, n) + own[draw]), "feature:eye": features[draw].tolist(),
                    "distance:eye": distance(scheme, n) + shared[draw] + own[draw],
                }  # fmt: skip
                rows.append(row | {name: value(scheme, n, draw) if callable(value) else value for name, value in more.items()})
    return rows


def offsets(group: str, at: dict[str, float], values: Sequence[float] = (0.0, 0.4, 0.8), seeds: int = 10) -> list[Row]:
    """A picture moves by `at` times its offset, more or less."""
    return [
        {
            "group": group, "seed": seed, "at": where, "offset": offset, "flag": None, "picture": None,
            "inside": offset**2, "outside": offset * gain / 10, "distance:eye": offset * gain * (1 + 0.1 * float(noise(1, seed=seed)[0])),
        }
        for where, gain in at.items() for offset in values for seed in range(seeds)
    ]  # fmt: skip


def records(**parts: Sequence[list[Row]]) -> dict[str, pa.Table]:
    """Tables by the name of their cells; what no row has is no column."""
    found = {}
    for name, several in parts.items():
        rows = [row for part in several for row in part]
        found[name] = pa.table({column: [row.get(column) for row in rows] for column in {key: None for row in rows for key in row}})
    return found


def with_column(table: pa.Table, name: str, value: Any) -> pa.Table:
    """The table with one value in all rows of a column."""
    return table.set_column(table.column_names.index(name), name, pa.array([value] * len(table)))


def study(**how: Any) -> dict[str, pa.Table]:
    """Two groups of 32 images whose channels are offset, and mixtures of them."""
    pools = {group: latents(32, OFFSET, seed) for seed, group in enumerate(WANTED.groups)}
    return records(
        Inversions=[inversions(group, "images", z) for group, z in pools.items()],
        Alignments=[alignments(group, "images", z) for group, z in pools.items()],
        Mixtures=[mixtures(group, z, **how) for group, z in pools.items()],
    )


def only(*schemes: str, **more: Any) -> Wanted:
    return replace(WANTED, schemes=schemes, **more)


def told(found: Findings, quantity: str, **facets: Any) -> Estimate:
    """The one estimate of the quantity with these facets and no group unless it is asked."""
    own = [e for e in found.estimates if e.quantity == quantity and facets.items() <= e.facets.items()]
    (one,) = [e for e in own if "group" in facets or "group" not in e.facets]
    return one


def chart(found: Findings, name: str) -> Chart:
    return next(one for one in found.charts if one.name == name)


def said(found: Findings, *parts: str) -> bool:
    return any(all(part in verdict for part in parts) for verdict in found.verdicts)
