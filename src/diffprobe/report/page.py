"""The report: one HTML file that needs no network, with its charts, pictures and numbers inside."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffprobe.errors import UserError
from diffprobe.probes.base import Chart, Exhibit
from diffprobe.report import charts, theme
from diffprobe.report.document import Document, Section, named_charts, unique
from diffprobe.report.figures import VEGA_LITE
from diffprobe.report.numbers import flat, label, number, plain, shown
from diffprobe.report.pictures import Picture, picture


def write_report(document: Document, out: Path) -> Path:
    """Write the page to `out`, beside it first and then renamed; equal documents give equal bytes. Raises UserError for a folder."""
    if out.is_dir():
        raise UserError(f"'{out}' is a folder: name a file in it, such as '{out / 'report.html'}'")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f"{out.name}.part")
    beside.write_text(render(document), encoding="utf-8")
    os.replace(beside, out)
    return out


def render(document: Document) -> str:
    """The page as text."""
    environment = _environment()
    named = named_charts(document)
    estimates = [estimate for section in document.sections for estimate in section.findings.estimates]
    names = iter(named)
    anchors = unique(section.probe for section in document.sections)
    sections = [
        {
            "id": anchor,
            "section": section,
            "charts": [next(names) for _ in section.findings.charts],
            "gallery": _gallery(section, document),
        }
        for anchor, section in zip(anchors, document.sections, strict=True)
    ]
    return environment.get_template("report.html.j2").render(
        document=document,
        sections=sections,
        charts=named,
        estimates=estimates,
        probes=list(dict.fromkeys(estimate.probe for estimate in estimates)),
        data=_data(document, named),
        bundle=_bundle(),
        light=theme.LIGHT,
        dark=theme.DARK,
        font=theme.FONT,
    )


def _data(document: Document, named: Mapping[str, Chart]) -> dict[str, Any]:
    """What the scripts read: the charts' specifications, their common config, and every estimate for the downloads."""
    domains = charts.domains(named.values())
    return {
        "title": document.title,
        "created": document.created,
        "identity": plain(document.identity),
        "estimates": [flat(estimate) for section in document.sections for estimate in section.findings.estimates],
        "config": theme.CONFIG,
        "charts": {name: charts.spec(chart, domains) for name, chart in named.items()},
    }


def _gallery(section: Section, document: Document) -> list[dict[str, Any]]:
    """Exhibits with their pictures; a contrast is of the last two, and needs both."""

    def show(exhibit: Exhibit) -> dict[str, Any]:
        pictures = {role: _picture(document, name) for role, name in exhibit.pictures.items()}
        last = list(pictures)[-2:]
        contrast = exhibit.contrast and len(last) == 2 and all(pictures[role] for role in last)
        return {"exhibit": exhibit, "pictures": pictures, "contrast": last if contrast else []}

    return [show(exhibit) for exhibit in section.findings.gallery]


def _picture(document: Document, name: str) -> Picture | None:
    """The picture from the one folder, or from the one whose key its path starts with."""
    if not document.folders:
        return picture(document.media, name)
    key, _, path = name.partition("/")
    return picture(document.folders[key], path) if key in document.folders else None


@functools.cache
def _bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script, the release that the specifications are written for."""
    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE)
    return Markup(script.replace("</script", "<\\/script"))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("diffprobe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":"), "ensure_ascii": False}
    environment.filters |= {"shown": shown, "number": number, "label": label, "legend": charts.legend, "paragraphs": _paragraphs}
    return environment


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]
