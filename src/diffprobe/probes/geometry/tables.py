"""The records of a geometry study as frames: where the samples stand, and what each is known by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffprobe.probes.base import Facets, Records

Array = npt.NDArray[np.float64]
#: The three descriptors, and what a reader knows them by.
DESCRIPTORS = {"psi": "local scaling ψ", "nu": "local rank ν", "delta": "local complexity δ"}
#: Plain rivals: what else tells samples apart, without a derivative.
RIVALS = {"error": "reconstruction error", "sharpness": "sharpness"}
_FEWEST = 8  # prompts that make units of their own


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

    def values(self, column: str) -> Array:
        """The column over independent `units`; none where it is not there."""
        return np.asarray(units(self.rows, [column])[column], np.float64) if column in self.rows else np.zeros(0)


def units(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Columns over independent units where all are known: samples, or the means of prompts where there are enough prompts."""
    known = rows.dropna(subset=columns)
    if known["sample"].nunique() >= _FEWEST or known["seed"].isna().all():
        return known.groupby("sample", sort=False)[columns].mean()
    return known[columns]


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


def surfaces(frame: pd.DataFrame, wanted: Wanted) -> Iterator[tuple[str, str | None, float | None, pd.DataFrame]]:
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
