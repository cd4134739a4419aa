"""The geometry in charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diffprobe.measures.stats.intervals import bootstrap
from diffprobe.probes.base import Axis, Chart
from diffprobe.probes.geometry.evidence import Evidence
from diffprobe.probes.geometry.landscapes import maps, trajectories
from diffprobe.probes.geometry.tables import DESCRIPTORS, RIVALS, Group, clustered

_BINS = 16
_COLOURS = 8  # groups that a chart can tell apart
_POINTS = 400  # of a scatter, a set
_SET, _WHAT = Axis("set", "set"), Axis("descriptor", "descriptor")


def charts(found: Evidence) -> Iterator[Chart]:
    """How the sets lie, what tells them apart, spectra, level sets, trajectories, checkpoints, and the maps."""
    now = found.latest[:_COLOURS]
    if now:
        yield from _distribution(now)
    yield from _separation(found)
    yield from _spectra(now)
    yield from _against(now)
    yield from _level_sets(found)
    yield from _populations(found)
    yield from trajectories(found)
    yield from _training(found)
    yield from maps(found)


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
            "independent units": one.n,
        }
        for one in found.separations
        if one.outside.checkpoint == last
    ]
    if rows:
        inside = found.wanted.sets[0]
        caption = (
            f"The probability that a sample (a prompt's mean where a set is generated) of the set lies above one of {inside}: 0.5 tells "
            "nothing, 0 and 1 tell the two apart for sure. Which way a descriptor points is not the same for every set."
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
                "independent units": one.n,
            }
            for one in chosen
        )
        caption = "Samples in equal numbers by the descriptor, from the lowest to the highest; all bins have the same number of images."
        if any(clustered(one.group.rows) for one in chosen):
            caption += " Where prompts have several seeds a score is the mean over prompts, and a Vendi score has no interval."
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
        caption = (
            "How far ψ of a population lies from that of all others of its set, in standard deviations (Hedges' g). "
            "Of a generated set the populations are these prompts, and their seeds are resampled."
        )
        x, y = Axis("population", "population"), Axis("effect", "difference in ψ (standard deviations)")
        yield Chart("populations", "Populations", caption, "interval", rows, x, y, lo="lo", hi="hi", guide="zero")


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
            caption = (
                "Means over samples (over prompts' means where a set is generated) at each checkpoint, in their order "
                f"from “{first}” to “{last}”."
            )
            x, y = Axis("checkpoint", "checkpoint"), Axis("value", title)
            name, heading = f"training_{column}", f"{title[0].upper()}{title[1:]} while training"
            yield Chart(name, heading, caption, "line", tuple(rows), x, y, lo="lo", hi="hi", series=_SET)
