"""Inversion of models: worlds whose answers are exact, deployed families, and what cannot be inverted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, TCDScheduler
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.exact import exact_model, exact_world
from diffprobe.adapters.load import load
from diffprobe.errors import UserError
from diffprobe.inversion import Inversion, climb, invert, replay
from diffprobe.model import Model
from diffprobe.sampling import Guidance, final, guided, trajectory
from tests.test_climb import NO_SIGNAL, apart
from tests.test_sampling import gaussian


def data(model: Model, count: int) -> Tensor:
    """Latents of an exact world, from its own distribution."""
    assert model.shape is not None
    drawn = exact_world(model.name.removeprefix("exact:")).mixture.sample(range(count))[0]
    return drawn.float().view(-1, *model.shape)


@pytest.mark.parametrize("name", ["gaussian", "gmm", "hierarchical", "gmm@ve", "gmm@flow"])
def test_an_exact_world_comes_back(name: str) -> None:
    """Nearly by itself, and to rounding with the fixed point."""
    model = exact_model(name)
    z, prompts = data(replace(model, name=f"exact:{name.partition('@')[0]}"), 12), ["class 0"] * 12
    errors = []
    for how in (Inversion(num_inference_steps=20), Inversion("fixed-point", 20, iterations=20)):
        found = invert(model, z, prompts, how)
        assert found.latents.dtype == torch.float32
        assert found.latents.shape == z.shape
        assert found.nothing is None
        errors.append(apart(replay(model, found.latents, prompts, how), z))
    assert bool((found.residual < 1e-4).all())
    assert errors[1] < 1e-3 < errors[0]


def test_what_is_inverted_looks_like_the_noise_of_its_world() -> None:
    """Data of a Gaussian world rise to Gaussians of the level's own variance, direction by direction."""
    model, n = exact_model("gaussian"), 1000
    assert model.path is not None
    found = invert(model, data(model, n), [""] * n, Inversion(num_inference_steps=500)).latents.flatten(1).double()
    variances, t = exact_world("gaussian").mixture.variances[0], model.path.levels(500)[0]
    expected = model.path.alpha(t).square() * variances + model.path.sigma(t).square()
    wide = variances >= 0.05  # the narrowest lie within the first steps
    assert torch.allclose(found.var(0)[wide], expected[wide], rtol=0.2)


def test_guidance_on_the_way_up_is_that_of_the_way_down() -> None:
    model = exact_model("gmm")
    assert model.denoiser is not None
    assert model.path is not None
    assert model.condition is not None
    z, prompts = data(model, 8), ["class 2"] * 8
    how = Inversion("fixed-point", 12, guidance_scale=1.5, negative_prompt="class 0", iterations=15)
    found = invert(model, z, prompts, how)
    pushed = guided(model.denoiser, model.path, Guidance(1.5, negative=model.condition(["class 0"] * 8)))
    *_, last = climb(pushed, model.path, z, model.path.levels(12), cond=model.condition(prompts), iterations=15)
    assert torch.equal(found.latents, last.x)
    assert bool((found.residual < 1e-4).all())
    assert apart(replay(model, found.latents, prompts, how, guidance_scale=1.5), z) < 1e-3
    assert apart(replay(model, found.latents, prompts, how, guidance_scale=1.0), z) > 0.05


def test_negative_prompt_inversion_knows_no_guidance() -> None:
    """The prompt stands on both sides, and what guidance adds is nothing, at every scale."""
    model = exact_model("gmm")
    assert model.denoiser is not None
    assert model.path is not None
    assert model.condition is not None
    z, prompts, how = data(model, 6), ["class 2"] * 6, Inversion("negative-prompt", 20, guidance_scale=7.5)
    found = invert(model, z, prompts, how)
    assert torch.equal(found.latents, invert(model, z, prompts, Inversion("ddim", 20)).latents)
    back = replay(model, found.latents, prompts, how, guidance_scale=7.5)
    both = guided(model.denoiser, model.path, Guidance(7.5, negative=model.condition(prompts)))
    assert torch.equal(back, final(trajectory(both, model.path, found.latents, model.path.levels(20), cond=model.condition(prompts))))
    assert apart(back, z) < 0.3 * apart(replay(model, found.latents, prompts, Inversion("ddim", 20), guidance_scale=7.5), z)


@pytest.mark.parametrize("method", ["ddim", "fixed-point"])
def test_a_row_is_the_same_in_any_batch(method: str) -> None:
    model, how = exact_model("gmm"), Inversion(method, 12, guidance_scale=3.0)
    z, prompts = data(model, 5), [f"class {i % 4}" for i in range(5)]
    whole = invert(model, z, prompts, how)
    turned = invert(model, z.flip(0), prompts[::-1], how)
    assert torch.allclose(turned.latents.flip(0), whole.latents, atol=1e-5)
    for row in range(5):
        alone = invert(model, z[row : row + 1], prompts[row : row + 1], how)
        assert torch.allclose(alone.latents[0], whole.latents[row], atol=1e-5)
        one, other = (
            replay(model, x, prompts[row : row + 1], how, guidance_scale=3.0) for x in (alone.latents, whole.latents[row : row + 1])
        )
        assert torch.allclose(one, other, atol=1e-5)


def test_a_row_that_is_not_finite_stays_so_and_touches_no_other() -> None:
    model, how = exact_model("gaussian"), Inversion("fixed-point", 8)
    z = data(model, 3)
    whole = invert(model, z, [""] * 3, how)
    z[1, 0, 2, 2] = nan
    found = invert(model, z, [""] * 3, how)
    assert found.latents.flatten(1).isfinite().all(1).tolist() == [True, False, True]
    assert found.residual.isnan().tolist() == [False, True, False]
    assert torch.equal(found.latents[[0, 2]], whole.latents[[0, 2]])
    assert replay(model, found.latents, [""] * 3, how).flatten(1).isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("family", ["sd", "sd3", "flow", "edm"])
def test_deployed_families_come_back(family: str, pipelines: Callable[[str], Path]) -> None:
    model = load(str(pipelines(family)), device="cpu")
    assert model.shape is not None
    z, prompts = 0.5 * rng.normal((model.shape[0], 8, 8), "test", [0, 1]), ["a red star", "b"]  # sides may be others than the native ones
    plain, settled = Inversion(num_inference_steps=12), Inversion("fixed-point", 12, iterations=12)
    errors = [apart(replay(model, invert(model, z, prompts, how).latents, prompts, how), z) for how in (plain, settled)]
    assert errors[1] < 2e-3
    assert errors[1] < 0.1 * errors[0]


def test_half_precision_rounds_inside_the_network_alone(pipelines: Callable[[str], Path]) -> None:
    full, half = (load(str(pipelines("sd")), device="cpu", torch_dtype=kind) for kind in ("float32", "bfloat16"))
    z = rng.normal((4, 16, 16), "test", [0, 1])
    found = [invert(model, z, ["a", "b"], Inversion(num_inference_steps=4)).latents for model in (full, half)]
    assert found[1].dtype == torch.float32
    assert 0 < apart(*found) < 0.1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "ddm"}, "did you mean 'ddim'"),
        ({"num_inference_steps": 0}, "num_inference_steps 0 must be at least 1"),
        ({"guidance_scale": inf}, "guidance_scale must be a finite number"),
        ({"guidance_scale": -1.0}, "guidance_scale must be a finite number"),
        ({"iterations": -1}, "iterations -1 must be at least 0"),
    ],
)
def test_bad_settings(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Inversion(**settings)


def test_what_it_costs() -> None:
    """Evaluations a sample and step, as counted."""
    model, calls = exact_model("gmm"), list[float]()
    exact = model.denoiser
    assert exact is not None

    def counted(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        calls.append(float(t))
        return exact(x, t, cond)

    z = data(model, 2)
    for how in (Inversion("ddim", 5), Inversion("ddim", 5, 3.0), Inversion("fixed-point", 5, 3.0), Inversion("negative-prompt", 5, 3.0)):
        calls.clear()
        invert(replace(model, denoiser=counted), z, [""] * 2, how)
        assert len(calls) == 5 * how.evaluations
    assert Inversion("null-text").evaluations == 33


@pytest.mark.parametrize("lacking", ["denoiser", "path", "condition"])
def test_a_model_that_lacks_a_part_is_told(lacking: str) -> None:
    model = replace(exact_model("gaussian"), **{lacking: None})  # type: ignore[arg-type]
    for act in (invert, replay):
        with pytest.raises(UserError, match=f"exact:gaussian has no {lacking}: choose another model"):
            act(model, torch.zeros(1, 1, 8, 8), [""], Inversion())


@pytest.mark.parametrize(
    ("latents", "prompts", "times", "told"),
    [
        (torch.zeros(2, 1, 8, 8), [""], None, "2 latents and 1 prompts"),
        (torch.zeros(2, 3, 8, 8), ["", ""], None, r"latents \[2, 3, 8, 8\] are not exact:gaussian's \[B, 1, 8, 8\]"),
        (torch.zeros(1, 8, 8), [""], None, "are not exact:gaussian's"),
        (torch.full((2, 1, 8, 8), nan), ["", ""], None, "no latent is finite"),
        (torch.zeros(0, 1, 8, 8), [], None, "no latent is finite"),
        (torch.zeros(1, 1, 8, 8), [""], (1.0, 67.0), "fall strictly"),
        (torch.zeros(1, 1, 8, 8), [""], (), "one or more"),
    ],
)
def test_bad_input(latents: Tensor, prompts: list[str], times: tuple[float, ...] | None, told: str) -> None:
    for act in (invert, replay):
        with pytest.raises(UserError, match=told) as caught:
            act(exact_model("gaussian"), latents, prompts, Inversion(num_inference_steps=5), times=times)
        assert "\n" not in str(caught.value)


def test_more_steps_than_the_path_has_levels() -> None:
    with pytest.raises(UserError, match="num_inference_steps: 2000 steps: choose at least 1 and at most 1000"):
        invert(exact_model("gaussian"), torch.zeros(1, 1, 8, 8), [""], Inversion(num_inference_steps=2000))


def test_pure_noise_under_a_network_that_predicts_noise_cannot_be_climbed_to() -> None:
    """At alpha 0 its x0 is no number; one that predicts v or x0 has an answer there, and is inverted."""
    model = replace(exact_model("gaussian"), path=NO_SIGNAL, name="zero-snr")

    def of_noise(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        eps = (x - NO_SIGNAL.alpha(t) * gaussian(NO_SIGNAL)(x, t)) / NO_SIGNAL.sigma(t)
        return ((x - NO_SIGNAL.sigma(t) * eps) / NO_SIGNAL.alpha(t)).float()

    def of_data(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        return gaussian(NO_SIGNAL)(x, t).float()

    z, how = rng.normal((1, 8, 8), "test", [0, 1]), Inversion(num_inference_steps=5)
    assert NO_SIGNAL.alpha(NO_SIGNAL.levels(5)[0]) == 0
    with pytest.raises(UserError, match=r"zero-snr cannot be inverted: its first level is pure noise.*times=model.path.levels\(n\)\[1:\]"):
        invert(replace(model, denoiser=of_noise), z, [""] * 2, how)
    assert bool(invert(replace(model, denoiser=of_noise), z, [""] * 2, how, times=NO_SIGNAL.levels(5)[1:]).latents.isfinite().all())
    assert bool(invert(replace(model, denoiser=of_data), z, [""] * 2, how).latents.isfinite().all())


@pytest.mark.parametrize("kind", [LCMScheduler, TCDScheduler])
def test_a_model_that_was_distilled_to_leaps_is_told(kind: Any, pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(pipelines("sd"), safety_checker=None)
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "fast")
    model = load(str(tmp_path / "fast"), device="cpu")
    with pytest.raises(UserError, match=f"fast cannot be inverted: {kind.__name__} leaps to data"):
        invert(model, torch.zeros(1, 4, 8, 8), [""], Inversion(num_inference_steps=4))
    assert "distilled" not in load(str(pipelines("sd")), device="cpu").identity


def test_an_inversion_that_loses_every_row_says_what_to_do() -> None:
    def exploding(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        return x * 1e30

    with pytest.raises(UserError, match="no latent of exact:gaussian comes out of the inversion finite: use more steps"):
        invert(replace(exact_model("gaussian"), denoiser=exploding), torch.ones(1, 1, 8, 8), [""], Inversion("fixed-point", 20))
