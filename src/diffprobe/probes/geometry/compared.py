"""The geometry as values a unit, for comparison with another run."""

from __future__ import annotations

import numpy as np
import pandas as pd

from diffprobe.probes.base import Comparable, Records
from diffprobe.probes.geometry.tables import DESCRIPTORS, Wanted, clustered, groups, samples

_WORDS = {
    "psi": ("stretches space more than", "stretches space less than"),
    "nu": ("spreads its stretching over more directions than", "spreads its stretching over fewer directions than"),
    "delta": ("folds space more than", "folds space less than"),
}


def comparables(wanted: Wanted, records: Records) -> tuple[Comparable, ...]:
    """psi (a headline), nu and delta of every set; psi means the same only where its directions are the same.

    Images and latents of noise are units themselves, as are the seeds of a single prompt. Of several prompts each is a unit, by its
    mean over seeds, which a seed without a value leaves undefined: another run's mean would be one of other seeds.
    """
    found = []
    for group in groups(samples(records), wanted):
        prompts, names = clustered(group.rows), _names(group.rows)
        pictures = group.rows["picture"] if "picture" in group.rows else [None] * len(names)
        kept: dict[str, dict[str, str]] = {}
        for unit, picture in zip(names, pictures, strict=True):
            if isinstance(picture, str):
                kept.setdefault(unit, {"": picture})  # a prompt's first
        for column, title in DESCRIPTORS.items():
            means = group.rows[column].groupby(np.array(names, object), sort=False).agg(lambda values: values.mean(skipna=False))
            shown = Comparable(
                column, f"{title} ({group.label})", "prompt" if prompts else "sample", {str(u): float(v) for u, v in means.items()},
                *_WORDS[column], headline=column == "psi", facets=group.facets, pictures=kept,
            )  # fmt: skip
            found.append(shown)
    return tuple(found)


def _names(rows: pd.DataFrame) -> list[str]:
    """What the unit of each row is called: its prompt where there are several with several seeds, else the sample with its seed."""
    if clustered(rows):
        return [str(one) for one in rows["sample"]]
    seeds = ["" if pd.isna(seed) else f" (seed {int(seed)})" for seed in rows["seed"]]
    return [f"{one}{seed}" for one, seed in zip(rows["sample"], seeds, strict=True)]
