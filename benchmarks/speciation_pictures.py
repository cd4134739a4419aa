"""The two pictures of docs/speciation.md about exact worlds, in the report's style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vl_convert

from diffprobe.measures.speciation.gaussian import LN2, Clock, control_parameter, gaussian_entropy, gaussian_entropy_slope, speciation_time
from diffprobe.report import theme
from diffprobe.report.figures import VEGA_LITE

Spec = dict[str, Any]
DIMENSIONS = (16, 64, 256, 1024, 16384)
RAMP = ("#bcd7ee", "#7fb2e8", "#3f8fcc", "#0b6ba8", "#06385a")
CLOCKS: Mapping[Clock, str] = {
    "ou": "Variance preserving, time in units of t_S = ln(D)/2",
    "ve": "Variance exploding, sigma in units of sigma_S = sqrt(D - 1)",
}
ENTROPIES = {"true": "true priors", "balanced": "equal priors", "proxy": "equal priors, proxy"}
PATHS = {"vp": "variance preserving", "ve": "variance exploding", "flow": "rectified flow"}


def draw_theory(path: Path) -> None:
    """Two Gaussian classes a squared distance D apart, variance 1: entropy and production on each path's rescaled clock."""
    rows = [
        row | {"D": f"{dimension:,}", "clock": clock} for dimension in DIMENSIONS for clock in CLOCKS for row in _curve(dimension, clock)
    ]
    colour = {"field": "D", "type": "nominal", "sort": [f"{d:,}" for d in DIMENSIONS], "title": "dimension D", "scale": {"range": [*RAMP]}}

    def panel(clock: Clock, field: str, label: str, title: str) -> Spec:
        values = [row for row in rows if row["clock"] == clock]
        encoding = {"x": _axis("tau", title, {"domain": [0, 1.8]}), "y": _axis(field, label), "color": colour}
        return {"width": 380, "height": 190, "layer": [_layer(values, {"type": "line", "strokeWidth": 2, "clip": True}, encoding)]}

    grid = [[panel(clock, "entropy", "entropy left, nats", "") for clock in CLOCKS]]
    grid.append([panel(clock, "rate", "production per unit of the axis, nats", title) for clock, title in CLOCKS.items()])
    whole = _grid(grid, "Two Gaussian classes: growing dimension sharpens the decision on one path, and only scales it on the other")
    _write(whole | {"resolve": {"legend": {"color": "shared"}, "scale": {"color": "shared"}}}, path)


def _curve(dimension: int, clock: Clock) -> list[Spec]:
    end = speciation_time(dimension, 1.0, clock=clock)
    tau = np.linspace(0.01, 1.8, 360)
    sigma = np.sqrt(np.expm1(2 * tau * end)) if clock == "ou" else tau * end
    pace = (sigma**2 + 1) / sigma * end if clock == "ou" else end  # dsigma/dtau
    gamma = control_parameter(sigma, dimension, 1.0)
    rate = -gaussian_entropy_slope(gamma) * 2 * gamma * sigma / (sigma**2 + 1) * pace
    return [
        {"tau": t, "entropy": h, "rate": r} for t, h, r in zip(tau.tolist(), gaussian_entropy(gamma).tolist(), rate.tolist(), strict=True)
    ]


def draw_budget(lines: Sequence[Spec], path: Path) -> None:
    """Above, what is left of each prior entropy; below, what the proxy and the path posterior change, in nats with two errors."""
    dimensions = sorted({line["dimension"] for line in lines})
    title = f"The estimator's terms: one class of {lines[0]['classes']}, {lines[0]['steps']} steps"
    _write(_grid([[_shares(lines, d) for d in dimensions], [_terms(lines, d) for d in dimensions]], title), path)


def _shares(lines: Sequence[Spec], dimension: int) -> Spec:
    curves, points = list[Spec](), list[Spec]()
    for line in (line for line in lines if line["dimension"] == dimension):
        for index, sigma in enumerate(line["sigma"]):
            x = sigma / line["sigma_s"]
            if line["path"] == "vp":
                priors = {"true": line["prior_true"], "balanced": LN2, "proxy": LN2}
                curves += [{"x": x, "y": line[name][index] / priors[name], "what": what} for name, what in ENTROPIES.items()]
            if line["online"][index] is not None and index % 2 == 0:
                points.append({"x": x, "y": line["online"][index] / LN2, "path": PATHS[line["path"]]})
    place = {"x": _axis("x", "", _LOG), "y": _axis("y", "entropy over its prior", {"domain": [0, 1.02]})}
    colour = {
        "field": "what",
        "type": "nominal",
        "sort": [*ENTROPIES.values()],
        "title": "exact",
        "scale": {"range": ["--series-2", "--series-1", "--series-3"]},
    }
    width = {"condition": {"test": f"datum.what == '{ENTROPIES['balanced']}'", "value": 5}, "value": 2}
    shape = {"field": "path", "type": "nominal", "sort": [*PATHS.values()], "title": "from paths"}
    layers = [
        _layer(curves, {"type": "line"}, place | {"color": colour, "strokeWidth": width}),
        _layer(points, {"type": "point", "size": 26, "strokeWidth": 1, "color": "--ink"}, place | {"shape": shape}),
    ]
    return {"width": 255, "height": 200, "title": {"text": f"D = {dimension:,}", "fontSize": 12}, "layer": layers}


def _terms(lines: Sequence[Spec], dimension: int) -> Spec:
    rows = list[Spec]()
    for line in (line for line in lines if line["dimension"] == dimension):
        for index, sigma in enumerate(line["sigma"]):
            x = sigma / line["sigma_s"]
            if line["path"] == "vp":
                rows.append({"x": x, "y": line["proxy_term"][index], "what": "proxy"})
            if (value := line["posterior"][index]) is not None:
                error = 2 * line["posterior_error"][index]
                rows.append({"x": x, "y": value, "lo": value - error, "hi": value + error, "what": f"posterior, {PATHS[line['path']]}"})
    place = {"x": _axis("x", "sigma / sigma_S", _LOG)}
    names = ["proxy", *(f"posterior, {name}" for name in PATHS.values())]
    mark = {"symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2, "labelLimit": 220}
    colours = ["--series-3", "--series-4", "--series-5", "--series-8"]
    colour = {
        "field": "what",
        "type": "nominal",
        "sort": names,
        "title": "term",
        "scale": {"domain": names, "range": colours},
        "legend": mark,
    }
    scale = {"domain": [-0.017, 0.007]}
    band = {"y": _axis("lo", "change of the entropy, nats", scale), "y2": {"field": "hi"}, "color": colour}
    line = {"y": _axis("y", "change of the entropy, nats", scale), "color": colour}
    layers = [
        _layer(rows, {"type": "line", "strokeWidth": 2, "clip": True}, place | line),
        _layer([row for row in rows if "lo" in row], {"type": "area", "opacity": 0.2, "clip": True}, place | band),
    ]
    return {"width": 255, "height": 160, "layer": layers}


_LOG: Spec = {"type": "log", "domain": [0.01, 8], "nice": False}


def _axis(field: str, title: str, scale: Spec | None = None) -> Spec:
    axis: Spec = {"grid": True}
    if field in {"y", "lo"}:
        axis |= {"minExtent": 50}  # so that the panels of both rows stand under each other
    if scale is _LOG:
        axis |= {"values": [0.01, 0.03, 0.1, 0.3, 1, 3], "tickCount": 10, "format": "~g"}
    return {"field": field, "type": "quantitative", "title": title or None, "axis": axis, **({"scale": scale} if scale else {})}


def _layer(values: Sequence[Spec], mark: Spec, encoding: Spec) -> Spec:
    return {"data": {"values": list(values)}, "mark": mark, "encoding": encoding}


def _grid(rows: Sequence[Sequence[Spec]], title: str) -> Spec:
    joined = [{"hconcat": list(row), "spacing": 24, "resolve": {"legend": {"color": "shared"}}} for row in rows]
    return {"vconcat": joined, "spacing": 18, "title": title, "resolve": {"scale": {"color": "independent"}}}


def _write(spec: Spec, path: Path) -> None:
    config = {**theme.paint(theme.CONFIG, theme.LIGHT), "font": "sans-serif"}
    whole = theme.paint(spec, theme.LIGHT) | {
        "$schema": f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE.split('.')[0]}.json",
        "config": config,
        "padding": 14,
    }
    path.write_bytes(vl_convert.vegalite_to_png(whole, vl_version=VEGA_LITE, scale=2))
