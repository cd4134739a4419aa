"""The consistency in sentences: what a reader who reads nothing else should know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from diffprobe.measures.stats import Estimate
from diffprobe.probes.consistency.scored import ImageSet
from diffprobe.probes.consistency.traits import UNNAMED

_SURE = 0.05


def sentences(found: Mapping[str, Sequence[ImageSet]], estimates: Sequence[Estimate], half_width: float) -> Iterator[str]:
    """One sentence a finding, each with its numbers."""
    for embedder, sets in found.items():
        named = {e.quantity: e for e in estimates if "prompt" not in e.facets and e.quantity.endswith(f":{embedder}")}
        scored = [one for one in sets if one.score is not None]
        if not scored:
            yield f"No prompt has two images that count in the eyes of {embedder}: see the flags below."
            continue
        yield from _size(embedder, scored, named)
        yield from _ends(scored)
        yield from _clipped(scored, named[f"scs:{embedder}"], named[f"scs_clipped:{embedder}"])
        yield from _precision(scored, named[f"repetitions:{embedder}"], half_width)
        yield from _traits(embedder, estimates)
        yield from _same(scored)
    yield from _uncounted(estimates)


def _size(embedder: str, scored: Sequence[ImageSet], named: Mapping[str, Estimate]) -> Iterator[str]:
    mean, spread = named[f"scs:{embedder}"], named[f"scs_spread:{embedder}"]
    over = f", {_between(mean)} over {mean.n} prompts" if mean.lo is not None else " for the one prompt"
    between = f"; prompts differ with a standard deviation of {spread.value:.3g}" if spread.value is not None else ""
    yield f"Images of one prompt agree at {mean.value:.1f} of 100 points in the eyes of {embedder}{over}{between}."


def _ends(scored: Sequence[ImageSet]) -> Iterator[str]:
    if len(scored) < 2:
        return
    ranked = sorted(scored, key=lambda one: one.score.value if one.score else 0)
    told = []
    for one in (ranked[0], ranked[-1]):
        assert one.score is not None
        ends = f", {one.score.lo:.1f} to {one.score.hi:.1f}" if math.isfinite(one.score.lo) else ""
        told.append(f"“{one.text}” ({one.score.value:.1f}{ends}, {len(one.seeds)} images)")
    yield f"Least consistent is {told[0]}, most consistent {told[1]}."


def _clipped(scored: Sequence[ImageSet], mean: Estimate, clipped: Estimate) -> Iterator[str]:
    negative = sum(one.score.lowest_cosine < 0 for one in scored if one.score)
    if negative and mean.value is not None and clipped.value is not None:
        gain = clipped.value - mean.value
        told = f"{negative} of {len(scored)} prompts have images at a negative cosine"
        yield f"{told}; clipped at 0 as published, the mean is {gain:.2g} points higher."


def _precision(scored: Sequence[ImageSet], need: Estimate, half_width: float) -> Iterator[str]:
    widths = sorted((one.score.hi - one.score.lo) / 2 for one in scored if one.score and math.isfinite(one.score.lo))
    if need.value is None or not widths:
        return
    reach = "no interval" if need.lo is None or need.hi is None else f"{need.lo:.0f} to {need.hi:.0f}"
    yield (
        f"The score of the median prompt is known to ±{widths[len(widths) // 2]:.2g} points; ±{half_width:g} would take about "
        f"{need.value:.0f} images of a prompt of average spread ({reach})."
    )


def _traits(embedder: str, estimates: Sequence[Estimate]) -> Iterator[str]:
    """The surest feature that is sure at all."""
    found = [
        e for e in estimates if e.quantity == f"scs_trait:{embedder}" and e.value is not None and float(e.facets["p_adjusted"]) < _SURE
    ]
    if not found:
        return
    best = min(found, key=lambda e: (float(e.facets["p_adjusted"]), -abs(e.value or 0.0)))
    assert best.value is not None
    way = "more" if best.value > 0 else "less"
    feature, value = best.facets["feature"], best.facets["level"]
    which = f"that do not name a {feature}" if value == UNNAMED else f"with the {feature} “{value}”"
    ends = sorted(abs(end) for end in (best.lo, best.hi) if end is not None)
    reach = " to ".join(f"{end:.3g}" for end in ends)
    yield f"Prompts {which} are {way} consistent than the others by {abs(best.value):.2g} points ({reach}, {best.n} prompts)."


def _same(scored: Sequence[ImageSet]) -> Iterator[str]:
    same = [one for one in scored if one.score and one.score.value == 100]
    if same:
        more = f" and {len(same) - 1} more" if len(same) > 1 else ""
        yield f"All images of “{same[0].text}”{more} are one and the same to {same[0].embedder}: does the pipeline heed its seed?"


def _uncounted(estimates: Sequence[Estimate]) -> Iterator[str]:
    for e in estimates:
        if e.quantity == "flagged" and e.value:
            yield f"{e.value:.0f} of {e.n} images do not count: {e.facets['flag']}."


def _between(e: Estimate) -> str:
    return "no interval" if e.lo is None or e.hi is None else f"{e.lo:.3g} to {e.hi:.3g}"
