"""A geometry guide at work in deployed pipelines: every prediction, solver and family, beside an interval, and what is refused."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.denoisers import Convention
from diffprobe.adapters.families.stable_diffusion import UNetDenoiser
from diffprobe.adapters.load import load
from diffprobe.adapters.pipelines import InstructEditor, PixArtGenerator
from diffprobe.adapters.schedulers import path_of, shown_ratio
from diffprobe.controls import GuidanceInterval, apply
from diffprobe.controls.geometry_guidance import _scales, apply_guide, steered
from diffprobe.errors import UserError
from diffprobe.model import Denoiser, Model
from diffprobe.paths import NoisePath, VarianceExploding
from diffprobe.sampling import Guidance, final, guided, trajectory
from tests.guided import FAMILIES, NOWHERE, PROMPTS, SCALE, SEEDS, STEPS, Folder, deployed, loader, network_of, pipe_of
from tests.guides import told, untrained
from tests.pipelines import BETAS


@pytest.fixture(scope="module")
def models(pipelines: Folder) -> Callable[[str], Model]:
    return loader(pipelines)


def latents_of(family: str) -> tuple[int, int, int]:
    return (16 if family == "sd3" else 4, 16, 16)


def ours(model: Model, pipe: Any, wrap: Callable[[Denoiser, NoisePath], Denoiser], interval: GuidanceInterval | None = None) -> Tensor:
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.path is not None
    assert model.shape is not None
    x = torch.cat([torch.randn(1, *model.shape, generator=generator) for generator in rng.generators(SEEDS)])
    if isinstance(model.path, VarianceExploding):
        x = x * pipe.scheduler.init_noise_sigma
    interval = interval or GuidanceInterval()
    denoiser = guided(model.denoiser, model.path, Guidance(SCALE, interval.lo, interval.hi))
    with torch.no_grad():
        loop = trajectory(wrap(denoiser, model.path), model.path, x, model.path.levels(STEPS), cond=model.condition(PROMPTS))
        return final(loop)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deployed_pipeline_is_steered_as_our_loop_is(models: Callable[[str], Model], family: str) -> None:
    model = models(family)
    pipe, guide = pipe_of(model), untrained(latents_of(family))
    plain = deployed(pipe)
    with apply_guide(pipe, guide, 0.0):
        assert torch.equal(deployed(pipe), plain)
    with apply_guide(pipe, guide, 0.8):
        theirs = deployed(pipe)
    mine = ours(model, pipe, lambda denoiser, path: steered(denoiser, path, guide, 0.8))
    if family == "flow":  # its solver shows the network whole times only, steered or not
        assert float((mine - theirs).norm() / theirs.norm()) < 0.02
    else:
        assert torch.allclose(mine, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max()) / 10))
    assert float((theirs - plain).abs().max()) > 1e-2
    assert torch.equal(deployed(pipe), plain), "nothing is left behind"


@pytest.mark.parametrize("order", ["guide first", "interval first"])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_guide_beside_an_interval(models: Callable[[str], Model], family: str, order: str) -> None:
    """Outside the interval the network sees half of the batch: the guide steers at all levels alike."""
    model = models(family)
    pipe, guide = pipe_of(model), untrained(latents_of(family))
    assert model.path is not None
    ratios = [float(model.path.ratio(t)) for t in model.path.levels(STEPS)]
    interval = GuidanceInterval(ratios[6], ratios[3])
    with ExitStack() as at_work:
        for control in sorted(("guide", "interval"), reverse=order == "interval first"):
            at_work.enter_context(apply_guide(pipe, guide, 0.8) if control == "guide" else apply(pipe, interval))
        theirs = deployed(pipe)
    mine = ours(model, pipe, lambda denoiser, path: steered(denoiser, path, guide, 0.8), interval)
    assert torch.allclose(mine, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max()) / 10))
    with apply_guide(pipe, guide, 0.8):
        assert not torch.allclose(deployed(pipe), theirs, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DDIMScheduler, {"prediction_type": "v_prediction"}),
        (DDIMScheduler, {"prediction_type": "sample"}),
        (EulerDiscreteScheduler, {"prediction_type": "epsilon"}),
        (EulerDiscreteScheduler, {"prediction_type": "v_prediction"}),
    ],
)
def test_other_predictions_and_solvers_are_steered_as_our_loop_is(pipelines: Folder, kind: Any, settings: dict[str, Any]) -> None:
    model = load(str(pipelines("sd")))
    pipe, guide = pipe_of(model), untrained((4, 16, 16))
    more = {"clip_sample": False, "set_alpha_to_one": False} if kind is DDIMScheduler else {"timestep_spacing": "leading"}
    pipe.scheduler = kind(**BETAS, **settings, **more, steps_offset=1)
    path = path_of(pipe.scheduler)
    denoiser = UNetDenoiser(pipe.unet, Convention(path, settings["prediction_type"]), lambda: model.condition([""]))  # type: ignore[misc]
    with apply_guide(pipe, guide, 0.8):
        theirs = deployed(pipe)
    mine = ours(replace(model, denoiser=denoiser, path=path), pipe, lambda denoiser, path: steered(denoiser, path, guide, 0.8))
    assert torch.allclose(mine, theirs, atol=1e-4 * max(1.0, float(theirs.abs().max()) / 10))
    assert float((theirs - deployed(pipe)).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("kind", "predictions", "settings"),
    [
        (DDIMScheduler, ("epsilon", "v_prediction", "sample"), {**BETAS, "clip_sample": False}),
        (EulerDiscreteScheduler, ("epsilon", "v_prediction"), BETAS),
        (EDMEulerScheduler, ("epsilon", "v_prediction"), {"sigma_data": 0.5}),
        (EDMDPMSolverMultistepScheduler, ("epsilon", "v_prediction"), {"sigma_data": 0.5}),
        (DPMSolverMultistepScheduler, ("epsilon", "v_prediction", "sample"), BETAS),
        (DPMSolverMultistepScheduler, ("epsilon", "sample", "flow_prediction"), {**BETAS, "use_flow_sigmas": True, "flow_shift": 3.0}),
        (UniPCMultistepScheduler, ("epsilon", "v_prediction", "sample"), BETAS),
        (UniPCMultistepScheduler, ("epsilon", "sample", "flow_prediction"), {**BETAS, "use_flow_sigmas": True, "flow_shift": 3.0}),
        (FlowMatchEulerDiscreteScheduler, ("flow_prediction",), {"shift": 3.0}),
    ],
)
def test_what_a_change_of_noise_is_to_each_solver(kind: Any, predictions: tuple[str, ...], settings: dict[str, Any]) -> None:
    """By the solver's own algebra: its x_0 moves by -r times the change, and its input in the guide's scale is a unit latent."""
    for prediction in predictions:
        scheduler = kind(**settings, **({} if kind is FlowMatchEulerDiscreteScheduler else {"prediction_type": prediction}))
        scheduler.set_timesteps(6)
        path = path_of(scheduler)
        sample, answer, change = (rng.normal((4, 3, 3), f"test.guide.{name}", [0]).double() for name in ("sample", "answer", "change"))
        for index, t in enumerate(scheduler.timesteps):
            if hasattr(scheduler, "sigmas"):
                scheduler._step_index = index
            ratio = shown_ratio(scheduler, path, t)
            if not math.isfinite(ratio):
                continue
            shown, answered = _scales(scheduler, path, ratio)
            before, after = (clean(scheduler, one, sample, t) for one in (answer, answer + answered * change))
            assert torch.allclose(after - before, -ratio * change, rtol=1e-4, atol=1e-5 * (1 + ratio)), (prediction, ratio)
            alpha = 1 if works_unscaled(scheduler) else float(path.alpha(path.time(ratio)))
            assert torch.allclose(scaled(scheduler, sample, t) * shown * alpha * math.hypot(1, ratio), sample, rtol=1e-3)


def works_unscaled(scheduler: Any) -> bool:
    """Whether a solver works in x_0 + sigma eps."""
    return isinstance(scheduler, EulerDiscreteScheduler | EDMEulerScheduler | EDMDPMSolverMultistepScheduler)


def scaled(scheduler: Any, sample: Tensor, t: Any) -> Tensor:
    shown: Tensor = scheduler.scale_model_input(sample, t) if hasattr(scheduler, "scale_model_input") else sample
    return shown


def clean(scheduler: Any, answer: Tensor, sample: Tensor, t: Any) -> Tensor:
    """x_0 by the solver's own formulas, and by that of a flow where it has none to ask."""
    found: Tensor
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        found = sample - scheduler.sigmas[scheduler.step_index] * answer
        return found
    if isinstance(scheduler, EDMEulerScheduler | EDMDPMSolverMultistepScheduler):
        return torch.as_tensor(scheduler.precondition_outputs(sample, answer, scheduler.sigmas[scheduler.step_index]))
    if hasattr(scheduler, "convert_model_output"):
        found = scheduler.convert_model_output(answer, sample=sample)
        return found
    if isinstance(scheduler, EulerDiscreteScheduler):
        scheduler.is_scale_input_called = True
    found = scheduler.step(answer, t, sample).pred_original_sample
    if hasattr(scheduler, "_step_index"):
        scheduler._step_index -= 1
    return found


def test_what_else_a_network_says_and_who_else_asks_is_left_alone(pipelines: Folder, models: Callable[[str], Model]) -> None:
    """PixArt's network also tells a variance; a denoiser asks the same network, within a callback too."""
    pixart = load(str(pipelines("pixart"))).generator
    assert isinstance(pixart, PixArtGenerator)
    guide, answers = untrained((4, 32, 32)), []
    handle = pixart.pipe.transformer.register_forward_hook(lambda _, __, output: answers.append(output[0].clone()))
    called = {"num_inference_steps": 2, "clean_caption": False, "output_type": "latent", "generator": None}
    with apply_guide(pixart.pipe, guide, 0.8):
        changed = pixart.pipe.transformer.register_forward_hook(lambda _, __, output: answers.append(output[0].clone()))
        pixart.pipe("a red star", **called | {"generator": rng.generators([3])})
    handle.remove()
    changed.remove()
    before, after = answers[0], answers[1]
    assert torch.equal(before[:, 4:], after[:, 4:])
    assert before.shape[1] == 8
    assert torch.equal((after - before)[0, :4].isfinite(), torch.ones(4, 32, 32, dtype=torch.bool))
    assert torch.allclose((after - before)[0], (after - before)[1], atol=1e-5)
    assert float((after - before)[:, :4].abs().max()) > 1e-4

    model = models("sd")
    assert model.denoiser is not None
    denoiser, pipe, found = model.denoiser, pipe_of(model), []
    x = rng.normal((4, 16, 16), "test.guide.x", range(2))
    with torch.no_grad():
        alone = denoiser(x, 500.0)

    def ask(*_: Any) -> dict[str, Any]:
        found.append(denoiser(x, 500.0))
        return {}

    with apply_guide(pipe, untrained((4, 16, 16)), 0.8):
        deployed(pipe, callback_on_step_end=ask)
    assert len(found) == STEPS
    assert all(torch.equal(one, alone) for one in found)


@pytest.mark.parametrize("how", ["in place", "around"])
def test_compiled_networks_and_half_precision(pipelines: Folder, how: str) -> None:
    pipe, guide = pipe_of(load(str(pipelines("sd3")))), untrained((16, 16, 16))
    with apply_guide(pipe, guide, 0.8):
        expected = deployed(pipe)
        if how == "in place":
            pipe.transformer.compile(backend="eager")
        else:
            pipe.transformer = torch.compile(pipe.transformer, backend="eager")
        assert torch.allclose(deployed(pipe), expected, atol=1e-5)
        with pytest.raises(UserError, match="steered by a guide already: remove that one first"):
            apply_guide(pipe, guide, 0.8)
    if how == "in place":
        pipe.to(torch.bfloat16)
        with apply_guide(pipe, guide, 0.8):
            rough = deployed(pipe)
        assert rough.dtype == torch.bfloat16
        assert float((rough.float() - expected).norm() / expected.norm()) < 0.05


def test_what_cannot_be_steered_is_refused(models: Callable[[str], Model], pipelines: Folder) -> None:
    guide, pipe = untrained((4, 16, 16)), pipe_of(models("sd"))
    for strength in (math.nan, math.inf):
        told("a strength is a finite number", lambda: apply_guide(pipe, guide, strength))  # noqa: B023
    told("a Model is no diffusers pipeline", lambda: apply_guide(models("sd"), guide, 1.0))
    told("takes 16 channels, and the guide knows latents of 4", lambda: apply_guide(pipe_of(models("sd3")), guide, 1.0))
    editor = load(str(pipelines("edit"))).editor
    assert isinstance(editor, InstructEditor)
    told("takes 8 channels, .* only pipelines whose network sees the noisy latent alone", lambda: apply_guide(editor.pipe, guide, 1.0))
    with apply_guide(pipe, untrained((4, 8, 8)), 1.0):
        told(r"trained on latents \[4, 8, 8\], not \[4, 16, 16\]", lambda: deployed(pipe))
    with apply_guide(pipe, guide, 1.0):
        told("steered by a guide already: remove that one first", lambda: apply_guide(pipe, guide, 1.0))
        with apply(pipe, NOWHERE):
            deployed(pipe)
    with pytest.warns(RuntimeWarning, match="the guide never acted"), apply_guide(pipe, guide, 1.0):
        pass
    unet = pipe.unet
    handle = apply_guide(pipe, guide, 1.0)
    pipe.unet = network_of(pipe_of(load(str(pipelines("sd")))))
    told("replaced while a guide was at work, and the new one was not steered: .* then apply the guide", handle.remove)
    pipe.unet = unet
