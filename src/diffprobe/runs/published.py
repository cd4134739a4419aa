"""A finished run against what a study published: agree, differ, or not comparable, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from scipy import stats as ss

from diffprobe.errors import UserError
from diffprobe.measures.stats import Estimate
from diffprobe.runs.result import Run
from diffprobe.runs.sameness import obstacles, same_model, same_scheduler
from diffprobe.runs.study import Report, Study

Outcome = Literal["agree", "differ", "not comparable"]

_LEVEL = 0.95  # of the interval made from a published spread


@dataclass(frozen=True)
class Verdict:
    """What became of one report. `published` is the interval of what was reported; `gap` is how far apart the two intervals are.

    `why` says in words what decided, and `caveats` what the outcome rests on and cannot be proved.
    """

    report: Report
    outcome: Outcome
    why: str
    published: tuple[float, float] | None = None
    estimate: Estimate | None = None
    gap: float | None = None
    caveats: tuple[str, ...] = ()


def check(run: Run | Mapping[str, Run], study: Study) -> tuple[Verdict, ...]:
    """Every report of a study against a finished run of it, or against runs by the names of the study's models.

    A report can be compared where the run has the study's settings, model, sampler and data (no stand-ins), is complete for that probe, and
    has exactly one such estimate that is not null. Then it agrees where the two intervals overlap, and differs elsewhere. Raises
    UserError where a single run is of none, or of several, of the study's models, or a name is not the study's.
    """
    runs = {_model_of(run, study): run} if isinstance(run, Run) else dict(run)
    for name in runs:
        if name not in study.variants():
            raise UserError(f"the study has no model '{name}': it has {', '.join(study.variants())}")
    sides = {name: _Side.of(name, one, study) for name, one in runs.items()}
    return tuple(_judged(report, sides) for report in study.reports)


def interval(report: Report) -> tuple[float, float]:
    """The ends of what is reported: of its range; of 95 % about its mean from its spread; else half a unit of its last digit."""
    if report.value is None:
        return -math.inf if report.lo is None else report.lo, math.inf if report.hi is None else report.hi
    value, half = float(report.value), 0.5 * 10.0 ** int(report.value.as_tuple().exponent)
    if report.plus_minus is not None:
        error = report.plus_minus / math.sqrt(report.n) if report.spread == "sd" and report.n else report.plus_minus
        half = max(half, float(ss.norm.ppf((1 + _LEVEL) / 2)) * error)
    return value - half, value + half


def flat(verdict: Verdict) -> dict[str, Any]:
    """A verdict as one object for JSON; an end of an interval that is open is null."""
    report, found = verdict.report, verdict.estimate
    lo, hi = (None if end is None or math.isinf(end) else end for end in verdict.published or (None, None))
    value = None if report.value is None else float(report.value)
    here = {f"found{end}": getattr(found, name, None) for end, name in (("", "value"), ("_lo", "lo"), ("_hi", "hi"), ("_n", "n"))}
    return {
        **report.model_dump(include={"what", "model", "quantity", "facets", "plus_minus", "spread", "n", "note"}),
        "outcome": verdict.outcome,
        "why": verdict.why,
        "caveats": list(verdict.caveats),
        "published": value,
        "published_lo": lo,
        "published_hi": hi,
        **here,
        "gap": verdict.gap,
    }


@dataclass(frozen=True)
class _Side:
    """A run as the study's model `name`: what keeps all of a probe's estimates from being compared, and what cannot be proved."""

    run: Run
    obstacles: Mapping[str, str]  # of each probe of the study; "" where there is none
    caveats: tuple[str, ...]

    @classmethod
    def of(cls, name: str, run: Run, study: Study) -> _Side:
        spec, probes = study.variants()[name]
        model, sampler = same_model(run.about["model"], spec), same_scheduler(run.about, study.scheduler)
        other = (*model.differences, *sampler.differences)
        told = {probe.name: "; ".join([*other, *obstacles(run, probe, study.stand_ins)]) for probe in probes}
        trusted = (f"that {place} is {what} is taken on trust" for place, what in study.stand_ins.items())
        return cls(run, told, (*model.unproved, *sampler.unproved, *trusted))


def _model_of(run: Run, study: Study) -> str:
    """Which of the study's models a run is of, by its source, or by the name of its directory where several or none have that."""
    variants = study.variants()
    found = [name for name, (spec, _) in variants.items() if not any(same_model(run.about["model"], spec))]
    named = [name for name in (found or variants) if name == run.path.name]
    chosen = found if len(found) == 1 else named or list(variants)
    if len(chosen) > 1:
        raise UserError(
            f"{run.path} could be any of the study's models ({', '.join(chosen)}): give the folder that holds a run of each, by its name"
        )
    return chosen[0]


def _judged(report: Report, sides: Mapping[str, _Side]) -> Verdict:
    if report.quantity is None:
        return Verdict(report, "not comparable", report.note or "")
    side = sides.get(report.model or "")
    if side is None:
        return Verdict(report, "not comparable", f"there is no run of {report.model}", interval(report))
    kind, _, quantity = report.quantity.partition(".")
    if side.obstacles[kind]:
        return Verdict(report, "not comparable", side.obstacles[kind], interval(report))
    found = matches(side.run.estimates, kind, quantity, report.facets)
    if len(found) != 1:
        many = "no estimate" if not found else f"{len(found)} estimates"
        at = f" with {', '.join(f'{name} {value}' for name, value in report.facets.items())}" if report.facets else ""
        return Verdict(report, "not comparable", f"the run has {many} {report.quantity}{at}", interval(report))
    if found[0].value is None:
        return Verdict(report, "not comparable", f"it could not be measured: {found[0].reason}", interval(report), found[0])
    return _compared(report, found[0], (*side.caveats, *filter(None, [report.note])))


def matches(estimates: list[Estimate], kind: str, quantity: str, facets: Mapping[str, object]) -> list[Estimate]:
    """The estimates with all of these facets and the fewest beside them: of the mean and the means of parts, the mean."""
    found = [one for one in estimates if one.probe == kind and one.quantity == quantity and facets.items() <= dict(one.facets).items()]
    fewest = min((len(one.facets) for one in found), default=0)
    return [one for one in found if len(one.facets) == fewest]


def _compared(report: Report, found: Estimate, caveats: tuple[str, ...]) -> Verdict:
    assert found.value is not None
    (low, high), lo, hi = interval(report), *(found.value if end is None else end for end in (found.lo, found.hi))
    gap = max(low - hi, lo - high, 0.0)
    spread = ", which has no interval" if found.lo is None and found.hi is None else f" ({_between(lo, hi)})"
    told = f"published {_between(low, high)}, here {found.value:.4g}{spread}"
    why = f"{told}: {f'they are {gap:.2g} apart' if gap else 'they overlap'}"
    return Verdict(report, "differ" if gap else "agree", why, (low, high), found, gap, caveats)


def _between(lo: float, hi: float) -> str:
    if math.isinf(hi):
        return f"at least {lo:.5g}"
    return f"at most {hi:.5g}" if math.isinf(lo) else f"{lo:.5g} to {hi:.5g}"
