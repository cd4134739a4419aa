"""What a run, and the baseline beside it, have to say of the quantity that a rule names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import pyarrow as pa

from diffprobe.errors import UserError, unknown
from diffprobe.measures.stats import Estimate, Interval
from diffprobe.probes.base import Facets, Probe
from diffprobe.runs.gating.evidence import Counted, Evidence, Missing, Paired, Separate
from diffprobe.runs.gating.facets import choose, has, narrowed
from diffprobe.runs.pairing import Pairing, cause, paired
from diffprobe.runs.result import Run
from diffprobe.runs.rules import Rule
from diffprobe.runs.study import parse_probe, settings

#: Quantities that are counts: exact numbers, which have no interval.
COUNTS = frozenset({"samples", "flagged"})
#: Settings that change no estimate, or only such as are made anew here.
_IDLE = frozenset({"keep_images", "level"})


class GatedRun:
    """One run as a gate sees it: what its probes measured, and their estimates at the gate's level."""

    def __init__(self, run: Run, level: float) -> None:
        self.run = run
        self.level = level
        self.missing = run.planned - run.done
        self._tables: dict[str, dict[str, pa.Table]] = {}
        self._estimates: dict[str, tuple[Estimate, ...]] = {}

    @property
    def name(self) -> str:
        return str(self.run.path)

    def probe(self, name: str) -> Probe:
        found = next((probe for probe in self.run.probes if probe.name == name), None)
        if found is None:
            raise unknown(f"probe of {self.name}", name, [probe.name for probe in self.run.probes])
        return found

    def tables(self, probe: str) -> dict[str, pa.Table]:
        if probe not in self._tables:
            self._tables[probe] = self.run.tables(probe)
        return self._tables[probe]

    def estimates(self, probe: str) -> tuple[Estimate, ...]:
        if probe not in self._estimates:
            asked = parse_probe({**settings(self.probe(probe)), "level": self.level})
            self._estimates[probe] = asked.summarise(self.tables(probe)).estimates
        return self._estimates[probe]

    def estimate(self, rule: Rule, wanted: Mapping[str, str]) -> Estimate:
        """The one that the rule names, with these of its facets; raises UserError where there is none, or several."""
        return choose(self._named(rule.probe, rule.quantity), wanted, rule.name)

    def count(self, rule: Rule) -> tuple[float, int]:
        """The count that the rule names, and of how many. Where nothing is flagged there is no such estimate, so reasons are added up."""
        samples = self._named(rule.probe, "samples")
        if rule.quantity == "samples":
            found = choose(samples, rule.facets, rule.name)
            return float(found.value or 0), found.n
        among = narrowed(samples, rule.facets, rule.name)
        flagged = [one for one in self.estimates(rule.probe) if one.quantity == "flagged" and has(one.facets, rule.facets)]
        return sum(float(one.value or 0) for one in flagged), sum(one.n for one in among)

    def per(self, probe: str, facets: Facets) -> str:
        """What the n of an estimate counts: the probe's unit, or the images of a single one."""
        unit = self.probe(probe).aligned[0].removesuffix("_id")
        return "image" if unit in facets else unit

    def _named(self, probe: str, quantity: str) -> list[Estimate]:
        found = self.estimates(probe)
        named = [one for one in found if one.quantity == quantity]
        if not named:
            raise unknown(f"quantity of {probe} in {self.name}", quantity, {one.quantity for one in found} | COUNTS)
        return named


class Witness:
    """What the two runs say, computed once for all rules. `pairing.check` comes first."""

    def __init__(self, run: GatedRun, baseline: GatedRun | None, across: Collection[str]) -> None:
        self.run = run
        self.baseline = baseline
        self.across = across
        self._pairings: dict[str, Pairing] = {}

    def notes(self) -> Iterator[str]:
        """What a reader should know of rows that pair and yet differ."""
        for probe, pairing in self._pairings.items():
            yield from (f"{probe}: {note}" for note in pairing.notes)

    def of(self, rule: Rule) -> Evidence | Missing:
        """What decides the rule: the units that pair, else estimates, else a reason why nothing does. Raises UserError for its names."""
        sides = [self.run, *([self.baseline] if rule.relative and self.baseline else [])]
        for side in sides:
            if side.probe(rule.probe).rows not in side.tables(rule.probe):
                return Missing(f"nothing of {rule.probe} is measured in {side.name} yet")
        if rule.quantity in COUNTS:
            return _guarded(lambda: _counted(rule, sides), sides)
        if len(sides) > 1 and (found := self._paired(rule)) is not None:
            return found
        return _guarded(lambda: self._separate(rule, sides), sides)

    def _paired(self, rule: Rule) -> Paired | Missing | None:
        """The units of a quantity that is measured unit by unit; None where it is not."""
        fitting = {
            id(pair.other_comparable): pair
            for pair in self._pairing(rule.probe).pairs
            if pair.other_comparable.quantity == rule.quantity and has(pair.other_comparable.facets, rule.facets)
        }
        if not fitting:
            return None
        told = choose([pair.other_comparable for pair in fitting.values()], rule.facets, rule.name)
        pair = fitting[id(told)]
        if len(pair.units) < 2:
            return Missing(f"an interval needs two {told.per}s with a value in both runs, and there is {len(pair.units)}")
        return Paired(pair.other, pair.base, told.per, told.unit, self._pairing(rule.probe).rate)

    def _pairing(self, probe: str) -> Pairing:
        assert self.baseline is not None
        if probe not in self._pairings:
            found = paired(self.baseline.run, self.run.run, probe, self.across)
            if not found.common:
                code = 3 if self.run.missing or self.baseline.missing else 2
                raise UserError(cause(self.baseline.run, self.run.run, probe, self.across), exit_code=code)
            self._pairings[probe] = found
        return self._pairings[probe]

    def _separate(self, rule: Rule, sides: Sequence[GatedRun]) -> Separate | Missing:
        """Estimates as the runs have them; those of two runs are of the same thing only where every setting is the same."""
        own = {name: value for name, value in rule.facets.items() if name not in self.across}
        estimates = [side.estimate(rule, rule.facets if side is self.run else own) for side in sides]
        if len(sides) > 1 and (told := self._unlike(rule.probe)):
            return Missing(f"it is not measured unit by unit, and {told}")
        intervals = []
        for side, one in zip(sides, estimates, strict=True):
            if one.value is None:
                return Missing(f"it has no value in {side.name}: {one.reason or 'not measured'}")
            if one.lo is None or one.hi is None:
                return Missing(f"it has no interval in {side.name}")
            intervals.append(Interval(one.value, one.lo, one.hi))
        per, (mine, *others) = self.run.per(rule.probe, estimates[0].facets), intervals
        return Separate(mine, others[0] if others else None, per, estimates[0].unit, estimates[0].n, estimates[-1].n if others else 0)

    def _unlike(self, probe: str) -> str | None:
        """A setting in which the two runs differ."""
        assert self.baseline is not None
        a, b = (settings(side.probe(probe)) for side in (self.baseline, self.run))
        name = next((name for name in a if name not in _IDLE and name not in self.across and a[name] != b[name]), None)
        if name is None:
            return None
        told = f"{probe}'s {name} is {a[name]} in {self.baseline.name} and {b[name]} in {self.run.name}"
        return f"{told}: measure both alike, or say that it may differ (--across {name})"


def _counted(rule: Rule, sides: Sequence[GatedRun]) -> Counted | Missing:
    """Counts of flags compare only among as many samples; how many there are may itself be compared."""
    (value, n), *others = (side.count(rule) for side in sides)
    baseline, other_n = others[0] if others else (0.0, 0)
    if others and rule.quantity != "samples" and n != other_n:
        told = f"it is {value:,.0f} of {n:,} samples in {sides[0].name}, and {baseline:,.0f} of {other_n:,} in {sides[1].name}"
        return Missing(f"{told}: measure as many in both, or ask for a number")
    return Counted(value, baseline, n, other_n)


def _guarded(found: Callable[[], Evidence | Missing], sides: Sequence[GatedRun]) -> Evidence | Missing:
    """A name that a run does not know may be right where the run is incomplete: then it is a reason, and no error."""
    try:
        return found()
    except UserError as error:
        incomplete = next((side for side in sides if side.missing), None)
        if incomplete is None:
            raise
        return Missing(f"{incomplete.name} is incomplete: {error}")
