"""What came of a run in the forms that others read: a model card, tables, figures, trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from diffprobe.errors import UserError, unknown
from diffprobe.export.base import Exported, Exporter, Target, require
from diffprobe.export.card import to_card
from diffprobe.export.figures import to_figures
from diffprobe.export.tables import to_csv, to_parquet
from diffprobe.export.to_mlflow import to_mlflow
from diffprobe.export.to_tensorboard import to_tensorboard
from diffprobe.export.to_wandb import to_wandb
from diffprobe.runs.result import Run, open_run

__all__ = ["EXPORTERS", "Exported", "Exporter", "Target", "export"]

EXPORTERS: dict[str, Exporter] = {
    "card": to_card,
    "csv": to_csv,
    "parquet": to_parquet,
    "figures": to_figures,
    "mlflow": to_mlflow,
    "wandb": to_wandb,
    "tensorboard": to_tensorboard,
}
_TRACKERS = ("mlflow", "wandb", "tensorboard")  # each needs the package of its name


def export(
    run: Run | str | Path,
    kinds: str | Iterable[str],
    *,
    out: str | Path | None = None,
    card: str | Path | None = None,
    report: Callable[[str, Exported], None] = lambda kind, done: None,
) -> dict[str, Exported]:
    """Export a run in one form or several, the names of EXPORTERS; what each left, by its name.

    Files go to `out`, by default `export/` of the run. `card` is an existing Markdown file that the form "card" adds to. `report` hears
    of each form as it is done. An unfinished run is exported with what there is, and marked. Raises UserError for a name or a file
    that there is not, and for a package that a tracker needs, before anything is written.
    """
    chosen = dict.fromkeys([kinds] if isinstance(kinds, str) else kinds)
    if not chosen:
        raise UserError(f"say what to export to: {', '.join(EXPORTERS)}")
    for kind in chosen:
        if kind not in EXPORTERS:
            raise unknown("export", kind, EXPORTERS)
        if kind in _TRACKERS:
            require(kind)
    if card is not None and "card" not in chosen:
        raise UserError("--card is for --to card: add that, or leave --card out")
    if card is not None and not Path(card).is_file():
        raise UserError(f"no file at '{card}': give a Markdown file that exists, or leave --card out for a new one")
    found = run if isinstance(run, Run) else open_run(run)
    target = Target(Path(out) if out else found.path / "export", Path(card) if card else None)
    exported = {}
    for kind in chosen:
        exported[kind] = EXPORTERS[kind](found, target)
        report(kind, exported[kind])
    return exported
