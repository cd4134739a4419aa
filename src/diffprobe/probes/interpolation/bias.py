"""What the latents of a group share: how much of their power, in which of their parts, and what normalising makes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from diffprobe.measures.interpolation import Alignment, Amplified, Misalignment, amplified, misalignment
from diffprobe.measures.stats import Interval
from diffprobe.probes.interpolation.strata import UNKNOWN, Pairs, averaged, jackknifed, pairs_of
from diffprobe.probes.interpolation.tables import Array, Pool, Wanted, lists

#: The parts of the shared power by what can take them out, and what a reader knows them by. Each holds the one before.
PARTS = {"global": "a common mean", "channel": "channel means", "lowpass": "low frequencies"}


@dataclass(frozen=True, eq=False)
class Shared:
    """The shared power of the latents of one origin: in each group, as a mean over groups, and the share of it that each part has.

    `leak` is what the last level's signal is foretold to leave, by channel means; None where no image is behind the latents. Shares
    are null where the shared power is not surely above 0. `n` latents in all.
    """

    origin: str
    groups: dict[str, Misalignment]
    mean: Misalignment
    shares: dict[str, Interval]
    leaks: dict[str, Interval]
    leak: Interval | None
    n: int
    sizes: dict[str, int]


class Law(NamedTuple):
    """What normalising makes of the channel means of one group's inverted images, by the saturating law; `n` images."""

    group: str
    found: Amplified
    n: int


def shared(pools: Sequence[Pool], level: float) -> list[Shared]:
    """Every origin whose latents are aligned."""
    found = []
    for origin in dict.fromkeys(pool.origin for pool in pools if pool.alignment is not None):
        own = {pool.group: pool for pool in pools if pool.origin == origin and pool.alignment is not None}
        found.append(_shared(origin, own, level))
    return found


def laws(pools: Sequence[Pool], wanted: Wanted) -> list[Law]:
    """The amplification of every group of inverted images by centroids of the study's sizes."""
    found = []
    for pool in pools:
        if pool.origin == "images" and pool.alignment is not None:
            n = len(pool.alignment.gram)
            sizes = tuple(size for size in wanted.sizes if size <= n)
            if len(sizes) > 2:
                found.append(Law(pool.group, amplified(pool.alignment, sizes, level=wanted.level), n))
    return found


def aims(pools: Sequence[Pool], origin: str) -> tuple[dict[str, Array], dict[str, float]]:
    """Of every group the direction [C] along which a mixture's channel means are read, and its weight.

    The inner product with it is 1 for the mean of the group's own channel means d, and a where they are a times as large; groups
    weigh by |d|^2.
    """
    means = {pool.group: lists(pool.rows, "channel_mean") for pool in pools if pool.origin == origin}
    offsets = {group: rows.mean(0) for group, rows in means.items() if rows.size}
    squares = {group: float(offset @ offset) for group, offset in offsets.items()}
    kept = {group: square for group, square in squares.items() if square > 0}
    return {group: offsets[group] / square for group, square in kept.items()}, kept


def aimed(rows: pd.DataFrame, directions: dict[str, Array]) -> Array:
    """How many times a group's own offset each mixture has [rows]; nan where it is not known."""
    found = np.full(len(rows), np.nan)
    if "channel_mean" not in rows:
        return found
    for place, (group, mean) in enumerate(zip(rows["group"], rows["channel_mean"], strict=True)):
        if str(group) in directions and mean is not None:
            found[place] = float(np.asarray(mean, np.float64) @ directions[str(group)])
    return found


def _shared(origin: str, own: dict[str, Pool], level: float) -> Shared:
    aligned = {group: pool.alignment for group, pool in own.items() if pool.alignment is not None}
    groups = {group: misalignment(one, level=level) for group, one in aligned.items()}
    mean = Misalignment(*(averaged(parts) for parts in zip(*groups.values(), strict=True)))
    leaked = {group: matrix for group, one in aligned.items() if (matrix := _leak(own[group], one)) is not None}
    leaks = {group: jackknifed([pairs_of([matrix])], _first, level) for group, matrix in leaked.items()}
    whole = len(leaked) == len(aligned)
    strata = [pairs_of(_matrices(one, leaked.get(group) if whole else None)) for group, one in aligned.items()]
    names = [*PARTS, "leak"] if whole else list(PARTS)
    sure = mean.total.lo > 0
    shares = {name: _share(strata, place, level) if sure else UNKNOWN for place, name in enumerate(names, 1)}
    leak = averaged(list(leaks.values())) if whole and leaks else None
    sizes = {group: len(one.gram) for group, one in aligned.items()}
    return Shared(origin, groups, mean, shares, leaks, leak, sum(sizes.values()), sizes)


def _matrices(one: Alignment, leak: Array | None) -> list[Array]:
    """What two latents share, in the power of pure noise: all of it, then by PARTS, then the leak where there is one."""
    whole = one.channels.mean(1)
    parts = [one.gram / one.size, np.outer(whole, whole), one.area / one.size * one.channels @ one.channels.T, one.lowpass / one.size]
    return parts if leak is None else [*parts, leak]


def _leak(pool: Pool, one: Alignment) -> Array | None:
    """What the means of the images' channels leave of themselves at the noisiest level [P, P], by the path alone."""
    leaks = lists(pool.rows, "leak")
    return one.area / one.size * leaks @ leaks.T if len(leaks) == len(one.gram) and np.isfinite(leaks).all() else None


def _share(strata: Sequence[Pairs], place: int, level: float) -> Interval:
    """That of a part of latents lies within [0, 1], whatever the samples say; what is foretold of the leak may be anything."""
    found = jackknifed(strata, partial(_ratio, place=place), level)
    return Interval(*(min(max(end, 0.0), 1.0) for end in found)) if place <= len(PARTS) and math.isfinite(found.value) else found


def _ratio(means: Array, *, place: int) -> Array:
    return np.asarray(means[..., place].mean(-1) / means[..., 0].mean(-1))


def _first(means: Array) -> Array:
    return np.asarray(means[..., 0].mean(-1))
