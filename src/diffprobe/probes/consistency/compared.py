"""The consistency as values a prompt, for comparison with another run."""

from __future__ import annotations

from diffprobe.probes.base import Comparable, Records
from diffprobe.probes.consistency.scored import ImageSet, image_sets

_SHOWN = 4  # pictures of a prompt


def comparables(records: Records) -> tuple[Comparable, ...]:
    """SCS in points (a headline) and Vendi score of each prompt, in every instrument."""
    found = []
    for embedder, sets in image_sets(records).items():
        scores = {one.prompt: one.score.value for one in sets if one.score is not None}
        diversity = {one.prompt: one.vendi.value for one in sets if one.score is not None}
        found.append(
            Comparable(
                f"scs:{embedder}",
                f"semantic consistency ({embedder})",
                "prompt",
                scores,
                "is more consistent than",
                "is less consistent than",
                unit="points",
                better="higher",
                headline=True,
                pictures={one.prompt: _pictures(one) for one in sets},
            )
        )
        words = "gives more different images of a prompt than", "gives fewer different images of a prompt than"
        found.append(Comparable(f"vendi:{embedder}", f"Vendi score ({embedder})", "prompt", diversity, *words, unit="images"))
    return tuple(found)


def _pictures(one: ImageSet) -> dict[str, str]:
    """The first few seeds, which are the same in the other run."""
    kept = [(seed, picture) for seed, picture in zip(one.seeds, one.pictures, strict=True) if picture is not None]
    return {f"seed {seed}": picture for seed, picture in kept[:_SHOWN]}
