"""Records of the geometry probe that are made up, without a model, and what is read from its findings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Chart, Findings
from diffprobe.probes.geometry.tables import Wanted

Row = dict[str, Any]
WANTED = Wanted(("photos", "drawn"), ("photos",), (), (), 3, 0.95)
#: What every row has, unless a test says otherwise: an exact map of sixteen coordinates that flattens none.
PLAIN: Row = {
    **dict.fromkeys(("population", "seed", "step", "last", "sigma", "guidance_scale", "x", "y", "error", "checkpoint", "flag", "picture")),
    "directions": 0, "latent_size": 16, "output_size": 192, "units": 64, "psi": 0.0, "psi_error": 0.0, "projections": 1.0, "nu": 8.0,
    "rank": 16.0, "trace": 192.0, "effective_rank": 8.0, "delta": 3.0, "delta_floor": None, "sharpness": 1.0,
}  # fmt: skip


def images(name: str, psi: Sequence[float], **more: Any) -> list[Row]:
    """A set of images, one a value; a callable in `more` is asked for each number."""
    return [
        {**PLAIN, "set": name, "sample": f"{name} {i}", "psi": value, **{k: v(i) if callable(v) else v for k, v in more.items()}}
        for i, value in enumerate(psi)
    ]


def generated(name: str, psi: np.ndarray[Any, Any], scale: float = 7.5, **more: Any) -> list[Row]:
    """Ends of trajectories, `psi` [prompts, seeds]."""
    place = {"set": name, "step": 50, "last": True, "sigma": 0.01, "guidance_scale": scale, "error": None}
    return [
        {**PLAIN, **place, "sample": f"p{p}", "population": f"p{p}", "seed": s, "psi": float(psi[p, s]), **more}
        for p, s in np.ndindex(psi.shape)
    ]


def records(*parts: list[Row], anchors: list[Row] | None = None) -> dict[str, pa.Table]:
    rows = [row for part in parts for row in part]
    found = {"Samples": pa.table({name: [row.get(name) for row in rows] for name in {key: None for row in rows for key in row}})}
    return found if anchors is None else {**found, "Anchors": pa.Table.from_pylist(anchors)}


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape)


def told(found: Findings, quantity: str, **facets: Any) -> Estimate:
    """The one estimate of the quantity with these facets."""
    (one,) = [e for e in found.estimates if e.quantity == quantity and facets.items() <= e.facets.items()]
    return one


def chart(found: Findings, name: str) -> Chart:
    return next(one for one in found.charts if one.name == name)


def said(found: Findings, *parts: str) -> bool:
    return any(all(part in verdict for part in parts) for verdict in found.verdicts)
