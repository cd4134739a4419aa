"""How the drift probe looks at images and at the decoder: batched, flagged, and as columns of a record."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from diffprobe import rng
from diffprobe.measures import similarity
from diffprobe.model import Rig, TextEmbedder
from diffprobe.probes.looks import decode, features, valid

DIRECTIONS = 4  # random directions for the decoder's mean gain
_STEP = 0.01  # of the difference that stands for a derivative; latents are of order 1


def compare(seen: Tensor, shown: Tensor, flags: Sequence[str | None]) -> dict[str, list[float | None]]:
    """What an image comparison gives, by name, for images [B, 3, H, W] in [0, 1]; SSIM is null where they are smaller than its window."""
    measures = (similarity.mse, similarity.psnr, similarity.relative_mse, similarity.gradient_similarity)
    columns = {measure.__name__: valid(measure(seen, shown), flags) for measure in measures}
    wide = min(seen.shape[-2:]) >= similarity.SSIM_SIZE
    return {**columns, "ssim": valid(similarity.ssim(seen, shown), flags) if wide else [None] * len(seen)}


def embedded(
    rig: Rig, originals: pa.Table, shown: Tensor, prompts: Sequence[str], flags: list[str | None]
) -> dict[str, list[float | None]]:
    columns: dict[str, list[float | None]] = {}
    for label, embedder in rig.embedders.items():
        before = torch.from_numpy(np.stack(originals[f"feature:{label}"].to_numpy(zero_copy_only=False)))
        after = features(rig, embedder, shown)
        columns[f"cosine:{label}"] = valid(similarity.cosine_distance(before, after), flags)
        if isinstance(embedder, TextEmbedder):
            told = list(dict.fromkeys(prompts))  # most often one prompt for all
            text = embedder.embed_text(told)[[told.index(prompt) for prompt in prompts]]
            columns[f"text_before:{label}"] = valid(1 - similarity.cosine_distance(text, before), flags)
            columns[f"text_after:{label}"] = valid(1 - similarity.cosine_distance(text, after), flags)
    return columns


def apart(rig: Rig, seen: Tensor, shown: Tensor, flags: Sequence[str | None]) -> dict[str, list[float | None]]:
    """What each of the rig's distances says of images [B, 3, H, W] in [0, 1], by its name; nothing where the rig has none."""
    pairs = list(zip(seen.split(rig.batch_size), shown.split(rig.batch_size), strict=True))
    return {label: valid(torch.cat([distance(*pair) for pair in pairs]), flags) for label, distance in rig.distances.items()}


def linear(rig: Rig, latents: Tensor, change: Tensor) -> Tensor:
    """mean((J change)^2) of the decoder at `latents`, float64 [B], by a central difference of a step of 0.01 (root mean square).

    Two decodings a sample, whatever the decoder is built of; forward derivatives take four times that where attention allows them.
    """
    size = change.double().square().flatten(1).mean(1).sqrt()
    step = (_STEP / size.clamp(min=torch.finfo(torch.float64).tiny)).clamp(max=1e30)
    moved = (change.double() * step.view(-1, *[1] * (change.ndim - 1))).float()
    slope = (decode(rig, latents + moved).double() - decode(rig, latents - moved).double()) / 2
    return slope.square().flatten(1).mean(1) / step.square()


def gains(rig: Rig, latents: Tensor) -> list[float]:
    """Tr(J^T J) / (D d) of the decoder at each latent, by Hutchinson's estimator over a few random directions."""
    draws = [rng.normal(latents.shape[1:], f"drift.gain.{i}", [0]).expand_as(latents) for i in range(DIRECTIONS)]
    total = torch.stack([linear(rig, latents, draw) for draw in draws]).mean(0)
    return [float(value) for value in total / latents[0].numel()]
