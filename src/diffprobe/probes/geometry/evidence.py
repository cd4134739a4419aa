"""The records of a geometry study as every part of its findings reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from diffprobe.probes.base import Records
from diffprobe.probes.geometry.level_sets import LevelSet, Population, Trend, level_sets, populations, trends
from diffprobe.probes.geometry.separation import Parting, Separation, partings, separations
from diffprobe.probes.geometry.tables import Group, Surface, Wanted, along, groups, leader, samples, sound, surfaces


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

    @cached_property
    def last(self) -> str | None:
        """The last checkpoint at which anything counts; None where the model itself is measured."""
        measured = set() if self.frame.empty else set(sound(self.frame)["checkpoint"].dropna())
        return next((name for name in reversed(self.wanted.checkpoints) if name in measured), None)

    @cached_property
    def latest(self) -> list[Group]:
        """The groups of the last checkpoint."""
        return [one for one in self.groups if one.checkpoint == self.last]

    @cached_property
    def along(self) -> list[Group]:
        return along(self.frame, self.wanted)

    @cached_property
    def separations(self) -> list[Separation]:
        return separations(self.groups, self.wanted)

    @cached_property
    def partings(self) -> list[Parting]:
        return list(partings(self.along, self.wanted, leader(self.frame, self.wanted)))

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
    def surfaces(self) -> list[Surface]:
        return list(surfaces(self.frame, self.wanted))
