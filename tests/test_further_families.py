"""Flux, DiT, unconditional pixels and autoencoders alone: what each does beyond parity, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from diffprobe import rng
from diffprobe.adapters.codecs import PixelCodec
from diffprobe.adapters.families.flux import packed, positions, unpacked
from diffprobe.adapters.load import load, rig
from diffprobe.errors import UserError
from diffprobe.model import EditSettings, GenerateSettings
from diffprobe.probes.consistency import Consistency
from diffprobe.probes.geometry import Geometry
from diffprobe.runs.asked import asked
from diffprobe.runs.result import start, suited
from diffprobe.runs.study import preset

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
