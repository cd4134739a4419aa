"""Noise paths against the identities of the Gaussian transition, the deployed schedulers, and published tables."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving, executed_steps, like, transition

SD = VariancePreserving.scaled_linear()
PATHS: list[NoisePath] = [SD, VarianceExploding(), RectifiedFlow(), RectifiedFlow(shift=3.0)]
PAIRS: list[tuple[NoisePath, float, float]] = [
    (SD, 133.0, 331.0),
    (SD, 0.0, 925.0),
    (VarianceExploding(), 0.3, 5.0),
    (RectifiedFlow(), 0.2, 0.7),
    (RectifiedFlow(), 0.69, 0.7),
]


def ddim(**changes: object) -> DDIMScheduler:
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False, "set_alpha_to_one": False}
    return DDIMScheduler(**{**settings, "steps_offset": 1, **changes})


@pytest.mark.parametrize(("path", "s", "t"), PAIRS)
def test_transition_satisfies_its_identities(path: NoisePath, s: float, t: float) -> None:
    carry, pull, variance = (float(part) for part in transition(path, s, t))
    a_s, s_s, a_t, s_t = (float(f(time)) for time in (s, t) for f in (path.alpha, path.sigma))
    snr_s, snr_t = (a_s / s_s) ** 2, (a_t / s_t) ** 2
    assert pull**2 / variance == pytest.approx(snr_s - snr_t, rel=1e-12)
    assert pull / variance == pytest.approx(a_s / s_s**2, rel=1e-12)
    assert carry * a_t + pull == pytest.approx(a_s, rel=1e-12)  # E[x_s | x_0]
    assert (carry * s_t) ** 2 + variance == pytest.approx(s_s**2, rel=1e-12)  # Var[x_s | x_0]


def test_transition_in_the_form_of_variance_exploding() -> None:
    s, t = 0.7, 3.0
    carry, pull, variance = transition(VarianceExploding(), s, t)
    assert float(variance) == pytest.approx((t**2 - s**2) * s**2 / t**2, rel=1e-14)
    assert float(carry) == pytest.approx(s**2 / t**2, rel=1e-14)
    assert float(pull) == pytest.approx(1 - s**2 / t**2, rel=1e-14)


def test_transition_from_pure_noise_forgets_it() -> None:
    carry, pull, variance = transition(RectifiedFlow(), 0.4, 1.0)
    assert (float(carry), float(pull), float(variance)) == pytest.approx((0, 0.6, 0.16), abs=1e-15)
    ended = VariancePreserving((0.9, 0.5, 0.0))
    assert tuple(float(part) for part in transition(ended, 1, 2)) == pytest.approx((0, 0.5**0.5, 0.5), abs=1e-15)


def test_transition_to_data_is_the_prediction_and_to_the_same_level_nothing() -> None:
    for path in (VarianceExploding(), RectifiedFlow()):
        assert tuple(float(part) for part in transition(path, 0.0, 0.5)) == (0, 1, 0)
    assert tuple(float(part) for part in transition(SD, 67, 67)) == (1, 0, 0)


def test_transitions_compose() -> None:
    """Going t -> u -> s equals going t -> s, in mean and variance."""
    for path, s, t in PAIRS:
        u = float(path.time(float((path.ratio(s) * path.ratio(t)).sqrt())))
        whole, first, second = transition(path, s, t), transition(path, u, t), transition(path, s, u)
        assert float(second.carry * first.carry) == pytest.approx(float(whole.carry), rel=1e-11)
        assert float(second.carry * first.pull + second.pull) == pytest.approx(float(whole.pull), rel=1e-11)
        assert float(second.carry**2 * first.variance + second.variance) == pytest.approx(float(whole.variance), rel=1e-11)


def test_transition_of_many_times_at_once() -> None:
    many = transition(SD, torch.tensor([0, 133]), torch.tensor([67.0, 331.0]))
    assert torch.equal(many.variance, torch.stack([transition(SD, 0, 67).variance, transition(SD, 133, 331).variance]))


def test_transition_refuses_to_go_towards_noise() -> None:
    with pytest.raises(ValueError, match="runs towards data"):
        transition(SD, 331, 133)
    with pytest.raises(ValueError, match="no transition leaves data"):
        transition(RectifiedFlow(), 0, 0)


def test_variance_is_that_of_the_ddim_scheduler() -> None:
    scheduler = ddim()
    for t, s in ((925, 859), (331, 265), (67, 1)):
        assert float(transition(SD, s, t).variance) == pytest.approx(float(scheduler._get_variance(t, s)), rel=1e-4)


#: strength, executed steps, starting t, then abar, 1 - abar, the noise-to-signal ratio and sqrt(1 - abar) there
PUBLISHED = [
    (0.1, 1, 1, (0.9983, 0.00170, 0.00171, 0.0413)),
    (0.2, 3, 133, (0.8513, 0.14866, 0.17462, 0.3856)),
    (0.3, 4, 199, (0.7552, 0.24476, 0.32409, 0.4947)),
    (0.4, 6, 331, (0.5383, 0.46168, 0.85762, 0.6795)),
]


@pytest.mark.parametrize(("strength", "steps", "t", "printed"), PUBLISHED)
def test_strengths_of_the_published_benchmark(strength: float, steps: int, t: int, printed: tuple[float, float, float, float]) -> None:
    assert executed_steps(strength, 15) == steps
    assert SD.levels(15)[15 - steps] == t
    signal, noise = float(SD.alpha(t)) ** 2, float(SD.sigma(t)) ** 2
    found = (signal, noise, float(SD.ratio(t)) ** 2, noise**0.5)
    for value, expected, digit in zip(found, printed, (1e-4, 1e-5, 1e-5, 1e-4), strict=True):
        assert value == pytest.approx(expected, abs=0.6 * digit)


def test_stable_diffusion_ends_at_a_known_level() -> None:
    assert SD.alphas_cumprod[999] == pytest.approx(0.004660, abs=5e-7)
    table = ddim().alphas_cumprod.double()
    assert torch.allclose(torch.tensor(SD.alphas_cumprod, dtype=torch.float64), table, rtol=1e-4)
    assert torch.allclose(SD.alpha(torch.arange(1000)).square(), torch.tensor(SD.alphas_cumprod, dtype=torch.float64), rtol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 3, 15, 28, 50, 100, 333, 999])
def test_levels_are_those_of_the_ddim_scheduler(n: int) -> None:
    scheduler = ddim()
    scheduler.set_timesteps(n)
    assert SD.levels(n) == tuple(scheduler.timesteps.double().tolist())


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("n", [1, 4, 28, 50])
def test_levels_are_those_of_the_flow_scheduler(n: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(n)
    assert RectifiedFlow(shift).levels(n) == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-6)


def test_every_index_of_the_table_is_a_level_when_all_are_asked_for() -> None:
    assert SD.levels(1000) == tuple(float(t) for t in reversed(range(1000)))
    with pytest.raises(ValueError, match="at most 1000"):
        SD.levels(1001)


def test_levels_of_karras() -> None:
    grid = VarianceExploding().levels(32)
    assert (grid[0], grid[-1]) == pytest.approx((80, 0.002), rel=1e-12)
    assert (grid[17], grid[22], grid[23]) == pytest.approx((1.609, 0.283, 0.189), abs=5e-4)
    assert VarianceExploding().levels(1) == pytest.approx((80.0,))


@pytest.mark.parametrize("path", PATHS)
def test_levels_fall_from_noise_to_data(path: NoisePath) -> None:
    ratios = path.ratio(torch.tensor((*path.levels(20), path.end), dtype=torch.float64))
    assert bool((ratios.diff() < 0).all())


@pytest.mark.parametrize("path", PATHS)
def test_time_inverts_ratio(path: NoisePath) -> None:
    times = torch.tensor(path.levels(37), dtype=torch.float64)
    between = (times[1:] + times[:-1]) / 2
    for grid in (times, between):
        assert torch.allclose(path.time(path.ratio(grid)), grid, rtol=1e-12, atol=1e-12)
    assert float(path.ratio(path.time(0.0))) == 0


def test_times_before_the_table_lead_to_data() -> None:
    assert (float(SD.alpha(-1)), float(SD.sigma(-1)), float(SD.ratio(-1))) == (1, 0, 0)
    assert float(SD.ratio(-0.5)) == pytest.approx(float(SD.ratio(0)) / 2, rel=1e-14)
    assert float(SD.time(SD.ratio(-0.25))) == pytest.approx(-0.25, abs=1e-12)
    with pytest.raises(ValueError, match=r"outside -1 \.\. 999"):
        SD.alpha(1000)


def test_coefficients_have_the_shape_of_the_times_and_double_precision() -> None:
    for path in PATHS:
        assert path.alpha(0.5).dtype == torch.float64
        assert path.sigma(torch.tensor([0.5, 0.25], dtype=torch.float32)).dtype == torch.float64
        assert path.ratio(torch.tensor([[0.5, 0.25]])).shape == (1, 2)
    x = torch.ones(2, 3, 4)
    assert (like(torch.tensor([1.0, 2.0], dtype=torch.float64), x) * x)[1].eq(2).all()
    assert (SD.alpha(5) * x).dtype == x.dtype


def test_paths_compare_hash_and_pickle() -> None:
    again = VariancePreserving.scaled_linear()
    assert again == SD
    assert hash(again) == hash(SD)
    assert float(again.alpha(3)) > 0  # fills the cached table
    assert pickle.loads(pickle.dumps(again)) == SD
    assert RectifiedFlow() != RectifiedFlow(3.0)


@pytest.mark.parametrize("table", [(0.5,), (0.5, 0.6), (1.0, 0.5), (0.5, -0.1)])
def test_a_table_that_does_not_fall_is_refused(table: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must fall strictly"):
        VariancePreserving(table)


def test_executed_steps_are_those_of_the_deployed_pipelines() -> None:
    assert executed_steps(0.58, 50) == 28
    assert executed_steps(0.05, 15) == 0
    assert executed_steps(1.0, 15) == 15
    assert executed_steps(0.58, 50, "ceil") == 29
    strengths = [i / 20 for i in range(1, 21)]
    assert sum(executed_steps(s, 28) != executed_steps(s, 28, "ceil") for s in strengths) == 16


def test_executed_steps_round_the_exact_product_except_where_floats_do_not() -> None:
    for n in (15, 28, 50):
        for percent in range(101):
            exact = Fraction(percent * n, 100)
            steps = {int(exact), int(np.nextafter(float(exact), 0))}
            assert executed_steps(percent / 100, n) in steps
            assert executed_steps(percent / 100, n, "ceil") - executed_steps(percent / 100, n) in (0, 1)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strength_outside_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"outside 0 \.\. 1"):
        executed_steps(strength, 10)


def test_no_steps_are_refused() -> None:
    for path in PATHS:
        with pytest.raises(ValueError, match="at least 1"):
            path.levels(0)
