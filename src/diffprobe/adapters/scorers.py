"""Scorers: one number an image, from pixels, from an aesthetic head on CLIP, or from what somebody brought."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.adapters.custom import bring, is_import_path, placed, told
from diffprobe.adapters.embedders import load_clip
from diffprobe.adapters.published import digest_state, fill, read_state
from diffprobe.adapters.weights import LoadOptions
from diffprobe.errors import UserError, unknown
from diffprobe.measures import similarity
from diffprobe.measures.precision import full_float32
from diffprobe.model import Embedder, Scorer

#: The CLIP that the improved head and the best-known linear one were trained on, and the width of its embeddings.
CLIP, WIDTH = "openai/clip-vit-large-patch14", 768


@dataclass(frozen=True)
class Sharpness:
    """The mean squared gradient (`measures.similarity.sharpness`): images [B, 3, H, W] in [0, 1] to [B] float32."""

    fingerprint: str = "sharpness/1"

    def __call__(self, images: Tensor) -> Tensor:
        """Raises UserError for images of a single row or column."""
        try:
            return similarity.sharpness(images).float().cpu()
        except ValueError as error:
            raise UserError(f"'sharpness' cannot score: {error}") from error


@dataclass(frozen=True, eq=False)
class HeadScorer:
    """A regression head on a CLIP's image embeddings, of length 1: images [B, 3, H, W] in [0, 1] to [B] float32."""

    look: Embedder
    head: nn.Module
    device: torch.device
    fingerprint: str

    def __call__(self, images: Tensor) -> Tensor:
        features = torch.nn.functional.normalize(self.look(images), dim=-1)
        with torch.no_grad(), full_float32():
            scores: Tensor = self.head(features.to(self.device))[:, 0]
        return scores.float().cpu()


@dataclass(frozen=True, eq=False)
class CustomScorer:
    """What someone brought: images [B, 3, H, W] in [0, 1] to one score each, float32 on the CPU whatever it gives.

    `device` None gives it the images where they are.
    """

    name: str
    look: Callable[[Tensor], Any]
    device: torch.device | None
    fingerprint: str

    def __call__(self, images: Tensor) -> Tensor:
        """Raises UserError where what comes back is not one number an image."""
        given = images.float()
        with torch.no_grad(), full_float32():
            scores = self.look(given if self.device is None else given.to(self.device))
        if not isinstance(scores, Tensor) or tuple(scores.shape) not in {(len(images),), (len(images), 1)}:
            found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UserError(f"'{self.name}' must give scores [{len(images)}] for {len(images)} images, not {found}")
        return scores.reshape(len(images)).float().cpu()


class Improved(nn.Module):
    """The head of LAION's improved aesthetic predictor: five linear layers, dropout between them, and (as published) no non-linearity."""

    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, 1024, 128, 64, 16, 1)
        first, second, third, *last = (nn.Linear(*pair) for pair in pairwise(widths))
        self.layers = nn.Sequential(first, nn.Dropout(0.2), second, nn.Dropout(0.2), third, nn.Dropout(0.1), *last)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.layers(x))


def scorer(name: str) -> Callable[[LoadOptions], Scorer]:
    """What loads the scorer of a name, of SCORERS or an import path; raises UserError with the nearest valid name where nothing does."""
    kind, _, spec = name.partition(":")
    if kind in SCORERS:
        return lambda options: SCORERS[kind](spec, options)
    if is_import_path(name):
        return lambda options: load_custom_scorer(name, options)
    raise unknown("scorer", kind, [*SCORERS, "<package.module>:<attribute>"])


def load_sharpness(spec: str, options: LoadOptions) -> Sharpness:
    """The one built in."""
    if spec:
        raise UserError(f"'sharpness' takes no '{spec}': name it 'sharpness'")
    return Sharpness()


def load_laion(spec: str, options: LoadOptions) -> HeadScorer:
    """LAION's aesthetic predictor by '<file>[,clip=<folder or hub id>]': linear (`weight`, `bias`) or improved (`layers.*`).

    The CLIP is ViT-L/14 where none is named, as for the improved head it must be. Raises UserError (exit code 4) for a file that is not
    there or is no such head, and for a CLIP of another width.
    """
    file, clip = _parsed(spec)
    state = read_state(file)
    linear = set(state) == {"weight", "bias"} and state["weight"].ndim == 2
    if not linear and "layers.0.weight" not in state:
        held = ", ".join(sorted(state)[:3]) or "nothing"
        raise UserError(f"{file} is no LAION head ({held}): it has 'weight' and 'bias', or 'layers.0.weight' to 'layers.7.bias'", 4)
    width = state["weight"].shape[1] if linear else WIDTH
    head: nn.Module = fill(lambda: nn.Linear(width, 1), state, file) if linear else fill(Improved, state, file)
    look = load_clip(clip, options)
    found = int(look.model.config.projection_dim)
    if found != width:
        raise UserError(f"'{clip}' gives {found} features and {file} takes {width}: after clip= name the CLIP that it was trained on", 4)
    device, _ = options.place()
    kind = "linear" if linear else "improved"
    return HeadScorer(look, head.to(device), device, f"laion-{kind}/{digest_state(head.state_dict())[:16]}/{look.fingerprint}")


def load_custom_scorer(name: str, options: LoadOptions) -> Scorer:
    """The scorer at an import path, as `custom.load_custom` finds an embedder there; one with a `fingerprint` gets images as they come."""
    look, source = bring(name, "scorer")
    given = told(look)
    return CustomScorer(name, *placed(name, look, source, options)) if given is None else CustomScorer(name, look, None, given)


def _parsed(spec: str) -> tuple[Path, str]:
    """The head's file and the CLIP; raises UserError for what is not there before anything is read."""
    whole = bool(spec) and Path(spec).expanduser().is_file()  # a name may hold what looks like an option
    first, *rest = [spec] if whole else re.split(r",(?=\w+=)", spec)
    options = dict(part.split("=", 1) for part in rest)
    for option in options:
        if option != "clip":
            raise unknown("option of 'laion:<file>'", option, ("clip",))
    clip = options.get("clip", CLIP)
    if not first or not clip or len(options) < len(rest):
        raise UserError(f"'laion:{spec}' is not whole: give 'laion:<file>', or 'laion:<file>,clip=<folder or hub id>'")
    file = Path(first).expanduser()
    if not file.is_file():
        raise UserError(f"no file '{first}': give the path of an aesthetic head of LAION's, which you fetch yourself", 4)
    return file, clip


#: '<kind>' or '<kind>:<spec>' to what scores images.
SCORERS: dict[str, Callable[[str, LoadOptions], Scorer]] = {"laion": load_laion, "sharpness": load_sharpness}
