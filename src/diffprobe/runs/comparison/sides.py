"""The runs of a comparison: what they are called, what they are, and in what they differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffprobe.errors import UserError
from diffprobe.report.document import Table
from diffprobe.runs.pairing import incomplete
from diffprobe.runs.result import Run


@dataclass(frozen=True)
class Side:
    """One run of a comparison: its name there, its pictures' folder, what run.json says of it, and how far it is."""

    name: str
    media: Path
    about: Mapping[str, Any]
    done: int
    planned: int

    @property
    def identity(self) -> dict[str, str]:
        """What it was measured with, a line each."""
        about = self.about
        return {
            **{f"model {name}": str(value) for name, value in about["model"].items()},
            **{f"instrument {name}": str(value) for name, value in about["embedders"].items()},
            **{f"version of {name}": str(value) for name, value in about["versions"].items()},
            "machine": str(about["machine"]),
            "measured": str(about["created"]),
        }

    @property
    def settings(self) -> dict[str, str]:
        """Every setting of every probe, a line each."""
        return {
            f"{probe['kind']}: {name}": value if isinstance(value, str) else json.dumps(value)
            for probe in self.about["probes"]
            for name, value in probe.items()
            if name != "kind"
        }


def side(name: str, run: Run) -> Side:
    return Side(name, run.path / "media", run.about, run.done, run.planned)


def identities(sides: Sequence[Side]) -> Table:
    """What differs between the runs, side by side: what they were measured with, and their settings."""
    lines = [{**one.identity, **one.settings} for one in sides]
    rows = [(name, *(line.get(name, "—") for line in lines)) for name in dict.fromkeys(name for line in lines for name in line)]
    apart = tuple(row for row in rows if len(set(row[1:])) > 1)
    return Table(("differs", *(one.name for one in sides)), apart, marked=frozenset(range(len(apart))))


def shared_identity(sides: Sequence[Side]) -> dict[str, str]:
    """What all runs were measured with alike."""
    first, *others = (one.identity for one in sides)
    return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}


def shortcomings(sides: Sequence[Side]) -> list[str]:
    """A sentence for each run that is not whole, and one where an instrument is not in all."""
    notes = [f"{incomplete(one.name, one.done, one.planned)}; what both have is compared." for one in sides if one.done < one.planned]
    for name in sorted({name for one in sides for name in one.about["embedders"]}):
        lacking = [one.name for one in sides if name not in one.about["embedders"]]
        if lacking:
            notes.append(f"What {name} sees is not compared with {' and '.join(lacking)}, measured without it.")
    return notes


def named(arguments: Sequence[str]) -> dict[str, Path]:
    """Names and directories of runs given as RUN or NAME=RUN; a directory lends the part of its path that no other has.

    Raises UserError where a name comes twice.
    """
    given: list[tuple[str, Path]] = []
    for argument in arguments:
        name, mark, place = argument.partition("=")
        plain = not mark or not name or "/" in name or Path(argument).is_dir()
        given.append(("", Path(argument)) if plain else (name, Path(place)))
    wanted = [name for name, _ in given if name]
    twice = next((name for index, name in enumerate(wanted) if name in wanted[:index]), None)
    if twice is not None:
        raise UserError(f"two runs are called '{twice}': give each a name of its own, as NAME=RUN")
    paths = [run.resolve() for name, run in given if not name]
    found: dict[str, Path] = {}
    for name, run in given:
        found[name or _free(_shortest(run.resolve(), paths), {*found, *wanted})] = run
    return found


def _shortest(path: Path, others: Sequence[Path]) -> str:
    """The shortest end of the path that no other path has; its name alone where it is given twice."""
    ends = ("/".join(path.parts[-count:]) for count in range(1, len(path.parts)))
    theirs = [other.parts for other in others if other != path]
    return next((end for end in ends if not any("/".join(parts[-(end.count("/") + 1) :]) == end for parts in theirs)), path.name)


def _free(name: str, taken: set[str]) -> str:
    return next(candidate for count in range(1, len(taken) + 2) if (candidate := name if count == 1 else f"{name}-{count}") not in taken)
