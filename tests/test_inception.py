"""FID's Inception against an independent forward pass of the same random weights, and the ways to its file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from diffprobe.adapters import inception
from diffprobe.adapters.inception import InceptionEmbedder, load_inception
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.model import Embedder
from tests.published import random_inception

HERE = LoadOptions(device="cpu")


def forward(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """pytorch-fid's computation, written straight from its architecture."""

    def unit(x: Tensor, name: str, stride: int = 1, same: bool = True) -> Tensor:
        weight = state[f"{name}.conv.weight"]
        padding = (weight.shape[2] // 2, weight.shape[3] // 2) if same else 0
        x = F.conv2d(x, weight, stride=stride, padding=padding)
        norm = [state[f"{name}.bn.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")]
        return ((x - norm[0]) / (norm[1] + 0.001).sqrt() * norm[2] + norm[3]).clamp(min=0)

    def chain(x: Tensor, block: str, *names: str) -> Tensor:
        for name in names:
            x = unit(x, f"{block}.{name}")
        return x

    def mean(x: Tensor) -> Tensor:
        places = F.avg_pool2d(torch.ones_like(x[:, :1]), 3, 1, 1, divisor_override=1)
        return F.avg_pool2d(x, 3, 1, 1, divisor_override=1) / places

    x = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False) * 2 - 1
    x = unit(unit(x, "Conv2d_1a_3x3", 2, same=False), "Conv2d_2a_3x3", same=False)
    x = F.max_pool2d(unit(x, "Conv2d_2b_3x3"), 3, 2)
    x = F.max_pool2d(unit(unit(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3", same=False), 3, 2)
    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        three = chain(x, b, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        x = torch.cat([chain(x, b, "branch1x1"), chain(x, b, "branch5x5_1", "branch5x5_2"), three, chain(mean(x), b, "branch_pool")], 1)
    three = unit(chain(x, "Mixed_6a", "branch3x3dbl_1", "branch3x3dbl_2"), "Mixed_6a.branch3x3dbl_3", 2, same=False)
    x = torch.cat([unit(x, "Mixed_6a.branch3x3", 2, same=False), three, F.max_pool2d(x, 3, 2)], 1)
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        once = chain(x, b, "branch7x7_1", "branch7x7_2", "branch7x7_3")
        twice = chain(x, b, *(f"branch7x7dbl_{i}" for i in range(1, 6)))
        x = torch.cat([chain(x, b, "branch1x1"), once, twice, chain(mean(x), b, "branch_pool")], 1)
    three = unit(chain(x, "Mixed_7a", "branch3x3_1"), "Mixed_7a.branch3x3_2", 2, same=False)
    seven = chain(x, "Mixed_7a", "branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3")
    x = torch.cat([three, unit(seven, "Mixed_7a.branch7x7x3_4", 2, same=False), F.max_pool2d(x, 3, 2)], 1)
    pools: dict[str, Callable[[Tensor], Tensor]] = {"Mixed_7b": mean, "Mixed_7c": lambda x: F.max_pool2d(x, 3, 1, 1)}
    for b, pool in pools.items():
        once, twice = chain(x, b, "branch3x3_1"), chain(x, b, "branch3x3dbl_1", "branch3x3dbl_2")
        wide = [chain(once, b, "branch3x3_2a"), chain(once, b, "branch3x3_2b")]
        wider = [chain(twice, b, "branch3x3dbl_3a"), chain(twice, b, "branch3x3dbl_3b")]
        x = torch.cat([chain(x, b, "branch1x1"), *wide, *wider, chain(pool(x), b, "branch_pool")], 1)
    return x.flatten(2).mean(2)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_inception()


@pytest.fixture(scope="module")
def file(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def embedder(file: Path) -> InceptionEmbedder:
    return load_inception(str(file), HERE)


def pictures(n: int, height: int, width: int) -> Tensor:
    torch.manual_seed(3)
    smooth = F.interpolate(torch.randn(n, 3, 6, 5), (height, width), mode="bicubic")
    return ((torch.sigmoid(smooth) * 255).round() / 255).contiguous()


def test_the_weights_are_the_published_ones_in_number(state: dict[str, Tensor], embedder: InceptionEmbedder) -> None:
    """23,850,960 with the classifier that features leave out, in 566 tensors, as torchvision and pytorch-fid count them."""
    learned = sum(value.numel() for name, value in state.items() if name.endswith(("weight", "bias")))
    assert (len(state), learned) == (566, 23_850_960)
    ours = embedder.network.state_dict()
    assert set(ours) == {name for name in state if not name.startswith("fc.")}
    assert sum(value.numel() for value in embedder.network.parameters()) == 23_850_960 - 1008 * 2049


def test_features_are_those_of_an_independent_forward_pass(state: dict[str, Tensor], embedder: InceptionEmbedder) -> None:
    images = pictures(2, 48, 64)
    found, wanted = embedder(images), forward(state, images)
    assert found.shape == (2, 2048)
    assert found.dtype == torch.float32
    assert float(wanted.std()) > 0.1
    assert float((found - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    alone = embedder(images[1:])  # in another batch
    assert float((found[1:] - alone).abs().max()) < 1e-5 * float(wanted.abs().max())


def test_preprocessing_is_that_of_the_published_features() -> None:
    """No antialiasing, proportions given up, [-1, 1]; to the bit."""
    for shape in ((64, 64), (400, 310), (299, 299)):
        images = pictures(1, *shape)
        theirs = 2 * F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False) - 1
        assert torch.equal(inception.PREPROCESSING(images), theirs)


def test_a_plain_picture_looks_the_same_at_any_size(embedder: InceptionEmbedder) -> None:
    plain = torch.full((1, 3, 40, 30), 77 / 255)
    larger = (torch.full((1, 3, 350, 301), 77, dtype=torch.uint8) / 255).float()
    assert torch.allclose(embedder(plain), embedder(larger), atol=1e-5)


def test_one_instrument_whatever_the_file_is_like(state: dict[str, Tensor], embedder: InceptionEmbedder, tmp_path: Path) -> None:
    """Without the counts and the classifier, with another classifier beside it, in another format."""
    other = {name: value for name, value in state.items() if not name.startswith("fc.") and not name.endswith("tracked")}
    save_file({**other, "AuxLogits.fc.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    before = torch.get_rng_state()
    assert load_inception(str(tmp_path / "other.safetensors"), HERE).fingerprint == embedder.fingerprint
    assert torch.equal(before, torch.get_rng_state())  # nothing was drawn at random on the way
    check: Embedder = embedder
    kind, weights, _, dtype = check.fingerprint.split("/")
    assert (kind, len(weights), dtype) == ("inception", 16, "float32")


def test_the_cache_of_torch_hub_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"put it in .*hub/checkpoints, or name it with 'inception:<path>'") as caught:
        load_inception("", HERE)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"fc.bias": torch.ones(2)}, folder / inception.PUBLISHED[0])
    with pytest.raises(UserError, match=r"6726825d.pth is not the file of that name \(sha256 [0-9a-f]{16}, not 6726825d\)"):
        load_inception("", HERE)
    with pytest.raises(UserError, match="not the file of that name"):  # nor by its path
        load_inception(str(folder / inception.PUBLISHED[0]), HERE)
    with pytest.raises(UserError, match="no Inception at 'nowhere'"):
        load_inception("nowhere", HERE)


def test_what_cannot_be_used_is_told_in_a_line(tmp_path: Path) -> None:
    def save(name: str, content: object) -> str:
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    bad = {
        save("few.pth", {"fc.bias": torch.ones(2)}): "lacks 'Conv2d_1a_3x3.conv.weight': it holds another network",
        save("shape.pth", {"Conv2d_1a_3x3.conv.weight": torch.ones(2)}): r"is \[2\], not \[32, 3, 3, 3\]",
        save("nested.pth", {"state_dict": {"a": torch.ones(2)}}): "is no state dict",
        save("module.pth", torch.nn.Linear(2, 2)): "cannot read .*module.pth",
    }
    (tmp_path / "cut.pth").write_bytes((tmp_path / "few.pth").read_bytes()[:200])
    bad[str(tmp_path / "cut.pth")] = "cannot read .*cut.pth"
    for path, told in bad.items():
        with pytest.raises(UserError, match=told) as caught:
            load_inception(path, HERE)
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
