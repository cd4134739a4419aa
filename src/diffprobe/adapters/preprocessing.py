"""What an instrument does to an image before its network sees it, and a digest of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_PILLOW = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow's filters, which configurations use
_DECIMALS = 1e3


@dataclass(frozen=True)
class Preprocessing:
    """Images [B, 3, H, W] in [0, 1] of any size to [B, 3, size, size], normalised by channel.

    The shorter side becomes `shorter` (None: `size`) and the centre is cropped; with `stretch` the image is resized to the
    square itself, whatever its proportions.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter: int | None = None
    stretch: bool = False
    mode: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        shape = self._resized(*images.shape[-2:])
        if shape != tuple(images.shape[-2:]):
            images = F.interpolate(images, shape, mode=self.mode, align_corners=False, antialias=self.antialias).clamp(0, 1)
        top, left = (images.shape[-2] - self.size) // 2, (images.shape[-1] - self.size) // 2
        images = images[..., top : top + self.size, left : left + self.size]
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.stretch:
            return self.size, self.size
        short, shorter = min(height, width), self.shorter or self.size
        return shorter * height // short, shorter * width // short  # the longer side is rounded down, as Pillow's users do

    def digest(self) -> str:
        return digest_of(self)


def digest_of(prepare: Callable[[Tensor], Tensor]) -> str:
    """What becomes of a reference image, as 16 digits: its means and mean squares over a 4 x 4 grid, to three decimals.

    A silent change of resizing, cropping or scaling alters it; the last bits of one processor or another do not.
    """
    rows, columns, channels = torch.meshgrid(torch.arange(96), torch.arange(80), torch.arange(3), indexing="ij")
    fine = (7 * rows * rows + 13 * columns * columns + 29 * rows * columns + 61 * channels) % 128
    seen = prepare(((fine + rows + columns // 2) / 288).float().permute(2, 0, 1)[None]).double()
    cells = F.adaptive_avg_pool2d(torch.cat([seen, seen.square()]), 4)
    return hashlib.sha256((cells * _DECIMALS).round().to(torch.int32).numpy().tobytes()).hexdigest()[:16]


def read_preprocessing(folder: Path) -> Preprocessing:
    """The preprocessing of a saved model, from its preprocessor_config.json (or processor_config.json, which newer ones have).

    Raises OSError where there is neither, KeyError or ValueError where it does not say what is needed or asks for what is not done here.
    """
    file = folder / "preprocessor_config.json"
    nested = folder / "processor_config.json"
    if not file.is_file() and nested.is_file():
        return _parsed(json.loads(nested.read_text())["image_processor"])
    return _parsed(json.loads(file.read_text()))


def _parsed(given: dict[str, Any]) -> Preprocessing:
    if not given.get("do_resize", True) or abs(given.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6 or not given.get("do_rescale", True):
        raise ValueError("its images are not resized, or not scaled from 0..255 to 0..1")
    if given.get("resample", 3) not in _PILLOW:
        raise ValueError(f"its images are resized by Pillow's filter {given['resample']}; only 2 (bilinear) and 3 (bicubic) are known")
    crops = bool(given.get("do_center_crop", "crop_size" in given))
    shorter, square = _side(given["size"])
    size = _side(given["crop_size"])[0] if crops else shorter
    if crops and size > shorter:
        raise ValueError(f"its crop of {size} pixels is larger than the image it is taken from ({shorter})")
    mean, std = (tuple(given[name]) if given.get("do_normalize", True) else (value,) * 3 for name, value in _PLAIN)
    mode: Literal["bicubic", "bilinear"] = "bilinear" if given.get("resample", 3) == 2 else "bicubic"
    return Preprocessing(size, mean, std, shorter if crops else None, stretch=square and not crops, mode=mode)


_PLAIN = (("image_mean", 0.0), ("image_std", 1.0))


def _side(given: int | dict[str, int]) -> tuple[int, bool]:
    """Pixels, and whether both sides are given, so that proportions are not kept; ValueError where they differ."""
    if isinstance(given, int):
        return given, False
    if "shortest_edge" in given:
        return int(given["shortest_edge"]), False
    if given["height"] != given["width"]:
        raise ValueError(f"its images are {given['height']} x {given['width']}; only squares are known")
    return int(given["height"]), True
