"""An interval at work in a pipeline: whose calls it changes, what it leaves behind, and what it refuses."""

import copy
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.load import load
from diffprobe.adapters.pipelines import InstructEditor, PipelineEditor, PixArtGenerator
from diffprobe.controls.guidance_interval import GuidanceInterval, apply
from diffprobe.errors import UserError
from diffprobe.model import EditSettings, Model
from tests.guided import EVERYWHERE, NOWHERE, PROMPTS, SCALE, STEPS, Folder, counted, deployed, loader, pipe_of
from tests.pipelines import BETAS


@pytest.fixture(scope="module")
def models(pipelines: Folder) -> Callable[[str], Model]:
    return loader(pipelines)


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


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_a_network_asked_within_a_callback_is_left_alone(models: Callable[[str], Model], family: str) -> None:
    """By a denoiser, and by name, both with halves that are equal and mean two prompts."""
    model = models(family)
    assert model.denoiser is not None
    assert model.condition is not None
    assert model.shape is not None
    denoiser, pipe = model.denoiser, pipe_of(model)
    x, cond = rng.normal(model.shape, "test.applied", [0]).repeat(2, 1, 1, 1), model.condition(["a red star", "blue star"])
    found = []

    def ask(pipe: Any, *_: Any) -> dict[str, Any]:
        found.append(denoiser(x, 0.5, cond))
        if family == "sd":
            found.append(pipe.unet(x, 500, cond).sample)
        return {}

    with torch.no_grad():
        ask(pipe)
    alone, unguided = found.copy(), deployed(pipe, 1.0)
    assert all(float((answer[0] - answer[1]).abs().max()) > 1e-3 for answer in alone)
    with apply(pipe, NOWHERE):
        assert torch.allclose(deployed(pipe, callback_on_step_end=ask), unguided, atol=1e-5)
    assert len(found) == (1 + STEPS) * len(alone)
    assert all(torch.equal(answer, alone[i % len(alone)]) for i, answer in enumerate(found))


def test_pipelines_of_one_network_in_two_threads(models: Callable[[str], Model]) -> None:
    """Both are inside the network at once, at every step; the interval concerns one of them."""
    one = pipe_of(models("sd"))
    parts = one.components | {"scheduler": copy.deepcopy(one.scheduler)}
    other = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    plain, unguided, together = deployed(other), deployed(one, 1.0), threading.Barrier(2, timeout=20)
    found: dict[str, Tensor] = {}
    failed: list[Exception] = []

    def meet(*_: Any) -> None:
        together.wait()

    def run(name: str, pipe: Any) -> None:
        try:
            found[name] = deployed(pipe)
        except (RuntimeError, ValueError) as error:
            together.abort()
            failed.append(error)

    meeting = one.unet.conv_in.register_forward_pre_hook(meet), one.unet.conv_out.register_forward_hook(meet)
    with apply(one, NOWHERE):
        threads = [threading.Thread(target=run, args=each) for each in (("one", one), ("other", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for handle in meeting:
        handle.remove()
    assert not failed
    assert torch.equal(found["other"], plain)
    assert torch.allclose(found["one"], unguided, atol=1e-5)


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


def test_a_copied_network_is_limited_by_nothing_and_told_of(models: Callable[[str], Model]) -> None:
    pipe = pipe_of(models("sd"))
    unet, plain, unguided = pipe.unet, deployed(pipe), deployed(pipe, 1.0)

    def on_a_copy(broken: bool) -> None:
        with apply(pipe, NOWHERE):
            pipe.unet = copy.deepcopy(unet)
            assert torch.equal(deployed(pipe), plain)
            if broken:
                raise KeyboardInterrupt

    try:
        with pytest.raises(UserError, match="replaced while an interval was at work") as caught:
            on_a_copy(broken=False)
        assert "\n" not in str(caught.value)
        assert torch.equal(deployed(pipe), plain)
        with apply(pipe, NOWHERE):
            assert torch.allclose(deployed(pipe), unguided, atol=1e-5)
        with pytest.raises(KeyboardInterrupt):
            on_a_copy(broken=True)
        handle = apply(pipe, NOWHERE)
        pipe.unet = None
        with pytest.warns(RuntimeWarning, match="never acted"):
            handle.remove()
        handle.remove()
    finally:
        pipe.unet = unet
    assert torch.equal(deployed(pipe), plain)


def test_an_interval_that_saw_no_call_says_so(models: Callable[[str], Model]) -> None:
    """As where the generator's pipeline has the interval and the editor runs, or a pipeline hides what calls its network."""
    model = models("sd")
    assert model.denoiser is not None
    x = rng.normal((4, 16, 16), "test.applied", range(2))

    class Hidden(StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.asked(*args)

        def asked(self, x: Tensor) -> Any:
            return self.unet(x, 1, encoder_hidden_states=torch.zeros(len(x), 16, 16))

    hidden = Hidden(**pipe_of(model).components, requires_safety_checker=False)
    with pytest.warns(RuntimeWarning, match="never acted: this Hidden did not call its network"), apply(hidden, NOWHERE):
        hidden(x)
    with pytest.warns(RuntimeWarning, match="never acted"), torch.no_grad(), apply(pipe_of(model), NOWHERE):
        model.denoiser(x, 500.0)
    with apply(pipe_of(model), NOWHERE):
        deployed(pipe_of(model), 1.0)


def test_an_answer_of_other_rows_is_refused(models: Callable[[str], Model]) -> None:
    pipe = pipe_of(models("sdxl"))
    handle = pipe.unet.register_forward_hook(lambda _, __, output: (torch.cat([output[0], output[0]]), *output[1:]))
    with pytest.raises(UserError, match="asked for 3 rows and gave 6"), apply(pipe, NOWHERE):
        deployed(pipe)
    handle.remove()


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


@pytest.mark.parametrize(("spacing", "steps"), [("karras_sigmas", 50), ("exponential_sigmas", 30), ("lu_lambdas", 30)])
def test_levels_that_a_rounded_clock_shows_alike_are_told_apart(pipelines: Folder, spacing: str, steps: int) -> None:
    """Whole times repeat where levels are near each other: an interval that ends between two such levels parts them."""
    pipe = pipe_of(load(str(pipelines("sd"))))
    scheduler = pipe.scheduler = DPMSolverMultistepScheduler(**BETAS, **{f"use_{spacing}": True})
    scheduler.set_timesteps(steps)
    again = int((scheduler.timesteps.diff() == 0).nonzero()[0]) + 1
    end = float((scheduler.sigmas[again - 1] * scheduler.sigmas[again]).sqrt())
    with counted(pipe) as rows, apply(pipe, GuidanceInterval(end)):
        deployed(pipe, num_inference_steps=steps)
    assert rows == [2 * len(PROMPTS)] * again + [len(PROMPTS)] * (steps - again)


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


@pytest.mark.parametrize("how", ["in place", "around"])
def test_a_network_that_is_compiled_while_an_interval_is_at_work(pipelines: Folder, how: str) -> None:
    pipe = pipe_of(load(str(pipelines("sd3"))))
    network, plain = pipe.transformer, deployed(pipe)
    with apply(pipe, GuidanceInterval(1.0)):
        expected = deployed(pipe)
        if how == "in place":
            network.compile(backend="eager")
        else:
            pipe.transformer = torch.compile(network, backend="eager")
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
