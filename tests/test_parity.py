"""Parity with the deployed pipelines, a row a family: the same image from the same noise, the same E[x_0 | x_t], the same codec."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.adapters.conditions import TextCondition
from diffprobe.adapters.families import FAMILIES
from diffprobe.adapters.families.flux import FluxDenoiser
from diffprobe.adapters.load import load
from diffprobe.adapters.pipelines import PipelineEditor, network_of
from diffprobe.model import EditSettings, GenerateSettings, Model
from diffprobe.paths import RectifiedFlow, VariancePreserving
from diffprobe.sampling import Guidance, final, guided, trajectory

Folder = Callable[[str], Path]
SEEDS, STEPS = (3, 4), 5


@dataclass(frozen=True)
class Row:
    """A family as the suite asks it: the saved folder, what its scheduler is changed to, prompts, scales, and a size in pixels."""

    family: str
    folder: str
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    prompts: tuple[str, str] = ("a red star", "blue")
    scales: tuple[float, ...] = (1.0, 5.0)
    negative: str | None = "red star"
    sides: tuple[int, int] | None = None
    close: float = 1e-3

    def __str__(self) -> str:
        return self.folder + "".join(f"-{value}" for value in self.scheduler.values())


EDM = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
ROWS = (
    Row("StableDiffusion", "sd"),
    Row("StableDiffusion", "sd", {"timestep_spacing": "trailing"}),
    Row("StableDiffusion", "v2", sides=(32, 48)),
    Row("StableDiffusion", "flow", {"prediction_type": "flow_prediction"}, close=0.03),  # its solver shows whole times alone
    Row("StableDiffusionXL", "sdxl", sides=(48, 64)),
    Row("StableDiffusionXL", "sdxl", {"timestep_spacing": "linspace", "prediction_type": "v_prediction"}),
    Row("StableDiffusionXL", "sdxl", EDM),
    Row("StableDiffusionXL", "sdxl", EDM | {"prediction_type": "v_prediction"}),
    Row("StableDiffusion3", "sd3", sides=(48, 64)),
    Row("StableDiffusion3", "sd3", {"use_dynamic_shifting": True}),
    Row("StableDiffusionInstructPix2Pix", "edit"),
    Row("PixArtAlpha", "pixart", {"solver_order": 1}),
    Row("PixArtAlpha", "pixart_large", {"solver_order": 1}, sides=(64, 96)),
    Row("PixArtSigma", "sigma", {"solver_order": 1}),
    Row("Flux", "flux", negative=None, sides=(32, 48)),
    Row("Flux", "schnell", negative=None, sides=(32, 48)),
    Row("DiT", "dit", prompts=("class 3", "Scarlet star"), negative=None),
    Row("DDPM", "ddpm", {"_class_name": "DDIMScheduler", "clip_sample": False}, prompts=("", ""), scales=(1.0,), negative=None),
    Row("DDIM", "ddim", prompts=("", ""), scales=(1.0,), negative=None),
    Row("ClassConditional", "edm"),
)


@pytest.fixture(scope="module")
def models(pipelines: Folder, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """The model of a row, loaded once."""
    root, kept = tmp_path_factory.mktemp("parity"), dict[str, Model]()

    def of(row: Row, dtype: Any = None) -> Model:
        name = f"{row}-{dtype}"
        if name not in kept:
            kept[name] = load(str(changed(pipelines(row.folder), root / name, row.scheduler)), torch_dtype=dtype)
        return kept[name]

    return of


def changed(source: Path, target: Path, settings: Mapping[str, Any]) -> Path:
    """A copy of a saved pipeline whose scheduler has other settings, or is another."""
    shutil.copytree(source, target)
    file, index = target / "scheduler" / "scheduler_config.json", target / "model_index.json"
    kept = {} if "_class_name" in settings else json.loads(file.read_text())
    file.write_text(json.dumps(kept | dict(settings)))
    parts = json.loads(index.read_text())
    parts["scheduler"][1] = settings.get("_class_name", parts["scheduler"][1])
    index.write_text(json.dumps(parts))
    return target


def pipe_of(model: Model) -> Any:
    part: Any = model.generator or model.editor
    return part.pipe


def deployed(row: Row, model: Model, scale: float, negative: str | None = None) -> Tensor:
    """Images [2, 3, H, W] of the pipeline's own call."""
    pipe = pipe_of(model)
    call: dict[str, Any] = {"num_inference_steps": STEPS, "generator": rng.generators(SEEDS), "output_type": "pt"}
    if row.family == "DiT":
        call |= {"class_labels": [3, 3], "guidance_scale": scale}
    elif row.family in ("DDPM", "DDIM"):
        call |= {"batch_size": 2}
    else:
        call |= {"prompt": list(row.prompts), "guidance_scale": scale}
        call |= {} if negative is None else {"negative_prompt": [negative] * 2}
    if row.sides is not None:
        call |= {"height": row.sides[0], "width": row.sides[1]}
    if row.family == "StableDiffusionInstructPix2Pix":
        call["image"] = torch.zeros(2, *shape(row, model))
    if row.family.startswith("PixArt"):
        call |= {"use_resolution_binning": False, "clean_caption": False}
    with torch.no_grad():
        return torch.as_tensor(pipe(**call, return_dict=False)[0]).float()


def shape(row: Row, model: Model) -> tuple[int, ...]:
    """That of one x, at the size that the row asks for."""
    assert model.shape is not None
    if row.sides is None:
        return model.shape
    scale = int(pipe_of(model).vae_scale_factor)
    return model.shape[0], row.sides[0] // scale, row.sides[1] // scale


def started(row: Row, model: Model) -> Tensor:
    """The noise that the pipeline draws, as x at the first level of the path."""
    noise = torch.cat([torch.randn(1, *shape(row, model), generator=generator) for generator in rng.generators(SEEDS)])
    scheduler, path = pipe_of(model).scheduler, model.path
    if isinstance(path, RectifiedFlow):
        return noise
    scheduler.set_timesteps(STEPS)
    size = float(scheduler.init_noise_sigma)
    if not isinstance(path, VariancePreserving) or not hasattr(scheduler, "sigmas"):
        return noise * size
    return noise * size / (1 + float(scheduler.sigmas[0]) ** 2) ** 0.5 if size != 1 else noise  # Euler's x is larger by 1/alpha


def sampled(row: Row, model: Model, scale: float, negative: str | None = None) -> Tensor:
    """Images of our own deterministic loop from that noise."""
    assert model.path is not None
    assert model.codec is not None
    levels = levels_of(row, model, STEPS)
    with torch.no_grad():
        x = final(trajectory(asked(model, scale, negative), model.path, started(row, model), levels, cond=told(row, model)))
        return model.codec.decode(x).clamp(0, 1)


def asked(model: Model, scale: float, negative: str | None = None) -> Any:
    """The denoiser under guidance. Flux is told the scale and not asked twice."""
    assert model.denoiser is not None
    assert model.path is not None
    if isinstance(model.denoiser, FluxDenoiser):
        return replace(model.denoiser, guidance=scale)
    against = None if negative is None or model.condition is None else model.condition([negative] * 2)
    return guided(model.denoiser, model.path, Guidance(scale, negative=against))


def told(row: Row, model: Model) -> Any:
    return None if model.condition is None else model.condition(row.prompts)


def test_every_family_has_a_row() -> None:
    assert {row.family for row in ROWS} == set(FAMILIES)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_our_loop_gives_the_image_that_the_pipeline_gives(models: Any, row: Row) -> None:
    """Without guidance, with it, and away from a negative prompt; each of which differs from the others."""
    model, found = models(row), []
    asks = [(scale, None) for scale in row.scales] + ([(row.scales[-1], row.negative)] if row.negative else [])
    for scale, negative in asks:
        theirs, ours = deployed(row, model, scale, negative), sampled(row, model, scale, negative)
        assert theirs.shape == ours.shape
        assert float((theirs - ours).abs().max()) < row.close
        found.append(theirs)
    steady = row.folder == "schnell"  # it has no guidance, whatever it is asked
    assert all(torch.equal(found[0], one) == steady for one in found[1:])
    assert float(found[0].std()) > 0.01, "an image with something on it"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_denoiser_is_the_schedulers_own_prediction(models: Any, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step of the pipeline's call: what its scheduler takes the clean sample to be."""
    model, scale = models(row), row.scales[-1]
    scheduler, seen = pipe_of(model).scheduler, list[tuple[int, Tensor, Tensor]]()
    step = scheduler.step

    def spied(output: Tensor, t: Any, sample: Tensor, **more: Any) -> Any:
        done = step(output, t, sample, **more)
        seen.append((len(seen), sample.clone(), predicted(scheduler, done, output, sample, len(seen))))
        return done

    monkeypatch.setattr(scheduler, "step", spied)
    deployed(row, model, scale)
    assert model.path is not None
    denoiser, condition, levels = asked(model, scale), told(row, model), levels_of(row, model, STEPS)
    assert len(seen) == STEPS
    for index, sample, theirs in seen:
        x = latents(row, model, sample)
        if isinstance(model.path, VariancePreserving) and getattr(scheduler, "init_noise_sigma", 1) != 1:
            x = x * model.path.alpha(levels[index]).to(x)  # Euler's x is larger by 1/alpha
        with torch.no_grad():
            ours = denoiser(x[:2], levels[index], condition)
        off = (ours - latents(row, model, theirs)[:2]).abs().max() / theirs.abs().max().clamp_min(1)
        assert float(off) < row.close


def predicted(scheduler: Any, done: Any, output: Tensor, sample: Tensor, index: int) -> Tensor:
    """The clean sample as the scheduler has it; a flow's Euler scheduler keeps it to itself: the sample less sigma times the velocity."""
    if hasattr(scheduler, "model_outputs"):
        clean: Tensor = scheduler.model_outputs[-1]
    elif hasattr(scheduler, "scale_noise"):
        clean = sample - scheduler.sigmas[index] * output
    else:
        clean = done[1] if isinstance(done, tuple) else done.pred_original_sample
    return clean.clone()


def latents(row: Row, model: Model, rows: Tensor) -> Tensor:
    """What a pipeline holds between steps, as x: Flux packs it."""
    if row.family != "Flux":
        return rows
    _, height, width = shape(row, model)
    unpacked: Tensor = pipe_of(model)._unpack_latents(rows, height * 2, width * 2, 2)
    return unpacked


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_half_precision_stays_near_the_pipelines_own(models: Any, row: Row) -> None:
    """The pipeline rounds x between steps, which we do not: no farther from it than it is from itself in full precision, and a little."""
    full, half = models(row), models(row, "bfloat16")
    assert next(network_of(pipe_of(half)).parameters()).dtype == torch.bfloat16
    scale = row.scales[-1]
    assert half.generator is not None or half.editor is not None
    ours, own = sampled(row, half, scale), sampled(row, full, scale)
    assert ours.dtype == torch.float32
    theirs = generated(row, half, scale) if half.generator is not None else own
    assert float((ours - theirs).abs().mean()) < 0.02 + 2 * float((own - theirs).abs().mean())


def generated(row: Row, model: Model, scale: float) -> Tensor:
    """Images by the model's generator, which is the pipeline itself."""
    assert model.generator is not None
    height, width = row.sides or (None, None)
    return model.generator.generate(row.prompts, SEEDS, GenerateSettings(STEPS, scale, None, height, width))


@pytest.mark.parametrize("row", [row for row in ROWS if row.folder not in ("edit", "pixart_large")], ids=str)
def test_the_generator_is_the_pipeline(models: Any, row: Row) -> None:
    """But for what generates nothing, and what draws at the bins of 1,024 pixels."""
    model = models(row)
    assert torch.allclose(generated(row, model, row.scales[-1]), deployed(row, model, row.scales[-1]), atol=1e-4)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_sample_does_not_depend_on_its_batch(models: Any, row: Row) -> None:
    model = models(row)
    x, levels = started(row, model), model.path.levels(STEPS)
    both = told(row, model)
    with torch.no_grad():
        whole = asked(model, 5.0)(x, levels[1], both)
        for index in range(2):
            alone = asked(model, 5.0)(x[index : index + 1], levels[1], None if both is None else both[index : index + 1])
            assert torch.allclose(whole[index], alone[0], atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_codec_is_the_pipelines(models: Any, row: Row) -> None:
    """Encoding is the mean of the autoencoder's own posterior; decoding undoes the scale of the latents as the pipeline does."""
    model, pipe = models(row), pipe_of(models(row))
    images = torch.sigmoid(rng.normal((3, 32, 32), "test.parity", SEEDS))
    latents = model.codec.encode(images)
    with torch.no_grad():
        if not hasattr(pipe, "vae"):
            assert torch.allclose(model.codec.decode(latents), images, atol=1e-6)
            return
        mean = pipe.vae.encode(images * 2 - 1).latent_dist.mode()
        assert torch.allclose(model.codec.decode(latents), pipe.vae.decode(mean).sample / 2 + 0.5, atol=1e-4)
        shift = pipe.vae.config.shift_factor or 0.0
        assert torch.allclose(latents, (mean - shift) * pipe.vae.config.scaling_factor, atol=1e-5)


@pytest.mark.parametrize("row", [row for row in ROWS if row.folder in ("sd", "v2", "sdxl", "sd3", "flux", "edm")], ids=str)
@pytest.mark.parametrize("strength", [0.4, 0.7])
def test_our_loop_gives_the_edit_that_the_pipeline_gives(models: Any, row: Row, strength: float) -> None:
    """From the editor's own level, with the noise that the pipeline adds there."""
    model = models(row)
    assert model.editor is not None
    size = tuple(shape(row, model))
    clean = 0.5 * rng.normal(size, "test.parity", SEEDS)
    edited = model.editor.edit(clean, row.prompts, SEEDS, EditSettings(strength, 10, 5.0))
    levels = levels_of(row, model, 10)[-edited.level.steps :]
    noise = torch.cat([torch.randn(1, *size, generator=generator) for generator in rng.generators(SEEDS)])
    x = model.path.alpha(levels[0]).to(clean) * clean + model.path.sigma(levels[0]).to(clean) * noise
    with torch.no_grad():
        ours = final(trajectory(asked(model, 5.0, ""), model.path, x, levels, cond=told(row, model)))
        assert edited.latents is not None
        assert float((ours - edited.latents).abs().max() / edited.latents.abs().max()) < 2e-3
        assert float((model.codec.decode(ours) - edited.images).abs().max()) < 5e-3
    assert edited.level.sigma == pytest.approx(float(model.path.ratio(levels[0])), rel=1e-3)
    assert edited.guided


def levels_of(row: Row, model: Model, n: int) -> tuple[float, ...]:
    """The path's levels; where they go with the image's size, those of this size."""
    assert model.path is not None
    scheduler = pipe_of(model).scheduler
    if not (scheduler.config.get("use_dynamic_shifting") and isinstance(model.editor, PipelineEditor)):
        return model.path.levels(n)
    _, height, width = shape(row, model)
    scheduler.set_timesteps(n, **model.editor.spacing(n, (height, width)))
    return tuple(scheduler.sigmas[:-1].tolist())


def test_an_instructed_edit_shows_the_network_the_picture(pipelines: Folder) -> None:
    """Unguided, the pipeline's steps are our loop under the picture's latents in the autoencoder's own scale."""
    model = load(str(pipelines("edit")))
    assert model.codec is not None
    assert model.editor is not None
    assert model.condition is not None
    assert model.path is not None
    clean = model.codec.encode(torch.sigmoid(rng.normal((3, 32, 32), "test.parity", SEEDS)))
    edited = model.editor.edit(clean, ["a red star", "blue"], SEEDS, EditSettings(1.0, STEPS, 1.0))
    text = model.condition(["a red star", "blue"])
    assert isinstance(text, TextCondition)
    pictured = replace(text, picture=clean / pipe_of(model).vae.config.scaling_factor)
    noise = torch.cat([torch.randn(1, *clean.shape[1:], generator=generator) for generator in rng.generators(SEEDS)])
    assert model.denoiser is not None
    with torch.no_grad():
        seen, blind = (
            final(trajectory(model.denoiser, model.path, noise, model.path.levels(STEPS), cond=condition)) for condition in (pictured, text)
        )
    assert edited.latents is not None
    assert torch.allclose(seen, edited.latents, atol=1e-3)
    assert not torch.allclose(blind, edited.latents, atol=1e-2)
