"""The drift as values an image, for comparison with another run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from diffprobe.probes.base import Comparable, Records
from diffprobe.probes.drift.slices import Array, Slice

#: A metric to whether more of it is less drift.
LIKENESS = {"psnr", "ssim", "gradient_similarity"}
_DRIFT = ("drifts more than", "drifts less than")


def comparables(parts: Sequence[Slice], metrics: Sequence[str], records: Records) -> Iterator[Comparable]:
    """The headline numbers of the main setting, then every metric at every level of every setting; no likeness to a text is better."""
    if not parts:
        return
    main, pictures = parts[0], _pictures(parts[0], records)
    top = float(main.levels.index[-1])
    yield _one(main, "mse", top, {}, pictures)
    yield _one(main, "psnr", top, {}, {})
    slopes = _slopes(main)
    if slopes:
        told = _DRIFT[0].replace("more", "more for each step in strength²"), _DRIFT[1].replace("less", "less for each step in strength²")
        yield Comparable("k", "drift kernel k", "image", slopes, *told, better="lower", headline=True)
    for part in parts:
        for metric in metrics:
            for strength in map(float, part.levels.index):
                yield _one(part, metric, strength, {**part.setting, "strength": strength}, {})


def _one(
    part: Slice, metric: str, strength: float, facets: Mapping[str, str | float], pictures: Mapping[str, Mapping[str, str]]
) -> Comparable:
    column = part.matrix(metric)[:, list(part.levels.index).index(strength)]
    values = _named(part, column)
    if metric == "psnr" and len(set(changed(part, strength))) > 1:
        values = {}  # some are infinite, and the mean of the others is that of a chosen few
    better: Literal["higher", "lower"] | None
    if metric.startswith("text_"):
        more, less, better = f"has more {metric} than", f"has less {metric} than", None
    else:
        more, less = reversed(_DRIFT) if metric in LIKENESS else _DRIFT
        better = "higher" if metric in LIKENESS else "lower"
    unit = "dB" if metric == "psnr" else ""
    title = f"{metric} at strength {strength:g}"
    return Comparable(
        metric, title, "image", values, more, less, unit=unit, better=better, headline=not facets, facets=facets, pictures=pictures
    )


def changed(part: Slice, strength: float) -> tuple[int, int]:
    """How many edits at a strength changed anything, and how many count; the others' likeness is infinite, and null in the records."""
    rows = part.rows[part.rows["requested_strength"] == strength]
    return int(rows["psnr"].notna().sum()), int(rows["mse"].notna().sum())


def _slopes(main: Slice) -> dict[str, float]:
    """The slope of each image's error on the square of the strength; their mean is the slope of the mean error where none is missing."""
    levels, errors = main.kernel("mse")
    x = np.square(levels.strength)
    if len(x) < 3:
        return {}
    x = x - x.mean()
    return _named(main, errors @ x / (x @ x))


def _named(part: Slice, column: Array) -> dict[str, float]:
    names = sorted(part.rows["image"].unique())  # a pivot's own order
    return {str(name): float(value) for name, value in zip(names, column, strict=True) if np.isfinite(value)}


def _pictures(main: Slice, records: Records) -> dict[str, dict[str, str]]:
    """Each image and its edits at the strongest strength, where the run kept them."""
    before = records["Originals"].to_pandas().dropna(subset=["picture"]).drop_duplicates("image").set_index("image")["picture"]
    top = main.rows[main.rows["requested_strength"] == main.levels.index[-1]].dropna(subset=["picture"])
    shown: pd.DataFrame = top[top["image"].isin(before.index)].drop_duplicates("image")
    return {str(row["image"]): {"original": before[row["image"]], "edited": row["picture"]} for _, row in shown.iterrows()}
