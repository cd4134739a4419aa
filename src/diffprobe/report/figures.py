"""The report's charts as files for papers and slides, from the same specifications."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from diffprobe.probes.base import Chart
from diffprobe.report import charts, theme
from diffprobe.report.document import Document, named_charts

#: The Vega-Lite release that the specifications are written for, as vl-convert names it ("6.4").
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
_WIDTH = 560
_FONT = "sans-serif"


def write_figures(document: Document, folder: Path) -> list[Path]:
    """Write `<probe>-<chart>.svg` and `.png` (twice the size) for every chart that has rows, light scheme; the paths in document order."""
    folder.mkdir(parents=True, exist_ok=True)
    found = named_charts(document)
    domains = charts.domains(found.values())
    written = []
    for name, chart in found.items():
        if not (chart.rows or chart.curves):
            continue
        spec = _standalone(charts.spec(chart, domains), chart.title)
        vector, raster = folder / f"{name}.svg", folder / f"{name}.png"
        vector.write_text(vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE), encoding="utf-8")
        raster.write_bytes(vl_convert.vegalite_to_png(spec, vl_version=VEGA_LITE, scale=2))
        written += [vector, raster]
    return written


def drawing(chart: Chart, domains: charts.Domains) -> alt.LayerChart | alt.FacetChart:
    """The chart as an altair object, light scheme; `domains` are those of all charts that it shall share colours with."""
    spec = _standalone(charts.spec(chart, domains), chart.title)
    return alt.FacetChart.from_dict(spec) if "facet" in spec else alt.LayerChart.from_dict(spec)


def _standalone(spec: dict[str, Any], title: str) -> dict[str, Any]:
    """The specification with what the page gives around it: a width, a title, the light scheme, margins."""
    config = {**theme.paint(theme.CONFIG, theme.LIGHT), "font": _FONT}
    width = {"width": _WIDTH} if spec.get("width") == "container" else {}
    return {**spec, **width, "title": title, "config": config, "padding": 12}
