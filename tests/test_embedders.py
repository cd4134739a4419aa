"""Instruments: their preprocessing, their fingerprints, and the registry that finds them."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from diffprobe import rng
from diffprobe.adapters.embedders import ClipEmbedder, Preprocessing, load_clip
from diffprobe.adapters.load import load_embedder, rig
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.model import Model, TextEmbedder
from tests.pipelines import tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP of the real classes, saved as any is."""
    path = tmp_path_factory.mktemp("clip") / "tiny"
    torch.manual_seed(0)
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = {**shared, "vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**shared, "image_size": 32, "patch_size": 8}, projection_dim=8)).save_pretrained(
        path
    )
    tokenizer(path).save_pretrained(path)
    size = {"shortest_edge": 32}
    CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(folder: Path) -> ClipEmbedder:
    return load_clip(str(folder), LoadOptions(device="cpu"))


def pictures(n: int, height: int = 48, width: int = 40) -> torch.Tensor:
    smooth = torch.nn.functional.interpolate(rng.normal((3, 6, 5), "test.pictures", range(n)), (height, width), mode="bicubic")
    return torch.sigmoid(smooth)


def test_features_are_those_of_the_model_behind_its_own_processor(folder: Path, clip: ClipEmbedder) -> None:
    """Independent: transformers' Pillow preprocessing of the same picture in 8 bits; ours resizes floats, so to a tolerance."""
    images = (pictures(3) * 255).round() / 255
    processor = CLIPImageProcessorPil.from_pretrained(folder)
    arrays = [Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()) for image in images]
    theirs = torch.as_tensor(processor(arrays, return_tensors="pt").pixel_values)
    ours = clip.preprocessing(images)
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().mean()) < 0.02  # of a standard deviation of 0.27: one level of 255 is 0.015
    with torch.no_grad():
        features = clip.model.get_image_features(pixel_values=theirs).pooler_output
    assert torch.allclose(torch.nn.functional.cosine_similarity(clip(images), features), torch.ones(3), atol=1e-3)


def test_features_are_float32_and_do_not_depend_on_the_batch(clip: ClipEmbedder) -> None:
    images = pictures(4)
    together = clip(images)
    assert together.dtype == torch.float32
    assert together.shape == (4, 8)
    assert torch.allclose(together[2:3], clip(images[2:3]), atol=1e-5)


def test_texts_live_in_the_same_space(clip: ClipEmbedder) -> None:
    assert isinstance(clip, TextEmbedder)
    assert clip.embed_text(["a", "b b"]).shape == (2, 8)


def test_preprocessing_crops_the_centre_of_the_shorter_side() -> None:
    wide = torch.zeros(1, 3, 10, 30)
    wide[..., 10:20] = 1
    assert bool((Preprocessing(10, (0.0,) * 3, (1.0,) * 3)(wide) == 1).all())


def test_the_fingerprint_knows_weights_and_preprocessing(folder: Path, clip: ClipEmbedder) -> None:
    assert clip.fingerprint == load_clip(str(folder), LoadOptions(device="cpu")).fingerprint
    plain = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    assert len({plain.digest(), clip.preprocessing.digest(), Preprocessing(24, (0.5,) * 3, (0.5,) * 3).digest()}) == 3
    assert clip.preprocessing.digest() in clip.fingerprint


def test_instruments_are_found_by_name(folder: Path) -> None:
    found = rig(Model("nothing"), [f"clip:{folder}"])
    assert list(found.embedders) == [f"clip:{folder}"]
    with pytest.raises(UserError, match="unknown embedder 'clop:x': did you mean 'clip'"):
        load_embedder("clop:x", LoadOptions())
    with pytest.raises(UserError, match="the hub did not give it"):
        load_embedder("clip:owner/absent", LoadOptions())


def test_a_damaged_instrument_is_named(folder: Path, tmp_path: Path) -> None:
    import shutil

    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"cannot load a CLIP model from .*damaged"):
        load_clip(str(damaged), LoadOptions(device="cpu"))
