"""The models that ship: what their cards say, seen again on fewer samples, and that plain diffusers loads them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from PIL import Image

from diffprobe import worlds
from diffprobe.adapters.catalogue import catalogue
from diffprobe.adapters.edm import ClassConditionalPipeline
from diffprobe.adapters.embedded import LORAS, MEMBERS, folder, load_embedded_clip, load_member
from diffprobe.adapters.exact import WORLDS
from diffprobe.adapters.weights import LoadOptions
from diffprobe.measures.similarity import psnr
from diffprobe.model import EditSettings, GenerateSettings, Model, Rig
from diffprobe.probes.drift import Drift
from diffprobe.runs.result import start
from zoo import classifier
from zoo.data import HEADS, HELD_OUT

N = 200
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model() -> Model:
    return load_member("embedded", LoadOptions(device="cpu"))


@pytest.fixture(scope="module")
def scenes() -> list[worlds.Scene]:
    return worlds.scenes(N, HELD_OUT)


@pytest.fixture(scope="module")
def images(scenes: list[worlds.Scene]) -> torch.Tensor:
    return torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2).float() / 255


def labels(scenes: list[worlds.Scene]) -> torch.Tensor:
    return torch.tensor([[values.index(getattr(scene.attributes, head)) for head, values in HEADS.items()] for scene in scenes])


def test_they_are_small_enough_to_ship_and_hold_no_pickle() -> None:
    files = {name: [file for file in folder(name).rglob("*") if file.is_file()] for name in MEMBERS}
    weights = [file for found in files.values() for file in found if file.suffix == ".safetensors"]
    assert sum(file.stat().st_size for file in weights) <= 60e6
    assert sum(file.stat().st_size for file in files["embedded"]) < 20e6
    assert {file.suffix for found in files.values() for file in found} <= {".json", ".txt", ".safetensors", ".md", ".png", ""}


@pytest.mark.parametrize("name", MEMBERS)
def test_every_weight_file_is_listed_with_its_digest(name: str) -> None:
    lines = (folder(name) / "SHA256SUMS").read_text().splitlines()
    listed = {path: digest for digest, path in (line.split("  ") for line in lines)}
    present = {file.relative_to(folder(name)).as_posix(): file for file in folder(name).rglob("*.safetensors")}
    assert listed == {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in present.items()}


def test_plain_diffusers_loads_them_with_the_settings_of_their_families() -> None:
    config = StableDiffusionPipeline.from_pretrained(folder()).scheduler.config
    assert config._class_name == "DDIMScheduler"
    assert (config.beta_schedule, config.timestep_spacing, config.steps_offset) == ("scaled_linear", "leading", 1)
    velocity = StableDiffusionPipeline.from_pretrained(folder("embedded-v")).scheduler
    assert velocity.config.prediction_type == "v_prediction"
    assert float(velocity.alphas_cumprod[999]) == pytest.approx(0.00466, abs=1e-5)
    flow = StableDiffusionPipeline.from_pretrained(folder("embedded-flow")).scheduler.config
    assert (flow.use_flow_sigmas, flow.flow_shift, flow.prediction_type) == (True, 3.0, "flow_prediction")
    edit = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder("embedded-edit"))
    assert edit.unet.config.in_channels == 8
    edm = ClassConditionalPipeline.from_pretrained(folder("embedded-edm"))
    assert (edm.scheduler.config.sigma_min, edm.scheduler.config.sigma_max) == (0.002, 80.0)
    assert len(edm.labels) == 45  # 48 pairs of colour and shape without the reserved four, and none
    assert edm.classes(["a purple star"]).tolist() == [edm.labels[""]]


@pytest.mark.parametrize("name", [name for name in MEMBERS if name not in LORAS])
def test_plain_diffusers_runs_them_as_they_are(name: str) -> None:
    kinds = {"embedded-edit": StableDiffusionInstructPix2PixPipeline, "embedded-edm": ClassConditionalPipeline}
    pipe = kinds.get(name, StableDiffusionPipeline).from_pretrained(folder(name))
    pipe.set_progress_bar_config(disable=True)
    seen = {"image": Image.new("RGB", (64, 64), "grey")} if name == "embedded-edit" else {}
    made = pipe("a red star", **seen, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert made.size == (64, 64)


def test_plain_diffusers_puts_the_lora_on_its_base() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(folder())
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(folder("embedded-pastel"))
    assert pipe("a red star", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0].size == (64, 64)


def test_they_share_one_autoencoder() -> None:
    digests = {name: hashlib.sha256((folder(name) / VAE).read_bytes()).hexdigest() for name in MEMBERS if name not in LORAS}
    assert len(set(digests.values())) == 1, digests


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_does_what_the_list_says(name: str, images: torch.Tensor) -> None:
    model = load_member(name, LoadOptions(device="cpu"))
    assert model.name == name
    assert model.identity["source"] == name
    assert ("lora" in model.identity) == (name in LORAS)
    assert model.codec is not None
    assert model.editor is not None
    edits_anywhere = name != "embedded-edit"
    assert model.editor.strength_axis == edits_anywhere
    assert (model.generator is not None) == edits_anywhere
    assert model.denoiser is not None
    settings = EditSettings(0.5 if edits_anywhere else 1.0, 4, 2.0)
    edited = model.editor.edit(model.codec.encode(images[:2]), ["a red star", "Make no change."], [0, 1], settings)
    assert edited.images.shape == (2, 3, 64, 64)
    assert bool(edited.images.isfinite().all())


@pytest.mark.parametrize("name", MEMBERS)
def test_a_run_on_every_member_finishes(name: str, tmp_path: Path) -> None:
    model = load_member(name, LoadOptions(device="cpu"))
    probe = Drift(count=2, prompt_sets=("empty",), strengths=(0.4, 0.6), num_inference_steps=(5,)).suited(model)
    run = start(Rig(model, {"embedded": load_embedded_clip(LoadOptions(device="cpu"))}), [probe], tmp_path)
    assert run.done == run.planned
    assert not run.failures
    assert (run.table["value"].notna() & (run.table["quantity"] == "mse")).any()
    assert run.about["model"]["name"] == name


def test_the_list_names_what_can_be_loaded() -> None:
    entries = {entry.name: entry for entry in catalogue()}
    assert {name.removeprefix("exact:") for name in entries if name.startswith("exact:") and "<" not in name} == set(WORLDS)
    for name in MEMBERS:
        assert entries[name].place == folder(name)
        assert entries[name].megabytes == pytest.approx(sum(f.stat().st_size for f in folder(name).rglob("*") if f.is_file()) / 1e6)
        assert ("generates" in entries[name].does) == (name != "embedded-edit")


@pytest.mark.parametrize(("strength", "steps", "start"), [(0.1, 1, 1), (0.2, 3, 133), (0.3, 4, 199), (0.4, 6, 331)])
def test_strengths_mean_what_they_mean_there(model: Model, strength: float, steps: int, start: int) -> None:
    assert model.editor is not None
    level = model.editor.level(strength, 15)
    assert (level.steps, level.t) == (steps, start)


def test_the_autoencoder_reaches_its_quality(model: Model, images: torch.Tensor) -> None:
    assert model.codec is not None
    with torch.no_grad():
        rebuilt = model.codec.decode(model.codec.encode(images)).clamp(0, 1)
    assert float(psnr(images, rebuilt).mean()) > 30


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
    """A tenth of the card's samples and half of its steps: the bounds leave three standard errors below what the card must say."""
    asked = [scene for scene in worlds.scenes(40, HELD_OUT) if scene.attributes.tone == "colour"][:24]
    assert model.generator is not None
    captions = [worlds.caption(scene.attributes) for scene in asked]
    images = model.generator.generate(captions, range(len(asked)), GenerateSettings(25, 5.0))
    shares = classifier.accuracy(classifier.load(), (images * 255).round().to(torch.uint8), labels(asked))
    for head, must in (("colour", 0.95), ("background", 0.95), ("shape", 0.8), ("detail", 0.6)):
        assert shares[head] > must - 3 * (must * (1 - must) / len(asked)) ** 0.5, shares


def numbers(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder(name) / "evaluation.json").read_text())
    return found


@pytest.mark.parametrize("name", ["embedded", "embedded-v", "embedded-flow"])
def test_the_text_models_reached_their_quality_and_the_cards_say_it(name: str) -> None:
    card, found = (folder(name) / "README.md").read_text(), numbers(name)
    at_five = found["rows"]["guidance 5"]
    assert at_five["colour"] >= 0.95
    assert at_five["background"] >= 0.95
    assert at_five["shape"] >= 0.8
    assert at_five["detail"] >= 0.6
    assert found["psnr"] >= 30
    assert found["rows"]["reconstructions"]["detail"] >= 0.9 * found["rows"]["originals"]["detail"]
    assert f"PSNR {found['psnr']:.2f} dB" in card
    assert all(f"{share:.3f}" in card for row in found["rows"].values() for share in row.values())
    assert all(f"{row['limit']:.4f}" in card for row in found["frechet"].values())


def test_the_edit_model_follows_and_leaves_the_rest_alone() -> None:
    found = numbers("embedded-edit")
    assert found["followed"] >= 0.6
    large = [kind for kind in found["kinds"].values() if kind["n"] >= 30]
    assert len(large) == 5
    assert min(kind["rest"] for kind in large) >= 0.8
    assert found["kinds"]["none"]["psnr"] > 28  # near to what the autoencoder alone leaves
    assert f"{found['followed']:.1%}" in (folder("embedded-edit") / "README.md").read_text()


def test_the_lora_moves_to_its_style() -> None:
    rows = numbers("embedded-pastel")["rows"]
    for head in ("lightness", "saturation"):
        base, wanted, ours = (rows[name][head] for name in ("base", "scenes in the style", "this model"))
        assert abs(ours - wanted) < 0.3 * abs(base - wanted), head


def test_classes_are_drawn_as_asked() -> None:
    found = numbers("embedded-edm")["rows"]
    best = {head: max(row[head] for row in found.values()) for head in ("shape", "colour")}
    assert min(best.values()) >= 0.9, best


@pytest.mark.slow
def test_edits_follow_their_instructions() -> None:
    """A few of the card's edits at a quarter of its steps."""
    model, asked = load_member("embedded-edit", LoadOptions(device="cpu")), worlds.edits(16, HELD_OUT, kinds=("colour", "background"))
    assert model.codec is not None
    assert model.editor is not None
    seen = torch.from_numpy(np.stack([edit.before.image for edit in asked])).permute(0, 3, 1, 2) / 255
    edited = model.editor.edit(model.codec.encode(seen), [edit.instruction for edit in asked], range(16), EditSettings(1.0, 12, 5.0))
    answers = classifier.answers(classifier.load(), (edited.images.clamp(0, 1) * 255).round().to(torch.uint8))
    wanted = labels([edit.after for edit in asked])
    column = torch.tensor([list(HEADS).index(edit.kind) for edit in asked])[:, None]
    clear = torch.tensor([edit.after.attributes.tone == "colour" for edit in asked])
    assert float((answers.gather(1, column) == wanted.gather(1, column))[clear].float().mean()) > 0.4
