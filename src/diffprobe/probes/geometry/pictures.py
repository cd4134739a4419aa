"""The geometry in charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from diffprobe.measures.stats.intervals import bootstrap
from diffprobe.probes.base import Axis, Chart
from diffprobe.probes.geometry.evidence import Evidence
from diffprobe.probes.geometry.tables import DESCRIPTORS, RIVALS, Group

_BINS = 16
_POINTS = 400  # of a scatter, a set
_SIDE = 48  # of a map, at most
_PANELS = 12
_SET, _WHAT = Axis("set", "set"), Axis("descriptor", "descriptor")


def charts(found: Evidence) -> Iterator[Chart]:
    """How the sets lie, what tells them apart, spectra, level sets, trajectories, checkpoints, and the maps."""
    now = found.latest
    if now:
        yield from _distribution(now)
    yield from _separation(found)
    yield from _spectra(now)
    yield from _against(now)
    yield from _level_sets(found)
    yield from _populations(found)
    yield from _trajectories(found)
    yield from _training(found)
    yield from _maps(found)


def _distribution(groups: Sequence[Group]) -> Iterator[Chart]:
    """A chart a descriptor: their scales have nothing in common."""
    for column, title in DESCRIPTORS.items():
        values = {group.label: group.rows[column].dropna().to_numpy(np.float64) for group in groups}
        everything = np.concatenate(list(values.values()))
        if not len(everything):
            continue
        lo, hi = float(everything.min()), float(everything.max())
        edges = np.linspace(lo, hi, _BINS + 1) if hi > lo else np.array([lo - 0.5, lo + 0.5])
        centres, rows = (edges[1:] + edges[:-1]) / 2, list[dict[str, Any]]()
        for name, part in values.items():
            shares = np.histogram(part, edges)[0] / max(1, len(part))
            rows += [{column: float(x), "share": float(y), "set": name} for x, y in zip(centres, shares, strict=True)]
        caption, x, y = "The share of each set's samples in equal bins.", Axis(column, title), Axis("share", "share of the samples")
        yield Chart(f"distribution_{column}", f"Where the sets lie: {title}", caption, "line", tuple(rows), x, y, series=_SET)


def _separation(found: Evidence) -> Iterator[Chart]:
    titles = {**DESCRIPTORS, **RIVALS}
    last = found.last
    rows = [
        {
            "measure": titles[one.measure],
            "auroc": one.auroc.value,
            "lo": one.auroc.lo,
            "hi": one.auroc.hi,
            "set": one.outside.label,
            "samples": one.n,
        }
        for one in found.separations
        if one.outside.checkpoint == last
    ]
    if rows:
        inside = found.separations[0].inside.label
        caption = (
            f"The probability that a sample of the set lies above one of {inside}: 0.5 tells nothing, 0 and 1 tell the two apart for sure. "
            "Which way a descriptor points is not the same for every set."
        )
        x, y = Axis("measure", "measure"), Axis("auroc", f"AUROC against {inside}")
        yield Chart("separation", "What tells the sets apart", caption, "interval", tuple(rows), x, y, lo="lo", hi="hi", series=_SET)


def _spectra(groups: Sequence[Group]) -> Iterator[Chart]:
    rows = []
    for group in groups:
        if "spectrum" not in group.rows:
            continue
        values = np.array(group.rows["spectrum"].dropna().to_list(), np.float64)
        if values.ndim != 2 or not values.size:
            continue
        with np.errstate(divide="ignore"):
            logs = np.log(values)
        for place in np.unique(np.linspace(0, values.shape[1] - 1, 40).round().astype(int)):
            known = logs[np.isfinite(logs[:, place]), place]
            if len(known):
                middle, lo, hi = (math.exp(float(np.quantile(known, q))) for q in (0.5, 0.1, 0.9))
                rows.append({"number": int(place) + 1, "value": middle, "lo": lo, "hi": hi, "set": group.label})
    if rows:
        caption = "Singular values of the (projected) Jacobian, largest first: the median over samples, and the middle 80 % of them."
        x, y = Axis("number", "number of the singular value"), Axis("value", "singular value", log=True)
        yield Chart("spectra", "Spectra", caption, "line", tuple(rows), x, y, lo="lo", hi="hi", series=_SET)


def _against(groups: Sequence[Group]) -> Iterator[Chart]:
    """psi against the rivals, a point a sample."""
    for rival, title in RIVALS.items():
        rows = []
        for group in groups:
            if rival in group.rows:
                known = group.rows[["psi", rival, "sample"]].dropna()
                known = known.iloc[np.unique(np.linspace(0, len(known) - 1, min(_POINTS, len(known))).round().astype(int))]
                rows += [
                    {"psi": float(r.psi), rival: float(getattr(r, rival)), "set": group.label, "sample": r.sample}
                    for r in known.itertuples()
                ]
        if rows:
            caption = f"Each point is a sample. What ψ says beyond the {title} is what does not lie on one curve."
            x, y = Axis(rival, f"{title} (mean square)", log=True), Axis("psi", "ψ")
            yield Chart(f"psi_{rival}", f"ψ and the {title}", caption, "scatter", tuple(rows), x, y, series=_SET)


def _level_sets(found: Evidence) -> Iterator[Chart]:
    own = [one for one in found.level_sets if one.group.checkpoint == found.last]
    for score in dict.fromkeys(one.score for one in own):
        chosen = [one for one in own if one.score == score]
        rows = tuple(
            {
                "bin": one.bin,
                "score": one.interval.value,
                "lo": one.interval.lo,
                "hi": one.interval.hi,
                "set": one.group.label,
                "descriptor": f"level sets of {DESCRIPTORS[one.descriptor]}",
                "mean of the bin": one.centre,
                "samples": one.n,
            }
            for one in chosen
        )
        caption = "Samples in equal numbers by the descriptor, from the lowest to the highest; all bins have the same number of images."
        x, y = Axis("bin", "bin, from the lowest"), Axis("score", score)
        name = "level_sets_" + "".join(letter if letter.isalnum() else "_" for letter in score.lower())
        title = f"{score[0].upper()}{score[1:]} over level sets"
        yield Chart(name, title, caption, "line", rows, x, y, lo="lo", hi="hi", series=_SET, facet=_WHAT)


def _populations(found: Evidence) -> Iterator[Chart]:
    own = [one for one in found.populations if one.descriptor == "psi" and one.group.checkpoint == found.last]
    rows = tuple(
        {
            "population": f"{one.population} ({one.group.label})",
            "effect": one.effect.value,
            "lo": one.effect.lo,
            "hi": one.effect.hi,
            "p adjusted": one.p,
            "samples": one.n,
        }
        for one in sorted(own, key=lambda one: one.effect.value)
    )
    if rows:
        caption = "How far ψ of a population lies from that of all others of its set, in standard deviations (Hedges' g)."
        x, y = Axis("population", "population"), Axis("effect", "difference in ψ (standard deviations)")
        yield Chart("populations", "Populations", caption, "interval", rows, x, y, lo="lo", hi="hi", guide="zero")


def _trajectories(found: Evidence) -> Iterator[Chart]:
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
                    sigma = float(part["sigma"].iloc[0])
                    rows.append({"step": int(step), "value": value, "lo": lo, "hi": hi, "series": group.label, "sigma": round(sigma, 4)})
        if rows:
            caption = f"{title[0].upper()}{title[1:]} at the states of trajectories, from noise (left) to data; means over prompts."
            x, y = Axis("step", "step"), Axis("value", title)
            name, heading, series = f"along_{column}", f"{title[0].upper()}{title[1:]} along trajectories", Axis("series", "samples")
            yield Chart(name, heading, caption, "line", tuple(rows), x, y, lo="lo", hi="hi", series=series)


def _training(found: Evidence) -> Iterator[Chart]:
    """The descriptors at every checkpoint, in their order."""
    if len(found.wanted.checkpoints) < 2:
        return
    order = {name: index for index, name in enumerate(found.wanted.checkpoints, 1)}
    for column, title in {**DESCRIPTORS, "error": RIVALS["error"]}.items():
        rows: list[dict[str, Any]] = []
        for group in found.groups:
            values = group.values(column)
            if len(values) > 1 and group.checkpoint is not None:
                value, lo, hi = bootstrap(values, level=found.wanted.level)
                row = {
                    "checkpoint": order[group.checkpoint],
                    "value": value,
                    "lo": lo,
                    "hi": hi,
                    "set": group.label,
                    "name": group.checkpoint,
                }
                rows.append(row)
        if rows:
            first, last = found.wanted.checkpoints[0], found.wanted.checkpoints[-1]
            caption = f"Means over samples at each checkpoint, in their order from “{first}” to “{last}”."
            x, y = Axis("checkpoint", "checkpoint"), Axis("value", title)
            name, heading = f"training_{column}", f"{title[0].upper()}{title[1:]} while training"
            yield Chart(name, heading, caption, "line", tuple(rows), x, y, lo="lo", hi="hi", series=_SET)


def _maps(found: Evidence) -> Iterator[Chart]:
    """One chart a descriptor and a slice or field, a panel a level or checkpoint; coarser than measured where it must be."""
    for name in dict.fromkeys(name for name, *_ in found.surfaces):
        parts = [part for part in found.surfaces if part[0] == name]
        chosen = [parts[i] for i in np.unique(np.linspace(0, len(parts) - 1, min(_PANELS, len(parts))).round().astype(int))]
        field = any(sigma is not None for _, _, sigma, _ in chosen)
        for column, title in DESCRIPTORS.items():
            rows: list[dict[str, Any]] = []
            for _, checkpoint, sigma, points in chosen:
                panel = ", ".join([*([f"σ {sigma:.3g}"] if sigma is not None else []), *([checkpoint] if checkpoint else [])])
                rows += [{"x": x, "y": y, "value": value, "panel": panel} for x, y, value in _coarse(points, column, len(chosen))]
            if len({row["value"] for row in rows}) < 2:
                continue  # one colour tells nothing
            where = "x of the denoiser" if field else "the plane through the slice's three anchors, in latent units"
            caption = f"{title[0].upper()}{title[1:]} over {where}; every panel has the same colours."
            facet = Axis("panel", "level") if len(chosen) > 1 else None
            heading, x, y, value = f"{name[0].upper()}{name[1:]}: {title}", Axis("x", "x"), Axis("y", "y"), Axis("value", title)
            rings = () if field else _rings(found, name)
            yield Chart(f"map_{name}_{column}", heading, caption, "map", tuple(rows), x, y, facet=facet, curves=rings, value=value)


def _rings(found: Evidence, name: str) -> tuple[dict[str, Any], ...]:
    """Where the anchors of a slice lie in its plane."""
    rows = [row for row in found.records["Anchors"].to_pylist() if row["slice"] == name] if "Anchors" in found.records else []
    return tuple({"x": row["x"], "y": row["y"]} for row in rows)


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
