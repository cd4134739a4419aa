"""Pools of rendered scenes, made once by several processes and kept as .npz in the work folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffprobe import worlds

TRAIN, HELD_OUT = 1, 2  # seeds of the worlds; a held-out scene is in no training pool
HEADS: dict[str, tuple[str, ...]] = {
    "shape": worlds.SHAPES,
    "colour": tuple(worlds.COLOURS),
    "size": tuple(worlds.SIZES),
    "background": tuple(worlds.BACKGROUNDS),
    "detail": tuple(worlds.DETAILS),
    "tone": worlds.TONES,
}


@dataclass(frozen=True)
class Pool:
    """`images` uint8 [n, 3, 64, 64], `labels` int64 [n, heads] in the order of HEADS, `captions`, `full` captions."""

    images: Tensor
    labels: Tensor
    captions: list[str]
    full: list[str]


def pool(n: int, seed: int, work: Path) -> Pool:
    """The first n scenes of the world `seed`, from the cache in `work` where they are there already."""
    pixels, labels, texts = _cached(work / f"pool-{seed}-{n}.npz", n, seed, _render)
    return Pool(pixels, labels, [a for a, _ in texts], [b for _, b in texts])


@dataclass(frozen=True)
class EditPool:
    """The second halves of edits (the first ones are the scenes of the same number): images, labels, instructions and kinds."""

    images: Tensor
    labels: Tensor
    instructions: list[str]
    kinds: list[str]


def edit_pool(n: int, seed: int, work: Path) -> EditPool:
    """The first n edits of the world `seed`, from the cache in `work` where they are there already."""
    pixels, labels, texts = _cached(work / f"edits-{seed}-{n}.npz", n, seed, _render_edits)
    return EditPool(pixels, labels, [a for a, _ in texts], [b for _, b in texts])


def floats(images: Tensor) -> Tensor:
    """uint8 in 0..255 to float32 in [-1, 1], what an autoencoder takes."""
    return images.float() / 127.5 - 1


Job = tuple[int, int, int]  # start, how many, seed
Part = tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]


def _cached(path: Path, n: int, seed: int, render: Callable[[Job], Part]) -> tuple[Tensor, Tensor, list[list[str]]]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(2) as workers:
            parts = list(workers.map(render, [(start, min(1000, n - start), seed) for start in range(0, n, 1000)]))
        images, labels = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        texts = [text for part in parts for text in part[2]]
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, images=images, labels=labels, texts=json.dumps(texts))
        partial.rename(path)
    with np.load(path) as data:
        pixels = torch.from_numpy(data["images"]).permute(0, 3, 1, 2).contiguous()
        return pixels, torch.from_numpy(data["labels"]), json.loads(str(data["texts"]))


def _render(job: Job) -> Part:
    start, n, seed = job
    found = worlds.scenes(n, seed, start=start)
    return *_drawn(found), [(scene.caption, worlds.caption(scene.attributes)) for scene in found]


def _render_edits(job: Job) -> Part:
    start, n, seed = job
    found = worlds.edits(n, seed, start=start)
    return *_drawn([edit.after for edit in found]), [(edit.instruction, edit.kind) for edit in found]


def _drawn(found: list[worlds.Scene]) -> tuple[np.ndarray, np.ndarray]:
    labels = [[values.index(getattr(scene.attributes, head)) for head, values in HEADS.items()] for scene in found]
    return np.stack([scene.image for scene in found]), np.array(labels)
