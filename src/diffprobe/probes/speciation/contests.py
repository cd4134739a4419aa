"""Partitions as they were measured: from the likelihoods of the records to the entropy of each seed at each level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from diffprobe.measures.speciation import (
    Interval,
    Production,
    Profile,
    class_entropy,
    commitment_values,
    falling_limits,
    immse_entropy,
    label_deviation,
    log_side_posterior,
    mmse_rate,
    pairs,
    profile,
)
from diffprobe.measures.speciation.steps import mean_gap
from diffprobe.probes.base import Records
from diffprobe.probes.speciation.partitions import Partition, Push

Array = npt.NDArray[np.float64]
Parts = tuple[Array, Array, Array, Array]
_LIKENESS = "similarity:"


class Trajectories(NamedTuple):
    """Trajectories of one condition, `conditions[0]`, by seed, at the levels `sigma` [L], after N evaluations, in P pairs."""

    conditions: tuple[str, ...]
    push: Push | None
    sigma: Array
    rows: dict[int, int]  # the row of each seed that counts
    likelihoods: Array  # [seeds, L, K]
    gaps: Array  # [seeds, N, P]
    likeness: dict[str, Array]  # of the final images to every condition's words: [seeds, K] an instrument
    left_out: int


@dataclass(frozen=True)
class Contest:
    """A partition, unguided or under a push: for every seed that all its conditions share, its share of the entropy at each level.

    `posterior` and `label` [seeds, L] are the two forms of it, means over the conditions with their priors; `rates` [seeds, N]
    is that of the squared error, and `gaps` [N] the mean squared distance between predictions of different sides.
    """

    partition: Partition
    push: Push | None
    sigma: Array
    seeds: tuple[int, ...]
    posterior: Array
    label: Array
    rates: Array
    scatter: Array  # [seeds]: the standard deviation of label less posterior, a mean over the levels, if the posterior is right
    gaps: Array
    certainty: Array  # [seeds, L] along one condition's own trajectories: its log odds against ""; nan where "" is no side
    adherence: dict[str, Array]  # [seeds]: whether the sides' images are told apart by the sides' words, 0 to 1
    left_out: int
    same: bool  # no condition moves the likelihood at all
    level: float

    @property
    def curves(self) -> Array:
        """Of the two forms the one that means something: the posterior form, or the label form (the cross entropy) under a push."""
        return self.posterior if self.push is None else self.label

    @cached_property
    def profile(self) -> Profile:
        """The landmarks of the curves, no finer than the steps allow."""
        prior = self.partition.entropy
        found = profile(self.sigma, self.curves, prior_entropy=prior, level=self.level)
        if self.push is None:
            found = _falling(found, prior)
        return _resolved(found, prior)

    @cached_property
    def mean_levels(self) -> Array:
        """ln sigma of the mean level of decision, a value a seed [seeds]: each step's middle, weighted by the entropy lost there.

        A step from sigma infinite counts at its lower end, and what is never decided at the last level.
        """
        upper, lower = self.sigma[:-1], self.sigma[1:]
        middle = np.log(np.where(np.isfinite(upper), np.sqrt(upper * lower), lower))
        lost = -np.diff(self.curves, axis=1)
        return np.asarray((lost @ middle + self.curves[:, -1] * math.log(lower[-1])) / self.partition.entropy)

    @cached_property
    def immse(self) -> Array:
        """The entropy from the squared errors, [seeds, L]."""
        missing = len(self.sigma) - self.rates.shape[1]  # 1 where the path ends above sigma 0: no prediction is made there
        rates = np.pad(self.rates, ((0, 0), (0, max(missing, 0))))[:, : len(self.sigma)]
        return np.asarray(immse_entropy(self.sigma, rates, self.partition.entropy))

    @cached_property
    def commitments(self) -> Array:
        """What each seed contributes to ln sigma of the level of commitment, [seeds]; nan where there is none."""
        return np.asarray(commitment_values(self.sigma, self.curves, self.partition.entropy))


def contests(asked: Sequence[Partition], pushes: Sequence[Push], records: Records, level: float = 0.95) -> list[Contest]:
    """Every partition whose trajectories are there, unguided first and then under each push; from the same records, any partition."""
    held = list(_read(records)) if "Paths" in records else []
    found = (_contest(partition, push, held, level) for push in (None, *pushes) for partition in asked)
    return [one for one in found if one is not None]


def pushed(found: Sequence[Contest]) -> Iterator[tuple[Contest, Contest]]:
    """Every contest under a push, after the same without."""
    plain = {one.partition.name: one for one in found if one.push is None}
    yield from ((plain[one.partition.name], one) for one in found if one.push is not None and one.partition.name in plain)


def redistribution(before: Contest, after: Contest, level: float) -> Profile | None:
    """What a push moves: the profile of the difference of the label forms, seed by seed, smoothed as widely as the unguided one."""
    shared = sorted(set(before.seeds) & set(after.seeds))
    if len(shared) < 2:
        return None
    moved = rows_of(after, after.label, shared) - rows_of(before, before.label, shared)
    prior, bandwidth = before.partition.entropy, before.profile.bandwidth
    return profile(before.sigma, moved, prior_entropy=prior, level=level, bandwidth=bandwidth)


def rows_of(one: Contest, values: Array, seeds: Sequence[int]) -> Array:
    """The rows of `values` [seeds, ...] of a contest that belong to these of its seeds."""
    places = {seed: index for index, seed in enumerate(one.seeds)}
    return np.asarray(values[[places[seed] for seed in seeds]])


def _falling(found: Profile, prior: float) -> Profile:
    """The profile of an entropy that can only fall: no limit above an earlier one, and no step that may lose more than there may be.

    Smoothing lends a step what its neighbours lose, so that the bound is that of a level two bandwidths before it.
    """
    lo, hi = falling_limits(found.lo, found.hi, prior)
    held = hi[np.maximum(np.arange(len(hi) - 1) - math.ceil(2 * found.bandwidth), 0)]
    least, most = np.maximum(found.production_lo.per_step, 0.0), np.minimum(found.production_hi.per_step, held)
    length = -np.diff(np.log(found.sigma))
    rates = [np.where(np.isfinite(length), limit / length, np.nan) for limit in (least, most)]
    return found._replace(
        lo=lo,
        hi=hi,
        production_lo=Production(found.production.sigma, rates[0], least),
        production_hi=Production(found.production.sigma, rates[1], most),
    )


def _resolved(found: Profile, prior: float) -> Profile:
    """The profile without what its steps cannot tell.

    Where the step across half the prior loses more than a quarter of it, commitment is known to that step only; where a first
    step from sigma infinite loses half, there is no level on the clock ln sigma at which it peaks.
    """
    lost, half = -np.diff(found.entropy), int(np.argmax(found.entropy < prior / 2))
    if half > 0 and lost[half - 1] > prior / 4 and math.isfinite(found.sigma[half - 1]):
        value, lo, hi = found.commitment
        ends = float(np.fmin(lo, found.sigma[half])), float(np.fmax(hi, found.sigma[half - 1]))
        found = found._replace(commitment=Interval(value, *ends))
    if math.isinf(found.sigma[0]) and lost[0] > prior / 2:
        nothing = Interval(math.nan, math.nan, math.nan)
        found = found._replace(peak=nothing, window=(nothing, nothing), share_inside=nothing)
    return found


def _read(records: Records) -> Iterator[Trajectories]:
    frame: pd.DataFrame = records["Paths"].to_pandas()
    frame["asked"] = [tuple(row) for row in frame["conditions"]]
    likeness = [name for name in map(str, frame) if name.startswith(_LIKENESS)]
    settings = ["asked", "guidance_scale", "guidance_lo", "guidance_hi", "guided_sides", "num_inference_steps"]
    for values, group in frame.groupby(settings, sort=False, dropna=False):
        sound = group[group["flag"].isna()].drop_duplicates("seed")
        conditions = values[0]
        if sound.empty:
            continue
        sigma = np.asarray(sound["sigmas"].iloc[0])
        n, k = len(sound), len(conditions)
        yield Trajectories(
            conditions,
            None if pd.isna(values[4]) else Push(float(values[1]), float(values[2]), _open(values[3]), values[4]),
            sigma,
            {int(seed): row for row, seed in enumerate(sound["seed"])},
            np.stack(sound["log_likelihood"].to_list()).reshape(n, len(sigma), k),
            np.stack(sound["gap"].to_list()).reshape(n, -1, k * (k - 1) // 2),
            {name.removeprefix(_LIKENESS): np.stack(sound[name].to_list()) for name in likeness if sound[name].notna().all()},
            len(group) - n,
        )


def _open(limit: float) -> float | None:
    return None if pd.isna(limit) else float(limit)


def _contest(partition: Partition, push: Push | None, held: Sequence[Trajectories], level: float) -> Contest | None:
    """None where trajectories of a condition are not there, or no seed has all of them."""
    drawn: list[list[Trajectories]] = []
    for index, side in enumerate(partition.sides):
        guide = push if push is not None and (push.sides == "all" or index == 0) else None
        drawn.append([one for prompt in side for one in [_holding(held, prompt, guide, partition)] if one is not None])
        if len(drawn[-1]) < len(side):
            return None
    everyone = [one for side in drawn for one in side]
    seeds = tuple(sorted(set.intersection(*(set(one.rows) for one in everyone))))
    if not seeds:
        return None
    parts = [_parts(one, partition, index, seeds) for index, side in enumerate(drawn) for one in side]
    if partition.proxy is not None:
        parts = _within(everyone, partition, seeds, parts)
    weights = [weight for side in partition.weights for weight in side]
    columns = (sum(w * part for w, part in zip(weights, column, strict=True)) for column in zip(*parts, strict=True))
    posterior, label, rates, scatter = columns
    return Contest(
        partition=partition,
        push=push,
        sigma=everyone[0].sigma,
        seeds=seeds,
        posterior=np.asarray(posterior),
        label=np.asarray(label),
        rates=np.asarray(rates),
        scatter=np.asarray(scatter),
        gaps=_gaps(everyone, partition, seeds),
        certainty=_certainty(drawn, partition, seeds),
        adherence=_adherence(drawn, partition, seeds),
        left_out=sum(one.left_out for one in everyone),
        same=not any(_columns(one, partition, seeds).any() for one in everyone),
        level=level,
    )


def _holding(held: Sequence[Trajectories], prompt: str, push: Push | None, partition: Partition) -> Trajectories | None:
    """The trajectories of a condition along which every condition of the partition was evaluated."""
    fitting = (one for one in held if one.conditions[0] == prompt and one.push == push)
    return next((one for one in fitting if set(partition.conditions) <= set(one.conditions)), None)


def _columns(one: Trajectories, partition: Partition, seeds: Sequence[int]) -> Array:
    """The log likelihoods of the partition's conditions, in its order: [seeds, L, K]."""
    places = [one.conditions.index(condition) for condition in partition.conditions]
    found = one.likelihoods[[one.rows[seed] for seed in seeds]][..., places]
    return np.asarray(found - found[..., :1])


def _pair_gaps(one: Trajectories, partition: Partition, seeds: Sequence[int]) -> Array:
    """The squared gaps of the partition's pairs of conditions, in its order: [seeds, N, P]."""
    order = {frozenset(pair): index for index, pair in enumerate(pairs(len(one.conditions)))}
    places = [one.conditions.index(condition) for condition in partition.conditions]
    wanted = [order[frozenset((places[a], places[b]))] for a, b in pairs(len(places))]
    return np.asarray(one.gaps[[one.rows[seed] for seed in seeds]][..., wanted])


def _numbered(partition: Partition) -> list[list[int]]:
    """The sides as places among the partition's conditions."""
    places = iter(range(len(partition.conditions)))
    return [[next(places) for _ in side] for side in partition.sides]


def _parts(one: Trajectories, partition: Partition, side: int, seeds: Sequence[int]) -> Parts:
    """Of trajectories drawn from this side: the entropy's two forms [seeds, L], the rate [seeds, N] and the forms' scatter [seeds]."""
    likelihoods, gaps = _columns(one, partition, seeds), _pair_gaps(one, partition, seeds)
    sides, priors = _numbered(partition), partition.weights
    found = log_side_posterior(likelihoods, sides, priors)
    rates = mmse_rate(likelihoods[:, : gaps.shape[1]], gaps, sides, priors)
    # Levels of a path scatter together, sides of a seed perhaps: as if wholly so, which is the most that they can.
    return class_entropy(found), class_entropy(found, np.full(found.shape[:-1], side)), rates, label_deviation(found).mean(1)


def _within(everyone: Sequence[Trajectories], partition: Partition, seeds: Sequence[int], parts: Sequence[Parts]) -> list[Parts]:
    """The forms where one side is the whole, of which the other is a part with a prior p: p(part | x) = p l(part)/l(whole) <= 1.

    H = p E_part[-ln p(part | x)] + E_whole[-(1 - p(part | x)) ln(1 - p(part | x))], the complement being the whole less the part; so
    each condition's trajectories give one of the two terms, divided by the weight that it gets, and both forms are one.
    """
    assert partition.proxy is not None
    whole, weights = partition.proxy, [weight for side in partition.weights for weight in side]
    found = []
    for index, (one, (_, _, rates, scatter)) in enumerate(zip(everyone, parts, strict=True)):
        likelihoods = _columns(one, partition, seeds)
        odds = likelihoods[..., 1 - whole] - likelihoods[..., whole]
        log_part = np.minimum(math.log(weights[1 - whole]) + odds, 0.0)
        rest = -np.expm1(log_part)
        term = -log_part if index != whole else -rest * np.log(np.where(rest > 0, rest, 1.0)) / weights[whole]
        found.append((term, term, rates, 0 * scatter))
    return found


def _gaps(everyone: Sequence[Trajectories], partition: Partition, seeds: Sequence[int]) -> Array:
    """Squared distances between predictions of different sides, [N]: means over trajectories and pairs with their priors."""
    weights = [weight for side in partition.weights for weight in side]
    pairwise = sum(w * _pair_gaps(one, partition, seeds).mean(0) for w, one in zip(weights, everyone, strict=True))
    return mean_gap(np.asarray(pairwise), _numbered(partition), partition.weights)


def _certainty(drawn: Sequence[Sequence[Trajectories]], partition: Partition, seeds: Sequence[int]) -> Array:
    """How much likelier than under no condition trajectories are under their own, along themselves: [seeds, L], of the first such side."""
    for side in drawn:
        if "" in partition.conditions and len(side) == 1 and side[0].conditions[0]:
            found = _columns(side[0], partition, seeds)
            own, none = (partition.conditions.index(condition) for condition in (side[0].conditions[0], ""))
            return np.asarray(found[..., own] - found[..., none])
    return np.full((len(seeds), len(drawn[0][0].sigma)), np.nan)


def _adherence(drawn: Sequence[Sequence[Trajectories]], partition: Partition, seeds: Sequence[int]) -> dict[str, Array]:
    """By instrument, for each seed: the share of pairs of conditions on different sides whose images their words tell apart.

    An image's score is its likeness to the one prompt's words less that to the other's (where they are not empty); a pair counts 1
    where the image of the one scores higher than the same seed's image of the other: half of them would by luck. nan where an
    image is flawed.
    """
    everyone = [one for side in drawn for one in side]
    names = set.intersection(*(set(one.likeness) for one in everyone))
    found = {}
    for name in sorted(names):
        told = [
            _told_apart(name, a, b, seeds) for first, left in enumerate(drawn) for right in drawn[first + 1 :] for a in left for b in right
        ]
        found[name] = np.mean(told, axis=0)
    return found


def _told_apart(name: str, a: Trajectories, b: Trajectories, seeds: Sequence[int]) -> Array:
    def score(one: Trajectories) -> Array:
        rows = one.likeness[name][[one.rows[seed] for seed in seeds]]
        nearness = [rows[:, one.conditions.index(words)] if words else np.zeros(len(rows)) for words in (a.conditions[0], b.conditions[0])]
        return np.asarray(nearness[0] - nearness[1])

    apart = score(a) - score(b)
    return np.where(np.isnan(apart), np.nan, (apart > 0) + 0.5 * (apart == 0))
