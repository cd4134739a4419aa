"""Which sets a descriptor tells from the reference, and whether a plain rival does it as well."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diffprobe.measures.stats import auroc, paired_auroc
from diffprobe.measures.stats.intervals import Interval
from diffprobe.probes.geometry.tables import DESCRIPTORS, RIVALS, Array, Group

_FEWEST = 5  # samples on either side


class Separation(NamedTuple):
    """How surely one measure is larger in `outside` than in `inside` (AUROC), and how much better it separates than each rival.

    `gains` are differences of |AUROC - 1/2| on the same samples, with their p.
    """

    measure: str
    inside: Group
    outside: Group
    auroc: Interval
    gains: dict[str, tuple[Interval, float]]
    n: int


def separations(groups: Sequence[Group], level: float) -> Iterator[Separation]:
    """Every set against the first, at the same checkpoint, by each descriptor and each rival that both have."""
    for outside in groups:
        inside = next(one for one in groups if one.checkpoint == outside.checkpoint)
        if inside is outside:
            continue
        for measure in (*DESCRIPTORS, *RIVALS):
            a, b = (side.values(measure) for side in (inside, outside))
            if min(len(a), len(b)) < _FEWEST:
                continue
            gains = _gains(measure, inside, outside, level) if measure in DESCRIPTORS else {}
            yield Separation(measure, inside, outside, auroc(a, b, level=level), gains, len(a) + len(b))


def _gains(measure: str, inside: Group, outside: Group, level: float) -> dict[str, tuple[Interval, float]]:
    found = {}
    for rival in RIVALS:
        sides = [_both(side, measure, rival) for side in (inside, outside)]
        if min(len(side) for side in sides) >= _FEWEST:
            (a, x), (b, y) = ((side[:, 0], side[:, 1]) for side in sides)
            ours, theirs = (_outward(*pair) for pair in ((a, b), (x, y)))
            gain = paired_auroc(*ours, *theirs, level=level)
            found[rival] = (gain.difference, gain.p)
    return found


def _both(group: Group, measure: str, rival: str) -> Array:
    if not {measure, rival} <= set(group.rows):
        return np.zeros((0, 2))
    return np.asarray(group.rows[[measure, rival]].dropna(), np.float64)


def _outward(inside: Array, outside: Array) -> tuple[Array, Array]:
    """The measure with the sign with which it grows outwards, so that two measures are compared by how well they separate."""
    value = auroc(inside, outside).value
    return (-inside, -outside) if math.isfinite(value) and value < 0.5 else (inside, outside)
