"""The interpolation in charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from diffprobe.measures.interpolation import Scheme
from diffprobe.probes.base import Axis, Chart
from diffprobe.probes.interpolation.bias import PARTS, Law
from diffprobe.probes.interpolation.evidence import Evidence, Eye
from diffprobe.probes.interpolation.moved import PLACES
from diffprobe.probes.interpolation.origins import LAW
from diffprobe.probes.interpolation.scores import Scored
from diffprobe.probes.interpolation.strata import Told
from diffprobe.probes.interpolation.tables import DISTANCE, ORIGINS

_COLOURS = 8  # series that a chart can tell apart
_PANELS = 6
_N = Axis("n", "N, latents in a mixture", log=True)
_SCHEME = Axis("scheme", "scheme")
_CHANNELS = 4
#: Lines to read the schemes by.
_ORIGINALS, _FRESH = "the images themselves", "fresh noise"
#: What a scheme mixes plainly, in a panel's heading.
_APART = {"none": "nothing", "global": "a common mean", "channel": "channel means", "lowpass": "low frequencies"}


def charts(found: Evidence) -> Iterator[Chart]:
    """How far mixtures are from their group, how sharp; what schemes do to the common offset, its law, where it is; spectra; offsets."""
    for eye in found.eyes[:1]:
        yield _distance(eye)
    if found.sharpness is not None:
        yield _sharpness(found.sharpness, found.fresh_sharpness)
    for eye in found.eyes[:1]:
        yield from _kernel(eye)
    if found.spread is not None:
        yield _gain(found.spread)
    yield from _law(found.laws)
    yield from _bias(found)
    yield from _spectrum(found)
    yield from _offsets(found)


def _distance(eye: Eye) -> Chart:
    references = {_ORIGINALS: eye.originals, _FRESH: eye.fresh}
    caption = (
        "The cosine distance of mixtures from the mean embedding of their group's images, a mean over groups. Blander pictures lie nearer "
        "to a mean: read it with the sharpness below. Dashed: the images themselves, and what the model makes of fresh noise."
    )
    y = Axis("value", f"cosine distance ({eye.embedder})")
    return _over_n("distance", "How far mixtures are from their group", caption, eye.distance, y, references)


def _sharpness(table: Scored, fresh: Told | None) -> Chart:
    caption = (
        "The mean squared gradient of the pictures, in that of their group's images: below 1 details are washed out, above it there is "
        "grain. Dashed: what the model makes of fresh noise."
    )
    y = Axis("value", "sharpness, in that of the images")
    return _over_n("sharpness", "How sharp mixtures are", caption, table, y, {_FRESH: fresh})


def _gain(table: Scored) -> Chart:
    caption = (
        "The channel means of the mixtures' latents along those that the group's latents have in common: 1 is the images' own offset, and "
        "what lies above has been amplified."
    )
    return _over_n("offset_gain", "What each scheme makes of the common offset", caption, table, Axis("value", "times the images' own"), {})


def _over_n(name: str, title: str, caption: str, table: Scored, y: Axis, references: dict[str, Told | None]) -> Chart:
    """A line a scheme, and level ones to read them by in every panel."""
    known = {name: told for name, told in references.items() if told is not None}
    ends = sorted({n for scheme in table.schemes for n in table.sizes(scheme)})
    rows = [{"n": n, "scheme": scheme, **_interval(table.mean(scheme, n))} for scheme in table.schemes for n in table.sizes(scheme)]
    curves = [{"n": n, "scheme": name, "value": told.interval.value} for name, told in known.items() for n in (ends[0], ends[-1])]
    drawn = Chart(name, title, caption, "line", tuple(rows), _N, y, lo="lo", hi="hi", series=_SCHEME, curves=tuple(curves))
    return _panelled(drawn, len(known))


def _panelled(chart: Chart, references: int) -> Chart:
    """The chart with a panel for each part that is set apart, where its schemes are too many for one."""
    schemes = list(dict.fromkeys(str(row["scheme"]) for row in chart.rows))
    if len(schemes) + references <= _COLOURS:
        return chart
    parsed = {scheme: Scheme.parse(scheme) for scheme in schemes}
    panels = list(dict.fromkeys(_APART[one.mean] for one in parsed.values()))
    rows = [{**row, "norm": parsed[row["scheme"]].norm, "apart": _APART[parsed[row["scheme"]].mean]} for row in chart.rows]
    curves = [{**row, "norm": row["scheme"], "apart": panel} for row in chart.curves for panel in panels]
    ordered = sorted(rows, key=lambda row: panels.index(row["apart"]))
    return replace(chart, rows=tuple(ordered), curves=tuple(curves), series=Axis("norm", "norm"), facet=Axis("apart", "set apart"))


def _kernel(eye: Eye) -> Iterator[Chart]:
    rows = [
        {"n": one.size, "scheme": one.scheme, "value": one.kernel.value, "lo": _finite(one.kernel.lo), "hi": _finite(one.kernel.hi)}
        for one in eye.likenesses
    ]
    if rows:
        caption = (
            "The squared kernel distance of mixtures from their group's images as sets, without bias, a mean over groups: it sees what is "
            "missing in the variety of mixtures too, which a distance from the mean does not."
        )
        y = Axis("value", f"kernel distance ({eye.embedder})")
        title = "How unlike their group mixtures are as a set"
        drawn = Chart("kernel", title, caption, "line", tuple(rows), _N, y, lo="lo", hi="hi", series=_SCHEME, guide="zero")
        yield _panelled(drawn, 0)


def _law(laws: Sequence[Law]) -> Iterator[Chart]:
    """The channels that are amplified most, in the groups that fit on a page."""
    shown = laws[:_PANELS]
    if not shown:
        return
    channels = np.nanmax(
        [np.abs(one.found.observed[-1]) for one in shown if one.found.observed.shape[1] == shown[0].found.observed.shape[1]], 0
    )
    chosen = sorted(np.argsort(-channels, kind="stable")[:_CHANNELS].tolist())
    rows, curves = list[dict[str, Any]](), list[dict[str, Any]]()
    for one in shown:
        for place, n in enumerate(one.found.sizes):
            for channel in chosen:
                at = {"n": n, "channel": f"channel {channel}", "group": one.group}
                value, lo, hi = (_finite(part[place, channel]) for part in (one.found.observed, one.found.lo, one.found.hi))
                rows.append({**at, "value": value, "lo": lo, "hi": hi})
                curves.append({**at, "value": _finite(one.found.foretold[place, channel])})
    caption = (
        "The channel means of centroids brought to the length of noise (the scheme fix), from the images' inner products alone, over "
        f"random subsets; dashed is the saturating law {LAW} with the shared power b² and the latents' power P as measured, nothing fitted."
    )
    facet = Axis("group", "group") if len(shown) > 1 else None
    y, series, drawn = Axis("value", "channel mean of the centroid"), Axis("channel", "channel"), tuple(curves)
    title = "The law of amplification"
    yield Chart("law", title, caption, "line", tuple(rows), _N, y, lo="lo", hi="hi", series=series, facet=facet, curves=drawn, guide="zero")


def _bias(found: Evidence) -> Iterator[Chart]:
    rows = []
    for one in found.shared:
        parts = {
            "all of it": one.mean.total,
            **{told: getattr(one.mean, f"{name}_" if name == "global" else name) for name, told in PARTS.items()},
        }
        if one.leak is not None:
            parts["foretold leak"] = one.leak
        for part, (value, lo, hi) in parts.items():
            rows.append(
                {
                    "origin": ORIGINS.get(one.origin, one.origin),
                    "part": part,
                    "value": value,
                    "lo": _finite(lo),
                    "hi": _finite(hi),
                    "latents": one.n,
                }
            )
    if rows:
        caption = (
            "The mean product of two latents of a group, in the power of pure noise, and how much of it each correction can take out; a "
            "mean over groups. Independent noise shares nothing; the leak is what the noisiest level is foretold to keep of channel means."
        )
        x, y = Axis("origin", "latents"), Axis("value", "shared power b²")
        series = Axis("part", "part")
        yield Chart("shared", "What latents share", caption, "interval", tuple(rows), x, y, lo="lo", hi="hi", series=series, guide="zero")


def _spectrum(found: Evidence) -> Iterator[Chart]:
    bands = [one for one in found.traits if one.statistic == "spectrum" and one.place is not None]
    rows = [{"band": (one.place or 0) + 1, "origin": ORIGINS.get(one.origin, one.origin), **_interval(one.found)} for one in bands]
    if rows:
        caption = "The power of the latents in rings of spatial frequency, from the lowest to the highest: white noise has 1 in every one."
        x, y = Axis("band", "band of frequencies, from the lowest"), Axis("value", "power, in that of white noise", log=True)
        title, series = "The spectrum of the latents", Axis("origin", "latents")
        yield Chart("spectrum", title, caption, "line", tuple(rows), x, y, lo="lo", hi="hi", series=series)


def _offsets(found: Evidence) -> Iterator[Chart]:
    names = list(dict.fromkeys(one.measure for one in found.moved))
    if not names:
        return
    name = names[0]
    rows = [{"offset": one.offset, "at": PLACES.get(one.at, one.at), **_interval(one.found)} for one in found.moved if one.measure == name]
    told = (
        f"cosine distance ({name.removeprefix(DISTANCE)})"
        if name.startswith(DISTANCE)
        else f"mean squared change {name} the offset's place"
    )
    caption = (
        "How far a picture moves when the top quarter of its first two channels is offset, in standard deviations: of the noise that it is "
        "drawn from, or of its clean latent."
    )
    x, y = Axis("offset", "offset, in standard deviations"), Axis("value", told)
    title, several = "The same offset on the noise and on the clean latent", len({one.offset for one in found.moved}) > 1
    kind: Literal["line", "interval"] = "line" if several else "interval"
    rows = rows if several else [{**row, "offset": f"{row['offset']:g}"} for row in rows]
    yield Chart("offsets", title, caption, kind, tuple(rows), x, y, lo="lo", hi="hi", series=Axis("at", "laid"))


def _interval(told: Told) -> dict[str, float | None]:
    value, lo, hi = told.interval
    return {"value": _finite(value), "lo": _finite(lo), "hi": _finite(hi), "units": told.n}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
