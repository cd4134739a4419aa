"""Colours and chart style, once for page and figures: names here are CSS variables there, replaced by values where a chart is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Eight colours a scheme, told apart with normal, protan, deutan and tritan vision: the first six differ by 0.1 or more in OKLab.
SERIES = 8

LIGHT: Mapping[str, str] = {
    "ground": "#f7f6f3",
    "surface": "#ffffff",
    "ink": "#1c2027",
    "soft": "#5a626e",
    "line": "#e3e1db",
    "accent": "#0b5f97",
    "warn": "#8a4300",
    "warn-ground": "#fdf1e3",
    "series-1": "#0b6ba8",
    "series-2": "#e0700f",
    "series-3": "#12a17c",
    "series-4": "#8e1f5f",
    "series-5": "#5a4a00",
    "series-6": "#7fb2e8",
    "series-7": "#b58cd0",
    "series-8": "#7d828c",
}

DARK: Mapping[str, str] = {
    "ground": "#14161a",
    "surface": "#1b1e24",
    "ink": "#e9e7e2",
    "soft": "#a3aab5",
    "line": "#31353d",
    "accent": "#7cc0f2",
    "warn": "#f5bd86",
    "warn-ground": "#33261a",
    "series-1": "#4a9fe0",
    "series-2": "#f0803c",
    "series-3": "#5fe0b4",
    "series-4": "#a85878",
    "series-5": "#f0dc50",
    "series-6": "#b8e4ff",
    "series-7": "#5c66dd",
    "series-8": "#c08f96",
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_TEXT = {"labelColor": "--soft", "titleColor": "--soft", "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"}

#: The Vega-Lite config of every chart, with names for colours.
CONFIG: Mapping[str, Any] = {
    "background": "--surface",
    "font": FONT,
    "mark": {"color": "--series-1"},
    "style": {"whisker": {"color": "--ink", "strokeWidth": 1.5}, "guide": {"color": "--soft", "strokeWidth": 1, "strokeDash": [4, 3]}},
    "range": {"category": [f"--series-{i}" for i in range(1, SERIES + 1)]},
    "view": {"stroke": None},
    "axis": {
        **_TEXT,
        "gridColor": "--line",
        "domainColor": "--line",
        "ticks": False,
        "labelPadding": 7,
        "titlePadding": 8,
        "labelLimit": 150,
        "tickCount": 5,
    },
    "legend": {**_TEXT, "orient": "top", "direction": "horizontal", "symbolSize": 70, "labelLimit": 170, "titleLimit": 200},
    "header": {"labelColor": "--ink", "labelFontSize": 12, "labelFontWeight": 600, "labelAnchor": "start", "labelPadding": 8},
    "title": {"color": "--ink", "fontSize": 14, "anchor": "start", "offset": 14, "fontWeight": 600},
}


def paint(value: Any, colours: Mapping[str, str]) -> Any:
    """The same config with each colour name ("--ink") replaced by the scheme's value."""
    if isinstance(value, Mapping):
        return {name: paint(item, colours) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [paint(item, colours) for item in value]
    return colours.get(value[2:], value) if isinstance(value, str) and value.startswith("--") else value
