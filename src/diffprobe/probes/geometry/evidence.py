"""The records of a geometry study as every part of its findings reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from diffprobe.probes.base import Records
from diffprobe.probes.geometry.level_sets import LevelSet, Population, Trend, level_sets, populations, trends
from diffprobe.probes.geometry.separation import Separation, separations
from diffprobe.probes.geometry.tables import Group, Wanted, along, groups, samples, surfaces


@dataclass(frozen=True)
class Evidence:
    """The records as every part of the findings reads them."""

    wanted: Wanted
    records: Records

    @cached_property
    def frame(self) -> pd.DataFrame:
        return samples(self.records)

    @cached_property
    def groups(self) -> list[Group]:
        return groups(self.frame, self.wanted)

    @property
    def last(self) -> str | None:
        """The last checkpoint that is measured; None where the model itself is."""
        return self.groups[-1].checkpoint if self.groups else None

    @cached_property
    def latest(self) -> list[Group]:
        """The groups of the last checkpoint."""
        return [one for one in self.groups if one.checkpoint == self.last]

    @cached_property
    def along(self) -> list[Group]:
        return along(self.frame, self.wanted)

    @cached_property
    def separations(self) -> list[Separation]:
        return list(separations(self.groups, self.wanted.level))

    @cached_property
    def level_sets(self) -> list[LevelSet]:
        return [found for group in self.groups for found in level_sets(group, self.wanted.level_sets, self.wanted.level)]

    @cached_property
    def trends(self) -> list[Trend]:
        return [found for group in self.groups for found in trends(group, self.wanted.level)]

    @cached_property
    def populations(self) -> list[Population]:
        return [found for group in self.groups for found in populations(group, self.wanted.level)]

    @cached_property
    def surfaces(self) -> list[tuple[str, str | None, float | None, pd.DataFrame]]:
        return list(surfaces(self.frame, self.wanted))
