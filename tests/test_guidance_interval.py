"""Guidance on an interval: in a deployed pipeline against our own loop, what it costs, what it leaves behind, and what it refuses."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

import diffprobe as dp
from diffprobe import rng
from diffprobe.adapters.load import load
from diffprobe.adapters.pipelines import InstructEditor, PipelineEditor, PipelineGenerator, PixArtGenerator
from diffprobe.controls.guidance_interval import GuidanceInterval, apply, propose
from diffprobe.errors import UserError
from diffprobe.measures.stats import Estimate
from diffprobe.model import EditSettings, GenerateSettings, Model
from diffprobe.paths import RectifiedFlow, VarianceExploding, VariancePreserving
from diffprobe.sampling import Guidance, final, guided, noised, trajectory
from tests.pipelines import BETAS

Folder = Callable[[str], Path]
PROMPTS, SEEDS, STEPS, SCALE = ["a red star", "blue star", "b"], [3, 4, 5], 8, 5.0
FAMILIES = ["sd", "sdxl", "sd3", "flow", "edm"]
EVERYWHERE, NOWHERE = GuidanceInterval(), GuidanceInterval(1e6, 2e6)


@pytest.fixture(scope="module")
def models(pipelines: Folder) -> Callable[[str], Model]:
    kept: dict[str, Model] = {}

    def model(family: str) -> Model:
        if family not in kept:
            kept[family] = load(str(pipelines(family)))
        return kept[family]

    return model


def pipe_of(model: Model) -> Any:
    assert isinstance(model.generator, PipelineGenerator)
    return model.generator.pipe


def network_of(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def deployed(pipe: Any, scale: float = SCALE, **more: Any) -> Tensor:
    called = {"prompt": PROMPTS, "num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "latent", "return_dict": False}
    latents: Tensor = pipe(**called, generator=rng.generators(SEEDS), **more)[0]
    return latents


def middle(model: Model) -> GuidanceInterval:
    """The levels 3, 4 and 5 of 8, whose ends are levels themselves: the lower one is not inside, the upper one is."""
    assert model.path is not None
    ratios = [float(model.path.ratio(t)) for t in model.path.levels(STEPS)]
    return GuidanceInterval(ratios[6], ratios[3])


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """The rows that the network evaluates, a number a call."""
    rows: list[int] = []
    network = network_of(pipe)
    inner = network.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        rows.append(len(args[0] if args else kwargs["hidden_states"]))
        return inner(*args, **kwargs)

    network.forward = forward
    try:
        yield rows
    finally:
        del network.forward


def test_an_interval_holds_its_upper_end_and_not_its_lower() -> None:
    interval = GuidanceInterval(0.5, 2.0)
    assert [interval.guides(sigma) for sigma in (0.4, 0.5, 0.51, 1.0, 2.0, 2.01, math.inf)] == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    assert EVERYWHERE.guides(1e-9)
    assert EVERYWHERE.guides(math.inf)
    assert [interval.guides(sigma) for sigma in (0.500001, 2.000001)] == [False, True], "as a clock in float32 shows the ends"


def test_what_an_interval_costs() -> None:
    path = VarianceExploding()
    levels = path.levels(32)
    interval = GuidanceInterval(levels[23], levels[17])  # the published choice for EDM2-XXL: steps 17 to 22 of 32
    assert interval.share(path, 32) == 6 / 32
    assert interval.evaluations(path, 32) == 32 + 6
    assert EVERYWHERE.evaluations(RectifiedFlow(3.0), 28) == 56, "pure noise has a level too"
    assert NOWHERE.share(VariancePreserving.scaled_linear(), 50) == 0


@pytest.mark.parametrize(
    ("lo", "hi"), [(1.0, 1.0), (2.0, 1.0), (-0.1, 1.0), (math.nan, 1.0), (0.0, math.nan), (math.inf, math.inf), (0, 0)]
)
def test_an_interval_that_holds_nothing_is_refused(lo: float, hi: float) -> None:
    with pytest.raises(UserError, match="give 0 <= lo < hi") as caught:
        GuidanceInterval(lo, hi)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("negative", [None, "red star"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_deployed_pipeline_guides_as_our_loop_does(models: Callable[[str], Model], family: str, negative: str | None) -> None:
    model = models(family)
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.path is not None
    assert model.shape is not None
    pipe, interval = pipe_of(model), middle(model)
    away = None if negative is None else [negative] * len(PROMPTS)
    against: dict[str, Any] = {} if negative is None else {"negative_prompt": away}
    with counted(pipe) as rows, apply(pipe, interval):
        theirs = deployed(pipe, **against)
    batch = len(PROMPTS)
    assert rows == [batch] * 3 + [2 * batch] * 3 + [batch] * 2
    assert sum(rows) == batch * interval.evaluations(model.path, STEPS)
    x = torch.cat([torch.randn(1, *model.shape, generator=generator) for generator in rng.generators(SEEDS)])
    x = x * pipe.scheduler.init_noise_sigma if family == "edm" else x
    guidance = Guidance(SCALE, interval.lo, interval.hi, None if away is None else model.condition(away))
    with torch.no_grad():
        denoiser = guided(model.denoiser, model.path, guidance)
        ours = final(trajectory(denoiser, model.path, x, model.path.levels(STEPS), cond=model.condition(PROMPTS)))
    if family == "flow":  # its solver shows the network whole times only, guided or not
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02
    else:
        assert torch.allclose(ours, theirs, atol=1e-4)
    full, none = deployed(pipe, **against), deployed(pipe, 1.0, **against)
    assert all(float((theirs - other).abs().max()) > 1e-2 for other in (full, none)), "neither full guidance nor none"


@pytest.mark.parametrize("family", FAMILIES)
def test_all_levels_are_the_plain_pipeline_and_no_level_is_no_guidance(models: Callable[[str], Model], family: str) -> None:
    pipe = pipe_of(models(family))
    plain, unguided = deployed(pipe), deployed(pipe, 1.0)
    with apply(pipe, EVERYWHERE):
        assert torch.equal(deployed(pipe), plain)
    with apply(pipe, NOWHERE), counted(pipe) as rows:
        nowhere = deployed(pipe)
        assert rows == [len(PROMPTS)] * STEPS
        assert torch.equal(deployed(pipe, 1.0), unguided), "a pipeline that does not guide has nothing to spare"
    assert torch.allclose(nowhere, unguided, atol=1e-5)
    assert not torch.allclose(plain, unguided, atol=1e-2)
    assert torch.equal(deployed(pipe), plain), "nothing is left behind"


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_guides_on_the_interval_too(models: Callable[[str], Model], family: str) -> None:
    """The last steps alone run; an interval counts in sigma, so those that an edit starts below are never guided."""
    model = models(family)
    assert isinstance(model.editor, PipelineEditor)
    assert model.codec is not None
    latents = model.codec.encode(torch.sigmoid(rng.normal((3, 32, 32), "test.interval", range(3))))

    def edited(scale: float) -> Tensor:
        assert model.editor is not None
        found = model.editor.edit(latents, PROMPTS, SEEDS, EditSettings(0.6, STEPS, scale)).latents
        assert found is not None
        return found

    plain, unguided, level = edited(SCALE), edited(1.0), model.editor.level(0.6, STEPS)
    pipe = model.editor.pipe
    with apply(pipe, GuidanceInterval(level.sigma * 1.01)):
        assert torch.allclose(edited(SCALE), unguided, atol=1e-5)
    with apply(pipe, GuidanceInterval(0, level.sigma)):
        assert torch.equal(edited(SCALE), plain)
    interval = GuidanceInterval(0, level.sigma * 0.99)
    with counted(pipe) as rows, apply(pipe, interval):
        theirs = edited(SCALE)
    assert rows == [3] + [6] * (level.steps - 1)
    assert all(float((theirs - other).abs().max()) > 1e-3 for other in (plain, unguided))


def test_an_edit_is_what_our_loop_gives_from_its_level(models: Callable[[str], Model]) -> None:
    model = models("sd")
    assert isinstance(model.editor, PipelineEditor)
    assert model.codec is not None
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.path is not None
    latents = model.codec.encode(torch.sigmoid(rng.normal((3, 32, 32), "test.interval", range(3))))
    times = model.path.levels(STEPS)[-4:]
    interval = GuidanceInterval(float(model.path.ratio(times[2])), float(model.path.ratio(times[1])))
    with apply(model.editor.pipe, interval):
        theirs = model.editor.edit(latents, PROMPTS, SEEDS, EditSettings(0.5, STEPS, SCALE)).latents
    noise = torch.cat([torch.randn(1, 4, 16, 16, generator=generator) for generator in rng.generators(SEEDS)])
    with torch.no_grad():
        denoiser = guided(model.denoiser, model.path, Guidance(SCALE, interval.lo, interval.hi))
        x = noised(model.path, latents, times[0], noise)
        ours = final(trajectory(denoiser, model.path, x, times, cond=model.condition(PROMPTS)))
    assert theirs is not None
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_rescaled_guidance_is_rescaled_inside_alone(models: Callable[[str], Model]) -> None:
    pipe = pipe_of(models("sdxl"))
    rescaled = deployed(pipe, guidance_rescale=0.7)
    assert not torch.allclose(rescaled, deployed(pipe), atol=1e-2)
    with apply(pipe, EVERYWHERE):
        assert torch.equal(deployed(pipe, guidance_rescale=0.7), rescaled)
    with apply(pipe, NOWHERE):
        assert torch.allclose(deployed(pipe, guidance_rescale=0.7), deployed(pipe, 1.0), atol=1e-4)


def test_guidance_by_skipped_layers_stays_as_it_is(models: Callable[[str], Model]) -> None:
    """Its third call has a batch of its own. Two equal seeds make that look like [negative; positive]."""
    pipe = pipe_of(models("sd3"))

    def skipping(scale: float) -> Tensor:
        called = {"num_inference_steps": 4, "output_type": "latent", "return_dict": False, "generator": rng.generators([7, 7])}
        skipped = {"skip_guidance_layers": [0], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 2.0}
        latents: Tensor = pipe(prompt=["a red star", "b"], guidance_scale=scale, **called, **skipped)[0]
        return latents

    plain = skipping(SCALE)
    with apply(pipe, EVERYWHERE):
        assert torch.equal(skipping(SCALE), plain)
    with apply(pipe, NOWHERE), counted(pipe) as rows:
        assert torch.allclose(skipping(SCALE), skipping(1 + 1e-6), atol=1e-4)
        assert rows[:2] == [2, 2]


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_network_asked_by_others_is_left_alone(models: Callable[[str], Model], family: str) -> None:
    """The editor shares the generator's network; a denoiser asks it with batches whose halves are equal and mean two prompts."""
    model = models(family)
    assert isinstance(model.editor, PipelineEditor)
    assert model.codec is not None
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.shape is not None
    latents = model.codec.encode(torch.sigmoid(rng.normal((3, 32, 32), "test.interval", range(2))))
    x, cond, t = rng.normal(model.shape, "test.interval.x", [0]).repeat(2, 1, 1, 1), model.condition(["a", "b"]), 0.5
    settings = EditSettings(0.6, STEPS, SCALE)
    with torch.no_grad():
        plain, edited = model.denoiser(x, t, cond), model.editor.edit(latents, ["a", "b"], [1, 2], settings).images
        assert not torch.allclose(plain[0], plain[1], atol=1e-3)
        with apply(pipe_of(model), NOWHERE):
            deployed(pipe_of(model))
            assert torch.equal(model.denoiser(x, t, cond), plain)
            assert torch.equal(model.editor.edit(latents, ["a", "b"], [1, 2], settings).images, edited)
            with apply(model.editor.pipe, NOWHERE):
                assert not torch.allclose(model.editor.edit(latents, ["a", "b"], [1, 2], settings).images, edited, atol=1e-3)
            assert torch.equal(model.editor.edit(latents, ["a", "b"], [1, 2], settings).images, edited)


def test_a_handle_restores_the_pipeline_whatever_happens(models: Callable[[str], Model]) -> None:
    pipe = pipe_of(models("sd"))
    unet, plain = pipe.unet, deployed(pipe)
    before = (dict(vars(unet)), unet.forward, len(unet._forward_hooks), len(unet._forward_pre_hooks))
    handle = apply(pipe, NOWHERE)
    assert not torch.allclose(deployed(pipe), plain, atol=1e-2)
    with pytest.raises(UserError, match="on an interval already: remove that one first"):
        apply(pipe, EVERYWHERE)
    handle.remove()
    handle.remove()
    assert torch.equal(deployed(pipe), plain)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), apply(pipe, NOWHERE):
        deployed(pipe, callback_on_step_end=stop)
    assert (dict(vars(unet)), unet.forward, len(unet._forward_hooks), len(unet._forward_pre_hooks)) == before
    assert torch.equal(deployed(pipe), plain)

    def fail(*_: Any) -> None:
        raise ValueError("in the network")

    unguided, broken = deployed(pipe, 1.0), unet.conv_in.register_forward_pre_hook(fail)
    with apply(pipe, NOWHERE):
        with pytest.raises(ValueError, match="in the network"):
            deployed(pipe)
        broken.remove()
        assert torch.equal(deployed(pipe, 1.0), unguided), "a failed call leaves nothing for the next"
        assert torch.allclose(deployed(pipe), unguided, atol=1e-5)


@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, UniPCMultistepScheduler, EDMEulerScheduler])
def test_other_solvers_guide_where_their_own_clock_says(pipelines: Folder, kind: Any) -> None:
    """Heun asks twice a step, UniPC rounds its clock, EDM's is a logarithm; each is set after the interval."""
    pipe = pipe_of(load(str(pipelines("sd"))))
    with apply(pipe, GuidanceInterval(1.0)) as handle, counted(pipe) as rows:
        pipe.scheduler = kind(use_karras_sigmas=True, **BETAS) if kind is not EDMEulerScheduler else kind()
        deployed(pipe)
        sigmas = pipe.scheduler.sigmas[: len(rows)]
        assert rows == [6 if sigma > 1 else 3 for sigma in sigmas.tolist()]
        assert {3, 6} == set(rows)
        handle.remove()


@pytest.mark.parametrize("how", ["in place", "around", "wrapped"])
def test_networks_that_are_compiled_or_wrapped(pipelines: Folder, how: str) -> None:
    """Compiled before the interval comes, having run on whole batches; wrapped as accelerate's offloading does it."""
    pipe = pipe_of(load(str(pipelines("sd3"))))
    with apply(pipe, GuidanceInterval(1.0)):
        expected = deployed(pipe)
    network, inner = pipe.transformer, pipe.transformer.forward
    if how == "in place":
        network.compile(backend="eager")
    elif how == "around":
        pipe.transformer = torch.compile(network, backend="eager")
    else:
        network.forward = partial(inner)
    plain = deployed(pipe)
    with apply(pipe, GuidanceInterval(1.0)):
        assert torch.allclose(deployed(pipe), expected, atol=1e-5)
        with pytest.raises(UserError, match="already"):
            apply(pipe, EVERYWHERE)
    assert torch.allclose(deployed(pipe), plain, atol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_a_pipeline_that_guides_otherwise_is_refused(pipelines: Folder) -> None:
    editor, pixart, sd = (load(str(pipelines(family))) for family in ("edit", "pixart", "sd"))
    assert isinstance(editor.editor, InstructEditor)
    assert isinstance(pixart.generator, PixArtGenerator)
    small = {"num_layers": 0, "num_single_layers": 0, "attention_head_dim": 8, "num_attention_heads": 1, "axes_dims_rope": (2, 2, 4)}
    flux = {
        embeds: FluxPipeline(
            FlowMatchEulerDiscreteScheduler(),
            sd_vae(sd),
            None,
            None,
            None,
            None,
            FluxTransformer2DModel(in_channels=4, joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=embeds, **small),
        )
        for embeds in (True, False)
    }
    cases = {
        "an InstructPix2Pix": (editor.editor.pipe, "does not guide by one call on the batch"),
        "PixArt": (pixart.generator.pipe, "does not guide by one call on the batch"),
        "Flux-dev": (flux[True], "distilled into its network, which runs once a step"),
        "Flux-schnell": (flux[False], "does not guide by one call on the batch"),
        "a model": (sd, "a Model is no diffusers pipeline: give the pipeline itself, such as model.generator.pipe"),
    }
    for pipe, told in cases.values():
        with pytest.raises(UserError, match=told) as caught:
            apply(pipe, EVERYWHERE)
        assert "\n" not in str(caught.value)


def sd_vae(model: Model) -> Any:
    return pipe_of(model).vae


def test_a_batch_that_is_no_pair_of_halves_is_refused_when_it_comes(pipelines: Folder) -> None:
    """As where a pipeline guides by three parts, or by two calls."""

    class Twofold(StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(self, x: Tensor) -> Any:
            self._guidance_scale = 5.0
            return self.unet(x, 1, encoder_hidden_states=torch.zeros(len(x), 16, 16))

    pipe = Twofold(**pipe_of(load(str(pipelines("sd")))).components, requires_safety_checker=False)
    for rows in (3, 2):
        with apply(pipe, NOWHERE), pytest.raises(UserError, match="a Twofold does not guide by one call"):
            pipe(rng.normal((4, 16, 16), "test.interval", range(rows)))


def window(name: str, lo: float | None, hi: float | None, reason: str | None = None) -> list[Estimate]:
    facets = {"partition": name}
    return [
        Estimate("speciation", "window_lo", lo, None, None, 64, "sigma", facets, reason),
        Estimate("speciation", "window_hi", hi, None, None, 64, "sigma", facets, reason),
        Estimate("speciation", "window_lo", 12.0, None, None, 64, "step", facets),
        Estimate("speciation", "peak", 1.0, None, None, 64, "sigma", facets),
    ]


def test_an_interval_is_proposed_where_the_class_is_decided() -> None:
    estimates = [*window("colour", 2.0, 9.0), *window("detail", 0.3, 1.5), *window("never", None, None, "nothing was decided")]
    assert propose(estimates) == GuidanceInterval(0.3, 9.0)
    assert propose(iter(estimates), partition="colour") == GuidanceInterval(2.0, 9.0)
    pushed = [replace(e, facets={**e.facets, "guidance": "5"}) for e in window("colour", 0.1, 50.0)]
    assert propose([*estimates, *pushed]) == GuidanceInterval(0.3, 9.0), "a profile under guidance tells of that guidance"


@pytest.mark.parametrize(
    ("estimates", "partition", "told"),
    [
        ([], None, "no window of decision among these estimates: give those of a run of the speciation probe"),
        (window("never", None, None, "nothing was decided"), None, "no interval to propose for any partition: nothing was decided"),
        ([*window("colour", 1, 2), *window("never", None, None, "flat")], "never", "no interval to propose for 'never': flat"),
        (window("open", 1.0, None), None, "no interval to propose for any partition: its window has one end only"),
        (window("colour", 1.0, 2.0), "color", "unknown partition 'color': did you mean 'colour'"),
        (window("colour", 2.0, 2.0), None, "give 0 <= lo < hi"),
    ],
)
def test_what_decides_nothing_proposes_nothing(estimates: list[Estimate], partition: str | None, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        propose(estimates, partition=partition)
    assert "\n" not in str(caught.value)


def test_the_package_offers_the_controls(models: Callable[[str], Model]) -> None:
    assert dp.controls.GuidanceInterval is GuidanceInterval
    model = models("sd")
    pipe, generator = pipe_of(model), model.generator
    assert generator is not None
    assert isinstance(pipe.scheduler, DDIMScheduler)
    settings = GenerateSettings(4, SCALE)
    plain = generator.generate(["a"], [1], settings)
    with dp.controls.apply(pipe, dp.controls.GuidanceInterval(0.5, 2.0)):
        assert not torch.allclose(generator.generate(["a"], [1], settings), plain, atol=1e-4)
