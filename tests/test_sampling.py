"""The sampling loop against Gaussians, whose exact denoiser gives closed forms, and against the deployed scheduler."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffprobe import rng
from diffprobe.model import Denoiser
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving, transition
from diffprobe.sampling import Guidance, Sampler, final, guided, noised, start, step, trajectory

SD = VariancePreserving.scaled_linear()
PATHS: list[NoisePath] = [SD, VarianceExploding(), RectifiedFlow()]


def gaussian(path: NoisePath, variance: float = 0.25, mean: float = 0.3) -> Denoiser:
    """The exact denoiser of data N(mean, variance I)."""

    def denoiser(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        a, s = path.alpha(t), path.sigma(t)
        return mean + a * variance / (a**2 * variance + s**2) * (x - a * mean)

    return denoiser


def bent(path: NoisePath) -> Denoiser:
    """A denoiser that is exact for nothing: it depends on x, t and cond without symmetry."""

    def denoiser(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        return torch.tanh(x + path.alpha(t)) * 0.7 + (0.0 if cond is None else cond)

    return denoiser


def flow_to(path: NoisePath, s: float, t: float, x: Tensor) -> Tensor:
    """The probability-flow ODE's solution for `gaussian`: quantiles are kept."""

    def moments(time: float) -> tuple[Tensor, Tensor]:
        a = path.alpha(time)
        return a * 0.3, (a**2 * 0.25 + path.sigma(time) ** 2).sqrt()

    (mean_s, std_s), (mean_t, std_t) = moments(s), moments(t)
    return mean_s + std_s / std_t * (x - mean_t)


@pytest.mark.parametrize("path", PATHS)
def test_many_deterministic_steps_map_quantiles_to_quantiles(path: NoisePath) -> None:
    times = path.levels(400)
    x = path.sigma(times[0]) * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    found = final(trajectory(gaussian(path), path, x, times))
    assert torch.allclose(found, flow_to(path, path.end, times[0], x), atol=0.015)


@pytest.mark.parametrize("path", PATHS)
def test_deterministic_sampling_converges_at_first_order(path: NoisePath) -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    low, high = float(path.time(0.1)), float(path.time(3.0))
    errors = []
    for n in (50, 100, 200):
        times = np.linspace(high, low, n + 1).tolist()
        states = list(trajectory(gaussian(path), path, x, times))
        errors.append(float((states[n].x - flow_to(path, low, high, x)).abs().max()))
    orders = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.12)


def moments_of_the_chain(path: NoisePath, n: int) -> tuple[float, float]:
    """Mean and variance that n ancestral steps with the exact denoiser of `gaussian` give, by recursion over its linear steps."""
    times = path.levels(n)
    mean, variance = 0.0, float(path.alpha(times[0])) ** 2 + float(path.sigma(times[0])) ** 2
    for t, s in zip(times, (*times[1:], path.end), strict=True):
        carry, pull, fresh = (float(part) for part in transition(path, s, t))
        a = float(path.alpha(t))
        gain = a * 0.25 / (a**2 * 0.25 + float(path.sigma(t)) ** 2)
        mean = carry * mean + pull * (0.3 + gain * (mean - a * 0.3))
        variance = (carry + pull * gain) ** 2 * variance + fresh
    return mean, variance


@pytest.mark.parametrize("path", PATHS)
def test_stochastic_sampling_reproduces_the_data(path: NoisePath) -> None:
    mean, variance = moments_of_the_chain(path, 900)
    assert mean == pytest.approx(float(path.alpha(path.end)) * 0.3, abs=0.004)
    assert variance == pytest.approx(float(path.alpha(path.end)) ** 2 * 0.25 + float(path.sigma(path.end)) ** 2, rel=0.025)

    n, times = 8000, path.levels(60)
    x = start(path, times[0], (n, 2), (0,))
    found = final(trajectory(gaussian(path), path, x, times, sampler=Sampler(eta=1, seeds=(0,))))[0].double()
    mean, variance = moments_of_the_chain(path, 60)
    assert found.mean(0).tolist() == pytest.approx([mean] * 2, abs=4 * (variance / n) ** 0.5)
    assert np.cov(found.numpy().T) == pytest.approx(variance * np.eye(2), abs=4 * variance * (2 / n) ** 0.5)


def test_eta_one_is_the_gaussian_transition() -> None:
    x, x0, noise = rng.normal((5,), "test", [0, 1, 2]).double()
    for path, s, t in ((SD, 199.0, 331.0), (VarianceExploding(), 0.5, 2.0), (RectifiedFlow(), 0.4, 1.0)):
        carry, pull, variance = transition(path, s, t)
        exact = carry * x + pull * x0 + variance.sqrt() * noise
        assert torch.allclose(step(path, (s, t), x, x0, eta=1, noise=noise), exact, rtol=1e-12, atol=1e-14)


def test_a_deterministic_step_of_a_flow_is_eulers() -> None:
    x, x0 = rng.normal((50,), "test", [0, 1]).double()
    for s, t in ((0.0, 0.02), (0.4, 0.7), (0.9, 1.0)):
        velocity = (x - x0) / t
        assert torch.allclose(step(RectifiedFlow(), (s, t), x, x0), x + (s - t) * velocity, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("n", [15, 50])
def test_the_loop_is_that_of_the_ddim_scheduler(n: int) -> None:
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.set_timesteps(n)
    start_x = rng.normal((4, 8, 8), "test", [3])
    denoiser, theirs = bent(SD), start_x
    states = list(trajectory(denoiser, SD, start_x, SD.levels(n)))
    for state, t in zip(states[1:], scheduler.timesteps, strict=True):
        eps = (theirs - SD.alpha(t) * denoiser(theirs, t)) / SD.sigma(t)
        theirs = scheduler.step(eps, t, theirs).prev_sample
        assert torch.allclose(state.x, theirs, atol=1e-5)


def test_states_run_from_the_first_time_to_the_end() -> None:
    calls: list[float] = []

    def counted(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        calls.append(float(t))
        return bent(SD)(x, t, cond)

    states = list(trajectory(counted, SD, torch.ones(2, 3), SD.levels(5)))
    assert [state.step for state in states] == list(range(6))
    assert [state.t for state in states] == [*SD.levels(5), 0.0]
    assert calls == list(SD.levels(5))
    assert torch.equal(states[-1].x0, states[-2].x0)
    calls.clear()
    next(trajectory(counted, SD, torch.ones(2, 3), SD.levels(5)))
    assert len(calls) == 1


@pytest.mark.parametrize("path", [VarianceExploding(), RectifiedFlow(), VariancePreserving(SD.alphas_cumprod, end=-1.0)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_last_step_to_data_gives_the_prediction(path: NoisePath, eta: float) -> None:
    states = list(trajectory(bent(path), path, torch.ones(1, 4), path.levels(6), sampler=Sampler(eta, (5,))))
    assert torch.equal(states[-1].x, states[-1].x0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_sample_is_the_same_in_any_batch_and_order(eta: float) -> None:
    seeds = (4, 9, 2)
    x, times = start(SD, 925, (3, 4), seeds), SD.levels(7)

    def run(rows: list[int]) -> Tensor:
        sampler = Sampler(eta, tuple(seeds[i] for i in rows))
        return final(trajectory(bent(SD), SD, x[rows], times, sampler=sampler))

    whole = run([0, 1, 2])
    assert torch.equal(whole, torch.cat([run([0]), run([1]), run([2])]))
    assert torch.equal(whole[[2, 0, 1]], run([2, 0, 1]))


def test_noise_differs_between_steps_seeds_and_roles() -> None:
    def drawn(sampler: Sampler) -> list[Tensor]:
        states = list(trajectory(bent(SD), SD, torch.zeros(2, 400), SD.levels(3), sampler=sampler))
        found: list[Tensor] = []
        for a, b in itertools.pairwise(states):
            carry, pull, variance = transition(SD, b.t, a.t)
            found += (b.x - carry * a.x - pull * a.x0) / variance.sqrt()
        return found

    noises = torch.stack(drawn(Sampler(1, (1, 2))) + drawn(Sampler(1, (1, 2), role="other")))
    assert torch.allclose(noises[0], rng.normal((400,), "sampling.step0", [1])[0], atol=1e-4)
    assert float((torch.corrcoef(noises) - torch.eye(12)).abs().max()) < 0.25


def test_guidance_outside_its_interval_changes_nothing_and_costs_nothing() -> None:
    calls: list[Any] = []

    def counted(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        calls.append(cond)
        return bent(SD)(x, t, cond)

    guide = Guidance(4.0, lo=0.5, hi=2.0, negative=-0.3)
    x = torch.linspace(-1, 1, 6)[None]
    for ratio, inside in ((0.4, False), (0.5001, True), (1.9999, True), (2.1, False)):
        calls.clear()
        t = float(SD.time(ratio))
        found = guided(counted, SD, guide)(x, t, 0.2)
        assert len(calls) == (2 if inside else 1)
        plain, away = bent(SD)(x, t, 0.2), bent(SD)(x, t, -0.3)
        assert torch.equal(found, away + 4.0 * (plain - away) if inside else plain)


def test_guidance_of_scale_one_and_an_empty_interval_give_the_unguided_trajectory() -> None:
    x, times = start(SD, 925, (5,), (0, 1)), SD.levels(9)
    plain = final(trajectory(bent(SD), SD, x, times, cond=0.1))
    for guide in (Guidance(1.0), Guidance(7.5, lo=1e3), Guidance(7.5, hi=0.0)):
        assert torch.equal(final(trajectory(guided(bent(SD), SD, guide), SD, x, times, cond=0.1)), plain)
    strong = final(trajectory(guided(bent(SD), SD, Guidance(7.5)), SD, x, times, cond=0.1))
    assert not torch.allclose(strong, plain)


def test_guidance_with_a_time_a_sample() -> None:
    x, times = torch.ones(2, 3), torch.tensor([67.0, 925.0])
    found = guided(bent_by_sample, SD, Guidance(3.0, lo=1.0, negative=-0.3))(x, times, 0.2)
    assert torch.equal(found[0], bent_by_sample(x, times, 0.2)[0])
    assert not torch.equal(found[1], bent_by_sample(x, times, 0.2)[1])


def bent_by_sample(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
    return torch.tanh(x) * 0.7 + (0.0 if cond is None else cond)


def test_noised_mixes_data_and_noise_a_sample() -> None:
    x0, noise = torch.ones(2, 3), torch.full((2, 3), 2.0)
    found = noised(RectifiedFlow(), x0, torch.tensor([0.25, 0.5]), noise)
    assert torch.allclose(found, torch.tensor([[1.25], [1.5]]).expand(2, 3))
    assert torch.equal(noised(RectifiedFlow(), x0, 0.25, noise), noised(RectifiedFlow(), x0, torch.tensor([0.25, 0.25]), noise))


def test_start_has_the_level_of_unit_data() -> None:
    for path, t, std in ((SD, 925.0, 1.0), (VarianceExploding(), 80.0, 6401**0.5), (RectifiedFlow(), 1.0, 1.0)):
        x = start(path, t, (4,), (7, 8))
        assert torch.allclose(x, std * rng.normal((4,), "sampling.start", (7, 8)))
        assert x.dtype == torch.float32


def test_bad_input() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="fall strictly"):
        next(trajectory(bent(SD), SD, x, (1.0, 67.0)))
    with pytest.raises(ValueError, match="2 samples, 0 seeds"):
        next(trajectory(bent(SD), SD, x, (67.0, 1.0), sampler=Sampler(eta=1)))
    with pytest.raises(ValueError, match=r"outside 0 \.\. 1"):
        Sampler(eta=1.5)
    with pytest.raises(ValueError, match="one or more"):
        next(trajectory(bent(SD), SD, x, ()))
    with pytest.raises(ValueError, match="no state"):
        final(())
    with pytest.raises(ValueError, match="needs noise"):
        step(SD, (1.0, 67.0), x, x, eta=1)
