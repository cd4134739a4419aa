"""The consistency in charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diffprobe.measures.consistency import Spread, expected_half_width, repetition_curve, spread
from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Axis, Chart
from diffprobe.probes.consistency.scored import ImageSet

_ENDS = 10  # prompts shown from either end
_BINS = 20
_FARTHEST = 5  # times the repetitions at hand: how far the planned precision is drawn
_EMBEDDER = Axis("embedder", "instrument")
_SCORE = Axis("scs", "SCS (points)")


def charts(found: Mapping[str, Sequence[ImageSet]], estimates: Sequence[Estimate], half_width: float, level: float) -> Iterator[Chart]:
    """How the prompts' scores are distributed, which are at the ends, what they depend on, and what more repetitions would bring."""
    scored = {embedder: [one for one in sets if one.score is not None] for embedder, sets in found.items()}
    if not any(scored.values()):
        return
    yield _distribution(scored)
    yield _ends(scored)
    yield from _traits(estimates)
    yield _settling(scored)
    yield _precision(scored, half_width, level)
    if len(scored) > 1:
        yield from _between(scored)


def _distribution(scored: Mapping[str, Sequence[ImageSet]]) -> Chart:
    values = {embedder: np.array([one.score.value for one in sets if one.score]) for embedder, sets in scored.items()}
    everything = np.concatenate(list(values.values()))
    lo, hi = float(everything.min()), float(everything.max())
    bins = min(_BINS, 2 + int(len(everything) ** 0.5))
    edges = np.linspace(lo, hi, bins + 1) if hi > lo else np.array([lo - 0.5, lo + 0.5])
    rows = [
        {"score": float((edges[i] + edges[i + 1]) / 2), "prompts": int(count), "embedder": embedder}
        for embedder, column in values.items()
        for i, count in enumerate(np.histogram(column, edges)[0])
    ]
    caption = "How many prompts have which score: one number a prompt, the mean cosine of all pairs of its images times 100."
    title = "The prompts' scores"
    return Chart(
        "distribution", title, caption, "line", tuple(rows), Axis("score", "SCS (points)"), Axis("prompts", "prompts"), series=_EMBEDDER
    )


def _ends(scored: Mapping[str, Sequence[ImageSet]]) -> Chart:
    first = next(iter(scored))
    ranked = sorted(scored[first], key=lambda one: one.score.value if one.score else 0)
    shown = ranked if len(ranked) <= 2 * _ENDS else [*ranked[:_ENDS], *ranked[-_ENDS:]]
    rows = []
    for one in shown:
        assert one.score is not None
        low, high = (end if np.isfinite(end) else None for end in (one.score.lo, one.score.hi))
        rows.append(
            {"prompt": one.prompt, "scs": one.score.value, "lo": low, "hi": high, "vendi": one.vendi.value, "images": len(one.seeds)}
        )
    which = "All prompts" if len(shown) == len(ranked) else f"The {_ENDS} least and the {_ENDS} most consistent prompts"
    caption = f"{which} by {first}; each interval is that of one prompt's score over its images."
    return Chart("prompts", "Prompts in order", caption, "interval", tuple(rows), Axis("prompt", "prompt"), _SCORE, lo="lo", hi="hi")


def _traits(estimates: Sequence[Estimate]) -> Iterator[Chart]:
    """Values of features, the surest ones first."""
    found = [e for e in estimates if e.quantity.startswith("scs_trait:") and e.value is not None and e.lo is not None]
    if not found:
        return
    first = found[0].quantity
    chosen = sorted((e for e in found if e.quantity == first), key=lambda e: float(e.facets["p_adjusted"]))[: 2 * _ENDS]
    rows = [
        {
            "trait": f"{e.facets['feature']}: {e.facets['level']}",
            "difference": e.value,
            "lo": e.lo,
            "hi": e.hi,
            "prompts": e.n,
            "p adjusted": e.facets["p_adjusted"],
        }
        for e in sorted(chosen, key=lambda e: e.value or 0.0)
    ]
    caption = (
        "Mean score of the prompts with this feature less that of all others; features go together, so none of these is a cause by itself."
    )
    x, y = Axis("trait", "feature"), Axis("difference", "difference in SCS (points)")
    yield Chart("traits", "What the score depends on", caption, "interval", tuple(rows), x, y, lo="lo", hi="hi")


def _settling(scored: Mapping[str, Sequence[ImageSet]]) -> Chart:
    """The score of growing subsets, for three prompts of the first instrument."""
    sets = next(iter(scored.values()))
    ranked = sorted(sets, key=lambda one: one.score.value if one.score else 0)
    chosen = list({one.text: one for one in (ranked[0], ranked[len(ranked) // 2], ranked[-1])}.values())
    curve = repetition_curve([one.embeddings for one in chosen])
    rows = [{"images": point.n, "scs": point.mean, "lo": point.lo, "hi": point.hi, "prompt": chosen[point.prompt].text} for point in curve]
    caption = (
        "The score of random subsets of the images at hand: their mean, which has no trend, and the middle 95 % of them. The band closes "
        "at the full number because there is one subset of that size; the next chart says what new images would bring."
    )
    x, series = Axis("images", "images of the prompt"), Axis("prompt", "prompt")
    return Chart("settling", "How the score settles", caption, "line", tuple(rows), x, _SCORE, lo="lo", hi="hi", series=series)


def _precision(scored: Mapping[str, Sequence[ImageSet]], half_width: float, level: float) -> Chart:
    """The expected half-width of a prompt's interval by the number of images, at the mean components of the prompts."""
    rows: list[dict[str, Any]] = []
    for embedder, sets in scored.items():
        parts = np.array([part for part in (spread(one.embeddings) for one in sets) if np.isfinite(part.z2)]).reshape(-1, 2)
        if not len(parts):
            continue
        average, most = Spread(*map(float, parts.mean(0))), max(len(one.seeds) for one in sets)
        for n in sorted({int(n) for n in np.geomspace(3, _FARTHEST * most, 24).round()}):
            rows.append({"images": n, "half_width": expected_half_width(n, average, level=level), "embedder": embedder})
    law = f"Expected half-width of the {level:.0%} interval of the score of a prompt of average spread, by the variance law of U-statistics"
    caption = f"{law}; {half_width:g} points are asked for."
    x, y = Axis("images", "images of the prompt", log=True), Axis("half_width", "half-width (points)", log=True)
    return Chart("precision", "What more repetitions bring", caption, "line", tuple(rows), x, y, series=_EMBEDDER)


def _between(scored: Mapping[str, Sequence[ImageSet]]) -> Iterator[Chart]:
    """Whether the instruments agree on which prompts are consistent."""
    (first, sets), *others = scored.items()
    base = {one.prompt: one.score.value for one in sets if one.score}
    rows = [
        {"prompt": one.text, first: base[one.prompt], "score": one.score.value, "embedder": embedder}
        for embedder, them in others
        for one in them
        if one.score and one.prompt in base
    ]
    caption = "Each point is a prompt. Instruments have scales of their own: what can be compared is the order."
    x, y = Axis(first, f"SCS by {first}"), Axis("score", "SCS by the other")
    yield Chart("instruments", "Do the instruments agree?", caption, "scatter", tuple(rows), x, y, series=_EMBEDDER)
