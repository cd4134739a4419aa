"""Inversion: from an image's latents to the noise that the deterministic sampler would have made them of, and back."""

from diffprobe.inversion.climb import Climbed, ascend, climb
from diffprobe.inversion.editor import InversionEditor
from diffprobe.inversion.invert import METHODS, Inversion, Inverted, invert, parts_of, replay
from diffprobe.inversion.null_text import Retraced, check_optimisable, null_text

__all__ = [
    "METHODS",
    "Climbed",
    "Inversion",
    "InversionEditor",
    "Inverted",
    "Retraced",
    "ascend",
    "check_optimisable",
    "climb",
    "invert",
    "null_text",
    "parts_of",
    "replay",
]
