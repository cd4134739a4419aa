"""A finished run for TensorBoard: estimates as scalars, settings as hyperparameters, verdicts as text, charts as images."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from diffprobe.export.base import Exported, Target, key_of, missing_of, settings_of
from diffprobe.export.names import setting_names
from diffprobe.export.section import section
from diffprobe.export.tracked import files_of, headlines_of, metrics_of, reasons_of, text_of
from diffprobe.files import explained, whole
from diffprobe.runs.comparison.wording import table
from diffprobe.runs.result import Run

_SUFFIX = ".diffprobe"  # of the event files that are ours


def to_tensorboard(run: Run, target: Target) -> Exported:
    """Write `tensorboard/<run>-<key>/` with one event file and report.html; an earlier export of the same run is replaced.

    What has no value is NaN, and the text "not measured" says why. Raises UserError where the folder cannot be written to.
    """
    folder = target.folder / "tensorboard" / f"{run.path.resolve().name}-{key_of(run)}"
    with explained(folder), TemporaryDirectory() as name:
        folder.mkdir(parents=True, exist_ok=True)
        written = Path(name)
        with files_of(run) as files:
            _write(written, run, files)
            report = _kept(files / "report.html", folder / "report.html")
        earlier = list(folder.glob(f"*{_SUFFIX}"))
        events = [_kept(file, folder / _anonymous(file.name)) for file in sorted(written.rglob("events.*"))]
        for file in set(earlier) - set(events):
            file.unlink()
    return Exported(f"tensorboard --logdir {folder.parent}", (*events, report))


def _write(folder: Path, run: Run, files: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    with SummaryWriter(str(folder)) as writer:
        for name, value in metrics_of(run).items():
            writer.add_scalar(name, math.nan if value is None else value, 0)
        writer.add_text("summary", section(run), 0)
        writer.add_text("incomplete", missing_of(run) or "no", 0)
        settings = {name: text_of(value) for name, value in setting_names(settings_of(run)).items()}
        writer.add_text("settings", "\n".join(table(("setting", "value"), list(settings.items()), 2)), 0)
        if reasons := reasons_of(run):
            writer.add_text("not measured", "\n".join(table(("estimate", "reason"), list(reasons.items()), 2)), 0)
        for file in sorted((files / "figures").glob("*.png")):
            with Image.open(file) as picture:
                writer.add_image(f"figures/{file.stem}", np.asarray(picture.convert("RGB")), 0, dataformats="HWC")
        # SummaryWriter.add_hparams would write the numbers a second time.
        for part in hparams(settings, dict.fromkeys(headlines_of(run), 0)):
            writer.file_writer.add_summary(part)


def _anonymous(name: str) -> str:
    """The name of an event file up to its time: what follows is the host and the process that wrote it."""
    return ".".join(name.split(".")[:4]) + _SUFFIX


def _kept(file: Path, path: Path) -> Path:
    with whole(path) as partial:
        shutil.copyfile(file, partial)
    return path
