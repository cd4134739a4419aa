"""What an offset does to a picture: laid on the noise it is drawn from, or on the clean latent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from diffprobe.measures.stats import holm
from diffprobe.probes.interpolation.strata import Told, stratified
from diffprobe.probes.interpolation.tables import DISTANCE, Array, column

#: Where an offset is laid.
PLACES = {"noise": "on the noise", "data": "on the clean latent"}


class Moved(NamedTuple):
    """How far an offset at one place moves a picture, by `distance:<instrument>`, `inside` or `outside` of where it is laid."""

    measure: str
    at: str
    offset: float
    found: Told


class Apart(NamedTuple):
    """How much farther the same offset moves a picture when laid on the noise; `p_adjusted` is Holm's over the offsets of a measure."""

    measure: str
    offset: float
    found: Told
    p_adjusted: float


def measures(rows: pd.DataFrame) -> list[str]:
    """What is known of how far pictures moved, the instruments' distances first."""
    names = [name for name in map(str, rows) if name.startswith(DISTANCE)] + ["outside", "inside"]
    return [name for name in names if name in rows and np.isfinite(column(rows, name)).any()]


def moved(rows: pd.DataFrame, level: float) -> list[Moved]:
    """Every offset at both places: seeds are the units, groups the strata."""
    return [
        Moved(name, str(at), float(offset), found)
        for name in measures(rows)
        for (at, offset), part in rows[rows["offset"] != 0].groupby(["at", "offset"], sort=True)
        if (found := stratified(_parts(part, column(part, name)), level)).n
    ]


def apart(rows: pd.DataFrame, level: float) -> list[Apart]:
    """The same offset at the two places, seed by seed."""
    found: list[Apart] = []
    for name in measures(rows):
        family = []
        for offset, part in rows[rows["offset"] != 0].groupby("offset", sort=True):
            both = part.assign(value=column(part, name)).drop_duplicates(["group", "seed", "at"])
            table = both.set_index(["group", "seed", "at"])["value"].unstack("at")
            if set(PLACES) <= set(table):
                gap = (table["noise"] - table["data"]).dropna()
                told = stratified([values.to_numpy(np.float64) for _, values in gap.groupby(level="group")], level)
                if told.n:
                    family.append(Apart(name, float(offset), told, math.nan))
        found += _corrected(family)
    return found


def _corrected(family: Sequence[Apart]) -> list[Apart]:
    adjusted = holm([one.found.p for one in family]) if family else np.zeros(0)
    return [one._replace(p_adjusted=float(p)) for one, p in zip(family, adjusted, strict=True)]


def _parts(rows: pd.DataFrame, values: Array) -> list[Array]:
    told = rows.assign(value=values).dropna(subset=["value"])
    return [part["value"].to_numpy(np.float64) for _, part in told.groupby("group")]
