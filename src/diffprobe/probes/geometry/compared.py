"""The geometry as values a sample, for comparison with another run."""

from __future__ import annotations

import pandas as pd

from diffprobe.probes.base import Comparable, Records
from diffprobe.probes.geometry.tables import DESCRIPTORS, Wanted, groups, samples

_WORDS = {
    "psi": ("stretches space more than", "stretches space less than"),
    "nu": ("spreads its stretching over more directions than", "spreads its stretching over fewer directions than"),
    "delta": ("folds space more than", "folds space less than"),
}


def comparables(wanted: Wanted, records: Records) -> tuple[Comparable, ...]:
    """psi (a headline), nu and delta of each sample of every set; psi means the same only where its directions are the same."""
    found = []
    for group in groups(samples(records), wanted):
        rows = group.rows
        seeds = ["" if pd.isna(seed) else f" (seed {int(seed)})" for seed in rows["seed"]]
        units = [f"{one}{seed}" for one, seed in zip(rows["sample"], seeds, strict=True)]
        pictures = rows["picture"] if "picture" in rows else [None] * len(rows)
        kept = {unit: {"": str(picture)} for unit, picture in zip(units, pictures, strict=True) if isinstance(picture, str)}
        for column, title in DESCRIPTORS.items():
            values = {unit: float(value) for unit, value in zip(units, rows[column], strict=True)}
            shown = Comparable(
                column, f"{title} ({group.label})", "sample", values, *_WORDS[column], headline=column == "psi", facets=group.facets,
                pictures=kept,
            )  # fmt: skip
            found.append(shown)
    return tuple(found)
