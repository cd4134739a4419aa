"""What lies along trajectories and over planes, in charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from diffprobe.measures.stats.intervals import bootstrap
from diffprobe.probes.base import Axis, Chart
from diffprobe.probes.geometry.evidence import Evidence
from diffprobe.probes.geometry.tables import DESCRIPTORS, Group, Surface, finite

_SIDE = 48  # of a map, at most
_PANELS = 12


def trajectories(found: Evidence) -> Iterator[Chart]:
    """The descriptors from noise to data at the last checkpoint, and at which steps they tell generated sets apart."""
    yield from _means(found)
    yield from _partings(found)


def _means(found: Evidence) -> Iterator[Chart]:
    last = found.last
    for column, title in DESCRIPTORS.items():
        rows = []
        for group in found.along:
            if group.checkpoint != last:
                continue
            for step, part in group.rows.groupby("step", sort=True):
                values = Group(group.set, group.checkpoint, group.guidance_scale, part).values(column)
                if len(values) > 1:
                    value, lo, hi = bootstrap(values, level=found.wanted.level)
                    sigma = finite(float(part["sigma"].iloc[0]))
                    rows.append({"step": int(step), "value": value, "lo": lo, "hi": hi, "series": group.label, "sigma": sigma})
        if rows:
            caption = (
                f"{title[0].upper()}{title[1:]} at the states of trajectories, from noise (left) to data: means over prompts, or over the "
                "seeds of a single one."
            )
            x, y = Axis("step", "step"), Axis("value", title)
            name, heading, series = f"along_{column}", f"{title[0].upper()}{title[1:]} along trajectories", Axis("series", "samples")
            yield Chart(name, heading, caption, "line", tuple(rows), x, y, lo="lo", hi="hi", series=series)


def _partings(found: Evidence) -> Iterator[Chart]:
    own = [one for one in found.partings if one.outside.checkpoint == found.last]
    rows = tuple(
        {
            "step": one.step,
            "auroc": one.auroc.value,
            "lo": one.auroc.lo,
            "hi": one.auroc.hi,
            "descriptor": DESCRIPTORS[one.measure],
            "set": one.outside.label,
            "against": one.inside.label,
            "sigma": finite(one.sigma),
            "p adjusted": one.p_adjusted,
            "independent units": one.n,
        }
        for one in own
    )
    if rows:
        inside = own[0].inside.set
        caption = (
            f"The probability that a prompt's mean lies above one of {inside} at the same step, from noise (left) to data: 0.5 tells "
            "nothing. A set with one prompt stands by its samples. Bands are of each step alone."
        )
        x, y, series = Axis("step", "step"), Axis("auroc", f"AUROC against {inside}"), Axis("descriptor", "descriptor")
        heading, facet = "What tells the trajectories apart", Axis("set", "set")
        yield Chart("along_auroc", heading, caption, "line", rows, x, y, lo="lo", hi="hi", series=series, facet=facet)


def maps(found: Evidence) -> Iterator[Chart]:
    """One chart a descriptor and a slice or field, a panel a level or checkpoint; coarser than measured where it must be."""
    for name in dict.fromkeys(name for name, *_ in found.surfaces):
        parts = [part for part in found.surfaces if part[0] == name]
        chosen = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, min(_PANELS, len(parts))).round().astype(int))]
        field = any(sigma is not None for _, _, sigma, _ in chosen)
        for column, title in DESCRIPTORS.items():
            rows: list[dict[str, Any]] = []
            for _, checkpoint, sigma, points in chosen:
                panel = _panel(checkpoint, sigma)
                rows += [{"x": x, "y": y, "value": value, "panel": panel} for x, y, value in _coarse(points, column, len(chosen))]
            if len({row["value"] for row in rows}) < 2:
                continue  # one colour tells nothing
            where = "x of the denoiser" if field else "the plane through the slice's three anchors, in latent units"
            caption = f"{title[0].upper()}{title[1:]} over {where}{'; all panels share their colours' if len(chosen) > 1 else ''}."
            facet = Axis("panel", _panelled(chosen)) if len(chosen) > 1 else None
            heading, x, y, value = f"{name[0].upper()}{name[1:]}: {title}", Axis("x", "x"), Axis("y", "y"), Axis("value", title)
            rings = () if field else _rings(found, name, list(dict.fromkeys(row["panel"] for row in rows)))
            yield Chart(f"map_{name}_{column}", heading, caption, "map", tuple(rows), x, y, facet=facet, curves=rings, value=value)


def _panel(checkpoint: str | None, sigma: float | None) -> str:
    return ", ".join([*([f"σ {sigma:.3g}"] if sigma is not None else []), *([checkpoint] if checkpoint else [])])


def _panelled(chosen: Sequence[Surface]) -> str:
    """What the panels of a map differ in."""
    checkpoints, levels = (len({one[place] for one in chosen}) > 1 for place in (1, 2))
    return "level, checkpoint" if checkpoints and levels else "checkpoint" if checkpoints else "level"


def _rings(found: Evidence, name: str, panels: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Where the anchors of a slice lie in its plane, in every panel."""
    rows = [row for row in found.records["Anchors"].to_pylist() if row["slice"] == name] if "Anchors" in found.records else []
    return tuple({"x": row["x"], "y": row["y"], "panel": panel} for panel in panels for row in rows)


def _coarse(points: pd.DataFrame, column: str, panels: int) -> Iterator[tuple[float, float, float]]:
    """The map's points, averaged over squares of neighbours where there are more than a page can show."""
    table = points.pivot_table(index="y", columns="x", values=column, aggfunc="mean", dropna=False)
    by = max(1, math.ceil(max(table.shape) / (_SIDE * (1.5 / max(1.5, panels)) ** 0.5)))
    (x, across), (y, up) = (
        (float(ticks[0]), float(ticks[-1] - ticks[0]) / max(1, len(ticks) - 1)) for ticks in (table.columns, table.index)
    )
    values = table.to_numpy(np.float64)
    for row in range(0, values.shape[0], by):
        for at in range(0, values.shape[1], by):
            block = values[row : row + by, at : at + by]
            if np.isfinite(block).any():  # a last block that is cut short stands where it would be whole, so that all steps are alike
                yield x + across * (at + (by - 1) / 2), y + up * (row + (by - 1) / 2), float(np.nanmean(block))
