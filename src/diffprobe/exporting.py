"""The command `diffprobe export`: a run as a model card, tables, figures, or a run of a tracker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from diffprobe.export.base import Exported

out = Console(highlight=False, soft_wrap=True, markup=False)


def export_run(
    run: Annotated[Path, typer.Argument(help="The directory of a run.", show_default=False)],
    to: Annotated[
        list[str], typer.Option(help="card, csv, parquet, figures, mlflow, wandb or tensorboard; may be repeated.", show_default=False)
    ],
    out_dir: Annotated[Path | None, typer.Option("--out", help="Where files go; export/ in the run by default.")] = None,
    card: Annotated[Path | None, typer.Option(help="An existing README.md that the card's numbers are written into.")] = None,
) -> None:
    """Export a run, whole or unfinished: model card, tables, figures, or MLflow, W&B, TensorBoard. No file is uploaded but to a tracker."""
    from diffprobe.export import export
    from diffprobe.export.base import missing_of
    from diffprobe.runs.result import open_run

    found = open_run(run)
    export(found, to, out=out_dir, card=card, report=_show)
    if missing := missing_of(found):
        out.print(f"incomplete: {missing}; the exports say so", markup=False)


def _show(kind: str, done: Exported) -> None:
    out.print(f"{kind}: {done.place}", markup=False)
    for note in done.notes:
        out.print(f"  {note}", markup=False)
