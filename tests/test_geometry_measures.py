"""What spectra say, what a projection makes of it, and the trace: closed forms, simulations, coverage of every error that is given."""

from __future__ import annotations

import math
from math import exp, log

import pytest
import torch
from scipy import stats as ss
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.decoders import LinearCodec, LowRankCodec, local_geometry, orthonormal
from diffprobe.adapters.piecewise import PiecewiseLinearCodec
from diffprobe.measures.geometry import (
    directions,
    foretold,
    implied_trace,
    jacobian_spectrum,
    jacobian_trace,
    local_rank,
    local_scaling,
    nonzero,
    projection_offset,
)

LATENT, IMAGE = (3, 2, 2), (3, 4, 4)
Z = rng.normal(LATENT, "test.z", range(6)).double()
RELU = PiecewiseLinearCodec.random(LATENT, IMAGE, (20, 15))


def column(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def spectrum(kind: str, size: int = 300) -> Tensor:
    """Singular values of an imagined Jacobian."""
    i = torch.arange(size, dtype=torch.float64)
    return {"flat": torch.ones_like(i), "falling": torch.exp(-2 * i / size), "steep": torch.exp(-6 * i / size)}[kind]


def projected(values: Tensor, outputs: int, k: int, trials: int) -> Tensor:
    """Singular values [trials, K] of diag(values) in `outputs` dimensions, through as many random projections."""
    matrices = (directions(outputs, k, seed).double()[:, : len(values)] * values for seed in range(trials))
    return torch.stack([torch.linalg.svdvals(matrix) for matrix in matrices])


def truth(values: Tensor) -> tuple[Tensor, Tensor]:
    """Trace and effective rank."""
    squares = values.square()
    return squares.sum()[None], squares.sum().square()[None] / squares.square().sum()


# Scaling, rank, count


def test_scaling_rank_and_count_of_known_values() -> None:
    for values, psi, nu in (
        ((2.0, 2.0, 2.0), 3 * log(2), 3.0),
        ((5.0, 0.0), log(5), 1.0),
        ((3.0, 1.0), log(3), exp(-0.25 * log(0.25) - 0.75 * log(0.75))),
    ):
        s = column(*values)
        assert float(local_scaling(s)) == pytest.approx(psi)
        assert float(local_rank(s)) == pytest.approx(nu)
        assert int(nonzero(s)) == sum(value > 0 for value in values)


def test_nothing_above_zero_and_nan_have_no_scaling() -> None:
    s = torch.tensor([[0.0, 0.0], [math.nan, math.nan], [2.0, 1.0]])
    assert local_scaling(s).isnan().tolist() == local_rank(s).isnan().tolist() == [True, True, False]
    assert nonzero(s).tolist() == [0, 0, 2]
    assert float(local_scaling(s)[2]) == pytest.approx(log(2))
    assert local_scaling(torch.zeros(0, 3)).shape == local_rank(torch.zeros(0, 3)).shape == nonzero(torch.zeros(0, 3)).shape == (0,)


def test_decoders_have_the_scaling_and_rank_that_they_know() -> None:
    for codec in (RELU, LowRankCodec.random(LATENT, IMAGE, (0.3, 2.0, 0.9)), LinearCodec(0.5 * orthonormal(48, 12), LATENT, IMAGE)):
        s, known = jacobian_spectrum(codec.decode, Z), local_geometry(codec, Z)
        assert torch.allclose(local_scaling(s), known.psi, atol=1e-5)
        assert torch.allclose(local_rank(s), known.nu, rtol=1e-5)


def test_units_add_to_scaling_and_leave_rank() -> None:
    s, w = jacobian_spectrum(RELU.decode, Z), directions(48, 7)
    louder = jacobian_spectrum(lambda z: 3 * RELU.decode(z), Z)
    assert torch.allclose(local_scaling(louder), local_scaling(s) + 12 * log(3), atol=1e-10)
    assert torch.allclose(local_rank(louder), local_rank(s), rtol=1e-10)
    seen, signed = (jacobian_spectrum(f, Z, w) for f in (RELU.decode, lambda z: 2 * RELU.decode(z) - 1))
    assert torch.allclose(local_scaling(signed), local_scaling(seen) + 7 * log(2), atol=1e-10)


# Projection with more directions than the rank


@pytest.mark.parametrize(
    ("latents", "k", "mean", "std"),
    [(5, 120, -4.075, 0.13), (40, 120, -35.37, 0.41), (120, 120, -151.33, 1.9), (100, 300, -39.75, 0.335)],
)
def test_the_offset_of_600_outputs(latents: int, k: int, mean: float, std: float) -> None:
    found = projection_offset(latents, k, 600)
    assert found.mean == pytest.approx(mean, abs=0.006)
    assert found.std == pytest.approx(std, rel=0.04)


@pytest.mark.parametrize(("latents", "k"), [(4, 6), (4, 20), (12, 12)])
def test_the_offset_is_that_of_simulated_projections(latents: int, k: int) -> None:
    """Of an arbitrary Jacobian, since it does not depend on it. One value of the exact moments lies in each 99.9 % interval."""
    values, trials = torch.linspace(0.1, 3, latents, dtype=torch.float64), 2000
    offsets = local_scaling(projected(values, 30, k, trials)) - values.log().sum()
    known = projection_offset(latents, k, 30)
    assert float(offsets.mean()) == pytest.approx(known.mean, abs=3.3 * known.std / math.sqrt(trials))
    assert float(offsets.std()) == pytest.approx(known.std, rel=0.1)


def test_all_directions_change_nothing() -> None:
    assert projection_offset(7, 30, 30) == pytest.approx((0, 0), abs=1e-12)
    known = jacobian_spectrum(RELU.decode, Z)
    assert torch.allclose(jacobian_spectrum(RELU.decode, Z, directions(48, 48)), known, rtol=1e-6)
    implied = implied_trace(known, 48, k=48)
    assert torch.allclose(implied.trace, known.square().sum(1))
    assert torch.allclose(implied.effective_rank, known.square().sum(1).square() / known.pow(4).sum(1))
    assert float(implied.trace_error.max()) < 1e-6


def test_offsets_that_are_not_known() -> None:
    for latents, k, outputs in ((5, 4, 10), (5, 11, 10), (0, 3, 10)):
        with pytest.raises(ValueError, match="no fewer directions than the rank"):
            projection_offset(latents, k, outputs)


# Projection with fewer


@pytest.mark.parametrize("kind", ["flat", "falling", "steep"])
@pytest.mark.parametrize("k", [3, 12])
def test_trace_and_rank_foretell_scaling_and_rank(kind: str, k: int) -> None:
    values, outputs = spectrum(kind), 400
    trace, rank = truth(values)
    told = foretold(trace, rank, k, outputs)
    found = projected(values, outputs, k, 400)
    psi, nu = local_scaling(found), local_rank(found)
    left_out = k**3 / (4 * float(rank) ** 2)
    assert float(psi.mean()) == pytest.approx(float(told.scaling), abs=left_out + 3.3 * float(psi.std()) / 20)
    assert float(psi.std()) == pytest.approx(float(told.scaling_error), rel=0.15)
    assert float(nu.mean()) == pytest.approx(float(told.rank), abs=left_out + 3.3 * float(nu.std()) / 20)
    assert abs(float(psi.mean()) - k / 2 * log(float(trace) / outputs)) > 3 * abs(float(psi.mean() - told.scaling))


def test_the_limit_of_many_outputs() -> None:
    """(k/2) log(T/D) - k^2/(4r), k (1 - k/(8r)), and sqrt(k/(2r))."""
    k, rank, outputs, trace = 120, 5000.0, 786_432, 300_000.0
    psi, nu, error = (float(part) for part in foretold(torch.tensor([trace]), torch.tensor([rank]), k, outputs))
    assert psi == pytest.approx(60 * log(trace / outputs) - k**2 / (4 * rank), abs=0.02)
    assert nu == pytest.approx(k * (1 - k / (8 * rank)), abs=0.02)
    assert error == pytest.approx(math.sqrt(k / (2 * rank)), rel=0.01)


def test_an_isometry_onto_the_outputs_loses_nothing() -> None:
    found = foretold(torch.tensor([50.0]), torch.tensor([50.0]), 7, 50)
    assert [float(part) for part in found] == pytest.approx([0, 7, 0], abs=1e-12)


def test_nothing_is_foretold_beyond_the_effective_rank() -> None:
    found = foretold(torch.tensor([5.0, 5.0, math.nan]), torch.tensor([30.0, 9.0, math.nan]), 10, 50)
    for part in found:
        assert part.isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("kind", ["flat", "steep"])
@pytest.mark.parametrize(("outputs", "k"), [(310, 2), (310, 20), (310, 305), (40, 7)])
def test_the_implied_trace_is_unbiased_and_its_error_covers(kind: str, outputs: int, k: int) -> None:
    values = spectrum(kind, min(300, outputs - 10))
    (trace,), (rank,) = truth(values)
    trials = 1500 if k < 300 else 40
    found = implied_trace(projected(values, outputs, k, trials), outputs, k=k)
    assert float(found.trace.mean()) == pytest.approx(float(trace), abs=3.3 * float(found.trace.std()) / math.sqrt(trials))
    second = found.trace.square() - found.trace_error.square()  # of unbiased squares
    assert float(second.mean()) == pytest.approx(float(trace**2), abs=3.5 * float(second.std()) / math.sqrt(trials))
    if k >= 7:
        assert float(found.effective_rank.mean()) == pytest.approx(float(rank), rel=0.03 if k > 7 else 0.12)
        assert float(found.trace_error.mean()) == pytest.approx(float(found.trace.std()), rel=0.3 if trials < 100 else 0.15)
    if 7 <= k < 300:
        covered = ((found.trace - trace).abs() <= 1.96 * found.trace_error).double().mean()
        assert (0.93 if k > 7 else 0.9) <= float(covered) <= 0.97


def test_the_implied_trace_needs_to_know_the_directions() -> None:
    s = jacobian_spectrum(RELU.decode, Z, directions(48, 20))
    assert s.shape[1] == 12
    assert torch.allclose(implied_trace(s, 48, k=20).trace, 48 / 20 * s.square().sum(1))
    assert bool(implied_trace(s[:, :1], 48).effective_rank.isnan().all())
    for k, outputs in ((11, 48), (49, 48)):
        with pytest.raises(ValueError, match="pass the k that they come from"):
            implied_trace(s, outputs, k=k)


# The trace by probe vectors


def linear(values: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
    """A matrix with these singular values, and latents to be given to it."""
    left, right = orthonormal(outputs, len(values), 1), orthonormal(len(values), len(values), 2)
    return (left * values) @ right.T, rng.normal((len(values),), "test.trace", range(2)).double()


@pytest.mark.parametrize(("kind", "limits"), [("flat", (0.93, 0.97)), ("steep", (0.92, 0.97))])
def test_the_error_of_the_trace_covers_it(kind: str, limits: tuple[float, float]) -> None:
    """1,000 estimates of 10 probe vectors each, drawn as rows of one map: blocks of seeds are independent."""
    values = spectrum(kind, 60)
    matrix, z = linear(values, 80)
    (trace,), (rank,) = truth(values)
    traces, ranks = [], []
    for start in range(1000):
        found = jacobian_trace(lambda x: x @ matrix.T, z[:1], range(10 * start, 10 * start + 10), rows=16)
        traces.append((float(found.trace), float(found.trace_error)))
        ranks.append((float(found.effective_rank), float(found.rank_error)))
    estimates, errors = torch.tensor(traces, dtype=torch.float64).T
    assert float(estimates.mean()) == pytest.approx(float(trace), abs=3.3 * float(estimates.std()) / math.sqrt(1000))
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(estimates.std()), rel=0.07)
    assert limits[0] <= float(((estimates - trace).abs() <= 1.96 * errors).double().mean()) <= limits[1]
    found_ranks, rank_errors = torch.tensor(ranks, dtype=torch.float64).T
    assert float(found_ranks.mean()) == pytest.approx(float(rank), rel=0.03)
    covered = float(((found_ranks - rank).abs() <= ss.t.ppf(0.975, 9) * rank_errors).double().mean())
    assert 0.9 <= covered <= 0.98


def test_the_trace_of_decoders() -> None:
    found, known = jacobian_trace(RELU.decode, Z, range(400)), local_geometry(RELU, Z)
    assert bool(((found.trace - known.trace).abs() < 3.3 * found.trace_error).all())
    assert float((found.trace_error / known.trace).max()) < 0.04
    values = RELU.singular_values(Z).square()
    assert bool(((found.effective_rank - values.sum(1).square() / values.square().sum(1)).abs() < 3.3 * found.rank_error).all())


def test_traces_do_not_depend_on_batch_rows_or_order() -> None:
    known = jacobian_trace(RELU.decode, Z, range(5))
    for rows in (1, 2, 5, 13):
        assert all(
            torch.allclose(a, b, rtol=1e-10) for a, b in zip(known, jacobian_trace(RELU.decode, Z, range(5), rows=rows), strict=True)
        )
    assert torch.allclose(jacobian_trace(RELU.decode, Z.flip(0), range(5)).trace.flip(0), known.trace, rtol=1e-10)
    assert torch.allclose(jacobian_trace(RELU.decode, Z, (4, 3, 2, 1, 0)).effective_rank, known.effective_rank, rtol=1e-10)
    assert torch.allclose(jacobian_trace(RELU.decode, Z.float(), range(5)).trace, known.trace, rtol=1e-5)
    assert not torch.allclose(jacobian_trace(RELU.decode, Z, range(5, 10)).trace, known.trace, rtol=1e-3)


def test_one_probe_vector_knows_no_error_of_the_rank() -> None:
    found = jacobian_trace(RELU.decode, Z, [0])
    assert bool(found.trace_error.isfinite().all())
    assert bool(found.rank_error.isnan().all())
    assert bool(found.effective_rank.isfinite().all())
    with pytest.raises(ValueError, match="needs a seed or more"):
        jacobian_trace(RELU.decode, Z, [])
    bad = Z.clone()
    bad[1] = math.nan
    assert jacobian_trace(lambda z: z.flatten(1).sin(), bad, range(3)).trace.isnan().tolist() == [False, True, False, False, False, False]
