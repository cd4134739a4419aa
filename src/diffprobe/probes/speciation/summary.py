"""What the speciation probe concludes, from its records alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import stats as ss

from diffprobe.measures.speciation import commitment_values, discretisation_bias, steps_needed
from diffprobe.measures.stats import Estimate, holm
from diffprobe.measures.stats.intervals import Interval, bootstrap, score_limits
from diffprobe.measures.stats.paired import paired_difference
from diffprobe.probes.base import Card, Facets, Findings, Records, estimated
from diffprobe.probes.speciation.contests import Contest, contests, pushed, redistribution
from diffprobe.probes.speciation.contests import rows_of as _rows
from diffprobe.probes.speciation.gallery import exhibits
from diffprobe.probes.speciation.partitions import Partition, Push
from diffprobe.probes.speciation.pictures import charts, marked
from diffprobe.probes.speciation.swept import Swept, marks
from diffprobe.probes.speciation.verdicts import COARSE, LARGEST, MOST_PAIRED, RAREST, sentences

NAME = "speciation"
_LEVELS = 16  # of a curve, told as estimates; the charts have them all
_TOLD_APART = 0.05  # of the prior, left at the last level
UNKNOWN = Interval(math.nan, math.nan, math.nan)


def summarise(asked: Sequence[Partition], pushes: Sequence[Push], records: Records, level: float) -> Findings:
    """Everything that the report shows of the speciation; what is not measured yet is left out, what does not count is counted."""
    found = contests(asked, pushes, records, level)
    if not found:
        return Findings(tuple(_counted(records)), verdicts=("Nothing is measured yet that a partition could be read from.",))
    estimates: list[Estimate] = []
    plain = [one for one in found if one.push is None]
    for one in found:
        estimates += _profiled(one)
        estimates += _trusted(one, len(plain))
        estimates += _curve(one)
    estimates += _order(plain, level)
    estimates += _moved(found, level)
    estimates += _redistributed(found, level)
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


def facets(one: Contest) -> dict[str, str | float | int | bool]:
    """What tells the estimates of one contest from another's."""
    told: dict[str, str | float | int | bool] = {"partition": one.partition.name}
    return told if one.push is None else {**told, "guidance": str(one.push)}


def _profiled(one: Contest) -> Iterator[Estimate]:
    """Where it is decided: half level, peak and window, in sigma; and what stays undecided."""
    curve, n, where = one.profile, len(one.seeds), facets(one)

    def told(quantity: str, interval: Interval, unit: str = "sigma") -> Estimate:
        return estimated(NAME, quantity, interval, n, where, unit)

    fallen = bool((curve.entropy < one.partition.entropy / 2).any())
    why = "half is decided within the first step, which begins at sigma infinite" if fallen else "the entropy stays above half of its prior"
    yield replace(told("commitment", curve.commitment), reason=why if math.isnan(curve.commitment.value) else None)
    level = bootstrap(one.mean_levels, level=one.level) if n > 1 else UNKNOWN
    yield told("mean_level", Interval(*(math.exp(end) if math.isfinite(end) else end for end in level)))
    yield told("peak", curve.peak)
    yield told("peak_step", curve.peak_step, "steps")
    decided = not math.isnan(curve.peak.value)
    for name, end, place in (("window_lo", curve.window[0], "last"), ("window_hi", curve.window[1], "first")):
        still = f"production is above half its peak up to the {place} level" if decided else "there is no production"
        yield replace(told(name, end), reason=still if math.isnan(end.value) else None)
    yield told("window_share", curve.share_inside, "")
    yield told("smoothing", Interval(curve.bandwidth, math.nan, math.nan), "steps")
    yield told("undecided", Interval(float(curve.entropy[-1]), float(curve.lo[-1]), float(curve.hi[-1])), "nats")


def _trusted(one: Contest, family: int) -> Iterator[Estimate]:
    """How far the numbers can be trusted: calibration, the I-MMSE form, the step count, and whether images follow their words."""
    n, where = len(one.seeds), facets(one)
    if one.push is None:
        yield _calibration(one, family)
        check = bootstrap((one.immse - one.posterior).mean(1), level=one.level)
        yield estimated(NAME, "immse_difference", check, n, where, "nats")
        yield from _steps(one)
        yield from _proxy(one)
    for name, told in one.adherence.items():
        sound = told[~np.isnan(told)]
        share, quantile = float(sound.mean()) if len(sound) else math.nan, float(ss.norm.ppf((1 + one.level) / 2))
        # A share of pairs varies no more between seeds than one of yes and no, for which the score interval is.
        limits = score_limits(share, len(sound), quantile) if len(sound) else (math.nan, math.nan)
        yield estimated(NAME, f"adherence:{name}", Interval(share, *limits), len(sound), where)


def _calibration(one: Contest, family: int) -> Estimate:
    """Label less posterior form, a mean over the levels, with limits from the scatter that a right posterior foretells.

    `calibrated` is whether 0 is within those of the whole `family` of partitions (Bonferroni). The seeds' own scatter would not do:
    without the rare labels that make it, the label form is too low and looks sure of it.
    """
    value, n = float((one.label - one.posterior).mean()), len(one.seeds)
    error = math.sqrt(float(np.mean(one.scatter**2)) / n)
    one_by_one, together = (float(ss.norm.ppf(1 - (1 - one.level) / 2 / count)) for count in (1, family))
    interval = Interval(value, value - one_by_one * error, value + one_by_one * error)
    told: Facets = {**facets(one), "calibrated": abs(value) <= together * error}
    return estimated(NAME, "calibration", interval, n, told, "nats")


def _steps(one: Contest) -> Iterator[Estimate]:
    """What the step count, and the noise that the path begins with, do to the entropy: at the worst level.

    The law is that of sides which are told apart at last; where one holds the other, as the unconditional model does, it has
    no say. `largest_step` is the share of the prior that one step decides: no landmark is known better than to that step.
    """
    if one.same:
        return
    prior, where, n = one.partition.entropy, facets(one), len(one.seeds)
    largest = float(-np.diff(one.profile.entropy).min()) / prior
    yield estimated(NAME, "largest_step", Interval(largest, math.nan, math.nan), n, where)
    needed = math.ceil(len(one.gaps) * largest / LARGEST)
    if "" not in one.partition.conditions and one.profile.entropy[-1] < _TOLD_APART * prior:
        count = min(len(one.gaps), len(one.sigma))
        run = one.sigma[:count], one.gaps[:count], one.profile.entropy[:count]
        steps, whole = (discretisation_bias(*run, prior_entropy=prior, start=start) for start in (False, True))
        yield estimated(NAME, "step_bias", Interval(_worst(steps) / prior, math.nan, math.nan), n, where, "of the prior")
        yield estimated(NAME, "start_bias", Interval(_worst(whole - steps), math.nan, math.nan), n, where, "nats")
        needed = max(needed, steps_needed(*run, prior_entropy=prior, tolerance=COARSE * prior))
    yield estimated(NAME, "steps_needed", Interval(float(needed), math.nan, math.nan), n, where, "steps")


def _proxy(one: Contest) -> Iterator[Estimate]:
    """How certain the model is at last that trajectories of a condition are not unconditional ones, where that is asked.

    A condition that is a part of what the unconditional model knows reaches ln(1/its share) at most; networks that merely differ
    go on for ever. `sigma` is the level from which the median is beyond `RAREST`.
    """
    if np.isnan(one.certainty).any() or one.same or len(one.seeds) < 2:
        return
    found = bootstrap(one.certainty[:, -1], np.median, level=one.level)
    beyond = np.flatnonzero(np.median(one.certainty, 0) > math.log(RAREST))
    where: Facets = facets(one) | ({"sigma": float(one.sigma[beyond[0]])} if len(beyond) else {})
    yield estimated(NAME, "proxy_log_odds", found, len(one.seeds), where, "nats")


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
    if len(committed) > MOST_PAIRED:
        return
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
    return _rows(one, one.commitments, seeds)


def _moved(found: Sequence[Contest], level: float) -> Iterator[Estimate]:
    """How many times higher the level of commitment is under a push, paired by seed, label form against label form; Holm over all."""
    moved = []
    for before, one in pushed(found):
        shared = sorted(set(one.seeds) & set(before.seeds))
        plain = np.asarray(commitment_values(before.sigma, _rows(before, before.label, shared), one.partition.entropy))
        now = np.asarray(commitment_values(one.sigma, _rows(one, one.label, shared), one.partition.entropy))
        if len(shared) > 1 and np.isfinite([plain, now]).all():
            moved.append((one, paired_difference(now, plain, level=level)))
    adjusted = holm([difference.permutation_p for _, difference in moved]) if moved else np.zeros(0)
    for (one, difference), p in zip(moved, adjusted, strict=True):
        ratio = Interval(*(math.exp(end) if math.isfinite(end) else end for end in difference.mean))
        yield estimated(NAME, "commitment_shift", ratio, difference.n, {**facets(one), "p_adjusted": float(p)}, "times")


def _redistributed(found: Sequence[Contest], level: float) -> Iterator[Estimate]:
    """Production under a push less that without, at some levels; the label form of the same seeds, with one bandwidth."""
    for before, one in pushed(found):
        moved = redistribution(before, one, level)
        if moved is not None:
            rate, lo, hi = moved.production, moved.production_lo.rate, moved.production_hi.rate
            for step in np.unique(np.linspace(0, len(rate.sigma) - 1, min(_LEVELS, len(rate.sigma))).round().astype(int)):
                if math.isfinite(rate.rate[step]):
                    at: Facets = {**facets(one), "sigma": float(rate.sigma[step])}
                    interval = Interval(float(rate.rate[step]), float(lo[step]), float(hi[step]))
                    yield estimated(NAME, "redistribution", interval, moved.n, at, "nats per ln sigma")


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
    windows = [[e for e in estimates if e.quantity == end and "guidance" not in e.facets] for end in ("window_lo", "window_hi")]
    for ends, title, choose in zip(windows, ("window, lower end", "window, upper end"), (min, max), strict=True):
        known = [e for e in ends if e.value is not None]
        if known and (choose is min or len(known) == len(ranked)):  # one that is open above has no upper end to show
            end = choose(known, key=lambda e: e.value or 0.0)
            yield Card(title, end, f"production is above half its peak up to here (“{end.facets['partition']}”)")
