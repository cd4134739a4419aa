"""How a rule is decided: the three outcomes at their promised rates where the truth is known, exact cases, and the n that would decide."""

import re
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
from numpy.typing import NDArray

from diffprobe import rng
from diffprobe.measures.stats import Interval, intervals, mean_interval, paired_difference
from diffprobe.probes.base import Comparable
from diffprobe.runs.gating.evidence import Counted, Evidence, Missing, Paired, Separate
from diffprobe.runs.gating.ruling import Ruling, decide
from diffprobe.runs.pairing import matched
from diffprobe.runs.rules import parse_rule

Array = NDArray[np.float64]
BOUND = "drift.k <= baseline + 0.1"


def paired(values: Array, baselines: Array) -> Paired:
    return Paired(values, baselines, "image", "", 1.0)


def ruled(rule: str, evidence: Evidence | Missing, level: float = 0.95) -> Ruling:
    return decide(parse_rule(rule), evidence, level)


def normal(generator: np.random.Generator, n: int, difference: float) -> Paired:
    """Pairs that differ by `difference` in the mean, with a deviation of 0.2."""
    base = 1 + 0.3 * generator.standard_normal(n)
    return paired(base + difference + 0.2 * generator.standard_normal(n), base)


def skewed(generator: np.random.Generator, n: int, difference: float) -> Paired:
    base = 1 + 0.3 * generator.standard_normal(n)
    return paired(base + difference + 0.2 * (generator.standard_exponential(n) - 1), base)


def scaled(generator: np.random.Generator, n: int, difference: float) -> Paired:
    """As the rule `<= 1.1*baseline` has it: the mean of the baseline is 1."""
    base = 1 + 0.3 * generator.standard_normal(n)
    return paired(1 + difference + 0.8 * (base - 1) + 0.1 * generator.standard_normal(n), base)


def separate(generator: np.random.Generator, n: int, difference: float) -> Separate:
    a, b = (mean_interval(centre + 0.2 * generator.standard_normal(n)) for centre in (1 + difference, 1.0))
    return Separate(a, b, "image", "", n, n)


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resamples of n units are the same in every trial: they are drawn once."""
    monkeypatch.setattr(intervals, "cluster_weights", lru_cache(intervals.cluster_weights))


def shares(rule: str, draw: Callable[[np.random.Generator, int, float], Evidence], n: int, difference: float) -> dict[str, float]:
    generator = rng.stream(f"test.gate.{draw.__name__}.{rule}")
    found = Counter(ruled(rule, draw(generator, n, difference)).outcome for _ in range(1000))
    return {outcome: found[outcome] / 1000 for outcome in ("pass", "fail", "inconclusive")}


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize(
    ("rule", "draw", "n"),
    [
        (BOUND, normal, 20),
        (BOUND, skewed, 40),
        ("drift.k >= baseline + 0.1", normal, 20),
        ("drift.k <= 1.1*baseline", scaled, 20),
        ("drift.k <= baseline + 0.1", separate, 20),
    ],
)
def test_at_the_threshold_a_rule_passes_and_fails_as_rarely_as_promised(
    rule: str, draw: Callable[[np.random.Generator, int, float], Evidence], n: int
) -> None:
    """2.5 % each; three standard errors of 1,000 trials are 1.5 %."""
    found = shares(rule, draw, n, 0.1)
    assert found["pass"] <= 0.04
    assert found["fail"] <= 0.04
    assert found["pass"] + found["fail"] >= 0.02, "an interval that is far too wide would also err rarely"


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("difference", [-0.1, 0.1])
def test_at_either_margin_an_equivalence_passes_and_fails_as_rarely_as_promised(difference: float) -> None:
    found = shares("drift.k within 0.1 of baseline", normal, 24, difference)
    assert found["pass"] <= 0.04
    assert found["fail"] <= 0.04


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize(("rule", "difference", "outcome"), [(BOUND, -0.2, "pass"), (BOUND, 0.4, "fail")])
def test_far_from_the_threshold_a_rule_is_decided(rule: str, difference: float, outcome: str) -> None:
    assert shares(rule, normal, 20, difference)[outcome] > 0.98


def exactly(n: int, difference: float) -> Paired:
    """Pairs whose differences have this mean and a deviation of 0.2, to rounding."""
    d = np.sort(rng.stream("test.gate.exactly").standard_normal(n))
    return paired(2 + difference + 0.2 * (d - d.mean()) / d.std(ddof=1), np.full(n, 2.0))


@pytest.mark.usefixtures("drawn_once")
def test_the_n_that_would_decide_decides_half_the_time_and_twice_that_four_times_in_five() -> None:
    """The interval of that n just reaches the threshold if the value stays, and a value strays to either side equally often."""
    told = ruled(BOUND, exactly(20, 0.04))
    assert told.outcome == "inconclusive"
    assert told.needed is not None
    assert 40 < told.needed < 60
    generator = rng.stream("test.gate.needed")
    for factor, lowest, highest in ((1, 0.4, 0.62), (2, 0.7, 0.9)):
        passed = [ruled(BOUND, normal(generator, factor * told.needed, 0.04)).outcome == "pass" for _ in range(250)]
        assert lowest < np.mean(passed) < highest


def test_the_interval_of_a_paired_rule_is_that_of_a_comparison() -> None:
    pairs = normal(rng.stream("test.gate"), 30, 0.1)
    found = paired_difference(pairs.values, pairs.baselines).mean
    upper, lower = ruled("drift.k <= baseline", pairs), ruled("drift.k >= baseline", pairs)
    assert (upper.room, upper.lo, upper.hi) == (-found.value, -found.hi, -found.lo)
    assert (lower.room, lower.lo, lower.hi) == pytest.approx(found)
    assert (upper.outcome, lower.outcome) == ("fail", "pass")
    assert (upper.value, upper.threshold) == (pairs.value, pairs.baseline)


def test_a_factor_scales_the_units_and_an_offset_shifts_them() -> None:
    pairs = normal(rng.stream("test.gate"), 30, 0.1)
    told = ruled("drift.k <= 1.5*baseline - 0.2", pairs)
    found = paired_difference(1.5 * pairs.baselines - 0.2, pairs.values).mean
    assert told.threshold == pytest.approx(1.5 * pairs.baseline - 0.2)
    assert (told.room, told.lo, told.hi) == pytest.approx(found, rel=1e-9)


def test_the_order_of_units_changes_nothing() -> None:
    pairs = normal(rng.stream("test.gate"), 25, 0.1)
    order = rng.stream("test.gate.order").permutation(25)
    mixed = paired(pairs.values[order], pairs.baselines[order])
    a, b = ruled(BOUND, pairs), ruled(BOUND, mixed)
    assert a.outcome == b.outcome
    assert (a.room, a.lo, a.hi) == pytest.approx((b.room, b.lo, b.hi), rel=0.1)


@pytest.mark.parametrize(
    ("rule", "outcome", "room"),
    [
        ("drift.k <= baseline", "pass", 0.0),
        ("drift.k >= baseline", "pass", 0.0),
        ("drift.k < baseline", "fail", 0.0),
        ("drift.k > baseline", "fail", 0.0),
        ("drift.k <= 1.05*baseline", "pass", 0.015),
        ("drift.k within 1% of baseline", "pass", 0.003),
        ("drift.k <= 0.3", "pass", 0.0),
        ("drift.k <= 0.1 + 0.2", "pass", 0.0),
        ("drift.k <= 0.2999", "fail", -0.0001),
    ],
)
@pytest.mark.parametrize("n", [2, 7, 300])
def test_differences_without_spread_are_decided_exactly(rule: str, outcome: str, room: float, n: int) -> None:
    told = ruled(rule, paired(np.full(n, 0.1 + 0.2), np.full(n, 0.3)))
    assert told.outcome == outcome
    assert told.room == told.lo == told.hi == pytest.approx(room)
    if not room:
        assert "and so is the threshold" in told.sentence


def test_a_margin_has_a_lower_and_an_upper_bound() -> None:
    values = np.linspace(-0.05, 0.05, 40)
    outcomes = {shift: ruled("drift.k within 0.1 of baseline", paired(values + shift, np.zeros(40))) for shift in (-0.2, -0.1, 0, 0.1, 0.2)}
    assert [told.outcome for told in outcomes.values()] == ["fail", "inconclusive", "pass", "inconclusive", "fail"]
    assert outcomes[-0.2].threshold == -0.1
    assert outcomes[0.2].threshold == 0.1


@pytest.mark.parametrize("base", [-2.0, 2.0])
def test_a_margin_in_per_cent_is_one_of_the_size_of_the_baseline(base: float) -> None:
    for shift, outcome in ((0.01, "pass"), (-0.01, "pass"), (0.5, "fail"), (-0.5, "fail")):
        values = np.linspace(-0.01, 0.01, 20)
        assert ruled("drift.k within 5% of baseline", paired(base + shift + values, np.full(20, base))).outcome == outcome


def test_what_a_margin_needs_is_what_its_harder_bound_needs() -> None:
    """From 0.04 it is 0.06 to the upper bound, and 0.14 to the lower."""
    told = ruled("drift.k within 0.1 of baseline", exactly(10, 0.04))
    upper = ruled("drift.k <= baseline + 0.1", exactly(10, 0.04))
    assert told.outcome == upper.outcome == "inconclusive"
    assert told.needed == upper.needed
    assert told.needed is not None
    beyond = ruled("drift.k within 0.1 of baseline", exactly(10, 0.14))
    assert beyond.outcome == "inconclusive"
    assert beyond.needed == ruled("drift.k > baseline + 0.1", exactly(10, 0.14)).needed


def test_a_higher_level_decides_less() -> None:
    pairs = exactly(20, 0.01)
    assert [ruled(BOUND, pairs, level).outcome for level in (0.9, 0.999)] == ["pass", "inconclusive"]


def test_estimates_that_do_not_pair_are_decided_by_mover() -> None:
    """Closed form for symmetric intervals: half-widths add as 1.05 h_b and h_a do in a right triangle."""
    a, b = Interval(1.0, 0.7, 1.3), Interval(1.0, 0.6, 1.4)
    told = ruled("drift.codec_share <= 1.05*baseline", Separate(a, b, "image", "", 30, 60))
    half = np.hypot(0.3, 1.05 * 0.4)
    assert (told.room, told.lo, told.hi) == pytest.approx((0.05, 0.05 - half, 0.05 + half))
    assert (told.outcome, told.paired) == ("inconclusive", False)
    assert told.needed == pytest.approx(30 * (half / 0.05) ** 2, abs=1)
    assert told.sentence.endswith(
        "(n = 30 images, unpaired, 60 in the baseline): about 3,200 images, and 6,400 in the baseline, would decide."
    )


@pytest.mark.parametrize(("limit", "outcome"), [(0.5, "fail"), (0.61, "fail"), (0.7, "inconclusive"), (1.0, "pass")])
def test_a_number_is_set_against_the_interval_of_the_run(limit: float, outcome: str) -> None:
    told = ruled(f"drift.mse <= {limit}", Separate(Interval(0.7, 0.62, 0.9), None, "image", "", 30))
    assert (told.outcome, told.paired, told.threshold) == (outcome, None, limit)
    assert (told.lo, told.hi) == pytest.approx((limit - 0.9, limit - 0.62))


def test_where_the_value_is_the_threshold_no_n_is_named() -> None:
    told = ruled("drift.mse <= 0.7", Separate(Interval(0.7, 0.6, 0.9), None, "prompt", "", 30))
    assert (told.outcome, told.needed) == ("inconclusive", None)
    assert told.sentence.endswith("no number of prompts is known to decide.")


@pytest.mark.parametrize(
    ("rule", "value", "baseline", "outcome"),
    [
        ("drift.flagged <= 3", 3, 0, "pass"),
        ("drift.flagged < 3", 3, 0, "fail"),
        ("drift.flagged <= 1.1*baseline", 11, 10, "pass"),
        ("drift.flagged <= baseline + 1", 12, 10, "fail"),
        ("drift.flagged within 2 of baseline", 12, 10, "pass"),
    ],
)
def test_counts_are_exact(rule: str, value: float, baseline: float, outcome: str) -> None:
    told = ruled(rule, Counted(value, baseline, 100))
    assert told.outcome == outcome
    assert told.sentence.endswith("(a count, of 100).")


@pytest.mark.parametrize(
    ("evidence", "told"),
    [
        (exactly(20, 0.04), "2.04, 0.0600 [] below 2.10 (n = 20 images, paired, 100 % of the rows): about N images would decide."),
        (exactly(20, 0.16), "2.16, 0.0600 [] above 2.10 (n = 20 images, paired, 100 % of the rows): about N images would decide."),
        (exactly(200, 0.04), "2.04, 0.0600 [] below 2.10 (n = 200 images, paired, 100 % of the rows)."),
        (exactly(200, 0.2), "2.20, 0.100 [] above 2.10 (n = 200 images, paired, 100 % of the rows)."),
        (Counted(2.0, 2.0, 9), "2.00, 0.100 below 2.10 (a count, of 9)."),
    ],
)
def test_a_sentence_has_the_value_its_distance_and_the_grounds(evidence: Evidence, told: str) -> None:
    """The digits of resampled limits are left open."""
    found = re.sub(r"\[[^]]+\]", "[]", ruled(BOUND, evidence).sentence)
    assert re.sub(r"about \d+ images", "about N images", found) == f"drift.k is {told}"


def test_a_sentence_without_evidence_has_the_reason() -> None:
    told = ruled(BOUND, Missing("the disk is empty"))
    assert (told.outcome, told.sentence) == ("inconclusive", "drift.k cannot be decided: the disk is empty.")


def test_rounding_breaks_no_promise() -> None:
    """A lean of 7e-7 of the values over 40 units, as single precision has it; ten times that is a difference."""
    values = 80 + rng.stream("test.gate.rounding").standard_normal(40)
    for shift, outcome in ((7e-7, "pass"), (7e-6, "fail")):
        sides = (
            Comparable("k", "k", "image", {str(unit): float(value) for unit, value in enumerate(one)}, "more", "less")
            for one in (values, values * (1 - shift))
        )
        found = matched(*sides)
        assert ruled("drift.k >= baseline", paired(found.other, found.base)).outcome == outcome
