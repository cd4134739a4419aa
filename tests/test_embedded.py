"""The model that ships: what its card says, seen again on fewer samples, and that plain diffusers loads it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from diffprobe import worlds
from diffprobe.adapters.embedded import folder, load_embedded, load_embedded_clip
from diffprobe.adapters.weights import LoadOptions
from diffprobe.measures.similarity import psnr
from diffprobe.model import Model
from zoo import classifier
from zoo.data import HEADS, HELD_OUT

N = 200


@pytest.fixture(scope="module")
def model() -> Model:
    return load_embedded(LoadOptions(device="cpu"))


@pytest.fixture(scope="module")
def scenes() -> list[worlds.Scene]:
    return worlds.scenes(N, HELD_OUT)


@pytest.fixture(scope="module")
def images(scenes: list[worlds.Scene]) -> torch.Tensor:
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255


def labels(scenes: list[worlds.Scene]) -> torch.Tensor:
    return torch.tensor([[values.index(getattr(scene.attributes, head)) for head, values in HEADS.items()] for scene in scenes])


def test_it_is_small_enough_to_ship_and_holds_no_pickle() -> None:
    files = [file for file in folder().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25e6
    assert {file.suffix for file in files} <= {".json", ".txt", ".safetensors", ".md"}
    assert (folder() / "README.md").is_file()


def test_plain_diffusers_loads_it_with_the_settings_of_stable_diffusion() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder())
    config = pipe.scheduler.config
    assert config._class_name == "DDIMScheduler"
    assert (config.beta_schedule, config.timestep_spacing, config.steps_offset) == ("scaled_linear", "leading", 1)
    assert float(pipe.scheduler.alphas_cumprod[999]) == pytest.approx(0.00466, abs=1e-5)


@pytest.mark.parametrize(("strength", "steps", "start"), [(0.1, 1, 1), (0.2, 3, 133), (0.3, 4, 199), (0.4, 6, 331)])
def test_strengths_mean_what_they_mean_there(model: Model, strength: float, steps: int, start: int) -> None:
    assert model.editor is not None
    level = model.editor.level(strength, 15)
    assert (level.steps, level.t) == (steps, start)


def test_the_autoencoder_reaches_its_quality(model: Model, images: torch.Tensor) -> None:
    assert model.codec is not None
    with torch.no_grad():
        rebuilt = model.codec.decode(model.codec.encode(images)).clamp(0, 1)
    assert float(psnr(images, rebuilt).mean()) > 29


def test_clip_finds_the_caption_among_a_hundred(scenes: list[worlds.Scene], images: torch.Tensor) -> None:
    clip = load_embedded_clip(LoadOptions(device="cpu"))
    a = torch.nn.functional.normalize(clip(images), dim=1)
    b = torch.nn.functional.normalize(clip.embed_text([scene.caption for scene in scenes]), dim=1)
    right = [(a[i : i + 100] @ b[i : i + 100].T).argmax(1) == torch.arange(100) for i in range(0, N, 100)]
    assert float(torch.cat(right).float().mean()) > 0.6


def test_the_judge_is_right_on_originals(scenes: list[worlds.Scene], images: torch.Tensor) -> None:
    shares = classifier.accuracy(classifier.load(), (images * 255).round().to(torch.uint8), labels(scenes))
    assert min(shares.values()) > 0.95, shares


@pytest.mark.slow
def test_samples_show_what_their_prompt_says(model: Model) -> None:
    """A tenth of the card's samples and half of its steps; the bounds leave three standard errors below what the card must say."""
    asked = [scene for scene in worlds.scenes(40, HELD_OUT) if scene.attributes.tone == "colour"][:24]
    assert model.generator is not None
    images = model.generator.generate([worlds.caption(scene.attributes) for scene in asked], range(len(asked)), 25, 5.0)
    shares = classifier.accuracy(classifier.load(), (images * 255).round().to(torch.uint8), labels(asked))
    assert shares["colour"] > 0.72, shares
    assert shares["background"] > 0.72, shares
    assert shares["shape"] > 0.17, shares  # a sixth is chance


def test_the_card_holds_the_measured_numbers() -> None:
    card = (folder() / "README.md").read_text()
    numbers = json.loads((Path(__file__).parent.parent / "zoo" / "embedded.json").read_text())
    assert f"PSNR {numbers['psnr']:.2f} dB" in card
    at_five = numbers["results"]["samples at guidance 5"]
    assert at_five["colour"] >= 0.9
    assert at_five["background"] >= 0.9
    assert at_five["shape"] >= 0.45
    assert all(f"{share:.3f}" in card for share in at_five.values())
