"""Known answers of the speciation probe: what Gaussian classes do, and what the online estimator makes of exact worlds.

Allowances of what is sampled are four of its own standard errors: of a difference, those of the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diffprobe.adapters.exact import PATHS, exact_world
from diffprobe.adapters.mixture_entropy import Partition, control_parameters, mean_se, mixture_entropy, partition, two_gaussians
from diffprobe.adapters.mixture_paths import Stage, walk
from diffprobe.adapters.mixtures import GaussianMixture, anisotropic, isotropic
from diffprobe.measures.speciation.entropy import class_entropy, log_side_posterior
from diffprobe.measures.speciation.gaussian import (
    HALF_GAMMA,
    LN2,
    PEAK_GAMMA,
    control_parameter,
    gaussian_entropy,
    gaussian_entropy_slope,
    gaussian_gamma,
    speciation_time,
)
from diffprobe.measures.speciation.steps import discretisation_bias, steps_needed
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving
from diffprobe.validate.check import Check

Array = NDArray[np.float64]

#: H(Gamma) of two Gaussian classes, from adaptive quadrature of E_z ln(1 + exp(-(Gamma/2 + Gamma^(1/2) z))).
TABLE: Mapping[float, float] = {
    0.1: 0.680800904,
    0.5: 0.634268898,
    1: 0.581725698,
    2: 0.491801709,
    3: 0.417841416,
    5: 0.304734661,
    10: 0.143542843,
    20: 0.034412799,
}
ERRORS = 4.0
_SEEDS, _PATHS, _STEPS = 4000, 1800, 64


def speciation() -> Iterator[Check]:
    """Closed forms, then the production identity in three worlds on three paths, then the estimator that meets them from below."""
    yield from _gaussian()
    yield from _times()
    yield from _scaling()
    yield from _covariances()
    yield from _production()
    yield from _proxy()
    yield from _estimator()
    yield from _steps()


def _gaussian() -> Iterator[Check]:
    for gamma, truth in TABLE.items():
        yield Check(f"Gaussian classes: entropy at control parameter {gamma:g}", float(gaussian_entropy(gamma)), truth, 1e-7)
    step = 1e-4
    slope = float(gaussian_entropy(3 + step) - gaussian_entropy(3 - step)) / (2 * step)
    yield Check("Gaussian classes: slope -E p(1 - p)/2 at 3 against a difference", float(gaussian_entropy_slope(3)), slope, 1e-7)
    gammas = np.linspace(5.5, 6.5, 20001)
    peak = float(gammas[np.argmin(gammas * gaussian_entropy_slope(gammas))])
    yield Check("Gaussian classes: production peaks on ln sigma at control parameter", peak, PEAK_GAMMA, 1e-4)
    yield Check("Gaussian classes: half is left at control parameter", float(gaussian_gamma(LN2 / 2)), HALF_GAMMA, 1e-8)


def _times() -> Iterator[Check]:
    """Gamma from the means and variances of a real mixture at the times that the formulas name."""
    world = isotropic(64, 2, separation=8.0, variance=0.5)
    time = speciation_time(64.0, 0.5, clock="ou")
    yield Check("OU: speciation time ln(d² + 1 - v)/2", time, 0.5 * math.log(64.5), 1e-12)
    at = control_parameters(world, math.sqrt(math.expm1(2 * time)))[0, 1]
    yield Check("OU: the mixture's control parameter there", float(at), 1.0, 1e-9)
    sigma = speciation_time(64.0, 0.5, clock="ve")
    yield Check("VE: speciation sigma (d² - v)^(1/2)", sigma, math.sqrt(63.5), 1e-12)
    yield Check("VE: the mixture's control parameter there", float(control_parameters(world, sigma)[0, 1]), 1.0, 1e-9)
    t = speciation_time(64.0, 0.5, clock="flow")
    yield Check(
        "flow: the mixture's control parameter at its speciation time", float(control_parameters(world, t / (1 - t))[0, 1]), 1.0, 1e-9
    )


def _scaling() -> Iterator[Check]:
    """How the peak of production moves and widens with the dimension d, for means a squared distance d apart and variance 1."""
    wide = _width(np.log(gammas := np.geomspace(1e-3, 1e3, 20001)), -gammas * gaussian_entropy_slope(gammas)) / 2
    for dimension in (64, 1024, 16384):
        end = speciation_time(dimension, 1.0, clock="ou")
        times = np.linspace(1e-3, 2 * end, 20001)
        sigma = np.sqrt(np.expm1(2 * times))
        rate = _rate(sigma, dimension) * np.exp(2 * times) / sigma  # per unit of time: dsigma/dt = exp(2t)/sigma
        yield Check(
            f"OU, d = {dimension}: peak of production, t/t_S", times[rate.argmax()] / end, 1 - 0.5 * math.log(PEAK_GAMMA) / end, 5e-3
        )
        yield Check(f"OU, d = {dimension}: full width at half maximum in t/t_S", _width(times, rate) / end, wide / end, 5e-3)
        scale = speciation_time(dimension, 1.0, clock="ve")
        sigma = np.geomspace(0.01, 10, 20001) * scale
        rate = _rate(sigma, dimension)
        allowed = 8 / dimension
        yield Check(
            f"VE, d = {dimension}: peak on ln sigma, sigma_S/sigma", scale / sigma[(rate * sigma).argmax()], PEAK_GAMMA**0.5, allowed
        )
        yield Check(f"VE, d = {dimension}: full width at half maximum in sigma/sigma_S", _width(sigma / scale, rate), 0.3849, allowed)


def _rate(sigma: Array, distance2: float) -> Array:
    """dH/dsigma of two classes of variance 1."""
    gamma = control_parameter(sigma, distance2, 1.0)
    return np.asarray(-2 * gaussian_entropy_slope(gamma) * gamma * sigma / (sigma**2 + 1))


def _width(places: Array, values: Array) -> float:
    """The full width at half maximum of a single peak."""
    above = np.flatnonzero(values >= values.max() / 2)
    return float(places[above[-1]] - places[above[0]])


def _covariances() -> Iterator[Check]:
    """Classes with one mean: half is decided near where the second moments say, to leading order in high noise (3 % allowed for it)."""
    world = anisotropic(1024, 2, separation=0.0, variances=(0.5, 2.0))
    apart = float((world.variances[0] - world.variances[1]).square().sum())
    place = speciation_time(0.0, float(world.variances.mean()), covariance2=apart, clock="ve", gamma=HALF_GAMMA)
    found = mixture_entropy(world, VarianceExploding(), [place], partition(world), range(_SEEDS))
    yield _sampled("covariances alone, d = 1024: entropy at the half level", found.entropy, LN2 / 2, allowed=0.03)


def _production() -> Iterator[Check]:
    for name, (world, asked) in _worlds().items():
        for kind, make in PATHS.items():
            path = make()
            time = float(path.time(2.5))
            found = mixture_entropy(world, path, [time], asked, range(_SEEDS), role=f"validate.{name}.{kind}")
            what = f"{name} on {kind}: "
            if name == "isotropic":
                exact = two_gaussians(world, path, [time], asked)
                yield _sampled(what + "entropy against quadrature", found.entropy, float(exact.entropy[0]))
                yield _sampled(what + "production against quadrature", found.production, float(exact.production[0]))
            yield _paired(what + "production, g²/2 form against g²/4", found.production, found.pairwise)
            yield _paired(what + "production against dH/d ln sigma", found.production, found.derivative)
            yield _paired(what + "entropy by labels against posteriors", found.label, found.entropy)


def _proxy() -> Iterator[Check]:
    """A class against the whole mixture in place of its complement: what is left without noise."""
    for count in (10, 100, 200):
        world = isotropic(16, count, separation=60.0, variance=0.01)
        asked = partition(world, [[0], list(range(count))])
        found = mixture_entropy(world, VarianceExploding(), [0.05], asked, range(1000))
        truth = 0.5 * math.log1p(1 / count) + math.log(count + 1) / (2 * count)
        yield _sampled(f"proxy for the complement of 1 in {count}: entropy left", found.entropy, truth)


def _estimator() -> Iterator[Check]:
    """Paths from every side, log odds from consecutive states, against the exact posterior of the same states."""
    linear = VariancePreserving.from_betas(np.linspace(1e-4, 0.02, 1000).tolist(), end=-1.0)
    worlds = _worlds()
    runs = [("four classes", name, path) for name, path in (("vp", linear), ("ve", VarianceExploding()), ("flow", RectifiedFlow()))]
    for name, kind, path in [*runs, ("anisotropic", "ve", VarianceExploding()), ("hierarchical", "flow", RectifiedFlow())]:
        yield from _walked(f"{name} on {kind}, {_STEPS} steps: ", *worlds[name], path)


def _walked(what: str, world: GaussianMixture, asked: Partition, path: NoisePath) -> Iterator[Check]:
    each = partition(world)
    own = [index % world.classes for index in range(_PATHS)]
    labels = np.array([next(s for s, side in enumerate(asked.sides) if k in side) for k in own])
    stage, online, exact = min(_stages(world, asked, each, path, own), key=lambda found: abs(float(found[2].mean()) - asked.entropy / 2))
    yield _paired(what + "entropy near half", online, exact, allowed=0.005)
    drawn = mixture_entropy(world, path, [stage.t], asked, range(_SEEDS)).entropy
    mean, error = float(drawn.mean()), math.hypot(float(mean_se(drawn)[1][0]), float(mean_se(online)[1]))
    yield Check(what + "the same against samples of the world", float(online.mean()), mean, (ERRORS * error + 0.005) / mean)
    online_classes = class_entropy(log_side_posterior(stage.log_likelihoods, each.sides, each.priors))
    yield _paired(what + "that of all classes", online_classes, class_entropy(stage.log_posterior), allowed=0.005)
    posterior = log_side_posterior(stage.log_likelihoods, asked.sides, asked.priors)
    yield _paired(what + "by labels against posteriors", class_entropy(posterior, labels), online)


def _stages(
    world: GaussianMixture, asked: Partition, each: Partition, path: NoisePath, own: Sequence[int]
) -> Iterator[tuple[Stage, Array, Array]]:
    """Each level with the entropy [B] of what is asked, from the paths and exactly."""
    for stage in walk(world, path, path.levels(_STEPS), each, own, range(len(own))):
        exact = log_side_posterior(stage.log_posterior - np.log(each.totals), asked.sides, asked.priors)
        online = log_side_posterior(stage.log_likelihoods, asked.sides, asked.priors)
        yield stage, class_entropy(online), class_entropy(exact)


def _steps() -> Iterator[Check]:
    """Too few steps and a noisy start, foretold by a run about itself (10 % allowed), and how many steps would do."""
    world, path = isotropic(16, 2, separation=4.0, variance=1.0), PATHS["vp"]()
    asked, times = partition(world), path.levels(16)
    stages = list(walk(world, path, times, asked, [index % 2 for index in range(_PATHS)], range(_PATHS)))
    sigma, gaps = np.array([stage.sigma for stage in stages]), np.array([stage.gaps.mean() for stage in stages])
    entropy = np.array([class_entropy(log_side_posterior(part.log_likelihoods, asked.sides, asked.priors)).mean() for part in stages])
    foretold = discretisation_bias(sigma, gaps, entropy)
    truth = gaussian_entropy(_left(sigma)) - gaussian_entropy(control_parameter(sigma, 16.0, 1.0))
    yield Check("Stable Diffusion's path, 16 steps: error by too few steps", float(foretold.min()), float(truth.min()), 0.1)
    yield Check("Stable Diffusion's path, 16 steps: error by a noisy start", float(foretold.max()), float(truth.max()), 0.1)
    sigma = np.array([float(RectifiedFlow().ratio(t)) for t in RectifiedFlow().levels(16)])
    needed = steps_needed(sigma, _gap(sigma), gaussian_entropy(_left(sigma)), tolerance=0.02)
    yield Check("flow: steps that keep errors below 0.02 nats, from a run of 16", needed, _enough(0.02), 0.05)


def _gap(sigma: Array) -> Array:
    """The squared gap of the predictions of two classes at distance 4 and of variance 1."""
    return np.asarray(16.0 / (1 + sigma**-2.0) ** 2)


def _left(sigma: Array) -> Array:
    """What the sampler makes of their control parameter: exact for any steps."""
    return np.concatenate([[0.0], np.cumsum(_gap(sigma)[:-1] * np.diff(sigma**-2.0))])


def _enough(tolerance: float) -> int:
    """The first number of steps of a rectified flow that keeps the error at its own levels below the tolerance."""
    for count in range(8, 257):
        sigma = np.array([float(RectifiedFlow().ratio(t)) for t in RectifiedFlow().levels(count)])
        error = gaussian_entropy(_left(sigma)) - gaussian_entropy(control_parameter(sigma, 16.0, 1.0))
        if np.abs(error).max() <= tolerance:
            return count
    raise AssertionError("256 steps are plenty")


def _worlds() -> dict[str, tuple[GaussianMixture, Partition]]:
    def asked(name: str, sides: Sequence[Sequence[int]]) -> tuple[GaussianMixture, Partition]:
        world = exact_world(name).mixture
        return world, partition(world, sides)

    two = isotropic(16, 2, separation=6.0, variance=0.5)
    return {
        "isotropic": (two, partition(two)),
        "four classes": asked("gmm", [(0, 1), (2, 3)]),
        "anisotropic": asked("anisotropic", [(0, 1), (2, 3)]),
        "hierarchical": asked("hierarchical", [(0, 1, 2), (3, 4, 5), (6, 7, 8)]),
    }


def _sampled(what: str, values: Array, truth: float, allowed: float = 0.0) -> Check:
    """A mean over seeds [M, 1] against a known number, which may be off by a share of its own."""
    mean, error = mean_se(values)
    return Check(what, float(mean[0]), truth, allowed + ERRORS * float(error[0]) / abs(truth))


def _paired(what: str, values: Array, others: Array, allowed: float = 0.0) -> Check:
    """Two means over the same seeds; `allowed` is a bias that is expected, in nats."""
    difference, truth = (values - others).ravel(), float(others.mean())
    error = float(mean_se(difference)[1])
    return Check(what, float(values.mean()), truth, (ERRORS * error + allowed) / abs(truth))
