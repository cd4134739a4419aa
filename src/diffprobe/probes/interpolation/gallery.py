"""Which mixtures the report shows: a strip over N a group and scheme, the farthest from their group, and what offsets do."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from diffprobe.probes.base import Exhibit
from diffprobe.probes.interpolation.evidence import Evidence
from diffprobe.probes.interpolation.moved import PLACES
from diffprobe.probes.interpolation.tables import DISTANCE, column, listed, sound

_STRIPS, _WORST, _OFFSETS = 24, 6, 4
_IMAGES = 8


def exhibits(found: Evidence) -> Iterator[Exhibit]:
    """The images of each group, the strips of its schemes below them, the worst of all mixtures, and the offsets of some seeds."""
    rows = _shown(found.main.rows) if found.main is not None else pd.DataFrame()
    strips = 0
    for group in listed(rows, found.wanted.groups, "group") if len(rows) else []:
        yield from _originals(found, group)
        own = rows[rows["group"] == group]
        for scheme in listed(own, found.wanted.schemes, "scheme"):
            if strips < _STRIPS:
                strips += 1
                yield _strip(found, group, scheme, own[own["scheme"] == scheme])
    if len(rows) and found.embedders:
        yield from _worst(rows, found.embedders[0])
    if len(found.offset):
        yield from _offsets(found)


def _originals(found: Evidence, group: str) -> Iterator[Exhibit]:
    for pool in found.pools:
        if pool.group == group and pool.origin == "images" and len(pool.rows):
            kept = _shown(pool.rows).head(_IMAGES)
            if len(kept):
                yield Exhibit(
                    group, "Some of the images that are mixed", {str(row["image"]): str(row["picture"]) for _, row in kept.iterrows()}
                )


def _strip(found: Evidence, group: str, scheme: str, rows: pd.DataFrame) -> Exhibit:
    """The first draw that has the most sizes, from the fewest latents to the most."""
    counts = rows.groupby("draw")["n"].nunique()
    draw = counts[counts == counts.max()].index.min()
    strip = rows[rows["draw"] == draw].drop_duplicates("n").sort_values("n")
    pictures = {f"N = {int(row['n'])}": str(row["picture"]) for _, row in strip.iterrows()}
    numbers: dict[str, float | str] = {}
    if found.embedders:
        told = column(strip, DISTANCE + found.embedders[0])
        numbers = {f"distance at N = {int(n)}": float(value) for n, value in zip(strip["n"].iloc[[0, -1]], told[[0, -1]], strict=True)}
    return Exhibit(f"{group}: {scheme}", f"Mixtures of more and more latents; draw {int(draw)}", pictures, numbers)


def _worst(rows: pd.DataFrame, embedder: str) -> Iterator[Exhibit]:
    told = rows.assign(distance=column(rows, DISTANCE + embedder)).dropna(subset=["distance"])
    worst = told.sort_values("distance", ascending=False, kind="stable").head(_WORST)
    if len(worst) > 1:
        pictures = {
            f"{row['distance']:.3g} · {row['scheme']}, N = {int(row['n'])}, {row['group']}": str(row["picture"])
            for _, row in worst.iterrows()
        }
        yield Exhibit(
            "farthest from their group", f"The mixtures with the largest distance ({embedder}), of those with a picture", pictures
        )


def _offsets(found: Evidence) -> Iterator[Exhibit]:
    rows, number = _shown(sound(found.offset)), 0
    for (group, seed), own in rows.groupby(["group", "seed"], sort=False):
        for at, told in PLACES.items():
            here = own[own["at"] == at].drop_duplicates("offset").sort_values("offset")
            if len(here) > 1 and number < 2 * _OFFSETS:
                number += 1
                pictures = {f"{row['offset']:g}": str(row["picture"]) for _, row in here.iterrows()}
                yield Exhibit(f"offset {told}", f"{group}, seed {int(seed)}; the top quarter of two channels is offset", pictures)


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with a picture."""
    if "picture" not in rows:
        return rows.iloc[:0]
    kept: pd.DataFrame = rows[rows["picture"].map(lambda one: isinstance(one, str)).astype(bool)]
    return kept
