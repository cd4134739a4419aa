"""How mixtures look beside the images they are made of: as sets of features, and what there is to read distances by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from diffprobe.measures.sets import Moments, frechet_distance, frechet_interval, kernel_interval
from diffprobe.measures.stats import Interval
from diffprobe.probes.interpolation.scores import Scored
from diffprobe.probes.interpolation.strata import UNKNOWN, Told, averaged, stratified
from diffprobe.probes.interpolation.tables import Array, Pool, vectors

_FEWEST = 8  # draws a group without which a kernel distance has no limits that hold


class Likeness(NamedTuple):
    """The distances of the mixtures of one scheme and n from the images of their groups, as sets; means over groups.

    `frechet` is for infinitely many draws; `reason` says why it is not known. `plain` is that of the `n` draws as they are.
    """

    scheme: str
    size: int
    kernel: Interval
    frechet: Interval
    plain: float
    reason: str | None
    n: int


def likenesses(rows: pd.DataFrame, originals: dict[str, Array], embedder: str, distance: Scored) -> list[Likeness]:
    """Of every scheme and n of mixtures of one origin and kind, where every group has three draws and three images or more.

    In the order of their distances' table. `originals` are the features of each group's images, by group.
    """
    found, parts, level = [], dict(list(rows.groupby(["scheme", "n"]))), distance.level
    for scheme, size in product(distance.schemes, distance.every):
        part = parts.get((scheme, size), rows.iloc[:0]).sort_values("draw", kind="stable")
        sets = [(vectors(own, embedder), originals[str(group)]) for group, own in part.groupby("group") if str(group) in originals]
        if sets and min(len(one) for pair in sets for one in pair) >= 3:
            alone = any((str(group), size) in distance.single for group in part["group"].unique())
            found.append(_likeness(scheme, size, sets, alone, level))
    return found


def own_distances(features: Array) -> Array:
    """The cosine distance [P] of each of the features [P, D] from the mean direction of all others; nan for one alone."""
    if len(features) < 2:
        return np.full(len(features), math.nan)
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    others = units.sum(0) - units
    return np.asarray(1 - (units * others).sum(1) / np.linalg.norm(others, axis=1))


def originals_told(originals: dict[str, Array], level: float) -> Told | None:
    """The images' own distance from the mean embedding of the others of their group; None where no group has two."""
    parts = [own_distances(features) for features in originals.values() if len(features) > 1]
    return stratified(parts, level) if parts else None


def fresh_told(pools: Sequence[Pool], embedder: str, level: float) -> Told | None:
    """The distance of the images that the model generated from the mean embedding of their group's; None where there are none."""
    originals, generated = (features_of(pools, embedder, origin) for origin in ("images", "generated"))
    parts = [_from_mean(features, originals[group]) for group, features in generated.items() if group in originals]
    return stratified(parts, level) if parts else None


def features_of(pools: Sequence[Pool], embedder: str, origin: str = "images") -> dict[str, Array]:
    """The features of every group's images; those without any are left out."""
    found = {pool.group: vectors(pool.rows, embedder) for pool in pools if pool.origin == origin}
    return {group: features for group, features in found.items() if len(features)}


def _from_mean(features: Array, reference: Array) -> Array:
    mean = (reference / np.linalg.norm(reference, axis=1, keepdims=True)).mean(0)
    return np.asarray(1 - features @ mean / (np.linalg.norm(features, axis=1) * np.linalg.norm(mean)))


def _likeness(scheme: str, size: int, sets: Sequence[tuple[Array, Array]], alone: bool, level: float) -> Likeness:
    n = sum(len(draws) for draws, _ in sets)
    kernel = averaged([Interval(*kernel_interval(*pair, level=level)[:3]) for pair in sets])
    if alone or min(len(draws) for draws, _ in sets) < _FEWEST:
        kernel = Interval(kernel.value, math.nan, math.nan)
    plain = float(np.mean([frechet_distance(*pair) for pair in sets]))
    try:
        each = [frechet_interval(draws, Moments().update(images), level=level) for draws, images in sets]
    except ValueError as error:
        return Likeness(scheme, size, kernel, UNKNOWN, plain, str(error).split(":", maxsplit=1)[0], n)
    return Likeness(scheme, size, kernel, averaged([Interval(*one[:3]) for one in each]), plain, None, n)
