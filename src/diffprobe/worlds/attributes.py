"""What can be in a scene, and how a caption says it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = {
    "red": (0.86, 0.13, 0.15),
    "orange": (0.97, 0.53, 0.08),
    "yellow": (0.97, 0.89, 0.15),
    "green": (0.13, 0.62, 0.20),
    "cyan": (0.15, 0.83, 0.90),
    "blue": (0.13, 0.27, 0.88),
    "purple": (0.55, 0.15, 0.70),
    "pink": (0.98, 0.55, 0.75),
}
SIZES = {"small": (0.38, 0.44), "large": (0.56, 0.64)}  # circumradius; the picture is 2 wide
BACKGROUNDS = {
    "grey": "on a grey background",
    "beige": "on a beige background",
    "teal": "on a teal background",
    "textured": "on a textured background",
    "stripes": "on a striped background",
    "night": "at night",
    "snow": "in the snow",
    "sunset": "at sunset",
}
DETAILS = {"none": "", "dot": "with a black dot", "window": "with a window", "hat": "with a hat", "eyes": "with eyes"}
TONES = ("colour", "black and white")
#: Shape and colour pairs that no training set contains, kept for tests of novelty.
RESERVED = frozenset({("star", "purple"), ("heart", "green"), ("cross", "pink"), ("triangle", "cyan")})
PLAIN = ("grey", "beige", "teal")


@dataclass(frozen=True)
class Attributes:
    """What is in a scene. `x`, `y` (centre) and `radius` are in units of half a picture, from -1 to 1."""

    shape: str
    colour: str
    size: str
    background: str
    detail: str
    tone: str
    x: float
    y: float
    radius: float

    @property
    def domain(self) -> str:
        """The background's kind: plain, textured, stripes, night, snow or sunset."""
        return "plain" if self.background in PLAIN else self.background


def caption(attributes: Attributes, names: Iterable[str] = ("size", "colour", "shape", "detail", "background")) -> str:
    """One English phrase that names the attributes in `names`; black and white is always named, and then no colour is."""
    told, grey = set(names), attributes.tone != "colour"
    words = ["a black and white picture of a"] if grey else ["a"]
    words += [attributes.size] if "size" in told else []
    words += [attributes.colour] if "colour" in told and not grey else []
    words.append(attributes.shape if "shape" in told else "thing")
    words += [DETAILS[attributes.detail]] if "detail" in told and attributes.detail != "none" else []
    words += [BACKGROUNDS[attributes.background]] if "background" in told else []
    phrase = " ".join(words)
    return phrase.replace("a orange", "an orange", 1) if phrase.startswith("a orange") else phrase
