"""What the consistency probe measures: which prompts were asked, and the images that each of them gave."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from diffprobe.model import GenerateSettings, Rig
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.looks import LOSSLESS, features, flaw, vectors, webp
from diffprobe.probes.prompts import Prompt


@dataclass(frozen=True)
class Asked:
    """The prompts of the study and their features, in its order: what the summary needs of the prompts' file."""

    version: ClassVar[int] = 1
    prompts: tuple[Prompt, ...]

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        return Cost(bytes=2000 + 100 * len(self.prompts))

    def measure(self, rig: Rig) -> pa.Table:
        columns: dict[str, list[Any]] = {
            "prompt_id": [prompt.id for prompt in self.prompts],
            "prompt": [prompt.text for prompt in self.prompts],
            "feature": [[name for name, _ in prompt.features] for prompt in self.prompts],
            "value": [[value for _, value in prompt.features] for prompt in self.prompts],
        }
        texts = pa.list_(pa.string())
        return pa.table(columns, schema=pa.schema({"prompt_id": pa.string(), "prompt": pa.string(), "feature": texts, "value": texts}))


@dataclass(frozen=True)
class Samples:
    """The images that the deployed pipeline gives for one prompt, a seed each, in the eyes of every instrument.

    `jpeg_quality` passes each image through that file format before any instrument sees it (None: none), as some studies saved theirs.
    """

    version: ClassVar[int] = 1
    prompt_id: str
    prompt: str
    seeds: tuple[int, ...]
    settings: GenerateSettings
    jpeg_quality: int | None
    keep: bool

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        n = len(self.seeds)
        evaluations = self.settings.num_inference_steps * (2 if self.settings.guidance_scale > 1 else 1)
        return Cost(n, n * evaluations, n, n * (2_500 + (self._picture() if self.keep else 0)) + 4_000)

    def measure(self, rig: Rig) -> pa.Table:
        images = self._images(rig)
        flags = [flaw(image) for image in images]
        sound = torch.where(images.isfinite(), images, 0.5).clamp(0, 1)  # an instrument must not see what is no image
        n = len(flags)
        columns: dict[str, Any] = {
            "prompt_id": [self.prompt_id] * n,
            "prompt": [self.prompt] * n,
            "seed": list(self.seeds),
            "num_inference_steps": [self.settings.num_inference_steps] * n,
            "guidance_scale": [self.settings.guidance_scale] * n,
            "height": [images.shape[-2]] * n,
            "width": [images.shape[-1]] * n,
            "flag": pa.array(flags, pa.string()),
        }
        for label, embedder in rig.embedders.items():
            columns[f"feature:{label}"] = vectors(features(rig, embedder, sound))
        columns["picture"] = pa.array(
            [
                webp(image, lossless=max(image.shape[-2:]) <= LOSSLESS) if self.keep and not flag else None
                for image, flag in zip(sound, flags, strict=True)
            ],
            pa.binary(),
        )
        return pa.table(columns)

    def _picture(self) -> int:
        """Bytes of a kept picture, about: lossless ones grow with their area, larger ones are lossy; of no known size, as at 64 pixels."""
        height, width = self.settings.height or 64, self.settings.width or 64
        return 4_500 * height * width // 64**2 if max(height, width) <= 256 else 40_000

    def _images(self, rig: Rig) -> Tensor:
        generator = rig.model.generator
        assert generator is not None
        parts = []
        for start in range(0, len(self.seeds), rig.batch_size):
            seeds = self.seeds[start : start + rig.batch_size]
            parts.append(generator.generate([self.prompt] * len(seeds), seeds, self.settings).float().cpu())
        images = torch.cat(parts)
        return images if self.jpeg_quality is None else torch.stack([through_jpeg(image, self.jpeg_quality) for image in images])


def through_jpeg(image: Tensor, quality: int) -> Tensor:
    """An image [3, H, W] in [0, 1] as a JPEG file of that quality gives it back; one that is not finite stays as it is."""
    if not bool(image.isfinite().all()):
        return image
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as found:
        return torch.from_numpy(np.array(found, np.float32) / 255).permute(2, 0, 1)
