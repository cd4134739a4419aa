"""State dicts with the names and shapes of published ones, and random weights: LPIPS's trunks and heads, FID's Inception."""

import math
from pathlib import Path

import torch
from torch import Tensor

from diffprobe.adapters.lpips import TRUNKS

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, int, int, int]]
#: The convolutions of the published trunks: place in `features` to [out, in, kernel].
ALEX = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}
VGG_WIDTHS = ((0, 64), (2, 64), (5, 128), (7, 128), (10, 256), (12, 256), (14, 256), (17, 512), (19, 512), (21, 512), (24, 512), (26, 512))
VGG = {place: (width, inside, 3) for (place, width), inside in zip((*VGG_WIDTHS, (28, 512)), (3, *dict(VGG_WIDTHS).values()), strict=True)}
FIRES = {3: (64, 16, 64), 4: (128, 16, 64), 6: (128, 32, 128), 7: (256, 32, 128), 9: (256, 48, 192), 10: (384, 48, 192), 11: (384, 64, 256)}
FIRES |= {12: (512, 64, 256)}


def shapes(name: str) -> dict[str, tuple[int, int, int]]:
    if name != "squeeze":
        return {f"features.{place}": shape for place, shape in (ALEX if name == "alex" else VGG).items()}
    found = {"features.0": (64, 3, 3)}
    for place, (inside, squeezed, expanded) in FIRES.items():
        found[f"features.{place}.squeeze"] = (squeezed, inside, 1)
        found[f"features.{place}.expand1x1"] = (expanded, squeezed, 1)
        found[f"features.{place}.expand3x3"] = (expanded, squeezed, 3)
    return found


def random_trunk(name: str) -> State:
    """As torchvision saves it: the features, and a classifier, of which a little stands for all."""
    torch.manual_seed(1)
    state = {"classifier.1.weight": torch.ones(2, 2), "classifier.1.bias": torch.ones(2)}
    for place, (outside, inside, kernel) in shapes(name).items():
        state[f"{place}.weight"] = torch.randn(outside, inside, kernel, kernel) * (2 / (inside * kernel**2)) ** 0.5
        state[f"{place}.bias"] = 0.1 * torch.randn(outside)
    return state


def random_heads(name: str) -> State:
    torch.manual_seed(2)
    return {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(TRUNKS[name].channels)}


def save_lpips(folder: Path, name: str) -> Path:
    """A trunk and its heads; the trunk under another name, since only the published file has the published one."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(random_trunk(name), folder / f"{TRUNKS[name].stem}-random.pth")
    torch.save(random_heads(name), folder / f"{name}.pth")
    return folder


def block_a(inside: int, pooled: int) -> Shapes:
    five = {"branch1x1": (64, inside, 1, 1), "branch5x5_1": (48, inside, 1, 1), "branch5x5_2": (64, 48, 5, 5)}
    three = {"branch3x3dbl_1": (64, inside, 1, 1), "branch3x3dbl_2": (96, 64, 3, 3), "branch3x3dbl_3": (96, 96, 3, 3)}
    return {**five, **three, "branch_pool": (pooled, inside, 1, 1)}


def block_c(mid: int) -> Shapes:
    once = {"branch7x7_1": (mid, 768, 1, 1), "branch7x7_2": (mid, mid, 1, 7), "branch7x7_3": (192, mid, 7, 1)}
    twice = {"branch7x7dbl_1": (mid, 768, 1, 1), "branch7x7dbl_2": (mid, mid, 7, 1), "branch7x7dbl_3": (mid, mid, 1, 7)}
    last = {"branch7x7dbl_4": (mid, mid, 7, 1), "branch7x7dbl_5": (192, mid, 1, 7)}
    return {"branch1x1": (192, 768, 1, 1), **once, **twice, **last, "branch_pool": (192, 768, 1, 1)}


def block_e(inside: int) -> Shapes:
    once = {"branch3x3_1": (384, inside, 1, 1), "branch3x3_2a": (384, 384, 1, 3), "branch3x3_2b": (384, 384, 3, 1)}
    twice = {"branch3x3dbl_1": (448, inside, 1, 1), "branch3x3dbl_2": (384, 448, 3, 3)}
    split = {"branch3x3dbl_3a": (384, 384, 1, 3), "branch3x3dbl_3b": (384, 384, 3, 1)}
    return {"branch1x1": (320, inside, 1, 1), **once, **twice, **split, "branch_pool": (192, inside, 1, 1)}


#: The convolutions of the published network: name to [out, in, height, width].
BLOCKS: dict[str, Shapes] = {
    "Conv2d_1a_3x3": {"": (32, 3, 3, 3)},
    "Conv2d_2a_3x3": {"": (32, 32, 3, 3)},
    "Conv2d_2b_3x3": {"": (64, 32, 3, 3)},
    "Conv2d_3b_1x1": {"": (80, 64, 1, 1)},
    "Conv2d_4a_3x3": {"": (192, 80, 3, 3)},
    "Mixed_5b": block_a(192, 32),
    "Mixed_5c": block_a(256, 64),
    "Mixed_5d": block_a(288, 64),
    "Mixed_6a": {
        "branch3x3": (384, 288, 3, 3),
        "branch3x3dbl_1": (64, 288, 1, 1),
        "branch3x3dbl_2": (96, 64, 3, 3),
        "branch3x3dbl_3": (96, 96, 3, 3),
    },
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": {
        "branch3x3_1": (192, 768, 1, 1),
        "branch3x3_2": (320, 192, 3, 3),
        "branch7x7x3_1": (192, 768, 1, 1),
        "branch7x7x3_2": (192, 192, 1, 7),
        "branch7x7x3_3": (192, 192, 7, 1),
        "branch7x7x3_4": (192, 192, 3, 3),
    },
    "Mixed_7b": block_e(1280),
    "Mixed_7c": block_e(2048),
}


def random_inception() -> State:
    """All that the published file holds, with random weights: convolutions, normalisations, the classifier of 1,008 classes."""
    torch.manual_seed(0)
    state = {}
    for block, shapes in BLOCKS.items():
        for part, shape in shapes.items():
            name = f"{block}.{part}" if part else block
            state[f"{name}.conv.weight"] = torch.randn(shape) * math.sqrt(2 / math.prod(shape[1:]))
            state[f"{name}.bn.weight"] = 0.8 + 0.4 * torch.rand(shape[0])
            state[f"{name}.bn.bias"] = 0.1 * torch.randn(shape[0])
            state[f"{name}.bn.running_mean"] = 0.1 * torch.randn(shape[0])
            state[f"{name}.bn.running_var"] = 0.8 + 0.4 * torch.rand(shape[0])
            state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
    return {**state, "fc.weight": torch.randn(1008, 2048), "fc.bias": torch.randn(1008)}
