"""What people chose between the runs, beside which run scores higher."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffprobe.errors import UserError, unknown
from diffprobe.measures.stats import Agreement, human_agreement
from diffprobe.runs.comparison.contrast import Against
from diffprobe.runs.pairing import Pair

PROBE = "consistency"
#: What stands for no choice, in any case.
_NONE = {"", "tie"}


@dataclass(frozen=True)
class Choice:
    """One annotator's choice for a prompt: the name of a run, or None for neither."""

    prompt: str
    chosen: str | None
    annotator: str


@dataclass(frozen=True)
class Judged:
    """How people's choices between `other` and the base agree with a headline quantity."""

    other: str
    quantity: str
    title: str
    agreement: Agreement


def read_choices(file: str | Path, runs: Collection[str]) -> list[Choice]:
    """The rows of a CSV with the columns `prompt`, `choice` (the name of a run; empty or "tie" for neither) and perhaps `annotator`.

    Without that column, or where it is empty, the rows of a prompt are votes of different people. Raises UserError with one line.
    """
    try:
        with Path(file).open(encoding="utf-8-sig", newline="") as content:
            rows = list(csv.DictReader(content))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read the choices in {file}: {' '.join(str(error).split())}") from error
    lacking = {"prompt", "choice"} - set(rows[0] if rows else ())
    if lacking:
        raise UserError(
            f"{file} must have the columns 'prompt' and 'choice', and at least one row; it lacks {' and '.join(sorted(lacking))}"
        )
    counts: Counter[str] = Counter()
    found = []
    for row in rows:
        prompt, chosen = row["prompt"] or "", (row["choice"] or "").strip()
        if chosen not in runs and chosen.lower() not in _NONE:
            raise unknown(f"run in {file}", chosen, runs)
        counts[prompt] += 1
        annotator = (row.get("annotator") or "").strip() or f"row {counts[prompt]} of the prompt"
        found.append(Choice(prompt, chosen if chosen in runs else None, annotator))
    return found


def judged(choices: Sequence[Choice], found: Sequence[Against], base: str, prompts: Collection[str], level: float) -> Iterator[Judged]:
    """For each run and headline quantity of the consistency probe: how often the majority chose the run with the higher score.

    Between two runs only choices of either, or of neither, count. `prompts` are all that a run was asked; raises UserError for another.
    """
    for choice in choices:
        if choice.prompt not in prompts:
            raise unknown("prompt in the choices", choice.prompt, prompts)
    for against in found:
        between = [choice for choice in choices if choice.chosen in (None, base, against.other)]
        for pair in against.pairing.pairs:
            if against.probe == PROBE and pair.base_comparable.headline:
                yield Judged(
                    against.other,
                    pair.base_comparable.quantity,
                    pair.base_comparable.title,
                    _agreement(between, pair, base, against, level),
                )


def _agreement(choices: Sequence[Choice], pair: Pair, base: str, against: Against, level: float) -> Agreement:
    sign = 1 if pair.base_comparable.better != "lower" else -1
    winner = {
        unit: None if gain == 0 else against.other if gain > 0 else base
        for unit, gain in zip(pair.units, (sign * (pair.other - pair.base)).tolist(), strict=True)
    }
    try:
        return human_agreement([(choice.prompt, choice.chosen, choice.annotator) for choice in choices], winner, level=level)
    except ValueError as error:
        raise UserError(f"the choices: {error}") from error
