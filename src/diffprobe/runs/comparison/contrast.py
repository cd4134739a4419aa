"""Runs against a base, quantity by quantity: paired differences, their tests within a family, and what could not be told apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats as ss

from diffprobe.measures.stats import Difference, Interval, holm, minimum_detectable_difference, paired_difference
from diffprobe.runs.pairing import Pair, Pairing, replicates

Outcome = Literal["higher", "lower", "not distinguishable", "equal", "not compared"]
Array = npt.NDArray[np.float64]
_POWER = 0.8


@dataclass(frozen=True, eq=False)
class Against:
    """One probe of the run `other` beside the same probe of the base."""

    other: str
    probe: str
    pairing: Pairing


@dataclass(frozen=True)
class Row:
    """One quantity of the run `other` against the base, over the `n` units that have it in both; differences are other - base.

    `p` is the sign-flip p, adjusted by Holm within `family`, of `family_size` tests, and decides the outcome. `detectable`: the smallest
    mean difference that this design finds with power 0.8 at the family's strictest step. What is None has no value, and
    `reason` says why.
    """

    other: str
    probe: str
    quantity: str
    title: str
    per: str
    unit: str
    headline: bool
    better: Literal["higher", "lower"] | None
    more: str
    less: str
    n: int
    family: str
    facets: Mapping[str, str | float | int | bool] = field(default_factory=dict)
    base_mean: float | None = None
    other_mean: float | None = None
    difference: float | None = None
    lo: float | None = None
    hi: float | None = None
    shift: float | None = None
    shift_lo: float | None = None
    shift_hi: float | None = None
    effect_size: float | None = None
    effect_lo: float | None = None
    effect_hi: float | None = None
    wilcoxon_p: float | None = None
    permutation_p: float | None = None
    p: float | None = None
    family_size: int = 0
    detectable: float | None = None
    outcome: Outcome = "not compared"
    reason: str | None = None

    @property
    def gain(self) -> Literal["better", "worse"] | None:
        """What the outcome means where one side is the better one."""
        if self.better is None or self.outcome not in {"higher", "lower"}:
            return None
        return "better" if self.outcome == self.better else "worse"


#: The fields of a row; a facet of the same name gets the prefix `facet_` where the row is flat.
COLUMNS = tuple(item.name for item in fields(Row) if item.name not in {"facets", "more", "less"})


def flat(row: Row) -> dict[str, Any]:
    """A row as one flat object: its fields, with its facets after the quantity."""
    facets = {f"facet_{name}" if name in COLUMNS else name: value for name, value in row.facets.items()}
    values = {name: getattr(row, name) for name in COLUMNS}
    first = {name: values.pop(name) for name in ("other", "probe", "quantity")}
    return {**first, **facets, **values}


def contrasts(found: Sequence[Against], level: float) -> tuple[Row, ...]:
    """One row a quantity and run, in the order of the pairs.

    The headline quantities of all probes and runs are one family of tests; everything else of a probe, over all runs, is another.
    """
    measured = [_measured(against, pair, level) for against in found for pair in against.pairing.pairs]
    return tuple(_decided(measured, 1 - level))


def _measured(against: Against, pair: Pair, level: float) -> tuple[Row, Array]:
    """The row before its family is known, with the differences that it sums up."""
    told = pair.base_comparable
    base, other = pair.base, pair.other
    row = Row(
        other=against.other,
        probe=against.probe,
        quantity=told.quantity,
        title=told.title,
        per=told.per,
        unit=told.unit,
        headline=told.headline,
        better=told.better,
        more=told.more,
        less=told.less,
        n=len(base),
        family="headline" if told.headline else f"{against.probe}, all else",
        facets=told.facets,
    )
    if not len(base):
        return replace(row, reason=f"no {told.per} has a value in both"), base
    d = other - base
    row = replace(row, base_mean=float(base.mean()), other_mean=float(other.mean()), difference=float(d.mean()))
    if len(d) == 1:
        return replace(row, reason=f"an interval needs two {told.per}s or more"), d
    if np.ptp(d) <= 4 * np.finfo(np.float64).eps * max(np.abs(base).max(), np.abs(other).max()):
        return _constant(row, d), d
    return _spread(row, paired_difference(other, base, level=level, replicates=replicates(len(d)))), d


def _constant(row: Row, d: Array) -> Row:
    """A row whose differences are all the same number; where it is not 0, such units are hardly independent, and nothing is tested."""
    if not d.any():
        zeros: dict[str, Any] = dict.fromkeys(("difference", "lo", "hi", "shift", "shift_lo", "shift_hi", "detectable"), 0.0)
        return replace(row, **zeros, wilcoxon_p=1.0, permutation_p=1.0, p=1.0, outcome="equal", reason=f"equal in every {row.per}")
    return replace(row, reason=f"the difference is the same in every {row.per}, which leaves no spread to judge it by")


def _spread(row: Row, found: Difference) -> Row:
    def ends(interval: Interval) -> tuple[float | None, ...]:
        return tuple(float(value) if math.isfinite(value) else None for value in interval)

    difference, lo, hi = ends(found.mean)
    shift, shift_lo, shift_hi = ends(found.shift)
    effect, effect_lo, effect_hi = ends(found.effect)
    return replace(
        row,
        difference=difference,
        lo=lo,
        hi=hi,
        shift=shift,
        shift_lo=shift_lo,
        shift_hi=shift_hi,
        effect_size=effect,
        effect_lo=effect_lo,
        effect_hi=effect_hi,
        wilcoxon_p=found.wilcoxon_p,
        permutation_p=found.permutation_p,
        p=_sharpened(found),
    )


def _sharpened(found: Difference) -> float:
    """The sign-flip p. Where no random flip reached the mean, it is small and no more is known: Student's t, within what n can give.

    Without this no difference could pass in a family of more tests than there were flips.
    """
    if found.permutation_method == "all flips" or found.permutation_p > 1.5 / (1 + replicates(found.n)):
        return found.permutation_p
    t_p = 2 * float(ss.t.sf(abs(found.effect_size) * math.sqrt(found.n), found.n - 1))
    return min(found.permutation_p, max(t_p, 2.0 ** (1 - found.n)))


def _decided(measured: Sequence[tuple[Row, Array]], alpha: float) -> Iterator[Row]:
    """Each row with its p adjusted within its family, what its design could have seen, and the outcome."""
    raw = np.array([math.nan if row.p is None else row.p for row, _ in measured])
    names = np.array([row.family for row, _ in measured])
    adjusted, sizes, possible = np.full_like(raw, math.nan), dict[str, int](), np.zeros(len(raw), bool)
    for name in dict.fromkeys(row.family for row, _ in measured):
        members = np.flatnonzero(names == name)
        adjusted[members] = holm(raw[members])
        sizes[name] = int(np.isfinite(raw[members]).sum())
        possible[members] = [_possible(raw[members], place, measured[int(index)][0].n, alpha) for place, index in enumerate(members)]
    for (row, d), p, could in zip(measured, adjusted, possible, strict=True):
        found = replace(row, family_size=sizes[row.family], p=None if math.isnan(p) else float(p))
        yield found if found.p is None or found.outcome == "equal" else _outcome(found, d, bool(could), alpha)


def _possible(family: Array, place: int, n: int, alpha: float) -> bool:
    """Whether n units could show anything: whether the least sign-flip p that they can give passes beside the others of the family."""
    best = family.copy()
    best[place] = 2.0 ** (1 - n) if n > 1 else 1.0
    return bool(holm(best)[place] <= alpha)


def _outcome(row: Row, d: Array, possible: bool, alpha: float) -> Row:
    assert row.p is not None
    if row.p <= alpha:
        row = replace(row, outcome="higher" if d.mean() > 0 else "lower")
    elif not possible:
        needed = math.ceil(1 + math.log2(row.family_size / alpha))
        told = f"{row.n} {row.per}s are too few for any difference to show: it takes {needed}"
        return replace(row, outcome="not distinguishable", reason=told)
    else:
        row = replace(row, outcome="not distinguishable")
    if row.effect_size is None:
        return row
    return replace(row, detectable=minimum_detectable_difference(float(d.std(ddof=1)), len(d), _POWER, alpha / row.family_size))
