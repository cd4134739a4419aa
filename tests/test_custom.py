"""Instruments of one's own: what an import path may name, and what its fingerprint knows."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffprobe.adapters.load import load_embedder, rig
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.model import Model, TextEmbedder

HERE = LoadOptions(device="cpu")
SOURCE = """
import torch

def means(images, scale=2.0):
    return scale * images.mean((2, 3)).double()

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)
        with torch.no_grad():
            self.layer.weight.fill_(0.5)
            self.layer.bias.fill_(WEIGHT)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, images):
        return self.drop(self.layer(images.mean((2, 3))))

def make():
    return Net()

net = Net()

class holder:
    look = staticmethod(means)

class Known:
    fingerprint = "mine/1"

    def __call__(self, images):
        return images.mean((2, 3))

    def embed_text(self, texts):
        return torch.zeros(len(texts), 3)

def whole(images):
    return images

def failing():
    raise RuntimeError("no licence\\nfor this")

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes `my_features.py`, importable, anew."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(weight: float = 1.0, note: str = "") -> None:
        (tmp_path / "my_features.py").write_text(SOURCE.replace("WEIGHT", str(weight)) + note)
        sys.modules.pop("my_features", None)
        importlib.invalidate_caches()

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module rewritten within a second would be read from its old bytecode
    return write


def test_functions_networks_and_what_makes_them(module: Callable[..., None]) -> None:
    module()
    images = torch.full((4, 3, 8, 6), 0.25)
    for name in ("means", "holder.look"):
        features = load_embedder(f"my_features:{name}", HERE)(images)
        assert features.dtype == torch.float32
        assert torch.equal(features, torch.full((4, 3), 0.5))
    for name in ("Net", "make", "net"):
        features = load_embedder(f"my_features:{name}", HERE)(images)  # 0.5 x 0.75 + 1: the dropout is off
        assert torch.allclose(features, torch.full((4, 5), 1.375))
        assert not features.requires_grad
    own = load_embedder("my_features:Known", HERE)
    assert own.fingerprint == "mine/1"
    assert isinstance(own, TextEmbedder)


def test_the_fingerprint_knows_weights_path_and_source(module: Callable[..., None]) -> None:
    def prints() -> dict[str, list[str]]:
        return {name: load_embedder(f"my_features:{name}", HERE).fingerprint.split("/") for name in ("means", "Net", "make")}

    module()
    first = prints()
    assert first == prints()
    assert first["means"][:3] == ["custom", "my_features:means", "none"]
    assert first["Net"][1:] == ["my_features:Net", first["make"][2], first["make"][3], "float32"]
    module(weight=2.0)
    assert prints()["Net"][2] != first["Net"][2]
    module(note="# changed\n")
    changed = prints()
    assert changed["Net"][2] == first["Net"][2]
    assert changed["means"][3] != first["means"][3]


def test_a_rig_takes_them_beside_the_others(module: Callable[..., None]) -> None:
    module()
    found = rig(Model("nothing"), ["my_features:means", "my_features:Net"])
    assert list(found.embedders) == ["my_features:means", "my_features:Net"]


def test_modules_of_packages_are_found() -> None:
    found = load_embedder("torch.nn:Flatten", HERE)
    assert found(torch.ones(2, 3, 4, 4)).shape == (2, 48)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("my_features:absent", r"cannot load the embedder 'my_features:absent' \(AttributeError: .*absent"),
        ("my_features:failing", r"\(RuntimeError: no licence\): is its folder on PYTHONPATH\?"),
        ("my_features:number", r"'my_features:number' \(int\) cannot be called"),
        ("not.there:net", r"\(ModuleNotFoundError: No module named 'not'\): is its folder on PYTHONPATH\?"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_line(name: str, told: str, module: Callable[..., None]) -> None:
    module()
    with pytest.raises(UserError, match=told) as caught:
        load_embedder(name, HERE)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_a_kind_that_is_not_known() -> None:
    with pytest.raises(UserError, match=r"unknown embedder 'not_a_module_here': choose from <package.module>:<attribute>, clip"):
        load_embedder("not_a_module_here:net", HERE)


def test_what_is_no_matrix_is_refused(module: Callable[..., None]) -> None:
    module()
    with pytest.raises(UserError, match=r"'my_features:whole' must give features \[2, D\] for 2 images, not \[2, 3, 4, 4\]"):
        load_embedder("my_features:whole", HERE)(torch.zeros(2, 3, 4, 4))
