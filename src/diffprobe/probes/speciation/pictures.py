"""The speciation in charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Axis, Chart
from diffprobe.probes.speciation.contests import Contest, pushed, redistribution

_SHOWN = 8  # curves in one chart
_PARTITION = Axis("partition", "partition")
_SIGMA = Axis("sigma", "sigma (noise over signal)", log=True)
_ENTROPY = Axis("entropy", "entropy (nats)")
_RATE = Axis("production", "nats per unit of ln sigma")


def charts(found: Sequence[Contest], estimates: Sequence[Estimate]) -> Iterator[Chart]:
    """The entropy and where it is lost, on three clocks; the order of the ladder; the forms against one another; what guidance moves."""
    plain = [one for one in found if one.push is None and not one.same]
    shown = _chosen(plain)
    if shown:
        yield _entropy(shown)
        yield from _production(shown)
    yield from _order(estimates)
    if shown:
        yield _forms(shown)
    yield from _guided(found)


def _chosen(plain: Sequence[Contest]) -> list[Contest]:
    """All where they are few, else some from the first to the last to be decided."""
    if len(plain) <= _SHOWN:
        return list(plain)
    ranked = sorted(plain, key=lambda one: -np.nan_to_num(one.profile.commitment.value))
    return [ranked[place] for place in np.unique(np.linspace(0, len(ranked) - 1, _SHOWN).round().astype(int))]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _entropy(shown: Sequence[Contest]) -> Chart:
    rows = [
        {
            "sigma": float(sigma),
            "entropy": float(value),
            "lo": _finite(lo),
            "hi": _finite(hi),
            "partition": one.partition.name,
            "step": step,
            "log-SNR": -2 * math.log(sigma),
        }
        for one in shown
        for step, (sigma, value, lo, hi) in enumerate(
            zip(one.profile.sigma, one.profile.entropy, one.profile.lo, one.profile.hi, strict=True)
        )
        if math.isfinite(sigma)
    ]
    caption = (
        "How much of the class is undecided at each noise level, data on the left and noise on the right; it begins at the prior's "
        "entropy, ln 2 = 0.693 for two sides."
    )
    return Chart("entropy", "What is still undecided", caption, "line", tuple(rows), _SIGMA, _ENTROPY, lo="lo", hi="hi", series=_PARTITION)


def _production(shown: Sequence[Contest]) -> Iterator[Chart]:
    rows = [row for one in shown for row in _lost(one)]
    by_sigma = [row for row in rows if "sigma" in row]
    caption = (
        "Where the class is decided: the slope of the smoothed entropy on the clock ln sigma. The peak lies elsewhere on another clock, "
        "which is why the next charts show two more."
    )
    series, noise = _PARTITION, Axis("log-SNR", "log-SNR")
    title = "Where it is decided"
    yield Chart("production", title, caption, "line", tuple(by_sigma), _SIGMA, _RATE, lo="lo", hi="hi", series=series, guide="zero")
    title, caption = "The same, by log-SNR", "ln(signal/noise)² = -2 ln sigma, from noise to data."
    rate = Axis("snr rate", "nats per unit of log-SNR")
    yield Chart(
        "production_snr", title, caption, "line", tuple(by_sigma), noise, rate, lo="snr lo", hi="snr hi", series=series, guide="zero"
    )
    title, caption = "The same, by step", "Nats that each step of this sampler decides: what its steps are spent on."
    step, lost = Axis("step", "step"), Axis("lost", "nats per step")
    yield Chart("production_step", title, caption, "line", tuple(rows), step, lost, lo="lost lo", hi="lost hi", series=series, guide="zero")


def _lost(one: Contest) -> Iterator[dict[str, Any]]:
    """What each step decides, on the three clocks; a step from sigma infinite has a place on one of them only."""
    rate, low, high = one.profile.production, one.profile.production_lo, one.profile.production_hi
    for step in range(len(rate.per_step)):
        row = {"partition": one.partition.name, "step": step + 0.5, "lost": float(rate.per_step[step])}
        row |= {"lost lo": _finite(low.per_step[step]), "lost hi": _finite(high.per_step[step])}
        if math.isfinite(rate.rate[step]):
            here, lo, hi = float(rate.rate[step]), _finite(low.rate[step]), _finite(high.rate[step])
            sigma = float(rate.sigma[step])
            row |= {"sigma": sigma, "production": here, "lo": lo, "hi": hi, "log-SNR": -2 * math.log(sigma), "snr rate": here / 2}
            row |= {"snr lo": None if lo is None else lo / 2, "snr hi": None if hi is None else hi / 2}
        yield row


def marked(chart: Chart, best: Sequence[Mapping[str, Any]]) -> Chart:
    """The production profile with the range of sigma on which guidance is best by each objective, as dashed lines below the curves."""
    drawn = [mark for mark in best if mark["lo"] is not None]
    if chart.name != "production" or not drawn or not chart.rows:
        return chart
    sigmas = [float(row["sigma"]) for row in chart.rows]
    unit = max(float(row["production"]) for row in chart.rows) / 12
    curves = [
        {"sigma": end, "production": -unit * (place + 1), "partition": f"best {mark['objective']}: {mark['guidance']}"}
        for place, mark in enumerate(drawn)
        for end in (max(mark["lo"], min(sigmas)), max(sigmas) if mark["hi"] is None else min(mark["hi"], max(sigmas)))
    ]
    caption = f"{chart.caption} Dashed lines below zero: where guidance scored best by each objective, told apart from the rest or not."
    return replace(chart, caption=caption, curves=tuple(curves))


def _order(estimates: Sequence[Estimate]) -> Iterator[Chart]:
    levels = [e for e in estimates if e.quantity == "commitment" and "guidance" not in e.facets and e.value is not None]
    if len(levels) < 2:
        return
    ranked = sorted(levels, key=lambda e: -(e.value or 0.0))
    rows = [{"partition": e.facets["partition"], "sigma": e.value, "lo": e.lo, "hi": e.hi, "trajectories": e.n} for e in ranked]
    caption = "The noise level at which the entropy has fallen to half its prior: the highest is decided first."
    x = Axis("partition", "partition")
    yield Chart("order", "The order of decisions", caption, "interval", tuple(rows), x, _SIGMA, lo="lo", hi="hi")


def _forms(shown: Sequence[Contest]) -> Chart:
    first = sorted(shown, key=lambda one: -np.nan_to_num(one.profile.commitment.value))[0]
    forms = {"posterior": first.posterior, "label": first.label, "I-MMSE": first.immse}
    rows = [
        {"sigma": float(sigma), "entropy": float(value), "form": name}
        for name, curves in forms.items()
        for sigma, value in zip(first.sigma, curves.mean(0), strict=True)
        if math.isfinite(sigma) and math.isfinite(value)
    ]
    caption = (
        f"Three ways to the same entropy, for “{first.partition.name}”. The first two have one mean whatever the network and the number of "
        "steps; I-MMSE adds up squared distances and is too low where steps are coarse."
    )
    return Chart("forms", "Do the forms agree?", caption, "line", tuple(rows), _SIGMA, _ENTROPY, series=Axis("form", "form"))


def _guided(found: Sequence[Contest]) -> Iterator[Chart]:
    """Entropy of guided trajectories, and their production less the unguided one, by partition."""
    shown = list(pushed(found))[: 3 * _SHOWN]
    if not shown:
        return
    plain = {before.partition.name: before for before, _ in shown}
    curves = [row for one in (*plain.values(), *(after for _, after in shown)) for row in _crossed(one)]
    moved = [row for before, after in shown for row in _moved(before, after)]
    series, facet = Axis("guidance", "guidance"), _PARTITION
    caption = "Guided trajectories, unguided likelihoods: the cross entropy E[-log p(class | path)] that the model itself sees in them."
    yield Chart("guided", "Under guidance", caption, "line", tuple(curves), _SIGMA, _ENTROPY, series=series, facet=facet)
    caption = (
        "Production under guidance less that without, seed by seed, both in the label form: above zero guidance decides more at this level "
        "than the model would alone."
    )
    title, rows = "What guidance moves", tuple(moved)
    yield Chart("redistribution", title, caption, "line", rows, _SIGMA, _RATE, lo="lo", hi="hi", series=series, facet=facet, guide="zero")


def _crossed(one: Contest) -> Iterator[dict[str, Any]]:
    told = {"partition": one.partition.name, "guidance": "none" if one.push is None else str(one.push)}
    for sigma, value in zip(one.sigma, one.label.mean(0), strict=True):
        if math.isfinite(sigma):
            yield {"sigma": float(sigma), "entropy": float(value), **told}


def _moved(before: Contest, after: Contest) -> Iterator[dict[str, Any]]:
    change = redistribution(before, after, after.level)
    if change is None:
        return
    told, rate = {"partition": after.partition.name, "guidance": str(after.push)}, change.production
    for sigma, here, lo, hi in zip(rate.sigma, rate.rate, change.production_lo.rate, change.production_hi.rate, strict=True):
        if math.isfinite(here):
            yield {"sigma": float(sigma), "production": float(here), "lo": _finite(lo), "hi": _finite(hi), **told}
