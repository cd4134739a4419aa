"""What a report is made of: plain data, complete before a page is rendered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diffprobe.probes.base import Chart, Findings


@dataclass(frozen=True)
class Table:
    """Text in rows under `columns`; those of `numeric` are aligned at the right, the rows of `marked` stand out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """One probe: its question, what it found, how (paragraphs separated by blank lines), whom to cite, and a table of the main numbers."""

    probe: str
    question: str
    findings: Findings
    method: str = ""
    citations: tuple[str, ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Failure:
    """A cell that failed: its key, its fields as text, and the error."""

    key: str
    cell: str
    error: str


@dataclass(frozen=True)
class Document:
    """A report. `identity` says what was measured with what (model, digest, instruments, versions, machine, study), in reading order.

    `planned`, `done` and `failed` count cells; `media` is the folder that the gallery's paths start from; `created` is shown as it is.
    A `kind` other than a report says how it stands in `status` and `notices`, and shows `identities` side by side. Where there are
    `folders`, the first part of a picture's path is the key of its folder.
    """

    title: str
    identity: Mapping[str, str]
    planned: int
    done: int
    failed: tuple[Failure, ...]
    sections: tuple[Section, ...]
    media: Path
    created: str
    kind: str = "report"
    status: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    identities: Table | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.done >= self.planned and not self.failed


def named_charts(document: Document) -> dict[str, Chart]:
    """Every chart under the name of its figure, `<probe>-<chart>`: safe as a file name and as an element's id, and unique."""
    pairs = [(section.probe, chart) for section in document.sections for chart in section.findings.charts]
    names = unique(f"{probe}-{chart.name}" for probe, chart in pairs)
    return {name: chart for name, (_, chart) in zip(names, pairs, strict=True)}


def unique(labels: Iterable[str]) -> list[str]:
    """Labels as lower-case names of letters, digits and hyphens; later ones that would be equal are numbered."""
    names: list[str] = []
    for label in labels:
        slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-") or "unnamed"
        count = next(k for k in range(1, len(names) + 2) if (slug if k == 1 else f"{slug}-{k}") not in names)
        names.append(slug if count == 1 else f"{slug}-{count}")
    return names
