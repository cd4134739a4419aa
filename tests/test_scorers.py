"""Scorers: the formula, the published heads on a small CLIP, what somebody brings, and a study that names them."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel
from typer.testing import CliRunner

from diffprobe import rng, worlds
from diffprobe.adapters.embedders import load_clip
from diffprobe.adapters.load import rig
from diffprobe.adapters.scorers import scorer
from diffprobe.adapters.weights import LoadOptions
from diffprobe.cli import app
from diffprobe.errors import UserError
from diffprobe.model import Model, Scorer
from diffprobe.runs.result import open_run
from diffprobe.runs.study import parse_study
from tests.pipelines import tokenizer

HERE = LoadOptions(device="cpu")
SOURCE = """
import torch

def red(images):
    return images[:, 0].mean((1, 2)).double()

class Column(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(self.layer.weight, 2.0)
        torch.nn.init.constant_(self.layer.bias, -1.0)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, images):
        return self.drop(self.layer(images.mean((2, 3))))

class Known:
    fingerprint = "mine/1"

    def __call__(self, images):
        return images.mean((1, 2, 3))[:, None]

def features(images):
    return images.mean((2, 3))

def one(images):
    return 3.0

def failing():
    raise RuntimeError("no licence\\nfor this")

number = 3
"""


def loaded(name: str) -> Scorer:
    return scorer(name)(HERE)


def pictures(n: int = 3, size: int = 48) -> Tensor:
    return torch.from_numpy(rng.stream("test.scorers").random((n, 3, size, size))).float()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes `my_scores.py`, importable."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "my_scores.py").write_text(SOURCE)
    sys.modules.pop("my_scores", None)
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP whose embeddings are as wide as ViT-L/14's."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    path = tmp_path_factory.mktemp("clip")
    text = {**small, "vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    config = CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=768)
    CLIPModel(config).save_pretrained(path)
    tokenizer(path).save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def linear(width: int = 768) -> dict[str, Tensor]:
    generator = rng.stream("test.scorers.linear", width)
    return {"weight": torch.from_numpy(generator.standard_normal((1, width))).float(), "bias": torch.tensor([5.0])}


def improved() -> dict[str, Tensor]:
    """As the improved predictor's file has it."""
    generator, state = rng.stream("test.scorers.improved"), {}
    for place, inside, outside in ((0, 768, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)):
        state[f"layers.{place}.weight"] = torch.from_numpy(generator.standard_normal((outside, inside)) / inside**0.5).float()
        state[f"layers.{place}.bias"] = torch.from_numpy(generator.standard_normal(outside)).float()
    return state


def saved(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def unit(clip: Path, images: Tensor) -> Tensor:
    features = load_clip(str(clip), HERE)(images).double()
    return features / features.square().sum(1, keepdim=True).sqrt()


def test_sharpness_of_images_whose_differences_are_known() -> None:
    look = loaded("sharpness")
    ramp = torch.arange(8.0).expand(3, 8, 8) / 10  # a step of 0.1 to the right, none down
    board = ((torch.arange(8)[:, None] + torch.arange(8)) % 2).float().expand(3, 8, 8)
    found = look(torch.stack([torch.full((3, 8, 8), 0.3), ramp, ramp.mT, board]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([0.0, 0.01, 0.01, 2.0]))


def test_sharpness_of_independent_pixels_is_a_third() -> None:
    """The mean square of a difference of two uniform numbers is 1/6, in either direction."""
    assert float(loaded("sharpness")(pictures(1, 512))[0]) == pytest.approx(1 / 3, rel=0.01)


def test_sharpness_knows_a_picture_out_of_focus_and_needs_neighbours() -> None:
    look = loaded("sharpness")
    scenes = torch.stack([torch.from_numpy(scene.image).permute(2, 0, 1) / 255 for scene in worlds.scenes(6, 1)])
    soft = torch.nn.functional.avg_pool2d(scenes, 3, 1, 1, count_include_pad=False)
    assert bool((look(soft) < 0.7 * look(scenes)).all())
    torch.testing.assert_close(look(scenes[2:4]), look(scenes)[2:4], rtol=0, atol=0)
    with pytest.raises(UserError, match=r"\[2, 3, 1, 8\] has none on one side"):
        look(torch.zeros(2, 3, 1, 8))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_linear_head_is_a_product_with_embeddings_of_length_1(tmp_path: Path, clip: Path, suffix: str) -> None:
    state, images = linear(), pictures()
    found = loaded(f"laion:{saved(tmp_path / f'head{suffix}', state)},clip={clip}")(images)
    assert found.dtype == torch.float32
    truth = unit(clip, images) @ state["weight"][0].double() + 5
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)


def test_the_improved_head_is_five_layers_in_a_row(tmp_path: Path, clip: Path) -> None:
    state, images = improved(), pictures()
    look = loaded(f"laion:{saved(tmp_path / 'improved.pth', state)},clip={clip}")
    values = unit(clip, images)
    for place in (0, 2, 4, 6, 7):  # without a dropout, and without a non-linearity
        values = values @ state[f"layers.{place}.weight"].double().T + state[f"layers.{place}.bias"].double()
    torch.testing.assert_close(look(images).double(), values[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(look(images[1:2]), look(images)[1:2], rtol=1e-4, atol=1e-4)


def test_a_heads_fingerprint_is_its_weights_and_its_clips(tmp_path: Path, clip: Path) -> None:
    names = ("a.pth", "b.safetensors")
    prints = [loaded(f"laion:{saved(tmp_path / name, linear())},clip={clip}").fingerprint for name in names]
    assert prints[0] == prints[1]  # the same weights in another format
    assert prints[0].startswith("laion-linear/")
    assert prints[0].endswith(load_clip(str(clip), HERE).fingerprint)
    other = saved(tmp_path / "c.pth", {**linear(), "bias": torch.tensor([5.5])})
    assert loaded(f"laion:{other},clip={clip}").fingerprint != prints[0]
    assert loaded(f"laion:{saved(tmp_path / 'd.pth', improved())},clip={clip}").fingerprint.startswith("laion-improved/")


def test_a_files_name_may_hold_what_looks_like_an_option(tmp_path: Path) -> None:
    path = saved(tmp_path / "head,clip=x.pth", linear())
    with pytest.raises(UserError, match="'openai/clip-vit-large-patch14' is neither a folder nor in the cache"):
        loaded(f"laion:{path}")  # the file is found; the CLIP that no option names is not here


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ({"weights": torch.ones(1, 768)}, r"is no LAION head \(weights\): it has 'weight' and 'bias'"),
        ({"weight": torch.ones(2, 768), "bias": torch.ones(2)}, r"'weight' of .* is \[2, 768\], not \[1, 768\]"),
        ({key: value for key, value in improved().items() if "7" not in key}, r"lacks 'layers\.7\.weight'"),
        ({"weight": torch.full((1, 768), torch.nan), "bias": torch.ones(1)}, "not finite"),
        (linear(512), r"gives 768 features and .*head\.pth takes 512: after clip= name the CLIP"),
        (torch.nn.Linear(768, 1), r"head\.pth"),
        ([1, 2], "is no state dict"),
    ],
)
def test_files_that_are_no_head(tmp_path: Path, clip: Path, state: Any, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        loaded(f"laion:{saved(tmp_path / 'head.pth', state)},clip={clip}")
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("laion", "'laion:' is not whole: give 'laion:<file>'"),
        ("laion:,clip=x", "'laion:,clip=x' is not whole"),
        ("laion:a.pth,clip=", "'laion:a.pth,clip=' is not whole"),
        ("laion:a.pth,clip=x,clip=y", "is not whole"),
        ("laion:a.pth,clop=x", "unknown option of 'laion:<file>' 'clop': did you mean 'clip'?"),
        ("laion:nowhere.pth", "no file 'nowhere.pth': give the path of an aesthetic head"),
        ("sharpness:2", "'sharpness' takes no '2'"),
        ("sharpnes", "unknown scorer 'sharpnes': did you mean 'sharpness'?"),
        ("not_a_module_here:net", "unknown scorer 'not_a_module_here': choose from <package.module>:<attribute>, laion, sharpness"),
        ("not.there:net", r"cannot load the scorer 'not.there:net' \(ModuleNotFoundError"),
    ],
)
def test_names_that_name_no_scorer(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        loaded(name)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("mine")
def test_what_somebody_brings_gives_one_number_an_image() -> None:
    images = torch.full((4, 3, 8, 6), 0.25)
    for name, truth in (("red", 0.25), ("Column", 0.5), ("Known", 0.25)):  # 2 x 0.75 - 1, the dropout off
        found = loaded(f"my_scores:{name}")(images)
        assert found.dtype == torch.float32
        assert not found.requires_grad
        torch.testing.assert_close(found, torch.full((4,), truth))
    assert loaded("my_scores:Known").fingerprint == "mine/1"
    assert loaded("my_scores:red").fingerprint.startswith("custom/my_scores:red/none/")
    assert loaded("my_scores:Column").fingerprint.split("/")[2] != "none"


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("features", r"'my_scores:features' must give scores \[2\] for 2 images, not \[2, 3\]"),
        ("one", r"must give scores \[2\] for 2 images, not float"),
        ("failing", r"cannot load the scorer 'my_scores:failing' \(RuntimeError: no licence\)"),
        ("number", r"'my_scores:number' \(int\) cannot be called"),
    ],
)
def test_what_gives_no_score_is_refused(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        loaded(f"my_scores:{name}")(torch.zeros(2, 3, 8, 8))


@pytest.mark.usefixtures("mine")
def test_a_rig_has_scorers_among_its_instruments() -> None:
    found = rig(Model("nothing"), [], ["sharpness", "my_scores:red"])
    assert list(found.scorers) == ["sharpness", "my_scores:red"]
    assert found.fingerprints == {name: one.fingerprint for name, one in found.scorers.items()}
    assert "embedder" not in found.capabilities
    for embedders, scorers in (([], ["sharpness", "sharpness"]), (["my_scores:features"], ["my_scores:features"])):
        with pytest.raises(UserError, match="is named twice: name it once"):
            rig(Model("nothing"), embedders, scorers)
    with pytest.raises(UserError, match="unknown scorer 'sharp'"):
        rig(Model("nothing"), ["clip:nowhere/at-all"], ["sharp"])  # before anything is loaded


def test_a_study_names_scorers() -> None:
    assert parse_study({"probes": ["drift"]}).scorers == ()
    assert parse_study({"probes": ["drift"], "scorers": ["sharpness"]}).scorers == ("sharpness",)
    with pytest.raises(UserError, match="'scorers' is 'sharpness'"):
        parse_study({"probes": ["drift"], "scorers": "sharpness"})
    with pytest.raises(UserError, match="unknown key in the study 'scorer': did you mean 'scorers'"):
        parse_study({"probes": ["drift"], "scorer": ["sharpness"]})


@pytest.mark.usefixtures("mine")
def test_a_run_records_the_scorers_of_its_study_and_refuses_others(tmp_path: Path) -> None:
    drift = {"kind": "drift", "count": 1, "budget": False, "prompt_sets": ["empty"], "strengths": [0.4]}
    content = {"model": "exact:gaussian", "embedders": [], "scorers": ["sharpness", "my_scores:red"], "probes": [drift]}

    def run(**changes: Any) -> Any:
        (tmp_path / "study.yaml").write_text(json.dumps({**content, **changes}))
        return CliRunner().invoke(app, ["run", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "run")])

    assert run().exit_code == 0
    about = open_run(tmp_path / "run").about
    assert about["embedders"]["sharpness"] == "sharpness/1"
    assert about["embedders"]["my_scores:red"].startswith("custom/my_scores:red/")
    assert run().exit_code == 0  # the same command resumes
    assert "belongs to another embedder: my_scores:red" in str(run(scorers=["sharpness"]).exception)
    assert "unknown scorer 'sharpnes'" in str(run(scorers=["sharpnes"]).exception)
