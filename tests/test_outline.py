"""Outlines: what a model is by its configuration files alone, the same as it is once loaded, and what is missing of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig

from diffprobe.adapters.load import load
from diffprobe.adapters.outline import Outline, outline
from diffprobe.adapters.stored import Stored, stored
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.runs.memory import weights
from tests import edm2_files as edm2

Pipelines = Callable[[str], Path]
FAMILIES = ("sd", "v2", "flow", "edit", "sdxl", "sd3", "flux", "pixart", "sigma", "dit", "ddpm", "edm")


def outlined(spec: object, dtype: str = "float32") -> Outline:
    return outline(str(spec), LoadOptions("cpu", dtype))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_outline_can_do_what_the_loaded_model_can(pipelines: Pipelines, family: str) -> None:
    """The same capabilities, shape, path and facts; nothing is missing; a forward and a decoding give the same shapes."""
    told, model = outlined(pipelines(family)), load(str(pipelines(family)), device="cpu")
    found = told.model
    assert told.missing == ()
    assert (found.capabilities, found.shape, found.path, dict(found.facts)) == (
        model.capabilities,
        model.shape,
        model.path,
        dict(model.facts),
    )
    assert found.identity.items() <= model.identity.items()
    assert (found.name, found.device) == (model.name, "meta")
    parts = {one.name: one.parameters for one in told.components if one.parameters}
    assert parts.keys() <= {"unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"}
    assert found.denoiser is not None
    assert found.codec is not None
    assert found.shape is not None
    x = torch.zeros(2, *found.shape, device="meta")
    cond = None if found.condition is None else found.condition(["whatever", ""])
    with torch.no_grad():
        assert found.denoiser(x, 0.5, cond).shape == x.shape
        assert found.codec.decode(x).shape[2:] == (told.side, told.side)


def test_the_published_stable_diffusions_are_known_by_their_configurations(tmp_path: Path) -> None:
    """The numbers of parameters that their model cards give: 860 million and 2.6 billion, to the last one as counted in the weights."""
    told = outlined(stable_diffusion(tmp_path / "v1", "StableDiffusionPipeline", EulerDiscreteScheduler(), V1))
    assert (told.title, told.kind, told.side, told.model.shape) == ("Stable Diffusion 1 and 2", "StableDiffusionPipeline", 512, (4, 64, 64))
    counts = {one.name: one.parameters for one in told.components if one.parameters}
    assert counts == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    assert told.missing == tuple(f"{name}: its weights are missing: fetch them" for name in counts)
    larger = outlined(stable_diffusion(tmp_path / "xl", "StableDiffusionXLPipeline", EulerDiscreteScheduler(), XL), "bfloat16")
    assert {one.name: one.parameters for one in larger.components}["unet"] == 2_567_463_684
    assert (larger.side, larger.model.identity["dtype"]) == (1024, "bfloat16")


CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
V1 = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
XL = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 768,
}


def stable_diffusion(path: Path, kind: str, scheduler: Any, network: dict[str, Any]) -> Path:
    """Configurations alone, as they are published: no weights, and no tokenizers."""
    xl = kind == "StableDiffusionXLPipeline"
    if xl:
        network = {**network, "projection_class_embeddings_input_dim": 2816}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        UNet2DConditionModel(**network).save_config(path / "unet")
        AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks).save_config(path / "vae")
    CLIPTextConfig(**CLIP).save_pretrained(path / "text_encoder")
    scheduler.save_pretrained(path / "scheduler")
    named = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "scheduler": type(scheduler).__name__}
    index: dict[str, Any] = {name: ["diffusers", made] for name, made in named.items()}
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    if xl:
        CLIPTextConfig(**CLIP, projection_dim=1280).save_pretrained(path / "text_encoder_2")
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
    (path / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))
    return path


def test_numbers_on_the_disk_are_those_of_the_parameters(pipelines: Pipelines) -> None:
    for one in outlined(pipelines("sdxl")).components:
        if one.parameters:
            assert one.files is not None
            assert one.files.formats == ("float32",)
            assert 4 * one.parameters < one.files.bytes < 4 * one.parameters + 50_000  # the header beside


@pytest.fixture
def copy(pipelines: Pipelines, tmp_path: Path) -> Path:
    """A saved pipeline to take something away from."""
    return Path(shutil.copytree(pipelines("sd"), tmp_path / "sd"))


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def test_what_is_missing_or_damaged_is_told_by_its_part(copy: Path) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[:-100])
    assert outlined(copy).missing == ("unet: diffusion_pytorch_model.safetensors is truncated or damaged: fetch it again",)
    (copy / WEIGHTS).unlink()
    assert outlined(copy).missing == ("unet: its weights are missing: fetch them",)
    (copy / "unet" / "diffusion_pytorch_model.bin").touch()
    assert "only pickled weights are here, which are never read" in outlined(copy).missing[0]
    shutil.rmtree(copy / "tokenizer")
    assert "tokenizer: its folder is missing: fetch it" in outlined(copy).missing
    shutil.rmtree(copy / "text_encoder")
    with pytest.raises(UserError, match=r"'text_encoder' \(CLIPTextModel\) of .*: its folder is missing") as told:
        outlined(copy)
    assert told.value.exit_code == 4


def test_shards_and_variants_are_found_as_they_are_loaded(copy: Path) -> None:
    """An index names its shards, of which one is not here; a variant counts where it is asked for and there."""
    unet, base = copy / "unet", "diffusion_pytorch_model"
    half, parts = unet / f"{base}.fp16.safetensors", [unet / f"{base}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    shutil.copy(copy / WEIGHTS, half)
    (copy / WEIGHTS).rename(parts[0])
    only = stored(unet)
    assert only is not None
    assert only.lacks == "only the variant 'fp16' is here: give variant='fp16'"
    assert stored(unet, "fp16") == Stored(half.stat().st_size, ("float32",))
    named = {"weight_map": {"first": parts[0].name, "second": parts[1].name}}
    (unet / f"{base}.safetensors.index.json").write_text(json.dumps(named))
    assert outlined(copy).missing == (f"unet: {parts[1].name} is missing: fetch it",)
    shutil.copy(parts[0], parts[1])
    assert outlined(copy).missing == ()


def test_what_is_no_pipeline_is_refused(copy: Path, tmp_path: Path) -> None:
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableAudioPipeline"))
    with pytest.raises(UserError, match=r"is a StableAudioPipeline of .*, which no adapter knows"):
        outlined(copy)
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match="names no scheduler"):
        outlined(copy)
    index.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        outlined(copy)
    with pytest.raises(UserError, match=r"holds no model_index\.json"):
        outlined(tmp_path)
    with pytest.raises(UserError, match="no model 'nowhere'"):
        outlined("nowhere")
    with pytest.raises(UserError, match="unknown exact world"):
        outlined("exact:gauss")


def test_a_scheduler_that_the_family_does_not_run_on_is_refused(pipelines: Pipelines, tmp_path: Path) -> None:
    flow = Path(shutil.copytree(pipelines("sd3"), tmp_path / "sd3"))
    DDIMScheduler().save_pretrained(flow / "scheduler")
    index = flow / "model_index.json"
    index.write_text(index.read_text().replace("FlowMatchEulerDiscreteScheduler", "DDIMScheduler"))
    with pytest.raises(UserError, match="do not run on a DDIMScheduler"):
        outlined(flow)


def test_a_hub_id_is_looked_up_in_the_cache(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is there without a part of its weights, and one that is not there at all."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    snapshot = cache / "models--owner--name" / "snapshots" / "0123"
    shutil.copytree(copy, snapshot)
    (cache / "models--owner--name" / "refs").mkdir()
    (cache / "models--owner--name" / "refs" / "main").write_text("0123")
    assert outlined("owner/name").missing == ()
    (snapshot / WEIGHTS).unlink()
    assert outlined("owner/name").missing == ("unet: its weights are missing: fetch them",)
    with pytest.raises(UserError, match="run `hf download owner/other`") as told:
        outlined("owner/other")
    assert told.value.exit_code == 4


def test_other_models_have_outlines_too(pipelines: Pipelines, tmp_path: Path) -> None:
    """Members of the embedded family, LoRA weights on top, autoencoders alone, exact worlds."""
    pastel = outlined("embedded+0.5*embedded-pastel")
    assert pastel.model.shape == outlined("embedded").model.shape
    assert [one.kind for one in pastel.components][-1] == "LoRA weights"
    assert outlined("embedded-pastel").components == pastel.components
    with_lora = outlined(f"{pipelines('sd')}+{pipelines('lora')}")
    assert with_lora.missing == ()
    assert outlined(f"{pipelines('sd')}+{tmp_path}").missing == (f"LoRA {tmp_path.name}: its weights are missing: fetch them",)
    alone = outlined(pipelines("sd") / "vae")
    assert (alone.title, alone.side, alone.model.shape) == ("an autoencoder alone", 32, (4, 16, 16))
    assert alone.model.capabilities == {"codec"}
    world = outlined("exact:gmm@flow")
    assert (world.side, world.model.name, world.missing) == (8, "exact:gmm@flow", ())


def test_a_published_network_has_an_outline(tmp_path: Path) -> None:
    tiny = edm2.Tiny()
    file = edm2.save_published(tmp_path / "network.pkl", tiny, edm2.random_arrays(tiny))
    told, model = outlined(f"edm2:{file}"), load(f"edm2:{file}", device="cpu")
    assert (told.title, told.model.shape, told.model.capabilities) == ("EDM2", model.shape, model.capabilities)
    assert weights(told.model) == weights(model)


def test_a_tiny_autoencoder_and_a_refiner_are_what_they_are_loaded_as(pipelines: Callable[[str], Path], tmp_path: Path) -> None:
    """The second pipeline on the same parts is made as loading makes it."""
    tiny, refiner = tmp_path / "tiny", tmp_path / "refiner"
    shutil.copytree(pipelines("sd"), tiny)
    shutil.rmtree(tiny / "vae")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)
    ).save_pretrained(tiny / "vae")
    shutil.copytree(pipelines("sdxl"), refiner)
    unet = dict(UNet2DConditionModel.load_config(refiner / "unet")) | {"projection_class_embeddings_input_dim": 5 * 8 + 16}
    UNet2DConditionModel.from_config(unet).save_pretrained(refiner / "unet")
    for folder, changes in ((tiny, {"vae": ["diffusers", "AutoencoderTiny"]}), (refiner, {"requires_aesthetics_score": True})):
        index = folder / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | changes))
        told, loaded = outline(str(folder), LoadOptions(device="cpu")).model, load(str(folder))
        assert told.capabilities == loaded.capabilities
        assert (told.shape, dict(told.facts)) == (loaded.shape, dict(loaded.facts))
