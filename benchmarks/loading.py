"""What loading costs over diffusers' own, on a saved pipeline of random weights, in pairs: `python -m benchmarks.loading`.

The digest of the weights is computed beside it, in a thread; how long that takes is told apart.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel

from diffprobe.adapters.load import load
from diffprobe.model import Model
from tests import pipelines

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1500, help="of the U-Net, about")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pipeline"
        size = _save(folder, given.megabytes)
        theirs, ours, digests = list[float](), list[float](), list[float]()
        for _ in range(given.rounds + 1):  # the first of each reads the disk and is left out
            theirs.append(_timed(lambda: _theirs(folder))[0])
            took, model = _timed(lambda: _ours(folder))
            ours.append(took)
            digests.append(_timed(partial(model.identity.get, "weights"))[0])
    ratios = [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)]
    print(f"{size / 1e6:.0f} MB of weights, {torch.get_num_threads()} threads")
    print(f"diffusers {statistics.median(theirs[1:]):.2f} s, diffprobe {statistics.median(ours[1:]):.2f} s (medians of {given.rounds})")
    print(f"digest of the weights, waited for after it: {statistics.median(digests[1:]):.2f} s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def _save(folder: Path, megabytes: int) -> int:
    """A Stable Diffusion pipeline with a wide U-Net; returns the bytes of its weights."""
    pipelines.save_sd(folder)
    settings, width = dict(UNet2DConditionModel.load_config(folder / "unet")), 64
    while True:
        unet = UNet2DConditionModel.from_config({**settings, "block_out_channels": (width, 2 * width)})
        if sum(p.numel() for p in unet.parameters()) * 4 > megabytes * 1e6:
            break
        width += 64
    unet.save_pretrained(folder / "unet")
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _theirs(folder: Path) -> Any:
    return DiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)


def _ours(folder: Path) -> Model:
    return load(str(folder), device="cpu")


def _timed(load: Callable[[], T]) -> tuple[float, T]:
    gc.collect()
    began = time.perf_counter()
    made = load()
    return time.perf_counter() - began, made


if __name__ == "__main__":
    main()
