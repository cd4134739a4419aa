"""What the geometry probe concludes, from its records alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from diffprobe.measures.stats import Estimate, paired_difference, spread_interval
from diffprobe.measures.stats.intervals import Interval, bootstrap
from diffprobe.probes.base import Card, Facets, Findings, Records, estimated
from diffprobe.probes.geometry.evidence import Evidence
from diffprobe.probes.geometry.gallery import exhibits
from diffprobe.probes.geometry.level_sets import LevelSet, Population, Trend
from diffprobe.probes.geometry.pictures import charts
from diffprobe.probes.geometry.separation import Parting, Separation
from diffprobe.probes.geometry.tables import DESCRIPTORS, Array, Group, Wanted, clustered, finite, units
from diffprobe.probes.geometry.verdicts import sentences

NAME = "geometry"
_MEANS = (*DESCRIPTORS, "delta_floor", "rank", "error")
_FEWEST = 2


def summarise(wanted: Wanted, records: Records) -> Findings:
    """Everything that the report shows of the geometry; what is not measured yet is left out, what does not count is counted."""
    found = Evidence(wanted, records)
    if found.frame.empty:
        return Findings((), verdicts=("Nothing is measured yet.",))
    estimates = [
        *(one for group in found.groups for one in _means(group, wanted.level)),
        *_separated(found.separations),
        *_moved(found.groups, wanted.level),
        *_trends(found.trends),
        *_level_sets(found.level_sets),
        *_populations(found.populations),
        *_steps(found.along, wanted.level),
        *_partings(found.partings),
        *_mapped(found),
        *_counted(found.frame),
    ]
    return Findings(
        tuple(estimates), tuple(sentences(found, estimates)), tuple(_cards(found, estimates)), tuple(charts(found)), tuple(exhibits(found))
    )


def mean(values: Array, level: float) -> Interval:
    """The mean of independent units with its interval; nan without any."""
    return bootstrap(values, level=level) if len(values) else Interval(math.nan, math.nan, math.nan)


def _means(group: Group, level: float) -> Iterator[Estimate]:
    """The mean of every descriptor; gain and effective rank by geometric means; how much samples and how much projections scatter psi."""
    for column in _MEANS:
        values = group.values(column)
        if len(values):
            yield estimated(NAME, column, mean(values, level), len(values), group.facets, _unit(column))
    rows = group.rows[(group.rows["trace"] > 0) & group.rows["effective_rank"].notna()]
    logs = rows.assign(gain=np.log(rows["trace"] / rows["output_size"]), effective_rank=np.log(rows["effective_rank"]))
    for name in ("gain", "effective_rank"):
        values = units(logs, [name], group.rows)[name].to_numpy(np.float64)
        if len(values) >= _FEWEST:
            yield estimated(NAME, name, Interval(*(math.exp(part) for part in mean(values, level))), len(values), group.facets)
    psi, error = group.rows["psi"].dropna().to_numpy(np.float64), group.values("psi_error")
    if len(psi) > _FEWEST and np.ptp(psi) > 0:
        spread = spread_interval(psi, level=level)
        told = Interval(spread.value, math.nan, math.nan) if clustered(group.rows) else spread
        yield estimated(NAME, "psi_spread", told, len(psi), group.facets)
        if len(error):
            yield estimated(NAME, "psi_error", mean(error, level), len(error), group.facets)


def _separated(found: Sequence[Separation]) -> Iterator[Estimate]:
    for one in found:
        facets = _sides(one)
        yield estimated(NAME, f"auroc:{one.measure}", one.auroc, one.n, facets)
        for rival, gain in one.gains.items():
            told: Facets = {**facets, "p": gain.p, "p_adjusted": gain.p_adjusted}
            yield estimated(NAME, f"auroc_gain:{one.measure}-{rival}", gain.interval, gain.n, told)


def _partings(found: Sequence[Parting]) -> Iterator[Estimate]:
    for one in found:
        facets: Facets = {**_sides(one), "step": one.step, "sigma": finite(one.sigma), "p_adjusted": one.p_adjusted}
        yield estimated(NAME, f"auroc_along:{one.measure}", one.auroc, one.n, facets)


def _sides(one: Separation | Parting) -> Facets:
    told = {"inside": one.inside.label, "outside": one.outside.label}
    return told if one.outside.checkpoint is None else {**told, "checkpoint": one.outside.checkpoint}


def _moved(found: Sequence[Group], level: float) -> Iterator[Estimate]:
    """What guidance does to the samples of a set: the highest scale against the lowest, pair by pair."""
    for name, checkpoint in dict.fromkeys((one.set, one.checkpoint) for one in found if one.guidance_scale is not None):
        own = [one for one in found if (one.set, one.checkpoint) == (name, checkpoint)]
        low, high = own[0], own[-1]
        if low is high:
            continue
        for column in DESCRIPTORS:
            both = pd.merge(low.rows, high.rows, on=["sample", "seed"], suffixes=("_low", "_high"))
            pairs = units(both, [f"{column}_high", f"{column}_low"])
            if len(pairs) < _FEWEST:
                continue
            change = paired_difference(pairs.iloc[:, 0], pairs.iloc[:, 1], level=level)
            scales = (float(one.guidance_scale or 0) for one in (low, high))
            facets: dict[str, str | float | int | bool] = dict(zip(("from", "to"), scales, strict=True))
            facets |= {"set": name, "p": change.wilcoxon_p}
            if checkpoint is not None:
                facets["checkpoint"] = checkpoint
            yield estimated(NAME, f"guidance_effect:{column}", change.mean, change.n, facets, _unit(column))


def _trends(found: Sequence[Trend]) -> Iterator[Estimate]:
    for one in found:
        yield estimated(NAME, f"correlation:{one.descriptor}:{one.other.removeprefix('score:')}", one.interval, one.n, one.group.facets)


def _level_sets(found: Sequence[LevelSet]) -> Iterator[Estimate]:
    for one in found:
        facets = {**one.group.facets, "descriptor": one.descriptor, "bin": one.bin, "centre": one.centre}
        yield estimated(NAME, f"level_set:{one.score}", one.interval, one.n, facets)


def _populations(found: Sequence[Population]) -> Iterator[Estimate]:
    for one in found:
        facets = {**one.group.facets, "population": one.population, "p_adjusted": one.p}
        yield estimated(NAME, f"population:{one.descriptor}", one.effect, one.n, facets)


def _steps(found: Sequence[Group], level: float) -> Iterator[Estimate]:
    """The descriptors along the trajectories of every generated set."""
    for group in found:
        for step, rows in group.rows.groupby("step", sort=True):
            here = Group(group.set, group.checkpoint, group.guidance_scale, rows)
            facets = {**group.facets, "step": int(step), "sigma": finite(rows["sigma"].iloc[0])}
            for column in DESCRIPTORS:
                values = here.values(column)
                if len(values):
                    yield estimated(NAME, f"{column}_along", mean(values, level), len(values), facets, _unit(column))


def _mapped(found: Evidence) -> Iterator[Estimate]:
    """Mean and spread over the points of a map; points of a grid are no sample, so these have no interval."""
    for name, checkpoint, sigma, rows in found.surfaces:
        facets: dict[str, str | float | int | bool] = {"map": name}
        facets |= {} if checkpoint is None else {"checkpoint": checkpoint}
        facets |= {} if sigma is None else {"sigma": finite(sigma)}
        for column in DESCRIPTORS:
            values = rows[column].dropna().to_numpy(np.float64)
            if len(values) > 1:
                yield estimated(NAME, f"map_mean:{column}", Interval(float(values.mean()), math.nan, math.nan), len(values), facets)
                yield estimated(NAME, f"map_spread:{column}", Interval(float(values.std()), math.nan, math.nan), len(values), facets)


def _counted(frame: pd.DataFrame) -> Iterator[Estimate]:
    """How many samples there are, how many do not count, and why."""
    yield Estimate(NAME, "samples", float(len(frame)), None, None, len(frame))
    reasons = frame["flag"].value_counts()
    if reasons.empty:
        yield Estimate(NAME, "flagged", 0.0, None, None, len(frame))
    for reason, count in reasons.items():
        yield Estimate(NAME, "flagged", float(count), None, None, len(frame), "", {"flag": str(reason)})


def _cards(found: Evidence, estimates: Sequence[Estimate]) -> Iterator[Card]:
    """psi of the reference, the set that psi tells best from it, and what guidance does to it."""
    for group in found.latest[:1]:
        first = next((e for e in estimates if e.quantity == "psi" and e.facets == group.facets), None)
        if first is not None:
            note = "so less dense" if group.is_volume else "which alone is no density"
            yield Card(f"ψ of {group.label}", first, f"{projected(group)}; higher is more stretched, {note}")
    own = [one for one in found.separations if one.measure == "psi" and one.outside.checkpoint == found.last]
    best = max(own, key=lambda one: abs(one.auroc.value - 0.5), default=None)
    if best is not None:
        facets = _sides(best)
        told = next(e for e in estimates if e.quantity == "auroc:psi" and e.facets == facets)
        chosen = f", the one told best of {len(own)}" if len(own) > 1 else ""
        note = f"0.5: told apart no better than by a coin{chosen}"
        yield Card(f"AUROC of ψ, {best.outside.label} against {best.inside.label}", told, note)
    effect = next((e for e in estimates if e.quantity == "guidance_effect:psi" and e.facets.get("checkpoint") == found.last), None)
    if effect is not None:
        yield Card(
            "What guidance does to ψ", effect, f"of {effect.facets['set']}, from {effect.facets['from']:g} to {effect.facets['to']:g}"
        )


def projected(group: Group) -> str:
    """Whether psi is of the whole Jacobian, and of how many directions."""
    directions, size, (low, high) = int(group.rows["directions"].iloc[0]), int(group.rows["latent_size"].iloc[0]), group.ranks
    if directions:
        return f"projected on {directions} of {int(group.rows['output_size'].iloc[0]):,} directions"
    return f"exact, {size} directions" if low == size else f"exact, {low if low == high else f'{low} to {high}'} of {size} directions"


def _unit(column: str) -> str:
    return {"delta": "knots", "delta_floor": "knots", "nu": "directions", "rank": "directions"}.get(column, "")
