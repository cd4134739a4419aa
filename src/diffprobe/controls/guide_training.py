"""Training a geometry guide: images to labels to a small classifier of psi's bin, judged on images that it never saw."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import stats as ss
from torch import Tensor

from diffprobe import rng
from diffprobe.controls.geometry_guidance import GeometryGuide
from diffprobe.controls.guide_labels import Labels, LabelSettings, labelled, unit
from diffprobe.controls.guide_network import GROUPS, GuideNetwork
from diffprobe.errors import UserError
from diffprobe.measures.stats.intervals import Array, Interval, bootstrap
from diffprobe.model import Model

#: No bin weighs more than so many times as much as all would if they were equally full: a bin of one row would lead alone.
MOST_WEIGHT = 10.0
_ENCODED = 32


@dataclass(frozen=True)
class GuideSettings:
    """How a guide is made: its `labels`, its `bins` of psi, and the training of a network of this `width`, in steps of `batch` rows.

    `held_out` is the share of images that are kept for judging.
    """

    labels: LabelSettings = field(default_factory=LabelSettings)
    bins: int = 5
    width: int = 32
    steps: int = 800
    batch: int = 64
    learning_rate: float = 1e-3
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bins < 2 or self.width < GROUPS or self.width % GROUPS or self.steps < 1 or self.batch < 1:
            raise UserError(
                f"a guide needs 2 bins or more, a width in multiples of {GROUPS}, and 1 step and row or more: see GuideSettings"
            )
        if not 0.05 <= self.held_out <= 0.5 or not self.learning_rate > 0:
            raise UserError("the share held out is from 0.05 to 0.5, and the learning rate is above 0: see GuideSettings")


class Quality(NamedTuple):
    """What a guide reaches on held-out images: chance is 1/bins for the first, and 0 for the others. Intervals are over images.

    `rank_correlation` of its score with psi holds what the level alone tells; `within_levels` is that of both less their means at
    like levels (as many groups as levels an image), and so what tells images apart.
    """

    balanced_accuracy: Interval
    rank_correlation: Interval
    within_levels: Interval


def train_guide(
    model: Model,
    images: Tensor | None = None,
    settings: GuideSettings | None = None,
    *,
    latents: Tensor | None = None,
    cache: Path | str | None = None,
) -> GeometryGuide:
    """A guide for the model's decoder, from images [n, 3, H, W] in [0, 1], or from their latents [n, C, h, w].

    The cost is that of the labels, `settings.labels.cost(n)` reverse passes through the decoder; training takes a minute or two of
    one processor core. With a `cache`, a file, the labels are kept as they grow, and a broken or repeated call goes on from it. All
    randomness is by address: the same images give the same guide on the same machine. What it reaches on images that it never saw
    stands in `guide.quality`. Raises UserError where the model lacks a codec or a path, for latents that are not its own, for fewer
    than 20 images, and where psi is not finite or everywhere the same.
    """
    settings = settings or GuideSettings()
    z = _latents(model, images, latents)
    labels = labelled(model, z, settings.labels, cache)
    kept = rng.stream("guide.held_out", settings.seed).permutation(len(z))
    held = max(2, round(settings.held_out * len(z)))
    seen, unseen = (torch.from_numpy(np.sort(part)) for part in (kept[held:], kept[:held]))
    low, high = float(labels.psi[seen].min()), float(labels.psi[seen].max())
    edges = np.linspace(low, high, settings.bins + 1)
    shape = (int(z.shape[1]), int(z.shape[2]), int(z.shape[3]))
    network = GuideNetwork(shape, settings.bins, settings.width).settle(settings.seed)
    _fit(network, labels, seen, edges, settings)
    levels = labels.log_ratio.exp()
    told = {
        "directions": settings.labels.directions,
        "direction_seed": settings.labels.direction_seed,
        "target": settings.labels.target,
        "images": len(z),
        "model": str(model.identity.get("weights", model.name)),
    }
    centre, spread = float(labels.psi[seen].mean()), float(labels.psi[seen].std())
    guide = GeometryGuide(network, tuple(edges.tolist()), centre, spread, (float(levels.min()), float(levels.max())), told)
    found = judged(guide, labels, unseen)
    quality = {f"{name}{part}": value for name, one in found._asdict().items() for part, value in zip(("", "_lo", "_hi"), one, strict=True)}
    return replace(guide, quality=quality)


@torch.no_grad()
def judged(guide: GeometryGuide, labels: Labels, rows: Tensor, *, level: float = 0.95) -> Quality:
    """What a guide reaches on some of the labelled images, with intervals over images; `rows` are their numbers."""
    parts = [guide.network(*_shown(labels, rows, j)) for j in range(labels.log_ratio.shape[1])]
    chances = torch.stack(parts, 1).double().softmax(-1)
    truth, log_ratio = labels.psi[rows].numpy(), labels.log_ratio[rows].numpy()
    bins = np.clip(np.digitize(truth, np.asarray(guide.edges)[1:-1]), 0, guide.network.bins - 1)
    right = (chances.argmax(-1).numpy() == bins).astype(np.float64)
    score = (chances @ guide.centres.double()).numpy()
    groups = _groups(log_ratio)
    plain = np.stack([score, truth], -1)
    return Quality(
        bootstrap(np.stack([right, bins.astype(np.float64)], -1), _balanced, level=level),
        bootstrap(plain, _rank, level=level),
        bootstrap(plain - _means(plain, groups), _rank, level=level),
    )


def _latents(model: Model, images: Tensor | None, latents: Tensor | None) -> Tensor:
    if (images is None) == (latents is None):
        raise UserError("a guide learns from images or from their latents: give one of the two")
    if latents is None:
        assert images is not None
        if model.codec is None:
            raise UserError(f"guidance by geometry needs a codec; {model.name} has none: give a model with an autoencoder")
        with torch.no_grad():
            latents = torch.cat([model.codec.encode(part.to(model.device)).cpu() for part in images.split(_ENCODED)])
    if latents.ndim != 4:
        raise UserError(f"a guide knows latents [n, C, h, w], not {list(latents.shape)}")
    if model.shape is not None and tuple(latents.shape[1:]) != tuple(model.shape):
        raise UserError(
            f"these latents are {list(latents.shape[1:])}, and {model.name}'s are {list(model.shape)}: take images of its own size"
        )
    return latents


def _fit(network: GuideNetwork, labels: Labels, seen: Tensor, edges: NDArray[np.float64], settings: GuideSettings) -> None:
    """AdamW on the class-weighted cross entropy, its rate falling to 0 as a cosine."""
    bins = torch.from_numpy(np.clip(np.digitize(labels.psi.numpy(), edges[1:-1]), 0, settings.bins - 1))
    counts = torch.bincount(bins[seen].flatten(), minlength=settings.bins).double()
    weights = (counts.sum() / settings.bins / counts.clamp(min=1)).clamp(max=MOST_WEIGHT).float()
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate, weight_decay=0.05)
    network.train()
    with torch.inference_mode(False), torch.enable_grad():
        for step, (x, log_ratio, target) in enumerate(_batches(labels, bins, seen, settings)):
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            optimiser.zero_grad(set_to_none=True)
            F.cross_entropy(network(x, log_ratio), target, weight=weights).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()


def _batches(labels: Labels, bins: Tensor, seen: Tensor, settings: GuideSettings) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Noised latents, log levels and bins, a batch a step, by address.

    A label of noised latents belongs to its noise; one of clean latents holds at any level and noise, so each batch draws others.
    """
    fresh = labels.settings.target == "clean"
    count, levels = len(seen), labels.log_ratio.shape[1]
    if not fresh:
        x = torch.cat([labels.noised(seen, j) for j in range(levels)])
        logs, targets = (part[seen].T.flatten() for part in (labels.log_ratio, bins))
    for step in range(settings.steps):
        draw = rng.stream("guide.batch", settings.seed, step)
        rows = torch.from_numpy(draw.integers(count * levels, size=settings.batch))
        if not fresh:
            yield x[rows], logs[rows].float(), targets[rows]
            continue
        images = seen[rows % count]
        log_ratio = labels.log_ratio[seen].flatten()[torch.from_numpy(draw.integers(count * levels, size=settings.batch))]
        noise = torch.from_numpy(draw.standard_normal((settings.batch, *labels.latents.shape[1:]), dtype=np.float32))
        yield unit(labels.latents[images], log_ratio, noise), log_ratio.float(), bins[images, 0]


def _shown(labels: Labels, rows: Tensor, level: int) -> tuple[Tensor, Tensor]:
    return labels.noised(rows, level), labels.log_ratio[rows, level].float()


def _groups(log_ratio: Array) -> NDArray[np.int64]:
    """Which of as many equal groups of levels as an image has each row falls into."""
    ranks = ss.rankdata(log_ratio, method="ordinal").reshape(log_ratio.shape) - 1
    return np.asarray(ranks * log_ratio.shape[1] // log_ratio.size, np.int64)


def _means(values: Array, groups: NDArray[np.int64]) -> Array:
    """The mean of each row's group: values [images, levels, m]."""
    counts = np.bincount(groups.ravel())
    sums = [np.bincount(groups.ravel(), values[..., m].ravel()) for m in range(values.shape[-1])]
    return np.stack([(one / counts)[groups] for one in sums], -1)


def _balanced(values: Array, /, *, axis: int) -> Array:
    """The mean over the bins that occur of the share of their rows that is right: values [R, images, levels, (right, bin)]."""
    right, bins = (values[..., m].reshape(len(values), -1) for m in (0, 1))
    recalls = []
    for one in np.unique(bins):
        inside = bins == one
        with np.errstate(invalid="ignore"):
            recalls.append((right * inside).sum(axis) / inside.sum(axis))
    return np.asarray(np.nanmean(recalls, 0))


def _rank(values: Array, /, *, axis: int) -> Array:
    """Spearman's correlation over all rows: values [R, images, levels, (a, b)]."""
    a, b = (ss.rankdata(values[..., m].reshape(len(values), -1), axis=axis) for m in (0, 1))
    a, b = (side - side.mean(axis, keepdims=True) for side in (a, b))
    size = np.sqrt((a * a).sum(axis) * (b * b).sum(axis))
    return np.asarray(np.where(size > 0, (a * b).sum(axis) / np.where(size > 0, size, 1), 0.0))
