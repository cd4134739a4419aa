"""LPIPS in its three trunks against an independent forward pass of the same random weights, and the ways to its files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from diffprobe.adapters import lpips
from diffprobe.adapters.load import load_distance
from diffprobe.adapters.lpips import TRUNKS, load_lpips
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from tests.published import State, random_heads, random_trunk, save_lpips

HERE = LoadOptions(device="cpu")


def layers(name: str, state: State, x: Tensor) -> list[Tensor]:
    """What the trunk gives at the published layers, written straight from its architecture."""

    def conv(x: Tensor, place: int | str, stride: int = 1, padding: int = 0) -> Tensor:
        return F.relu(F.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], stride, padding))

    def fire(x: Tensor, place: int) -> Tensor:
        x = conv(x, f"{place}.squeeze")
        return torch.cat([conv(x, f"{place}.expand1x1"), conv(x, f"{place}.expand3x3", padding=1)], 1)

    if name == "alex":
        first = conv(x, 0, 4, 2)
        second = conv(F.max_pool2d(first, 3, 2), 3, 1, 2)
        third = conv(F.max_pool2d(second, 3, 2), 6, 1, 1)
        fourth = conv(third, 8, 1, 1)
        return [first, second, third, fourth, conv(fourth, 10, 1, 1)]
    found = []
    if name == "vgg":
        for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)):
            for place in block:
                x = conv(x, place, 1, 1)
            found.append(x)
            x = F.max_pool2d(x, 2)
        return found
    found.append(conv(x, 0, 2))
    for fires in ((3, 4), (6, 7), (9,), (10,), (11,), (12,)):
        x = F.max_pool2d(found[-1], 3, 2, ceil_mode=True) if fires[0] in (3, 6, 9) else found[-1]
        for place in fires:
            x = fire(x, place)
        found.append(x)
    return found


def distance(name: str, trunk: State, heads: State, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS v0.1 by its definition, in float64."""
    shift, scale = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in ((-0.03, -0.088, -0.188), (0.458, 0.448, 0.45)))
    state = {key: value.double() for key, value in trunk.items()}
    seen = [layers(name, state, (2 * x.double() - 1 - shift) / scale) for x in (a, b)]
    total = torch.zeros(len(a), dtype=torch.float64)
    for i, both in enumerate(zip(*seen, strict=True)):
        x, y = (part / (torch.linalg.vector_norm(part, dim=1, keepdim=True) + 1e-10) for part in both)
        total += F.conv2d((x - y) ** 2, heads[f"lin{i}.model.1.weight"].double()).mean((1, 2, 3))
    return total


def pictures(n: int, height: int, width: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.sigmoid(F.interpolate(torch.randn(n, 3, 6, 5), (height, width), mode="bicubic"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a trunk's files with random weights."""
    root = tmp_path_factory.mktemp("lpips")

    def folder(name: str) -> Path:
        return root / name if (root / name).exists() else save_lpips(root / name, name)

    return folder


@pytest.mark.parametrize(("name", "weights"), [("alex", 2_469_696), ("vgg", 14_714_688), ("squeeze", 722_496)])
def test_distances_are_those_of_an_independent_forward_pass(name: str, weights: int, files: Callable[[str], Path]) -> None:
    """Of the same weights, as many as torchvision's features have; alone, in a batch, in chunks, in either order."""
    measure = load_lpips(f"{name}:{files(name)}", HERE)
    assert sum(value.numel() for value in measure.network.parameters()) == weights
    a, b = pictures(3, 48, 40, seed=3), pictures(3, 48, 40, seed=4)
    wanted = distance(name, random_trunk(name), random_heads(name), a, b)
    found = measure(a, b)
    assert found.dtype == torch.float32
    assert found.double().numpy() == pytest.approx(wanted.numpy(), rel=1e-5)
    assert float(measure(a[2:], b[2:])) == pytest.approx(float(wanted[2]), rel=1e-5)
    assert measure(b, a).numpy() == pytest.approx(found.numpy(), rel=1e-5)
    assert float(measure(a, a).abs().max()) < 1e-10


def test_a_small_memory_changes_nothing(files: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    measure = load_lpips(f"squeeze:{files('squeeze')}", HERE)
    a, b = pictures(4, 32, 32, seed=3), pictures(4, 32, 32, seed=4)
    together = measure(a, b)
    monkeypatch.setattr(lpips, "_PIXELS", 2 * 32 * 32 * 3)  # three pairs, then one
    assert measure(a, b).numpy() == pytest.approx(together.numpy(), rel=1e-5)
    assert measure(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("name", TRUNKS)
def test_the_least_size_is_the_least(name: str, files: Callable[[str], Path]) -> None:
    measure, least = load_lpips(f"{name}:{files(name)}", HERE), TRUNKS[name].least
    assert torch.isfinite(measure(torch.zeros(1, 3, least, least), torch.ones(1, 3, least, least))).all()
    with pytest.raises(UserError, match=f"lpips:{name} needs images of at least {least} pixels a side, not {least + 9} x {least - 1}"):
        measure(torch.zeros(1, 3, least + 9, least - 1), torch.ones(1, 3, least + 9, least - 1))
    with pytest.raises(RuntimeError):  # and the trunk itself could not
        layers(name, random_trunk(name), torch.zeros(1, 3, least - 1, least - 1))
    with pytest.raises(ValueError, match="of one shape"):
        measure(torch.zeros(1, 3, 40, 40), torch.zeros(2, 3, 40, 40))


def test_one_instrument_whatever_its_files_are_like(files: Callable[[str], Path], tmp_path: Path) -> None:
    """In another format, without the classifier: one fingerprint. Another weight, in trunk or heads: another one."""
    first = load_distance(f"lpips:alex:{files('alex')}", HERE)
    trunk, heads = random_trunk("alex"), random_heads("alex")
    prints = [first.fingerprint]
    for place, scale in (("format", 1.0), ("trunk", 1.5), ("heads", 1.0)):
        (tmp_path / place).mkdir()
        features = {key: value * scale for key, value in trunk.items() if key.startswith("features.")}
        save_file(features, tmp_path / place / "alexnet.safetensors")
        save_file({key: value * (2 if place == "heads" else 1) for key, value in heads.items()}, tmp_path / place / "alex.safetensors")
        prints.append(load_distance(f"lpips:alex:{tmp_path / place}", HERE).fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    kind, weights, look, dtype = prints[0].split("/")
    assert (kind, len(weights), len(look), dtype) == ("lpips-alex", 16, 16, "float32")


def test_the_cache_of_torch_hub_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    told = (
        r"lpips:vgg needs vgg16-397923af.pth .* and vgg.pth .* in .*hub/checkpoints, which lacks vgg16-397923af.pth and vgg.pth: put both"
    )
    with pytest.raises(UserError, match=told) as caught:
        load_lpips("vgg", HERE)
    assert caught.value.exit_code == 4
    torch.save(random_heads("vgg"), folder / "vgg.pth")
    torch.save(random_heads("vgg"), folder / "vgg16-other.pth")  # another name counts only in a folder that is named
    with pytest.raises(UserError, match=r"which lacks vgg16-397923af.pth: put both there, or name their folder with 'lpips:vgg:<folder>'"):
        load_lpips("vgg", HERE)
    torch.save(random_heads("vgg"), folder / "vgg16-397923af.pth")
    with pytest.raises(UserError, match=r"vgg16-397923af.pth is not the file of that name \(sha256 [0-9a-f]{16}, not 397923af\)"):
        load_lpips("vgg", HERE)


def test_what_cannot_be_used_is_told_in_a_line(files: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown LPIPS trunk 'alexx': did you mean 'alex'"):
        load_lpips("alexx", HERE)
    with pytest.raises(UserError, match="unknown LPIPS trunk '': choose from alex, squeeze, vgg"):
        load_lpips("", HERE)
    torch.save(random_trunk("alex"), tmp_path / "alexnet.pth")
    torch.save(random_heads("vgg"), tmp_path / "alex.pth")
    with pytest.raises(UserError, match=r"alex.pth does not hold LPIPS v0.1's 5 heads for alexnet"):
        load_lpips(f"alex:{tmp_path}", HERE)
    torch.save(random_trunk("squeeze"), tmp_path / "alexnet-2.pth")
    with pytest.raises(UserError, match=r"holds several trunks \(alexnet-2.pth, alexnet.pth, ...\): keep one"):
        load_lpips(f"alex:{tmp_path}", HERE)
    (tmp_path / "alexnet.pth").unlink()
    torch.save(random_heads("alex"), tmp_path / "alex.pth")
    with pytest.raises(UserError, match=r"'0.weight' of .* is \[64, 3, 3, 3\], not \[64, 3, 11, 11\]: it holds another network"):
        load_lpips(f"alex:{tmp_path}", HERE)
