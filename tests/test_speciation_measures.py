"""Path likelihoods and class entropies: closed forms, identities of the update, exact posteriors, invariances, bad input."""

from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats as ss
from scipy.special import expit
from torch import Tensor

from diffprobe import rng
from diffprobe.measures.speciation import (
    class_entropy,
    control_parameter,
    gaussian_entropy,
    gaussian_entropy_slope,
    immse_entropy,
    label_deviation,
    log_likelihood_ratio,
    log_likelihood_steps,
    log_side_posterior,
    mmse_rate,
    pairs,
    partitioned_entropy,
    squared_gaps,
)
from diffprobe.paths import NoisePath, RectifiedFlow, Transition, VarianceExploding, VariancePreserving, transition

Array = NDArray[np.float64]
LN2 = math.log(2)
#: H(Gamma) of two Gaussian classes in nats.
TABLE = {0.1: 0.68080, 0.5: 0.63427, 1: 0.58173, 2: 0.49180, 3: 0.41784, 4: 0.35632, 5: 0.30474, 8: 0.19308, 10: 0.14354, 20: 0.03441}
STEPS: dict[str, tuple[NoisePath, float, float]] = {
    "vp": (VariancePreserving.scaled_linear(), 400.0, 437.0),
    "ve": (VarianceExploding(), 1.7, 2.3),
    "flow": (RectifiedFlow(), 0.55, 0.6),
    "flow from pure noise": (RectifiedFlow(), 0.97, 1.0),
}


class Numbers(NamedTuple):
    """Coefficients as plain numbers."""

    carry: float
    pull: float
    variance: float


def normal(shape: tuple[int, ...], *seed: int) -> Tensor:
    return torch.from_numpy(rng.stream("test.speciation", *seed).standard_normal(shape))


def inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def a_step(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Transition]:
    """States [5, 3, 4] at s and t, two predictions, and the transition; x_s is a draw of it from the first."""
    path, s, t = STEPS[name]
    step = transition(path, s, t)
    x_t, x0_a, x0_b, noise = normal((4, 5, 3, 4), 1)
    return step.carry * x_t + step.pull * x0_a + step.variance.sqrt() * noise, x_t, x0_a, x0_b, step


@pytest.mark.parametrize("name", STEPS)
def test_all_forms_of_the_update_agree(name: str) -> None:
    """By squared distances, and by differences of x0, eps, v and u, each with its own factor."""
    x_s, x_t, x0_a, x0_b, step = a_step(name)
    path, s, t = STEPS[name]
    odds = log_likelihood_ratio(x_s, x_t, x0_a, x0_b, step)
    mean_a, mean_b = (step.carry * x_t + step.pull * x0 for x0 in (x0_a, x0_b))
    from_middle = x_s - (mean_a + mean_b) / 2
    alpha_s, sigma_s, alpha_t, sigma_t = path.alpha(s), path.sigma(s), path.alpha(t), path.sigma(t)
    forms = [
        ((x_s - mean_b).square().flatten(1).sum(1) - (x_s - mean_a).square().flatten(1).sum(1)) / (2 * step.variance),
        alpha_s / sigma_s**2 * inner(from_middle, x0_a - x0_b),
    ]
    if alpha_t > 0:
        eps = [(x_t - alpha_t * x0) / sigma_t for x0 in (x0_a, x0_b)]
        forms.append(-alpha_s * sigma_t / (alpha_t * sigma_s**2) * inner(from_middle, eps[0] - eps[1]))
    if name == "vp":
        v = [(alpha_t * x_t - x0) / sigma_t for x0 in (x0_a, x0_b)]
        forms.append(-alpha_s * sigma_t / sigma_s**2 * inner(from_middle, v[0] - v[1]))
    if name.startswith("flow"):
        u = [(x_t - x0) / t for x0 in (x0_a, x0_b)]
        forms.append(-(1 - s) * t / s**2 * inner(from_middle, u[0] - u[1]))
    for form in forms:
        torch.testing.assert_close(odds, form, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.5, 4.0])
def test_a_guided_step_moves_the_odds_by_its_side_of_the_middle(weight: float) -> None:
    """dL = (w - 1/2) dSNR |d|^2 + sqrt(dSNR) <n, d> with d the difference of predictions, for any guidance weight w."""
    path, s, t = STEPS["vp"]
    _, x_t, x0_a, x0_b, step = a_step("vp")
    noise, gap = normal((5, 3, 4), 2), x0_a - x0_b
    x_s = step.carry * x_t + step.pull * (x0_b + weight * gap) + step.variance.sqrt() * noise
    snr = path.ratio(s) ** -2 - path.ratio(t) ** -2
    expected = (weight - 0.5) * snr * inner(gap, gap) + snr.sqrt() * inner(noise, gap)
    torch.testing.assert_close(log_likelihood_ratio(x_s, x_t, x0_a, x0_b, step), expected, rtol=1e-10, atol=1e-10)


def test_equal_predictions_tell_nothing_and_sides_exchange_signs() -> None:
    *tensors, step = a_step("ve")
    x_s, x_t, x0_a, x0_b = (x.float() for x in tensors)
    assert torch.count_nonzero(log_likelihood_ratio(x_s, x_t, x0_a, x0_a, step)) == 0
    assert torch.equal(log_likelihood_ratio(x_s, x_t, x0_b, x0_a, step), -log_likelihood_ratio(x_s, x_t, x0_a, x0_b, step))
    found = log_likelihood_steps(x_s, x_t, torch.stack([x0_a, x0_a, x0_b, x0_a]), step)
    assert found.shape == (5, 4)
    assert torch.count_nonzero(found[:, [0, 1, 3]]) == 0
    assert torch.count_nonzero(found[:, 2]) == 5


def test_any_two_of_many_conditions_differ_by_their_ratio() -> None:
    x_s, x_t, _, _, step = a_step("flow")
    x0 = normal((5, 5, 3, 4), 3)
    found = log_likelihood_steps(x_s, x_t, x0, step)
    for k, other in pairs(5):
        torch.testing.assert_close(found[:, k] - found[:, other], log_likelihood_ratio(x_s, x_t, x0[k], x0[other], step))
    one = log_likelihood_steps(x_s[2:3], x_t[2:3], x0[:, 2:3], step)
    torch.testing.assert_close(one[0], found[2], rtol=1e-12, atol=1e-12)
    assert log_likelihood_steps(x_s, x_t, x0[:1], step).tolist() == [[0.0]] * 5
    x_s, x_t, *many = normal((5, 50, 4, 300), 15)  # taken in parts
    whole = log_likelihood_steps(x_s, x_t, torch.stack(many), step)
    rows = [log_likelihood_steps(x_s[i : i + 1], x_t[i : i + 1], torch.stack(many)[:, i : i + 1], step)[0] for i in range(50)]
    torch.testing.assert_close(whole, torch.stack(rows), rtol=1e-12, atol=1e-12)


def test_far_states_cost_no_digits() -> None:
    """Against exact fractions: near equal predictions about 1000, where the two squared distances share 15 digits."""
    step = Transition(torch.tensor(0.25), torch.tensor(0.75), torch.tensor(2.0**-20))
    x_t, x_s = (1000 + normal((1, 6), seed).float() for seed in (4, 5))
    x0_a = 1000 + normal((1, 6), 6).float()
    x0_b = x0_a + 2.0**-12 * normal((1, 6), 7).float()
    exact = Fraction(0)
    for s, t, a, b in zip(*(x[0].tolist() for x in (x_s, x_t, x0_a, x0_b)), strict=True):
        means = [Fraction(t) / 4 + Fraction(x0) * 3 / 4 for x0 in (a, b)]
        exact += ((Fraction(s) - means[1]) ** 2 - (Fraction(s) - means[0]) ** 2) * 2**19
    assert log_likelihood_ratio(x_s, x_t, x0_a, x0_b, step).item() == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_numbers_are_read_exactly(dtype: torch.dtype) -> None:
    x_s, x_t, x0_a, x0_b, step = a_step("vp")
    narrow = torch.stack([x_s, x_t, x0_a, x0_b]).to(dtype)
    (x_s, x_t, x0_a, x0_b), wide = narrow, narrow.double()
    found = log_likelihood_ratio(x_s, x_t, x0_a, x0_b, step)
    assert found.dtype == torch.float64
    assert torch.equal(found, log_likelihood_ratio(wide[0], wide[1], wide[2], wide[3], step))
    assert torch.equal(log_likelihood_steps(x_s, x_t, narrow[2:], step)[:, 1], -found)
    assert torch.equal(squared_gaps(narrow[2:]), squared_gaps(wide[2:]))
    numbers = Numbers(*(float(part) for part in step))
    assert torch.equal(log_likelihood_ratio(x_s, x_t, x0_a, x0_b, numbers), found)


def test_what_is_not_finite_is_nan_and_stays_in_its_place() -> None:
    x_s, x_t, x0_a, x0_b, step = a_step("ve")
    x0 = torch.stack([x0_a, x0_b, x0_a])
    for bad in (math.nan, math.inf, -math.inf):
        x0[1, 3, 0, 0] = bad
        found, gaps = log_likelihood_steps(x_s, x_t, x0, step), squared_gaps(x0)
        assert found.isnan().nonzero().tolist() == [[3, 1]]
        assert gaps.isnan().nonzero().tolist() == [[3, 0], [3, 2]]
        assert log_likelihood_ratio(x_s, x_t, x0[1], x0_b, step).isnan().tolist() == [False, False, False, True, False]


def test_a_deterministic_step_is_refused_with_the_remedy() -> None:
    x_s, x_t, x0_a, x0_b, _ = a_step("ve")
    last = transition(VarianceExploding(), 0.0, 0.1)
    with pytest.raises(ValueError, match="no density: sample with eta 1, and stop before sigma reaches 0"):
        log_likelihood_ratio(x_s, x_t, x0_a, x0_b, last)
    with pytest.raises(ValueError, match="a step of variance 0 is deterministic"):
        log_likelihood_steps(x_s, x_t, torch.stack([x0_a, x0_b]), last)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x_s, x_t, x0_a, x0_b, step = a_step("ve")
    with pytest.raises(ValueError, match=r"one shape \[B, ...\], not .*\[4, 3, 4\]"):
        log_likelihood_ratio(x_s, x_t, x0_a[:4], x0_b, step)
    for x0 in (x0_a, torch.stack([x0_a])[:0], torch.stack([x0_a[:4]])):
        with pytest.raises(ValueError, match=r"predictions \[K, B, ...\]"):
            log_likelihood_steps(x_s, x_t, x0, step)
    with pytest.raises(ValueError, match=r"predictions \[K, B, ...\], not \[3\]"):
        squared_gaps(torch.ones(3))


def test_gaps_are_those_of_all_pairs_in_order() -> None:
    x0 = normal((4, 5, 3, 2), 8)
    found = squared_gaps(x0)
    assert pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for column, (k, other) in enumerate(pairs(4)):
        torch.testing.assert_close(found[:, column], (x0[k] - x0[other]).square().flatten(1).sum(1))
    assert squared_gaps(x0[:1]).shape == (5, 0)
    many = normal((40, 3, 5000), 9)  # taken in parts
    assert torch.equal(squared_gaps(many)[2:], squared_gaps(many[:, 2:]))


def test_near_equal_predictions_keep_their_digits_and_equal_ones_are_at_0() -> None:
    """Also far from the first condition, where a Gram matrix would lose them."""
    first, other = 100 * normal((2, 5, 30), 10).float()
    near = other * (1 + 1e-6 * normal((5, 30), 11).float())
    found = squared_gaps(torch.stack([first, other, near, other]))
    exact = (other.double() - near.double()).square().sum(1)
    assert 0 < exact.max() < 1e-4
    torch.testing.assert_close(found[:, 3], exact, rtol=1e-6, atol=0)
    assert torch.equal(found[:, 3], found[:, 5])
    assert found[:, 4].tolist() == [0.0] * 5


def paths_of(means: Tensor, spread: Tensor, path: NoisePath, times: tuple[float, ...], samples: int) -> tuple[Tensor, Tensor]:
    """Classes N(means[k], spread[k]^2 I): stochastic trajectories from each, `samples` of every class, by its exact denoiser.

    Log likelihoods [levels, samples K, K] under each class, and the states [levels, samples K, D].
    """
    count, dims = means.shape
    label = torch.arange(count).repeat_interleave(samples)
    generator = rng.stream("test.speciation.paths", len(times))
    x = path.sigma(times[0]) * torch.from_numpy(generator.standard_normal((len(label), dims)))
    total = torch.zeros(len(label), count, dtype=torch.float64)
    odds, states = [total], [x]
    for t, s in pairwise(times):
        alpha, v = path.alpha(t), spread.square()
        gain = (alpha * v / (alpha**2 * v + path.sigma(t) ** 2))[:, None, None]
        x0 = means[:, None] + gain * (x - alpha * means[:, None])
        step = transition(path, s, t)
        noise = torch.from_numpy(generator.standard_normal(x.shape))
        new = step.carry * x + step.pull * x0[label, torch.arange(len(label))] + step.variance.sqrt() * noise
        total = total + log_likelihood_steps(new, x, x0, step)
        x = new
        odds.append(total)
        states.append(x)
    return torch.stack(odds), torch.stack(states)


def test_log_odds_of_gaussian_classes_have_half_their_variance_as_mean() -> None:
    """E[L] = +-Gamma/2 and Var L = Gamma at every level, for means apart by 4 in three dimensions."""
    times = tuple(np.geomspace(80, 0.7, 200).tolist())
    means = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.0, 0.0]], dtype=torch.float64)
    odds, _ = paths_of(means, torch.full((2,), 0.5, dtype=torch.float64), VarianceExploding(), times, 4000)
    signed = torch.cat([-odds[:, :4000, 1], odds[:, 4000:, 1]], 1)  # for the own side
    gamma = torch.from_numpy(control_parameter(times, 16, 0.25))
    assert 20 < gamma[-1] < 22
    at = gamma > 0.05
    error = (gamma[at] / 8000).sqrt()
    assert ((signed.mean(1)[at] - gamma[at] / 2).abs() < 4 * error + 0.02 * gamma[at]).all()  # of which the steps' length 1 %
    assert ((signed.var(1)[at] / gamma[at] - 1).abs() < 4 * math.sqrt(2 / 8000) + 0.02).all()
    for half in (signed[:, :4000], signed[:, 4000:]):
        assert ((half.mean(1)[at] - gamma[at] / 2).abs() < 4 * math.sqrt(2) * error + 0.02 * gamma[at]).all()


@pytest.mark.parametrize("path", [VarianceExploding(), VariancePreserving.scaled_linear(), RectifiedFlow()], ids=["ve", "vp", "flow"])
def test_four_classes_two_against_two_have_their_exact_posterior(path: NoisePath) -> None:
    """On the same states, against mixture likelihoods in closed form; classes of different spread, one side with unequal priors."""
    times = path.levels(64)
    if isinstance(path, VarianceExploding):
        times = tuple(t for t in times if t > 0.3)
    elif isinstance(path, RectifiedFlow):
        times = tuple(t for t in times if t > 0.2)
    else:
        times = tuple(t for t in times if path.ratio(t) > 0.3)
    means = 1.3 * normal((4, 4), 12)
    spread = torch.tensor([0.5, 0.7, 0.4, 0.6], dtype=torch.float64)
    odds, states = paths_of(means, spread, path, times, 1500)
    sides, priors = [[0, 3], [1, 2]], [[0.25, 0.25], [0.25, 0.25]]
    found = class_entropy(log_side_posterior(odds.numpy(), sides, priors)).mean(1)
    exact = []
    for t, x in zip(times, states, strict=True):
        a, s = path.alpha(t).item(), path.sigma(t).item()
        logs = [
            ss.norm.logpdf(x.numpy(), a * mean, math.sqrt(a**2 * v**2 + s**2)).sum(-1)
            for mean, v in zip(means.numpy(), spread.tolist(), strict=True)
        ]
        density = np.exp(np.stack(logs))
        p = (density[0] + density[3]) / density.sum(0)
        exact.append(ss.entropy(np.stack([p, 1 - p])).mean())
    assert found[0] == pytest.approx(LN2, abs=1e-12)
    assert found[-1] < 0.35
    assert np.abs(found - np.array(exact)).max() < 0.025
    assert np.abs(np.diff(found)).max() > 1e-3


def test_label_and_posterior_forms_agree_for_any_network() -> None:
    """Random linear networks with random biases: wrong as denoisers, but L is the exact ratio of the sampler's own paths."""
    generator = rng.stream("test.speciation.networks")
    path, times, each = VarianceExploding(), (20.0, 8.0, 4.0, 2.0, 1.2, 0.7), 6000
    weights, bias = 0.3 * generator.standard_normal((3, 3, 3)), generator.standard_normal((3, 1, 3))
    label = np.repeat(np.arange(3), each)
    x = 20 * torch.from_numpy(generator.standard_normal((len(label), 3)))
    total = np.zeros((len(label), 3))
    for t, s in pairwise(times):
        x0 = torch.from_numpy((x.numpy() / (1 + t)) @ weights + bias)
        step = transition(path, s, t)
        noise = torch.from_numpy(generator.standard_normal(x.shape))
        new = step.carry * x + step.pull * x0[label, np.arange(len(label))] + step.variance.sqrt() * noise
        total += log_likelihood_steps(new, x, x0, step).numpy()
        x = new
        posterior = log_side_posterior(total, [[0], [1], [2]], [[1 / 3]] * 3)
        difference = class_entropy(posterior, label) - class_entropy(posterior)
        error = difference.std() / math.sqrt(len(label))
        assert abs(difference.mean()) < 4 * error
        assert abs((np.exp(posterior) - (label[:, None] == np.arange(3))).mean(0)).max() < 0.02
    assert 0.05 < class_entropy(posterior).mean() < 0.9
    assert error < 0.01


@pytest.mark.parametrize("gamma", TABLE)
def test_the_table_of_two_gaussian_classes(gamma: float) -> None:
    """Log odds N(+-Gamma/2, Gamma): both forms of the entropy have the mean H(Gamma), and the posterior form varies less."""
    generator = rng.stream("test.speciation.table")
    side_a = np.repeat([True, False], 100_000)
    odds = np.where(side_a, 1, -1) * gamma / 2 + math.sqrt(gamma) * generator.standard_normal(len(side_a))
    forms = [partitioned_entropy(odds), partitioned_entropy(odds, side_a)]
    for values in forms:
        assert values.mean() == pytest.approx(TABLE[gamma], abs=4 * values.std() / math.sqrt(len(odds)) + 5e-6)
    assert forms[0].std() < 0.5 * forms[1].std()
    assert float(gaussian_entropy(gamma)) == pytest.approx(TABLE[gamma], abs=6e-6)


def test_two_sides_are_a_case_of_many() -> None:
    odds = np.array([-700.0, -30, -1.5, 0, 1e-9, 2, 40, 700])
    logs = log_side_posterior(np.stack([odds, np.zeros(8)], -1), [[0], [1]], [[0.5], [0.5]])
    np.testing.assert_allclose(class_entropy(logs), partitioned_entropy(odds), rtol=1e-12, atol=1e-15)
    sides = np.arange(8) % 2
    np.testing.assert_allclose(class_entropy(logs, sides), partitioned_entropy(odds, sides == 0), rtol=1e-12, atol=1e-15)
    unequal = log_side_posterior(np.stack([odds, np.zeros(8)], -1), [[0], [1]], [[0.2], [0.8]])
    np.testing.assert_allclose(class_entropy(unequal), partitioned_entropy(odds + math.log(0.25)), rtol=1e-12, atol=1e-15)


def test_extreme_odds_and_impossible_sides() -> None:
    odds = np.array([1e4, -1e4, math.inf, -math.inf, 0.0])
    assert partitioned_entropy(odds).tolist() == [0, 0, 0, 0, LN2]
    assert partitioned_entropy(odds, np.array([True, True, True, False, True])).tolist() == [0, 1e4, 0, 0, LN2]
    assert partitioned_entropy(odds[3:4], np.array([True])).tolist() == [math.inf]
    logs = log_side_posterior([[0.0, 1e4], [0.0, -1e4], [0.0, -math.inf], [0.0, math.nan]], [[0], [1]], [[0.5], [0.5]])
    assert logs[:3].tolist() == [[-1e4, 0], [0, -1e4], [0, -math.inf]]
    assert class_entropy(logs)[:3].tolist() == [0, 0, 0]
    assert class_entropy(logs, np.array([0, 0, 1, 0]))[:3].tolist() == [1e4, 0, math.inf]
    assert np.isnan(class_entropy(logs)[3])
    assert math.isnan(partitioned_entropy(math.nan))
    assert class_entropy(np.log([[0.25] * 4])).tolist() == pytest.approx([math.log(4)])


def test_a_sides_likelihood_is_the_mixture_of_its_classes() -> None:
    """Densities of points under five normal classes, one of which is on no side, with unequal priors within and between sides."""
    x = rng.stream("test.speciation.mixture").standard_normal((7, 3))
    density = np.stack([ss.norm.pdf(x, mean, 1.3).prod(-1) for mean in (-1.0, 0.3, 0.5, 1.1, 2.0)], -1)
    sides, priors = [[0, 4], [2], [1]], [[0.1, 0.3], [0.4], [0.2]]
    joint = np.stack([0.1 * density[:, 0] + 0.3 * density[:, 4], 0.4 * density[:, 2], 0.2 * density[:, 1]], -1)
    logs = np.log(density) + 50 * x[:, :1]  # up to what all classes share
    np.testing.assert_allclose(np.exp(log_side_posterior(logs, sides, priors)), joint / joint.sum(-1, keepdims=True), rtol=1e-12)
    grid = log_side_posterior(logs.reshape(7, 1, 5), sides, priors)
    assert grid.shape == (7, 1, 3)
    moved = log_side_posterior(logs[:, ::-1], [[2], [3], [0, 4]], [[0.4], [0.2], [0.3, 0.1]])
    np.testing.assert_allclose(moved, log_side_posterior(logs, sides, priors)[:, [1, 2, 0]], rtol=1e-12)
    split = log_side_posterior(logs[:, [0, 1, 2, 3, 4, 2]], [[0, 4], [2, 5], [1]], [[0.1, 0.3], [0.15, 0.25], [0.2]])
    np.testing.assert_allclose(split, log_side_posterior(logs, sides, priors), rtol=1e-12)


@pytest.mark.parametrize(
    ("sides", "priors", "message"),
    [
        ([[0], [1, 0]], [[0.5], [0.25, 0.25]], "class 0 stands on two sides, or twice on one"),
        ([[0], [3]], [[0.5], [0.5]], r"classes 0 to 3, but the log likelihoods are \[2, 3\]"),
        ([[0], [-1]], [[0.5], [0.5]], "classes -1 to 0"),
        ([[0], []], [[1.0], []], "two sides or more, each with a class"),
        ([[0, 1]], [[0.5, 0.5]], "two sides or more"),
        ([[0], [1]], [[0.5], [0.4]], "sum to 1 over all classes, not to 0.9: divide"),
        ([[0], [1]], [[1.0], [0.0]], "priors are above 0"),
        ([[0], [1]], [[0.5], [math.nan]], "priors are above 0"),
        ([[0], [1, 2]], [[0.5], [0.5]], "priors have the shape of the sides"),
    ],
)
def test_a_partition_that_is_none_is_refused(sides: list[list[int]], priors: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_side_posterior(np.zeros((2, 3)), sides, priors)
    with pytest.raises(ValueError, match=message):
        mmse_rate(np.zeros((2, 3)), np.zeros((2, 3)), sides, priors)


def test_bad_posteriors_and_labels_are_refused() -> None:
    logs = np.log([[0.5, 0.5], [0.9, 0.1]])
    with pytest.raises(ValueError, match="0 or less: pass likelihoods through"):
        class_entropy([[1.0, 0.0]])
    for labels in (np.array([0, 2]), np.array([-1, 0])):
        with pytest.raises(ValueError, match=r"a label lies outside 0 \.\. 1"):
            class_entropy(logs, labels)
    for bad in (np.array([0]), np.array([0.0, 1.0])):
        with pytest.raises(ValueError, match=r"labels are integers, one a sample \[2\]"):
            class_entropy(logs, bad)
    for other in (np.array([1, 0]), np.array([True])):
        with pytest.raises(ValueError, match=r"booleans \[2\], True for side A"):
            partitioned_entropy(np.zeros(2), other)


@pytest.mark.parametrize(
    ("sides", "priors"),
    [
        ([[0, 1], [2, 3]], [[0.25, 0.25], [0.25, 0.25]]),
        ([[3], [0, 2]], [[0.2], [0.5, 0.3]]),
        ([[2], [1, 0], [3]], [[0.1], [0.2, 0.3], [0.4]]),
    ],
)
def test_the_rate_is_the_scatter_of_the_sides_mean_predictions(sides: list[list[int]], priors: list[list[float]]) -> None:
    x0 = normal((4, 6, 3, 2), 13)
    logs = 2 * normal((6, 4), 14).numpy()
    joint = [np.exp(logs[:, side]) * prior for side, prior in zip(sides, priors, strict=True)]
    total = sum(part.sum(1) for part in joint)
    flat = x0.flatten(2).numpy()
    means = [np.einsum("bk,kbd->bd", part / part.sum(1, keepdims=True), flat[side]) for side, part in zip(sides, joint, strict=True)]
    p = [part.sum(1) / total for part in joint]
    centre = sum(share[:, None] * mean for share, mean in zip(p, means, strict=True))
    expected = sum(share * ((mean - centre) ** 2).sum(1) for share, mean in zip(p, means, strict=True))
    np.testing.assert_allclose(mmse_rate(logs, squared_gaps(x0).numpy(), sides, priors), expected, rtol=1e-10)


def test_the_rate_of_two_classes_is_their_gap_times_the_doubt() -> None:
    odds, gaps = np.array([[0.0, 3.0, -800.0]]), np.array([[2.0, 5.0, 7.0]])
    logs = np.stack([odds, np.zeros_like(odds)], -1)
    found = mmse_rate(logs, gaps[..., None], [[0], [1]], [[0.3], [0.7]])
    p = expit(odds + math.log(3 / 7))
    np.testing.assert_allclose(found, p * (1 - p) * gaps, rtol=1e-10, atol=1e-200)
    assert mmse_rate(np.zeros(3), np.zeros(3), [[0], [1, 2]], [[0.5], [0.2, 0.3]]) == 0
    same = mmse_rate([0.0, 5.0, 1.0], [0.0, 9.0, 9.0], [[0], [1]], [[0.5], [0.5]])  # two that predict alike
    assert same == 0
    with pytest.raises(ValueError, match=r"3 classes have 3 pairs, but the gaps are \[1\]"):
        mmse_rate(np.zeros(3), [1.0], [[0], [1]], [[0.5], [0.5]])


def test_the_rates_of_gaussian_classes_integrate_to_their_entropy() -> None:
    """From pure noise at infinite sigma; x0_a - x0_b = d sigma^2/(sigma^2 + v), E[p (1 - p)] = -2 dH/dGamma."""
    sigma = np.concatenate([[math.inf], 1 / np.linspace(0, 3, 3001)[1:]])
    gamma = control_parameter(sigma, 9, 0.5)
    shrunk = np.concatenate([[1.0], 1 / (1 + 0.5 / sigma[1:] ** 2)])
    rates = -2 * gaussian_entropy_slope(gamma) * 9 * shrunk**2
    found = immse_entropy(sigma, rates, LN2)
    assert found[0] == LN2
    assert np.abs(found - gaussian_entropy(gamma)).max() < 5e-3
    coarse = immse_entropy(sigma[::100], rates[::100], LN2)
    assert np.abs(coarse - gaussian_entropy(gamma[::100])).max() > 0.05
    assert np.array_equal(immse_entropy(sigma, np.stack([rates, 2 * rates])[:, :-1], LN2)[0], found)


def test_levels_that_do_not_fall_are_refused() -> None:
    for sigma in ([2.0, 1.0, 0.0], [1.0, 2.0], [2.0, 2.0], [1.0], [math.inf, math.inf, 1.0], [2.0, math.nan]):
        with pytest.raises(ValueError, match="falls strictly and stays above 0: leave out the last level"):
            immse_entropy(sigma, np.zeros(len(sigma)), LN2)
    with pytest.raises(ValueError, match=r"3 levels need as many rates \[..., N\], or one less, not \[4\]"):
        immse_entropy([3.0, 2.0, 1.0], np.zeros(4), LN2)


def test_the_measures_load_no_torch() -> None:
    told = "import sys, diffprobe.measures.speciation; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0


def test_the_scatter_that_a_posterior_foretells() -> None:
    """Two sides in closed form, certain ones without scatter, and of drawn labels in expectation."""
    odds = np.array([0.0, 0.7, -3.0, 40.0, 2e4])
    p = 1 / (1 + np.exp(-np.minimum(odds, 700)))
    logs = np.stack([-np.logaddexp(0, -odds), -np.logaddexp(0, odds)], -1)
    assert label_deviation(logs) == pytest.approx(np.sqrt(p * (1 - p)) * np.abs(odds), abs=1e-6)
    three = np.log(np.tile([0.7, 0.2, 0.1], (20_000, 1)))
    drawn = rng.stream("test.labels", 0).choice(3, 20_000, p=[0.7, 0.2, 0.1])
    assert class_entropy(three, drawn).std() == pytest.approx(label_deviation(three)[0], rel=0.03)


def test_few_paths_without_a_rare_label_raise_no_alarm() -> None:
    """Two Gaussian classes, 16 seeds: label less posterior is within the foretold limits at their rate or more."""
    gamma = np.concatenate([[1e-9], np.geomspace(0.05, 60, 30)])
    steps, inside, trials = np.diff(gamma, prepend=0), 0, 400
    for trial in range(trials):
        noise = rng.stream("test.calibration", trial).standard_normal((2, 16, len(gamma)))
        odds = (steps / 2 + np.sqrt(steps) * noise).cumsum(-1)  # in favour of the side that was drawn
        logs = np.stack([-np.logaddexp(0, -odds), -np.logaddexp(0, odds)], -1)
        apart = (class_entropy(logs, np.zeros(odds.shape, int)) - class_entropy(logs)).mean()
        error = np.sqrt(np.mean(label_deviation(logs).mean(-1).mean(0) ** 2) / 16)
        inside += abs(apart) <= 1.96 * error
    assert inside / trials > 0.95
