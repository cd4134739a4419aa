"""The adapter against diffusers itself, on tiny pipelines of the real classes, saved and loaded from disk."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline, StableDiffusionImg2ImgPipeline
from safetensors.torch import load_file, save_file

from diffprobe import rng
from diffprobe.adapters.load import load
from diffprobe.adapters.pipelines import PipelineEditor, PipelineGenerator, PixArtGenerator
from diffprobe.adapters.weights import LoadOptions, write_digests
from diffprobe.errors import UserError
from diffprobe.model import EditSettings, GenerateSettings, Model
from diffprobe.paths import RectifiedFlow, VariancePreserving

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def sd(pipelines: Folder) -> Model:
    return load(str(pipelines("sd")))


def latents_of(model: Model, n: int = 2) -> torch.Tensor:
    assert model.codec is not None
    assert model.editor is not None
    size = model.editor.size
    images = torch.sigmoid(rng.normal((3, size, size), "test.images", range(n)))
    return model.codec.encode(images)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flow", "edm"])
def test_every_family_edits_and_generates_through_the_same_door(pipelines: Folder, family: str) -> None:
    model = load(str(pipelines(family)))
    assert {"editor", "codec", "path", "generator"} <= model.capabilities
    assert model.editor is not None
    assert model.generator is not None
    latents = latents_of(model)
    edited = model.editor.edit(latents, ["a red star", "b"], [1, 2], EditSettings(0.4, 15, 5.0))
    assert edited.images.shape == (2, 3, 32, 32)
    assert edited.latents is not None
    assert edited.latents.shape == latents.shape
    assert edited.guided
    images = model.generator.generate(["a"], [1], GenerateSettings(3, 5.0))
    assert images.shape == (1, 3, 32, 32)
    assert bool(((images >= 0) & (images <= 1)).all())


@pytest.mark.parametrize(
    ("strength", "steps", "start", "abar"), [(0.1, 1, 1, 0.9983), (0.2, 3, 133, 0.8513), (0.3, 4, 199, 0.7552), (0.4, 6, 331, 0.5383)]
)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_strength_becomes_the_published_level(  # 15 steps, leading spacing, offset 1
    pipelines: Folder, family: str, strength: float, steps: int, start: int, abar: float
) -> None:
    editor = load(str(pipelines(family))).editor
    assert editor is not None
    level = editor.level(strength, 15)
    assert (level.steps, level.t) == (steps, start)
    assert level.alpha**2 == pytest.approx(abar, abs=5e-5)
    assert level.sigma**2 == pytest.approx((1 - abar) / abar, abs=1e-4)


def test_flow_pipelines_round_the_other_way(pipelines: Folder) -> None:
    """SD3 executes the steps that are left over, so strength 0.1 of 15 runs two steps, not one; its level is the shifted time."""
    editor = load(str(pipelines("sd3"))).editor
    assert editor is not None
    level = editor.level(0.1, 15)
    assert level.steps == 2
    assert level.t is not None
    assert level.sigma == pytest.approx((level.t / 1000) / (1 - level.t / 1000), rel=1e-5)


def test_the_level_is_the_path_of_the_model(sd: Model) -> None:
    assert isinstance(sd.path, VariancePreserving)
    assert sd.editor is not None
    level = sd.editor.level(0.4, 50)
    assert level.t is not None
    assert float(sd.path.ratio(level.t)) == pytest.approx(level.sigma, rel=1e-5)


def test_flow_models_have_a_flow_path(pipelines: Folder) -> None:
    assert load(str(pipelines("sd3"))).path == RectifiedFlow(shift=3.0)


def test_an_edit_is_what_the_deployed_pipeline_gives(pipelines: Folder, sd: Model) -> None:
    """The same latents, seed and settings by hand, decoded by the pipeline itself."""
    assert sd.editor is not None
    latents = latents_of(sd, 1)
    edited = sd.editor.edit(latents, ["make no change"], [17], EditSettings(0.4, 15, 5.0, "blur"))
    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(pipelines("sd"))
    pipe.set_progress_bar_config(disable=True)
    by_hand = pipe(
        prompt="make no change",
        negative_prompt="blur",
        image=latents,
        strength=0.4,
        num_inference_steps=15,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(17),
        output_type="pt",
    ).images
    assert torch.allclose(edited.images.clamp(0, 1), by_hand, atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(sd: Model) -> None:
    assert sd.editor is not None
    latents, settings = latents_of(sd, 3), EditSettings(0.4, 15, 5.0)
    together = sd.editor.edit(latents, ["a", "b", "c"], [5, 6, 7], settings)
    alone = sd.editor.edit(latents[1:2], ["b"], [6], settings)
    assert torch.allclose(together.images[1:2], alone.images, atol=1e-5)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flow", "edm", "pixart", "sigma"])
def test_a_generated_image_does_not_depend_on_its_batch(pipelines: Folder, family: str) -> None:
    """Prompts of different lengths, one of them empty."""
    generator = load(str(pipelines(family))).generator
    assert generator is not None
    prompts, seeds, settings = ["a red star", "", "blue star", "a long blue prompt"], [5, 6, 7, 5], GenerateSettings(3, 4.0, "red star")
    together = generator.generate(prompts, seeds, settings)
    alone = torch.cat([generator.generate([prompt], [seed], settings) for prompt, seed in zip(prompts, seeds, strict=True)])
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together[0], together[3], atol=1e-3), "the same seed under another prompt"
    assert not torch.allclose(together[0], together[1], atol=1e-2), "another seed"


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flow", "edm", "pixart", "sigma"])
def test_an_image_is_what_the_deployed_pipeline_gives(pipelines: Folder, family: str) -> None:
    """By hand, decoded by the pipeline itself, in its own size and in another, with a negative prompt, without, and with an empty one."""
    model = load(str(pipelines(family)))
    assert isinstance(model.generator, PipelineGenerator | PixArtGenerator)
    absent = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    pipe = DiffusionPipeline.from_pretrained(pipelines(family), **absent) if family != "edm" else model.generator.pipe
    pipe.set_progress_bar_config(disable=True)
    bare = {"clean_caption": False} if family in ("pixart", "sigma") else {}
    bare |= {"use_resolution_binning": False} if family == "sigma" else {}
    found = []
    for negative, sides in ((None, {}), ("", {}), ("red star", {}), (None, {"height": 48, "width": 64})):
        if family == "edm" and sides:
            continue
        ours = model.generator.generate(["a blue star"], [17], GenerateSettings(3, 4.0, negative, **sides))
        by_hand = pipe(
            prompt="a blue star",
            **({} if negative is None else {"negative_prompt": negative}),
            **sides,
            **bare,
            num_inference_steps=3,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(17),
            output_type="pt",
        ).images
        assert torch.allclose(ours, by_hand, atol=1e-5)
        assert not sides or ours.shape == (1, 3, 48, 64)
        found.append(ours)
    assert torch.equal(found[0], found[1]) == (family != "sdxl"), "Stable Diffusion XL puts zeros for no negative prompt"
    assert not torch.allclose(found[1], found[2], atol=1e-4)


@pytest.mark.parametrize(
    ("family", "sides", "told"),
    [
        ("sd", (36, 32), r"in multiples of 8 pixels, not 36 x 32: try 32 x 32"),
        ("sdxl", (32, 60), r"in multiples of 8 pixels, not 32 x 60: try 32 x 64"),
        ("sd3", (4, 32), r"in multiples of 8 pixels, not 4 x 32: try 8 x 32"),
        ("sd3", (32, 72), r"at most 64 pixels, not 32 x 72: ask for less"),
        ("sigma", (128, 136), r"in multiples of 16 pixels, not 128 x 136: try 128 x 128"),
        ("edm", (64, None), r"draws 32 x 32 pixels alone, not 64 x 32: leave height and width out"),
        ("sd", (0, None), r"an image of 0 x 32 pixels has no pixel"),
        ("pixart", (None, -8), r"an image of 256 x -8 pixels has no pixel"),
    ],
)
def test_a_size_that_cannot_be_drawn_is_refused(pipelines: Folder, family: str, sides: tuple[int | None, int | None], told: str) -> None:
    generator = load(str(pipelines(family))).generator
    assert generator is not None
    with pytest.raises(UserError, match=told) as caught:
        generator.generate(["a"], [1], GenerateSettings(3, 4.0, None, *sides))
    assert "\n" not in str(caught.value)


def test_one_side_alone_leaves_the_other_as_it_is(pipelines: Folder) -> None:
    generators = {family: load(str(pipelines(family))).generator for family in ("sd", "sdxl", "sd3", "pixart", "edm")}
    for family, generator in generators.items():
        assert generator is not None
        own = {"pixart": 256}.get(family, 32)
        height = 32 if family == "edm" else 48
        assert generator.generate(["a"], [1], GenerateSettings(2, 4.0, height=height)).shape == (1, 3, height, own)


def test_guidance_one_is_recorded_as_unguided(sd: Model) -> None:
    assert sd.editor is not None
    assert not sd.editor.edit(latents_of(sd, 1), ["a"], [1], EditSettings(0.4, 15, 1.0)).guided


def test_the_codec_encodes_the_mean_in_the_denoisers_scale(pipelines: Folder, sd: Model) -> None:
    for model in (sd, load(str(pipelines("sd3")))):
        assert isinstance(model.editor, PipelineEditor)
        assert model.codec is not None
        vae, images = model.editor.pipe.vae, torch.sigmoid(rng.normal((3, 32, 32), "test.codec", [0]))
        with torch.no_grad():
            raw = vae.encode(images * 2 - 1).latent_dist.mean
            shifted = raw - (vae.config.shift_factor or 0)
            assert torch.allclose(model.codec.encode(images), shifted * vae.config.scaling_factor, atol=1e-6)
            assert torch.allclose(model.codec.decode(shifted * vae.config.scaling_factor), vae.decode(raw).sample / 2 + 0.5, atol=1e-5)


def test_the_denoiser_predicts_the_clean_latent(sd: Model) -> None:
    """D from eps, by hand: x_0 = (x - s eps) / a."""
    assert sd.denoiser is not None
    assert sd.condition is not None
    assert isinstance(sd.editor, PipelineEditor)
    x, cond, t = rng.normal((4, 16, 16), "test.x", [0, 1]), sd.condition(["a", "b"]), 400
    abar = sd.editor.pipe.scheduler.alphas_cumprod[t]
    with torch.no_grad():
        eps = sd.editor.pipe.unet(x, t, encoder_hidden_states=cond).sample
        assert torch.allclose(sd.denoiser(x, t, cond), (x - (1 - abar).sqrt() * eps) / abar.sqrt(), atol=1e-4)


def test_identity_names_the_weights(pipelines: Folder, tmp_path: Path, sd: Model) -> None:
    again = load(str(pipelines("sd")))
    assert sd.identity == again.identity
    assert sd.identity["weights"].startswith("sha256:")
    assert sd.identity["weights"] != load(str(pipelines("sdxl"))).identity["weights"]


def test_what_cannot_be_loaded_is_one_line_that_names_the_fix(pipelines: Folder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "model_index.json").write_text('{"_class_name": "WuerstchenPipeline"}')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text('{"_class_name": "Stable')
    cases = {
        str(broken): r"model_index.json is damaged \(.*fetch it again",
        "no-such-folder": "no model 'no-such-folder': give 'embedded'",
        "owner/absent": "the hub did not give it .*hf download owner/absent",
        str(tmp_path / "empty"): "holds no model_index.json",
        str(odd): r"a WuerstchenPipeline of no parts, which no adapter knows: use a .* wrap what you want to measure, as in dp\.wrap",
    }
    for spec, told in cases.items():
        with pytest.raises(UserError, match=told) as caught:
            load(spec)
        assert "\n" not in str(caught.value)


def test_a_damaged_weight_file_is_named(pipelines: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(pipelines("sd"), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=rf"unet/diffusion_pytorch_model.safetensors is truncated or damaged .*1000 bytes, sha256:{digest}"):
        load(str(folder))


def test_a_changed_weight_file_is_named_where_the_sums_are_known(pipelines: Folder, tmp_path: Path) -> None:
    """One flipped byte that safetensors does not notice."""
    folder = tmp_path / "changed"
    shutil.copytree(pipelines("sd"), folder)
    write_digests(folder)
    load(str(folder))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    digest = hashlib.sha256(bytes(content)).hexdigest()
    with pytest.raises(UserError, match=rf"diffusion_pytorch_model.safetensors \(sha256:{digest}\) is not the file that SHA256SUMS names"):
        load(str(folder))
    weights.unlink()
    with pytest.raises(UserError, match=r"diffusion_pytorch_model.safetensors \(missing\)"):
        load(str(folder))


def test_pickled_weights_are_never_read(pipelines: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(pipelines("sd"), folder)
    for file in folder.rglob("*.safetensors"):
        torch.save({}, file.with_suffix(".bin"))
        file.unlink()
    with pytest.raises(UserError, match="safetensors"):
        load(str(folder))


def test_an_unknown_device_or_dtype_is_refused(pipelines: Folder) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="not available here: use --device cpu"):
            load(str(pipelines("sd")), device="cuda")
    with pytest.raises(UserError, match="unknown device 'cdua': use cpu"):
        load(str(pipelines("sd")), device="cdua")
    with pytest.raises(UserError, match="unknown dtype"):
        load(str(pipelines("sd")), torch_dtype="float8")  # type: ignore[arg-type]


@pytest.mark.parametrize("manner", ["offload", "offload-layers", "balanced"])
def test_manners_of_placing_need_an_accelerator(pipelines: Folder, manner: str) -> None:
    if torch.cuda.is_available():
        assert load(str(pipelines("sd")), device=manner).facts["placed"] == manner
        return
    with pytest.raises(UserError, match=f"device '{manner}' needs an accelerator, and there is none here: use --device cpu"):
        load(str(pipelines("sd")), device=manner)


def test_a_dtype_that_a_device_does_not_compute_in_is_refused(pipelines: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", refused)
    with pytest.raises(UserError, match="device 'cpu' does not compute in float16: use another --dtype or float32"):
        load(str(pipelines("sd")), torch_dtype="float16", device="cpu")


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_a_model_whose_layers_are_fetched_as_they_run_gives_the_same(pipelines: Folder, family: str) -> None:
    """As offloading by layers does, with the CPU in the accelerator's place: weights lie elsewhere between two calls."""
    model = load(str(pipelines(family)))
    x, prompts = rng.normal((4 if family != "sd3" else 16, 16, 16), "test.diffusers", [0]), ["a red star"]

    def asked() -> tuple[torch.Tensor, ...]:
        assert model.denoiser is not None
        assert model.condition is not None
        assert model.codec is not None
        assert model.editor is not None
        with torch.no_grad():
            clean = model.denoiser(x, 0.5, model.condition(prompts))
            edited = model.editor.edit(x, prompts, [0], EditSettings(0.5, 4, 3.0)).images
            return clean, edited, model.codec.decode(x), model.codec.encode(torch.zeros(1, 3, 32, 32))

    before = asked()
    assert isinstance(model.editor, PipelineEditor)
    for part in model.editor.pipe.components.values():
        if isinstance(part, torch.nn.Module):
            cpu_offload(part, execution_device=torch.device("cpu"), offload_buffers=True)
            assert next(part.parameters()).device.type == "meta"
    assert all(torch.equal(one, other) for one, other in zip(before, asked(), strict=True))


def test_a_model_on_another_scheduler_is_another_model(pipelines: Folder, tmp_path: Path) -> None:
    from tests.test_parity import changed

    plain = load(str(pipelines("sd")))
    other = load(str(changed(pipelines("sd"), tmp_path / "other", {"timestep_spacing": "trailing"})))
    assert plain.identity["weights"] == other.identity["weights"]
    assert plain.identity["scheduler"] != other.identity["scheduler"]
    assert plain.identity["scheduler"].startswith("DDIMScheduler/")
    assert plain.identity["scheduler"] == load(str(pipelines("sd"))).identity["scheduler"]


@pytest.mark.parametrize("family", ["sd", "sd+lora", "sdxl"])
def test_in_half_precision_the_autoencoder_keeps_its_own_numbers(pipelines: Folder, family: str) -> None:
    """Loaded in half precision and widened after it, it would be another decoder."""
    spec = "+".join(str(pipelines(part)) for part in family.split("+"))
    full, half = load(spec), load(spec, torch_dtype="bfloat16")
    latents = rng.normal((4, 16, 16), "test.diffusers", [0])
    assert full.codec is not None
    assert half.codec is not None
    with torch.no_grad():
        assert torch.equal(full.codec.decode(latents), half.codec.decode(latents))


def test_variants_are_read_where_they_are_asked_for(pipelines: Folder, tmp_path: Path) -> None:
    """A second set of weights beside the first; alone, it must be asked for. Neither it nor a whole checkpoint is a part of the first."""
    folder = tmp_path / "variants"
    shutil.copytree(pipelines("sd"), folder)
    plain, unet = load(str(folder)), folder / "unet" / "diffusion_pytorch_model.safetensors"
    known = dict(plain.identity)
    other = {name: value * 0.5 for name, value in load_file(unet).items()}
    save_file(other, unet.with_name("diffusion_pytorch_model.non_ema.safetensors"), metadata={"format": "pt"})
    shutil.copy(unet, folder / "v1-5-pruned.safetensors")
    assert dict(load(str(folder)).identity) == known
    asked = load(str(folder), variant="non_ema")
    assert asked.identity["variant"] == "non_ema"
    assert asked.identity["weights"] != known["weights"]
    x = rng.normal((4, 16, 16), "test.diffusers", [0])
    with torch.no_grad():
        assert not torch.allclose(asked.denoiser(x, 500.0), plain.denoiser(x, 500.0), atol=1e-3)  # type: ignore[misc]
    unet.unlink()
    with pytest.raises(UserError, match=r"unet holds the variant 'non_ema' alone: give variant='non_ema'"):
        load(str(folder))


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_the_brief_format_of_an_accelerator_is_one_that_it_computes_in(monkeypatch: pytest.MonkeyPatch, native: bool, dtype: Any) -> None:
    """One that only emulates bfloat16 says that it supports it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    monkeypatch.setattr("diffprobe.adapters.weights._check_format", lambda *_: None)  # there is no such device to try it on
    assert LoadOptions(device="cuda").place() == (torch.device("cuda"), dtype)
