"""The records of a geometry study as frames: where the samples stand, and what each is known by."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffprobe.probes.base import Facets, Records

Array = npt.NDArray[np.float64]
#: The three descriptors, and what a reader knows them by.
DESCRIPTORS = {"psi": "local scaling ψ", "nu": "local rank ν", "delta": "local complexity δ"}
#: Plain rivals: what else tells samples apart, without a derivative.
RIVALS = {"error": "reconstruction error", "sharpness": "sharpness"}
#: A slice, or one level of a field: its name, checkpoint and sigma, and its points.
Surface: TypeAlias = tuple[str, str | None, float | None, pd.DataFrame]


@dataclass(frozen=True)
class Wanted:
    """What of a study's settings its summary needs. `sets` in order, the first the reference; those of `images` are encodings."""

    sets: tuple[str, ...]
    images: tuple[str, ...]
    maps: tuple[str, ...]
    checkpoints: tuple[str, ...]
    level_sets: int
    level: float


@dataclass(frozen=True)
class Group:
    """The samples of one set, at one checkpoint and one guidance scale, where they end; flagged ones are left out."""

    set: str
    checkpoint: str | None
    guidance_scale: float | None
    rows: pd.DataFrame

    @property
    def facets(self) -> Facets:
        told: dict[str, str | float | int | bool] = {"set": self.set}
        if self.guidance_scale is not None:
            told["guidance_scale"] = self.guidance_scale
        return told if self.checkpoint is None else {**told, "checkpoint": self.checkpoint}

    @property
    def label(self) -> str:
        return self.set if self.guidance_scale is None else f"{self.set}, guidance {self.guidance_scale:g}"

    @property
    def ranks(self) -> tuple[int, int]:
        """The least and the most directions that the map does not flatten, over samples; raises ValueError without any."""
        known = self.rows["rank"].dropna()
        return int(known.min()), int(known.max())

    @property
    def is_volume(self) -> bool:
        """Whether psi of every sample is that of all of a latent's directions, exact and none of them flattened."""
        rows = self.rows[self.rows["psi"].notna()]
        return bool(len(rows) and (rows["directions"] == 0).all() and (rows["rank"] == rows["latent_size"]).all())

    def values(self, column: str) -> Array:
        """The column over independent `units`; none where it is not there."""
        return np.asarray(units(self.rows, [column])[column], np.float64) if column in self.rows else np.zeros(0)


def units(rows: pd.DataFrame, columns: list[str], whole: pd.DataFrame | None = None) -> pd.DataFrame:
    """Columns over the independent units of one set, where all of them are known, as means over the seeds of a prompt.

    Seeds of one prompt resemble each other, so two prompts or more are units themselves, however few; of a single prompt the
    seeds are. Images and latents of noise are units as they are. `whole` is the set where the rows are a part of it.
    """
    known = rows.dropna(subset=columns)
    return known.groupby("sample", sort=False)[columns].mean() if clustered(rows if whole is None else whole) else known[columns]


def clustered(rows: pd.DataFrame) -> bool:
    """Whether the rows are several samples of several prompts, which are then no units themselves."""
    return 1 < rows["sample"].nunique() < len(rows) and bool(rows["seed"].notna().any())


def finite(sigma: float) -> float | str:
    """A level as a facet, which is no infinite number."""
    return sigma if math.isfinite(sigma) else "infinite"


def samples(records: Records) -> pd.DataFrame:
    """All rows with a place in a set; empty where nothing is measured."""
    if "Samples" not in records:
        return pd.DataFrame()
    frame: pd.DataFrame = records["Samples"].to_pandas()
    return frame


def sound(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that count."""
    return frame[frame["flag"].isna()]


def groups(frame: pd.DataFrame, wanted: Wanted) -> list[Group]:
    """Every set at every checkpoint and guidance scale, in the order of the study: where samples end, without slices and fields."""
    if frame.empty:
        return []
    ends = sound(frame)
    ends = ends[ends["set"].isin(wanted.sets) & ends["last"].ne(False)]
    return [Group(*key, rows) for key, rows in _parted(ends, wanted)]


def along(frame: pd.DataFrame, wanted: Wanted) -> list[Group]:
    """The whole trajectories of every generated set that has more than its ends."""
    if frame.empty:
        return []
    rows = sound(frame)
    rows = rows[rows["set"].isin(wanted.sets) & rows["step"].notna()]
    return [Group(*key, part) for key, part in _parted(rows, wanted) if part["step"].nunique() > 1]


def leader(frame: pd.DataFrame, wanted: Wanted) -> str | None:
    """The first generated set that has more of its trajectories than their ends, whether or not its samples count."""
    if frame.empty:
        return None
    steps = frame[frame["step"].notna()].groupby("set")["step"].nunique()
    return next((name for name in wanted.sets if steps.get(name, 0) > 1), None)


def surfaces(frame: pd.DataFrame, wanted: Wanted) -> Iterator[Surface]:
    """Each slice and each level of a field: its name, its checkpoint, sigma where it has one, and its points; flagged ones too."""
    if frame.empty:
        return
    for name in wanted.maps:
        rows = frame[frame["set"] == name]
        for checkpoint in wanted.checkpoints or (None,):
            here = rows[rows["checkpoint"].isna() if checkpoint is None else rows["checkpoint"] == checkpoint]
            if here["sigma"].notna().any():
                yield from ((name, checkpoint, float(sigma), part) for sigma, part in here.groupby("sigma", sort=True))
            elif len(here):
                yield name, checkpoint, None, here


def _parted(rows: pd.DataFrame, wanted: Wanted) -> Iterator[tuple[tuple[str, str | None, float | None], pd.DataFrame]]:
    for name in wanted.sets:
        for checkpoint in wanted.checkpoints or (None,):
            here = rows[(rows["set"] == name) & (rows["checkpoint"].isna() if checkpoint is None else rows["checkpoint"] == checkpoint)]
            if here.empty:
                continue
            if here["guidance_scale"].isna().all():
                yield (name, checkpoint, None), here
                continue
            for scale, part in here.groupby("guidance_scale", sort=True):
                yield (name, checkpoint, float(scale)), part
