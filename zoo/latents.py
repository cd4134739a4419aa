"""Scenes and captions as the denoisers see them: latents and text states, computed once and kept in the work folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from transformers import CLIPTextModel, CLIPTokenizer

from zoo.clip import tokens
from zoo.data import HELD_OUT, TRAIN, edit_pool, floats, pool

PROCESSES = 2
COUNTS = {TRAIN: 40_000, HELD_OUT: 1000}
Encoded = dict[str, Tensor]


def scenes(seed: int, work: Path, shared: Path) -> Encoded:
    """A pool's `latents` [n, 4, 16, 16] in the denoiser's scale, `labels`, and its captions as rows of a table of text states.

    `states` [m, 24, 128] bfloat16 has one entry a distinct caption, the empty one first; `drawn` and `full` [n] point into it.
    `shared` is the folder with the autoencoder, the CLIP and its tokenizer.
    """
    count = COUNTS[seed]
    cache = work / f"encoded-{seed}-{count}.pt"
    if not cache.exists():
        data = pool(count, seed, work)
        states, rows = texts([*data.captions, *data.full], shared)
        content = {"latents": encode(data.images, shared), "labels": data.labels, "states": states}
        keep(cache, {**content, "drawn": rows[:count], "full": rows[count:]})
    return load(cache)


def edits(seed: int, work: Path, shared: Path) -> Encoded:
    """The second halves' `latents`; the first halves are `scenes` of the same number."""
    count = COUNTS[seed]
    cache = work / f"encoded-edits-{seed}-{count}.pt"
    if not cache.exists():
        keep(cache, {"latents": encode(edit_pool(count, seed, work).images, shared)})
    return load(cache)


def styled(style: Callable[[Tensor], Tensor], count: int, work: Path, shared: Path) -> Encoded:
    """The first `count` scenes in a style, which maps images [n, 3, 64, 64] in 0..1 to such; captions as in `scenes`."""
    cache = work / f"encoded-{style.__name__}-{count}.pt"
    if not cache.exists():
        data, plain = pool(COUNTS[TRAIN], TRAIN, work).images[:count], scenes(TRAIN, work, shared)
        images = (style(data / 255).clamp(0, 1) * 255).round().to(torch.uint8)
        keep(cache, {"latents": encode(images, shared), **{name: plain[name] for name in ("states", "drawn", "full")}})
    return load(cache)


def encode(images: Tensor, shared: Path) -> Tensor:
    """The posterior's means of uint8 images [n, 3, 64, 64], times the scaling factor; float32, by several processes."""
    found: Tensor = torch.empty(len(images), 4, 16, 16).share_memory_()
    spawn(_encode, (images.share_memory_(), found, shared), nprocs=PROCESSES)
    return found


@torch.no_grad()
def texts(captions: list[str], shared: Path) -> tuple[Tensor, Tensor]:
    """The text states of the distinct captions, the empty one first, and each caption's row among them."""
    model = CLIPTextModel.from_pretrained(shared / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(shared / "tokenizer")
    row = {caption: index for index, caption in enumerate(dict.fromkeys(["", *captions]))}
    states = torch.cat([model(part)[0].bfloat16() for part in tokens(tokenizer, list(row)).split(500)])
    return states, torch.tensor([row[caption] for caption in captions])


def keep(path: Path, content: Encoded) -> None:
    partial = path.with_suffix(".partial")
    torch.save({name: value.clone() for name, value in content.items()}, partial)
    partial.rename(path)


def load(path: Path) -> Encoded:
    found: Encoded = torch.load(path, weights_only=True, mmap=True)
    return found


def _encode(rank: int, images: Tensor, found: Tensor, shared: Path) -> None:
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(shared / "vae", torch_dtype=torch.float32)
    with torch.inference_mode():
        for start in range(8 * rank, len(images), 8 * PROCESSES):  # eight images fit the cache: twice as fast as a hundred
            mean = vae.encode(floats(images[start : start + 8])).latent_dist.mean
            found[start : start + 8] = mean * vae.config.scaling_factor
