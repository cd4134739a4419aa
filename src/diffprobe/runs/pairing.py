"""Which rows two runs share, and which differences between runs forbid to compare them at all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from diffprobe.errors import UserError, unknown
from diffprobe.probes.base import Comparable, Probe
from diffprobe.runs.result import Run
from diffprobe.runs.study import settings


@dataclass(frozen=True)
class Pair:
    """One quantity in two runs, unit by unit: `base` and `other` [n] belong to `units` [n]."""

    base_comparable: Comparable
    other_comparable: Comparable
    units: tuple[str, ...]
    base: npt.NDArray[np.float64]
    other: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pairing:
    """The rows of a probe that two runs share: `common` of them in both and unflagged, `flagged` in both but without value in one or both.

    `notes` say what a reader should know of rows that pair and yet differ.
    """

    probe: str
    common: int
    flagged: int
    base_only: int
    other_only: int
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    @property
    def rate(self) -> float:
        """The share of all rows of either run that the two have in common and unflagged."""
        rows = self.common + self.flagged + self.base_only + self.other_only
        return self.common / rows if rows else 0.0


def check(base: Run, other: Run, across: Collection[str] = ()) -> None:
    """Raise UserError where the two were measured with other instruments or settings; `across` names settings that are meant to differ."""
    instruments = base.about["embedders"], other.about["embedders"]
    for name in sorted(set(instruments[0]) & set(instruments[1])):
        a, b = (side[name] for side in instruments)
        if a != b:
            raise UserError(
                f"the instrument {name} is another one in {base.path} ({a}) than in {other.path} ({b}): measure both with one of them"
            )
    shared = _shared(base, other)
    names = {name for mine, _ in shared for name in settings(mine) if name != "kind"}
    for name in across:
        if name not in names:
            raise unknown("setting of a shared probe", name, names)
    for mine, theirs in shared:
        a, b = settings(mine), settings(theirs)
        for name in sorted(a.keys() - mine.free - set(across)):
            if a[name] != b[name]:
                raise UserError(
                    f"{mine.name}'s {name} is {a[name]} in {base.path} and {b[name]} in {other.path}: measure both alike, "
                    f"or compare across it (--across {name}) if that is the question"
                )


def shared_probes(base: Run, other: Run) -> tuple[str, ...]:
    """The names of the probes that both runs have; raises UserError where there is none."""
    return tuple(mine.name for mine, _ in _shared(base, other))


def paired(base: Run, other: Run, probe: str, across: Collection[str] = ()) -> Pairing:
    """The rows of a probe that the two runs share, and its quantities computed from those rows alone; `check` comes first."""
    mine, theirs = next(found for found in _shared(base, other) if found[0].name == probe)
    sides = [(run, run.tables(probe)) for run in (base, other)]
    columns = [name for name in mine.aligned if name not in across]
    frames = [_frame(run, tables, mine, columns) for run, tables in sides]
    known = [set(frame.index) for frame in frames]
    both = known[0] & known[1]
    sound = {key for key in both if all(pd.isna(frame.at[key, "flag"]) for frame in frames)}
    kept = [
        {**tables, mine.rows: tables[mine.rows].filter(pa.array([key in sound for key in frame.index]))} if sound else {}
        for (_, tables), frame in zip(sides, frames, strict=True)
    ]
    # One study's order of settings decides for both which of them is the main one.
    alike = replace(cast(Any, mine), **{name: getattr(theirs, name) for name in across if hasattr(theirs, name)})
    quantities = [{_name(c, across): c for c in p.comparables(tables)} for p, tables in zip((mine, alike), kept, strict=True)]
    pairs = tuple(_pair(one, quantities[1][key]) for key, one in quantities[0].items() if key in quantities[1])
    return Pairing(
        probe, len(sound), len(both) - len(sound), len(known[0] - both), len(known[1] - both), pairs, tuple(_notes(frames, sorted(sound)))
    )


def _shared(base: Run, other: Run) -> list[tuple[Probe, Probe]]:
    theirs = {probe.name: probe for probe in other.probes}
    found = [(probe, theirs[probe.name]) for probe in base.probes if probe.name in theirs]
    if not found:
        raise UserError(
            f"{base.path} has {', '.join(p.name for p in base.probes)}, {other.path} has {', '.join(theirs)}: no probe is in both"
        )
    return found


def _frame(run: Run, tables: dict[str, Any], probe: Probe, columns: list[str]) -> pd.DataFrame:
    """The rows of the probe's main cells, known by `columns`."""
    if probe.rows not in tables:
        raise UserError(f"nothing of {probe.name} is measured in {run.path} yet: run it first")
    frame: pd.DataFrame = tables[probe.rows].to_pandas()
    frame.index = pd.Index(list(frame[columns].itertuples(index=False, name=None)), tupleize_cols=False)
    if frame.index.has_duplicates:
        twice = dict(zip(columns, frame.index[frame.index.duplicated()][0], strict=True))
        raise UserError(f"{run.path} has several rows for {twice}: a row must pair with one row, so compare across fewer settings")
    return frame


def _name(comparable: Comparable, across: Collection[str]) -> tuple[Any, ...]:
    return comparable.quantity, *sorted((name, value) for name, value in comparable.facets.items() if name not in across)


def _pair(base: Comparable, other: Comparable) -> Pair:
    units = tuple(unit for unit in base.values if unit in other.values)
    values = (np.array([side.values[unit] for unit in units], np.float64) for side in (base, other))
    return Pair(base, other, units, *values)


def _notes(frames: list[pd.DataFrame], keys: list[tuple[Any, ...]]) -> list[str]:
    """The same strength is another noise level where schedules differ."""
    if not keys or not all("sigma" in frame for frame in frames):
        return []
    a, b = (frame.loc[keys, "sigma"].to_numpy(np.float64) for frame in frames)
    apart = ~np.isclose(a, b, rtol=0.01)
    if not apart.any():
        return []
    first = int(np.flatnonzero(apart)[0])
    return [
        f"The same strength starts at another noise level in {apart.mean():.0%} of the pairs (sigma {a[first]:.3g} and {b[first]:.3g})."
    ]
