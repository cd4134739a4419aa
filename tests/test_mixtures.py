"""Gaussian mixtures: densities against scipy, scores against autograd, posteriors against Monte Carlo, the sampler."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.mixtures import GaussianMixture, anisotropic, hierarchical, isotropic
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving
from diffprobe.sampling import final, trajectory

SD = VariancePreserving.scaled_linear()
PATHS: list[tuple[NoisePath, float]] = [(SD, 400.0), (VarianceExploding(), 1.5), (RectifiedFlow(), 0.6)]
MIXTURE = GaussianMixture(
    torch.tensor([[1.0, -1.0, 0.5], [-0.5, 2.0, 0.0], [0.2, 0.1, -1.0]]),
    torch.tensor([[0.3, 0.1, 0.5], [0.2, 0.4, 0.6], [0.2, 0.2, 0.1]]),
    torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64),
    parents=(0, 1, 0),
)
X = rng.normal((3,), "test", range(6)).double() * 1.3
SETS = torch.tensor([[True, False, True], [True, True, True], [False, True, False]] * 2)
CONDITIONS: list[tuple[object, Tensor]] = [
    (None, torch.ones(6, 3, dtype=torch.bool)),
    (1, torch.tensor([[False, True, False]]).expand(6, 3)),
    (torch.tensor([0, 1, -1, 2, 0, -1]), torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0], [1, 1, 1]]) > 0),
    (SETS, SETS),
    (MIXTURE.members(0), torch.tensor([[True, False, True]]).expand(6, 3)),
]
"""Conditions, and the classes [B, K] that each means."""


def joint(path: NoisePath, t: float) -> Tensor:
    """log weights_k + log p_t(x | k) of X by scipy, [B, K]."""
    a, s = float(path.alpha(t)), float(path.sigma(t))
    columns = [
        torch.from_numpy(multivariate_normal((a * mean).numpy(), (a**2 * variance + s**2).diag().numpy()).logpdf(X.numpy())) + weight.log()
        for mean, variance, weight in zip(MIXTURE.means, MIXTURE.variances, MIXTURE.weights, strict=True)
    ]
    return torch.stack(columns, 1)


@pytest.mark.parametrize(("path", "t"), PATHS)
@pytest.mark.parametrize(("cond", "classes"), CONDITIONS)
def test_density_and_posterior_are_those_of_the_noised_mixture(path: NoisePath, t: float, cond: object, classes: Tensor) -> None:
    truth = joint(path, t).where(classes, -torch.inf)
    prior = (MIXTURE.weights * classes).sum(1).log()
    assert torch.allclose(MIXTURE.log_density(X, t, path, cond), truth.logsumexp(1) - prior, atol=1e-10)
    assert torch.allclose(MIXTURE.log_posterior(X, t, path, cond).exp(), truth.softmax(1), atol=1e-12)


@pytest.mark.parametrize(("path", "t"), PATHS)
@pytest.mark.parametrize(("cond", "classes"), CONDITIONS)
def test_score_is_the_gradient_and_agrees_with_the_denoiser(path: NoisePath, t: float, cond: object, classes: Tensor) -> None:
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(MIXTURE.log_density(x, t, path, cond).sum(), x)
    score = MIXTURE.score(X, t, path, cond)
    assert torch.allclose(score, gradient, atol=1e-10)
    a, s = path.alpha(t), path.sigma(t)
    assert torch.allclose((a * MIXTURE.denoiser(path)(X, t, cond) - X) / s**2, score, atol=1e-10)  # Tweedie
    (slope,) = torch.autograd.grad(MIXTURE.denoiser(path)(x, t, cond).sum(), x)
    assert bool(slope.isfinite().all()), "classes that a condition leaves out spoil the derivative"


@pytest.mark.parametrize(("path", "t"), PATHS)
@pytest.mark.parametrize("dimension", [1, 2, 37])
def test_every_kind_of_mixture_in_any_dimension(path: NoisePath, t: float, dimension: int) -> None:
    kinds = (
        isotropic(dimension, 4, separation=3.0, variance=0.2),
        anisotropic(dimension, 3, separation=2.0, variances=(0.05, 0.8)),
        hierarchical(dimension, (2, 3), separations=(4.0, 1.0), variance=0.1),
    )
    for mixture in kinds:
        assert mixture.means.shape == mixture.variances.shape == (mixture.classes, dimension)
        x0, _ = mixture.sample(range(5))
        x = (path.alpha(t) * x0 + path.sigma(t) * rng.normal((dimension,), "test", range(5))).requires_grad_()
        (gradient,) = torch.autograd.grad(mixture.log_density(x, t, path).sum(), x)
        score = (path.alpha(t) * mixture.denoiser(path)(x, t) - x) / path.sigma(t) ** 2
        assert torch.allclose(gradient, score, atol=1e-9)


@pytest.mark.parametrize(("path", "t"), PATHS)
def test_posteriors_sum_to_one_and_groups_gather_their_classes(path: NoisePath, t: float) -> None:
    world = hierarchical(5, (3, 2), separations=(3.0, 1.5), variance=0.3)
    x = world.sample(range(20))[0]
    classes, groups = world.log_posterior(x, t, path).exp(), world.log_group_posterior(x, t, path).exp()
    assert groups.shape == (20, 3)
    assert torch.allclose(classes.sum(1), torch.ones(20).double(), atol=1e-12)
    assert torch.allclose(groups, classes.reshape(20, 3, 2).sum(2), atol=1e-12)
    assert torch.allclose(
        MIXTURE.log_group_posterior(X, t, path).exp()[:, 0], MIXTURE.log_posterior(X, t, path).exp()[:, [0, 2]].sum(1), atol=1e-12
    )


def test_denoiser_of_a_group_weighs_those_of_its_classes() -> None:
    path, t = SD, 300.0
    denoiser, inside = MIXTURE.denoiser(path), MIXTURE.members(0)
    shares = MIXTURE.log_posterior(X, t, path).exp() * inside
    each = torch.stack([denoiser(X, t, k) for k in range(3)], 1)
    assert torch.allclose(denoiser(X, t, inside), ((shares / shares.sum(1, keepdim=True))[..., None] * each).sum(1), atol=1e-12)


def test_denoiser_is_the_mean_of_what_could_have_been() -> None:
    """E[x_0 | x_t] by weighing samples of x_0 with their likelihood."""
    x0, _ = MIXTURE.sample(range(20_000))
    path, t, x = RectifiedFlow(), 0.5, torch.tensor([[0.4, 0.3, -0.2]], dtype=torch.float64)
    weights = (-(x - 0.5 * x0).square().sum(1) / (2 * 0.25)).softmax(0)
    assert torch.allclose(MIXTURE.denoiser(path)(x, t)[0], weights @ x0, atol=0.03)


def test_denoiser_at_the_ends_of_the_path() -> None:
    path = RectifiedFlow()
    assert torch.allclose(MIXTURE.denoiser(path)(X, 0.0), X)
    assert torch.allclose(MIXTURE.denoiser(path)(X, 1.0), (MIXTURE.weights @ MIXTURE.means).expand_as(X))
    assert torch.allclose(MIXTURE.denoiser(path)(X, 1.0, 1), MIXTURE.means[1].expand_as(X))


def test_denoiser_keeps_shape_and_dtype_and_takes_a_time_a_sample() -> None:
    denoiser = MIXTURE.denoiser(SD)
    image = X.float().reshape(6, 1, 3, 1)
    assert denoiser(image, 400).shape == image.shape
    assert denoiser(image, 400).dtype == torch.float32
    times = torch.tensor([1.0, 100.0, 200.0, 400.0, 700.0, 999.0])
    one_by_one = torch.cat([denoiser(X[i : i + 1], float(t)) for i, t in enumerate(times)])
    assert torch.equal(denoiser(X, times), one_by_one)


def test_sample_has_the_mixtures_moments_and_depends_on_the_seed_alone() -> None:
    x0, classes = MIXTURE.sample(range(8000))
    for k, share in enumerate(MIXTURE.weights.tolist()):
        assert float((classes == k).double().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / 8000) ** 0.5)
        members = x0[classes == k]
        se = (MIXTURE.variances[k] / len(members)).sqrt()
        assert bool(((members.mean(0) - MIXTURE.means[k]).abs() < 4 * se).all())
        assert torch.allclose(members.var(0), MIXTURE.variances[k], rtol=0.15)
    assert torch.equal(MIXTURE.sample([5, 3])[0], torch.stack([x0[5], x0[3]]))


def miscalibration(path: NoisePath, t: float, seen_at: float) -> float:
    """The largest z score, over classes and fifths of probability, of how often a class is right against what its posterior says."""
    n = 5000
    x0, classes = MIXTURE.sample(range(n))
    x = path.alpha(t) * x0 + path.sigma(t) * rng.normal((3,), "test.noise", range(n))
    posterior = MIXTURE.log_posterior(x, seen_at, path).exp()
    right = torch.nn.functional.one_hot(classes, 3).double()
    fifths = (posterior * 5).long().clamp(max=4)
    scores = []
    for k in range(3):
        for fifth in range(5):
            p = posterior[fifths[:, k] == fifth, k]
            if float((p * (1 - p)).sum()) > 10:
                scores.append(float((right[fifths[:, k] == fifth, k] - p).sum() / (p * (1 - p)).sum().sqrt()))
    assert len(scores) >= 9
    return max(abs(score) for score in scores)


@pytest.mark.parametrize(("path", "t"), PATHS)
def test_posteriors_are_calibrated(path: NoisePath, t: float) -> None:
    """Of the samples of which a class is said to have probability p, a share p belong to it; not so for another noise level's posterior."""
    assert miscalibration(path, t, t) < 4
    assert miscalibration(path, t, 0.6 * t) > 6


@pytest.mark.parametrize("path", [path for path, _ in PATHS])
def test_the_deterministic_sampler_carries_a_gaussian_to_its_variance(path: NoisePath) -> None:
    """The probability flow of N(m, v) keeps each standardised coordinate: x_t = alpha m + sqrt(alpha^2 v + sigma^2) u for all t."""
    world = GaussianMixture(torch.tensor([[0.7, -1.0, 0.0, 2.0]]), torch.tensor([[1.0, 0.3, 0.05, 2.0]]), torch.ones(1))
    u = rng.normal((4,), "test.u", range(3)).double()

    def at(t: float) -> Tensor:
        return path.alpha(t) * world.means[0] + (path.alpha(t) ** 2 * world.variances[0] + path.sigma(t) ** 2).sqrt() * u

    errors = []
    for n in (60, 240, 960):
        times = path.levels(n)
        errors.append(float((final(trajectory(world.denoiser(path), path, at(times[0]), times)) - at(path.end)).abs().max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 0.01


def distance(points: Tensor) -> float:
    """The root mean square of the pairwise distances."""
    return float(torch.pdist(points).square().mean().sqrt())


def test_isotropic_classes_are_as_far_apart_and_as_wide_as_asked() -> None:
    world = isotropic(7, 5, separation=3.0, variance=0.4, seed=2)
    assert distance(world.means) == pytest.approx(3)
    assert torch.allclose(world.means.mean(0), torch.zeros(7).double(), atol=1e-12)
    assert world.variances.unique().tolist() == [0.4]
    total = float((world.variances + world.means.square()).mean())
    assert total == pytest.approx(0.4 + 9 * 4 / (2 * 5 * 7))
    two = isotropic(1, 2, separation=3.0, variance=0.4)
    assert float((two.means[0] - two.means[1]).abs()) == pytest.approx(3)
    assert isotropic(4, 1, separation=3.0, variance=1.0).means.tolist() == [[0.0] * 4]


def test_anisotropic_classes_have_variances_of_their_own() -> None:
    world = anisotropic(400, 3, separation=0.0, variances=(0.01, 1.0))
    assert float(world.means.abs().max()) == 0
    assert 0.01 <= float(world.variances.min()) < 0.012
    assert 0.9 < float(world.variances.max()) <= 1
    assert float(world.variances.log10().mean()) == pytest.approx(-1, abs=4 * 2 / 1200**0.5 / 12**0.5)
    x0, classes = world.sample(range(30))
    assert world.log_posterior(x0, 0.1, RectifiedFlow()).argmax(1).tolist() == classes.tolist()


def test_hierarchical_classes_lie_around_the_centres_of_their_groups() -> None:
    world = hierarchical(9, (3, 4), separations=(5.0, 1.0), variance=0.1, seed=1)
    assert world.parents == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert (world.classes, world.groups) == (12, 3)
    families = world.means.reshape(3, 4, 9)
    assert distance(families.mean(1)) == pytest.approx(5)
    for group, family in enumerate(families):
        assert distance(family) == pytest.approx(1)
        assert torch.equal(world.means[world.members(group)], family)
    assert not torch.allclose(families[0] - families[0].mean(0), families[1] - families[1].mean(0)), "groups share their shape"


def test_groups_outlive_their_classes_on_the_way_to_noise() -> None:
    world = hierarchical(8, (2, 2), separations=(8.0, 2.0), variance=0.05)
    path, t = VarianceExploding(), 2.5
    x0, classes = world.sample(range(400))
    x = x0 + t * rng.normal((8,), "test.noise", range(400))
    group_right = world.log_group_posterior(x, t, path).argmax(1) == torch.tensor(world.parents)[classes]
    class_right = world.log_posterior(x, t, path).argmax(1) == classes
    assert float(group_right.double().mean()) > 0.9
    assert float(class_right.double().mean()) < 0.8


def test_mixtures_depend_on_their_seed_alone() -> None:
    def made(seed: int) -> list[Tensor]:
        worlds = (
            isotropic(3, 2, separation=1.0, variance=0.1, seed=seed),
            anisotropic(3, 2, separation=1.0, variances=(0.1, 1.0), seed=seed),
            hierarchical(3, (2, 2), separations=(2.0, 1.0), variance=0.1, seed=seed),
        )
        return [part for world in worlds for part in (world.means, world.variances)]

    assert all(torch.equal(one, other) for one, other in zip(made(0), made(0), strict=True))
    assert [torch.equal(one, other) for one, other in zip(made(0), made(1), strict=True)] == [False, True, False, False, False, True]


def test_bad_input() -> None:
    one, half = torch.ones(2), torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="above 0"):
        GaussianMixture(torch.zeros(2, 3), torch.zeros(2), half)
    with pytest.raises(ValueError, match="sum to 1"):
        GaussianMixture(torch.zeros(2, 3), one, torch.tensor([0.5, 0.6]))
    with pytest.raises(ValueError, match=r"means \[K, D\]"):
        GaussianMixture(torch.zeros(3), torch.ones(3), torch.ones(3))
    for parents in ((0,), (0, 2), (1, 1), (-1, 0)):
        with pytest.raises(ValueError, match="super-class of every class"):
            GaussianMixture(torch.zeros(2, 3), one, half, parents)
    with pytest.raises(ValueError, match=r"one of 0 \.\. 2"):
        MIXTURE.denoiser(SD)(X, 1, 3)
    for empty in (torch.zeros(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(ValueError, match="bool tensor of 3 entries"):
            MIXTURE.denoiser(SD)(X, 1, empty)
    with pytest.raises(ValueError, match=r"one of 0 \.\. 1"):
        MIXTURE.members(2)
    with pytest.raises(ValueError, match="no super-classes"):
        isotropic(3, 2, separation=1.0, variance=1.0).log_group_posterior(X, 1, SD)
    with pytest.raises(ValueError, match="the lower first"):
        anisotropic(3, 2, separation=1.0, variances=(1.0, 0.5))
    for dimension, classes, separation in ((0, 2, 1.0), (3, 0, 1.0), (3, 2, -1.0)):
        with pytest.raises(ValueError, match="one or more"):
            isotropic(dimension, classes, separation=separation, variance=1.0)
