"""Every chart of the report as a file, for papers and slides."""

from __future__ import annotations

from diffprobe.export.base import Exported, Target, draw
from diffprobe.files import explained
from diffprobe.runs.result import Run


def to_figures(run: Run, target: Target) -> Exported:
    """Write `figures/<probe>-<chart>.svg` and `.png`."""
    folder = target.folder / "figures"
    with explained(folder):
        files = draw(run, folder)
    return Exported(f"{len(files)} files in {folder}", tuple(files), () if files else ("there is no chart to draw yet",))
