"""The speciation in sentences: what a reader who reads nothing else should know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from diffprobe.measures.stats import Estimate
from diffprobe.probes.speciation.contests import Contest

_SURE = 0.05
_FAITHFUL = 0.75  # share of the seeds whose images the words tell apart: half would by luck
#: Nats by which too few steps may move an entropy before the result is called too coarse: 3 % of ln 2.
COARSE = 0.02


def sentences(found: Sequence[Contest], estimates: Sequence[Estimate]) -> Iterator[str]:
    """One sentence a finding, each with its numbers."""
    plain = [one for one in found if one.push is None]
    yield from _levels(plain, estimates)
    yield from _order(estimates)
    yield from _windows(plain, estimates)
    yield from _same(plain)
    yield from _steps(estimates)
    yield from _start(estimates)
    yield from _calibration(estimates)
    yield from _adherence(estimates)
    yield from _guided(estimates)
    yield from _uncounted(estimates)


def _levels(plain: Sequence[Contest], estimates: Sequence[Estimate]) -> Iterator[str]:
    committed = sorted((e for e in _unguided(estimates, "commitment") if e.value is not None), key=lambda e: -(e.value or 0.0))
    if committed:
        told = [f"“{e.facets['partition']}” at sigma {e.value:.3g}{_between(e)}" for e in committed[:6]]
        more = f" and {len(committed) - 6} more below" if len(committed) > 6 else ""
        yield f"Half decided, from noise to data: {'; '.join(told)}{more} ({committed[0].n} trajectories a condition)."
    never = [one.partition.name for one in plain if math.isnan(one.profile.commitment.value) and not one.same]
    if never:
        names = ", ".join(f"“{name}”" for name in never[:6])
        yield f"Never half decided: {names}: the sides overlap, or the model does not tell them apart."


def _order(estimates: Sequence[Estimate]) -> Iterator[str]:
    ratios = [e for e in estimates if e.quantity == "commitment_ratio" and e.value is not None]
    if not ratios:
        return
    sure = [e for e in ratios if float(e.facets["p_adjusted"]) < _SURE]
    yield (
        f"Which of two is decided at the higher noise is established for {len(sure)} of {len(ratios)} pairs "
        f"(paired by seed, Holm over all pairs at {_SURE:g})."
    )
    open_pairs = [e for e in ratios if e not in sure][:3]
    if sure and open_pairs:
        told = "; ".join(f"“{e.facets['partition']}” and “{e.facets['other']}”" for e in open_pairs)
        yield f"Not told apart: {told}."


def _windows(plain: Sequence[Contest], estimates: Sequence[Estimate]) -> Iterator[str]:
    ends = {quantity: [e.value for e in _unguided(estimates, quantity) if e.value is not None] for quantity in ("window_lo", "window_hi")}
    if ends["window_lo"] and ends["window_hi"]:
        lo, hi = min(ends["window_lo"]), max(ends["window_hi"])
        which = "" if len(plain) == 1 else ", from the lowest end of a window to the highest"
        yield (
            f"Guidance would act on sigma {lo:.3g} to {hi:.3g}, where entropy is lost at more than half its fastest rate{which}; "
            "whether that serves the images has to be measured."
        )


def _same(plain: Sequence[Contest]) -> Iterator[str]:
    for one in plain:
        if one.same:
            yield (
                f"The sides of “{one.partition.name}” are one and the same to this model: their entropy stays at "
                f"{one.partition.entropy:.3g} nats because nothing is there to decide."
            )


def _steps(estimates: Sequence[Estimate]) -> Iterator[str]:
    needed = {str(e.facets["partition"]): e.value for e in estimates if e.quantity == "steps_needed"}
    for e in estimates:
        name = str(e.facets.get("partition"))
        if e.quantity == "step_bias" and e.value is not None and abs(e.value) > COARSE:
            steps = needed.get(name)
            remedy = f"; about {steps:.0f} would do" if steps is not None else ""
            yield (
                f"The steps are too few for “{name}”: they move its entropy by up to {e.value:+.2g} nats, by the law that holds in "
                f"exact worlds{remedy}."
            )


def _start(estimates: Sequence[Estimate]) -> Iterator[str]:
    early = [e for e in estimates if e.quantity == "start_bias" and e.value is not None and abs(e.value) > COARSE]
    if early:
        worst = max(early, key=lambda e: abs(e.value or 0.0))
        others = f" and {len(early) - 1} more" if len(early) > 1 else ""
        yield (
            f"The noisiest level is not pure noise: data noised to it would already tell “{worst.facets['partition']}”{others}, by up to "
            f"{worst.value:.2g} nats. The sampler begins in pure noise, and so decides later than its data would."
        )


def _calibration(estimates: Sequence[Estimate]) -> Iterator[str]:
    tested = [e for e in estimates if e.quantity == "calibration" and e.lo is not None and e.hi is not None]
    off = [e for e in tested if e.lo is not None and e.hi is not None and not e.lo <= 0 <= e.hi]
    if len(off) > max(1, len(tested) // 10):  # one in twenty misses by luck
        worst = max(off, key=lambda e: abs(e.value or 0.0))
        yield (
            f"The two forms of the entropy differ for {len(off)} of {len(tested)} partitions, most for “{worst.facets['partition']}” "
            f"({worst.value:+.2g} nats{_between(worst)}): the posterior is not calibrated, so trust neither."
        )


def _adherence(estimates: Sequence[Estimate]) -> Iterator[str]:
    for e in estimates:
        if e.quantity.startswith("adherence:") and "guidance" not in e.facets and e.value is not None and e.value < _FAITHFUL:
            yield (
                f"Images hardly follow the words of “{e.facets['partition']}” in the eyes of {e.quantity.removeprefix('adherence:')}: "
                f"{e.value:.0%} are told apart by them{_between(e)}, 50 % by luck; its curve then speaks of something else."
            )


def _guided(estimates: Sequence[Estimate]) -> Iterator[str]:
    for e in estimates:
        if e.quantity == "commitment_shift" and e.value is not None:
            way = "raises" if e.value > 1 else "lowers"
            times = f"{e.value if e.value > 1 else 1 / e.value:.3g} times"
            yield f"Guidance ({e.facets['guidance']}) {way} the sigma at which “{e.facets['partition']}” is half decided {times}{_span(e)}."


def _uncounted(estimates: Sequence[Estimate]) -> Iterator[str]:
    for e in estimates:
        if e.quantity == "flagged" and e.value:
            yield f"{e.value:.0f} of {e.n} trajectories do not count: {e.facets['flag']}."


def _unguided(estimates: Sequence[Estimate], quantity: str) -> list[Estimate]:
    return [e for e in estimates if e.quantity == quantity and "guidance" not in e.facets]


def _span(e: Estimate) -> str:
    """The interval of a ratio, the way up that is told."""
    if e.lo is None or e.hi is None or e.value is None:
        return ""
    ends = (e.lo, e.hi) if e.value > 1 else (1 / e.hi, 1 / e.lo)
    return f" ({ends[0]:.3g} to {ends[1]:.3g})"


def _between(e: Estimate) -> str:
    return "" if e.lo is None or e.hi is None else f" ({e.lo:.3g} to {e.hi:.3g})"
