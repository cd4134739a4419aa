"""Instruments that look at single images: their preprocessing, their fingerprints, and the registry that finds them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from diffprobe import rng
from diffprobe.adapters.embedders import ClipEmbedder, DinoEmbedder
from diffprobe.adapters.load import load_embedder, rig
from diffprobe.adapters.preprocessing import Preprocessing, digest_of, read_preprocessing
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.measures.precision import full_float32
from diffprobe.model import Model, TextEmbedder
from tests.pipelines import tokenizer
from tests.published import save_lpips

HERE = LoadOptions(device="cpu")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
EYE = {**SMALL, "image_size": 32, "patch_size": 8}
PROCESSORS = {"clip": CLIPImageProcessorPil, "siglip": SiglipImageProcessorPil, "dinov2": BitImageProcessorPil}


def save_clip(path: Path) -> None:
    text = {**SMALL, "vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    CLIPModel(CLIPConfig(text_config=text, vision_config=EYE, projection_dim=8)).save_pretrained(path)
    tokenizer(path).save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)


def save_siglip(path: Path) -> None:
    """As the SigLIP repositories are: an exact square, lower case, one end token that also pads."""
    text = {**SMALL, "vocab_size": 8, "max_position_embeddings": 6, "projection_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=EYE)).save_pretrained(path)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "a": 2, "red": 3, "star": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>").save_pretrained(path)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)


def save_dinov2(path: Path) -> None:
    Dinov2Model(Dinov2Config(**SMALL, image_size=32, patch_size=8)).save_pretrained(path)
    BitImageProcessorPil(size={"shortest_edge": 37}, crop_size={"height": 32, "width": 32}).save_pretrained(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny models of the real classes, saved as any is."""
    root = tmp_path_factory.mktemp("embedders")

    def folder(kind: str) -> Path:
        path = root / kind
        if not path.exists():
            torch.manual_seed(0)
            {"clip": save_clip, "siglip": save_siglip, "dinov2": save_dinov2}[kind](path)
        return path

    return folder


def loaded(folders: Callable[[str], Path], kind: str) -> Any:
    return load_embedder(f"{kind}:{folders(kind)}", HERE)


def pictures(n: int, height: int = 48, width: int = 40) -> torch.Tensor:
    smooth = torch.nn.functional.interpolate(rng.normal((3, 6, 5), "test.pictures", range(n)), (height, width), mode="bicubic")
    return (torch.sigmoid(smooth) * 255).round() / 255


def seen_by(embedder: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The model's own features of what is already preprocessed, by transformers' pooled output."""
    look = embedder.model if isinstance(embedder, DinoEmbedder) else embedder.model.get_image_features
    with torch.no_grad():
        features: torch.Tensor = look(pixel_values=pixels).pooler_output
    return features


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("shape", [(48, 40), (24, 61), (32, 32)])
def test_features_are_those_of_the_model_behind_its_own_processor(
    kind: str, shape: tuple[int, int], folders: Callable[[str], Path]
) -> None:
    """Independent: transformers' Pillow preprocessing of the same picture in 8 bits; ours resizes floats, so to a tolerance."""
    embedder, images = loaded(folders, kind), pictures(3, *shape)
    processor = PROCESSORS[kind].from_pretrained(folders(kind))
    arrays = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]
    theirs = torch.as_tensor(processor(arrays, return_tensors="pt").pixel_values)
    ours = embedder.preprocessing(images)
    assert ours.shape == theirs.shape == (3, 3, 32, 32)
    assert float((ours - theirs).abs().max()) < 0.04  # of a standard deviation of about 0.25: two levels of 255
    features = seen_by(embedder, theirs)
    assert torch.allclose(torch.nn.functional.cosine_similarity(embedder(images), features), torch.ones(3), atol=1e-3)
    assert torch.allclose(embedder(images), seen_by(embedder, ours), atol=1e-6)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_features_are_float32_and_do_not_depend_on_the_batch(kind: str, folders: Callable[[str], Path]) -> None:
    embedder, images = loaded(folders, kind), pictures(4)
    together = embedder(images)
    assert together.dtype == torch.float32
    assert together.shape == (4, 8 if kind == "clip" else 16)
    assert torch.allclose(together[2:3], embedder(images[2:3]), atol=1e-5)
    eight_bits = (images * 255).round().byte()
    assert torch.equal(embedder(eight_bits / 255), together)


def test_dinov2_has_registers_or_not(tmp_path: Path) -> None:
    """Either way the class token comes first, and is what transformers calls the pooled output."""
    save_dinov2(tmp_path)
    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(**SMALL, image_size=32, patch_size=8, num_register_tokens=3)
    Dinov2WithRegistersModel(config).save_pretrained(tmp_path)
    embedder: Any = load_embedder(f"dinov2:{tmp_path}", HERE)
    images = pictures(2)
    assert type(embedder.model).__name__ == "Dinov2WithRegistersModel"
    assert torch.equal(embedder(images), seen_by(embedder, embedder.preprocessing(images)))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_live_in_the_same_space(kind: str, folders: Callable[[str], Path]) -> None:
    embedder = loaded(folders, kind)
    texts = embedder.embed_text(["a red star", "a", "a a a a a a a a a a a a a a a a a a a a a a"])
    assert texts.shape == embedder(pictures(3)).shape
    assert torch.allclose(texts[1:2], embedder.embed_text(["a"]), atol=1e-6)
    assert isinstance(embedder, TextEmbedder)
    assert not isinstance(loaded(folders, "dinov2"), TextEmbedder)


def test_siglip_reads_lower_case_padded_without_a_mask(folders: Callable[[str], Path]) -> None:
    embedder = loaded(folders, "siglip")
    assert torch.equal(embedder.embed_text(["A RED star"]), embedder.embed_text(["a red star"]))
    with torch.no_grad():
        wanted = embedder.model.get_text_features(input_ids=torch.tensor([[2, 3, 4, 1, 1, 1]])).pooler_output
    assert torch.allclose(embedder.embed_text(["a red star"]), wanted, atol=1e-6)


def test_convolutions_keep_float32_and_what_was_set_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch alone, which a processor without an accelerator has too."""
    cudnn: Any = torch.backends.cudnn
    place, name, proper = (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before, rounds = getattr(place, name), cudnn.allow_tf32
    with full_float32():
        assert getattr(place, name) == proper
    assert (getattr(place, name), cudnn.allow_tf32) == (before, rounds)
    with pytest.raises(RuntimeError), full_float32():
        torch.zeros(2).view(3)
    assert (getattr(place, name), cudnn.allow_tf32) == (before, rounds)


def test_preprocessing_crops_the_centre_of_the_shorter_side() -> None:
    wide = torch.zeros(1, 3, 10, 30)
    wide[..., 10:20] = 1
    plain = Preprocessing(10, (0.0,) * 3, (1.0,) * 3)
    assert bool((plain(wide) == 1).all())
    assert float(replace(plain, stretch=True)(wide).mean()) == pytest.approx(1 / 3, abs=0.02)
    assert replace(plain, shorter=12)(wide).shape == (1, 3, 10, 10)


def test_a_digest_knows_every_setting_and_no_rounding() -> None:
    plain = Preprocessing(32, (0.5,) * 3, (0.5,) * 3)
    others = [
        Preprocessing(24, (0.5,) * 3, (0.5,) * 3),
        replace(plain, mean=(0.5, 0.5, 0.51)),
        replace(plain, std=(0.5, 0.49, 0.5)),
        replace(plain, shorter=33),
        replace(plain, stretch=True),
        replace(plain, mode="bilinear"),
        replace(plain, antialias=False),
    ]
    assert len({plain.digest(), *(other.digest() for other in others)}) == 1 + len(others)
    for seed in range(5):
        noise = 3e-7 * rng.normal((3, 32, 32), "test.shake", [seed])
        assert digest_of(partial(_shaken, plain, noise)) == plain.digest()


def _shaken(plain: Preprocessing, noise: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return plain(images) + noise


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"size": 36, "crop_size": 32}, Preprocessing(32, (0.1,) * 3, (0.2,) * 3, shorter=36)),
        ({"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}, "resample": 2},
         Preprocessing(32, (0.1,) * 3, (0.2,) * 3, shorter=36, mode="bilinear")),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, Preprocessing(32, (0.1,) * 3, (0.2,) * 3, stretch=True)),
        ({"size": {"height": 32, "width": 32}, "do_normalize": False}, Preprocessing(32, (0.0,) * 3, (1.0,) * 3, stretch=True)),
        ({"size": 32, "resample": 0}, "Pillow's filter 0"),
        ({"size": 32, "crop_size": 40}, "crop of 40 pixels is larger"),
        ({"size": {"height": 32, "width": 30}}, "32 x 30; only squares"),
        ({"size": 32, "do_resize": False}, "not resized"),
        ({"size": 32, "rescale_factor": 1 / 127.5}, "not scaled from 0..255"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_preprocessing_is_read_as_it_is_saved(given: dict[str, Any], wanted: Preprocessing | str, nested: bool, tmp_path: Path) -> None:
    given = {"image_mean": [0.1] * 3, "image_std": [0.2] * 3, **given}
    name, content = ("processor_config.json", {"image_processor": given}) if nested else ("preprocessor_config.json", given)
    (tmp_path / name).write_text(json.dumps(content))
    if isinstance(wanted, Preprocessing):
        assert read_preprocessing(tmp_path) == wanted
    else:
        with pytest.raises(ValueError, match=wanted):
            read_preprocessing(tmp_path)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_fingerprint_knows_weights_and_preprocessing(kind: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    embedder = loaded(folders, kind)
    assert embedder.fingerprint == loaded(folders, kind).fingerprint
    assert embedder.fingerprint.startswith(f"{kind}/")
    assert embedder.fingerprint.endswith(f"/{embedder.preprocessing.digest()}/float32")
    shutil.copytree(folders(kind), tmp_path / "other")
    given = json.loads((tmp_path / "other" / "preprocessor_config.json").read_text())
    (tmp_path / "other" / "preprocessor_config.json").write_text(json.dumps({**given, "resample": 2, "image_mean": [0.4] * 3}))
    other = load_embedder(f"{kind}:{tmp_path / 'other'}", HERE)
    assert other.fingerprint.split("/")[1] == embedder.fingerprint.split("/")[1]
    assert other.fingerprint != embedder.fingerprint


def test_older_weight_files_are_read_and_known(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """pytorch_model.bin, which some of the best known repositories still have alone."""
    shutil.copytree(folders("dinov2"), tmp_path / "old")
    torch.save(loaded(folders, "dinov2").model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    (tmp_path / "old" / "model.safetensors").unlink()
    old = load_embedder(f"dinov2:{tmp_path / 'old'}", HERE)
    assert torch.equal(old(pictures(1)), loaded(folders, "dinov2")(pictures(1)))
    assert old.fingerprint.split("/")[1] != loaded(folders, "dinov2").fingerprint.split("/")[1]


def test_instruments_are_found_by_name(folders: Callable[[str], Path]) -> None:
    names = [f"{kind}:{folders(kind)}" for kind in PROCESSORS]
    found = rig(Model("nothing"), names)
    assert list(found.embedders) == names
    assert isinstance(found.embedders[names[0]], ClipEmbedder)
    assert not found.distances
    with pytest.raises(UserError, match="unknown embedder 'clop': did you mean 'clip'"):
        load_embedder("clop:x", HERE)
    with pytest.raises(UserError, match=r"choose from <package.module>:<attribute>, clip, dinov2, embedded, inception, lpips, siglip"):
        load_embedder("nothing_like_it", HERE)
    with pytest.raises(UserError, match="the hub did not give it"):
        load_embedder("clip:owner/absent", HERE)
    with pytest.raises(UserError, match="'dinov2' needs a model: give a folder or a hub id, such as 'dinov2:facebook/dinov2-base'"):
        load_embedder("dinov2", HERE)
    with pytest.raises(UserError, match="'embedded' takes no 'small'"):
        load_embedder("embedded:small", HERE)


def test_a_rig_is_refused_before_anything_is_loaded(folders: Callable[[str], Path], tmp_path: Path) -> None:
    clip, nothing = f"clip:{folders('clip')}", f"clip:{tmp_path}"
    with pytest.raises(UserError, match="unknown embedder 'dino': did you mean 'dinov2'"):
        rig(Model("nothing"), [nothing, "dino"])
    with pytest.raises(UserError, match="is named twice: name it once"):
        rig(Model("nothing"), [nothing, nothing])
    with pytest.raises(UserError, match="are one instrument"):
        rig(Model("nothing"), [clip, clip + "/"])


def test_a_rig_parts_what_looks_from_what_compares(folders: Callable[[str], Path], tmp_path: Path) -> None:
    clip, lpips = f"clip:{folders('clip')}", f"lpips:squeeze:{save_lpips(tmp_path, 'squeeze')}"
    found = rig(Model("nothing"), [lpips, clip])
    assert (list(found.embedders), list(found.distances)) == ([clip], [lpips])
    assert set(found.fingerprints) == {clip, lpips}
    with pytest.raises(UserError, match="compares two images and gives no features"):
        load_embedder(lpips, HERE)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_damaged_instrument_is_named(kind: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(folders(kind), damaged)
    (damaged / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"cannot load a (CLIP|SigLIP|DINOv2) model from .*damaged") as caught:
        load_embedder(f"{kind}:{damaged}", HERE)
    assert caught.value.exit_code == 4
    shutil.copy(folders(kind) / "preprocessor_config.json", damaged)
    whole = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model.safetensors is truncated or damaged"):
        load_embedder(f"{kind}:{damaged}", HERE)


def test_weights_that_lack_a_part_or_are_another_models_are_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """Where transformers would fill up at random."""
    shutil.copytree(folders("dinov2"), tmp_path / "few")
    loaded(folders, "dinov2").model.save_pretrained(
        tmp_path / "few", state_dict={k: v for k, v in loaded(folders, "dinov2").model.state_dict().items() if "layernorm.weight" not in k}
    )
    with pytest.raises(UserError, match=r"its weights lack 'layernorm.weight'"):
        load_embedder(f"dinov2:{tmp_path / 'few'}", HERE)
    with pytest.raises(UserError, match=r"holds a model of type 'dinov2': name it 'dinov2:"):
        load_embedder(f"clip:{folders('dinov2')}", HERE)
    (tmp_path / "naflex").mkdir()
    (tmp_path / "naflex" / "config.json").write_text('{"model_type": "siglip2"}')
    with pytest.raises(UserError, match=r"type 'siglip2': 'siglip:' takes SigLIP 2 models of a fixed resolution"):
        load_embedder(f"siglip:{tmp_path / 'naflex'}", HERE)
