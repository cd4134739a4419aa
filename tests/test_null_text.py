"""Null-text inversion against a plain loop over single images, and what it must leave alone: other rows, parameters, memory."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffprobe import rng
from diffprobe.adapters.conditions import TextCondition
from diffprobe.adapters.exact import exact_model
from diffprobe.adapters.load import load
from diffprobe.errors import UserError
from diffprobe.inversion import Inversion, climb, invert, null_text, replay
from diffprobe.model import Model, StatedCondition
from diffprobe.paths import RectifiedFlow, VariancePreserving
from diffprobe.sampling import Guidance, final, guided, trajectory
from tests.test_sampling import SD, gaussian

WIDTH = 6
SCALE = 4.0


class Reader(nn.Module):
    """A denoiser of rows [B, WIDTH] that reads states [B, tokens, WIDTH] by parameters of its own."""

    def __init__(self, path: VariancePreserving | RectifiedFlow = SD) -> None:
        super().__init__()
        self.path = path
        self.read = nn.Parameter(torch.linalg.qr(rng.normal((WIDTH, WIDTH), "test.read", [0])[0]).Q)

    def forward(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        told = torch.tanh(cond.mean(1) @ self.read).expand(len(x), -1)
        return gaussian(self.path)(x, t).float() + 0.5 * told


def words(*seeds: int) -> Tensor:
    return rng.normal((3, WIDTH), "test.words", seeds)


def pivots(denoiser: Any, path: Any, x: Tensor, times: tuple[float, ...], cond: Any) -> list[tuple[float, Tensor]]:
    return [(state.t, state.x.detach()) for state in climb(denoiser, path, x, times, cond=cond)]


def alone(denoiser: Reader, known: list[tuple[float, Tensor]], towards: Tensor, away: Tensor, inner: int) -> tuple[list[Tensor], Tensor]:
    """Mokady et al.'s loop for one image, by backward passes: the states of each step, and where the steps arrive."""
    path, x, found = denoiser.path, known[-1][1], list[Tensor]()
    for index, ((t, _), (s, target)) in enumerate(itertools.pairwise(known[::-1])):
        away = away.clone().detach().requires_grad_()
        adam = torch.optim.Adam([away], lr=1e-2 * (1 - index / 100))

        def down(states: Tensor, x: Tensor = x, t: float = t, s: float = s) -> Tensor:
            x0 = guided(denoiser, path, Guidance(SCALE, negative=states))(x, t, towards)
            eps = (x - path.alpha(t) * x0) / path.sigma(t)
            return path.alpha(s) * x0 + path.sigma(s) * eps

        for _ in range(inner):
            loss = nn.functional.mse_loss(down(away), target)
            if loss.item() <= 1e-5 + 2e-5 * index:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
        found.append(away.detach())
        x = down(away).detach()
    return found, x


@pytest.mark.parametrize("path", [SD, RectifiedFlow()])
def test_a_batch_gives_what_the_published_loop_gives_each_image(path: VariancePreserving | RectifiedFlow) -> None:
    denoiser, times = Reader(path), path.levels(50)[-8:]
    x, towards = rng.normal((WIDTH,), "test", [1, 2, 3]), words(1, 2, 3)
    away = torch.cat([towards[:1] + 0.05, words(9, 9)])
    known = pivots(denoiser, path, x, times, towards)
    batch = list(null_text(denoiser, path, known, (towards, away), SCALE))
    assert [step.t for step in batch] == list(times)
    stopped = 0
    for row in range(3):
        own = [(t, state[row : row + 1]) for t, state in known]
        states, landed = alone(denoiser, own, towards[row : row + 1], away[row : row + 1], inner=10)
        assert torch.allclose(
            torch.stack([step.states[row] for step in batch]), torch.cat(states), atol=1e-3
        )  # a tenth of a step of Adam, who magnifies rounding
        assert float(batch[-1].error[row]) == pytest.approx(float((landed - own[0][1]).square().mean()), rel=1e-3, abs=1e-9)
        stopped += sum(torch.equal(a, b) for a, b in itertools.pairwise(states))
    assert 0 < stopped < 3 * (len(times) - 1)  # some steps were within their threshold at once, some were not


def test_a_sample_within_its_threshold_stays_to_the_bit() -> None:
    """Where the two conditions are one, guidance adds nothing and the way down begins near the climb; the other row must move."""
    denoiser, times = Reader(), SD.levels(40)
    x, towards = rng.normal((WIDTH,), "test", [1, 2]), words(1, 2)
    away = torch.stack([towards[0], words(9)[0]])
    first = next(null_text(denoiser, SD, pivots(denoiser, SD, x, times, towards), (towards, away), SCALE, 5))
    assert torch.equal(first.states[0], away[0])
    assert not torch.equal(first.states[1], away[1])
    assert float(first.error[0]) <= 1e-5


def test_it_brings_guided_sampling_back() -> None:
    denoiser, times = Reader(), SD.levels(25)
    x, towards, away = rng.normal((WIDTH,), "test", [1, 2, 3]), words(1, 2, 3), words(9, 9, 9)
    known = pivots(denoiser, SD, x, times, towards)
    with torch.no_grad():
        untuned = final(trajectory(guided(denoiser, SD, Guidance(SCALE, negative=away)), SD, known[-1][1], times, cond=towards))
    *_, last = null_text(denoiser, SD, known, (towards, away), SCALE, 30)
    assert float(last.error.max()) < 2e-3 < 0.1 * float((untuned - x).square().mean(1).min())


def test_one_prompt_stands_for_all_rows() -> None:
    denoiser, times = Reader(), SD.levels(4)
    x = rng.normal((WIDTH,), "test", [1, 2])
    known = pivots(denoiser, SD, x, times, words(1))
    one, each = (list(null_text(denoiser, SD, known, (words(1), away), SCALE, 4)) for away in (words(9), words(9, 9)))
    assert all(torch.equal(a.states, b.states) for a, b in zip(one, each, strict=True))
    assert one[0].states.shape == (2, 3, WIDTH)


def test_no_parameter_gets_a_gradient_and_no_mode_is_changed() -> None:
    denoiser = Reader()
    known = pivots(denoiser, SD, rng.normal((WIDTH,), "test", [1]), SD.levels(4), words(1))
    for step in null_text(denoiser, SD, known, (words(1), words(9)), SCALE, 3):
        assert torch.is_grad_enabled()
        assert not step.x.requires_grad
        assert not step.states.requires_grad
    assert denoiser.read.grad is None
    assert denoiser.read.requires_grad
    with torch.no_grad():
        assert sum(1 for _ in null_text(denoiser, SD, known, (words(1), words(9)), SCALE, 3)) == 4


def test_no_graph_outlives_an_inner_step() -> None:
    """Tensors saved for backward passes: as many at once in forty steps as in four, and none between two of them."""
    denoiser = Reader()

    def most_alive(n: int) -> int:
        alive, most = weakref.WeakSet[_Kept](), 0

        def pack(saved: Tensor) -> _Kept:
            nonlocal most
            kept = _Kept(saved)
            alive.add(kept)
            most = max(most, len(alive))
            return kept

        known = pivots(denoiser, SD, rng.normal((WIDTH,), "test", [1]), SD.levels(n), words(1))
        alive.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value):
            for _ in null_text(denoiser, SD, known, (words(1), words(9)), SCALE, 3):
                assert not alive
        return most

    assert 0 < most_alive(4) == most_alive(40)


class _Kept:
    def __init__(self, value: Tensor) -> None:
        self.value = value


def test_a_row_that_is_not_finite_stops_and_touches_no_other() -> None:
    denoiser, times = Reader(), SD.levels(5)
    x, towards, away = rng.normal((WIDTH,), "test", [1, 2]), words(1, 2), words(9, 9)
    whole = list(null_text(denoiser, SD, pivots(denoiser, SD, x, times, towards), (towards, away), SCALE))
    x[1, 3] = nan
    found = list(null_text(denoiser, SD, pivots(denoiser, SD, x, times, towards), (towards, away), SCALE))
    for left, right in zip(whole, found, strict=True):
        assert torch.equal(left.states[0], right.states[0])
        assert torch.equal(right.states[1], away[1])
        assert right.error.isnan().tolist() == [False, True]


def text_model(pipelines: Callable[[str], Path], family: str, **options: Any) -> tuple[Model, Tensor, list[str]]:
    model = load(str(pipelines(family)), device="cpu", **options)
    assert model.shape is not None
    return model, 0.5 * rng.normal((model.shape[0], 8, 8), "test", [0, 1]), ["a red star", "b"]


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_deployed_families_are_retraced(family: str, pipelines: Callable[[str], Path]) -> None:
    """What invert tuned brings replay nearer to the image than the plain prompt does; text that is pooled stays as it was."""
    model, z, prompts = text_model(pipelines, family)
    assert model.condition is not None
    how = Inversion("null-text", 5, guidance_scale=7.5, iterations=4)
    found = invert(model, z, prompts, how)
    away = model.condition([""])
    states = away.states if isinstance(away, StatedCondition) else away
    assert isinstance(away, StatedCondition) == (family != "sd")
    assert found.nothing is not None
    assert found.nothing.shape == (5, 2, *states.shape[1:])
    assert found.nothing.dtype == torch.float32
    assert torch.equal(found.latents, invert(model, z, prompts, Inversion("ddim", 5)).latents)  # the climb is the plain one
    errors = [
        (replay(model, found.latents, prompts, tried, guidance_scale=7.5, nothing=found.nothing) - z).square().flatten(1).mean(1)
        for tried in (how, Inversion("ddim", 5))
    ]
    assert bool((errors[0] < errors[1]).all())
    network = getattr(model.denoiser, "unet", None) or model.denoiser.transformer  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_way_back_takes_the_steps_that_were_tuned(pipelines: Callable[[str], Path]) -> None:
    model, z, prompts = text_model(pipelines, "sd")
    assert model.denoiser is not None
    assert model.path is not None
    assert model.condition is not None
    cond, away = model.condition(prompts), model.condition(["", ""])
    known = [(state.t, state.x) for state in climb(_frozen(model), model.path, z, model.path.levels(4), cond=cond)]
    *_, last = null_text(model.denoiser, model.path, known, (cond, away), 3.0, 4)
    how = Inversion("null-text", 4, guidance_scale=3.0, iterations=4)
    found = invert(model, z, prompts, how)
    assert found.nothing is not None
    assert torch.allclose(found.nothing[-1], last.states, atol=1e-6)
    back = replay(model, found.latents, prompts, how, guidance_scale=3.0, nothing=found.nothing)
    assert torch.allclose((back - z).square().flatten(1).mean(1), last.error, rtol=1e-4)
    assert torch.equal(  # without guidance nothing is pushed away from
        replay(model, found.latents, prompts, how), replay(model, found.latents, prompts, Inversion("ddim", 4))
    )


def _frozen(model: Model) -> Any:
    def denoiser(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        assert model.denoiser is not None
        with torch.no_grad():
            return model.denoiser(x, t, cond)

    return denoiser


def test_half_precision_keeps_its_states_in_full(pipelines: Callable[[str], Path]) -> None:
    """Steps of Adam are smaller than half precision resolves; the network still gets its own number format."""
    model, z, prompts = text_model(pipelines, "sdxl", torch_dtype="bfloat16")
    how = Inversion("null-text", 3, guidance_scale=7.5, iterations=2)
    found = invert(model, z, prompts, how)
    assert found.nothing is not None
    assert found.nothing.dtype == torch.float32
    assert not torch.equal(found.nothing, found.nothing.bfloat16().float())
    assert bool(replay(model, found.latents, prompts, how, guidance_scale=7.5, nothing=found.nothing).isfinite().all())


def test_a_condition_of_several_parts_keeps_the_others() -> None:
    condition = TextCondition(torch.zeros(2, 3, 4), torch.ones(2, 5))
    assert isinstance(condition, StatedCondition)
    assert not isinstance(torch.zeros(2, 3, 4), StatedCondition)
    other = condition.with_states(torch.full((2, 3, 4), 2.0))
    assert other.pooled is condition.pooled
    assert float(other.states.mean()) == 2


def test_what_cannot_be_tuned_is_told_before_anything_runs(pipelines: Callable[[str], Path]) -> None:
    def never(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        raise AssertionError("asked")

    how = Inversion("null-text", 4, guidance_scale=7.5)
    gmm, edm = exact_model("gmm"), load(str(pipelines("edm")), device="cpu")
    for model, kind in ((gmm, "bool"), (edm, "int64")):
        assert model.shape is not None
        with pytest.raises(UserError, match=f"this model's conditions are {kind}, which has none: use 'ddim'"):
            invert(replace(model, denoiser=never), torch.zeros(1, *model.shape), [""], how)
    sd = load(str(pipelines("sd")), device="cpu")
    with pytest.raises(UserError, match="at guidance_scale 1 that is nothing"):
        invert(replace(sd, denoiser=never), torch.zeros(1, 4, 8, 8), [""], Inversion("null-text", 4))


def test_a_network_that_does_not_depend_on_its_condition_is_told() -> None:
    def deaf(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        return gaussian(SD)(x, t).float()

    known = pivots(deaf, SD, rng.normal((WIDTH,), "test", [1]), SD.levels(4), words(1))
    with pytest.raises(UserError, match="needs gradients from the network to its condition, and here are none: use 'ddim'"):
        next(null_text(deaf, SD, known, (words(1), words(9)), SCALE))


@pytest.mark.parametrize(("nothing", "given"), [(None, "none"), (torch.zeros(3, 1, 16, 16), "3 of them")])
def test_the_way_back_needs_what_was_tuned(nothing: Tensor | None, given: str, pipelines: Callable[[str], Path]) -> None:
    model, z, _ = text_model(pipelines, "sd")
    with pytest.raises(UserError, match=f"for each of 4 times, not {given}: pass `nothing`"):
        replay(model, z[:1], [""], Inversion("null-text", 4, guidance_scale=7.5), guidance_scale=7.5, nothing=nothing)
