"""Which prompts the report shows: the least and the most consistent, and some between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffprobe.probes.base import Exhibit
from diffprobe.probes.consistency.scored import ImageSet

_PROMPTS = 12
_PICTURES = 8  # of a prompt


def exhibits(found: Mapping[str, Sequence[ImageSet]]) -> Iterator[Exhibit]:
    """A row of the gallery a prompt, from the least consistent to the most, by the first instrument; pictures by typicality."""
    sets = next(iter(found.values()), [])
    ranked = sorted(
        (one for one in sets if one.score is not None and any(one.pictures)), key=lambda one: one.score.value if one.score else 0
    )
    for place in np.unique(np.linspace(0, len(ranked) - 1, min(_PROMPTS, len(ranked))).round().astype(int)):
        one = ranked[place]
        assert one.score is not None
        label = (
            "least consistent" if place == 0 else "most consistent" if place == len(ranked) - 1 else f"rank {place + 1} of {len(ranked)}"
        )
        numbers: dict[str, float | str] = {f"SCS ({one.embedder})": one.score.value, "Vendi": one.vendi.value, "images": len(one.seeds)}
        yield Exhibit(label, f"“{one.text}”", one.strip(_PICTURES), numbers)
