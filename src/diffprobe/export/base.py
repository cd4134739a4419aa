"""What an exporter is given and gives back, and what all of them say of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any

from diffprobe.errors import UserError
from diffprobe.runs.result import Run


@dataclass(frozen=True)
class Target:
    """Where an export goes: a folder, and for a card perhaps a Markdown file that exists already."""

    folder: Path
    card: Path | None = None


@dataclass(frozen=True)
class Exported:
    """What an export left: where it is to be found in a few words, the files on this disk, and what a user should know of it."""

    place: str
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


Exporter = Callable[[Run, Target], Exported]


def require(package: str) -> None:
    """Raise UserError, exit code 4, where an optional package of this name is not installed; the extra has the same name."""
    if find_spec(package) is None:
        raise UserError(f"{package} is not installed: pip install 'diffprobe[{package}]'", exit_code=4)


def name_of(run: Run) -> str:
    """The model's name as others may read it: of a folder its last part, since a path is nobody else's business."""
    parts = str(run.about["model"]["name"]).split("+")
    return "+".join(PurePath(part).name if PurePath(part).is_absolute() else part for part in parts)


def key_of(run: Run) -> str:
    """What tells this run from any other, 16 hexadecimal digits: a hash of its directory and of all that run.json says."""
    told = json.dumps([str(run.path.resolve()), run.about], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def settings_of(run: Run) -> dict[str, Any]:
    """Study and identity as run.json has them, each probe's settings under its name."""
    probes = {item["kind"]: {name: value for name, value in item.items() if name != "kind"} for item in run.about["probes"]}
    return {**{name: value for name, value in run.about.items() if name not in {"schema", "probes"}}, **probes}


def missing_of(run: Run) -> str:
    """What is lacking of an unfinished run, in a few words; empty where all of it is measured."""
    if run.done >= run.planned:
        return ""
    failed = f", {len(run.failures)} failed" if run.failures else ""
    return f"{run.done} of {run.planned} cells are measured{failed}"


def draw(run: Run, folder: Path) -> list[Path]:
    """Write every chart of the report as SVG and PNG into a folder; their paths."""
    return run.figures(folder)
