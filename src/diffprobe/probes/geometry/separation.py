"""Which sets a descriptor tells from the reference, and whether a plain rival does it as well."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize

from diffprobe.measures.stats import auroc, holm, paired_auroc
from diffprobe.measures.stats.intervals import Interval
from diffprobe.probes.geometry.tables import DESCRIPTORS, RIVALS, Array, Group, Wanted, units

#: Units on either side, without which no set is told from another.
FEWEST = 5
_LEAST = 1e-12  # p that is told
_ALIKE = 1e-3  # of sigma


class Gain(NamedTuple):
    """How much better a measure separates than a rival: a difference of |AUROC - 1/2| on the same units, with its p.

    `p_adjusted` is Holm's over all gains that a report tells.
    """

    interval: Interval
    p: float
    p_adjusted: float
    n: int


class Separation(NamedTuple):
    """How surely one measure is larger in `outside` than in `inside` (AUROC), and its gain over each rival that both sets have."""

    measure: str
    inside: Group
    outside: Group
    auroc: Interval
    gains: dict[str, Gain]
    n: int


class Parting(NamedTuple):
    """`Separation` of two generated sets where their trajectories are at one step; `p_adjusted` is Holm's over the steps."""

    measure: str
    inside: Group
    outside: Group
    step: int
    sigma: float
    auroc: Interval
    p_adjusted: float
    n: int


def separations(groups: Sequence[Group], wanted: Wanted) -> list[Separation]:
    """Every set against the study's first, at the same checkpoint, by each descriptor and each rival that both have.

    None where the first set has no sample that counts, and none between guidance scales of one set: those are paired.
    """
    found = []
    for outside in groups:
        own = [one for one in groups if one.set == wanted.sets[0] and one.checkpoint == outside.checkpoint]
        inside = _fellow(outside, own) or (own[0] if len(own) == 1 else None)
        if inside is None or inside.set == outside.set:
            continue
        rivals = rivals_of(inside, outside, wanted)
        for measure in (*DESCRIPTORS, *rivals):
            a, b = (side.values(measure) for side in (inside, outside))
            if min(len(a), len(b)) >= FEWEST:
                gains = _gains(measure, inside, outside, rivals, wanted.level) if measure in DESCRIPTORS else {}
                found.append(Separation(measure, inside, outside, auroc(a, b, level=wanted.level), gains, len(a) + len(b)))
    return _corrected(found)


def rivals_of(inside: Group, outside: Group, wanted: Wanted) -> list[str]:
    """The rivals that mean the same in both sets: an encoding has the sharpness of its original, others that of what is decoded."""
    alike = (inside.set in wanted.images) == (outside.set in wanted.images)
    return [name for name in RIVALS if alike or name != "sharpness"]


def partings(along: Sequence[Group], wanted: Wanted, reference: str | None) -> Iterator[Parting]:
    """At every step each generated set against the `reference`, at one guidance scale where both have it, else at their only ones."""
    for outside in along:
        own, theirs = (
            [one for one in along if (one.set, one.checkpoint) == (name, outside.checkpoint)] for name in (reference, outside.set)
        )
        inside = _fellow(outside, own) or (own[0] if len(own) == len(theirs) == 1 else None)
        if inside is not None and outside.set != reference:
            for measure in DESCRIPTORS:
                yield from _parted(measure, inside, outside, wanted.level)


def p_value(inside: Array, outside: Array) -> float:
    """1 less the level at which the interval of `auroc` would end at 1/2: a test of it, two-sided; nan where there is no interval."""

    def clear(log_p: float) -> float:
        found = auroc(inside, outside, level=-math.expm1(log_p))
        return found.lo - 0.5 if found.value > 0.5 else 0.5 - found.hi

    value, lo, _ = auroc(inside, outside)
    if math.isnan(lo) or value == 0.5:
        return math.nan if math.isnan(lo) else 1.0
    least, most = math.log(_LEAST), -1e-9
    if clear(least) >= 0 or clear(most) <= 0:
        return _LEAST if clear(least) >= 0 else 1.0
    return math.exp(float(optimize.brentq(clear, least, most, xtol=1e-9)))


def _fellow(outside: Group, own: Sequence[Group]) -> Group | None:
    """The one of them at the guidance scale of `outside`."""
    return next((one for one in own if one.guidance_scale == outside.guidance_scale), None)


def _parted(measure: str, inside: Group, outside: Group, level: float) -> list[Parting]:
    ends, ps, found = [dict(list(side.rows.groupby("step", sort=True))) for side in (inside, outside)], [], []
    for step in sorted(ends[0].keys() & ends[1].keys()):
        first, other = (side[step] for side in ends)
        sigma = float(other["sigma"].iloc[0])
        if not np.isclose(float(first["sigma"].iloc[0]), sigma, rtol=_ALIKE):
            continue  # the same step of samplers of other lengths
        a, b = (_column(rows, measure) for rows in (first, other))
        if min(len(a), len(b)) >= FEWEST:
            ps.append(p_value(a, b))
            found.append(Parting(measure, inside, outside, int(step), sigma, auroc(a, b, level=level), math.nan, len(a) + len(b)))
    return [one._replace(p_adjusted=float(p)) for one, p in zip(found, holm(ps), strict=True)]


def _column(rows: pd.DataFrame, measure: str) -> Array:
    return np.asarray(units(rows, [measure])[measure], np.float64)


def _gains(measure: str, inside: Group, outside: Group, rivals: Sequence[str], level: float) -> dict[str, Gain]:
    found = {}
    for rival in rivals:
        sides = [_both(side, measure, rival) for side in (inside, outside)]
        if min(len(side) for side in sides) >= FEWEST:
            (a, x), (b, y) = ((side[:, 0], side[:, 1]) for side in sides)
            ours, theirs = (_outward(*pair) for pair in ((a, b), (x, y)))
            gain = paired_auroc(*ours, *theirs, level=level)
            found[rival] = Gain(gain.difference, gain.p, math.nan, sum(gain.n))
    return found


def _corrected(found: Sequence[Separation]) -> list[Separation]:
    """With Holm's correction over the gains of all of them."""
    adjusted = iter(holm([gain.p for one in found for gain in one.gains.values()]))
    return [
        one._replace(gains={rival: gain._replace(p_adjusted=float(next(adjusted))) for rival, gain in one.gains.items()}) for one in found
    ]


def _both(group: Group, measure: str, rival: str) -> Array:
    if not {measure, rival} <= set(group.rows):
        return np.zeros((0, 2))
    return np.asarray(units(group.rows, [measure, rival]), np.float64)


def _outward(inside: Array, outside: Array) -> tuple[Array, Array]:
    """The measure with the sign with which it grows outwards, so that two measures are compared by how well they separate."""
    value = auroc(inside, outside).value
    return (-inside, -outside) if math.isfinite(value) and value < 0.5 else (inside, outside)
