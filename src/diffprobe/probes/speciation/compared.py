"""The speciation as values a seed, for comparison with another run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffprobe.probes.base import Comparable, Records
from diffprobe.probes.speciation.contests import contests
from diffprobe.probes.speciation.partitions import Partition

_EARLIER = ("decides “{}” at higher noise than", "decides “{}” at lower noise than")


def comparables(asked: Sequence[Partition], records: Records) -> tuple[Comparable, ...]:
    """Of every unguided partition, in sigma: the level of commitment where there is one, and the mean level of decision.

    Their means over seeds are those levels, to the first order in what a seed adds to the logarithm.
    """
    found = []
    for one in contests(asked, (), records):
        levels = {"mean_level": ("mean sigma at which “{}” is decided", one.mean_levels)}
        if np.isfinite(one.commitments).all():
            levels = {"commitment": ("sigma at which “{}” is half decided", one.commitments), **levels}
        for quantity, (title, logs) in levels.items():
            name, level = one.partition.name, float(np.exp(logs.mean()))
            values = {f"seed {seed}": level * (1 + float(log - logs.mean())) for seed, log in zip(one.seeds, logs, strict=True)}
            more, less = (words.format(name) for words in _EARLIER)
            shown = Comparable(quantity, title.format(name), "seed", values, more, less, "sigma", headline=True, facets={"partition": name})
            found.append(shown)
    return tuple(found)
