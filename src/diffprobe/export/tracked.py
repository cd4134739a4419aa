"""What a tracker is told of a run: numbers under names that it takes, settings, texts, and files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffprobe.export.base import draw
from diffprobe.export.names import metric_names
from diffprobe.export.section import section
from diffprobe.export.tables import estimates, write_csv
from diffprobe.measures.stats import Estimate
from diffprobe.report.numbers import finite
from diffprobe.runs.result import Run


def metrics_of(run: Run) -> dict[str, float | None]:
    """Every estimate as `<probe>/<name>`, null where it has no value; beside it `<probe>_n/<name>`, and `_lo`, `_hi` where there are."""
    found: dict[str, float | None] = {}
    for name, estimate in zip(metric_names(run.estimates), run.estimates, strict=True):
        probe, _, rest = name.partition("/")
        found[name] = finite(estimate.value)
        ends = {"lo": finite(estimate.lo), "hi": finite(estimate.hi), "n": float(estimate.n)}
        found.update({f"{probe}_{part}/{rest}": value for part, value in ends.items() if value is not None})
    return found


def headlines_of(run: Run) -> dict[str, Estimate]:
    """The estimates behind the report's cards by the names of their metrics."""
    named = list(zip(run.estimates, metric_names(run.estimates), strict=True))
    cards = [card.estimate for findings in run.findings.values() for card in findings.cards]
    return {name: estimate for estimate, name in named if estimate in cards}


def reasons_of(run: Run) -> dict[str, str]:
    """Why estimates have no value, by the names of their metrics."""
    named = zip(metric_names(run.estimates), run.estimates, strict=True)
    return {name: one.reason or "not measured" for name, one in named if finite(one.value) is None}


def text_of(value: Any) -> str:
    """A setting as text: itself, or JSON."""
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def files_of(run: Run) -> Iterator[Path]:
    """A folder, until the block ends, of report.html, summary.md, estimates.csv, run.json, and the charts as figures/*.png."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        run.report(folder / "report.html")
        for vector in draw(run, folder / "figures"):
            if vector.suffix == ".svg":
                vector.unlink()
        write_csv(estimates(run.estimates), folder / "estimates.csv")
        (folder / "summary.md").write_text(section(run) + "\n", encoding="utf-8")
        (folder / "run.json").write_text(json.dumps(run.about, indent=1) + "\n", encoding="utf-8")
        yield folder
