"""Instruments that look at images: models of transformers, with preprocessing of our own whose digest is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from diffprobe.adapters.preprocessing import Preprocessing, read_preprocessing
from diffprobe.adapters.weights import LoadOptions, check_digests, damage, digest_file, digest_folder, quiet, resolve
from diffprobe.errors import UserError
from diffprobe.measures.precision import full_float32

#: The class of transformers for a `model_type` of config.json, by the kind of instrument.
CLASSES = {
    "clip": {"clip": "CLIPModel"},
    "siglip": {"siglip": "SiglipModel"},
    "dinov2": {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
}
_TITLES = {"clip": "CLIP", "siglip": "SigLIP", "dinov2": "DINOv2"}
_EXAMPLES = {"clip": "openai/clip-vit-base-patch32", "siglip": "google/siglip2-base-patch16-224", "dinov2": "facebook/dinov2-base"}


@dataclass(frozen=True, eq=False)
class ClipEmbedder:
    """Images [B, 3, H, W] in [0, 1] and texts to one space, float32, not normalised: CLIP, and SigLIP, which is built alike.

    `masked`: the text tower is told which tokens are padding. SigLIP was trained without, on lower case.
    """

    model: Any
    tokenizer: Any
    preprocessing: Preprocessing
    fingerprint: str
    masked: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        inputs = self.preprocessing(images.float()).to(self.model.device, self.model.dtype)
        with torch.no_grad(), full_float32():
            features: Tensor = self.model.get_image_features(pixel_values=inputs).pooler_output
        return features.float().cpu()

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """[N] texts to [N, D] float32; what is longer than the text tower takes is cut."""
        length = self.model.config.text_config.max_position_embeddings
        told = list(texts) if self.masked else [text.lower() for text in texts]
        padding = {"padding": "max_length", "padding_side": "right", "max_length": length}
        tokens = self.tokenizer(told, **padding, truncation=True, return_tensors="pt").to(self.model.device)
        given = {name: tokens[name] for name in (("input_ids", "attention_mask") if self.masked else ("input_ids",))}
        with torch.no_grad():
            features: Tensor = self.model.get_text_features(**given).pooler_output
        return features.float().cpu()


@dataclass(frozen=True, eq=False)
class DinoEmbedder:
    """Images [B, 3, H, W] in [0, 1] to DINOv2's class token after the last layer norm, float32, not normalised."""

    model: Any
    preprocessing: Preprocessing
    fingerprint: str

    def __call__(self, images: Tensor) -> Tensor:
        inputs = self.preprocessing(images.float()).to(self.model.device, self.model.dtype)
        with torch.no_grad(), full_float32():
            features: Tensor = self.model(pixel_values=inputs).last_hidden_state[:, 0]
        return features.float().cpu()


def load_clip(spec: str, options: LoadOptions, tokenizer: Path | None = None) -> ClipEmbedder:
    """A CLIPModel from a folder or a hub id, float32 wherever it runs, as instruments should be."""
    model, words, preprocessing, fingerprint = _load("clip", spec, options, tokenizer)
    return ClipEmbedder(model, words, preprocessing, fingerprint)


def load_siglip(spec: str, options: LoadOptions) -> ClipEmbedder:
    """A SiglipModel from a folder or a hub id, which is what SigLIP and the SigLIP 2 models of one resolution are."""
    model, words, preprocessing, fingerprint = _load("siglip", spec, options)
    return ClipEmbedder(model, words, preprocessing, fingerprint, masked=False)


def load_dinov2(spec: str, options: LoadOptions) -> DinoEmbedder:
    """A Dinov2Model, with registers or without, from a folder or a hub id."""
    model, _, preprocessing, fingerprint = _load("dinov2", spec, options)
    return DinoEmbedder(model, preprocessing, fingerprint)


def _load(kind: str, spec: str, options: LoadOptions, tokenizer: Path | None = None) -> tuple[Any, Any, Preprocessing, str]:
    """Model, tokenizer (None where it reads no text), preprocessing and fingerprint; raises UserError (exit code 4) in one line."""
    if not spec:
        raise UserError(f"'{kind}' needs a model: give a folder or a hub id, such as '{kind}:{_EXAMPLES[kind]}'")
    folder, _ = resolve(spec, options.revision, options.local_files_only)
    device, _ = options.place()
    check_digests(folder)
    try:
        with quiet():
            model = _network(kind, folder).to(device).eval()
            words = None if kind == "dinov2" else _tokenizer(tokenizer or folder)
        preprocessing = read_preprocessing(folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        told = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise UserError(damage(folder) or f"cannot load a {_TITLES[kind]} model from {folder}: {told}", exit_code=4) from error
    return model, words, preprocessing, f"{kind}/{_digest(folder)[:16]}/{preprocessing.digest()}/float32"


def _network(kind: str, folder: Path) -> Any:
    """The network with all its weights from the folder: one that lacks some would be filled up at random, without a word."""
    import transformers

    found = json.loads((folder / "config.json").read_text()).get("model_type")
    if found not in CLASSES[kind]:
        right = next((other for other, types in CLASSES.items() if found in types), None)
        remedy = "SigLIP 2 models of a fixed resolution" if found == "siglip2" else ", ".join(CLASSES[kind])
        told = f"name it '{right}:{folder}'" if right else f"'{kind}:' takes {remedy}"
        raise UserError(f"{folder} holds a model of type '{found}': {told}", exit_code=4)
    model, told = getattr(transformers, CLASSES[kind][found]).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    lacking = sorted(told["missing_keys"])
    if lacking:
        raise ValueError(f"its weights lack '{lacking[0]}'" + (f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""))
    return model


def _tokenizer(folder: Path) -> Any:
    """By the tokenizer's own file where there is one, so that what else is installed does not choose another implementation."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    kind = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    return kind.from_pretrained(folder, local_files_only=True)


def _digest(folder: Path) -> str:
    """Of the weight files: safetensors, or the older format, which transformers reads without running what it may hold."""
    older = sorted(folder.glob("pytorch_model*.bin"))
    if next(folder.rglob("*.safetensors"), None) is not None or not older:
        return digest_folder(folder).removeprefix("sha256:")
    lines = "".join(f"{file.name}:{digest_file(file).removeprefix('sha256:')}\n" for file in older)
    return hashlib.sha256(lines.encode()).hexdigest()
