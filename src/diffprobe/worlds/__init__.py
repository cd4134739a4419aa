"""The world of the embedded models: captioned 64 x 64 scenes, rendered from a seed, whose every attribute is known.

One object (shape, colour, size, position, an optional detail) stands on a background, at times in black and white.
The attributes live on several spatial scales: tone and background are global, the detail is a few pixels wide.
Beside it: `edits`, pairs of scenes with the instruction that leads from one to the other, and `foreign`, pictures
that are no scenes: another world's, handwriting, scenes in disorder, and noise.
"""

from diffprobe.worlds.attributes import (
    BACKGROUNDS,
    COLOURS,
    DETAILS,
    RESERVED,
    SHAPES,
    SIZES,
    TONES,
    Attributes,
    caption,
)
from diffprobe.worlds.drawing import SIZE, render
from diffprobe.worlds.edits import Edit, edits
from diffprobe.worlds.foreign import UNSEEN, Foreign, foreign
from diffprobe.worlds.scenes import Scene, scenes

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "DETAILS",
    "RESERVED",
    "SHAPES",
    "SIZE",
    "SIZES",
    "TONES",
    "UNSEEN",
    "Attributes",
    "Edit",
    "Foreign",
    "Scene",
    "caption",
    "edits",
    "foreign",
    "render",
    "scenes",
]
