"""What the speciation probe concludes, from its records alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import stats as ss

from diffprobe.measures.speciation.steps import discretisation_bias, steps_needed
from diffprobe.measures.stats import Estimate, holm
from diffprobe.measures.stats.intervals import Interval, bootstrap, score_limits
from diffprobe.measures.stats.paired import paired_difference
from diffprobe.probes.base import Card, Facets, Findings, Records, estimated
from diffprobe.probes.speciation.contests import Contest, contests
from diffprobe.probes.speciation.gallery import exhibits
from diffprobe.probes.speciation.partitions import Partition, Push
from diffprobe.probes.speciation.pictures import charts, marked
from diffprobe.probes.speciation.swept import Swept, marks
from diffprobe.probes.speciation.verdicts import COARSE, sentences

NAME = "speciation"
_LEVELS = 16  # of a curve, told as estimates; the charts have them all
UNKNOWN = Interval(math.nan, math.nan, math.nan)


def summarise(asked: Sequence[Partition], pushes: Sequence[Push], records: Records, level: float) -> Findings:
    """Everything that the report shows of the speciation; what is not measured yet is left out, what does not count is counted."""
    found = contests(asked, pushes, records, level)
    if not found:
        return Findings(tuple(_counted(records)), verdicts=("Nothing is measured yet that a partition could be read from.",))
    estimates: list[Estimate] = []
    for one in found:
        estimates += _profiled(one)
        estimates += _trusted(one)
        estimates += _curve(one)
    plain = [one for one in found if one.push is None]
    estimates += _order(plain, level)
    estimates += _moved(found, level)
    estimates += _counted(records)
    return Findings(
        tuple(estimates),
        tuple(sentences(found, estimates)),
        tuple(_cards(plain, estimates)),
        tuple(charts(found, estimates)),
        tuple(exhibits(plain, records)),
    )


def with_sweep(findings: Findings, found: Swept) -> Findings:
    """The findings with those of a guidance sweep, whose best ranges are drawn on the production profile."""
    return Findings(
        (*findings.estimates, *found.estimates),
        (*findings.verdicts, *found.sentences),
        (*findings.cards, *found.cards),
        (*(marked(chart, marks(found)) for chart in findings.charts), *found.charts),
        (*findings.gallery, *found.exhibits),
    )


def facets(one: Contest) -> dict[str, str | float]:
    """What tells the estimates of one contest from another's."""
    told: dict[str, str | float] = {"partition": one.partition.name}
    return told if one.push is None else {**told, "guidance": str(one.push)}


def _profiled(one: Contest) -> Iterator[Estimate]:
    """Where it is decided: half level, peak and window, in sigma; and what stays undecided."""
    curve, n, where = one.profile, len(one.seeds), facets(one)

    def told(quantity: str, interval: Interval, unit: str = "sigma") -> Estimate:
        return estimated(NAME, quantity, interval, n, where, unit)

    never = f"the entropy stays above half of {one.partition.entropy:.3g} nats"
    yield replace(told("commitment", curve.commitment), reason=never if math.isnan(curve.commitment.value) else None)
    yield told("peak", curve.peak)
    yield told("peak_step", curve.peak_step, "steps")
    yield told("window_lo", curve.window[0])
    yield told("window_hi", curve.window[1])
    yield told("window_share", curve.share_inside, "")
    yield told("smoothing", Interval(curve.bandwidth, math.nan, math.nan), "steps")
    yield told("undecided", Interval(float(curve.entropy[-1]), float(curve.lo[-1]), float(curve.hi[-1])), "nats")


def _trusted(one: Contest) -> Iterator[Estimate]:
    """How far the numbers can be trusted: calibration, the I-MMSE form, the step count, and whether images follow their words."""
    n, where = len(one.seeds), facets(one)
    if one.push is None:
        gap = bootstrap((one.label - one.posterior).mean(1), level=one.level)
        yield estimated(NAME, "calibration", gap, n, where, "nats")
        apart = bootstrap((one.immse - one.posterior).mean(1), level=one.level)
        yield estimated(NAME, "immse_difference", apart, n, where, "nats")
        yield from _steps(one)
    for name, told in one.adherence.items():
        sound = told[~np.isnan(told)]
        share, quantile = float(sound.mean()) if len(sound) else math.nan, float(ss.norm.ppf((1 + one.level) / 2))
        # A share of pairs varies no more between seeds than one of yes and no, for which the score interval is.
        limits = score_limits(share, len(sound), quantile) if len(sound) else (math.nan, math.nan)
        yield estimated(NAME, f"adherence:{name}", Interval(share, *limits), len(sound), where)


def _steps(one: Contest) -> Iterator[Estimate]:
    """What the step count, and the noise that the path begins with, do to the entropy: at the worst level, and at the last."""
    if one.same:
        return
    count, prior, where, n = min(len(one.gaps), len(one.sigma)), one.partition.entropy, facets(one), len(one.seeds)
    run = one.sigma[:count], one.gaps[:count], one.profile.entropy[:count]
    steps, whole = (discretisation_bias(*run, prior_entropy=prior, start=start) for start in (False, True))
    yield estimated(NAME, "step_bias", Interval(_worst(steps), math.nan, math.nan), n, where, "nats")
    yield estimated(NAME, "start_bias", Interval(_worst(whole - steps), math.nan, math.nan), n, where, "nats")
    needed = steps_needed(*run, prior_entropy=prior, tolerance=COARSE)
    yield estimated(NAME, "steps_needed", Interval(float(needed), math.nan, math.nan), n, where, "steps")


def _worst(values: npt.NDArray[np.float64]) -> float:
    return float(values[np.argmax(np.abs(values))])


def _curve(one: Contest) -> Iterator[Estimate]:
    """The entropy at some levels from noise to data."""
    curve, where = one.profile, facets(one)
    for step in np.unique(np.linspace(0, len(curve.sigma) - 1, min(_LEVELS, len(curve.sigma))).round().astype(int)):
        interval = Interval(float(curve.entropy[step]), float(curve.lo[step]), float(curve.hi[step]))
        sigma = float(curve.sigma[step])
        at: Facets = {**where, "step": int(step), "sigma": sigma if math.isfinite(sigma) else "infinite"}
        yield estimated(NAME, "entropy", interval, len(one.seeds), at, "nats")


def _order(plain: Sequence[Contest], level: float) -> Iterator[Estimate]:
    """Which of two partitions is decided at the higher noise: the ratio of their levels, paired by seed, Holm over all pairs."""
    committed = [one for one in plain if np.isfinite(one.commitments).all() and len(one.seeds) > 1]
    committed.sort(key=lambda one: -float(one.commitments.mean()))
    found = []
    for first, second in combinations(committed, 2):
        shared = sorted(set(first.seeds) & set(second.seeds))
        if len(shared) > 1:
            a, b = (_of(one, shared) for one in (first, second))
            found.append((first, second, paired_difference(a, b, level=level)))
    adjusted = holm([difference.permutation_p for *_, difference in found]) if found else np.zeros(0)
    for (first, second, difference), p in zip(found, adjusted, strict=True):
        ratio = Interval(*(math.exp(end) if math.isfinite(end) else end for end in difference.mean))
        told: Facets = {"partition": first.partition.name, "other": second.partition.name, "p_adjusted": float(p)}
        yield estimated(NAME, "commitment_ratio", ratio, difference.n, told, "times")


def _of(one: Contest, seeds: Sequence[int]) -> npt.NDArray[np.float64]:
    places = {seed: index for index, seed in enumerate(one.seeds)}
    return np.asarray(one.commitments[[places[seed] for seed in seeds]])


def _moved(found: Sequence[Contest], level: float) -> Iterator[Estimate]:
    """What a push does to the level of commitment and to what stays undecided, against the unguided trajectories of the same seeds."""
    plain = {one.partition.name: one for one in found if one.push is None}
    for one in found:
        before = plain.get(one.partition.name)
        if one.push is None or before is None:
            continue
        shared = sorted(set(one.seeds) & set(before.seeds))
        a, b = _of(one, shared), _of(before, shared)
        shift = bootstrap(a - b, level=level) if len(shared) > 1 and np.isfinite([a, b]).all() else UNKNOWN
        ratio = Interval(*(math.exp(end) if math.isfinite(end) else end for end in shift))
        yield estimated(NAME, "commitment_shift", ratio, len(shared), facets(one), "times")


def _counted(records: Records) -> Iterator[Estimate]:
    """How many trajectories there are, how many do not count, and why."""
    if "Paths" not in records:
        return
    flags = records["Paths"]["flag"].to_pandas()
    yield Estimate(NAME, "samples", float(len(flags)), None, None, len(flags))
    for flag, number in flags.value_counts().items():
        yield Estimate(NAME, "flagged", float(number), None, None, len(flags), "", {"flag": str(flag)})


def _cards(plain: Sequence[Contest], estimates: Sequence[Estimate]) -> Iterator[Card]:
    """The first and the last to be decided, and where guidance would act."""
    levels = [e for e in estimates if e.quantity == "commitment" and "guidance" not in e.facets and e.value is not None]
    ranked = sorted(levels, key=lambda e: -(e.value or 0.0))
    if ranked:
        yield Card("decided first", ranked[0], f"“{ranked[0].facets['partition']}”: sigma at which its entropy has fallen to half")
    if len(ranked) > 1:
        yield Card("decided last", ranked[-1], f"“{ranked[-1].facets['partition']}”: sigma at which its entropy has fallen to half")
    for quantity, title in (("window_lo", "window, lower end"), ("window_hi", "window, upper end")):
        ends = [e for e in estimates if e.quantity == quantity and "guidance" not in e.facets and e.value is not None]
        if ends:
            end = (min if quantity == "window_lo" else max)(ends, key=lambda e: e.value or 0.0)
            yield Card(title, end, f"production is above half its peak up to here (“{end.facets['partition']}”)")
