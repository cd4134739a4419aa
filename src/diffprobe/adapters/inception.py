"""FID's Inception: the network of 2015 whose pooled features the Frechet Inception distance is defined by.

Szegedy et al. 2016 with TensorFlow's pooling, as pytorch-fid converted it: averages leave padding out, and the last block pools by maxima.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffprobe.adapters.preprocessing import Preprocessing
from diffprobe.adapters.published import checkpoints, digest_state, fill, read_state
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.measures.precision import full_float32

#: The same file under its two names: pytorch-fid's and torch-fidelity's.
PUBLISHED = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
#: What the published features are computed behind: bilinear without antialiasing, whatever the proportions, and [-1, 1].
PREPROCESSING = Preprocessing(299, (0.5,) * 3, (0.5,) * 3, stretch=True, mode="bilinear", antialias=False)
_UNUSED = ("fc.", "AuxLogits.")  # the classifiers that come with the features


class Unit(nn.Module):
    """A convolution, its batch normalisation and what is above zero."""

    def __init__(self, inside: int, outside: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


def _mean3(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """At 35 x 35: 1 x 1, 5 x 5, two 3 x 3, and a pool of `pooled` channels."""

    def __init__(self, inside: int, pooled: int):
        super().__init__()
        self.branch1x1 = Unit(inside, 64, 1)
        self.branch5x5_1 = Unit(inside, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Unit(inside, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
        self.branch_pool = Unit(inside, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, three, self.branch_pool(_mean3(x))], 1)


class BlockB(nn.Module):
    """From 35 x 35 to 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = Unit(288, 384, 3, stride=2)
        self.branch3x3dbl_1 = Unit(288, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), twice, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """At 17 x 17: 7 x 7 convolutions as rows and columns, `mid` channels inside."""

    def __init__(self, mid: int):
        super().__init__()
        row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        self.branch1x1 = Unit(768, 192, 1)
        self.branch7x7_1 = Unit(768, mid, 1)
        self.branch7x7_2 = Unit(mid, mid, *row)
        self.branch7x7_3 = Unit(mid, 192, *column)
        self.branch7x7dbl_1 = Unit(768, mid, 1)
        self.branch7x7dbl_2 = Unit(mid, mid, *column)
        self.branch7x7dbl_3 = Unit(mid, mid, *row)
        self.branch7x7dbl_4 = Unit(mid, mid, *column)
        self.branch7x7dbl_5 = Unit(mid, 192, *row)
        self.branch_pool = Unit(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([self.branch1x1(x), once, twice, self.branch_pool(_mean3(x))], 1)


class BlockD(nn.Module):
    """From 17 x 17 to 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = Unit(768, 192, 1)
        self.branch3x3_2 = Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(768, 192, 1)
        self.branch7x7x3_2 = Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """At 8 x 8: 3 x 3 convolutions split into a row and a column. `largest`: pool by maxima instead of means."""

    def __init__(self, inside: int, largest: bool):
        super().__init__()
        self.largest = largest
        row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
        self.branch1x1 = Unit(inside, 320, 1)
        self.branch3x3_1 = Unit(inside, 384, 1)
        self.branch3x3_2a = Unit(384, 384, *row)
        self.branch3x3_2b = Unit(384, 384, *column)
        self.branch3x3dbl_1 = Unit(inside, 448, 1)
        self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Unit(384, 384, *row)
        self.branch3x3dbl_3b = Unit(384, 384, *column)
        self.branch_pool = Unit(inside, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3_1(x)
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        split = [self.branch3x3_2a(once), self.branch3x3_2b(once), self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice)]
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.largest else _mean3(x)
        return torch.cat([self.branch1x1(x), *split, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """[B, 3, 299, 299] in [-1, 1] to [B, 2048]; its parameters are named as in torchvision's Inception3."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = BlockC(128), BlockC(160), BlockC(160), BlockC(192)
        self.Mixed_7a = BlockD()
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, largest=False), BlockE(2048, largest=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, stride=2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, stride=2)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


@dataclass(frozen=True, eq=False)
class InceptionEmbedder:
    """Images [B, 3, H, W] in [0, 1] to the 2,048 pooled features of FID's Inception, float32."""

    network: Inception
    device: torch.device
    fingerprint: str
    preprocessing: Preprocessing = PREPROCESSING

    def __call__(self, images: Tensor) -> Tensor:
        inputs = self.preprocessing(images.float()).to(self.device)
        with torch.no_grad(), full_float32():
            features: Tensor = self.network(inputs)
        return features.float().cpu()


def load_inception(spec: str, options: LoadOptions) -> InceptionEmbedder:
    """FID's Inception from a file, a folder that holds it under its published name, or (empty) torch hub's cache.

    A file of another name is taken as it is, and known by its digest. Raises UserError (exit code 4) with where to put it.
    """
    file = _found(spec)
    device, _ = options.place()
    state = {name: value for name, value in read_state(file, PUBLISHED).items() if not name.startswith(_UNUSED)}
    network = fill(Inception, state, file).to(device)
    digest = digest_state({name: value for name, value in network.state_dict().items() if not name.endswith("_tracked")})
    return InceptionEmbedder(network, device, f"inception/{digest[:16]}/{PREPROCESSING.digest()}/float32")


def _found(spec: str) -> Path:
    place = Path(spec).expanduser() if spec else checkpoints()
    if spec and place.is_file():
        return place
    for name in PUBLISHED:
        if (place / name).is_file():
            return place / name
    where = f"no Inception at '{place}'" if spec else f"inception needs {PUBLISHED[0]} in {place}"
    raise UserError(
        f"{where}: pytorch-fid publishes {PUBLISHED[0]}; put it in {checkpoints()}, or name it with 'inception:<path>'", exit_code=4
    )
