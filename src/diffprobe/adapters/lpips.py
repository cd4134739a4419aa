"""LPIPS: how different two images look, learned from human judgements (Zhang et al. 2018), version 0.1, in its three published trunks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffprobe.adapters.preprocessing import digest_of
from diffprobe.adapters.published import checkpoints, digest_state, fill, read_state
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError, unknown
from diffprobe.measures.precision import full_float32

EPS = 1e-10  # beside the norm of a feature, so that an empty one stays zero
_PIXELS = 1 << 21  # of both images together that run at once: what the widest layer makes of them stays within half a GiB


@dataclass(frozen=True)
class Trunk:
    """A classifier's convolutional part, cut after the layers of `taps`, which give `channels`; `least` pixels a side survive it."""

    build: Callable[[], nn.Sequential]
    published: tuple[str, ...]  # the same weights under the names they have had
    stem: str
    source: str
    taps: tuple[int, ...]
    channels: tuple[int, ...]
    least: int


class Fire(nn.Module):
    """SqueezeNet's module: a few channels, then 1 x 1 and 3 x 3 side by side."""

    def __init__(self, inside: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


def _alexnet() -> nn.Sequential:
    first, second = nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.Conv2d(64, 192, 5, padding=2)
    rest = [layer for i, o in ((192, 384), (384, 256), (256, 256)) for layer in (nn.Conv2d(i, o, 3, padding=1), nn.ReLU())]
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(3, 2), second, nn.ReLU(), nn.MaxPool2d(3, 2), *rest)


def _vgg16() -> nn.Sequential:
    layers, inside = list[nn.Module](), 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU()]
            inside = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers[:-1])


def _squeezenet() -> nn.Sequential:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    early = [pool(), Fire(64, 16, 64), Fire(128, 16, 64), pool(), Fire(128, 32, 128), Fire(256, 32, 128), pool()]
    late = [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    return nn.Sequential(nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), *early, *late)


TRUNKS = {
    "alex": Trunk(
        _alexnet,
        ("alexnet-owt-7be5be79.pth", "alexnet-owt-4df8aa71.pth"),
        "alexnet",
        "torchvision's AlexNet",
        (1, 4, 7, 9, 11),
        (64, 192, 384, 256, 256),
        31,
    ),
    "vgg": Trunk(
        _vgg16, ("vgg16-397923af.pth",), "vgg16", "torchvision's VGG16", (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16
    ),
    "squeeze": Trunk(
        _squeezenet,
        ("squeezenet1_1-b8a52dc0.pth", "squeezenet1_1-f364aa15.pth"),
        "squeezenet1_1",
        "torchvision's SqueezeNet 1.1",
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        17,
    ),
}  # fmt: skip


def prepare(images: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], and the shift and scale that LPIPS was fitted behind."""
    shift, scale = (images.new_tensor(values).view(-1, 1, 1) for values in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    return (2 * images - 1 - shift) / scale


@dataclass(frozen=True, eq=False)
class Lpips:
    """LPIPS of pairs of images [B, 3, H, W] in [0, 1], as they are: [B] float32, 0 for equal images."""

    name: str
    trunk: Trunk
    network: nn.Sequential
    heads: tuple[Tensor, ...]
    device: torch.device
    fingerprint: str

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Raises UserError for images smaller than the trunk's `least`, ValueError for batches of two shapes."""
        if a.shape != b.shape or a.ndim != 4:
            raise ValueError(f"{self.name} needs two tensors [B, 3, H, W] of one shape, not {list(a.shape)} and {list(b.shape)}")
        height, width = a.shape[-2:]
        if min(height, width) < self.trunk.least:
            raise UserError(
                f"{self.name} needs images of at least {self.trunk.least} pixels a side, not {height} x {width}: "
                f"compare larger ones (drift's `measured`), or leave {self.name} out"
            )
        pairs = max(1, _PIXELS // (2 * height * width))
        with torch.no_grad(), full_float32():
            parts = [self._distances(*both) for both in zip(a.split(pairs), b.split(pairs), strict=True)]
        return torch.cat(parts) if parts else torch.zeros(0)

    def _distances(self, a: Tensor, b: Tensor) -> Tensor:
        """sum over layers of the mean over places of w . (f(a) - f(b))^2, f of unit length over channels."""
        total = torch.zeros(len(a), device=self.device)
        both = prepare(torch.cat([a, b]).float().to(self.device))
        for features, head in zip(self._features(both), self.heads, strict=True):
            unit = features / (features.square().sum(1, keepdim=True).sqrt() + EPS)
            first, second = unit.chunk(2)
            total += ((first - second).square() * head).sum(1).mean((1, 2))
        return total.float().cpu()

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        for start, end in pairwise((-1, *self.trunk.taps)):
            x = self.network[start + 1 : end + 1](x)
            yield x


def load_lpips(spec: str, options: LoadOptions) -> Lpips:
    """LPIPS by '<trunk>' or '<trunk>:<folder>': trunk and heads from the folder, or from torch hub's cache.

    Raises UserError with the nearest trunk, or (exit code 4) with both files and where to put them.
    """
    name, _, folder = spec.partition(":")
    if name not in TRUNKS:
        raise unknown("LPIPS trunk", name, TRUNKS)
    trunk, device = TRUNKS[name], options.place()[0]
    place = Path(folder).expanduser() if folder else checkpoints()
    body, fitted = _files(name, place, any_name=bool(folder))
    state = read_state(body, trunk.published)
    features = {key.removeprefix("features."): value for key, value in state.items() if not key.startswith("classifier.")}
    network = fill(trunk.build, features, body).to(device)
    heads = _heads(read_state(fitted), trunk, fitted)
    digest = digest_state({**network.state_dict(), **{f"lin{i}": head for i, head in enumerate(heads)}})
    told = f"lpips-{name}/{digest[:16]}/{digest_of(prepare)}/float32"
    return Lpips(f"lpips:{name}", trunk, network, tuple(head.to(device) for head in heads), device, told)


def _heads(state: dict[str, Tensor], trunk: Trunk, file: Path) -> list[Tensor]:
    """The weights of each layer's channels, [C, 1, 1]."""
    names = [f"lin{i}.model.1.weight" for i in range(len(trunk.channels))]
    shapes = {key: list(value.shape) for key, value in state.items()}
    if shapes != {key: [1, channels, 1, 1] for key, channels in zip(names, trunk.channels, strict=True)}:
        raise UserError(
            f"{file} does not hold LPIPS v0.1's {len(names)} heads for {trunk.stem} (lin0.model.1.weight, ...): fetch it again", 4
        )
    return [state[key][0].to(torch.float32) for key in names]


def _files(name: str, place: Path, any_name: bool) -> tuple[Path, Path]:
    """The trunk's file and the heads'. With `any_name` the trunk may also be the one file there that begins as its published name does."""
    trunk = TRUNKS[name]
    bodies = [place / file for file in trunk.published if (place / file).is_file()]
    if not bodies and any_name:
        bodies = sorted(file for file in place.glob(f"{trunk.stem}*") if file.suffix in {".pth", ".safetensors"})
        if len(bodies) > 1:
            raise UserError(f"{place} holds several trunks ({bodies[0].name}, {bodies[1].name}, ...): keep one", 4)
    heads = [place / f"{name}{suffix}" for suffix in (".pth", ".safetensors") if (place / f"{name}{suffix}").is_file()]
    if not bodies or not heads:
        missing = " and ".join(told for told, found in ((trunk.published[0], bodies), (f"{name}.pth", heads)) if not found)
        raise UserError(
            f"lpips:{name} needs {trunk.published[0]} ({trunk.source}) and {name}.pth (LPIPS v0.1's heads, which the packages lpips and "
            f"torchmetrics carry) in {place}, which lacks {missing}: put both there, or name their folder with 'lpips:{name}:<folder>'",
            exit_code=4,
        )
    return bodies[0], heads[0]
