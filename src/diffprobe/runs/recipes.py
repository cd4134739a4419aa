"""The shipped studies as a cookbook: what each is, where it comes from, and what it would cost."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diffprobe.errors import UserError
from diffprobe.probes.base import Cost, Probe
from diffprobe.runs.execute import plan
from diffprobe.runs.study import Study, find_study, load_study, recipes

_SENTENCE = re.compile(r"(?<=[.?]) ")


@dataclass(frozen=True)
class Recipe:
    """A study with its name and what its file says of it: the comment at its top, the first sentence of which is `headline`."""

    name: str
    path: Path
    about: str
    study: Study

    @property
    def headline(self) -> str:
        """The first sentence of what the file says."""
        return _SENTENCE.split(self.about, maxsplit=1)[0].removesuffix(".")

    @property
    def models(self) -> dict[str, str]:
        """Each model of the study by name ("" where there is one) with its spec."""
        return {name: spec for name, (spec, _) in self.study.variants().items()}


class Planned(NamedTuple):
    """What the run of one model takes; `reason` says why it cannot be planned, such as data that are not there."""

    model: str
    spec: str
    cells: int
    cost: Cost
    reason: str = ""


def recipe(name: str) -> Recipe:
    """A shipped recipe by name, or the study file at this path. Raises UserError for what there is not, or what is no study."""
    path, study = find_study(name), load_study(name)  # which raises for a file that is no text
    return Recipe(path.stem, path, _comment(path.read_text()), study)


def cookbook() -> list[Recipe]:
    """Every shipped recipe, by name."""
    return [recipe(name) for name in recipes()]


def planned(study: Study) -> list[Planned]:
    """The cells of each model's run and their cost together, from the plan alone."""
    known: dict[tuple[Probe, ...], tuple[int, Cost, str]] = {}
    found = []
    for name, (spec, probes) in study.variants().items():
        if probes not in known:
            known[probes] = _sum(probes)
        found.append(Planned(name, spec, *known[probes]))
    return found


def _sum(probes: tuple[Probe, ...]) -> tuple[int, Cost, str]:
    try:
        steps = plan(probes)
    except UserError as error:
        return 0, Cost(), str(error)
    return len(steps), sum((step.cell.cost() for step in steps), Cost()), ""


def _comment(text: str) -> str:
    """The comment that a file begins with, as one paragraph."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return " ".join(lines)
