"""The images of the guidance sweep as sets of features: what each setting scores, and how far it is from the others, image by image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from diffprobe.measures.sets.contrasts import (
    Contrast,
    Scored,
    contrast,
    frechet_scored,
    mean_scored,
    neighbours_scored,
    scored_interval,
    share_interval,
)
from diffprobe.measures.sets.frechet import frechet_distance
from diffprobe.measures.stats import Interval, bootstrap, holm, wilson_interval
from diffprobe.probes.base import Records
from diffprobe.probes.speciation.sweep import DENSITY_K, Setting

Array = npt.NDArray[np.float64]
#: What a setting is chosen by, and whether more of it is better.
OBJECTIVES = {"frechet": False, "precision": True, "recall": True, "margin": True}
#: Against what a setting is tested.
UNGUIDED, SCALE, SCALE_COST, FULL, FULL_COST = (
    "unguided",
    "full range, same scale",
    "full range, same scale and cost",
    "full range, every scale",
    "full range, every scale, same cost",
)
_FEATURE = "feature:"
_KEYS = ["guidance_scale", "guidance_lo", "guidance_hi", "matched_lo", "matched_hi", "num_inference_steps"]


class Score(NamedTuple):
    """One number of a setting: with what moves it, and with its interval."""

    scored: Scored
    interval: Interval


@dataclass(frozen=True, eq=False)
class Tried:
    """A setting in the eyes of one instrument: `steps` taken, network `evaluations` an image, and scores by name."""

    setting: Setting
    steps: int
    evaluations: float
    scores: Mapping[str, Score]

    @property
    def guides(self) -> str:
        """What kind of guidance it is: none, full, interval or matched."""
        if self.setting.scale == 1:
            return "none"
        if self.setting.matched is not None:
            return "matched"
        return "full" if self.setting.lo == 0 and self.setting.hi is None else "interval"


class Compared(NamedTuple):
    """How far one setting is above another by an objective, with p; `adjusted`: Holm over all that is tested `against` the same."""

    tried: Tried
    other: Tried
    objective: str
    against: str
    found: Contrast
    p: float
    adjusted: float

    @property
    def gain(self) -> float:
        """The difference, positive where the setting is better than the other."""
        return self.found.value if OBJECTIVES[self.objective] else -self.found.value


@dataclass(frozen=True, eq=False)
class Eye:
    """What one instrument sees: every setting on the same `n` prompts and seeds, against `m` reference images.

    `raw` says why Frechet distances are those of the images at hand, without intervals; None where they are of the populations.
    """

    embedder: str
    n: int
    m: int
    tried: tuple[Tried, ...]
    raw: str | None

    def best(self, objective: str, *guides: str) -> Tried | None:
        """The best setting of some kinds; those with fewer steps, at the cost of an interval, are not asked unless named."""
        kinds = guides or ("none", "full", "interval")
        asked = [one for one in self.tried if objective in one.scores and one.guides in kinds]
        sign = 1 if OBJECTIVES[objective] else -1
        return max(asked, key=lambda one: sign * one.scores[objective].interval.value) if asked else None


class Images(NamedTuple):
    """The sweep's rows: per setting its images that count, for the seeds that all settings share; and what is left out."""

    frame: pd.DataFrame
    rows: dict[Setting, npt.NDArray[np.int64]]
    flagged: dict[str, int]
    lacking: dict[Setting, str]


def gathered(records: Records) -> Images | None:
    """None where nothing is measured. A setting of which less than half counts is left out, so that the others keep their images."""
    if "Guided" not in records:
        return None
    table = records["Guided"]
    frame: pd.DataFrame = table.select([name for name in table.column_names if not name.startswith(_FEATURE)]).to_pandas()
    flags = frame["flag"].copy()
    for name in _embedders(table):
        flags[flags.isna() & ~np.isfinite(_matrix(table, name)).all(1)] = f"no features by {name}"
    found: dict[Setting, dict[int, int]] = {}
    for key, group in frame.groupby(_KEYS, sort=False, dropna=False):
        counted = group[flags[group.index].isna()].drop_duplicates("seed")
        found[_setting(key)] = dict(zip(counted["seed"].astype(int), counted.index, strict=True))
    most = max(map(len, found.values()))
    lacking = {
        setting: f"{len(held)} of its images count, {most} of another setting's" for setting, held in found.items() if 2 * len(held) < most
    }
    kept = {setting: held for setting, held in found.items() if setting not in lacking}
    shared = sorted(set.intersection(*map(set, kept.values())))
    rows = {setting: np.array([held[seed] for seed in shared], np.int64) for setting, held in kept.items()}
    return Images(frame, rows, flags.value_counts().to_dict(), lacking)


def eyes(images: Images, records: Records, k: int, level: float) -> Iterator[Eye]:
    """The settings as each instrument sees them."""
    table, reference = records["Guided"], records.get("Reference")
    n = len(next(iter(images.rows.values())))
    for name in _embedders(table) if n > 1 else ():
        reals = None if reference is None else _matrix(reference, name)
        reals = None if reals is None else reals[np.isfinite(reals).all(1)]
        seen = _matrix(table, name)
        sets = {setting: seen[rows] for setting, rows in images.rows.items()}
        frechet, raw = _frechet(sets, reals, level)
        tried = []
        for setting, rows in images.rows.items():
            at = images.frame.iloc[rows]
            scores = {**_neighbours(sets[setting], reals, k, level), **_words(at, name, level)}
            if setting in frechet:
                scores["frechet"] = frechet[setting]
            tried.append(Tried(setting, int(at["num_inference_steps"].iloc[0]), float(at["evaluations"].mean()), scores))
        yield Eye(name, n, 0 if reals is None else len(reals), tuple(tried), raw)


def comparisons(eye: Eye, level: float) -> list[Compared]:
    """Each guided setting against none; each interval against full guidance: of its own scale, of every scale, and at equal cost.

    Against several at once a setting is better if it is better than each of them: p is the largest, the difference that to the best.
    """
    plain = [one for one in eye.tried if one.guides == "none"]
    full, on, matched = ([one for one in eye.tried if one.guides == kind] for kind in ("full", "interval", "matched"))
    asked = [(UNGUIDED, one, plain) for one in (*full, *on)]
    for one in on:
        own = [other for other in matched if other.setting.matched == (one.setting.lo, one.setting.hi)]
        for among, same, every in ((full, SCALE, FULL), (own, SCALE_COST, FULL_COST)):
            asked += [(same, one, [other for other in among if other.setting.scale == one.setting.scale]), (every, one, among)]
    found = [
        _compared(one, others, objective, against, level)
        for against, one, others in asked
        for objective in OBJECTIVES
        if objective in one.scores and any(objective in other.scores for other in others)
    ]
    adjusted: list[Compared] = []
    for against in dict.fromkeys(one.against for one in found):
        family = [one for one in found if one.against == against]
        adjusted += [one._replace(adjusted=float(p)) for one, p in zip(family, holm([one.p for one in family]), strict=True)]
    return adjusted


def _compared(one: Tried, others: Sequence[Tried], objective: str, against: str, level: float) -> Compared:
    more = OBJECTIVES[objective]
    pairs = [(other, contrast(one.scores[objective].scored, other.scores[objective].scored, level=level)) for other in others]
    best, found = min(pairs, key=lambda pair: pair[1].value if more else -pair[1].value)
    if against not in (FULL, FULL_COST):
        return Compared(one, best, objective, against, found, found.p, found.p)
    values = [pair.p if pair.value != 0 and (pair.value > 0) == more else 1.0 for _, pair in pairs]
    p = float(np.max(values)) if np.isfinite([pair.p for _, pair in pairs]).all() else np.nan
    return Compared(one, best, objective, against, found, p, p)


def _frechet(sets: Mapping[Setting, Array], reals: Array | None, level: float) -> tuple[dict[Setting, Score], str | None]:
    """Of the populations where every set allows it, else of the images as they are: the two kinds do not compare."""
    if reals is None or len(reals) < 2:
        return {}, None
    try:
        found = {setting: frechet_scored(fakes, reals) for setting, fakes in sets.items()}
    except ValueError as error:
        empty = np.zeros(0)
        found = {setting: Scored(frechet_distance(fakes, reals), empty, empty, empty) for setting, fakes in sets.items()}
        return {setting: Score(one, Interval(one.value, np.nan, np.nan)) for setting, one in found.items()}, str(error)
    return {setting: Score(one, scored_interval(one, level=level)) for setting, one in found.items()}, None


def _neighbours(fakes: Array, reals: Array | None, k: int, level: float) -> dict[str, Score]:
    """Nothing where there are too few of either to have neighbours."""
    if reals is None or len(reals) <= max(k, DENSITY_K) or len(fakes) <= k:
        return {}
    found, n = neighbours_scored(fakes, reals, k=k, k_density=DENSITY_K), len(fakes)
    return {
        "precision": Score(found.precision, wilson_interval(round(found.precision.value * n), n, level=level)),
        "recall": Score(found.recall, share_interval(found.recall, len(reals), level=level)),
        "density": Score(found.density, bootstrap(found.density.rows, level=level)),
        "coverage": Score(found.coverage, share_interval(found.coverage, len(reals), level=level)),
    }


def _words(at: pd.DataFrame, embedder: str, level: float) -> dict[str, Score]:
    """Likeness and margin, where the instrument reads and there is another prompt."""
    found = {}
    for name in ("likeness", "margin"):
        values = at[f"{name}:{embedder}"].to_numpy(np.float64) if f"{name}:{embedder}" in at else np.full(1, np.nan)
        if np.isfinite(values).all():
            found[name] = Score(mean_scored(values), bootstrap(values, level=level))
    return found


def _embedders(table: pa.Table) -> list[str]:
    return [name.removeprefix(_FEATURE) for name in table.column_names if name.startswith(_FEATURE)]


def _matrix(table: pa.Table, embedder: str) -> Array:
    column = table[_FEATURE + embedder].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float64).reshape(len(table), -1)


def _setting(key: Sequence[float]) -> Setting:
    scale, lo, hi, matched_lo, matched_hi = (None if pd.isna(value) else float(value) for value in key[:5])
    assert scale is not None
    assert lo is not None
    return Setting(scale, lo, hi, None if matched_lo is None else (matched_lo, matched_hi))
