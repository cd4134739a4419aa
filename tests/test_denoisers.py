"""Networks as denoisers against the deployed pipelines: their own latents, their conditions, their clocks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.conditions import TextCondition
from diffprobe.adapters.load import load
from diffprobe.adapters.pipelines import PipelineGenerator
from diffprobe.adapters.schedulers import path_of, shown_ratio
from diffprobe.model import Model
from diffprobe.paths import RectifiedFlow
from diffprobe.sampling import Guidance, final, guided, trajectory
from tests.pipelines import BETAS

Folder = Callable[[str], Path]
PROMPTS, SEEDS, STEPS = ["a red star", "blue"], [3, 4], 6


def pipe_of(model: Model) -> Any:
    assert isinstance(model.generator, PipelineGenerator)
    return model.generator.pipe


def changed(source: Path, target: Path, file: str, **settings: Any) -> Path:
    """A copy of a saved pipeline with other settings in one of its files."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | settings))
    return target


def deployed(model: Model, scale: float, negative: str | None = None, **sides: int) -> Tensor:
    against = {} if negative is None else {"negative_prompt": [negative] * len(PROMPTS)}
    called = {"prompt": PROMPTS, **against, **sides, "num_inference_steps": STEPS, "guidance_scale": scale}
    latents: Tensor = pipe_of(model)(**called, generator=rng.generators(SEEDS), output_type="latent", return_dict=False)[0]
    return latents


def sampled(model: Model, scale: float, negative: str | None = None, shape: tuple[int, ...] | None = None) -> Tensor:
    """Our loop from the noise that the pipeline draws."""
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.path is not None
    assert model.shape is not None
    x = torch.cat([torch.randn(1, *(shape or model.shape), generator=generator) for generator in rng.generators(SEEDS)])
    guidance = Guidance(scale, negative=None if negative is None else model.condition([negative] * len(PROMPTS)))
    with torch.no_grad():
        denoiser = guided(model.denoiser, model.path, guidance)
        return final(trajectory(denoiser, model.path, x, model.path.levels(STEPS), cond=model.condition(PROMPTS)))


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_our_loop_is_the_deployed_one(pipelines: Folder, family: str) -> None:
    """Without guidance, with it, and away from a negative prompt; each of which differs from the others."""
    model = load(str(pipelines(family)))
    found = []
    for scale, negative in ((1.0, None), (5.0, None), (5.0, "red star")):
        theirs = deployed(model, scale, negative)
        assert torch.allclose(sampled(model, scale, negative), theirs, atol=1e-4)
        found.append(theirs)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    assert not torch.allclose(found[1], found[2], atol=1e-3)


def test_our_loop_is_the_deployed_one_for_a_network_that_predicts_v(pipelines: Folder, tmp_path: Path) -> None:
    folder = changed(pipelines("sdxl"), tmp_path / "v", "scheduler/scheduler_config.json", prediction_type="v_prediction")
    model, plain = load(str(folder)), load(str(pipelines("sdxl")))
    for scale in (1.0, 5.0):
        assert torch.allclose(sampled(model, scale), deployed(model, scale), atol=1e-4)
    assert not torch.allclose(deployed(model, 1.0), deployed(plain, 1.0), atol=0.1)


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_another_size_is_told_to_the_network(pipelines: Folder, family: str) -> None:
    """Stable Diffusion XL's U-Net is told the picture's size, which no latent of its native size would show."""
    model = load(str(pipelines(family)))
    assert model.shape is not None
    theirs = deployed(model, 5.0, height=48, width=64)
    assert torch.allclose(sampled(model, 5.0, shape=(model.shape[0], 24, 32)), theirs, atol=1e-4)


def test_both_parts_of_a_condition_count(pipelines: Folder) -> None:
    for family, t in (("sdxl", 500.0), ("sd3", 0.5)):
        model = load(str(pipelines(family)))
        assert model.denoiser is not None
        assert model.condition is not None
        assert model.shape is not None
        x, (a, b) = rng.normal(model.shape, "test.denoisers", [0]), (model.condition([prompt]) for prompt in PROMPTS)
        with torch.no_grad():
            plain, *mixed = (
                model.denoiser(x, t, cond) for cond in (a, TextCondition(a.states, b.pooled), TextCondition(b.states, a.pooled))
            )
        assert all(not torch.allclose(plain, one, atol=1e-4) for one in mixed)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_a_condition_has_a_row_a_prompt_and_encodes_each_prompt_once(pipelines: Folder, family: str) -> None:
    model = load(str(pipelines(family)))
    assert model.condition is not None
    seen: list[int] = []
    encoder = pipe_of(model).text_encoder
    handle = encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    repeated = model.condition([prompt for prompt in ("a", "b c", "") for _ in range(20)])
    handle.remove()
    assert seen == [3]
    assert len(repeated) == 60
    alone = model.condition(["b c", "a"])
    for one, other in zip(parts(repeated[20:60]), parts(model.condition(["b c"] * 20 + [""] * 20)), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    for one, other in zip(parts(repeated[torch.tensor([39, 19])]), parts(alone), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        assert not torch.allclose(other[0], other[1], atol=1e-3)


def parts(condition: Any) -> tuple[Tensor, ...]:
    if not isinstance(condition, TextCondition):
        return (condition,)
    assert condition.pooled is not None
    return condition.states, condition.pooled


def test_one_row_serves_a_batch_and_a_wrong_number_is_refused(pipelines: Folder) -> None:
    model = load(str(pipelines("sd3")))
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.shape is not None
    x, conditions = rng.normal(model.shape, "test.denoisers", range(3)), model.condition(["a", "b"])
    with torch.no_grad():
        whole = model.denoiser(x, 0.5, model.condition(["a"] * 3))
        assert torch.allclose(model.denoiser(x, 0.5, conditions[:1]), whole, atol=1e-5)
    with pytest.raises(RuntimeError, match="expanded size"):
        model.denoiser(x, 0.5, conditions)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "edm"])
def test_all_conditions_in_one_batch_are_each_alone(pipelines: Folder, family: str) -> None:
    """As a probe asks: the same x under K conditions, also with a time a sample."""
    model = load(str(pipelines(family)))
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.shape is not None
    x, t = rng.normal(model.shape, "test.denoisers", range(2)), {"sd3": 0.7, "edm": 2.0}.get(family, 601.0)
    with torch.no_grad():
        whole = model.denoiser(x.repeat(3, 1, 1, 1), t, model.condition([prompt for prompt in [*PROMPTS, ""] for _ in x]))
        alone = torch.cat([model.denoiser(x, torch.tensor([t, t]), model.condition([prompt] * 2)) for prompt in [*PROMPTS, ""]])
    assert torch.allclose(whole, alone, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("family", ["sd", "flow", "sd3"])
def test_no_condition_is_the_empty_prompt_asked_for_once(pipelines: Folder, family: str) -> None:
    model, encoded = load(str(pipelines(family))), []
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.shape is not None
    x, t = rng.normal(model.shape, "test.denoisers", range(2)), 500.0 if family == "sd" else 0.5
    pipe_of(model).text_encoder.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    with torch.no_grad():
        first, again = model.denoiser(x, t), model.denoiser(x, t)
        assert encoded == [1]
        assert torch.equal(first, again)
        assert torch.allclose(first, model.denoiser(x, t, model.condition(["", ""])), atol=1e-6)


def test_no_condition_is_what_stable_diffusion_xl_guides_away_from(pipelines: Folder, tmp_path: Path) -> None:
    """Zeros, which are not its empty prompt; the empty prompt itself where a pipeline is set so."""
    folder = changed(pipelines("sdxl"), tmp_path / "empty", "model_index.json", force_zeros_for_empty_prompt=False)
    x = rng.normal((4, 16, 16), "test.denoisers", range(2))
    for model, zeros in ((load(str(pipelines("sdxl"))), True), (load(str(folder)), False)):
        assert model.denoiser is not None
        assert model.condition is not None
        empty = model.condition(["", ""])
        given = pipe_of(model).encode_prompt(["", ""], device="cpu", do_classifier_free_guidance=True)
        assert torch.allclose(empty.states, given[0], atol=1e-6)
        assert torch.allclose(empty.pooled, given[2], atol=1e-6)
        with torch.no_grad():
            nothing, theirs = model.denoiser(x, 500.0), model.denoiser(x, 500.0, TextCondition(given[1], given[3]))
            assert torch.allclose(nothing, theirs, atol=1e-6)
            assert torch.allclose(nothing, model.denoiser(x, 500.0, empty), atol=1e-4) != zeros
        assert torch.allclose(sampled(model, 5.0), deployed(model, 5.0), atol=1e-4)


def test_a_refiner_has_no_denoiser_and_says_so(pipelines: Folder, tmp_path: Path) -> None:
    """Its U-Net is told a score in place of a size."""
    folder = tmp_path / "refiner"
    shutil.copytree(pipelines("sdxl"), folder)
    settings = dict(pipe_of(load(str(folder))).unet.config) | {"projection_class_embeddings_input_dim": 5 * 8 + 32}
    UNet2DConditionModel.from_config(settings).save_pretrained(folder / "unet")
    refiner = load(str(folder))
    assert refiner.denoiser is None
    assert refiner.facts["denoiser"].startswith("none: a refiner's U-Net takes an aesthetic score")


@pytest.mark.parametrize(
    ("scheduler", "end"),
    [
        (DDIMScheduler(**BETAS, set_alpha_to_one=False), 0.0),
        (DDIMScheduler(**BETAS, set_alpha_to_one=True), -1.0),
        (PNDMScheduler(**BETAS, skip_prk_steps=True), 0.0),
        (DDPMScheduler(**BETAS), -1.0),
        (EulerDiscreteScheduler(**BETAS), -1.0),
        (EulerDiscreteScheduler(**BETAS, final_sigmas_type="sigma_min"), 0.0),
        (LMSDiscreteScheduler(**BETAS), -1.0),
        (DPMSolverMultistepScheduler(**BETAS), -1.0),
        (DPMSolverMultistepScheduler(**BETAS, final_sigmas_type="sigma_min", solver_order=1), 0.0),
        (DEISMultistepScheduler(**BETAS), 0.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_path_ends_where_its_scheduler_arrives(scheduler: Any, end: float) -> None:
    scheduler.set_timesteps(7)
    before = scheduler.timesteps.clone()
    assert path_of(scheduler).end == end
    assert torch.equal(scheduler.timesteps, before), "asking must not set its steps"


def test_the_clock_of_a_network_tells_the_noise() -> None:
    """The level of a timestep is the scheduler's own sigma there, whatever it counts in."""
    for scheduler in (
        EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True),
        EulerDiscreteScheduler(**BETAS, timestep_type="continuous", prediction_type="v_prediction"),
        EDMEulerScheduler(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        DPMSolverMultistepScheduler(**BETAS, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
        DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True),
    ):
        scheduler.set_timesteps(9)
        path = path_of(scheduler)
        ratios = [shown_ratio(scheduler, path, t) for t in scheduler.timesteps]
        sigmas = scheduler.sigmas[:-1]
        expected = sigmas / (1 - sigmas) if isinstance(path, RectifiedFlow) else sigmas
        assert ratios == pytest.approx(expected.tolist(), rel=1e-4)
        assert shown_ratio(scheduler, path, scheduler.timesteps[1].expand(4)) == ratios[1], "a time a sample"


@pytest.mark.parametrize("steps", [10, 30, 50])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
        (DPMSolverMultistepScheduler, {"use_lu_lambdas": True}),
        (DPMSolverMultistepScheduler, {"use_exponential_sigmas": True}),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}),
        (UniPCMultistepScheduler, {"use_karras_sigmas": True}),
        (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
        (HeunDiscreteScheduler, {"use_karras_sigmas": True}),
        (KDPM2DiscreteScheduler, {"use_karras_sigmas": True}),
        (KDPM2DiscreteScheduler, {}),
        (KDPM2AncestralDiscreteScheduler, {"use_karras_sigmas": True}),
        (LMSDiscreteScheduler, {"use_karras_sigmas": True}),
        (DDIMScheduler, {"clip_sample": False}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "-".join(value),
)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
def test_every_level_of_a_whole_run_is_the_solvers_own(kind: Any, settings: dict[str, Any], steps: int) -> None:
    """Where x is 0 and the network says 1, a solver takes x0 to be -sigma/alpha, or -t on a flow, at the level that it counts with."""
    scheduler = kind(**BETAS, **settings)
    scheduler.set_timesteps(steps)
    path, x, shown, own = path_of(scheduler), torch.zeros(1, 4, 2, 2, dtype=torch.float64), [], []
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        shown.append(shown_ratio(scheduler, path, t))
        step = scheduler.step(torch.ones_like(x), t, x)
        x0 = scheduler.model_outputs[-1] if hasattr(scheduler, "model_outputs") else step.pred_original_sample
        own.append(-float(x0.flatten()[0]))
    expected = [level / (1 - level) for level in own] if isinstance(path, RectifiedFlow) else own
    assert shown == pytest.approx(expected, rel=1e-3)
    assert len(shown) >= steps


@pytest.mark.parametrize("first", [0, 47, 48])
def test_a_run_from_a_later_level_is_read_from_there(first: int) -> None:
    """As an edit sets it. Levels 47 and 48 show the network the same whole time."""
    scheduler = DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[47] == scheduler.timesteps[48]
    scheduler.set_begin_index(first)
    assert shown_ratio(scheduler, path_of(scheduler), scheduler.timesteps[first]) == float(scheduler.sigmas[first])
