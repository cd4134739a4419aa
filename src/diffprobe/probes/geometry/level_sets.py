"""What changes with a descriptor: diversity and scores in its level sets, and the populations that differ in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from diffprobe.measures.sets.diversity import subsample_interval
from diffprobe.measures.stats import hedges_g, holm, rank_correlation, welch
from diffprobe.measures.stats.intervals import Interval, bootstrap
from diffprobe.probes.geometry.tables import DESCRIPTORS, Group, clustered, units

_FEATURE, _SCORE = "feature:", "score:"
_MOST = 150  # images of a level set whose diversity is scored
_FEWEST = 6  # in a level set or a population
_POPULATIONS = 30


class LevelSet(NamedTuple):
    """One bin of a descriptor in one set: its number from the lowest, its mean, and a score of the images in it."""

    group: Group
    descriptor: str
    bin: int
    centre: float
    score: str
    interval: Interval
    n: int


class Trend(NamedTuple):
    """The rank correlation of a descriptor with something else that is known of the same samples."""

    group: Group
    descriptor: str
    other: str
    interval: Interval
    n: int


class Population(NamedTuple):
    """How far a population's descriptor lies from that of all others of its set, in standard deviations (Hedges' g).

    Of a generated set the populations are its prompts: those very prompts, not prompts like them, so that seeds are units.
    `n` samples are in the population.
    """

    group: Group
    descriptor: str
    population: str
    effect: Interval
    p: float
    n: int


def level_sets(group: Group, bins: int, level: float) -> Iterator[LevelSet]:
    """Quantile bins of psi and nu, as equal in number as can be, with the Vendi score and every scorer's mean of each.

    Where a set has several seeds a prompt, the mean is one of prompts, and a Vendi score has no interval.
    """
    for descriptor in ("psi", "nu"):
        rows = group.rows[group.rows[descriptor].notna()].sort_values(descriptor, kind="stable")
        if len(rows) < bins * _FEWEST:
            continue
        parts = np.array_split(np.arange(len(rows)), bins)
        size = min(_MOST, *(len(part) for part in parts))  # a Vendi score grows with the number of images
        for number, part in enumerate(parts, 1):
            here = rows.iloc[part]
            centre = float(here[descriptor].mean())
            for name, interval, n in _scores(here, size, level, group.rows):
                yield LevelSet(group, descriptor, number, centre, name, interval, n)


def _scores(rows: pd.DataFrame, size: int, level: float, whole: pd.DataFrame) -> Iterator[tuple[str, Interval, int]]:
    for column in map(str, rows):
        if column.startswith(_FEATURE):
            chosen = np.linspace(0, len(rows) - 1, size).round().astype(int)
            vectors = np.array(rows[column].iloc[chosen].to_list(), np.float64)
            if np.isfinite(vectors).all() and vectors.any(1).all():
                score = subsample_interval(vectors, level=level)
                told = Interval(score.value, math.nan, math.nan) if clustered(whole) else score
                yield f"Vendi score ({column.removeprefix(_FEATURE)})", told, size
        elif column.startswith(_SCORE) or column == "sharpness":
            known = units(rows, [column], whole)[column].to_numpy(np.float64)
            if rows[column].count() >= _FEWEST:
                yield column.removeprefix(_SCORE), bootstrap(known, level=level), len(known)


def trends(group: Group, level: float) -> Iterator[Trend]:
    """psi, nu and delta against the error of reconstruction, the sharpness, and every scorer."""
    others = [name for name in map(str, group.rows) if name in ("error", "sharpness") or name.startswith(_SCORE)]
    for descriptor in DESCRIPTORS:
        for other in others:
            both = units(group.rows, [descriptor, other]).to_numpy(np.float64)
            if len(both) >= _FEWEST and (np.ptp(both, axis=0) > 0).all():
                yield Trend(group, descriptor, other, rank_correlation(both[:, 0], both[:, 1], level=level), len(both))


def populations(group: Group, level: float) -> list[Population]:
    """Populations of at least six samples against all others of their set, with Holm's correction over the set; the largest thirty."""
    counts = group.rows["population"].value_counts()
    names = [name for name in dict.fromkeys(group.rows["population"].dropna()) if counts[name] >= _FEWEST]
    names = sorted(names, key=lambda name: -counts[name])[:_POPULATIONS]
    found = []
    for descriptor in DESCRIPTORS:
        for name in names:
            inside = group.rows["population"] == name
            ours, others = (group.rows.loc[rows, descriptor].dropna().to_numpy(np.float64) for rows in (inside, ~inside))
            if len(ours) >= _FEWEST and len(others) >= _FEWEST:
                _, p = welch(ours, others, level=level)
                found.append(Population(group, descriptor, name, hedges_g(ours, others, level=level), p, len(ours)))
    return [one._replace(p=float(p)) for one, p in zip(found, holm([one.p for one in found]), strict=True)]
