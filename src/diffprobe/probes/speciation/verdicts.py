"""The speciation in sentences: what a reader who reads nothing else should know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from diffprobe.measures.stats import Estimate
from diffprobe.probes.speciation.contests import Contest

_SURE = 0.05
_FAITHFUL = 0.75  # share of the seeds whose images the words tell apart: half would by luck
#: By how much of its prior too few steps may move an entropy, and how much of it one step may decide, before they are called too few.
COARSE, LARGEST = 0.03, 0.25
#: Partitions of which all pairs are tested: a thousand classes have half a million.
MOST_PAIRED = 20
#: Nats that the noisiest level may hold before it is told.
_HELD = 0.02
#: A condition that is rarer than one in so many is taken for none that the unconditional model holds.
RAREST = 10_000


def sentences(found: Sequence[Contest], estimates: Sequence[Estimate]) -> Iterator[str]:
    """One sentence a finding, each with its numbers."""
    plain = [one for one in found if one.push is None]
    yield from _levels(plain, estimates)
    yield from _order(estimates)
    yield from _windows(plain)
    yield from _same(plain)
    yield from _steps(estimates)
    yield from _start(estimates)
    yield from _proxy(estimates)
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
    for one in plain:
        if math.isnan(one.profile.commitment.value) and not one.same and (one.profile.entropy < one.partition.entropy / 2).any():
            yield f"Half of “{one.partition.name}” is decided within the first step, from sigma infinite: more steps would tell where."
    never = [one for one in plain if (one.profile.entropy >= one.partition.entropy / 2).all() and not one.same]
    if never:
        names = ", ".join(f"“{one.partition.name}”" for one in never[:6])
        yield f"Never half decided: {names}: the sides overlap, or the model does not tell them apart."


def _order(estimates: Sequence[Estimate]) -> Iterator[str]:
    ratios = [e for e in estimates if e.quantity == "commitment_ratio" and e.value is not None]
    if not ratios:
        levels = len(_unguided(estimates, "commitment"))
        if levels > MOST_PAIRED:
            yield f"The order of {levels} partitions is not tested in pairs, which are done for up to {MOST_PAIRED}."
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


def _windows(plain: Sequence[Contest]) -> Iterator[str]:
    windows = [one.profile.window for one in plain if not all(math.isnan(end.value) for end in one.profile.window)]
    if windows:
        lo = min(np.nan_to_num(low.value) for low, _ in windows)
        hi = max(np.nan_to_num(high.value, nan=math.inf) for _, high in windows)
        reach = f"sigma {lo:.3g} to {hi:.3g}" if math.isfinite(hi) else f"sigma above {lo:.3g}"
        which = "" if len(windows) == 1 else ", from the lowest end of a window to the highest"
        yield (
            f"Guidance would act on {reach}, where entropy is lost at more than half its fastest rate{which}; "
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
    limits = {"step_bias": COARSE, "largest_step": LARGEST}
    short = {
        str(e.facets["partition"]) for e in estimates if e.quantity in limits and e.value is not None and abs(e.value) > limits[e.quantity]
    }
    needed = [e for e in estimates if e.quantity == "steps_needed" and e.facets["partition"] in short and e.value is not None]
    if needed:
        most = max(needed, key=lambda e: e.value or 0.0)
        yield (
            f"The steps are too few for {_named(most, needed)}: they move its entropy by more than {COARSE:.0%} of its "
            f"prior, by the law of exact worlds, or one of them decides more than {LARGEST:.0%} of it; about {most.value:.0f} would do."
        )


def _start(estimates: Sequence[Estimate]) -> Iterator[str]:
    early = [e for e in estimates if e.quantity == "start_bias" and e.value is not None and abs(e.value) > _HELD]
    if early:
        worst = max(early, key=lambda e: abs(e.value or 0.0))
        yield (
            f"The noisiest level is not pure noise: data noised to it would already tell {_named(worst, early)}, by up to "
            f"{worst.value:.2g} nats. The sampler begins in pure noise, and so decides later than its data would."
        )


def _proxy(estimates: Sequence[Estimate]) -> Iterator[str]:
    beyond = [e for e in estimates if e.quantity == "proxy_log_odds" and "sigma" in e.facets and e.value is not None]
    if beyond:
        worst = max(beyond, key=lambda e: e.value or 0.0)
        yield (
            f"The unconditional model does not hold {_named(worst, beyond)} as a part: to it, these trajectories end "
            f"e^{worst.value:.0f} times less likely, and one part in {RAREST:,} would be e^{math.log(RAREST):.1f} times. Below sigma "
            f"{max(float(e.facets['sigma']) for e in beyond):.3g} the curve is about two networks that differ."
        )


def _calibration(estimates: Sequence[Estimate]) -> Iterator[str]:
    tested = [e for e in estimates if e.quantity == "calibration" and e.value is not None]
    off = [e for e in tested if not e.facets["calibrated"]]
    if off:
        worst = max(off, key=lambda e: abs(e.value or 0.0))
        yield (
            f"The two forms of the entropy differ for {len(off)} of {len(tested)} partitions, most for “{worst.facets['partition']}” "
            f"({worst.value:+.2g} nats{_between(worst)}): either luck, or the network does not give one answer to one question."
        )


def _adherence(estimates: Sequence[Estimate]) -> Iterator[str]:
    for e in estimates:
        if e.quantity.startswith("adherence:") and "guidance" not in e.facets and e.value is not None and e.value < _FAITHFUL:
            yield (
                f"Images hardly follow the words of “{e.facets['partition']}” in the eyes of {e.quantity.removeprefix('adherence:')}: "
                f"{e.value:.0%} are told apart by them{_between(e)}, 50 % by luck; its curve then speaks of something else."
            )


def _guided(estimates: Sequence[Estimate]) -> Iterator[str]:
    shifts: dict[str, list[Estimate]] = {}
    for e in estimates:
        if e.quantity == "commitment_shift" and e.value is not None:
            shifts.setdefault(str(e.facets["guidance"]), []).append(e)
    for guidance, found in shifts.items():
        sure = sorted((e for e in found if float(e.facets["p_adjusted"]) < _SURE), key=lambda e: e.value or 0.0)
        if not sure:
            yield f"Guidance ({guidance}) moves no level at which half is decided, as far as these trajectories tell."
            continue
        ends = sure[:1] if len(sure) == 1 else (sure[0], sure[-1])
        told = [f"{e.value:.3g} times for “{e.facets['partition']}”{_between(e)}" for e in ends]
        yield (
            f"Guidance ({guidance}) moves the sigma at which half is decided for {len(sure)} of {len(found)} partitions, "
            f"by {' to '.join(told)}; above 1 is earlier."
        )


def _uncounted(estimates: Sequence[Estimate]) -> Iterator[str]:
    for e in estimates:
        if e.quantity == "flagged" and e.value:
            yield f"{e.value:.0f} of {e.n} trajectories do not count: {e.facets['flag']}."


def _named(worst: Estimate, found: Sequence[Estimate]) -> str:
    """The partition that it is worst for, and of how many."""
    return f"“{worst.facets['partition']}”" + (f" and {len(found) - 1} more" if len(found) > 1 else "")


def _unguided(estimates: Sequence[Estimate], quantity: str) -> list[Estimate]:
    return [e for e in estimates if e.quantity == quantity and "guidance" not in e.facets]


def _between(e: Estimate) -> str:
    return "" if e.lo is None or e.hi is None else f" ({e.lo:.3g} to {e.hi:.3g})"
