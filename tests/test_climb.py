"""The climb against Gaussians, whose probability flow is closed, against its own inverse, and against the deployed schedulers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffprobe import rng
from diffprobe.inversion import ascend, climb
from diffprobe.model import Denoiser
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving
from diffprobe.sampling import final, step, trajectory
from tests.test_sampling import SD, bent, flow_to, gaussian

TO_DATA = VariancePreserving(SD.alphas_cumprod, end=-1.0)
NO_SIGNAL = VariancePreserving((*SD.alphas_cumprod[:-1], 0.0), offset=999)  # zero terminal SNR
PATHS: list[NoisePath] = [SD, TO_DATA, VarianceExploding(), RectifiedFlow(), RectifiedFlow(shift=3.0, spacing="solver")]


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def curved(path: NoisePath) -> Denoiser:
    """A denoiser without symmetry that says x itself where there is no noise, so that its steps can be undone."""

    def denoiser(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        a, s = path.alpha(t), path.sigma(t)
        return gaussian(path)(x, t) + 0.3 * s / (a + s) * torch.tanh(3 * x / (a + s) + a)

    return denoiser


@pytest.mark.parametrize(("path", "n"), [(SD, 400), (TO_DATA, 400), (RectifiedFlow(), 400), (VarianceExploding(), 4000)])
def test_many_steps_follow_the_probability_flow(path: NoisePath, n: int) -> None:
    x, times = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], path.levels(n)
    *_, last = climb(gaussian(path), path, x, times)
    scale = (path.alpha(times[0]).square() + path.sigma(times[0]).square()).sqrt()
    assert torch.allclose(last.x / scale, flow_to(path, times[0], path.end, x) / scale, atol=0.04)


@pytest.mark.parametrize("path", PATHS)
def test_the_error_of_plain_inversion_falls_as_one_over_the_steps(path: NoisePath) -> None:
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    low, high = float(path.time(0.1)), float(path.time(3.0))
    errors = []
    for n in (200, 400, 800):
        found = x
        for s, t in itertools.pairwise(np.linspace(low, high, n + 1).tolist()):
            found = ascend(path, (s, t), found, gaussian(path)(found, t), found)
        errors.append(apart(found, flow_to(path, high, low, x)))
    orders = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert orders == pytest.approx([1, 1], abs=0.05)


@pytest.mark.parametrize("path", [*PATHS, NO_SIGNAL])
@pytest.mark.parametrize("denoiser", [gaussian, curved, bent])
def test_where_the_guess_is_right_the_step_is_undone(path: NoisePath, denoiser: Callable[[NoisePath], Denoiser]) -> None:
    x = rng.normal((40,), "test", [0, 1]).double()
    for s, t in itertools.pairwise(path.levels(6)[::-1]):
        x0 = denoiser(path)(x, t)
        assert torch.allclose(ascend(path, (s, t), step(path, (s, t), x, x0), x0, x), x, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("path", [*PATHS, NO_SIGNAL])
def test_a_settled_fixed_point_is_undone_to_rounding(path: NoisePath) -> None:
    x, times = rng.normal((40,), "test", [0, 1]), path.levels(20)
    errors = []
    for kind, iterations in ((torch.float64, 30), (torch.float32, 30), (torch.float64, 0)):
        *_, last = climb(curved(path), path, x.to(kind), times, iterations=iterations)
        assert last.x.dtype == kind
        errors.append(apart(final(trajectory(curved(path), path, last.x, times)), x))
    assert errors[0] < 1e-6
    assert errors[1] < 1e-3
    assert errors[2] > 0.01


@pytest.mark.parametrize("path", [*PATHS, NO_SIGNAL])
def test_a_climb_retraces_the_way_down_state_by_state(path: NoisePath) -> None:
    times = path.levels(12)
    scale = (path.alpha(times[0]).square() + path.sigma(times[0]).square()).sqrt()
    down = list(trajectory(curved(path), path, scale * rng.normal((30,), "test", [3, 4]).double(), times))
    up = list(climb(curved(path), path, down[-1].x, times, iterations=30))
    assert [state.step for state in up] == list(range(13))
    assert [state.t for state in up] == [state.t for state in down][::-1]
    for rising, falling in zip(up, reversed(down), strict=True):
        assert torch.allclose(rising.x, falling.x, rtol=1e-6, atol=1e-6)
    assert torch.allclose(up[-1].x0, down[0].x0, rtol=1e-6, atol=1e-6)


def test_iterations_are_counted_and_what_they_move_is_told() -> None:
    calls: list[float] = []

    def counted(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        calls.append(float(t))
        return curved(SD)(x, t, cond)

    x, times = rng.normal((40,), "test", [0, 1]).double(), SD.levels(8)
    plain = list(climb(counted, SD, x, times))
    assert calls == list(times[::-1])
    assert all(bool(state.moved.isnan().all()) for state in plain)
    moved = []
    for iterations in (1, 2, 4, 8):
        calls.clear()
        states = list(climb(counted, SD, x, times, iterations=iterations))
        assert len(calls) == 8 * (1 + iterations)
        moved.append(torch.stack([state.moved for state in states[1:]]).amax(0))
    assert all(bool((later < 0.7 * earlier).all()) for earlier, later in itertools.pairwise(moved))
    calls.clear()
    next(climb(counted, SD, x, times))
    assert not calls


def test_a_fixed_point_that_does_not_settle_says_so() -> None:
    """A network that turns and stretches what it sees more than any step forgives."""
    turn = 9 * torch.linalg.qr(rng.normal((40, 40), "test.turn", [0])[0].double()).Q

    def wild(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        return torch.tanh(x @ turn) * (1 + x.abs())

    states = list(climb(wild, SD, rng.normal((40,), "test", [0, 1]).double(), SD.levels(5), iterations=20))
    assert bool((torch.stack([state.moved for state in states[1:]]).amax(0) > 0.05).all())


@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("n", [10, 50])
def test_the_climb_is_that_of_the_inverse_ddim_scheduler(n: int, set_alpha_to_one: bool) -> None:
    """diffusers' own loop, in which the network sees the level climbed to and the x below it; all levels, the first and last too."""
    path = TO_DATA if set_alpha_to_one else SD
    scheduler = DDIMInverseScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=set_alpha_to_one,
        steps_offset=1,
    )
    scheduler.set_timesteps(n)
    theirs = rng.normal((4, 8, 8), "test", [3])
    states = list(climb(bent(path), path, theirs, path.levels(n)))
    assert len(scheduler.timesteps) == len(states) - 1
    for state, t in zip(states[1:], scheduler.timesteps, strict=True):
        assert float(t) == state.t
        eps = (theirs - path.alpha(t) * bent(path)(theirs, t)) / path.sigma(t)
        theirs = scheduler.step(eps, t, theirs).prev_sample
        assert torch.allclose(state.x, theirs, atol=2e-5)


def test_a_climb_of_a_flow_is_undone_by_the_deployed_euler_scheduler() -> None:
    """A velocity that depends on the time alone: what was climbed is come down by the scheduler to where it began."""
    path, n = RectifiedFlow(shift=3.0), 12
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(n)

    def velocity(t: Tensor | float) -> Tensor:
        return (1 + torch.cos(7 * torch.as_tensor(t, dtype=torch.float32))) * torch.arange(6)

    start = rng.normal((6,), "test", [3, 5])
    *_, last = climb(lambda x, t, cond=None: x - float(t) * velocity(t), path, start, path.levels(n))
    x = last.x
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas[:-1], strict=True):
        x = scheduler.step(velocity(sigma), t, x).prev_sample
    assert torch.allclose(x, start, atol=1e-5)
    assert apart(last.x, start) > 0.5
