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
from diffprobe.runs.sameness import require_sound, same_dtype, same_measurement, same_model, same_scheduler
from diffprobe.runs.study import Report, Study, slug

Outcome = Literal["agree", "differ", "not comparable"]

_LEVEL = 0.95  # of the interval made from a published spread


@dataclass(frozen=True)
class Verdict:
    """What became of one report. `published` is the interval of what was reported; `gap` is by how much the two are too far apart.

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

    A report can be compared where the run has the study's settings, model, sampler, precision and data (no stand-ins), is complete for
    that probe, and has exactly one such estimate that is not null. A value with a spread agrees where the two are no further apart than
    the root of the sum of the squared half-widths, one without where our interval reaches its rounding; a range where it holds our
    interval, and what reaches beyond it is undecided. Raises UserError where a single run is of none, or of several, of the study's
    models, a name is not the study's, or run.json is damaged.
    """
    for one in (run,) if isinstance(run, Run) else run.values():
        require_sound(one.path, one.about)
    runs = {_model_of(run, study): run} if isinstance(run, Run) else dict(run)
    for name in runs:
        if name not in study.variants():
            has = f"it has {', '.join(study.models)}" if study.models else "it has one, without a name: give its run alone"
            raise UserError(f"the study has no model '{name}': {has}")
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
    """A run as the study's model `name`: what keeps each probe's estimates from being compared, and what of them cannot be proved."""

    run: Run
    obstacles: Mapping[str, str]  # of each probe of the study; "" where there is none
    caveats: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, name: str, run: Run, study: Study) -> _Side:
        spec, probes = study.variants()[name]
        about = run.about["model"]
        parts = (same_model(about, spec), same_scheduler(run.about, study.scheduler), same_dtype(about, study.torch_dtype))
        found = {probe.name: (*parts, same_measurement(run, probe, study.stand_ins)) for probe in probes}
        told = {kind: "; ".join(line for side in sides for line in side.differences) for kind, sides in found.items()}
        return cls(run, told, {kind: tuple(line for side in sides for line in side.unproved) for kind, sides in found.items()})


def _model_of(run: Run, study: Study) -> str:
    """Which of the study's models a run is of: by its source, or by the name of its directory where several or none have that."""
    variants = study.variants()
    if len(variants) == 1:
        return next(iter(variants))
    sides = {name: same_model(run.about["model"], spec) for name, (spec, _) in variants.items()}
    possible = [name for name, side in sides.items() if not side.differences]
    sure = [name for name in possible if not sides[name].unproved]
    if len(sure) == 1:
        return sure[0]
    directory = run.path.resolve().name
    named = [name for name in (sure or possible or variants) if slug(name) == directory]
    if named or len(possible) == 1:
        return (named or possible)[0]
    if possible:
        raise UserError(
            f"{run.path} could be any of the study's models ({', '.join(sure or possible)}): give the folder that holds a run of each, "
            "by its name"
        )
    source = run.about["model"].get("source", "not told")
    raise UserError(f"{run.path} is a run of none of the study's models ({', '.join(variants)}): the source of its model is {source}")


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
    return _compared(report, found[0], (*side.caveats[kind], *filter(None, [report.note])))


def matches(estimates: list[Estimate], kind: str, quantity: str, facets: Mapping[str, object]) -> list[Estimate]:
    """The estimates with all of these facets and the fewest beside them: of the mean and the means of parts, the mean."""
    found = [one for one in estimates if one.probe == kind and one.quantity == quantity and facets.items() <= dict(one.facets).items()]
    fewest = min((len(one.facets) for one in found), default=0)
    return [one for one in found if len(one.facets) == fewest]


def _compared(report: Report, found: Estimate, caveats: tuple[str, ...]) -> Verdict:
    assert found.value is not None
    (low, high), lo, hi = interval(report), *(found.value if end is None else end for end in (found.lo, found.hi))
    spread = ", which has no interval" if found.lo is None and found.hi is None else f" ({_between(lo, hi)})"
    told = f"published {_between(low, high)}, here {found.value:.4g}{spread}"
    if report.value is None:
        inside, gap = low <= lo and hi <= high, max(low - hi, lo - high, 0.0)
        why = "it lies inside" if inside else f"they are {gap:.2g} apart" if gap else "the interval reaches beyond the range: undecided"
        outcome: Outcome = "agree" if inside else "differ" if gap else "not comparable"
        return Verdict(report, outcome, f"{told}: {why}", (low, high), found, None if outcome == "not comparable" else gap, caveats)
    gap = _excess(report, found.value, lo, hi)
    why = f"{told}: they are {f'{gap:.2g} further apart than these allow' if gap else 'no further apart than these allow'}"
    return Verdict(report, "differ" if gap else "agree", why, (low, high), found, gap, caveats)


def _excess(report: Report, found: float, lo: float, hi: float) -> float:
    """By how much a value and ours are further apart than their half-widths allow; ours is that of the side that faces the value.

    Two independent errors add up as their squares do; a rounding is none, and adds up as it is.
    """
    low, high = interval(report)
    value, half = (low + high) / 2, (high - low) / 2
    ours = found - lo if value < found else hi - found
    allowed = half + ours if report.plus_minus is None else math.hypot(half, ours)
    return max(abs(value - found) - allowed, 0.0)


def _between(lo: float, hi: float) -> str:
    if math.isinf(hi):
        return f"at least {lo:.5g}"
    return f"at most {hi:.5g}" if math.isinf(lo) else f"{lo:.5g} to {hi:.5g}"
