"""What the guidance sweep concludes, from its records alone: the best setting by each objective, and whether an interval helps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffprobe.measures.stats import Estimate, Interval
from diffprobe.probes.base import Card, Chart, Exhibit, Records, estimated
from diffprobe.probes.speciation.sweep import Setting, Sweep
from diffprobe.probes.speciation.swept_pictures import charts, exhibits, gained, title
from diffprobe.probes.speciation.swept_sets import (
    FULL,
    FULL_COST,
    OBJECTIVES,
    UNGUIDED,
    Compared,
    Eye,
    Images,
    Tried,
    comparisons,
    eyes,
    gathered,
)

_NAME = "speciation"
_SURE = 0.05
_UNKNOWN = Interval(math.nan, math.nan, math.nan)
_RIVALS = {
    FULL: "full guidance with as many steps, which takes more network evaluations",
    FULL_COST: "full guidance at equal cost (fewer steps, as many network evaluations)",
}


@dataclass(frozen=True)
class Swept:
    """What the report shows of a guidance sweep; empty where nothing is measured."""

    estimates: tuple[Estimate, ...] = ()
    charts: tuple[Chart, ...] = ()
    sentences: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    exhibits: tuple[Exhibit, ...] = ()


def swept(sweep: Sweep, records: Records, level: float) -> Swept:
    """Scores of every setting with intervals, the best by each objective, and paired tests against full guidance and none."""
    images = gathered(records)
    if images is None:
        return Swept()
    found = list(eyes(images, records, sweep.k, level))
    tests = [comparisons(eye, level) for eye in found]
    estimates = list(_costs(found))
    for eye, compared in zip(found, tests, strict=True):
        estimates += _scores(eye)
        estimates += _best(eye)
        estimates += (_difference(eye, one) for one in compared)
    estimates += _counted(images)
    told = [line for eye, compared in zip(found, tests, strict=True) for line in _sentences(eye, compared)]
    return Swept(
        tuple(estimates),
        tuple(charts(found, tests[0] if tests else [])),
        (*told, *_uncounted(images, found)),
        tuple(_cards(found, tests, estimates)),
        tuple(exhibits(images, found)),
    )


def marks(found: Swept) -> list[dict[str, Any]]:
    """For each objective the range of sigma on which guidance is best: `lo`, and `hi`, None where it has no upper end.

    Where no guidance is best, `scale` is 1 and both are None.
    """
    rows = []
    for e in found.estimates:
        if e.quantity.startswith("best_"):
            objective, _, embedder = e.quantity.removeprefix("best_").partition(":")
            plain = e.facets["scale"] == 1
            hi = None if plain or e.facets["hi"] == "open" else e.facets["hi"]
            told = {"objective": title(objective, embedder), "embedder": embedder, "lo": None if plain else e.facets["lo"], "hi": hi}
            rows.append({**told, "scale": e.facets["scale"], "guidance": e.facets["guidance"], "value": e.value})
    return rows


def facets(setting: Setting, steps: int | None = None) -> dict[str, str | float | int | bool]:
    """What tells the estimates of one setting from another's."""
    told: dict[str, str | float | int | bool] = {"guidance": str(setting), "scale": setting.scale, "lo": setting.lo}
    told |= {"hi": "open" if setting.hi is None else setting.hi}
    told |= {"at_cost_of": setting.span.rpartition("cost of ")[2]} if setting.matched else {}
    return told if steps is None else {**told, "steps": steps}


def _costs(found: Sequence[Eye]) -> Iterator[Estimate]:
    for one in found[0].tried if found else ():
        cost = Interval(one.evaluations, math.nan, math.nan)
        yield estimated(_NAME, "evaluations", cost, found[0].n, facets(one.setting, one.steps), "an image")


def _scores(eye: Eye) -> Iterator[Estimate]:
    for one in eye.tried:
        for name, score in one.scores.items():
            at = facets(one.setting, one.steps) | ({"extrapolated": eye.raw is None} if name == "frechet" else {})
            yield estimated(_NAME, f"{name}:{eye.embedder}", score.interval, eye.n, at)


def _best(eye: Eye) -> Iterator[Estimate]:
    for objective in OBJECTIVES:
        one = eye.best(objective)
        if one is not None:
            interval = one.scores[objective].interval
            yield estimated(_NAME, f"best_{objective}:{eye.embedder}", interval, eye.n, facets(one.setting, one.steps))


def _difference(eye: Eye, one: Compared) -> Estimate:
    """A setting's score less that of another."""
    tested = {} if math.isnan(one.p) else {"p": one.p, "p_adjusted": one.adjusted}
    at = {**facets(one.tried.setting, one.tried.steps), "against": one.against, "other": str(one.other.setting), **tested}
    interval = Interval(one.found.value, one.found.lo, one.found.hi)
    return estimated(_NAME, f"{one.objective}_difference:{eye.embedder}", interval, eye.n, at)


def _counted(images: Images) -> Iterator[Estimate]:
    """How many images there are, how many do not count, and why; and the settings of which too few do."""
    n = len(images.frame)
    yield Estimate(_NAME, "sweep_images", float(n), None, None, n)
    for flag, number in images.flagged.items():
        yield Estimate(_NAME, "sweep_flagged", float(number), None, None, n, "", {"flag": flag})
    for setting, why in images.lacking.items():
        yield replace(estimated(_NAME, "evaluations", _UNKNOWN, 0, facets(setting), "an image"), reason=why)


def _sentences(eye: Eye, compared: Sequence[Compared]) -> Iterator[str]:
    best = [f"by {title(name, eye.embedder)} {_placed(eye, one, name)}" for name in OBJECTIVES if (one := eye.best(name)) is not None]
    if not best:
        return
    settings = sum(one.guides != "matched" for one in eye.tried)
    yield f"Of {settings} settings with and without guidance, {eye.n} images each, {eye.embedder} finds best {'; '.join(best)}."
    yield from _against_none(eye, compared)
    for against, rival in _RIVALS.items():
        outcomes: dict[str, list[str]] = {}
        for name in OBJECTIVES:
            for outcome, detail in _interval(compared, name, against):
                outcomes.setdefault(outcome, []).append(f"{title(name, eye.embedder)} ({detail})")
        if outcomes:
            told = "; ".join(f"{outcome} by {', '.join(details)}" for outcome, details in outcomes.items())
            gains = "in brackets what the best interval gains over the best full guidance"
            yield f"An interval against {rival}, whatever its scale: {told}; {gains}."
    if eye.raw is not None:
        yield f"{title('frechet', eye.embedder)} is that of the images at hand, without interval or test: {eye.raw}."


def _placed(eye: Eye, one: Tried, objective: str) -> str:
    plain = next((other for other in eye.tried if other.guides == "none" and other is not one and objective in other.scores), None)
    beside = "" if plain is None else f"; without guidance {plain.scores[objective].interval.value:.3g}"
    interval = one.scores[objective].interval
    return f"{_on(one)} ({interval.value:.3g}{_between(interval)}{beside})"


def _against_none(eye: Eye, compared: Sequence[Compared]) -> Iterator[str]:
    tested = [one for one in compared if one.against == UNGUIDED and not math.isnan(one.p)]
    counts = []
    for name in OBJECTIVES:
        sure = [one for one in tested if one.objective == name and one.adjusted < _SURE]
        if any(one.objective == name for one in tested):
            better, worse = sum(one.gain > 0 for one in sure), sum(one.gain < 0 for one in sure)
            counts.append(f"by {title(name, eye.embedder)} {better} better and {worse} worse")
    if counts:
        total = len({one.tried.setting for one in tested})
        rule = f"paired by prompt and seed, Holm over settings and objectives at {_SURE:g}"
        yield f"Against no guidance, of {total} settings of it, {'; '.join(counts)} ({rule})."


def _interval(compared: Sequence[Compared], objective: str, against: str) -> Iterator[tuple[str, str]]:
    """Whether some interval is better than full guidance of every scale, and what the best interval gains over the best full guidance."""
    tested = [one for one in compared if one.objective == objective and one.against == against]
    if not tested:
        return
    sure, sign = [one for one in tested if one.adjusted < _SURE], 1 if OBJECTIVES[objective] else -1
    one = max(sure or tested, key=lambda found: sign * found.tried.scores[objective].interval.value)
    gain = gained(one)
    told = f"{one.tried.setting}: {gain.value:+.2g}{_between(gain)}"
    if math.isnan(one.p):
        yield "untested", told
    elif sure:
        yield "the interval is better", told
    elif gain.hi < 0:
        yield "full guidance comes out better", told
    elif gain.lo > 0:
        yield "no interval is established to be better", f"{told}, p {one.adjusted:.2g} after Holm"
    else:
        yield "full guidance is as good, as far as these images tell,", told


def _uncounted(images: Images, found: Sequence[Eye]) -> Iterator[str]:
    for flag, number in images.flagged.items():
        yield f"{number} of {len(images.frame)} images of the guidance sweep do not count: {flag}."
    for setting, why in images.lacking.items():
        yield f"The setting “{setting}” of the guidance sweep is left out: {why}."
    if not found:
        yield "Too few images of the guidance sweep count for anything to be said about guidance."
    elif not found[0].m:
        yield "The guidance sweep has no reference images yet, so distances to them are missing."


def _cards(found: Sequence[Eye], tests: Sequence[Sequence[Compared]], estimates: Sequence[Estimate]) -> Iterator[Card]:
    """The best by distance and by margin, and what the best interval gains at equal cost."""
    for eye, compared in zip(found[:1], tests, strict=False):
        for objective, head in (("frechet", "lowest"), ("margin", "highest")):
            best = next((e for e in estimates if e.quantity == f"best_{objective}:{eye.embedder}"), None)
            if best is not None:
                yield Card(f"{head} {title(objective, eye.embedder)} of the guidance sweep", best, f"by {best.facets['guidance']}")
        tested = [one for one in compared if one.objective == "frechet" and one.against == FULL_COST]
        if tested:
            one = min(tested, key=lambda found: found.tried.scores["frechet"].interval.value)
            note = f"{_on(one.tried)} less {_on(one.other)}; below zero the interval is nearer to the reference"
            yield Card(f"{title('frechet', eye.embedder)}: interval less full range, same cost", _difference(eye, one), note)


def _on(one: Tried) -> str:
    return f"{one.setting}" + (f" ({one.steps} steps)" if one.setting.matched else "")


def _between(interval: Interval) -> str:
    return "" if math.isnan(interval.lo) else f", {interval.lo:.3g} to {interval.hi:.3g}"
