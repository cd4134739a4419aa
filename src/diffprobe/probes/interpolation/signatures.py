"""What betrays that an inverted latent is no pure noise, and how well an inversion can be undone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diffprobe.measures.interpolation import white_noise
from diffprobe.probes.interpolation.strata import Told, stratified
from diffprobe.probes.interpolation.tables import Array, Pool, column, lists

#: The statistics of a latent: what a reader knows each by, and what pure noise has.
STATISTICS = {
    "norm": ("length", 1.0),
    "channel_mean": ("channel mean", 0.0),
    "channel_std": ("channel's standard deviation", 1.0),
    "kurtosis": ("excess kurtosis", 0.0),
    "correlation": ("correlation of neighbours", 0.0),
    "spectrum": ("power in a band of frequencies", 1.0),
}
#: How well the inversion is undone: of latents, and of their pictures.
ERRORS = {"reconstruction": "latents", "reconstruction_pixels": "pictures"}


class Trait(NamedTuple):
    """One statistic of the latents of one origin, a mean over groups; `place` is the channel, or the band from the lowest frequencies.

    `expected` is what pure noise has, `scatter` the standard deviation over single latents of it.
    """

    origin: str
    statistic: str
    place: int | None
    found: Told
    expected: float
    scatter: float

    @property
    def distance(self) -> float:
        """How far from pure noise, in standard deviations of a single latent of it."""
        return abs(self.found.interval.value - self.expected) / self.scatter

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out what pure noise has."""
        return not self.found.interval.lo <= self.expected <= self.found.interval.hi


def traits(pools: Sequence[Pool], level: float) -> list[Trait]:
    """All statistics of every origin."""
    found = []
    for origin in dict.fromkeys(pool.origin for pool in pools):
        own = [pool for pool in pools if pool.origin == origin and len(pool.rows)]
        shapes = [pool.rows["shape"].dropna().iloc[0] for pool in own if "shape" in pool.rows and pool.rows["shape"].notna().any()]
        if shapes:
            found += list(_traits(origin, own, tuple(int(side) for side in shapes[0]), level))
    return found


def errors(pools: Sequence[Pool], name: str, level: float) -> Iterator[tuple[str, str | None, Told]]:
    """The error of going there and back: origin, group and mean; of all groups of an origin where the group is None."""
    for origin in dict.fromkeys(pool.origin for pool in pools):
        parts = {pool.group: _known(column(pool.rows, name)) for pool in pools if pool.origin == origin}
        parts = {group: values for group, values in parts.items() if len(values)}
        if parts:
            yield origin, None, stratified(list(parts.values()), level)
            for group, values in parts.items():
                yield origin, group, stratified([values], level)


def _traits(origin: str, own: Sequence[Pool], shape: tuple[int, ...], level: float) -> Iterator[Trait]:
    bins = max((lists(pool.rows, "spectrum").shape[1] for pool in own), default=0)
    noise = white_noise(shape, 1, bins=bins or 8)
    for name, (_, expected) in STATISTICS.items():
        scatters = np.asarray(getattr(noise, name), np.float64).ravel()
        parts = [_matrix(pool, name) for pool in own]
        parts = [part for part in parts if part.size]
        width = min((part.shape[1] for part in parts), default=0)
        for place in range(width):
            told = stratified([_known(part[:, place]) for part in parts], level)
            scatter = float(scatters[place if len(scatters) == width else 0])
            if np.isfinite(scatter):  # a small latent has no entry in some bands of frequencies
                yield Trait(origin, name, place if name in ("channel_mean", "channel_std", "spectrum") else None, told, expected, scatter)


def _matrix(pool: Pool, name: str) -> Array:
    return column(pool.rows, name)[:, None] if name in ("norm", "kurtosis", "correlation") else lists(pool.rows, name)


def _known(values: Array) -> Array:
    return values[np.isfinite(values)]
