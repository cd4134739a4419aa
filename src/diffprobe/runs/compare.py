"""Several runs set against one of them: what pairs, what differs, and whether that can be told from chance."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from diffprobe.errors import UserError
from diffprobe.files import explained, whole
from diffprobe.report.document import Document
from diffprobe.report.numbers import plain
from diffprobe.report.page import render, write_report
from diffprobe.runs.comparison import wording
from diffprobe.runs.comparison.choices import PROBE, Judged, judged, read_choices
from diffprobe.runs.comparison.contrast import Against, Row, contrasts, flat
from diffprobe.runs.comparison.losses import Loss, losses
from diffprobe.runs.comparison.page import document
from diffprobe.runs.comparison.sides import Side, shortcomings, side
from diffprobe.runs.pairing import cause, check, checked, names_of, paired, shared_probes
from diffprobe.runs.result import Run, open_run
from diffprobe.runs.store import SCHEMA


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs against the first of them. Differences are the other run minus the base, paired by unit.

    `rows`: one a quantity and run. `told`: a probe and a sentence for each headline quantity. `losses`: the units that lost most, and
    gained most. `notices`: what a reader should know beside how many rows pair. `judged`: what people chose, where that was given.
    """

    runs: tuple[Side, ...]
    pairings: tuple[Against, ...]
    rows: tuple[Row, ...]
    told: tuple[tuple[str, str], ...]
    losses: tuple[Loss, ...]
    notices: tuple[str, ...]
    judged: tuple[Judged, ...]
    level: float
    across: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.runs]

    @property
    def verdicts(self) -> tuple[str, ...]:
        """A sentence for each headline quantity, and for what people chose."""
        return tuple(sentence for _, sentence in self.told)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know, and how many rows pair."""
        return (*self.notices, *wording.rates(self.pairings, self.names[0]))

    @property
    def table(self) -> pd.DataFrame:
        """One row a quantity and run; facets are columns."""
        return pd.DataFrame([flat(row) for row in self.rows])

    def json(self) -> dict[str, Any]:
        """Everything as plain data: what comparison.json holds."""
        found: dict[str, Any] = plain(
            {
                "schema": SCHEMA,
                "base": self.names[0],
                "level": self.level,
                "across": self.across,
                "runs": [{**one.about, "name": one.name, "done": one.done, "planned": one.planned} for one in self.runs],
                "pairings": [_pairing(against) for against in self.pairings],
                "families": {row.family: row.family_size for row in self.rows},
                "rows": [flat(row) for row in self.rows],
                "verdicts": self.verdicts,
                "losses": [asdict(loss) for loss in self.losses],
                "notes": self.notes,
                "choices": [
                    {
                        "other": one.other,
                        "quantity": one.quantity,
                        **{name: _ends(value) for name, value in one.agreement._asdict().items()},
                    }
                    for one in self.judged
                ],
            }
        )
        return found

    def markdown(self) -> str:
        """The comparison as text that fits a pull request."""
        return wording.markdown(self.names, self.rows, self.verdicts, self.losses, self.notes)

    def report(self, out: str | Path) -> Path:
        """Write the page, one offline HTML file; returns its path."""
        target = Path(out)
        with explained(target):
            return write_report(self._document(), target)

    def displaces(self, folder: str | Path) -> bool:
        """Whether the folder holds the comparison of other runs, which `write` would replace."""
        file = Path(folder) / "comparison.json"
        if not file.is_file():
            return False
        try:
            held = [_known(one) for one in json.loads(file.read_text(encoding="utf-8"))["runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            return True
        return held != [_known(one) for one in self.json()["runs"]]

    def write(self, folder: str | Path) -> tuple[Path, Path, Path]:
        """Write comparison.html, comparison.md and comparison.json, all or none; returns their paths."""
        targets = tuple(Path(folder) / f"comparison.{kind}" for kind in ("html", "md", "json"))
        page, text, data = targets
        contents = render(self._document()), self.markdown(), json.dumps(self.json(), indent=1, allow_nan=False) + "\n"
        with explained(Path(folder)), whole(page) as first, whole(text) as second, whole(data) as third:
            for partial, content in zip((first, second, third), contents, strict=True):
                partial.write_text(content, encoding="utf-8")
        return page, text, data

    def _document(self) -> Document:
        sentences: dict[str, list[str]] = {}
        for probe, sentence in self.told:
            sentences.setdefault(probe, []).append(sentence)
        return document(self.runs, self.pairings, self.rows, sentences, self.notices, self.level)


def compare(
    runs: Mapping[str, Run | str | Path], *, across: str | Sequence[str] = (), level: float = 0.95, choices: str | Path | None = None
) -> Comparison:
    """Set every run against the first, over the rows and quantities that the two share.

    `across`: settings that are meant to differ. `choices`: a CSV of what people chose (see docs/compare.md). Raises UserError for
    runs that were measured with other instruments or settings, or that share no row, with the difference named.
    """
    if not isinstance(runs, Mapping):
        raise UserError('a comparison takes its runs by name: give a mapping, such as {"base": "runs/base", "tuned": "runs/tuned"}')
    if len(runs) < 2:
        raise UserError(f"a comparison needs two runs or more, not {len(runs)}: name another")
    checked(level)
    across = names_of(across)
    if not all(runs):
        raise UserError("a run without a name cannot be told from the others: give each one")
    opened = {name: run if isinstance(run, Run) else open_run(run) for name, run in runs.items()}
    (base_name, base), *others = opened.items()
    for _, other in others:
        check(base, other, across)
    votes = None if choices is None else read_choices(choices, opened)
    found, notes = list[Against](), list[str]()
    for name, other in others:
        pairs, missing = _against(base, name, other, across)
        found += pairs
        notes += missing
    rows = contrasts(found, level)
    if not rows:
        seen = "; ".join(f"{name} was seen by {', '.join(run.about['embedders']) or 'none'}" for name, run in opened.items())
        raise UserError(f"the runs share no quantity ({seen}): measure them with the same instruments")
    opinions = () if votes is None else tuple(judged(votes, found, base_name, _prompts(opened.values()), level))
    sides = tuple(side(name, run) for name, run in opened.items())
    verdicts = [(row.probe, sentence) for row, sentence in wording.verdicts(rows, base_name)]
    verdicts += [(PROBE, sentence) for sentence in wording.opinions(opinions, base_name)]
    notices = (*shortcomings(sides), *notes, *wording.remarks(found))
    return Comparison(sides, tuple(found), rows, tuple(verdicts), losses(found), notices, opinions, level, across)


def _against(base: Run, name: str, other: Run, across: Sequence[str]) -> tuple[list[Against], list[str]]:
    """The pairing of every probe of which both runs have something that pairs, and a sentence for each other one."""
    found, notes = [], []
    for probe in shared_probes(base, other):
        empty = next((run for run in (base, other) if not run.store.done(probe) & set(run.plan.get(probe, ()))), None)
        if empty is not None:
            notes.append(f"nothing of {probe} is measured in {empty.path} yet")
            continue
        pairing = paired(base, other, probe, across)
        if pairing.common:
            found.append(Against(name, probe, pairing))
        else:
            notes.append(cause(base, other, probe, across))
    if not found:
        raise UserError(f"there is nothing to compare: {'; '.join(notes)}")
    alone = {probe.name for probe in (*base.probes, *other.probes)} - set(shared_probes(base, other))
    notes += [f"{probe} is in one of the two alone" for probe in sorted(alone)]
    return found, [f"{name}: {note}." for note in notes]


def _prompts(runs: Collection[Run]) -> set[str]:
    """Every prompt that a run was asked."""
    found: set[str] = set()
    for run in runs:
        probe = next((one for one in run.probes if one.name == PROBE), None)
        if probe is None:
            raise UserError(f"choices are set against the {PROBE} probe, which {run.path} has not: leave them out")
        found |= set(map(str, run.records(PROBE)[probe.aligned[0]]))
    return found


def _known(run: Mapping[str, Any]) -> list[Any]:
    """What stays of a run while it grows."""
    return [run[name] for name in ("name", "created", "model", "embedders")]


def _pairing(against: Against) -> dict[str, Any]:
    found = against.pairing
    counts = {name: getattr(found, name) for name in ("common", "flagged", "base_only", "other_only", "rate", "notes")}
    return {"other": against.other, "probe": against.probe, **counts}


def _ends(value: Any) -> Any:
    """An interval as an object."""
    return value._asdict() if hasattr(value, "_asdict") else value
