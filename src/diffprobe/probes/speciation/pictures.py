"""The speciation in charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Axis, Chart
from diffprobe.probes.speciation.contests import Contest

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
        "entropy, ln 2 = 0.693 for two sides. Bands are intervals over seeds."
    )
    return Chart("entropy", "What is still undecided", caption, "line", tuple(rows), _SIGMA, _ENTROPY, lo="lo", hi="hi", series=_PARTITION)


def _production(shown: Sequence[Contest]) -> Iterator[Chart]:
    rows: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    for one in shown:
        curve = one.profile
        for step, (sigma, rate, lo, hi) in enumerate(
            zip(curve.production.sigma, curve.production.rate, curve.production_lo.rate, curve.production_hi.rate, strict=True)
        ):
            if math.isfinite(sigma) and math.isfinite(rate):
                at = {
                    "sigma": float(sigma),
                    "log-SNR": -2 * math.log(sigma),
                    "per log-SNR": float(rate) / 2,
                    "partition": one.partition.name,
                }
                rows.append({**at, "production": float(rate), "lo": _finite(lo), "hi": _finite(hi)})
            steps.append({"step": step + 0.5, "lost": float(curve.production.per_step[step]), "partition": one.partition.name})
    caption = (
        "Where the class is decided: the slope of the smoothed entropy on the clock ln sigma. The peak lies elsewhere on another clock, "
        "which is why the next charts show two more."
    )
    title = "Where it is decided"
    yield Chart("production", title, caption, "line", tuple(rows), _SIGMA, _RATE, lo="lo", hi="hi", series=_PARTITION, guide="zero")
    yield Chart(
        "production_snr",
        "The same, by log-SNR",
        "ln(signal/noise)² = -2 ln sigma, from noise to data.",
        "line",
        tuple(rows),
        Axis("log-SNR", "log-SNR"),
        Axis("per log-SNR", "nats per unit of log-SNR"),
        series=_PARTITION,
        guide="zero",
    )
    yield Chart(
        "production_step",
        "The same, by step",
        "Nats that each step of this sampler decides: what its steps are spent on.",
        "line",
        tuple(steps),
        Axis("step", "step"),
        Axis("lost", "nats per step"),
        series=_PARTITION,
        guide="zero",
    )


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
    caption = f"{chart.caption} Dashed lines below zero: where guidance is best by each objective of the sweep."
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
    pushed = [one for one in found if one.push is not None][: 3 * _SHOWN]
    if not pushed:
        return
    names = {one.partition.name for one in pushed}
    plain = {one.partition.name: one for one in found if one.push is None and one.partition.name in names}
    curves, moved = [], []
    for one in [*plain.values(), *pushed]:
        told = {"partition": one.partition.name, "guidance": "none" if one.push is None else str(one.push)}
        for sigma, value in zip(one.profile.sigma, one.profile.entropy, strict=True):
            if math.isfinite(sigma):
                curves.append({"sigma": float(sigma), "entropy": float(value), **told})
        base = plain.get(one.partition.name)
        if one.push is None or base is None:
            continue
        for sigma, rate, before in zip(
            one.profile.production.sigma, one.profile.production.rate, base.profile.production.rate, strict=True
        ):
            if math.isfinite(rate) and math.isfinite(before):
                moved.append({"sigma": float(sigma), "production": float(rate - before), **told})
    series, facet = Axis("guidance", "guidance"), _PARTITION
    caption = "Guided trajectories, unguided likelihoods: the cross entropy E[-log p(class | path)] that the model itself sees in them."
    yield Chart("guided", "Under guidance", caption, "line", tuple(curves), _SIGMA, _ENTROPY, series=series, facet=facet)
    caption = "Production under guidance less that without: above zero guidance decides more at this level than the model would alone."
    title = "What guidance moves"
    yield Chart("redistribution", title, caption, "line", tuple(moved), _SIGMA, _RATE, series=series, facet=facet, guide="zero")
