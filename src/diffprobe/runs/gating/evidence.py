"""What a rule can be decided by: units that pair, estimates of two runs, counts. Each says how far a run lies above a bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diffprobe.measures.stats import Interval, bootstrap, mover
from diffprobe.runs.pairing import replicates
from diffprobe.runs.rules import Line

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Paired:
    """The values [n] of the same units in the run and in the baseline; `rate` is the share of all rows that pair."""

    values: Array
    baselines: Array
    per: str
    unit: str
    rate: float

    @property
    def value(self) -> float:
        return float(self.values.mean())

    @property
    def baseline(self) -> float:
        return float(self.baselines.mean())

    @property
    def n(self) -> int:
        return len(self.values)

    def above(self, line: Line, level: float) -> Interval:
        """How far the run's mean lies above the line of the baseline's: studentised bootstrap; no width where all differences are equal."""
        d = self.values - line.factor * self.baselines - line.offset
        rounding = _rounding(float(np.abs(self.values).max()), line.factor * float(np.abs(self.baselines).max()), line.offset)
        if np.ptp(d) <= rounding:
            return _exact(float(d.mean()), rounding)
        return bootstrap(d, replicates=replicates(len(d)), level=level)


@dataclass(frozen=True, eq=False)
class Separate:
    """An estimate of the run and one of the baseline (None where the rule has none), as if the two were independent."""

    estimate: Interval
    other: Interval | None
    per: str
    unit: str
    n: int
    other_n: int = 0

    @property
    def value(self) -> float:
        return self.estimate.value

    @property
    def baseline(self) -> float:
        return 0.0 if self.other is None else self.other.value

    def above(self, line: Line, level: float) -> Interval:
        """How far the run's value lies above the line of the baseline's, by MOVER; the estimates' own intervals are of the level."""
        found = mover(self.estimate, self.other or Interval(0.0, 0.0, 0.0), line.factor)
        found = Interval(*(end - line.offset for end in found))
        rounding = _rounding(self.value, line.factor * self.baseline, line.offset)
        return _exact(found.value, rounding) if found.hi - found.lo <= rounding else found


@dataclass(frozen=True, eq=False)
class Counted:
    """A count of the run, of `n`, and one of the baseline, of `other_n` (0 where the rule has none): both exact."""

    value: float
    baseline: float
    n: int
    other_n: int = 0
    unit: str = ""

    def above(self, line: Line, level: float) -> Interval:
        limit = line.at(self.baseline)
        return _exact(self.value - limit, _rounding(self.value, limit, line.offset))


@dataclass(frozen=True)
class Missing:
    """Why there is nothing to decide a rule by."""

    reason: str


Evidence = Paired | Separate | Counted


def _rounding(*sizes: float) -> float:
    """What the sum of numbers of these sizes may be off by."""
    return 8 * float(np.finfo(np.float64).eps) * max(map(abs, sizes))


def _exact(value: float, rounding: float) -> Interval:
    value = value if abs(value) > rounding else 0.0
    return Interval(value, value, value)
