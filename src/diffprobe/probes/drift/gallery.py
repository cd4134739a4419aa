"""Which edits the report shows: the worst, the median, the best, and some at random, of each strength's changes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from diffprobe import rng
from diffprobe.probes.base import Exhibit, Records
from diffprobe.probes.drift.slices import LOOKS

_RANDOM = 4


def exhibits(edits: pd.DataFrame, records: Records) -> Iterator[Exhibit]:
    """A row of the gallery each, from the strongest strength of the main setting whose pictures were kept."""
    originals = records["Originals"].to_pandas().dropna(subset=["picture"]).drop_duplicates("image").set_index("image")["picture"]
    shown = edits.dropna(subset=["picture", "mse"])
    shown = shown[shown["image"].isin(originals.index)]
    if shown.empty:
        return
    shown = shown[shown["requested_strength"] == shown["requested_strength"].max()].sort_values("mse", ignore_index=True)
    places = {"best": 0, "median": len(shown) // 2, "worst": len(shown) - 1}
    others = [i for i in range(len(shown)) if i not in places.values()]
    drawn: list[int] = rng.stream("drift.gallery", 0).permutation(others)[:_RANDOM].tolist() if others else []
    for label, place in [
        ("worst", places["worst"]),
        ("median", places["median"]),
        ("best", places["best"]),
        *(("random", int(i)) for i in drawn),
    ]:
        row = shown.loc[place]
        names = {"mse": "MSE", "psnr": "PSNR (dB)", "ssim": "SSIM", "strength": "strength"}
        names |= {name: f"distance ({name.removeprefix('cosine:')})" for name in shown if name.startswith(LOOKS)}
        numbers: dict[str, float | str] = {told: float(row[name]) for name, told in names.items() if np.isfinite(row[name])}
        prompt = f"“{row['prompt']}”" if row["prompt"] else "the empty prompt"
        pictures = {"original": originals[row["image"]], "edited": row["picture"]}
        yield Exhibit(label, f"{row['image']}, {row['domain']}; {prompt}", pictures, numbers, contrast=True)
