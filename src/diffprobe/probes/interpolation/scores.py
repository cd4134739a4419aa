"""One number of every mixture, its means over groups, and how far schemes and sizes are apart in it, draw by draw."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffprobe.measures.stats import Interval, holm
from diffprobe.probes.interpolation.strata import Told, stratified
from diffprobe.probes.interpolation.tables import Array, Wanted, listed, plain

#: N that a scheme is set against: mixtures of fewer latents are no mixtures.
LEAST = 2


class Contest(NamedTuple):
    """How far one scheme is above another, at one n or over all of them (None); `p_adjusted` is Holm's over its family."""

    scheme: str
    than: str
    n: int | None
    found: Told
    p_adjusted: float


@dataclass(frozen=True, eq=False)
class Scored:
    """One number of every mixture of one origin and kind: [units, schemes, sizes], nan where it does not count.

    A unit is a draw of a group, `units` their names; groups are strata. Draws of one number mix the same latents in every scheme,
    and those of n the first of a larger n. `single` are the (group, n) whose draws all mix the same latents.
    """

    values: Array
    units: tuple[tuple[str, int], ...]
    schemes: tuple[str, ...]
    every: tuple[int, ...]
    level: float
    single: frozenset[tuple[str, int]] = frozenset()
    weights: Mapping[str, float] = field(default_factory=dict)

    def of(self, scheme: str, n: int) -> Array:
        """The number of every unit."""
        return self.values[:, self.schemes.index(scheme), self.every.index(n)]

    def sizes(self, scheme: str, least: int = 1) -> list[int]:
        """The n at which the scheme has a number, ascending; none of a scheme that is not there."""
        if scheme not in self.schemes:
            return []
        known = self._known[self.schemes.index(scheme)]
        return [n for n, there in zip(self.every, known, strict=True) if there and n >= least]

    def mean(self, scheme: str, n: int) -> Told:
        """The mean over groups; without limits where the draws of a group are one and the same."""
        values = self.of(scheme, n)
        found = self._over(values)
        alone = any((group, n) in self.single and np.isfinite(values[rows]).any() for group, rows in self._strata.items())
        return Told(Interval(found.interval.value, math.nan, math.nan), math.nan, found.n) if alone else found

    def average(self, scheme: str) -> Told:
        """The mean over groups and all n of two or more."""
        return self._over(_whole([self.of(scheme, n) for n in self.sizes(scheme, LEAST)], len(self.units)))

    def rise(self, scheme: str, n: int, base: int) -> Told:
        """How far the scheme is above its own number at `base`, draw by draw."""
        return self._over(self.of(scheme, n) - self.of(scheme, base))

    def difference(self, scheme: str, than: str, n: int) -> Told:
        """How far one scheme is above another at n, draw by draw."""
        return self._over(self.of(scheme, n) - self.of(than, n))

    def overall(self, scheme: str, than: str) -> Told:
        """How far one scheme is above another over all n of two or more that both have."""
        sizes = [n for n in self.sizes(scheme, LEAST) if n in self.sizes(than, LEAST)]
        return self._over(_whole([self.of(scheme, n) - self.of(than, n) for n in sizes], len(self.units)))

    def contests(self, against: str) -> list[Contest]:
        """Every scheme against one of them at every n, one family."""
        others = [one for one in self.schemes if one != against]
        found = [
            Contest(one, against, n, self.difference(one, against, n), math.nan)
            for one in others
            for n in self.sizes(one)
            if n in self.sizes(against)
        ]
        return _corrected(found)

    def pairs(self) -> list[Contest]:
        """Every two schemes over all n, one family."""
        return _corrected([Contest(a, b, None, self.overall(a, b), math.nan) for a, b in combinations(self.schemes, 2)])

    def best(self, among: Sequence[str]) -> str | None:
        """The scheme with the lowest mean over all n; None where none has one."""
        known = {one: self.average(one).interval.value for one in among}
        known = {one: value for one, value in known.items() if math.isfinite(value)}
        return min(known, key=lambda one: known[one], default=None)

    def reference(self) -> str | None:
        """What every scheme is tested against: the best of those that leave what latents share where it is, but for their plain mean."""
        scaled = [one for one in self.schemes if plain(one)]
        return self.best([one for one in scaled if one != "none"] or scaled or self.schemes)

    @cached_property
    def _known(self) -> npt.NDArray[np.bool_]:
        """Which schemes have a number at which n."""
        return np.asarray(np.isfinite(self.values).any(0))

    @cached_property
    def _strata(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, (group, _) in enumerate(self.units):
            found.setdefault(group, []).append(row)
        return found

    def _over(self, values: Array) -> Told:
        parts = {group: values[rows][np.isfinite(values[rows])] for group, rows in self._strata.items()}
        weights = [self.weights.get(group, 0.0) for group in parts] if self.weights else None
        return stratified(list(parts.values()), self.level, weights)


def scored(rows: pd.DataFrame, values: Array, wanted: Wanted, weights: Mapping[str, float] | None = None) -> Scored:
    """`values` [rows] of mixtures of one origin and kind; groups and schemes in the order of the study, draws and n ascending."""
    groups, schemes = (listed(rows, names, name) for names, name in ((wanted.groups, "group"), (wanted.schemes, "scheme")))
    keys = list(zip(map(str, rows["group"]), map(int, rows["draw"]), map(str, rows["scheme"]), map(int, rows["n"]), strict=True))
    units = sorted({key[:2] for key in keys}, key=lambda unit: (groups.index(unit[0]), unit[1]))
    sizes = sorted({key[3] for key in keys})
    unit_at, scheme_at, size_at = ({name: place for place, name in enumerate(names)} for names in (units, schemes, sizes))
    found = np.full((len(units), len(schemes), len(sizes)), math.nan)
    for (group, draw, scheme, n), value in zip(keys, values, strict=True):
        found[unit_at[group, draw], scheme_at[scheme], size_at[n]] = value if np.isfinite(value) else math.nan
    return Scored(found, tuple(units), tuple(schemes), tuple(sizes), wanted.level, frozenset(_single(rows)), weights or {})


def _single(rows: pd.DataFrame) -> Iterator[tuple[str, int]]:
    """The groups and n of centroids whose draws, more than one, have the same members."""
    first: dict[tuple[str, int], tuple[int, frozenset[int]]] = {}
    alike: dict[tuple[str, int], bool] = {}
    for group, n, draw, kind, mixed in zip(*(rows[name] for name in ("group", "n", "draw", "kind", "members")), strict=True):
        key = str(group), int(n)
        if kind != "centroid" or mixed is None or not alike.get(key, True):
            continue
        number, members = first.setdefault(key, (int(draw), frozenset(map(int, mixed))))
        if number != draw:
            alike[key] = members == frozenset(map(int, mixed))
    return (key for key, same in alike.items() if same)


def _whole(columns: Sequence[Array], units: int) -> Array:
    """The mean of every unit over columns [units]: those that most units have, of units that have them all; else nan."""
    kept = [column for column in columns if np.isfinite(column).mean() > 0.5]
    return np.asarray(np.mean(kept, 0)) if kept else np.full(units, math.nan)


def _corrected(found: Sequence[Contest]) -> list[Contest]:
    adjusted = holm([one.found.p for one in found]) if found else np.zeros(0)
    return [one._replace(p_adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)]
