"""What `diffprobe models` lists: names that need no download, and the forms that name others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffprobe.adapters.embedded import LORAS, MEMBERS, folder
from diffprobe.errors import UserError


@dataclass(frozen=True)
class Entry:
    """One line of the list: `place` is None where nothing lies on the disk, `does` what the model can be asked for."""

    name: str
    told: str
    does: str
    place: Path | None = None
    megabytes: float | None = None
    missing: str | None = None


ALL = "generates, edits; denoiser"
DOES = {"embedded-edit": "edits (no strength axis); denoiser"}
OTHERS = (
    Entry("exact:gaussian", "one Gaussian of three known scales, a linear decoder", ALL),
    Entry("exact:gmm", "four classes with exact posteriors, a linear decoder", ALL),
    Entry("exact:anisotropic", "four classes, each with variances of its own", ALL),
    Entry("exact:hierarchical", "three classes in each of three groups; prompts ask for `class k` or `group k`", ALL),
    Entry("exact:low-rank", "the Gaussian through a decoder of rank 24", ALL),
    Entry("exact:relu", "the four classes through a piecewise-linear decoder with exact Jacobians", ALL),
    Entry("exact:identity", "an editor that changes nothing: what is left is the codec", ALL),
    Entry("exact:<world>@<path>", "any of these on another noise path: vp (the default), ve, flow", ALL),
    Entry(
        "<folder>",
        "what `save_pretrained` wrote: Stable Diffusion 1 to 3.5 and XL, Flux, PixArt, InstructPix2Pix, DiT, DDPM, or an autoencoder alone",
        "as deployed",
    ),
    Entry("<owner>/<name>", "the same from the hub or its cache; HF_HOME and HF_HUB_OFFLINE are honoured", "as deployed"),
    Entry(
        "edm2:<file>",
        "a network that NVIDIA published for EDM2; `,uncond=<file>` and `,vae=<folder>` after it add its companions",
        "denoiser",
    ),
    Entry(
        "<pipeline>+<LoRA>",
        "a saved pipeline with LoRA weights on top: a folder, a file, or a hub id; `+0.6*<LoRA>` at that strength",
        "as its base",
    ),
)


def catalogue() -> list[Entry]:
    """Every model that has a name, the shipped ones with their place and size."""
    return [*map(_member, MEMBERS), *OTHERS]


def _member(name: str) -> Entry:
    does = DOES.get(name, ALL)
    try:
        place = folder(name)
    except UserError as error:
        return Entry(name, MEMBERS[name], does, missing=str(error))
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) / 1e6
    told = MEMBERS[name] + (f" (on top of {LORAS[name]})" if name in LORAS else "")
    return Entry(name, told, does, place, size)
