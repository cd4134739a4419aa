"""The images of each prompt as sets of embeddings, and what each set scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffprobe.measures.consistency import Consistency, score, typicality
from diffprobe.measures.sets.diversity import subsample_interval, vendi_score
from diffprobe.measures.stats.intervals import Interval
from diffprobe.probes.base import Records
from diffprobe.probes.prompts import Prompt

Array = npt.NDArray[np.float64]
_FEATURE = "feature:"


@dataclass(frozen=True)
class ImageSet:
    """The unflagged images of one prompt that one instrument can tell something about: `embeddings` [R, D] belong to `seeds` [R].

    `prompt` is its id, `text` what the pipeline was given; `level` is that of its intervals.
    """

    prompt: str
    text: str
    embedder: str
    seeds: tuple[int, ...]
    embeddings: Array
    pictures: tuple[str | None, ...]
    left_out: int
    level: float

    @cached_property
    def score(self) -> Consistency | None:
        """None for fewer than two images."""
        return score(self.embeddings, level=self.level) if len(self.seeds) > 1 else None

    @cached_property
    def vendi(self) -> Interval:
        """The number of different images that the set amounts to, 1 to R; limits are nan for fewer than three."""
        if len(self.seeds) > 2:
            return subsample_interval(self.embeddings, level=self.level)
        return Interval(float(vendi_score(self.embeddings)) if self.seeds else np.nan, np.nan, np.nan)

    @cached_property
    def order(self) -> list[int]:
        """The images from the most typical to the least."""
        if len(self.seeds) < 2:
            return list(range(len(self.seeds)))
        return [int(i) for i in np.argsort(-typicality(self.embeddings), kind="stable")]

    def strip(self, count: int) -> dict[str, str]:
        """Pictures from the most typical image to the least, `count` of them, evenly spaced, by what to call them."""
        kept = [i for i in self.order if self.pictures[i] is not None]
        chosen = [kept[i] for i in np.unique(np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(int))] if kept else []
        names = {chosen[0]: "most typical, ", chosen[-1]: "least typical, "} if len(chosen) > 1 else {}
        return {f"{names.get(i, '')}seed {self.seeds[i]}": str(self.pictures[i]) for i in chosen}


def image_sets(records: Records, level: float = 0.95) -> dict[str, list[ImageSet]]:
    """By instrument, the sets of all prompts in the order of the records; nothing where nothing is measured.

    An image without an embedding to go by (zero, or not finite) is left out and counted.
    """
    if "Samples" not in records:
        return {}
    frame: pd.DataFrame = records["Samples"].to_pandas()
    found: dict[str, list[ImageSet]] = {name.removeprefix(_FEATURE): [] for name in map(str, frame) if name.startswith(_FEATURE)}
    for prompt, rows in frame.groupby("prompt_id", sort=False):
        sound = rows[rows["flag"].isna()].sort_values("seed")
        for name, sets in found.items():
            width = len(rows[_FEATURE + name].iloc[0])
            vectors = np.array(sound[_FEATURE + name].to_list(), np.float64).reshape(-1, width)
            usable = np.isfinite(vectors).all(1) & vectors.any(1)
            kept = sound[usable]
            pictures = tuple(str(picture) if isinstance(picture, str) else None for picture in kept["picture"])
            seeds, text = tuple(map(int, kept["seed"])), str(rows["prompt"].iloc[0])
            sets.append(ImageSet(str(prompt), text, name, seeds, vectors[usable], pictures, int((~usable).sum()), level))
    return found


def asked(records: Records) -> dict[str, Prompt]:
    """The study's prompts by their ids, in its order; none where they were not recorded."""
    rows = records["Asked"].to_pylist() if "Asked" in records else []
    pairs = ((row, tuple(zip(row["feature"], row["value"], strict=True))) for row in rows)
    return {row["prompt_id"]: Prompt(row["prompt_id"], row["prompt"], features) for row, features in pairs}
