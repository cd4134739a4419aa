"""The charts of the drift report, as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from diffprobe.measures.drift import Factors, Selection, predict, regressors
from diffprobe.measures.laws import Levels
from diffprobe.measures.stats import Estimate
from diffprobe.probes.base import Axis, Chart, Row
from diffprobe.probes.drift.slices import LOOKS, Summary

_STRENGTH, _SIGMA = Axis("strength", "strength asked for"), Axis("sigma", "noise-to-signal ratio sigma at the start", log=True)
_TITLES = {"mse": "mean squared error", "cosine": "cosine distance", "lpips": "LPIPS distance"}
_LOOKS = {
    "cosine": ("How far the meaning moves", "Cosine distance between the features of original and edit."),
    "lpips": ("How different it looks", "LPIPS between original and edit: 0 for equal images."),
}


def charts(summary: Summary, estimates: Sequence[Estimate]) -> Iterator[Chart]:
    """Drift over strength by setting, the laws, the parts of the drift, and its domains."""
    yield _over(
        summary,
        "mse",
        "How much changes",
        "Mean over images of the squared error against the original, by the strength that was asked for.",
    )
    for metric in (name for name in summary.metrics if name.startswith(LOOKS)):
        kind, _, label = metric.partition(":")
        title, caption = _LOOKS[kind]
        yield _over(summary, metric, f"{title} ({label})", caption)
    yield from _laws(summary)
    if not summary.budget.empty:
        yield _parts(summary)
        yield _factors(estimates)
    yield from _domains(summary, estimates)


def _over(summary: Summary, metric: str, title: str, caption: str) -> Chart:
    rows = tuple(_row(e, series=_series(summary, e)) for e in summary.means if e.quantity == metric and e.value is not None)
    axis = Axis("value", _TITLES[metric.partition(":")[0]])
    return Chart(
        f"{metric.replace(':', '-')}-over-strength",
        title,
        caption,
        "line",
        rows,
        _STRENGTH,
        axis,
        "lo",
        "hi",
        Axis("series", _varying(summary)),
    )


def _laws(summary: Summary) -> Iterator[Chart]:
    """The means against the noise level, or the strength where that is not told, with the fitted laws; which law wins how often."""
    found = summary.selection
    if not found.support:
        return
    axis = _SIGMA if summary.main.told else _STRENGTH
    places = np.asarray(getattr(found.levels, axis.column), np.float64)
    rows = tuple({axis.column: float(x), "value": float(y), "series": "measured"} for x, y in zip(places, found.means, strict=True))
    curves = tuple(row for name in _foremost(found) for row in _curve(summary, name, axis.column))
    yield Chart(
        "laws",
        "Which law the drift follows",
        "Means at the levels that were run (points), and what the foremost laws and the published one say there (lines).",
        "scatter",
        rows,
        axis,
        Axis("value", "mean squared error"),
        series=Axis("series", "law"),
        curves=curves,
    )
    shares = {name: support.share for name, support in found.support.items() if found.winner is not None}
    bars = tuple({"law": name, "value": share} for name, share in shares.items() if np.isfinite(share))
    caption = "Share of resamples of the images in which a law predicts a left-out level best."
    yield Chart("law-shares", "How sure that choice is", caption, "bar", bars, Axis("law", "law"), Axis("value", "share of resamples"))


def _foremost(found: Selection) -> list[str]:
    """The two laws that win most often, and the square of the strength."""
    names = sorted(found.support, key=lambda name: -found.support[name].share)[:2]
    return names if "strength^2" in names or "strength^2" not in found.support else [*names, "strength^2"]


def _curve(summary: Summary, name: str, column: str) -> list[Row]:
    """A law's predictions at the measured levels, placed by that one of their fields."""
    found = summary.selection
    fit, levels = found.support[name].fit, Levels(*(np.asarray(part, np.float64) for part in found.levels))
    x, _ = regressors(*levels)[name]
    values = predict(fit, x)
    return [{column: float(s), "value": float(v), "series": name} for s, v in zip(getattr(levels, column), values, strict=True)]


def _parts(summary: Summary) -> Chart:
    names = {"floor": "autoencoder alone", "move": "edit beyond it", "cross": "their overlap"}
    means = summary.budget.groupby("requested_strength")[list(names)].mean()
    rows = tuple(
        {"strength": f"{strength:g}", "value": float(values[part]), "series": told}
        for strength, values in means.iterrows()
        for part, told in names.items()
    )
    caption = "The mean squared error splits exactly: total = floor + move + cross. The overlap can be negative."
    return Chart(
        "budget",
        "Which part of the pipeline does it",
        caption,
        "stack",
        rows,
        _STRENGTH,
        Axis("value", "mean squared error"),
        series=Axis("series", "part"),
    )


def _factors(estimates: Sequence[Estimate]) -> Chart:
    found = [e for e in estimates if e.quantity in Factors._fields[1:] and e.value is not None]
    caption = "The alignment: how much more the decoder amplifies what the edit moves than noise of the same energy."
    if "contraction" in {e.quantity for e in found}:
        caption = (
            "To first order the move is what the decoder makes of noise of that level, times the contraction (the share of the noise's "
            "energy that the denoiser leaves) and the alignment (how much more the decoder amplifies what is left)."
        )
    return Chart(
        "factors",
        "Why the move is as large as it is",
        caption,
        "line",
        tuple(_row(e, series=e.quantity) for e in found),
        _SIGMA,
        Axis("value", "factor"),
        "lo",
        "hi",
        Axis("series", "factor"),
    )


def _domains(summary: Summary, estimates: Sequence[Estimate]) -> Iterator[Chart]:
    top = float(summary.main.levels.index[-1])
    found = [e for e in estimates if e.quantity == "mse" and "domain" in e.facets and e.facets["strength"] == top and e.value is not None]
    if len(found) < 2:
        return
    rows = tuple({"domain": str(e.facets["domain"]), "value": e.value, "lo": e.lo, "hi": e.hi, "n": e.n} for e in found)
    caption = f"Mean squared error at strength {top:g}, by the images' domain."
    yield Chart(
        "domains", "Where it happens", caption, "bar", rows, Axis("domain", "domain"), Axis("value", "mean squared error"), "lo", "hi"
    )


def _row(e: Estimate, **more: str) -> Row:
    return {
        "strength": e.facets["strength"],
        "sigma": e.facets.get("sigma"),
        "steps": e.facets.get("steps"),
        "value": e.value,
        "lo": e.lo,
        "hi": e.hi,
        "n": e.n,
        **more,
    }


def _varying(summary: Summary) -> str:
    """The title of what sets the lines apart."""
    names = [name for name in summary.main.setting if len({part.setting[name] for part in summary.slices}) > 1]
    return ", ".join(name.replace("_", " ") for name in names) or "prompt set"


def _series(summary: Summary, e: Estimate) -> str:
    names = [name for name in summary.main.setting if len({part.setting[name] for part in summary.slices}) > 1] or ["prompt_set"]
    return ", ".join(str(e.facets[name]) for name in names)
