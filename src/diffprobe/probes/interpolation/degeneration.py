"""From which N a scheme fails, in which of four ways, and which scheme is left for this model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from diffprobe.measures.interpolation import MEANS, NORMS, Scheme
from diffprobe.probes.interpolation.scores import LEAST, Contest, Scored
from diffprobe.probes.interpolation.strata import Told
from diffprobe.probes.interpolation.tables import Wanted

Way: TypeAlias = Literal["degenerates", "washes out", "leaves its group", "gives no image"]
#: The share of the sharpness that could be had below which mixtures are washed out, and that of draws without an image above which none is
#: made.
WASHED, MISSING = 0.5, 0.5


class Point(NamedTuple):
    """The N from which a scheme surely fails in one way (None: at none), and the first at which it may already do so."""

    n: int | None
    earliest: int | None


@dataclass(frozen=True)
class Fate:
    """How a scheme fares as N grows, in the eyes of one instrument; `base` is the N that its distances are set against.

    `rises` are its distances less that at `base`, `means` its distances themselves and `nearest` the lowest at the smallest N of any
    scheme that is measured throughout and does not wash out; `sharp` its sharpness in the originals' and `bar` that below which it is
    washed out, `broken` the first N at which most draws give no image that counts. `reaches` is the largest N at which anything is
    known of it.
    """

    scheme: str
    base: int
    reaches: int
    rises: Mapping[int, Told]
    means: Mapping[int, Told]
    nearest: float
    sharp: Mapping[int, Told]
    bar: float
    degenerates: Point
    washes: Point
    leaves: Point
    broken: int | None

    @property
    def fails(self) -> int | None:
        """The first N at which it fails in any way."""
        return min((n for n, _ in self.ways), default=None)

    @property
    def ways(self) -> list[tuple[int, Way]]:
        """From which N on it fails in which ways, the first first."""
        found: dict[Way, int | None] = {"degenerates": self.degenerates.n, "washes out": self.washes.n}
        found |= {"leaves its group": self.leaves.n, "gives no image": self.broken}
        return sorted(((n, way) for way, n in found.items() if n is not None), key=lambda pair: pair[0])


class Choice(NamedTuple):
    """The scheme for this model: of those that never fail the nearest to its group, or the simplest of those as near as far as is known.

    `nearest` is the one with the lowest mean distance, `tied` all that are not surely farther; `fails` is None where it never does.
    Where every scheme fails it is the one that does so last.
    """

    scheme: str
    nearest: str
    tied: tuple[str, ...]
    fails: int | None


def fates(distance: Scored | None, sharpness: Scored | None, flagged: pd.DataFrame, fresh: Told | None, wanted: Wanted) -> list[Fate]:
    """Every scheme by its distances and its sharpness, whichever is known, and by the share of flagged draws [scheme, n].

    A scheme whose mixtures of few latents lie far from their group cannot get much worse than at its own smallest N: so it also leaves
    its group where it is surely more than the margin beyond what the nearest scheme that does not wash out has at its smallest N. The
    sharpness that could be had is the images' own, or that of the model's pictures of `fresh` noise where it is lower.
    """
    bar = WASHED * (1.0 if fresh is None else min(1.0, fresh.interval.value))
    known = [one for one in (distance, sharpness) if one is not None]
    schemes = list(dict.fromkeys([*(name for one in known for name in one.schemes), *map(str, flagged.index)]))
    found = []
    for scheme in schemes:
        sizes = distance.sizes(scheme, LEAST) if distance is not None and scheme in distance.schemes else []
        base = sizes[0] if sizes else LEAST
        rises = {n: distance.rise(scheme, n, base) for n in sizes[1:]} if distance is not None else {}
        means = {n: distance.mean(scheme, n) for n in sizes} if distance is not None else {}
        sharp = {}
        if sharpness is not None and scheme in sharpness.schemes:
            sharp = {n: sharpness.mean(scheme, n) for n in sharpness.sizes(scheme, LEAST)}
        shares = flagged.loc[scheme].dropna() if scheme in flagged.index else pd.Series(dtype=float)
        broken = sorted(int(n) for n, share in shares.items() if share > MISSING and n >= LEAST)
        reaches = max((*sizes, *sharp, *broken), default=0)
        if reaches:
            points = _point(rises, wanted.margin, above=True), _point(sharp, bar, above=False), Point(None, None)
            found.append(Fate(scheme, base, reaches, rises, means, math.nan, sharp, bar, *points, broken[0] if broken else None))
    return _placed(found, wanted.margin)


def choice(found: Sequence[Fate], distance: Scored | None, pairs: Sequence[Contest], level: float) -> Choice | None:
    """None where no instrument told distances, or of one scheme alone, which leaves no choice."""
    if distance is None or len(found) < 2:
        return None
    most = max(one.reaches for one in found)
    longest = max(_lasts(one, most) for one in found)
    left = [one for one in found if _lasts(one, most) == longest]
    nearest = distance.best([one.scheme for one in left if one.scheme in distance.schemes])
    if nearest is None:
        return None
    sure = {frozenset((one.scheme, one.than)) for one in pairs if one.p_adjusted < 1 - level}
    tied = [one.scheme for one in left if one.scheme == nearest or frozenset((one.scheme, nearest)) not in sure]
    tied = sorted((one for one in tied if one in distance.schemes), key=_burden)
    return Choice(tied[0], nearest, tuple(tied), next(one.fails for one in left if one.scheme == tied[0]))


def flagged_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """The share of the draws of every scheme and n that do not count, [scheme, n]."""
    if rows.empty:
        return pd.DataFrame()
    found: pd.DataFrame = (
        rows.assign(missing=rows["flag"].notna().astype(float)).groupby(["scheme", "n"], sort=False)["missing"].mean().unstack()
    )
    return found


def _placed(found: list[Fate], margin: float) -> list[Fate]:
    """The fates with the point at which each leaves its group: set against schemes that are measured throughout and keep their pictures."""
    most = max((one.reaches for one in found), default=0)
    sound = [one for one in found if one.means and one.washes.n is None and one.reaches == most]
    nearest = min((one.means[one.base].interval.value for one in sound), default=math.nan)
    return [replace(one, nearest=nearest, leaves=_point(one.means, nearest + margin, above=True)) for one in found]


def _lasts(one: Fate, most: int) -> float:
    """The N at which it fails; where it is not known to, infinite or, of one that is not measured up to the largest N, the N it reaches."""
    if one.fails is not None:
        return one.fails
    return np.inf if one.reaches == most else one.reaches


def _burden(scheme: str) -> tuple[bool, int, int]:
    """What is simpler comes first: schemes that give a single image back, then less that is set apart, then the plainer norm."""
    parsed = Scheme.parse(scheme)
    return not parsed.reproduces, MEANS.index(parsed.mean), NORMS.index(parsed.norm)


def _point(told: Mapping[int, Told], limit: float, *, above: bool) -> Point:
    """Where the interval is beyond the limit, and the values stay beyond it at every larger N; and where the interval first reaches it."""
    beyond = [n for n, _ in _beyond(told, limit, above)]
    reached = [n for n, one in told.items() if _reaches(one, limit, above)]
    return Point(beyond[0] if beyond else None, min(reached, default=None))


def _beyond(told: Mapping[int, Told], limit: float, above: bool) -> Iterator[tuple[int, Told]]:
    sign = 1 if above else -1
    sizes = sorted(told)
    for index, n in enumerate(sizes):
        end = told[n].interval.lo if above else told[n].interval.hi
        if sign * (end - limit) > 0 and all(sign * (told[later].interval.value - limit) > 0 for later in sizes[index:]):
            yield n, told[n]


def _reaches(one: Told, limit: float, above: bool) -> bool:
    value, lo, hi = one.interval
    end = hi if above else lo
    end = value if np.isnan(end) else end
    return end > limit if above else end < limit
