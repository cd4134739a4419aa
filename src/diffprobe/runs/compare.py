"""Several runs set against one of them: what pairs, what differs, and whether that can be told from chance."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from diffprobe.errors import UserError
from diffprobe.report.document import Document
from diffprobe.report.numbers import plain
from diffprobe.report.page import render, write_report
from diffprobe.runs.comparison import wording
from diffprobe.runs.comparison.choices import PROBE, Judged, judged, read_choices
from diffprobe.runs.comparison.contrast import Against, Row, contrasts, finite, flat
from diffprobe.runs.comparison.losses import Loss, losses
from diffprobe.runs.comparison.page import document
from diffprobe.runs.comparison.sides import Side, shortcomings, side
from diffprobe.runs.pairing import check, paired, shared_probes
from diffprobe.runs.result import Run, open_run
from diffprobe.runs.store import SCHEMA, explained, whole
from diffprobe.runs.study import settings


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs against the first of them. Differences are the other run minus the base, paired by unit.

    `rows`: one a quantity and run. `verdicts`: a sentence for each headline quantity. `losses`: the units that lost most, and gained
    most. `notes`: how many rows pair, and what else is to know. `judged`: what people chose, where that was given.
    """

    runs: tuple[Side, ...]
    pairings: tuple[Against, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[str, ...]
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]
    judged: tuple[Judged, ...]
    level: float
    across: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.runs]

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
        for row, sentence in wording.verdicts(self.rows, self.names[0]):
            sentences.setdefault(row.probe, []).append(sentence)
        for sentence in wording.opinions(self.judged, self.names[0]):
            sentences.setdefault(PROBE, []).append(sentence)
        notices = [*shortcomings(self.runs), *wording.remarks(self.pairings)]
        return document(self.runs, self.pairings, self.rows, sentences, notices, self.level)


def compare(
    runs: Mapping[str, Run | str | Path], *, across: Sequence[str] = (), level: float = 0.95, choices: str | Path | None = None
) -> Comparison:
    """Set every run against the first, over the rows and quantities that the two share.

    `across`: settings that are meant to differ. `choices`: a CSV of what people chose (see docs/compare.md). Raises UserError for
    runs that were measured with other instruments or settings, or that share no row, with the difference named.
    """
    if len(runs) < 2:
        raise UserError(f"a comparison needs two runs or more, not {len(runs)}: name another")
    if not 0.5 <= level < 1:
        raise UserError(f"level {level:g} must be at least 0.5 and below 1 (0.95 is usual)")
    if not all(runs):
        raise UserError("a run without a name cannot be told from the others: give each one")
    opened = {name: run if isinstance(run, Run) else open_run(run) for name, run in runs.items()}
    (base_name, base), *others = opened.items()
    for _, other in others:
        check(base, other, across)
    votes = None if choices is None else read_choices(choices, opened)
    found, notes = [], list[str]()
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
    verdicts = (*(sentence for _, sentence in wording.verdicts(rows, base_name)), *wording.opinions(opinions, base_name))
    told = (*shortcomings(sides), *notes, *wording.rates(found, base_name), *wording.remarks(found))
    return Comparison(sides, tuple(found), rows, verdicts, losses(found), told, opinions, level, tuple(across))


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
            found.append(Against(name, probe, replace(pairing, pairs=tuple(map(finite, pairing.pairs)))))
        else:
            notes.append(cause(base, other, probe, across))
    if not found:
        raise UserError(f"there is nothing to compare: {'; '.join(notes)}")
    alone = {probe.name for probe in (*base.probes, *other.probes)} - set(shared_probes(base, other))
    notes += [f"{probe} is in one of the two alone" for probe in sorted(alone)]
    return found, [f"{name}: {note}." for note in notes]


def cause(base: Run, other: Run, probe: str, across: Collection[str]) -> str:
    """Why no row pairs: the column without which rows would, or all that differ, or that none of the shared rows counts."""
    asked = next(one for one in base.probes if one.name == probe)
    columns = [name for name in asked.aligned if name not in across]
    frames = [run.records(probe) for run in (base, other)]

    def common(chosen: Sequence[str]) -> bool:
        return bool(chosen) and bool(set.intersection(*(set(frame[chosen].itertuples(index=False, name=None)) for frame in frames)))

    if common(columns):
        return f"every row of {probe} that both have is flagged in {base.path} or {other.path}"
    one = [name for name in columns if common([column for column in columns if column != name])]
    apart = one or [name for name in columns if not common([name])] or columns
    values = [f"{name} is {_some(frames[0][name])} in {base.path} and {_some(frames[1][name])} in {other.path}" for name in apart]
    remedy = f", or compare across it (--across {apart[0]})" if len(apart) == 1 and apart[0] in settings(asked) else ""
    return f"no row of {probe} pairs, since {' and '.join(values)}: measure both alike{remedy}"


def _some(values: pd.Series) -> str:
    """The first few values of a column."""
    found = list(dict.fromkeys(map(str, values)))
    return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")


def _prompts(runs: Collection[Run]) -> set[str]:
    """Every prompt that a run was asked."""
    found: set[str] = set()
    for run in runs:
        probe = next((one for one in run.probes if one.name == PROBE), None)
        if probe is None:
            raise UserError(f"choices are set against the {PROBE} probe, which {run.path} has not: leave them out")
        found |= set(map(str, run.records(PROBE)[probe.aligned[0]]))
    return found


def _pairing(against: Against) -> dict[str, Any]:
    found = against.pairing
    counts = {name: getattr(found, name) for name in ("common", "flagged", "base_only", "other_only", "rate", "notes")}
    return {"other": against.other, "probe": against.probe, **counts}


def _ends(value: Any) -> Any:
    """An interval as an object."""
    return value._asdict() if hasattr(value, "_asdict") else value
