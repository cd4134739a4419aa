"""Exact entropies against quadrature, closed forms, the mixture's own scores and denoiser; sampled paths against the theory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diffprobe.adapters.exact import exact_world, three_groups
from diffprobe.adapters.mixture_entropy import (
    Partition,
    control_parameters,
    mean_se,
    mixture_entropy,
    partition,
    posterior_entropy,
    sides_at,
    two_gaussians,
)
from diffprobe.adapters.mixture_paths import Stage, walk
from diffprobe.adapters.mixtures import GaussianMixture, anisotropic, isotropic
from diffprobe.measures.speciation.entropy import class_entropy, log_side_posterior
from diffprobe.measures.speciation.gaussian import LN2, control_parameter
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving

Array = NDArray[np.float64]
VP = VariancePreserving.scaled_linear()
PATHS: dict[str, NoisePath] = {"vp": VP, "ve": VarianceExploding(), "flow": RectifiedFlow()}
GMM, SHAPES, GROUPS = exact_world("gmm").mixture, exact_world("anisotropic").mixture, three_groups()
#: Standard errors that a sampled mean may be off by.
Z = 4.0


def times(path: NoisePath, *sigma: float) -> list[float]:
    return [float(path.time(level)) for level in sigma]


def near(values: Array, truth: Array | float) -> bool:
    mean, error = mean_se(values)
    return bool((np.abs(mean - truth) <= Z * error + 1e-12).all())


def test_a_partition_shares_priors_as_asked() -> None:
    world = GaussianMixture(torch.eye(3), torch.ones(3), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64))
    even, true = partition(world, [[0], [1, 2]]), partition(world, [[0], [1, 2]], balanced=False)
    assert even.sides == ((0,), (1, 2))
    np.testing.assert_allclose([*even.priors[0], *even.priors[1]], [0.5, 0.2, 0.3])
    np.testing.assert_allclose(partition(world, [[1], [2, 0]], balanced=False).totals, [0.2, 0.8])
    np.testing.assert_allclose(true.totals, [0.5, 0.5])
    assert even.entropy == pytest.approx(LN2)
    np.testing.assert_allclose(partition(world, balanced=False).totals, world.weights)
    np.testing.assert_allclose(partition(world).totals, 1 / 3)


def test_bad_partitions_are_refused() -> None:
    with pytest.raises(ValueError, match="a class is one of 0"):
        partition(GMM, [[0], [4]])
    with pytest.raises(ValueError, match="two sides or more"):
        partition(GMM, [[0, 1]])
    with pytest.raises(ValueError, match="sum to 1"):
        Partition(((0,), (1,)), ((0.5,), (0.6,)))
    with pytest.raises(ValueError, match="one prior a class"):
        Partition(((0,), (1, 2)), ((0.5,), (0.5,)))


@pytest.mark.parametrize("prior", [0.5, 0.1])
@pytest.mark.parametrize("kind", PATHS)
def test_two_isotropic_classes_have_what_quadrature_says(kind: str, prior: float) -> None:
    world, asked = isotropic(12, 2, separation=4.0, variance=0.5), Partition(((0,), (1,)), ((prior,), (1 - prior,)))
    levels = times(PATHS[kind], 0.7, 1.5, 3.0)
    found, exact = (
        mixture_entropy(world, PATHS[kind], levels, asked, range(2000), role=kind),
        two_gaussians(world, PATHS[kind], levels, asked),
    )
    np.testing.assert_allclose(exact.gamma, control_parameter(found.sigma, 16.0, 0.5))
    for values in (found.entropy, found.label):
        assert near(values, exact.entropy)
    for values in (found.production, found.pairwise, found.derivative):
        assert near(values, exact.production)


def test_quadrature_production_is_the_derivative_and_only_for_such_classes() -> None:
    world, path = isotropic(12, 2, separation=4.0, variance=0.5), PATHS["ve"]
    around = two_gaussians(world, path, [1.5 * np.exp(-1e-5), 1.5, 1.5 * np.exp(1e-5)], partition(world))
    assert around.production[1] == pytest.approx((around.entropy[2] - around.entropy[0]) / 2e-5, rel=1e-7)
    start = two_gaussians(world, PATHS["flow"], [1.0], partition(world))
    assert (start.entropy[0], start.production[0]) == (pytest.approx(LN2), 0.0)
    for other, sides in ((GMM, [[0, 1], [2, 3]]), (SHAPES, [[0], [1]])):
        with pytest.raises(ValueError, match="two single isotropic classes"):
            two_gaussians(other, path, [1.0], partition(other, sides))


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize(
    ("world", "sides"),
    [
        (GMM, [[0, 1], [2, 3]]),
        (SHAPES, [[0], [1, 2, 3]]),
        (GROUPS, [[0, 1, 2], [3, 4, 5], [6, 7, 8]]),
        (SHAPES, None),
        (GMM, [[0], [0, 1, 2, 3]]),
    ],
)
def test_the_forms_of_production_agree(world: GaussianMixture, sides: list[list[int]] | None, kind: str) -> None:
    found = mixture_entropy(world, PATHS[kind], times(PATHS[kind], 1.5, 3.0), partition(world, sides), range(1500), role=kind)
    assert float(found.production.mean()) > 0.05
    assert near(found.production - found.pairwise, 0)
    assert near(found.production - found.derivative, 0)
    assert near(found.label - found.entropy, 0)


def test_every_path_tells_the_same_story() -> None:
    """The entropy depends on sigma alone: with the same draws the numbers are the same."""
    asked = partition(SHAPES, [[0, 1], [2, 3]])
    first, *others = (mixture_entropy(SHAPES, path, times(path, 0.8, 2.0), asked, range(50)) for path in PATHS.values())
    for other in others:
        for one, two in zip(first[1:5], other[1:5], strict=True):
            np.testing.assert_allclose(one, two, atol=1e-9)
        np.testing.assert_allclose(first.derivative, other.derivative, atol=1e-6)


def g2(kind: str, t: float) -> float:
    """The diffusion coefficients of the module's docstring, in each path's own time."""
    if kind == "vp":  # -d ln(abar)/dt, between two entries of the table
        return float(VP.alpha(t - 1e-4).log() - VP.alpha(t + 1e-4).log()) / 1e-4
    return 2 * t if kind == "ve" else 2 * t / (1 - t)


@pytest.mark.parametrize("kind", PATHS)
def test_production_in_forward_time_is_half_g_squared_times_the_score_gaps(kind: str) -> None:
    """Scores come from the mixture, not from this module; g^2/2 dt/d ln sigma must be sigma_t^2."""
    path, asked = PATHS[kind], partition(GROUPS, [[0, 1, 2], [3, 4, 5, 6, 7, 8]])
    t = float(path.time(2.0)) if kind != "vp" else float(path.time(2.0).round()) + 0.5
    pace = float((path.ratio(t + 1e-4).log() - path.ratio(t - 1e-4).log()) / 2e-4)  # d ln sigma/dt
    assert g2(kind, t) / 2 / pace == pytest.approx(float(path.sigma(t)) ** 2, rel=1e-6)
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(40, 16))) * (path.alpha(t) + path.sigma(t))
    masks = [torch.isin(torch.arange(9), torch.tensor(side)) for side in asked.sides]
    p = torch.stack([GROUPS.log_posterior(x, t, path)[:, mask].logsumexp(-1) for mask in masks], -1)
    p = (
        p - GROUPS.weights[masks[0]].sum().log() * torch.tensor([1.0, 0]) - GROUPS.weights[masks[1]].sum().log() * torch.tensor([0, 1.0])
    ).softmax(-1)
    scores = torch.stack([GROUPS.score(x, t, path, mask) for mask in masks])
    middle = torch.einsum("bs,sbd->bd", p, scores)
    by_scores = g2(kind, t) / 2 * torch.einsum("bs,sbd->b", p, (scores - middle).square())
    found = sides_at(GROUPS, path, x.numpy(), t, asked)
    apart = found.x0 - np.einsum("bs,sbd->bd", np.exp(found.log_posterior), found.x0)
    by_predictions = np.einsum("bs,sbd->b", np.exp(found.log_posterior), apart**2) / float(path.ratio(t)) ** 2 * pace
    np.testing.assert_allclose(by_scores.numpy(), by_predictions, rtol=1e-6)


@pytest.mark.parametrize("kind", PATHS)
def test_sides_are_what_the_mixture_says(kind: str) -> None:
    path, t = PATHS[kind], float(PATHS[kind].time(1.3))
    x = 2 * torch.from_numpy(np.random.default_rng(1).normal(size=(20, 16)))
    asked = partition(SHAPES, [[1], [0, 2, 3]], balanced=False)
    found = sides_at(SHAPES, path, x.numpy(), t, asked)
    posterior = SHAPES.log_posterior(x, t, path)
    np.testing.assert_allclose(found.log_posterior[:, 0], posterior[:, 1], atol=1e-9)
    np.testing.assert_allclose(found.log_posterior[:, 1], posterior[:, [0, 2, 3]].logsumexp(-1), atol=1e-9)
    denoise = SHAPES.denoiser(path)
    for s, cond in enumerate((torch.tensor([False, True, False, False]), torch.tensor([True, False, True, True]))):
        np.testing.assert_allclose(found.x0[s], denoise(x, t, cond), atol=1e-9)


def test_a_seed_is_the_same_in_any_company() -> None:
    asked = partition(GMM, [[0], [1, 2, 3]])
    whole = mixture_entropy(GMM, VP, [300.0, 700.0], asked, range(10))
    part = mixture_entropy(GMM, VP, [700.0], asked, [7, 2, 4])
    np.testing.assert_allclose(part.production[:, 0], whole.production[[7, 2, 4], 1], rtol=1e-9)
    np.testing.assert_allclose(part.entropy[:, 0], whole.entropy[[7, 2, 4], 1], rtol=1e-9)


def test_a_rare_side_does_not_make_the_mean_noisy() -> None:
    """One in 200 against the rest: the same answer from as many samples as an even partition needs."""
    world = isotropic(12, 2, separation=4.0, variance=0.5)
    asked, path = Partition(((0,), (1,)), ((0.005,), (0.995,))), PATHS["ve"]
    found = posterior_entropy(world, path, [0.7, 1.5], asked, range(1000))
    mean, error = mean_se(found)
    assert (error < 0.02 * asked.entropy).all()
    assert near(found, two_gaussians(world, path, [0.7, 1.5], asked).entropy)
    assert (found == mixture_entropy(world, path, [0.7, 1.5], asked, range(1000)).entropy).all()
    assert (mean < asked.entropy).all()


def test_the_ends_of_the_curve() -> None:
    """Noise leaves the prior; data leaves nothing, and of a class against the mixture that holds it a known rest."""
    path = PATHS["ve"]
    for sides, balanced in (([[0, 1], [2, 3]], True), ([[0], [1, 2, 3]], False), (None, True)):
        asked = partition(GMM, sides, balanced=balanced)
        found = mixture_entropy(GMM, path, [5000.0, 0.01], asked, range(200))
        np.testing.assert_allclose(found.entropy.mean(0), [asked.entropy, 0], atol=1e-5)
    for count in (10, 200):
        world = isotropic(8, count, separation=100.0, variance=0.01)
        proxy = mixture_entropy(world, path, [0.02], partition(world, [[0], list(range(count))]), range(600))
        assert near(proxy.entropy, 0.5 * np.log1p(1 / count) + np.log(count + 1) / (2 * count))


def test_entropies_obey_the_chain_rule() -> None:
    """H(class) = H(group) + H(class | group), the last from each group alone."""
    path, level = PATHS["flow"], times(PATHS["flow"], 2.5)
    groups = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    classes = mixture_entropy(GROUPS, path, level, partition(GROUPS), range(1500)).entropy
    between = mixture_entropy(GROUPS, path, level, partition(GROUPS, groups), range(4000)).entropy
    parts = [mixture_entropy(GROUPS, path, level, partition(GROUPS, [[k] for k in group]), range(1500)).entropy for group in groups]
    total, within = mean_se(between), [mean_se(part) for part in parts]
    error = np.sqrt(mean_se(classes)[1] ** 2 + total[1] ** 2 + sum(part[1] ** 2 for part in within) / 9)
    assert abs(float(classes.mean() - total[0][0] - np.mean([part[0] for part in within]))) < Z * float(error[0])


def test_control_parameters_are_twice_the_divergence() -> None:
    sigma = np.array([0.3, 2.0])
    found = control_parameters(SHAPES, sigma)
    for i, level in enumerate(sigma):
        spread = (SHAPES.variances + level**2).sqrt()
        laws = [torch.distributions.Normal(mean, scale) for mean, scale in zip(SHAPES.means, spread, strict=True)]
        for k, one in enumerate(laws):
            for m, other in enumerate(laws):
                assert found[i, k, m] == pytest.approx(2 * float(torch.distributions.kl_divergence(one, other).sum()), abs=1e-9)
    world = isotropic(12, 3, separation=4.0, variance=0.5)
    distance2 = torch.cdist(world.means, world.means).square().numpy()
    np.testing.assert_allclose(control_parameters(world, sigma), control_parameter(sigma[:, None, None], distance2, 0.5), atol=1e-9)


def test_far_from_data_second_moments_give_half_the_squared_distance() -> None:
    world = anisotropic(64, 2, separation=0.0, variances=(0.5, 2.0))
    apart = float((world.variances[0] - world.variances[1]).square().sum())
    assert float(control_parameters(world, 30.0)[0, 1]) == pytest.approx(apart / 2 / 900**2, rel=0.01)


@pytest.mark.parametrize("level", [1.0, np.inf, -1.0])
def test_levels_without_a_sigma_are_refused(level: float) -> None:
    path = PATHS["flow"] if level == 1.0 else PATHS["ve"]
    with pytest.raises(ValueError, match="finite sigma above 0"):
        mixture_entropy(GMM, path, [level], partition(GMM), range(4))


def stages(
    world: GaussianMixture, path: NoisePath, steps: int, own: list[int], seeds: range, sides: Partition | None = None
) -> list[Stage]:
    return list(walk(world, path, path.levels(steps), sides or partition(world), own, seeds))


@pytest.mark.parametrize("kind", ["ve", "flow"])
def test_log_odds_of_gaussian_classes_have_the_known_law(kind: str) -> None:
    """N(+-G/2, G) with G the left sum of the gap, which the control parameter is with many steps."""
    world, seeds = isotropic(8, 2, separation=4.0, variance=0.5), range(600)
    own = [seed % 2 for seed in seeds]
    found = stages(world, PATHS[kind], 48, own, seeds)
    sign = 1 - 2 * np.array(own)
    left = 0.0
    for now, after in pairwise(found):
        left += float(now.gaps.mean()) * (after.sigma**-2 - now.sigma**-2)
        odds = -sign * after.log_likelihoods[:, 1]
        if 0.1 < left < 40:
            assert abs(odds.mean() - left / 2) < Z * (left / len(odds)) ** 0.5
            assert abs(odds.var() / left - 1) < Z * (2 / len(odds)) ** 0.5
        if 0.1 < left < 8:
            assert left == pytest.approx(float(control_parameter(after.sigma, 16.0, 0.5)), rel=0.15)
    assert left > 20


def test_equal_sides_are_never_told_apart() -> None:
    same = Partition(((0,), (0,)), ((0.5,), (0.5,)))
    for stage in stages(GMM, VP, 10, [0, 1] * 4, range(8), same):
        assert not stage.log_likelihoods.any()
        assert not stage.gaps.any()


def test_paths_meet_the_exact_posterior_of_their_own_states() -> None:
    asked, own = partition(GMM, [[0, 1], [2, 3]]), [seed % 4 for seed in range(400)]
    for stage in stages(GMM, PATHS["flow"], 64, own, range(400))[1:]:
        online = log_side_posterior(stage.log_likelihoods, asked.sides, asked.priors)
        exact = log_side_posterior(stage.log_posterior, asked.sides, asked.priors)
        assert abs(float((class_entropy(online) - class_entropy(exact)).mean())) < 0.004


def test_a_path_is_the_same_in_any_company() -> None:
    whole, part = stages(SHAPES, VP, 6, [0, 1, 2, 3], range(4)), stages(SHAPES, VP, 6, [2], range(2, 3))
    for one, two in zip(whole, part, strict=True):
        np.testing.assert_allclose(one.log_likelihoods[2:3], two.log_likelihoods, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(one.gaps[2:3], two.gaps, rtol=1e-9)
