"""Charts as Vega-Lite specifications: one for the page and for the figure on disk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from typing import Any

import altair as alt

from diffprobe.probes.base import Axis, Chart, Row
from diffprobe.report.numbers import finite, label, plain

Domains = Mapping[str, Sequence[str]]

_FIELDS = ("x", "y", "lo", "hi", "series", "facet", "value")
_MAP = 320  # pixels along each side of a map
#: Names that the tooltip's renderer would take for a heading and for the address of a picture.
_TIPS = {"title": "Title", "image": "Image"}
#: A click on a legend's entry fades all others. Its name is fixed, since generated ones would differ from report to report.
_PICK = alt.selection_point(name="pick", fields=["series"], bind="legend")


def domains(charts: Iterable[Chart]) -> dict[str, tuple[str, ...]]:
    """Column of a series to all its values in order of appearance: a value keeps its colour in every chart of the document."""
    found: dict[str, dict[str, None]] = {}
    for chart in charts:
        if chart.series is not None:
            values = found.setdefault(chart.series.column, {})
            values.update((label(row.get(chart.series.column)), None) for row in (*chart.rows, *chart.curves))
    return {column: tuple(values) for column, values in found.items()}


def spec(chart: Chart, domains: Domains) -> dict[str, Any]:
    """The chart as a Vega-Lite specification without size of page or colour scheme.

    Columns are renamed x, y, lo, hi, series, facet, and further columns e0, e1, ... (tooltips), so that no name can clash with
    the syntax of field paths. What is not finite, or not positive on a logarithmic axis, is null and is not drawn.
    """
    chart = _bounded(chart)
    values = rows(chart)
    data = alt.InlineData(values=values)
    layers = alt.layer(*(_tiles(chart) if chart.kind == "map" else _layers(chart, domains)))
    described = f"{chart.title}. {chart.caption}"
    if chart.facet is not None:
        panels = list(dict.fromkeys(row["facet"] for row in values))
        facet = alt.Facet("facet:N", title=None, sort=panels)
        side = _MAP // 2 if chart.kind == "map" else 160
        sized = layers.properties(width=side if chart.kind == "map" else 220, height=_height(chart, side))
        built = sized.facet(facet=facet, columns=2 if len(panels) in (2, 4) else 3, data=data, description=described).to_dict()
    elif chart.kind == "map":
        built = layers.properties(data=data, width=_MAP, height=_MAP, description=described).to_dict()
    else:
        fit = alt.AutoSizeParams(type="fit-x", contains="padding")
        sized = layers.properties(data=data, width="container", height=_height(chart, 250), description=described, autosize=fit)
        built = sized.to_dict()
    built.pop("config", None)
    return dict(built)


def _bounded(chart: Chart) -> Chart:
    """The chart without intervals where no row has one: a browser warns of a scale without numbers."""
    ends = [row.get(column) for row in chart.rows for column in (chart.lo, chart.hi) if column]
    known = any(isinstance(end, int | float) and math.isfinite(end) for end in ends)
    return chart if known else replace(chart, lo=None, hi=None)


def rows(chart: Chart) -> list[dict[str, Any]]:
    """The chart's rows and then its curves' as the specification holds them; `curve` tells them apart."""
    columns = _columns(chart)
    floors = {name: _floor(chart, axis) for name, axis in (("x", chart.x), ("y", chart.y))}

    def convert(row: Row, curve: bool) -> dict[str, Any]:
        out: dict[str, Any] = {name: plain(row.get(column)) for name, column in columns.items()}
        for name, at in (("x", "x"), ("y", "y"), ("lo", "y"), ("hi", "y")):
            floor, value = floors[at], finite(out.get(name))
            if floor is not None and value is not None and value <= 0:
                out[name] = floor if name == "lo" else None
        if out.get("lo") is None or out.get("hi") is None:
            out |= dict.fromkeys(out.keys() & {"lo", "hi"})
        if chart.series is not None:
            out["series"] = label(row.get(chart.series.column))
        if chart.facet is not None:
            out["facet"] = f"{chart.facet.title}: {label(row.get(chart.facet.column))}"
        return out | {"curve": curve}

    return [convert(row, False) for row in chart.rows] + [convert(row, True) for row in chart.curves]


def legend(chart: Chart) -> str:
    """What bands, bars and dashes stand for, and how many points could not be drawn; empty where nothing needs saying.

    Dashes are fits where the caption has no other word for them.
    """
    marks = {"line": "Bands are intervals.", "interval": "Lines through points are intervals.", "bar": "Lines on bars are intervals."}
    parts = [marks[chart.kind]] if chart.kind in marks and _bounded(chart).hi else []
    if chart.curves and chart.kind == "map":
        parts.append("Rings mark where it was made from.")
    elif chart.curves and "dashed" not in chart.caption.lower():
        parts.append("Dashed curves are fits.")
    missing = sum(row["x"] is None or row["y"] is None for row in rows(chart) if not row["curve"])
    parts += [f"Without a value to draw: {missing} of {len(chart.rows)}."] if missing else []
    return " ".join(parts)


def _layers(chart: Chart, domains: Domains) -> list[alt.Chart]:
    """The marks of the chart's kind, back to front; the measured ones answer to the legend."""
    place, colour = _places(chart), _colour(chart, domains)
    drawn = {**place, **colour}
    measured = alt.Chart().transform_filter("!datum.curve")
    behind: list[alt.Chart] = []
    front: list[alt.Chart] = []
    if chart.kind in ("bar", "stack"):
        main = measured.mark_bar(cornerRadiusEnd=0 if chart.kind == "stack" else 3).encode(**drawn, tooltip=_tooltips(chart))
    else:
        shape = {"shape": alt.Shape("series:N", **_key(chart.series, chart, domains))} if chart.series else {}
        point = measured.mark_point(filled=True, size=60, fillOpacity=0.75 if chart.kind == "scatter" else 1)
        main = point.encode(**drawn, **shape, tooltip=_tooltips(chart))
    if chart.lo and chart.hi:
        ends = {**drawn, **_ends(chart)}
        if chart.kind == "line":
            behind.append(measured.mark_area(fillOpacity=0.16).encode(**ends))
        elif chart.kind == "interval":
            behind.append(measured.mark_rule(strokeWidth=2).encode(**ends))
        elif chart.kind == "bar":
            front.append(measured.mark_rule(style="whisker").encode(**{**place, **_ends(chart)}))
    if chart.kind == "line":
        behind.append(measured.mark_line(strokeWidth=2).encode(**drawn))
    if chart.curves:
        fits = alt.Chart().transform_filter("datum.curve")
        front.append(fits.mark_line(strokeWidth=1.8, strokeDash=[5, 4]).encode(**drawn))
    layers = [*behind, main, *front]
    if chart.series is not None:
        # The legend is built by the first layer, and answers to a click only where that layer holds the selection.
        layers[0] = layers[0].properties(name="marks").add_params(_PICK)
    return layers if chart.guide is None else [*layers, _guide(chart)]


def _tiles(chart: Chart) -> list[alt.Chart]:
    """A tile around every point of a grid, as wide as the grid's steps, and rings at the chart's curves."""
    assert chart.value is not None
    # A little wider than the step, so that no seam shows between tiles.
    half = {name: 0.53 * _step([row.get(axis.column) for row in chart.rows]) for name, axis in (("x", chart.x), ("y", chart.y))}
    ends = {f"{name}{sign}": f"datum.{name} {'+' if sign else '-'} {width}" for name, width in half.items() for sign in (0, 1)}
    x, y = (alt.Axis(grid=False, title=axis.title) for axis in (chart.x, chart.y))
    place = {
        "x": alt.X("x0:Q", axis=x, scale=alt.Scale(zero=False, nice=False)),
        "y": alt.Y("y0:Q", axis=y, scale=alt.Scale(zero=False, nice=False)),
        "x2": "x1:Q",
        "y2": "y1:Q",
    }
    colour = alt.Color("value:Q", scale=alt.Scale(scheme="viridis"), legend=alt.Legend(title=chart.value.title, offset=12))
    tiles = alt.Chart().transform_filter("!datum.curve").transform_calculate(**ends)
    drawn = [tiles.mark_rect().encode(**place, color=colour, tooltip=_tooltips(chart))]
    if chart.curves:
        rings = alt.Chart().transform_filter("datum.curve").mark_point(color="white", size=90, strokeWidth=2.5).encode(x="x:Q", y="y:Q")
        drawn.append(rings)
    return drawn


def _step(values: Sequence[Any]) -> float:
    """The distance of neighbours on an axis of a grid."""
    known = sorted({number for number in map(finite, values) if number is not None})
    return min((b - a for a, b in pairwise(known)), default=1.0)


def _guide(chart: Chart) -> alt.Chart:
    """One line on top: where the value is zero, or from the least to the largest of both axes."""
    if chart.guide == "zero":
        at = alt.XDatum(0, **_scale(chart, chart.y)) if _sideways(chart) else alt.YDatum(0, **_scale(chart, chart.y))
        single: alt.Chart = alt.Chart().transform_aggregate(rows="count()").mark_rule(style="guide").encode(at)
        return single
    across, up = (channel("from:Q", **_scale(chart, axis)) for channel, axis in ((alt.X, chart.x), (alt.Y, chart.y)))
    extent = alt.Chart().transform_aggregate(left="min(x)", low="min(y)", right="max(x)", high="max(y)")
    ends = extent.transform_calculate(**{"from": "min(datum.left, datum.low)", "to": "max(datum.right, datum.high)"})
    diagonal: alt.Chart = ends.mark_rule(style="guide").encode(x=across, y=up, x2="to:Q", y2="to:Q")
    return diagonal


def _places(chart: Chart) -> dict[str, Any]:
    """Encodings of position: categories run down the page where they are words, so that they can be read on a phone."""
    sideways = _sideways(chart)
    across = alt.X("y:Q", **_scale(chart, chart.y)) if sideways else alt.X("x:O" if _discrete(chart) else "x:Q", **_scale(chart, chart.x))
    up = alt.Y("x:N", **_scale(chart, chart.x)) if sideways else alt.Y("y:Q", **_scale(chart, chart.y))
    place: dict[str, Any] = {"x": across, "y": up}
    if _dodged(chart):
        place["yOffset" if sideways else "xOffset"] = (alt.YOffset if sideways else alt.XOffset)("series:N", sort=None)
    return place


def _scale(chart: Chart, axis: Axis) -> dict[str, Any]:
    """Title, grid and scale of an axis; bars start at zero, everything else where its data does. Upright titles stand on top."""
    upright = chart.facet is None and (axis is chart.y) != _sideways(chart)
    look: dict[str, Any] = {"titleAngle": 0, "titleAlign": "left", "titleBaseline": "bottom", "titleX": 0, "titleY": -9} if upright else {}
    look["grid"] = axis is chart.y or chart.kind == "scatter"
    if axis is chart.x and _discrete(chart):
        look |= {"grid": False, "labelAngle": 0} | (
            {} if _words(chart) else {"format": ".4~g", "formatType": "number", "labelOverlap": "greedy"}
        )
        scale = alt.Scale(type="band", paddingInner=0.25)
        return {"title": axis.title, "sort": None if _words(chart) else "ascending", "scale": scale, "axis": alt.Axis(**look)}
    if axis.log:
        look |= {"values": _decades(chart, axis), "format": "~g"}
        return {"title": axis.title, "scale": alt.Scale(type="log", nice=False), "axis": alt.Axis(**look)}
    return {"title": axis.title, "scale": alt.Scale(zero=chart.kind in ("bar", "stack")), "axis": alt.Axis(**look)}


def _ends(chart: Chart) -> dict[str, Any]:
    """Encodings of an interval, on the value's axis."""
    value, channel = ("x", alt.X) if _sideways(chart) else ("y", alt.Y)
    return {value: channel("lo:Q", **_scale(chart, chart.y)), f"{value}2": "hi:Q"}


def _colour(chart: Chart, domains: Domains) -> dict[str, Any]:
    if chart.series is None:
        return {}
    return {
        "color": alt.Color("series:N", **_key(chart.series, chart, domains)),
        "opacity": alt.condition(_PICK, alt.value(1), alt.value(0.15)),
    }


def _key(series: Axis, chart: Chart, domains: Domains) -> dict[str, Any]:
    """Scale and legend of a series: places in the document's order, entries for what is here."""
    here = dict.fromkeys(label(row.get(series.column)) for row in (*chart.rows, *chart.curves))
    legend = alt.Legend(title=series.title, values=list(here), offset=12 if chart.facet else 28)
    return {"scale": alt.Scale(domain=list(domains[series.column])), "legend": legend, "sort": None}


def _tooltips(chart: Chart) -> list[alt.Tooltip]:
    titles = {"x": chart.x.title, "y": chart.y.title, "lo": "from", "hi": "to"}
    titles |= {"series": chart.series.title} if chart.series else {}
    titles |= {"facet": "panel"} if chart.facet else {}
    titles |= {"value": chart.value.title} if chart.value else {}
    tips = []
    for name, column in _columns(chart).items():
        values = [row.get(column) for row in chart.rows]
        numeric = all(value is None or _is_number(value) for value in values) and name not in ("series", "facet")
        whole = all(number.is_integer() for number in map(finite, values) if number is not None)
        style: dict[str, Any] = {"type": "quantitative", "format": "," if whole else ".4~g"} if numeric else {"type": "nominal"}
        title = titles.get(name, column)
        tips.append(alt.Tooltip(name, title=_TIPS.get(title, title), **style))
    return tips


def _columns(chart: Chart) -> dict[str, str]:
    """Name in the specification to column of the rows."""
    series, facet = (axis.column if axis else None for axis in (chart.series, chart.facet))
    axes = (chart.x.column, chart.y.column, chart.lo, chart.hi, series, facet, chart.value.column if chart.value else None)
    named = {name: column for name, column in zip(_FIELDS, axes, strict=True) if column}
    further = dict.fromkeys(column for row in chart.rows for column in row if column not in named.values())
    return named | {f"e{i}": column for i, column in enumerate(further)}


def _floor(chart: Chart, axis: Axis) -> float | None:
    """The least positive number along a logarithmic axis, where its bands end; None for a linear one."""
    return min(_positive(chart, axis), default=math.ulp(1.0)) if axis.log else None


def _decades(chart: Chart, axis: Axis) -> list[float]:
    """Ticks of a logarithmic axis: powers of ten, with their doubles and halves where there are few."""
    found = _positive(chart, axis) or [1.0]
    first, last = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    steps = (1, 2, 5) if last - first <= 2 else (1,)
    return [float(f"{step}e{power}") for power in range(first, last + 1) for step in steps]


def _positive(chart: Chart, axis: Axis) -> list[float]:
    columns = (axis.column, chart.lo, chart.hi) if axis is chart.y else (axis.column,)
    numbers = (finite(row.get(column)) for row in (*chart.rows, *chart.curves) for column in columns if column)
    return [value for value in numbers if value is not None and value > 0]


def _words(chart: Chart) -> bool:
    """Whether x holds anything but numbers."""
    values = (row.get(chart.x.column) for row in (*chart.rows, *chart.curves))
    return not all(value is None or _is_number(value) for value in values)


def _discrete(chart: Chart) -> bool:
    return chart.kind in ("bar", "stack") or _words(chart)


def _sideways(chart: Chart) -> bool:
    return _words(chart) and chart.kind in ("bar", "interval", "stack")


def _dodged(chart: Chart) -> Axis | None:
    """The series, where its members stand beside each other within a category."""
    beside = chart.kind in ("bar", "interval") and _discrete(chart)
    return chart.series if beside and chart.series is not None and chart.series.column != chart.x.column else None


def _height(chart: Chart, otherwise: int) -> int:
    """Pixels down the page: a fixed number for each category and series where categories run that way."""
    if not _sideways(chart):
        return otherwise
    beside = _dodged(chart)
    lanes = len({row.get(beside.column) for row in chart.rows}) if beside else 1
    return max(1, len({row.get(chart.x.column) for row in chart.rows})) * (10 + 18 * lanes)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
