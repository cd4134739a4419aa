"""The records of an interpolation study as every part of its findings reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pandas as pd

from diffprobe.probes.base import Records
from diffprobe.probes.interpolation.bias import Law, Shared, aimed, aims, laws, shared
from diffprobe.probes.interpolation.degeneration import Choice, Fate, choice, fates, flagged_shares
from diffprobe.probes.interpolation.likeness import Likeness, features_of, fresh_told, likenesses, originals_told
from diffprobe.probes.interpolation.moved import Apart, Moved, apart, moved
from diffprobe.probes.interpolation.scores import Contest, Scored, scored
from diffprobe.probes.interpolation.signatures import Trait, traits
from diffprobe.probes.interpolation.strata import Told, stratified
from diffprobe.probes.interpolation.tables import (
    DISTANCE,
    ORIGINS,
    Array,
    Pool,
    Wanted,
    column,
    embedders,
    frame,
    pools,
    sound,
)

#: A number of every row.
Reading: TypeAlias = Callable[[pd.DataFrame], Array]


@dataclass(frozen=True, eq=False)
class Mixed:
    """The mixtures of one origin and kind: all of them, and those that count."""

    origin: str
    kind: str
    everything: pd.DataFrame

    @cached_property
    def rows(self) -> pd.DataFrame:
        return sound(self.everything)


@dataclass(frozen=True, eq=False)
class Eye:
    """The mixtures that the report is about as one instrument sees them; `pairs` are all schemes over all N, `contests` at each."""

    embedder: str
    distance: Scored
    fates: list[Fate]
    contests: list[Contest]
    pairs: list[Contest]
    choice: Choice | None
    originals: Told | None
    fresh: Told | None
    likenesses: list[Likeness]


@dataclass(frozen=True)
class Evidence:
    """The records as every part of the findings reads them."""

    wanted: Wanted
    records: Records

    @cached_property
    def inverted(self) -> pd.DataFrame:
        return frame(self.records, "Inversions")

    @cached_property
    def mixtures(self) -> pd.DataFrame:
        return frame(self.records, "Mixtures")

    @cached_property
    def offset(self) -> pd.DataFrame:
        return frame(self.records, "Offsets")

    @property
    def empty(self) -> bool:
        return not (len(self.inverted) or len(self.mixtures) or len(self.offset))

    @cached_property
    def pools(self) -> list[Pool]:
        return pools(self.inverted, frame(self.records, "Alignments"), self.wanted) if len(self.inverted) else []

    @cached_property
    def traits(self) -> list[Trait]:
        return traits(self.pools, self.wanted.level)

    @cached_property
    def shared(self) -> list[Shared]:
        return shared(self.pools, self.wanted.level)

    @cached_property
    def laws(self) -> list[Law]:
        return laws(self.pools, self.wanted)

    @cached_property
    def mixed(self) -> list[Mixed]:
        """The mixtures by origin and kind, real images and centroids first; those of pure noise are a reference."""
        if self.mixtures.empty:
            return []
        there = {(str(origin), str(kind)): rows for (origin, kind), rows in self.mixtures.groupby(["origin", "kind"])}
        order = [(origin, kind) for origin in ORIGINS for kind in ("centroid", "random") if (origin, kind) in there]
        return [Mixed(origin, kind, there[origin, kind]) for origin, kind in order if origin != "noise"]

    @cached_property
    def main(self) -> Mixed | None:
        """The mixtures that the report is about."""
        return next((one for one in self.mixed if len(one.rows)), self.mixed[0] if self.mixed else None)

    @cached_property
    def sharpness(self) -> Scored | None:
        """Of the mixtures that the report is about, in the mean sharpness of their group's images; None where that is not known."""
        return None if self.main is None else self.sharpness_of(self.main)

    @cached_property
    def spread(self) -> Scored | None:
        """How many times their group's own channel offset the mixtures' latents have."""
        return None if self.main is None else self.spread_of(self.main)

    @cached_property
    def fresh_sharpness(self) -> Told | None:
        """That of pictures of fresh noise: mixtures of pure noise, or else the images that were generated to be inverted."""
        found = self._fresh(self._relative)
        parts = [self._relative(pool.rows) for pool in self.pools if pool.origin == "generated"]
        parts = [part[np.isfinite(part)] for part in parts]
        return found if found is not None or not sum(map(len, parts)) else stratified(parts, self.wanted.level)

    @cached_property
    def embedders(self) -> list[str]:
        return embedders(self.mixtures)

    @cached_property
    def eyes(self) -> list[Eye]:
        """The mixtures as every instrument sees them, the first leading."""
        if self.main is None:
            return []
        return [eye for name in self.embedders if (eye := self._eye(self.main, name)) is not None]

    @cached_property
    def fates(self) -> list[Fate]:
        """How every scheme fares, in the eyes of the first instrument, or by sharpness alone where there is none."""
        if self.eyes:
            return self.eyes[0].fates
        return (
            []
            if self.main is None
            else fates(None, self.sharpness, flagged_shares(self.main.everything), self.fresh_sharpness, self.wanted)
        )

    @cached_property
    def moved(self) -> list[Moved]:
        return moved(sound(self.offset), self.wanted.level) if len(self.offset) else []

    @cached_property
    def apart(self) -> list[Apart]:
        return apart(sound(self.offset), self.wanted.level) if len(self.offset) else []

    def distance_of(self, one: Mixed, embedder: str) -> Scored | None:
        return self._scored(one, column(one.rows, DISTANCE + embedder))

    def sharpness_of(self, one: Mixed) -> Scored | None:
        return self._scored(one, self._relative(one.rows))

    def spread_of(self, one: Mixed) -> Scored | None:
        directions, weights = aims(self.pools, one.origin)
        return self._scored(one, aimed(one.rows, directions), weights)

    def _scored(self, one: Mixed, values: Array, weights: dict[str, float] | None = None) -> Scored | None:
        return scored(one.rows, values, self.wanted, weights) if np.isfinite(values).any() else None

    def _eye(self, one: Mixed, embedder: str) -> Eye | None:
        distance = self.distance_of(one, embedder)
        if distance is None:
            return None
        originals, level = features_of(self.pools, embedder), self.wanted.level
        own = originals_told(originals, level)
        fresh = self._fresh(lambda rows: column(rows, DISTANCE + embedder)) or fresh_told(self.pools, embedder, level)
        found = fates(distance, self.sharpness, flagged_shares(one.everything), self.fresh_sharpness, self.wanted)
        pairs, reference = distance.pairs(), distance.reference()
        return Eye(
            embedder,
            distance,
            found,
            distance.contests(reference) if reference is not None else [],
            pairs,
            choice(found, distance, pairs, level),
            own,
            fresh,
            likenesses(one.rows, originals, embedder, distance),
        )

    def _relative(self, rows: pd.DataFrame) -> Array:
        """The sharpness of pictures [rows] in the mean of their group's images; nan where that is not known."""
        means = {pool.group: column(pool.rows, "sharpness") for pool in self.pools if pool.origin == "images"}
        known = {group: float(values[np.isfinite(values)].mean()) for group, values in means.items() if np.isfinite(values).any()}
        scale = np.array([known.get(str(group), np.nan) for group in rows["group"]], np.float64)
        return np.asarray(column(rows, "sharpness") / np.where(scale > 0, scale, np.nan))

    def _fresh(self, values: Reading) -> Told | None:
        """The mean of what the model makes of fresh noise, mixed or not: draws are the units, groups the strata."""
        rows = sound(self.mixtures)
        rows = rows[(rows["origin"] == "noise") & (rows["norm"] != "none")] if len(rows) else rows
        if rows.empty:
            return None
        told = rows[["group", "draw"]].assign(value=values(rows)).dropna()
        means = told.groupby(["group", "draw"])["value"].mean()
        parts: Sequence[Array] = [part.to_numpy(np.float64) for _, part in means.groupby(level="group")]
        return stratified(parts, self.wanted.level) if parts else None
