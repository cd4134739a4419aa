"""Gaussian classes against independent quadrature and closed forms, and what a run foretells about its own steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.integrate import quad

from diffprobe.adapters.exact import exact_world
from diffprobe.adapters.mixture_entropy import Partition, partition, posterior_entropy
from diffprobe.adapters.mixture_paths import walk
from diffprobe.adapters.mixtures import GaussianMixture, anisotropic, isotropic
from diffprobe.measures.speciation.entropy import class_entropy, log_side_posterior
from diffprobe.measures.speciation.gaussian import (
    HALF_GAMMA,
    LN2,
    PEAK_GAMMA,
    Clock,
    control_parameter,
    gaussian_entropy,
    gaussian_entropy_slope,
    gaussian_gamma,
    speciation_time,
)
from diffprobe.measures.speciation.steps import DECIDED, discretisation_bias, mean_gap, steps_needed
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving

Array = NDArray[np.float64]
PATHS: dict[str, NoisePath] = {"vp": VariancePreserving.scaled_linear(), "ve": VarianceExploding(), "flow": RectifiedFlow()}


def softplus_entropy(gamma: float, prior: float = 0.5) -> float:
    """E log(1 + exp(-log odds)) of both classes, each from its own Gaussian."""

    def loss(z: float, own: float) -> float:
        odds = gamma / 2 + gamma**0.5 * z + np.log(own / (1 - own))
        return float(np.exp(-z * z / 2) / (2 * np.pi) ** 0.5 * np.logaddexp(0, -odds))

    middle = (-(gamma**0.5) / 2, 0.0)
    parts = [quad(loss, -38, 38, args=(own,), points=middle, epsabs=1e-15, epsrel=1e-13, limit=400)[0] for own in (prior, 1 - prior)]
    return float(prior * parts[0] + (1 - prior) * parts[1])


@pytest.mark.parametrize("prior", [0.5, 0.2, 0.005])
@pytest.mark.parametrize("gamma", [1e-6, 0.1, 1.0, 4.0, 20.0, 100.0])
def test_the_entropy_is_the_mean_loss_of_the_log_odds(gamma: float, prior: float) -> None:
    assert float(gaussian_entropy(gamma, prior=prior)) == pytest.approx(softplus_entropy(gamma, prior), rel=1e-11)


def test_the_study_table_and_its_ends() -> None:
    gammas = [0.1, 0.5, 1, 2, 3, 4, 5, 8, 10, 20]
    known = [0.68080, 0.63427, 0.58173, 0.49180, 0.41784, 0.35632, 0.30474, 0.19308, 0.14354, 0.03441]
    np.testing.assert_allclose(gaussian_entropy(gammas), known, atol=1.1e-5)
    np.testing.assert_allclose(gaussian_entropy([0, np.inf]), [LN2, 0], atol=1e-15)
    assert 0 < float(gaussian_entropy(5000)) < 1e-270


@pytest.mark.parametrize("prior", [0.5, 0.1])
def test_the_slope_is_the_derivative(prior: float) -> None:
    gammas, step = np.array([0.01, 1, 3, 10, 40]), 1e-5
    difference = (gaussian_entropy(gammas + step, prior=prior) - gaussian_entropy(gammas - step, prior=prior)) / (2 * step)
    np.testing.assert_allclose(gaussian_entropy_slope(gammas, prior=prior), difference, rtol=1e-5, atol=1e-11)
    assert float(gaussian_entropy_slope(0, prior=prior)) == pytest.approx(-prior * (1 - prior) / 2)
    assert float(gaussian_entropy_slope(3)) == pytest.approx(-0.067259, abs=5e-7)


def test_the_inverse_and_the_named_control_parameters() -> None:
    gammas = np.array([[0, 1e-8, 0.1], [6, 50, 1000]])
    np.testing.assert_allclose(gaussian_gamma(gaussian_entropy(gammas)), gammas, rtol=1e-9, atol=1e-12)
    assert float(gaussian_gamma(0)) == np.inf
    assert float(gaussian_gamma(LN2 / 2)) == pytest.approx(HALF_GAMMA, abs=1e-8)
    beside = PEAK_GAMMA * np.array([0.999, 1, 1.001])
    production = -beside * gaussian_entropy_slope(beside)
    assert production.argmax() == 1
    assert production[1] == pytest.approx(0.23976, abs=5e-6)


@pytest.mark.parametrize("clock", ["ou", "ve", "flow"])
def test_times_are_where_gamma_reaches_what_was_asked(clock: Clock) -> None:
    for gamma in (0.3, 1.0, PEAK_GAMMA):
        time = speciation_time(30.0, 0.4, clock=clock, gamma=gamma)
        sigma = {"ou": np.expm1(2 * time) ** 0.5, "ve": time, "flow": time / (1 - time)}[clock]
        assert float(control_parameter(sigma, 30.0, 0.4)) == pytest.approx(gamma)
        moments = speciation_time(3.0, 0.4, covariance2=200.0, clock=clock, gamma=gamma)
        sigma = {"ou": np.expm1(2 * moments) ** 0.5, "ve": moments, "flow": moments / (1 - moments)}[clock]
        u = 1 / (sigma**2 + 0.4)
        assert 3 * u + 100 * u**2 == pytest.approx(gamma)


def test_the_scaling_of_the_study() -> None:
    """First moments: ln(d^2 + 1 - v)/2 and sqrt(d^2 - v). Second: a quarter of the logarithm of the dimension."""
    assert speciation_time(64.0, 0.3, clock="ou") == pytest.approx(0.5 * np.log(64.7))
    assert speciation_time(64.0, 0.3, clock="ve") == pytest.approx(63.7**0.5)
    times = [speciation_time(0.0, 1.0, covariance2=0.3 * d, clock="ou") for d in (1e4, 1e8)]
    assert times[1] - times[0] == pytest.approx(0.25 * np.log(1e4))
    assert speciation_time(0.0, 1.0, covariance2=1e6) == pytest.approx((1e3 / 2**0.5 - 1) ** 0.5)


def test_classes_that_never_separate_are_refused() -> None:
    for clock in ("ou", "ve", "flow"):
        with pytest.raises(ValueError, match="never separate"):
            speciation_time(0.5, 0.5, clock=clock)
    with pytest.raises(ValueError, match="below 6"):
        speciation_time(4.0, 1.0, gamma=6.0)
    with pytest.raises(ValueError, match="0 or more"):
        speciation_time(-1.0, 1.0)


@pytest.mark.parametrize("call", [lambda: gaussian_entropy(-1), lambda: gaussian_entropy(np.nan), lambda: gaussian_entropy(1, prior=0.0)])
def test_bad_control_parameters_are_refused(call: Callable[[], Array]) -> None:
    with pytest.raises(ValueError, match="prior lies between"):
        call()


@pytest.mark.parametrize("entropy", [-0.1, 0.7, np.nan])
def test_entropies_of_no_two_classes_are_refused(entropy: float) -> None:
    with pytest.raises(ValueError, match=r"0 \.\. ln 2"):
        gaussian_gamma([0.3, entropy])


def gaussian_run(path: NoisePath, steps: int, distance2: float, variance: float) -> tuple[Array, Array, Array]:
    """Levels, gaps and the very entropy that the sampler gives for two Gaussian classes."""
    sigma = np.array([float(path.ratio(t)) for t in path.levels(steps)])
    gap = distance2 / (1 + variance * sigma**-2.0) ** 2
    return sigma, gap, gaussian_entropy(np.concatenate([[0], np.cumsum(gap[:-1] * np.diff(sigma**-2.0))]))


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("steps", [4, 16, 128])
def test_the_error_of_gaussian_classes_is_foretold(kind: str, steps: int) -> None:
    sigma, gap, entropy = gaussian_run(PATHS[kind], steps, 16.0, 1.0)
    truth = entropy - gaussian_entropy(control_parameter(sigma, 16.0, 1.0))
    np.testing.assert_allclose(discretisation_bias(sigma, gap, entropy), truth, atol=1e-12)
    # A sampler that takes infinitely many steps from the same start has all but what that start held.
    held = control_parameter(sigma, 16.0, 1.0) - control_parameter(sigma[0], 16.0, 1.0)
    np.testing.assert_allclose(
        discretisation_bias(sigma, gap, entropy, start=False), entropy - gaussian_entropy(np.maximum(held, 0)), atol=1e-12
    )


@pytest.mark.parametrize(
    ("kind", "variance", "distance2"), [("flow", 1.0, 16.0), ("flow", 1.0, 6.0), ("flow", 0.3, 4.0), ("ve", 1.0, 16.0)]
)
def test_the_steps_needed_are_what_more_runs_would_have_found(kind: str, variance: float, distance2: float) -> None:
    def error(count: int) -> float:
        sigma, _, entropy = gaussian_run(PATHS[kind], count, distance2, variance)
        return float(np.abs(entropy - gaussian_entropy(control_parameter(sigma, distance2, variance))).max())

    found = [steps_needed(*gaussian_run(PATHS[kind], steps, distance2, variance)) for steps in (8, 16, 64)]
    assert error(found[-1] + 2) < 0.02 < error(found[-1] - 4)
    assert min(found) > 0.95 * found[-1]
    assert max(found) < 1.05 * found[-1]
    finer = steps_needed(*gaussian_run(PATHS[kind], 64, distance2, variance), tolerance=0.01)
    assert error(finer + 4) < 0.01 < error(finer - 8)


def test_the_unit_of_the_gaps_does_not_matter() -> None:
    sigma, gap, entropy = gaussian_run(PATHS["ve"], 16, 9.0, 1.0)
    np.testing.assert_allclose(discretisation_bias(sigma, 40 * gap, entropy), discretisation_bias(sigma, gap, entropy), atol=1e-12)
    assert steps_needed(sigma, 40 * gap, entropy) == steps_needed(sigma, gap, entropy)


def test_a_larger_prior_scales_everything() -> None:
    sigma, gap, entropy = gaussian_run(PATHS["ve"], 16, 9.0, 1.0)
    scaled = discretisation_bias(sigma, gap, 3 * entropy, prior_entropy=3 * LN2)
    np.testing.assert_allclose(scaled, 3 * discretisation_bias(sigma, gap, entropy), atol=1e-12)
    assert steps_needed(sigma, gap, 3 * entropy, prior_entropy=3 * LN2, tolerance=0.06) == steps_needed(sigma, gap, entropy)


def test_equal_predictions_have_no_error_and_need_no_steps() -> None:
    sigma = np.geomspace(80, 0.01, 20)
    assert not discretisation_bias(sigma, np.zeros(20), np.full(20, LN2)).any()
    assert steps_needed(sigma, np.zeros(20), np.full(20, LN2)) == 2


def test_what_is_decided_tells_no_more() -> None:
    """An entropy of 0 is no infinite control parameter: the last level that still told something speaks for the rest."""
    sigma, gap, entropy = gaussian_run(PATHS["flow"], 32, 400.0, 1.0)
    cut = np.where(entropy < DECIDED * LN2, 0.0, entropy)
    assert (cut == 0).sum() > 10
    np.testing.assert_allclose(discretisation_bias(sigma, gap, cut), discretisation_bias(sigma, gap, entropy), atol=1e-9)


def one_and_rest(world: GaussianMixture) -> Partition:
    return partition(world, [[0], list(range(1, world.classes))])


def halves(world: GaussianMixture) -> Partition:
    return partition(world, [range(world.classes // 2), range(world.classes // 2, world.classes)])


#: Worlds, what is asked of them, paths and numbers of steps.
RUNS = {
    "wide halves": (isotropic(16, 4, separation=4.0, variance=1.0), halves, "ve", 8),
    "wide halves on a flow": (isotropic(16, 4, separation=4.0, variance=1.0), halves, "flow", 16),
    "wide, one and the rest": (isotropic(16, 4, separation=5.0, variance=1.0), one_and_rest, "ve", 8),
    "wide, more steps": (isotropic(16, 4, separation=5.0, variance=1.0), one_and_rest, "ve", 32),
    "shapes": (anisotropic(16, 2, separation=4.0, variances=(0.1, 2.0)), halves, "ve", 8),
    "shapes on a flow": (anisotropic(16, 2, separation=4.0, variances=(0.1, 2.0)), halves, "flow", 16),
    "narrow": (exact_world("gmm").mixture, halves, "flow", 16),
    "narrow shapes": (exact_world("anisotropic").mixture, halves, "ve", 16),
}


def test_the_error_in_other_worlds_is_foretold_within_half_of_itself() -> None:
    """Where the largest error is above 0.02 nats the estimate is within a factor of 1.5; where it is below, so is the estimate."""
    largest = []
    for world, ask, kind, steps in RUNS.values():
        path, asked, each = PATHS[kind], ask(world), partition(world)
        times, seeds = path.levels(steps), range(1200)
        own = [asked.sides[seed % 2][seed // 2 % len(asked.sides[seed % 2])] for seed in seeds]
        stages = list(walk(world, path, times, each, own, seeds))
        entropy = np.array([class_entropy(log_side_posterior(s.log_likelihoods, asked.sides, asked.priors)).mean() for s in stages])
        gaps = np.array([mean_gap(s.gaps, asked.sides, asked.priors).mean() for s in stages])
        sigma = np.array([s.sigma for s in stages])
        later = [t for t in times if np.isfinite(float(path.ratio(t)))]
        exact = posterior_entropy(world, path, later, asked, range(2000)).mean(0)
        truth = entropy - np.concatenate([np.full(len(times) - len(later), LN2), exact])
        found = discretisation_bias(sigma, gaps, entropy)
        largest.append((float(truth.min()), float(found.min())))
    for truth_low, found_low in largest:
        assert found_low > -0.025 if truth_low > -0.02 else 1 / 1.5 < found_low / truth_low < 1.5
    truths, foretold = np.array(largest).T
    assert (truths < -0.02).sum() == 6
    assert set(np.argsort(truths)[:6]) == set(np.argsort(foretold)[:6])


def test_the_mean_gap_is_over_pairs_across_sides() -> None:
    gaps = np.array([[1.0, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 1]])  # pairs 01 02 03 12 13 23
    np.testing.assert_allclose(mean_gap(gaps, [[0, 1], [2, 3]], [[0.25] * 2] * 2), [(2 + 3 + 4 + 5) / 4, 0])
    np.testing.assert_allclose(mean_gap(gaps, [[3], [0, 2]], [[0.5], [0.1, 0.4]]), [(3 * 0.1 + 6 * 0.4) / 0.5, 0.8])
    np.testing.assert_allclose(mean_gap(gaps, [[2], [0], [1]], [[0.2], [0.3], [0.5]]), [(2 * 0.06 + 4 * 0.1 + 1 * 0.15) / 0.31, 0])


def test_bad_runs_are_refused() -> None:
    sigma, gap, entropy = gaussian_run(PATHS["ve"], 8, 9.0, 1.0)
    with pytest.raises(ValueError, match="falls strictly"):
        discretisation_bias(sigma[::-1], gap, entropy)
    with pytest.raises(ValueError, match="one value for each level"):
        discretisation_bias(sigma, gap[:-1], entropy)
    with pytest.raises(ValueError, match="finite and 0 or more"):
        discretisation_bias(sigma, -gap, entropy)
    with pytest.raises(ValueError, match="entropies finite"):
        steps_needed(sigma, gap, entropy * np.nan)
    with pytest.raises(ValueError, match="tolerance"):
        steps_needed(sigma, gap, entropy, tolerance=0)
    for gaps, sides in (([1.0, 2.0], [[0], [1]]), ([1.0], [[0], [2]])):
        with pytest.raises(ValueError, match="all pairs of K classes"):
            mean_gap(gaps, sides, [[0.5], [0.5]])
