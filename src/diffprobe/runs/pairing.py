"""Which rows two runs share, and which differences between runs forbid to compare them at all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
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

#: Embeddings are of single precision: the same images in batches of another shape differ by some 1e-7 of a value.
_ROUNDING = 1e-6
#: Numbers drawn for one interval: beyond 500 units fewer resamples are as good.
_REPLICATES, _DRAWN = 10_000, 5_000_000


@dataclass(frozen=True)
class Pair:
    """One quantity in two runs, unit by unit: `base` and `other` [n] belong to `units` [n]; `matched` makes one."""

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


def cause(base: Run, other: Run, probe: str, across: Collection[str]) -> str:
    """Why no row pairs: the column without which rows would, or all that differ, or that none of the shared rows counts."""
    asked = next(one for one in base.probes if one.name == probe)
    columns = [name for name in asked.aligned if name not in across]
    frames = [run.records(probe) for run in (base, other)]

    def common(chosen: Sequence[str]) -> bool:
        return bool(chosen) and bool(set.intersection(*(set(_keys(frame, chosen)) for frame in frames)))

    if common(columns):
        return f"every row of {probe} that both have is flagged in {base.path} or {other.path}"
    one = [name for name in columns if common([column for column in columns if column != name])]
    apart = one or [name for name in columns if not common([name])] or columns
    values = [f"{name} is {_some(frames[0][name])} in {base.path} and {_some(frames[1][name])} in {other.path}" for name in apart]
    remedy = f", or compare across it (--across {apart[0]})" if len(apart) == 1 and apart[0] in settings(asked) else ""
    return f"no row of {probe} pairs, since {' and '.join(values)}: measure both alike{remedy}"


def _some(values: pd.Series) -> str:
    """The first few values of a column."""
    found = list(dict.fromkeys(map(str, values)))
    return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")


def checked(level: float) -> float:
    """The level of intervals and tests; raises UserError for one that is none."""
    if not 0.5 <= level < 1:
        raise UserError(f"level {level:g} must be at least 0.5 and below 1 (0.95 is usual)")
    return level


def names_of(across: str | Sequence[str]) -> tuple[str, ...]:
    """Names of settings; a text is one of them."""
    return (across,) if isinstance(across, str) else tuple(across)


def incomplete(name: str, done: int, planned: int) -> str:
    """That a run is not whole: a sentence up to what becomes of it."""
    return f"{name} is incomplete: {planned - done:,} of {planned:,} cells are missing"


def replicates(n: int) -> int:
    """How often n units are resampled."""
    return max(1000, min(_REPLICATES, _DRAWN // n))


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
    pairs = tuple(matched(one, quantities[1][key]) for key, one in quantities[0].items() if key in quantities[1])
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
    frame.index = pd.Index(_keys(frame, columns), tupleize_cols=False)
    if frame.index.has_duplicates:
        twice = dict(zip(columns, frame.index[frame.index.duplicated()][0], strict=True))
        raise UserError(f"{run.path} has several rows for {twice}: a row must pair with one row, so compare across fewer settings")
    return frame


def _keys(frame: pd.DataFrame, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """What each row is known by; where a column does not apply, it is None in both runs."""
    known = frame[list(columns)].astype(object)
    return list(known.where(known.notna(), None).itertuples(index=False, name=None))


def _name(comparable: Comparable, across: Collection[str]) -> tuple[Any, ...]:
    return comparable.quantity, *sorted((name, value) for name, value in comparable.facets.items() if name not in across)


def matched(base: Comparable, other: Comparable) -> Pair:
    """The units that have a finite value in both. A unit whose two values differ by rounding alone has the base's in both."""
    units = tuple(unit for unit, value in base.values.items() if np.isfinite(value) and np.isfinite(other.values.get(unit, np.nan)))
    a, b = (np.array([side.values[unit] for unit in units], np.float64) for side in (base, other))
    alike = np.abs(b - a) <= _ROUNDING * np.maximum(np.abs(a), np.abs(b))
    return Pair(base, other, units, a, np.where(alike, a, b))


def _notes(frames: list[pd.DataFrame], keys: list[tuple[Any, ...]]) -> Iterator[str]:
    """What pairs and yet differs: a strength's noise level under another schedule, a prompt's words, an image's size."""
    if not keys:
        return
    if all({"sigma", "strength"} <= set(frame) for frame in frames):
        a, b = (frame.loc[keys, "sigma"].to_numpy(np.float64) for frame in frames)
        apart = ~np.isclose(a, b, rtol=0.01, equal_nan=True) & ~np.isnan(a) & ~np.isnan(b)
        if apart.any():
            share, first = apart.mean(), int(np.flatnonzero(apart)[0])
            yield f"The same strength starts at another noise level in {share:.0%} of the pairs (sigma {a[first]:.3g} and {b[first]:.3g})."
    for name in ("prompt", "height", "width"):
        if all(name in frame for frame in frames):
            here, there = (frame.loc[keys, name].to_numpy() for frame in frames)
            other = here != there
            if other.any():
                first = int(np.flatnonzero(other)[0])
                yield f"The {name} is another one in {other.mean():.0%} of the pairs (“{here[first]}” and “{there[first]}”)."
