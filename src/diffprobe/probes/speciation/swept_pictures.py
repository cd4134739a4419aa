"""The guidance sweep in charts, and in pictures of the same seeds under several settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diffprobe.measures.sets.frechet import frechet_name
from diffprobe.measures.stats import Interval
from diffprobe.probes.base import Axis, Chart, Exhibit
from diffprobe.probes.speciation.swept_sets import FULL_COST, OBJECTIVES, Compared, Eye, Images, Tried

_SEEDS, _SHOWN = 4, 8  # rows of the gallery, and settings in each
_SPAN = Axis("span", "guided on")
_SCALE = Axis("scale", "guidance scale")
_EYE = Axis("embedder", "instrument")
_TITLES = {
    "frechet": ("How far from the reference", "Frechet distance"),
    "precision": ("How many images look like the reference", "precision"),
    "recall": ("How much of the reference is reached", "recall"),
    "margin": ("How well images tell their prompt", "margin (cosine)"),
}
_CAPTIONS = {
    "frechet": "Frechet distance to the reference images, by guidance scale; scale 1 is no guidance. Lower is nearer.",
    "precision": "Share of images within the neighbourhoods of the reference; scale 1 is no guidance. Higher is better.",
    "recall": "Share of the reference within the neighbourhoods of the images; scale 1 is no guidance. Higher is more diverse.",
    "margin": "Likeness to an image's own words less the greatest likeness to those of other prompts; scale 1 is no guidance.",
}


def title(objective: str, embedder: str) -> str:
    """What an objective is called: the Frechet distance by its instrument's name in the field."""
    return frechet_name(embedder) if objective == "frechet" else objective


def charts(found: Sequence[Eye], compared: Sequence[Compared]) -> Iterator[Chart]:
    """Each objective by scale, a line an interval; what two of them trade; and what an interval gains at equal cost."""
    for objective in OBJECTIVES:
        rows = [row for eye in found for row in _lines(eye, objective)]
        if rows:
            (head, axis), caption = _TITLES[objective], _CAPTIONS[objective]
            y, facet = Axis(objective, axis), _EYE if len({row["embedder"] for row in rows}) > 1 else None
            name = f"sweep_{objective}"
            yield Chart(name, head, caption, "line", tuple(rows), _SCALE, y, lo="lo", hi="hi", series=_SPAN, facet=facet)
    yield from _trade(found, "recall", "precision", "Each point is a setting; guidance usually buys precision with recall.")
    yield from _trade(found, "margin", "frechet", "Each point is a setting: the best lie to the right, and low.")
    yield from _costs(found)
    yield from _gains(compared)


def exhibits(images: Images, found: Sequence[Eye]) -> Iterator[Exhibit]:
    """The first seeds without guidance, under the settings that are best by some objective, and under the full range by their scales."""
    rows = {str(setting): chosen for setting, chosen in images.rows.items()}
    best = [one for eye in found for objective in OBJECTIVES for one in [eye.best(objective)] if one is not None]
    scales = {one.setting.scale for one in best}
    full = [one for eye in found[:1] for one in eye.tried if one.guides == "full" and one.setting.scale in scales]
    names = list(dict.fromkeys(["unguided", *(str(one.setting) for one in (*best, *full))]))[:_SHOWN]
    shown = [name for name in names if name in rows]
    for place in range(min(_SEEDS, len(next(iter(rows.values()), ())))):
        at = {name: images.frame.iloc[rows[name][place]] for name in shown}
        pictures = {name: str(row["picture"]) for name, row in at.items() if isinstance(row["picture"], str)}
        if pictures:
            row = next(iter(at.values()))
            yield Exhibit("guidance", f"“{row['prompt']}”, seed {row['seed']}", pictures)


def _lines(eye: Eye, objective: str) -> Iterator[dict[str, Any]]:
    """Every line of as many steps begins without guidance."""
    asked = [one for one in eye.tried if objective in one.scores]
    spans = dict.fromkeys(one.setting.span for one in asked if one.guides in ("full", "interval"))
    for span in spans or ["full range"]:
        yield from (_row(eye, one, objective, span) for one in asked if one.guides == "none")
        yield from (_row(eye, one, objective, span) for one in asked if one.setting.span == span and one.guides in ("full", "interval"))
    yield from (_row(eye, one, objective, one.setting.span) for one in asked if one.guides == "matched")


def _row(eye: Eye, one: Tried, objective: str, span: str) -> dict[str, Any]:
    value, lo, hi = (None if not np.isfinite(part) else float(part) for part in one.scores[objective].interval)
    told = {"steps": one.steps, "evaluations": one.evaluations, "images": eye.n, "embedder": eye.embedder}
    return {"scale": one.setting.scale, objective: value, "lo": lo, "hi": hi, "span": span, **told}


def _trade(found: Sequence[Eye], across: str, up: str, caption: str) -> Iterator[Chart]:
    rows = [
        {
            across: one.scores[across].interval.value,
            up: one.scores[up].interval.value,
            "span": "unguided" if one.guides == "none" else one.setting.span,
            "scale": one.setting.scale,
            "evaluations": one.evaluations,
            "embedder": eye.embedder,
        }
        for eye in found
        for one in eye.tried
        if {across, up} <= one.scores.keys()
    ]
    if len(rows) > 1:
        x, y = (Axis(name, _TITLES[name][1]) for name in (across, up))
        facet = _EYE if len({row["embedder"] for row in rows}) > 1 else None
        told = f"{up} against {across}".replace("frechet", "Frechet distance").capitalize()
        yield Chart(f"sweep_{up}_{across}", told, caption, "scatter", tuple(rows), x, y, series=_SPAN, facet=facet)


def _costs(found: Sequence[Eye]) -> Iterator[Chart]:
    """The Frechet distance against what an image costs, where settings cost different amounts."""
    rows = [
        {**_row(eye, one, "frechet", "unguided" if one.guides == "none" else one.setting.span)}
        for eye in found[:1]
        for one in eye.tried
        if "frechet" in one.scores
    ]
    if len({row["evaluations"] for row in rows}) > 2:
        caption = (
            f"Network evaluations an image and distance to the reference, in the eyes of {found[0].embedder}; each point is a setting."
        )
        x, y = Axis("evaluations", "network evaluations an image"), Axis("frechet", _TITLES["frechet"][1])
        yield Chart("sweep_cost", "What an image costs", caption, "scatter", tuple(rows), x, y, series=_SPAN)


def _gains(compared: Sequence[Compared]) -> Iterator[Chart]:
    """Each interval against the best full guidance that costs the same."""
    for objective in OBJECTIVES:
        tested = [one for one in compared if one.objective == objective and one.against == FULL_COST and np.isfinite(one.p)]
        rows = [
            {"setting": str(one.tried.setting), **_gain(one), "against": str(one.other.setting), "p adjusted": one.adjusted}
            for one in tested
        ]
        if rows:
            caption = (
                "Better (above zero) or worse than the best full guidance of fewer steps, which takes as many network evaluations; "
                "paired by prompt and seed."
            )
            axis = Axis("gain", f"gain in {_TITLES[objective][1]}")
            name = f"sweep_gain_{objective}"
            told = f"What an interval gains at equal cost: {_TITLES[objective][1]}"
            yield Chart(name, told, caption, "interval", tuple(rows), Axis("setting", "setting"), axis, lo="lo", hi="hi", guide="zero")


def _gain(one: Compared) -> dict[str, float]:
    ends = (one.found.lo, one.found.hi) if OBJECTIVES[one.objective] else (-one.found.hi, -one.found.lo)
    return {"gain": one.gain, "lo": ends[0], "hi": ends[1]}


def gained(one: Compared) -> Interval:
    """The difference, positive where the setting is better, with its interval."""
    told = _gain(one)
    return Interval(told["gain"], told["lo"], told["hi"])
