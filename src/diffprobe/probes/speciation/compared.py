"""The speciation as values a seed, for comparison with another run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffprobe.probes.base import Comparable, Records
from diffprobe.probes.speciation.contests import contests
from diffprobe.probes.speciation.partitions import Partition

_LATE = ("decides “{}” at higher noise than", "decides “{}” at lower noise than")
_OPEN = ("leaves “{}” open for longer than", "leaves “{}” open for less long than")


def comparables(asked: Sequence[Partition], records: Records) -> tuple[Comparable, ...]:
    """Of every unguided partition: ln sigma of the level of commitment where there is one, and the mean entropy over the steps."""
    found = []
    for one in contests(asked, (), records):
        name, seeds = one.partition.name, [f"seed {seed}" for seed in one.seeds]
        if np.isfinite(one.commitments).all():
            more, less = (words.format(name) for words in _LATE)
            values = dict(zip(seeds, one.commitments.tolist(), strict=True))
            title = f"ln sigma at which “{name}” is half decided"
            facets = {"partition": name}
            found.append(Comparable("commitment", title, "seed", values, more, less, "ln sigma", headline=True, facets=facets))
        more, less = (words.format(name) for words in _OPEN)
        values = dict(zip(seeds, one.posterior.mean(1).tolist(), strict=True))
        title = f"mean entropy of “{name}” over the steps"
        found.append(Comparable("mean_entropy", title, "seed", values, more, less, "nats", headline=True, facets={"partition": name}))
    return tuple(found)
