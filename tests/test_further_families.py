"""Flux, DiT, unconditional pixels and autoencoders alone: what each does beyond parity, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from diffprobe import rng
from diffprobe.adapters.codecs import PixelCodec
from diffprobe.adapters.families.flux import FluxDenoiser, packed, positions, unpacked
from diffprobe.adapters.load import load, rig
from diffprobe.controls.frames import mixed_condition
from diffprobe.errors import UserError
from diffprobe.inversion import Inversion, InversionEditor, invert, replay
from diffprobe.model import EditSettings, GenerateSettings
from diffprobe.probes.consistency import Consistency
from diffprobe.probes.geometry import Geometry
from diffprobe.runs.asked import asked
from diffprobe.runs.result import start, suited
from diffprobe.runs.study import preset
from diffprobe.sampling import Guidance, guided, guides

Folder = Callable[[str], Path]


def test_packing_is_undone_and_is_the_pipelines(pipelines: Folder) -> None:
    pipe = load(str(pipelines("flux"))).generator.pipe  # type: ignore[union-attr]
    x = rng.normal((4, 6, 8), "test.further", range(2))
    assert torch.equal(packed(x), pipe._pack_latents(x, 2, 4, 6, 8))
    assert torch.equal(unpacked(packed(x), (6, 8)), x)
    assert torch.equal(positions(3, 4).float(), pipe._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32))


@pytest.mark.parametrize(("family", "guided"), [("flux", True), ("schnell", False)])
def test_flux_is_told_its_guidance_and_takes_no_negative_prompt(pipelines: Folder, family: str, guided: bool) -> None:
    model = load(str(pipelines(family)))
    assert model.generator is not None
    assert model.editor is not None
    with pytest.raises(UserError, match="FluxPipeline is guided by no negative prompt: leave negative_prompt out"):
        model.generator.generate(["a"], [0], GenerateSettings(2, 3.0, "blue", 32, 32))
    edited = model.editor.edit(torch.zeros(1, 4, 8, 8), ["a"], [0], EditSettings(0.5, 4, 3.0))
    assert edited.guided == guided
    assert edited.latents is not None
    assert edited.latents.shape == (1, 4, 8, 8)
    assert ("told" in model.facts["guidance"]) == guided


def test_flux_draws_sides_in_whole_patches(pipelines: Folder) -> None:
    model = load(str(pipelines("flux")))
    assert model.generator is not None
    assert model.generator.generate(["a"], [0], GenerateSettings(1, 1.0, None, 24, 40)).shape == (1, 3, 24, 40)
    with pytest.raises(UserError, match="sides in multiples of 8 pixels, not 20 x 40: try"):
        model.generator.generate(["a"], [0], GenerateSettings(1, 1.0, None, 20, 40))


def test_classes_are_asked_for_by_number_or_label(pipelines: Folder) -> None:
    model = load(str(pipelines("dit")))
    assert model.condition is not None
    assert model.condition(["class 12", "BLUE", " scarlet star ", ""]).tolist() == [12, 7, 3, 1000]
    for wrong in ("class 1000", "class -1", "class x", "green"):
        with pytest.raises(UserError, match=f"'{wrong}' is no class: give 'class <0 to 999>'"):
            model.condition([wrong])
    assert model.generator is not None
    with pytest.raises(UserError, match="guided away from no class alone"):
        model.generator.generate(["blue"], [0], GenerateSettings(1, 2.0, "class 3"))
    with pytest.raises(UserError, match="draws 16 x 16 pixels alone"):
        model.generator.generate(["blue"], [0], GenerateSettings(1, 2.0, None, 32, 32))


def test_an_unconditional_model_is_asked_for_nothing(pipelines: Folder, tmp_path: Path) -> None:
    model = load(str(pipelines("ddpm")))
    assert model.wordless
    assert isinstance(model.codec, PixelCodec)
    assert model.generator is not None
    with pytest.raises(UserError, match=r"unconditional and cannot be asked for 'a star': set prompts to \[''\]"):
        model.generator.generate(["", "a star"], [0, 1], GenerateSettings(2, 1.0))
    worker = rig(model)
    with pytest.raises(UserError, match=r"'ddpm' knows no words: set prompts to \[none\]"):
        start(worker, [Consistency(count=2, repetitions=2)], tmp_path / "refused")
    (probe,) = suited(preset(["consistency"], "quick"), worker)
    assert isinstance(probe, Consistency)
    assert probe.prompts == ("none",)
    run = start(worker, [Consistency(prompts=("none",), repetitions=3, num_inference_steps=2)], tmp_path / "run")
    assert run.done == run.planned
    assert run.records("consistency")["flag"].isna().all()
    assert [answer.probe for answer in asked(model) if answer.can] == ["consistency", "geometry"]


@pytest.mark.parametrize(("family", "kind"), [("vae", AutoencoderKL), ("taesd", AutoencoderTiny)])
def test_an_autoencoder_alone_is_a_codec(pipelines: Folder, family: str, kind: type, tmp_path: Path) -> None:
    model = load(str(pipelines(family)))
    assert model.capabilities == {"codec"}
    assert model.codec is not None
    vae = kind.from_pretrained(pipelines(family))  # type: ignore[attr-defined]
    images = torch.sigmoid(rng.normal((3, 16, 16), "test.further", range(2)))
    with torch.no_grad():
        given = vae.encode(images * 2 - 1)
        raw = given.latent_dist.mode() if kind is AutoencoderKL else given.latents
        own = (raw - 0.1) * 0.5 if kind is AutoencoderKL else raw
        assert torch.allclose(model.codec.encode(images), own, atol=1e-6)
        assert torch.allclose(model.codec.decode(own), vae.decode(raw).sample / 2 + 0.5, atol=1e-5)
    run = start(rig(model), [Geometry(sets=("world", "noise"), count=2, priors=2, resolution=16, directions=4)], tmp_path / "run")
    assert run.done == run.planned
    assert model.identity["weights"].startswith("sha256:")


def test_a_pipeline_may_have_a_tiny_autoencoder(pipelines: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(pipelines("sd"), folder)
    shutil.rmtree(folder / "vae")
    widths = (8, 8)
    AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)
    ).save_pretrained(folder / "vae")
    index = json.loads((folder / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderTiny"]
    (folder / "model_index.json").write_text(json.dumps(index))
    model = load(str(folder))
    assert model.codec is not None
    assert model.editor is not None
    latents = model.codec.encode(torch.zeros(1, 3, 32, 32))
    assert model.shape == tuple(latents.shape[1:]) == (4, 16, 16)
    assert model.editor.edit(latents, ["a"], [0], EditSettings(0.5, 4, 3.0)).images.shape == (1, 3, 32, 32)


@pytest.mark.parametrize(("part", "told"), [("unet", r"lacks 'unet' \(UNet2DConditionModel\)"), ("tokenizer", r"lacks 'tokenizer'")])
def test_a_folder_with_a_missing_part_is_refused(pipelines: Folder, tmp_path: Path, part: str, told: str) -> None:
    folder = tmp_path / "missing"
    shutil.copytree(pipelines("sd"), folder)
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=f"{told}.*, which its model_index.json names: fetch it again"):
        load(str(folder))


def test_weights_of_one_part_that_are_missing_are_named(pipelines: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "weightless"
    shutil.copytree(pipelines("sd"), folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"vae has no \.safetensors weights: fetch them"):
        load(str(folder))


def test_guidance_that_a_network_is_told_is_told_wherever_we_guide(pipelines: Folder) -> None:
    """Also inversion's way down; within an interval of levels only there; and where there is none, the scale changes nothing."""
    model = load(str(pipelines("flux")))
    assert isinstance(model.denoiser, FluxDenoiser)
    assert model.path is not None
    assert model.condition is not None
    x, text = rng.normal((4, 16, 16), "test.further", range(2)), model.condition(["a", "blue"])
    scaled = replace(model.denoiser, guidance=5.0)
    with torch.no_grad():
        assert torch.equal(guided(model.denoiser, model.path, Guidance(5.0))(x, 0.7, text), scaled(x, 0.7, text))
        low = guided(model.denoiser, model.path, Guidance(5.0, hi=1.0))
        assert torch.equal(low(x, 0.7, text), model.denoiser(x, 0.7, text))
        assert torch.equal(low(x, 0.3, text), scaled(x, 0.3, text))
    down = replay(model, x, ["a", "blue"], Inversion("ddim", 4), guidance_scale=5.0)
    told = replay(replace(model, denoiser=scaled), x, ["a", "blue"], Inversion("ddim", 4))
    assert torch.allclose(down, told, atol=1e-5)
    for how in (Inversion("null-text", 4, 5.0), Inversion("ddim", 4, negative_prompt="blue")):
        with pytest.raises(UserError, match="flux is told its guidance and guided away from nothing: choose ddim or fixed-point"):
            invert(model, x, ["a", "blue"], how)
    steady = load(str(pipelines("schnell")))
    assert steady.denoiser is not None
    assert (guides(steady.denoiser, 5.0), guides(model.denoiser, 5.0), guides(model.denoiser, 1.0)) == (False, True, False)
    edited = InversionEditor(steady, Inversion("ddim")).edit(x[:, :, :8, :8], ["a", "blue"], [0, 1], EditSettings(0.5, 4, 5.0))
    assert not edited.guided


def test_a_mixture_of_prompts_of_different_lengths_goes_over_into_its_ends(pipelines: Folder) -> None:
    model = load(str(pipelines("sigma")))
    assert model.denoiser is not None
    assert model.condition is not None
    x, texts = rng.normal((4, 16, 16), "test.further", [0]), model.condition(["a", "a red star on blue sky"])

    def asked(share: float) -> torch.Tensor:
        with torch.no_grad():
            clean: torch.Tensor = model.denoiser(x, 500.0, mixed_condition(texts, torch.tensor([[1 - share, share]])))  # type: ignore[misc]
            return clean

    with torch.no_grad():
        ends = [model.denoiser(x, 500.0, texts[i : i + 1]) for i in range(2)]
    span = float((ends[1] - ends[0]).norm())
    assert torch.allclose(asked(0.0), ends[0], atol=1e-4 * span)
    assert torch.allclose(asked(1.0), ends[1], atol=1e-4 * span)
    assert float((asked(1e-6) - ends[0]).norm()) < 1e-2 * span
    assert 0.05 * span < float((asked(0.5) - ends[0]).norm()) < 1.5 * span


def test_a_refiner_edits_and_generates_nothing(pipelines: Folder, tmp_path: Path) -> None:
    """As it is published: the class that edits, a score in place of a size, and one text encoder."""
    folder = tmp_path / "refiner"
    shutil.copytree(pipelines("sdxl"), folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusionXLImg2ImgPipeline", "requires_aesthetics_score": True}
    index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    settings = dict(UNet2DConditionModel.load_config(folder / "unet"))
    changed = {"projection_class_embeddings_input_dim": 5 * 8 + 16, "cross_attention_dim": 16}
    UNet2DConditionModel.from_config(settings | changed).save_pretrained(folder / "unet")
    model = load(str(folder))
    assert model.capabilities == {"path", "codec", "editor"}
    assert model.editor is not None
    edited = model.editor.edit(torch.zeros(1, 4, 16, 16), ["a"], [0], EditSettings(0.5, 4, 5.0))
    assert edited.images.shape == (1, 3, 32, 32)


def test_a_pipeline_of_pixels_may_lie_in_one_folder(pipelines: Folder, tmp_path: Path) -> None:
    """As the oldest published ones do: the network's files beside the index, and the scheduler's."""
    folder = tmp_path / "flat"
    shutil.copytree(pipelines("ddpm"), folder)
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            shutil.move(file, folder / file.name)
        (folder / part).rmdir()
    flat, usual = load(str(folder)), load(str(pipelines("ddpm")))
    x = rng.normal((3, 16, 16), "test.further", [0])
    with torch.no_grad():
        assert torch.equal(flat.denoiser(x, 500.0), usual.denoiser(x, 500.0))  # type: ignore[misc]
