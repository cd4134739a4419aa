"""Instruments that look at images: CLIP models of transformers, with preprocessing of our own whose digest is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from diffprobe.adapters.weights import LoadOptions, check_digests, damage, digest_folder, quiet, resolve
from diffprobe.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """Shorter side to `size` (bicubic, antialiased), centre crop, normalise by channel."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        scale = self.size / min(height, width)
        if scale != 1:
            shape = (max(self.size, round(height * scale)), max(self.size, round(width * scale)))
            images = F.interpolate(images, shape, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (images.shape[-2] - self.size) // 2, (images.shape[-1] - self.size) // 2
        images = images[..., top : top + self.size, left : left + self.size]
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def digest(self) -> str:
        """Of a reference image after preprocessing, to four decimals: what a silent change of the resizing would alter."""
        ramp = torch.linspace(0, 1, 3 * 96 * 80).view(1, 3, 96, 80)
        rounded = (self(ramp) * 1e4).round().to(torch.int32)
        return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class ClipEmbedder:
    """Images [B, 3, H, W] in [0, 1] and texts to the same space, float32, not normalised."""

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    fingerprint: str

    def __call__(self, images: Tensor) -> Tensor:
        inputs = self.preprocessing(images.float()).to(self.model.device, self.model.dtype)
        with torch.no_grad():
            features: Tensor = self.model.get_image_features(pixel_values=inputs).pooler_output
        return features.float().cpu()

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            features: Tensor = self.model.get_text_features(**tokens).pooler_output
        return features.float().cpu()


def load_clip(spec: str, options: LoadOptions, tokenizer: Path | None = None) -> ClipEmbedder:
    """A CLIPModel from a folder or a hub id, float32 wherever it runs, as instruments should be."""
    from transformers import CLIPModel, CLIPTokenizer

    folder, _ = resolve(spec, options.revision, options.local_files_only)
    device, _ = options.place()
    check_digests(folder)
    try:
        with quiet():
            model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(device).eval()
            words = CLIPTokenizer.from_pretrained(tokenizer or folder, local_files_only=True)
        preprocessing = _preprocessing(folder / "preprocessor_config.json")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            damage(folder) or f"cannot load a CLIP model from {folder}: {str(error).strip().splitlines()[0][:200]}", exit_code=4
        ) from error
    fingerprint = f"clip/{digest_folder(folder)[7:23]}/{preprocessing.digest()}/float32"
    return ClipEmbedder(model, words, preprocessing, fingerprint)


def _preprocessing(path: Path) -> Preprocessing:
    given = json.loads(path.read_text())
    crop = given.get("crop_size") if given.get("do_center_crop", True) else given["size"]
    size = crop if isinstance(crop, int) else int(crop.get("height") or crop["shortest_edge"])
    return Preprocessing(size, tuple(given["image_mean"]), tuple(given["image_std"]))
