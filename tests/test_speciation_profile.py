"""Production and its landmarks: Gaussian classes in closed form, shapes with known windows, coverage of the intervals, bad input."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from diffprobe import rng
from diffprobe.measures.speciation import (
    HALF_GAMMA,
    PEAK_GAMMA,
    Interval,
    Profile,
    commitment_values,
    control_parameter,
    entropy_production,
    falling_limits,
    gaussian_entropy,
    partitioned_entropy,
    profile,
    smooth,
    smoothing_bandwidth,
)
from diffprobe.measures.stats import bootstrap, paired_difference

Array = NDArray[np.float64]
LN2 = math.log(2)
TRIALS, LEVELS = 1000, 32
SIGMA = np.geomspace(30, 0.3, LEVELS)
GAMMA = control_parameter(SIGMA, 16, 0.25)
PROFILE = ("commitment", "peak", "peak_step", "low", "high", "share_inside")


def simulated(seeds: int, *address: int, gamma: Array = GAMMA) -> Array:
    """Curves [seeds, N] as a probe measures them: log odds +-Gamma/2 + B(Gamma) along a Brownian path a side, posterior form."""
    steps = np.diff(gamma, prepend=0)
    noise = rng.stream("test.speciation.profile", seeds, *address).standard_normal((2, seeds, len(gamma)))
    return np.asarray(partitioned_entropy((steps / 2 + np.sqrt(steps) * noise).cumsum(-1)).mean(0))


def exact(entropy: Array, sigma: Array = SIGMA, bandwidth: float = 0.0) -> Profile:
    """The profile of a curve that is known, as one seed's."""
    return profile(sigma, entropy[None], prior_entropy=LN2, bandwidth=bandwidth, replicates=1)


def landmarks(found: Profile) -> dict[str, Interval]:
    names = {"low": found.window[0], "high": found.window[1]}
    return names | {name: getattr(found, name) for name in ("commitment", "peak", "peak_step", "share_inside")}


def from_rate(rate: Array, sigma: Array) -> Array:
    """An entropy [N] that falls from 1 as the rate [N - 1] per ln sigma says."""
    return 1 - np.concatenate([[0], np.cumsum(rate * -np.diff(np.log(sigma)))])


def test_gaussian_classes_peak_and_commit_at_their_control_parameters() -> None:
    """Gamma = 1/sigma^2, so that production per ln sigma is twice that per ln Gamma, whose maximum is .2398."""
    sigma = np.geomspace(20, 0.05, 801)
    found = exact(gaussian_entropy(sigma**-2), sigma)
    assert found.peak.value**-2 == pytest.approx(PEAK_GAMMA, rel=1e-4)
    assert found.commitment.value**-2 == pytest.approx(HALF_GAMMA, rel=1e-4)
    assert found.production.rate.max() == pytest.approx(2 * 0.2398, abs=1e-4)
    coarse = exact(gaussian_entropy(sigma[::40] ** -2), sigma[::40])
    assert coarse.peak.value == pytest.approx(found.peak.value, rel=0.03)  # three points on a grid of 0.3
    assert math.log(found.window[1].value / found.window[0].value) == pytest.approx(1.311, abs=1e-3)
    assert 0.6 < found.share_inside.value < 0.8


def test_the_clock_of_steps_has_its_own_peak() -> None:
    """On levels equally far apart in sigma the largest drop is that of dH/dsigma, found here on a grid 100 times finer."""
    sigma = np.linspace(4, 0.05, 200)
    found = exact(gaussian_entropy(sigma**-2), sigma)
    fine = np.linspace(0.4, 0.25, 1001)
    place = fine[np.argmax(-np.diff(gaussian_entropy(fine**-2)))]
    at = np.interp(found.peak_step.value, np.arange(200), sigma)
    assert at == pytest.approx(place, abs=2e-3)
    assert at < 0.9 * found.peak.value


def test_production_is_the_entropy_lost_on_each_clock() -> None:
    sigma, entropy = np.array([8.0, 4.0, 1.0]), np.array([[0.7, 0.6, 0.2], [0.5, 0.6, 0.0]])
    found = entropy_production(sigma, entropy)
    assert found.sigma == pytest.approx([math.sqrt(32), 2])
    assert found.per_step == pytest.approx(np.array([[0.1, 0.4], [-0.1, 0.6]]))
    assert found.rate == pytest.approx(np.array([[0.1 / LN2, 0.2 / LN2], [-0.1 / LN2, 0.3 / LN2]]))
    total = (found.rate * -np.diff(np.log(sigma))).sum(-1)
    assert total == pytest.approx(entropy[:, 0] - entropy[:, -1])


def test_pure_noise_has_a_step_but_no_place_on_the_logarithmic_clock() -> None:
    sigma = np.concatenate([[math.inf], SIGMA])
    curves = simulated(30, 1)
    longer = np.concatenate([np.full((30, 1), LN2), curves], 1)
    found = profile(sigma, longer, prior_entropy=LN2, bandwidth=0, replicates=200)
    assert math.isinf(found.production.sigma[0])
    assert math.isnan(found.production.rate[0])
    assert found.production.per_step[0] == pytest.approx(LN2 - curves[:, 0].mean())
    assert np.isfinite([found.production.rate[1:], found.production_lo.rate[1:], found.production_hi.rate[1:]]).all()
    shorter = profile(SIGMA, curves, prior_entropy=LN2, bandwidth=0, replicates=200)
    assert found.peak == shorter.peak
    assert found.window == shorter.window
    assert found.commitment == pytest.approx(shorter.commitment)
    assert found.peak_step == pytest.approx([1 + part for part in shorter.peak_step])
    early = profile([math.inf, 1.0], [[LN2, 0.2], [LN2, 0.1]], prior_entropy=LN2, bandwidth=0)
    assert np.isnan([early.commitment, early.peak, *early.window, early.share_inside]).all()  # somewhere above sigma 1
    assert early.peak_step.value == 0.5
    assert np.isnan(commitment_values([math.inf, 1.0], [[LN2, 0.2], [LN2, 0.1]], LN2)).all()


def test_a_triangle_has_its_window_at_half_height_and_three_quarters_inside() -> None:
    sigma = np.exp(np.linspace(2.0, -2.0, 402))
    middle = np.log(entropy_production(sigma, np.zeros(402)).sigma)
    found = exact(from_rate(0.5 * np.maximum(0, 1 - np.abs(middle)), sigma), sigma)
    assert found.peak.value == pytest.approx(1, abs=1e-9)
    assert [np.log(end.value) for end in found.window] == pytest.approx([-0.5, 0.5], abs=1e-9)
    assert found.share_inside.value == pytest.approx(0.75, abs=1e-4)
    assert found.peak_step.value == pytest.approx(200.5)


def test_a_shallow_dip_does_not_end_the_window_and_a_valley_does() -> None:
    sigma = np.exp(np.linspace(2.0, -2.0, 402))
    middle = np.log(entropy_production(sigma, np.zeros(402)).sigma)
    flat = np.where(np.abs(middle) < 1, 0.4, 0.0) + 0.05 * np.exp(-(((middle - 0.8) / 0.05) ** 2))
    dip = np.where(np.abs(middle - 0.3) < 0.05, 0.0, flat)
    valley = np.where(np.abs(middle + 0.4) < 0.4, 0.0, flat)
    ends = [[math.log(end.value) for end in exact(from_rate(rate, sigma), sigma).window] for rate in (flat, dip, valley)]
    assert ends[0] == pytest.approx([-1, 1], abs=0.02)
    assert ends[1] == pytest.approx([-1, 1], abs=0.02)
    assert ends[2] == pytest.approx([0, 1], abs=0.02)


def test_a_grid_that_ends_in_the_middle_has_no_further_end_of_the_window() -> None:
    sigma = np.geomspace(20, 1 / math.sqrt(PEAK_GAMMA) * 1.2, 60)
    curves = gaussian_entropy(sigma**-2) + 1e-3 * np.arange(3)[:, None]
    found = profile(sigma, curves, prior_entropy=LN2, bandwidth=0)
    assert found.peak.value == pytest.approx(found.production.sigma[-1])
    assert np.isnan(found.window[0]).all()
    assert np.isfinite(found.window[1]).all()
    assert np.isnan(found.share_inside).all()
    assert np.isnan(found.commitment).all()


def test_smoothing_keeps_constants_and_the_interior_of_lines() -> None:
    steps = np.arange(60.0)
    for bandwidth in (0.5, 2.0, 4.0):
        assert smooth(np.full(60, LN2), bandwidth) == pytest.approx(np.full(60, LN2), rel=1e-14)
        line = smooth(3 - 0.25 * steps, bandwidth)
        inside = slice(int(7 * bandwidth), 60 - int(7 * bandwidth))
        assert line[inside] == pytest.approx((3 - 0.25 * steps)[inside], abs=1e-10)
        assert line[0] < 3 - 0.02 * bandwidth  # one-sided at the ends
    assert np.array_equal(smooth(steps, 0), steps)


def test_smoothing_is_a_normalised_gaussian_and_linear() -> None:
    curves = simulated(4, 2)
    for i in (0, 1, 17, LEVELS - 1):
        weights = np.exp(-((np.arange(LEVELS) - i) ** 2) / (2 * 1.5**2))
        assert smooth(curves, 1.5)[:, i] == pytest.approx(curves @ weights / weights.sum(), rel=1e-12)
    assert smooth(2 * curves[0] - 3 * curves[1], 2) == pytest.approx(2 * smooth(curves, 2)[0] - 3 * smooth(curves, 2)[1])
    for bad in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="a smoothing bandwidth is a number of steps, 0 or more"):
            smooth(curves, bad)


@pytest.mark.parametrize(("seeds", "folds"), [(33, 10), (6, 10), (12, 3)])
def test_the_bandwidth_is_the_one_that_predicts_unseen_seeds_best(seeds: int, folds: int) -> None:
    """Written out fold by fold and seed by seed."""
    curves, losses = simulated(seeds, 3), {}
    bounds = np.cumsum([0, *(len(part) for part in np.array_split(np.arange(seeds), min(folds, seeds)))])
    for width in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        losses[width] = 0.0
        for begin, end in pairwise(bounds.tolist()):
            seen = smooth(np.delete(curves, range(begin, end), 0).mean(0), width)
            for i in range(LEVELS - 1):
                held = np.mean([row[i] - row[i + 1] for row in curves[begin:end]])
                losses[width] += (end - begin) * (seen[i] - seen[i + 1] - held) ** 2
    best = min(losses, key=losses.__getitem__)
    assert smoothing_bandwidth(curves, folds=folds) == best
    assert smoothing_bandwidth(curves, sorted(losses, reverse=True), folds) == best


def test_noisier_curves_are_smoothed_more_widely() -> None:
    """Fewer seeds, and noise that is independent from level to level."""
    chosen = [np.mean([smoothing_bandwidth(simulated(n, 4, trial)) for trial in range(40)]) for n in (10, 40, 200, 1000)]
    assert chosen == sorted(chosen, reverse=True)
    assert chosen[0] > 1.5 * chosen[-1]
    noise = rng.stream("test.speciation.noise").standard_normal((40, 60, LEVELS))
    rough = [np.mean([smoothing_bandwidth(gaussian_entropy(GAMMA) + size * part) for part in noise]) for size in (0.001, 0.03, 0.3)]
    assert rough == sorted(rough)
    assert rough[0] <= 0.5
    assert rough[2] > 2


def test_a_bandwidth_that_cannot_be_chosen_is_fixed_and_wide_ones_do_not_count() -> None:
    curves = simulated(40, 5)
    assert smoothing_bandwidth(curves[:3]) == 2 * LEVELS / 64
    assert smoothing_bandwidth(np.tile(curves[:1], (9, 1))) == 0  # without noise nothing is gained
    assert smoothing_bandwidth(np.full((9, LEVELS), LN2)) == 0
    rough = curves + rng.stream("test.speciation.rough").standard_normal(curves.shape)
    assert smoothing_bandwidth(rough, (0, 1, 4, 4.1)) == 4
    assert smoothing_bandwidth(rough[:, :31], (0, 1, 4, 4.1)) == 1
    with pytest.raises(ValueError, match="no bandwidth can be chosen for 32 levels in 10 folds: offer one up to 4"):
        smoothing_bandwidth(curves, (4.5,))
    with pytest.raises(ValueError, match="2 folds"):
        smoothing_bandwidth(curves, folds=1)


@cache
def experiments(seeds: int) -> dict[str, Array]:
    """For each of many experiments, every landmark's interval and its truth: [TRIALS, 4].

    The truth is the exact entropy's on the same levels, after the smoothing that the experiment chose.
    """
    entropy = gaussian_entropy(GAMMA)
    truths = {width: landmarks(exact(entropy, bandwidth=width)) for width in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)}
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in PROFILE}
    for trial in range(TRIALS):
        found = profile(SIGMA, simulated(seeds, 6, trial), prior_entropy=LN2, replicates=300, seed=trial)
        for name, interval in landmarks(found).items():
            rows[name].append((*interval, truths[found.bandwidth][name].value))
    return {name: np.array(values) for name, values in rows.items()}


@pytest.mark.parametrize("seeds", [32, 128])
@pytest.mark.parametrize(
    ("name", "least"), [("commitment", 0.93), ("peak", 0.93), ("peak_step", 0.93), ("share_inside", 0.92), ("low", 0.86), ("high", 0.86)]
)
def test_the_intervals_cover(name: str, least: float, seeds: int) -> None:
    """The window's ends fall short with few seeds, as `profile` says."""
    _, lo, hi, truth = experiments(seeds)[name].T
    covered = np.mean((lo <= truth) & (truth <= hi))
    assert least <= covered <= 0.97, f"{name}, {seeds} seeds: {covered}"


@pytest.mark.parametrize("seeds", [32, 128])
def test_commitment_is_unbiased_and_its_pseudo_values_scatter_as_it_does(seeds: int) -> None:
    value, _, _, truth = np.log(experiments(seeds)["commitment"]).T
    assert value.mean() == pytest.approx(truth[0], abs=4 * value.std() / math.sqrt(TRIALS))
    values = np.stack([commitment_values(SIGMA, simulated(seeds, 6, trial), LN2) for trial in range(TRIALS // 5)])
    assert values.mean(1) == pytest.approx(value[: len(values)], abs=1e-9)
    errors = values.std(1, ddof=1) / math.sqrt(seeds)
    assert errors.mean() == pytest.approx(value.std(), rel=0.12)
    gaussian = 0.5 * math.log(16 / HALF_GAMMA - 0.25)
    assert truth[0] == pytest.approx(gaussian, abs=0.005)


def test_limits_of_the_curve_cover_and_cross_half_where_commitment_ends() -> None:
    found = profile(SIGMA, simulated(50, 7), prior_entropy=LN2)
    half = [np.exp(np.interp(-LN2 / 2, -curve, np.log(SIGMA))) for curve in (found.entropy, found.hi, found.lo)]
    assert found.commitment == pytest.approx(half)
    assert (found.lo <= found.entropy).all()
    assert (found.entropy <= found.hi).all()


@pytest.mark.parametrize("seeds", [2, 7, 8, 9, 40])
def test_the_limits_are_those_of_the_bootstrap_level_by_level(seeds: int) -> None:
    """Also at the first level, where all seeds agree, and at the last, where few have anything left: skewed, and often equal."""
    curves = np.round(simulated(seeds, 17), 3)
    curves[:, 0] = LN2
    found = profile(SIGMA, curves, prior_entropy=LN2, bandwidth=0, replicates=500, seed=3, level=0.9)
    for columns, lo, hi in (
        (curves, found.lo, found.hi),
        (-np.diff(curves), found.production_lo.per_step, found.production_hi.per_step),
    ):
        one = np.array([bootstrap(column, replicates=500, seed=3, level=0.9)[1:] for column in columns.T])
        assert np.stack([lo, hi], 1) == pytest.approx(one, abs=1e-12)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_the_limits_at_each_level_cover(level: float) -> None:
    """Of entropy and of production, on average over the levels where something is decided."""
    truth = gaussian_entropy(GAMMA)
    drops = truth[:-1] - truth[1:]
    covered = []
    for trial in range(200):
        found = profile(SIGMA, simulated(40, 8, trial), prior_entropy=LN2, bandwidth=0, replicates=300, level=level)
        of_rate = (found.production_lo.per_step <= drops) & (drops <= found.production_hi.per_step)
        covered.append([((found.lo <= truth) & (truth <= found.hi))[5:25].mean(), of_rate[5:25].mean()])
    assert np.mean(covered, 0) == pytest.approx([level, level], abs=0.025)


def test_two_conditions_with_one_noise_are_told_apart_by_their_values() -> None:
    """6 % more distance between the classes: far within the intervals of either, plain in pairs."""
    a, b = (simulated(64, 9, gamma=control_parameter(SIGMA, square, 0.25)) for square in (16, 18))
    found = [profile(SIGMA, curves, prior_entropy=LN2).commitment for curves in (a, b)]
    assert found[0].hi > found[1].lo
    difference = paired_difference(commitment_values(SIGMA, b, LN2), commitment_values(SIGMA, a, LN2))
    assert difference.mean.value == pytest.approx(math.log(found[1].value / found[0].value))
    assert difference.mean.lo > 0
    assert difference.mean.lo < 0.5 * math.log((18 / HALF_GAMMA - 0.25) / (16 / HALF_GAMMA - 0.25)) < difference.mean.hi


def test_units_of_sigma_and_of_entropy_only_scale() -> None:
    curves = simulated(30, 10)
    found = profile(SIGMA, curves, prior_entropy=LN2, replicates=300)
    scaled = profile(7 * SIGMA, 3 * curves, prior_entropy=3 * LN2, replicates=300)
    assert scaled.bandwidth == found.bandwidth
    for name, interval in landmarks(found).items():
        factor = 1 if name in {"peak_step", "share_inside"} else 7
        assert landmarks(scaled)[name] == pytest.approx([factor * part for part in interval])
    assert scaled.production.rate == pytest.approx(3 * found.production.rate)
    assert scaled.production_hi.per_step == pytest.approx(3 * found.production_hi.per_step)
    again = profile(SIGMA, curves, prior_entropy=LN2, replicates=300)
    assert again.peak == found.peak
    assert profile(SIGMA, curves, prior_entropy=LN2, replicates=300, seed=1).peak.lo != found.peak.lo
    wider = profile(SIGMA, curves, prior_entropy=LN2, replicates=300, level=0.99)
    for name, interval in landmarks(found).items():
        assert landmarks(wider)[name].value == interval.value
        assert landmarks(wider)[name].lo < interval.lo < interval.value < interval.hi < landmarks(wider)[name].hi


def test_what_was_smoothed_is_told() -> None:
    curves = simulated(30, 11)
    found = profile(SIGMA, curves, prior_entropy=LN2, replicates=100)
    assert found.bandwidth == smoothing_bandwidth(curves)
    assert found.n == 30
    assert found.entropy == pytest.approx(curves.mean(0))
    assert found.smooth_entropy == pytest.approx(smooth(curves.mean(0), found.bandwidth))
    assert found.production.rate == pytest.approx(entropy_production(SIGMA, found.smooth_entropy).rate)
    assert (found.production_lo.rate <= found.production.rate).all()
    assert (found.production.rate <= found.production_hi.rate).all()
    assert profile(SIGMA, curves, prior_entropy=LN2, replicates=100, bandwidth=3.0).bandwidth == 3


@pytest.mark.parametrize("bandwidth", [None, 0.0, 1.3])
def test_identical_prompts_are_never_decided_and_have_no_peak(bandwidth: float | None) -> None:
    for tiny in (0.0, 1e-13):  # as rounding leaves it
        curves = np.full((20, LEVELS), LN2) - tiny * rng.stream("test.speciation.same").random((20, LEVELS))
        found = profile(SIGMA, curves, prior_entropy=LN2, bandwidth=bandwidth)
        for interval in landmarks(found).values():
            assert np.isnan(interval).all()
        assert found.entropy == pytest.approx(np.full(LEVELS, LN2))
        assert np.isfinite([found.lo, found.hi]).all()
        assert np.isnan(commitment_values(SIGMA, curves, LN2)).all()


def test_one_seed_has_values_without_limits() -> None:
    found = profile(SIGMA, simulated(200, 12).mean(0)[None], prior_entropy=LN2)
    for interval in landmarks(found).values():
        assert math.isfinite(interval.value)
        assert np.isnan(interval[1:]).all()
    assert np.isnan([found.lo, found.hi]).all()
    assert np.isnan([found.production_lo.rate, found.production_hi.per_step]).all()
    assert found.bandwidth == 2 * LEVELS / 64
    two = profile(SIGMA, simulated(2, 13), prior_entropy=LN2)
    assert all(interval.lo <= interval.hi or np.isnan(interval[1:]).any() for interval in landmarks(two).values())


def test_a_curve_that_never_falls_to_half_has_production_but_no_commitment() -> None:
    curves = 0.55 * LN2 + 0.45 * simulated(40, 14)
    found = profile(SIGMA, curves, prior_entropy=LN2)
    assert np.isnan(found.commitment).all()
    assert np.isfinite([found.peak, *found.window]).all()
    rising = profile(SIGMA, LN2 + 0.1 * np.arange(LEVELS) + np.zeros((5, 1)), prior_entropy=LN2)
    for interval in landmarks(rising).values():
        assert np.isnan(interval).all()
    below = profile(SIGMA, 0.4 * curves, prior_entropy=LN2)  # begins under half: decided before the first level
    assert np.isnan(below.commitment).all()
    apart = np.where(np.arange(20) < 11, 0.35, 0.65)[:, None]  # the mean falls below half, its upper limit does not
    barely = profile(SIGMA, LN2 * (1 - (1 - apart) * (1 - gaussian_entropy(GAMMA) / LN2)), prior_entropy=LN2).commitment
    assert math.isfinite(barely.value)
    assert math.isnan(barely.lo)
    assert barely.hi > barely.value


def test_seeds_that_are_all_alike_have_limits_without_width() -> None:
    found = profile(SIGMA, np.tile(gaussian_entropy(GAMMA), (12, 1)), prior_entropy=LN2)
    for interval in landmarks(found).values():
        assert interval == pytest.approx([interval.value] * 3)


def test_bad_input_is_refused() -> None:
    curves = simulated(5, 16)
    holes = curves.copy()
    holes[1, 3] = math.nan
    holes[4] = math.inf
    for call in (lambda bad: profile(SIGMA, bad, prior_entropy=LN2), lambda bad: commitment_values(SIGMA, bad, LN2), smoothing_bandwidth):
        with pytest.raises(ValueError, match="2 seeds have curves that are not finite: leave them out, and count them"):
            call(holes)
        with pytest.raises(ValueError, match=r"curves are \[seeds, N\], a seed at least, not \[0, 32\]"):
            call(curves[:0])
        with pytest.raises(ValueError, match=r"curves are \[seeds, N\]"):
            call(curves[0])
    with pytest.raises(ValueError, match=r"32 noise levels need curves \[seeds, 32\], not \[5, 31\]"):
        profile(SIGMA, curves[:, 1:], prior_entropy=LN2)
    with pytest.raises(ValueError, match=r"32 noise levels need as many entropies \[..., N\], not \[31\]"):
        entropy_production(SIGMA, np.zeros(31))
    with pytest.raises(ValueError, match="a prior entropy of 0 leaves nothing to decide"):
        profile(SIGMA, curves, prior_entropy=0)
    for sigma in (SIGMA[::-1], np.append(SIGMA[:-1], 0), [1.0], np.full(LEVELS, 2.0)):
        with pytest.raises(ValueError, match="falls strictly and stays above 0"):
            profile(sigma, curves, prior_entropy=LN2)
        with pytest.raises(ValueError, match="falls strictly and stays above 0"):
            entropy_production(sigma, np.zeros(LEVELS))


def test_falling_limits_cover_as_often_and_are_narrower() -> None:
    """At every level whose entropy is above .02, limits at each level hold the truth at their rate; where few are open they close up."""
    truth, trials = gaussian_entropy(GAMMA), 300
    covered, raw, held = np.zeros(LEVELS), np.zeros(LEVELS), np.zeros(LEVELS)
    for trial in range(trials):
        found = profile(SIGMA, simulated(32, trial), prior_entropy=LN2, bandwidth=1.0, replicates=400, seed=trial)
        lo, hi = falling_limits(found.lo, found.hi, LN2)
        covered += (lo <= truth) & (truth <= hi)
        raw += found.hi - found.lo
        held += hi - lo
        assert (np.diff(hi) <= 0).all()
        assert (lo >= 0).all()
    open_still = truth > 0.02
    assert (np.abs(covered[1:] / trials - 0.95) < 0.045)[open_still[1:]].all()
    assert np.allclose(raw[truth > 0.3], held[truth > 0.3], rtol=0.02)
    assert held[-1] < 0.2 * raw[-1]
