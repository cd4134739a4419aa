"""Guidance on an interval: in a deployed pipeline against our own loop, what it costs, and where it is proposed."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

import diffprobe as dp
from diffprobe import rng
from diffprobe.adapters.pipelines import PipelineEditor
from diffprobe.controls.guidance_interval import GuidanceInterval, apply, propose
from diffprobe.errors import UserError
from diffprobe.measures.stats import Estimate
from diffprobe.model import EditSettings, GenerateSettings, Model
from diffprobe.paths import RectifiedFlow, VarianceExploding, VariancePreserving
from diffprobe.sampling import Guidance, final, guided, noised, trajectory
from tests.guided import EVERYWHERE, FAMILIES, NOWHERE, PROMPTS, SCALE, SEEDS, STEPS, Folder, counted, deployed, loader, pipe_of


@pytest.fixture(scope="module")
def models(pipelines: Folder) -> Callable[[str], Model]:
    return loader(pipelines)


def middle(model: Model) -> GuidanceInterval:
    """The levels 3, 4 and 5 of 8, whose ends are levels themselves: the lower one is not inside, the upper one is."""
    assert model.path is not None
    ratios = [float(model.path.ratio(t)) for t in model.path.levels(STEPS)]
    return GuidanceInterval(ratios[6], ratios[3])


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
    assert propose([*estimates, *window("early", 5.0, None)]) == GuidanceInterval(0.3), "still deciding where the levels begin"
    assert propose(window("late", None, 2.0)) == GuidanceInterval(0.0, 2.0)


@pytest.mark.parametrize(
    ("estimates", "partition", "told"),
    [
        ([], None, "no window of decision among these estimates: give those of a run of the speciation probe"),
        (window("never", None, None, "nothing was decided"), None, "no interval to propose for any partition: nothing was decided"),
        ([*window("colour", 1, 2), *window("never", None, None, "flat")], "never", "no interval to propose for 'never': flat"),
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
