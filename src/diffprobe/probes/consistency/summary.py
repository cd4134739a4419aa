"""What the consistency probe concludes, from its records alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diffprobe.measures.consistency import Repetitions, repetitions_for
from diffprobe.measures.intervals import Interval, Statistic, bootstrap, mean
from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Card, Facets, Findings, Records, estimated
from diffprobe.probes.consistency.gallery import exhibits
from diffprobe.probes.consistency.pictures import charts
from diffprobe.probes.consistency.scored import ImageSet, features, image_sets
from diffprobe.probes.consistency.traits import traits
from diffprobe.probes.consistency.verdicts import sentences

Array = npt.NDArray[np.float64]


class Wanted(NamedTuple):
    """What of a study's settings its summary needs: the confidence level, and the precision in points that is wished for."""

    level: float
    half_width: float


def summarise(wanted: Wanted, records: Records) -> Findings:
    """Everything that the report shows of the consistency; what is not measured yet is left out, what does not count is counted."""
    found = image_sets(records)
    if not found:
        why = "No instrument looked at the images: name one under `embedders`." if "Samples" in records else "Nothing is measured yet."
        return Findings((), verdicts=(why,))
    estimates: list[Estimate] = []
    cards: list[Card] = []
    needs: dict[str, Repetitions] = {}
    asked = features(records)
    for embedder, sets in found.items():
        scored = [one for one in sets if one.score is not None]
        needs[embedder] = repetitions_for(wanted.half_width, [one.embeddings for one in scored], level=wanted.level)
        overall = {e.quantity: e for e in _overall(embedder, scored, needs[embedder], wanted)}
        cards += _cards(embedder, scored, overall, wanted)
        estimates += overall.values()
        estimates += traits(embedder, scored, asked, wanted.level)
        estimates += _each(embedder, sets)
    estimates += _counted(records, found)
    return Findings(
        tuple(estimates),
        tuple(sentences(found, estimates, wanted.half_width)),
        tuple(cards),
        tuple(charts(found, estimates, wanted.half_width)),
        tuple(exhibits(found)),
    )


def _overall(embedder: str, scored: Sequence[ImageSet], needs: Repetitions, wanted: Wanted) -> Iterator[Estimate]:
    """The prompts as a whole: prompts are the units that are resampled."""
    scores = [one.score for one in scored if one.score is not None]
    values = np.array([score.value for score in scores])

    def over(quantity: str, data: npt.ArrayLike, statistic: Statistic = mean, unit: str = "points") -> Estimate:
        column, fewest = np.asarray(data, np.float64), 1 if statistic is mean else 3
        if len(column) < fewest:
            told = f"{len(column)} prompts count: {fewest} are needed"
            return Estimate("consistency", f"{quantity}:{embedder}", None, None, None, len(column), unit, reason=told)
        return estimated("consistency", f"{quantity}:{embedder}", bootstrap(column, statistic, level=wanted.level), len(column), {}, unit)

    yield over("scs", values)
    yield over("scs_median", values, np.median)
    yield over("scs_spread", values, _deviation)
    yield over("scs_clipped", [score.clipped for score in scores])
    yield over("vendi", [one.vendi.value for one in scored], unit="images")
    known = np.array([(score.value, score.se**2) for score in scores if np.isfinite(score.se)]).reshape(-1, 2)
    yield over("scs_reliability", known, reliability, unit="")
    each = np.array([n for n in needs.each if n is not None], np.float64)
    facets: Facets = {"half_width": wanted.half_width}
    reason = None if len(each) else "no prompt has 4 images that count"
    half = over("repetitions", each, np.median, "images")
    yield replace(half, facets=facets, reason=reason or half.reason)
    worst = None if needs.worst is None else float(needs.worst)
    yield Estimate("consistency", f"repetitions_worst:{embedder}", worst, None, None, len(each), "images", facets, reason)


def reliability(values: Array, /, *, axis: int) -> Array:
    """The share of the spread of scores that is the prompts' own, not the luck of the seeds: of [R, prompts, (score, se^2)] to [R]."""
    total = values[..., 0].var(axis, ddof=1)
    luck = values[..., 1].mean(axis)
    return np.asarray(np.clip(1 - np.divide(luck, total, out=np.ones_like(total), where=total > 0), 0, 1))


def _deviation(values: Array, /, *, axis: int) -> Array:
    return np.asarray(values.std(axis, ddof=1))


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
    told = f"images a prompt for ±{wanted.half_width:g} points, for half of the prompts"
    yield Card(f"repetitions needed ({embedder})", overall[f"repetitions:{embedder}"], told)
