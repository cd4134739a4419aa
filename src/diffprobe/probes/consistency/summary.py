"""What the consistency probe concludes, from its records alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffprobe.measures.consistency import repetitions_for
from diffprobe.measures.stats import Estimate
from diffprobe.measures.stats.intervals import Interval, bootstrap
from diffprobe.measures.stats.variance import spread_interval
from diffprobe.probes.base import Card, Facets, Findings, Records, estimated
from diffprobe.probes.consistency.gallery import exhibits
from diffprobe.probes.consistency.pictures import charts
from diffprobe.probes.consistency.scored import ImageSet, asked, image_sets
from diffprobe.probes.consistency.traits import traits
from diffprobe.probes.consistency.verdicts import sentences

UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Wanted(NamedTuple):
    """What of a study's settings its summary needs: the confidence level, and the precision in points that is wished for."""

    level: float
    half_width: float


def summarise(wanted: Wanted, records: Records) -> Findings:
    """Everything that the report shows of the consistency; what is not measured yet is left out, what does not count is counted."""
    found = image_sets(records, wanted.level)
    if not found:
        why = "No instrument looked at the images: name one under `embedders`." if "Samples" in records else "Nothing is measured yet."
        return Findings((), verdicts=(why,))
    estimates: list[Estimate] = []
    cards: list[Card] = []
    prompts = asked(records)
    for embedder, sets in found.items():
        scored = [one for one in sets if one.score is not None]
        overall = {e.quantity: e for e in _overall(embedder, scored, wanted)}
        cards += _cards(embedder, scored, overall, wanted)
        estimates += overall.values()
        estimates += traits(embedder, scored, prompts, wanted.level)
        estimates += _each(embedder, sets)
    estimates += _counted(records, found)
    return Findings(
        tuple(estimates),
        tuple(sentences(found, estimates, wanted.half_width)),
        tuple(cards),
        tuple(charts(found, estimates, wanted.half_width, wanted.level)),
        tuple(exhibits(found)),
    )


def _overall(embedder: str, scored: Sequence[ImageSet], wanted: Wanted) -> Iterator[Estimate]:
    """The prompts as a whole: prompts are the units that are resampled."""
    scores = [one.score for one in scored if one.score is not None]
    values = np.array([score.value for score in scores])
    level, n = wanted.level, len(values)

    def told(quantity: str, interval: Interval, count: int = n, unit: str = "points") -> Estimate:
        return estimated("consistency", f"{quantity}:{embedder}", interval, count, {}, unit)

    def over(column: npt.ArrayLike, least: float = -100, most: float = 100) -> Interval:
        found = bootstrap(column, level=level) if n else UNKNOWN
        return Interval(found.value, max(found.lo, least), min(found.hi, most)) if math.isfinite(found.lo) else found

    yield told("scs", over(values))
    yield told("scs_median", bootstrap(values, np.median, level=level) if n > 2 else UNKNOWN)
    spread = spread_interval(values, level=level) if n > 1 else UNKNOWN
    yield told("scs_spread", spread)
    yield told("scs_clipped", over([score.clipped for score in scores], 0))
    yield told("vendi", over([one.vendi.value for one in scored], 1, math.inf), unit="images")
    luck = float(np.mean([score.se**2 for score in scores])) if n else np.nan
    yield told("scs_reliability", Interval(*(_share(end, luck) for end in spread)), unit="")
    needed = repetitions_for(wanted.half_width, [one.embeddings for one in scored], level=level)
    facets: Facets = {"half_width": wanted.half_width}
    reason = "no prompt has 4 images that count" if math.isnan(needed.value) else None
    counted = told("repetitions", needed, unit="images")
    yield replace(counted, facets=facets, reason=reason or counted.reason)


def _share(spread: float, luck: float) -> float:
    """The share of the spread of scores that is the prompts' own, and not the luck of the seeds, of which `luck` is the variance."""
    return min(max(1 - luck / spread**2, 0.0), 1.0) if spread > 0 else math.nan


def _each(embedder: str, sets: Sequence[ImageSet]) -> Iterator[Estimate]:
    """Each prompt by itself: images are the units."""
    for one in sets:
        facets: Facets = {"prompt": one.prompt}
        if one.score is None:
            why = f"{len(one.seeds)} of its images count: two are needed"
            yield Estimate("consistency", f"scs:{embedder}", None, None, None, len(one.seeds), "points", facets, why)
            continue
        typical = {"most_typical": one.seeds[one.order[0]], "least_typical": one.seeds[one.order[-1]]}
        score, n = one.score, len(one.seeds)
        yield estimated("consistency", f"scs:{embedder}", Interval(score.value, score.lo, score.hi), n, {**facets, **typical}, "points")
        yield estimated("consistency", f"scs_clipped:{embedder}", Interval(score.clipped, np.nan, np.nan), n, facets, "points")
        yield estimated("consistency", f"vendi:{embedder}", one.vendi, n, facets, "images")


def _counted(records: Records, found: dict[str, list[ImageSet]]) -> Iterator[Estimate]:
    """How many images there are, how many do not count, and why."""
    flags = records["Samples"]["flag"].to_pandas()
    yield Estimate("consistency", "samples", float(len(flags)), None, None, len(flags))
    for flag, number in flags.value_counts().items():
        yield Estimate("consistency", "flagged", float(number), None, None, len(flags), "", {"flag": str(flag)})
    for embedder, sets in found.items():
        number = sum(one.left_out for one in sets)
        if number:
            facets: Facets = {"flag": f"no embedding by {embedder}"}
            yield Estimate("consistency", "flagged", float(number), None, None, len(flags), "", facets)


def _cards(embedder: str, scored: Sequence[ImageSet], overall: dict[str, Estimate], wanted: Wanted) -> Iterator[Card]:
    counts = sorted({len(one.seeds) for one in scored})
    times = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}" if counts else "0"
    yield Card(
        f"semantic consistency ({embedder})", overall[f"scs:{embedder}"], f"mean over prompts, {times} images each; 100 is identical"
    )
    yield Card(f"spread of prompts ({embedder})", overall[f"scs_spread:{embedder}"], "standard deviation of the prompts' scores")
    yield Card(f"Vendi score ({embedder})", overall[f"vendi:{embedder}"], f"different images that the {times} of a prompt amount to")
    told = f"images for ±{wanted.half_width:g} points, of a prompt of average spread"
    yield Card(f"repetitions needed ({embedder})", overall[f"repetitions:{embedder}"], told)
