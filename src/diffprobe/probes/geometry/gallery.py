"""Which samples the report shows: those with the lowest and the highest descriptors of every set, and a walk over each slice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diffprobe.probes.base import Exhibit
from diffprobe.probes.geometry.evidence import Evidence
from diffprobe.probes.geometry.tables import DESCRIPTORS, Group

_PICTURES = 8
_GROUPS = 8


def exhibits(found: Evidence) -> Iterator[Exhibit]:
    """A row a set and descriptor, from the lowest to the highest; then the anchors and the pictures of each slice by psi."""
    last = found.last
    shown = [one for one in found.groups if one.checkpoint == last and "picture" in one.rows][:_GROUPS]
    for group in shown:
        for column, title in DESCRIPTORS.items():
            yield from _ranked(group, column, title)
    anchors = found.records["Anchors"].to_pylist() if "Anchors" in found.records else []
    for name, checkpoint, _, points in found.surfaces:
        if checkpoint not in (None, last):
            continue
        corners = {row["anchor"]: row["picture"] for row in anchors if row["slice"] == name and isinstance(row["picture"], str)}
        if corners:
            yield Exhibit(f"{name}: the anchors", "The three samples that span the slice", corners)
        if "picture" in points:
            yield from _ranked(Group(name, checkpoint, None, points), "psi", DESCRIPTORS["psi"])


def _ranked(group: Group, column: str, title: str) -> Iterator[Exhibit]:
    """The ends of the set's order, half the pictures from each."""
    rows = group.rows[group.rows[column].notna() & group.rows["picture"].map(lambda one: isinstance(one, str))]
    rows = rows.sort_values(column, kind="stable")
    if len(rows) < 2:
        return
    half = _PICTURES // 2
    places = np.arange(len(rows)) if len(rows) <= _PICTURES else np.r_[0:half, len(rows) - half : len(rows)]
    chosen = rows.iloc[places]
    names = {
        f"{value:.4g} · {index + 1}": str(picture)
        for index, (value, picture) in enumerate(zip(chosen[column], chosen["picture"], strict=True))
    }
    numbers: dict[str, float | str] = {
        "lowest": float(chosen[column].iloc[0]),
        "highest": float(chosen[column].iloc[-1]),
        "samples": len(rows),
    }
    told = "From the lowest to the highest" if len(rows) <= _PICTURES else f"The {half} lowest and the {half} highest"
    if len(rows) < group.rows[column].count():
        told += f" of the {len(rows)} with a picture"
    yield Exhibit(f"{group.label}: by {title}", told, names, numbers)
