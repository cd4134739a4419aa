"""The interpolation as values a unit, for comparison with another run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from diffprobe.probes.base import Comparable, Facets, Records
from diffprobe.probes.interpolation.evidence import Evidence
from diffprobe.probes.interpolation.signatures import ERRORS
from diffprobe.probes.interpolation.tables import Array, Wanted, column

#: The scheme whose distances are a headline, where the study has it; else its first that keeps the length of noise.
_USUAL = "nin/channel"
_NEARER = ("keeps mixtures by {} farther from their group than", "keeps mixtures by {} nearer to their group than")
_ERROR = ("inverts {} less exactly than", "inverts {} more exactly than")
_SHARED = ("has latents that share more power than", "has latents that share less power than")


def comparables(wanted: Wanted, records: Records) -> tuple[Comparable, ...]:
    """The error of inversion an image, the distance of mixtures a draw, the shared power a group; nothing where nothing is measured."""
    found = Evidence(wanted, records)
    if found.empty:
        return ()
    return tuple(one for one in (*_errors(found), *_distances(found), *_shared(found)) if one.values)


def _errors(found: Evidence) -> Iterator[Comparable]:
    for name, what in ERRORS.items():
        values, pictures = dict[str, float](), dict[str, dict[str, str]]()
        for pool in found.pools:
            if pool.origin == "images":
                for place, value in enumerate(column(pool.rows, name)):
                    row = pool.rows.iloc[place]
                    if np.isfinite(value):
                        values[f"{pool.group}: {row['image']}"] = float(value)
                        if isinstance(row.get("picture"), str):
                            pictures[f"{pool.group}: {row['image']}"] = {"": row["picture"]}
        more, less = (words.format(what) for words in _ERROR)
        yield Comparable(
            name, f"error of inversion ({what})", "image", values, more, less,
            better="lower", headline=name == "reconstruction_pixels", pictures=pictures,
        )  # fmt: skip


def _distances(found: Evidence) -> Iterator[Comparable]:
    """Over all N, a headline for one scheme, and at each: draws of one name mix latents of the same images in both runs.

    The draw is the unit, since what it mixes at one N is a part of what it mixes at the next.
    """
    if found.main is None:
        return
    there = set(found.main.rows["scheme"])
    schemes = [one for one in found.wanted.schemes if one in there]
    leading = next((one for one in (_USUAL, *schemes) if one in schemes and one != "none"), None)
    for place, embedder in enumerate(found.embedders):
        table = found.distance_of(found.main, embedder)
        if table is None:
            continue
        for scheme in schemes:
            pictures = _pictures(found.main.rows[found.main.rows["scheme"] == scheme])
            facets: Facets = {"scheme": scheme, "embedder": embedder}
            more, less = (words.format(scheme) for words in _NEARER)
            title, sizes = f"distance of mixtures by {scheme} ({embedder})", table.sizes(scheme)
            headline = place == 0 and scheme == leading
            over = _named(table.units, np.mean([table.of(scheme, n) for n in sizes], 0) if sizes else np.zeros(0))
            yield Comparable(
                "distance_over_n", title, "draw", over, more, less, better="lower", headline=headline, facets=facets, pictures=pictures
            )
            for n in sizes:
                at: Facets = {**facets, "n": n}
                named = _named(table.units, table.of(scheme, n))
                yield Comparable("distance", f"{title}, N = {n}", "draw", named, more, less, better="lower", facets=at)


def _named(units: Sequence[tuple[str, int]], values: Array) -> dict[str, float]:
    return {_name(*unit): float(value) for unit, value in zip(units, values, strict=False) if np.isfinite(value)}


def _pictures(rows: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The mixtures of each draw, from the fewest latents to the most."""
    found: dict[str, dict[str, str]] = {}
    for row in rows.sort_values("n", kind="stable").to_dict("records"):
        if isinstance(row.get("picture"), str):
            found.setdefault(_name(row["group"], row["draw"]), {})[f"N = {int(row['n'])}"] = row["picture"]
    return found


def _name(group: str, draw: int) -> str:
    return f"{group}, draw {int(draw)}"


def _shared(found: Evidence) -> Iterator[Comparable]:
    for one in found.shared:
        if one.origin == "images":
            values = {group: float(told.total.value) for group, told in one.groups.items()}
            yield Comparable("shared_total", "shared power of inverted images", "group", values, *_SHARED)
