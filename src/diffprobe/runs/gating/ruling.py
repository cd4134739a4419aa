"""How a rule is decided, and the sentence that says so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from diffprobe.measures.stats import Estimate, Interval, units_to_decide
from diffprobe.report.numbers import Shown, number, shown
from diffprobe.runs.comparison.wording import many, percent
from diffprobe.runs.gating.evidence import Counted, Evidence, Missing, Paired, Separate
from diffprobe.runs.rules import Line, Rule

Outcome = Literal["pass", "fail", "inconclusive"]
_MOST = 10_000_000  # units that anybody would think of


@dataclass(frozen=True)
class Ruling:
    """What became of one rule. `room` is how far `value` lies from `threshold` on the rule's side, negative where it is broken, with
    its interval `lo` to `hi`; of two bounds the one that decides.

    `paired`: whether unit by unit, None where nothing is compared; `rate`: the share of the rows that pair. `needed`: the n that would
    decide, if the value stays. What is None has no value.
    """

    rule: str
    probe: str
    outcome: Outcome
    sentence: str
    value: float | None = None
    threshold: float | None = None
    room: float | None = None
    lo: float | None = None
    hi: float | None = None
    n: int | None = None
    paired: bool | None = None
    rate: float | None = None
    needed: int | None = None


def word(outcome: Outcome) -> str:
    """An outcome as it is printed."""
    return "FAIL" if outcome == "fail" else outcome


class _Bound(NamedTuple):
    """One side of a rule: `room` is positive where the value is on it."""

    threshold: float
    room: Interval
    outcome: Outcome
    needed: int | None
    side: Literal["lower", "upper"]


def decide(rule: Rule, evidence: Evidence | Missing, level: float) -> Ruling:
    """Pass where the whole interval lies on the rule's side, fail where none of it does, else inconclusive."""
    if isinstance(evidence, Missing):
        return Ruling(rule.text, rule.probe, "inconclusive", f"{rule.name} cannot be decided: {evidence.reason.rstrip('.?')}.")
    bounds = _bounds(rule, evidence, level)
    outcome: Outcome = (
        "fail"
        if any(bound.outcome == "fail" for bound in bounds)
        else "pass"
        if all(bound.outcome == "pass" for bound in bounds)
        else "inconclusive"
    )
    worst = min((bound for bound in bounds if bound.outcome == outcome), key=lambda bound: bound.room.value)
    needed = _needed(bounds) if outcome == "inconclusive" else None
    return Ruling(
        rule.text,
        rule.probe,
        outcome,
        _sentence(rule, evidence, worst, outcome, needed),
        evidence.value,
        worst.threshold,
        *worst.room,
        n=evidence.n,
        paired=isinstance(evidence, Paired) if rule.relative else None,
        rate=evidence.rate if isinstance(evidence, Paired) else None,
        needed=needed,
    )


def _bounds(rule: Rule, evidence: Evidence, level: float) -> list[_Bound]:
    lower, upper = rule.lower, rule.upper
    if lower is not None and upper is not None and lower.at(evidence.baseline) > upper.at(evidence.baseline):
        lower, upper = upper, lower  # a margin in per cent of a negative baseline
    found = []
    if upper is not None:
        found.append(_bound("upper", upper, evidence, rule.strict, level))
    if lower is not None:
        found.append(_bound("lower", lower, evidence, rule.strict, level))
    return found


def _bound(side: Literal["lower", "upper"], line: Line, evidence: Evidence, strict: bool, level: float) -> _Bound:
    above = evidence.above(line, level)
    room = above if side == "lower" else Interval(*(0.0 - end for end in (above.value, above.hi, above.lo)))
    outcome: Outcome = "inconclusive"
    if room.lo > 0 or (room.lo == 0 and not strict):
        outcome = "pass"
    elif room.hi < 0 or (room.hi == 0 and strict):
        outcome = "fail"
    needed = units_to_decide(room, 0, evidence.n) if outcome == "inconclusive" else None
    return _Bound(line.at(evidence.baseline), room, outcome, needed, side)


def _needed(bounds: Sequence[_Bound]) -> int | None:
    """The n that would decide every bound that is not decided, of which a broken one is the nearest; None where no number is known."""
    found = [bound.needed for bound in bounds if bound.outcome == "inconclusive"]
    return None if None in found else max(n for n in found if n is not None)


def _sentence(rule: Rule, evidence: Evidence, bound: _Bound, outcome: Outcome, needed: int | None) -> str:
    """The value, how far it is from the threshold, and on what grounds."""
    unit = f" {evidence.unit}" if evidence.unit else ""
    value, threshold = (_as_fine(size, bound.room) for size in (evidence.value, bound.threshold))
    start = f"{rule.name} is {value}{unit}"
    if bound.room.value == 0 and bound.room.lo == bound.room.hi:
        told = f"{start}, and so is the threshold"
    else:
        kept = bound.room.value >= 0
        where = "above" if kept == (bound.side == "lower") else "below"
        amount = _amount(bound.room if kept else Interval(*(-end for end in (bound.room.value, bound.room.hi, bound.room.lo))), evidence)
        told = f"{start}, {amount.value}{unit}{f' {amount.interval}' if amount.interval else ''} {where} {threshold}{unit}"
    tail = f": {_remedy(evidence, needed)}" if outcome == "inconclusive" else ""
    return f"{told} ({_grounds(rule, evidence)}){tail}."


def _amount(room: Interval, evidence: Evidence) -> Shown:
    exact = room.lo == room.hi
    return shown(Estimate("", "", room.value, None if exact else room.lo, None if exact else room.hi, evidence.n))


def _as_fine(size: float, room: Interval) -> str:
    """A number with as many decimals as tell it from another that is `room` away, known so well."""
    half = (room.hi - room.lo) / 2 or abs(room.value)
    if not half:
        return number(size)
    size = round(size, 4 - math.floor(math.log10(half)))
    return shown(Estimate("", "", size, size - half, size + half, 1)).value


def _grounds(rule: Rule, evidence: Evidence) -> str:
    match evidence:
        case Counted():
            return f"a count, of {evidence.n:,}{f', and of {evidence.other_n:,} in the baseline' if evidence.other_n else ''}"
        case Paired():
            return f"n = {evidence.n:,} {many(evidence.per, evidence.n)}, paired, {percent(evidence.rate)} of the rows"
        case Separate():
            told = f"n = {evidence.n:,} {many(evidence.per, evidence.n)}"
            return f"{told}, unpaired, {evidence.other_n:,} in the baseline" if rule.relative else told


def _remedy(evidence: Evidence, needed: int | None) -> str:
    per = "unit" if isinstance(evidence, Counted) else evidence.per
    if needed is None:
        return f"no number of {many(per, 2)} is known to decide"
    if needed > _MOST:
        return f"more than {_MOST:,} {many(per, 2)} would decide"
    told = f"about {_rounded(needed):,} {many(per, needed)}"
    if isinstance(evidence, Separate) and evidence.other_n:
        other = _rounded(needed * evidence.other_n / evidence.n)
        told += " in each run" if evidence.other_n == evidence.n else f", and {other:,} in the baseline,"
    return f"{told} would decide"


def _rounded(n: float) -> int:
    """Upwards to two digits."""
    step = int(10 ** max(0, len(str(int(n))) - 2))
    return math.ceil(n / step) * step
