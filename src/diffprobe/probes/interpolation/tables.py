"""The records of an interpolation study as frames: what was inverted, what was mixed, and what was offset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from diffprobe.measures.interpolation import Alignment, Scheme
from diffprobe.probes.base import Records

Array = npt.NDArray[np.float64]
NAME = "interpolation"
#: Where latents come from, and what a reader knows them by.
ORIGINS = {
    "images": "inverted images",
    "generated": "inverted generated",
    "noised": "noised images",
    "noise": "pure noise",
}
FEATURE, DISTANCE = "feature:", "distance:"
_HEAVY = {"latent", "nothing", "nothing_shape"}


@dataclass(frozen=True)
class Wanted:
    """What of a study's settings its summary needs; `margin` is the rise of a cosine distance from which mixtures are called worse."""

    groups: tuple[str, ...]
    schemes: tuple[str, ...]
    sizes: tuple[int, ...]
    origins: tuple[str, ...]
    margin: float
    draws: int
    level: float


@dataclass(frozen=True, eq=False)
class Pool:
    """The latents of one group and origin that count, and how alike they are where that is measured."""

    group: str
    origin: str
    rows: pd.DataFrame
    alignment: Alignment | None


def frame(records: Records, name: str) -> pd.DataFrame:
    """The rows of a class of cells without their latents; empty where nothing is measured. A column without a value is one of numbers."""
    if name not in records:
        return pd.DataFrame()
    table = records[name].select([column for column in records[name].column_names if column not in _HEAVY])
    empty = [field.name for field in table.schema if pa.types.is_null(field.type)]
    found: pd.DataFrame = table.to_pandas()
    return found.astype({column: object if column in ("flag", "picture") else np.float64 for column in empty})


def sound(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that count."""
    return rows[rows["flag"].isna()] if len(rows) else rows


def column(rows: pd.DataFrame, name: str) -> Array:
    """A column of numbers, nan where there is none."""
    return rows[name].to_numpy(np.float64, na_value=np.nan) if name in rows else np.full(len(rows), np.nan)


def lists(rows: pd.DataFrame, name: str) -> Array:
    """A column of lists as rows [n, K]; those without one are left out."""
    kept = rows[name].dropna() if name in rows else []
    return np.stack([np.asarray(one, np.float64) for one in kept]) if len(kept) else np.zeros((0, 0))


def listed(rows: pd.DataFrame, wanted: tuple[str, ...], name: str) -> list[str]:
    """The values of a column, those of the study in its order, then any others."""
    there = [str(one) for one in rows[name].dropna().unique()] if len(rows) else []
    return [one for one in wanted if one in there] + [one for one in there if one not in wanted]


def embedders(rows: pd.DataFrame) -> list[str]:
    """The instruments that told a distance."""
    return [name.removeprefix(DISTANCE) for name in map(str, rows) if name.startswith(DISTANCE) and rows[name].notna().any()]


def vectors(rows: pd.DataFrame, embedder: str) -> Array:
    """The features [n, D] of rows that have usable ones: finite, and not all zero."""
    found = lists(rows, FEATURE + embedder)
    return found[np.isfinite(found).all(1) & found.any(1)] if found.size else found


def pools(inverted: pd.DataFrame, aligned: pd.DataFrame, wanted: Wanted) -> list[Pool]:
    """Every group at every origin, in the order of the study."""
    found = []
    for origin in listed(inverted, wanted.origins, "origin"):
        here = inverted[inverted["origin"] == origin]
        for group in listed(here, wanted.groups, "group"):
            own = aligned[(aligned["group"] == group) & (aligned["origin"] == origin)] if len(aligned) else aligned
            rows = sound(here[here["group"] == group])
            found.append(Pool(group, origin, _ordered(rows, own), _alignment(own)))
    return found


def spoken(scheme: str) -> str:
    """A scheme in a sentence, where "none" alone would be misread."""
    return "plain averaging (none)" if scheme == "none" else scheme


def plain(scheme: str) -> bool:
    """Whether a scheme leaves what all latents share where it is."""
    return Scheme.parse(scheme).mean == "none"


def _ordered(rows: pd.DataFrame, aligned: pd.DataFrame) -> pd.DataFrame:
    """The latents in the order in which they were aligned, where each has its name."""
    if not (len(aligned) == len(rows) == rows["image"].nunique() and set(aligned["image"]) == set(rows["image"])):
        return rows
    order = aligned.sort_values("index", kind="stable")["image"]
    return rows.set_index("image", drop=False).loc[list(order)].reset_index(drop=True)


def _alignment(rows: pd.DataFrame) -> Alignment | None:
    """None for fewer than three latents, which have no interval, and where rows are missing."""
    if len(rows) < 3:
        return None
    rows = rows.sort_values("index", kind="stable")
    if any(len(gram) != len(rows) for gram in rows["gram"]):
        return None
    gram, lowpass, channels = (lists(rows, name) for name in ("gram", "gram_lowpass", "channel_mean"))
    return Alignment(gram, lowpass, channels, int(rows["size"].iloc[0]), int(rows["area"].iloc[0]))
