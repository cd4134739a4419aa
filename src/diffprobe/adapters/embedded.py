"""The model that ships with the package: trained on `diffprobe.worlds` by the scripts in zoo/."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffprobe.adapters.diffusers import load_pipeline
from diffprobe.adapters.embedders import ClipEmbedder, load_clip
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError
from diffprobe.model import Model


def folder() -> Path:
    """Where the weights lie; raises UserError where the installation lacks them."""
    path = Path(__file__).parent.parent / "assets" / "embedded"
    if not (path / "model_index.json").is_file():
        raise UserError("this installation lacks the embedded model: reinstall diffprobe, or name another with --model", exit_code=4)
    return path


def load_embedded(options: LoadOptions) -> Model:
    """The embedded pipeline, a genuine StableDiffusionPipeline on 64 x 64 scenes."""
    model = load_pipeline(str(folder()), options, name="embedded")
    return replace(model, identity={**model.identity, "source": "embedded"})


def load_embedded_clip(options: LoadOptions) -> ClipEmbedder:
    """The small CLIP that was trained with it. Use it for differences, not for absolute values."""
    return load_clip(str(folder() / "clip"), options, tokenizer=folder() / "tokenizer")
