"""What an offset does: on noise, where the model turns it into something else, and on a clean latent, where it is a tint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from diffprobe.inversion import Inversion
from diffprobe.measures import similarity
from diffprobe.model import Rig
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.interpolation.columns import numbers, picture
from diffprobe.probes.interpolation.latents import replayed, role, scale_of, sides
from diffprobe.probes.looks import decode, features, flaw
from diffprobe.sampling import start


@dataclass(frozen=True)
class Offsets:
    """What an offset of two channels in the top quarter does to a picture, laid on the noise or on the clean latent.

    Channel 0 loses and channel 1 gains `offsets` times the standard deviation of pure noise, or of that channel of the clean latents
    of all `seeds`. Each is set against the same seed without an offset.
    """

    version: ClassVar[int] = 1
    group: str
    prompt: str
    seeds: tuple[int, ...]
    offsets: tuple[float, ...]
    num_inference_steps: int
    guidance_scale: float
    keep: int

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        n, k = len(self.seeds), len(self.offsets)
        return Cost(n, n * (1 + k) * sides(self.guidance_scale) * self.num_inference_steps, n * (1 + 2 * k), 2 * n * k * 400 + 4_000)

    def measure(self, rig: Rig) -> pa.Table:
        path, shape = rig.model.path, rig.model.shape
        assert path is not None
        assert shape is not None
        first = path.levels(self.num_inference_steps)[0]
        noise = start(path, first, shape, self.seeds, role("offsets", self.group))
        clean = self._denoised(rig, noise)
        base = decode(rig, clean)
        sound = clean[clean.flatten(1).isfinite().all(1)]
        spread = sound.double().transpose(0, 1).flatten(1).std(1).float()
        tables = []
        for offset in self.offsets:
            moved = {
                "noise": self._denoised(rig, _offset(noise, offset * scale_of(path, first) * torch.ones(shape[0]))),
                "data": _offset(clean, offset * spread),
            }
            tables += [self._compared(rig, at, offset, (base, decode(rig, latents))) for at, latents in moved.items()]
        return pa.concat_tables(tables)

    def _denoised(self, rig: Rig, latents: Tensor) -> Tensor:
        plain = Inversion(num_inference_steps=self.num_inference_steps)
        return replayed(rig, latents, [self.prompt] * len(latents), plain, self.guidance_scale)

    def _compared(self, rig: Rig, at: str, offset: float, pair: tuple[Tensor, Tensor]) -> pa.Table:
        flags = [flaw(a) or flaw(b) for a, b in zip(*pair, strict=True)]
        base, moved = (torch.where(part.isfinite(), part, 0.5).clamp(0, 1) for part in pair)
        rows, n = base.shape[-2] // 4, len(base)
        apart = (moved - base).double().square()
        columns: dict[str, Any] = {
            "group": [self.group] * n,
            "prompt": [self.prompt] * n,
            "seed": list(self.seeds),
            "at": [at] * n,
            "offset": [offset] * n,
            "flag": pa.array(flags, pa.string()),
            "inside": numbers(apart[..., :rows, :].flatten(1).mean(1), flags=flags),
            "outside": numbers(apart[..., rows:, :].flatten(1).mean(1), flags=flags),
        }
        for name, one in rig.embedders.items():
            between = similarity.cosine_distance(features(rig, one, base), features(rig, one, moved))
            columns[f"distance:{name}"] = numbers(between, flags=flags)
        kept = [index < self.keep and not flag for index, flag in enumerate(flags)]
        pictures = [picture(image) if keep else None for image, keep in zip(moved, kept, strict=True)]
        return pa.table({**columns, "picture": pa.array(pictures, pa.binary())})


def _offset(latents: Tensor, by: Tensor) -> Tensor:
    """Latents [B, C, h, w] whose top quarter loses `by` [C] in the first channel and gains it in the second, where there is one."""
    moved, rows = latents.clone(), max(1, latents.shape[-2] // 4)
    for channel, sign in ((0, -1), (1, 1)):
        if channel < latents.shape[1]:
            moved[:, channel, :rows] += sign * by[channel]
    return moved
