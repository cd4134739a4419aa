"""Scenes from a seed: which attributes they get, and the pairs of shape and colour that are held out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from diffprobe import rng
from diffprobe.worlds.attributes import BACKGROUNDS, COLOURS, DETAILS, RESERVED, SHAPES, SIZES, Attributes, caption
from diffprobe.worlds.drawing import render

_ROLE = "worlds.scene"


@dataclass(frozen=True)
class Scene:
    """A rendered scene: `image` uint8 [64, 64, 3] sRGB, its attributes, and a caption that names some or all of them."""

    image: npt.NDArray[np.uint8]
    attributes: Attributes
    caption: str


def scenes(n: int, seed: int, *, backgrounds: Iterable[str] = tuple(BACKGROUNDS), reserved: bool = False, start: int = 0) -> list[Scene]:
    """The scenes number start to start + n of the world `seed`; scene i is the same however many are asked for.

    `backgrounds` restricts the kinds of background; `reserved=True` gives only the held-out pairs of shape and colour, else left out.
    """
    allowed = tuple(backgrounds)
    unknown = sorted(set(allowed) - set(BACKGROUNDS))
    if unknown or not allowed:
        raise ValueError(f"unknown background {', '.join(unknown) or '(none given)'}: choose from {', '.join(BACKGROUNDS)}")
    return [_scene(rng.stream(_ROLE, seed, index), allowed, reserved) for index in range(start, start + n)]


def held(seed: int, index: int) -> Attributes:
    """What is in the scene number `index` of the world `seed`, without rendering it."""
    return attributes_of(rng.stream(_ROLE, seed, index))[0]


def _scene(draw: np.random.Generator, backgrounds: tuple[str, ...], reserved: bool) -> Scene:
    attributes, text = attributes_of(draw, backgrounds, reserved)
    return Scene(render(attributes, draw), attributes, text)


def attributes_of(
    draw: np.random.Generator, backgrounds: tuple[str, ...] = tuple(BACKGROUNDS), reserved: bool = False
) -> tuple[Attributes, str]:
    """The first draws of a scene's stream: what it holds and its caption. Those that follow render it."""
    shape, colour = _pair(draw, reserved)
    size = str(draw.choice(tuple(SIZES)))
    radius = float(draw.uniform(*SIZES[size]))
    room = 0.96 - radius
    attributes = Attributes(
        shape=shape,
        colour=colour,
        size=size,
        background=str(draw.choice(backgrounds)),
        detail=str(draw.choice(tuple(DETAILS), p=(0.4, 0.15, 0.15, 0.15, 0.15))),
        tone="black and white" if draw.random() < 0.08 else "colour",
        x=float(draw.uniform(-room, room)),
        y=float(draw.uniform(-room, room)),
        radius=radius,
    )
    if attributes.detail == "hat":  # keep the hat inside the picture
        attributes = replace(attributes, y=max(attributes.y, -0.96 + 1.3 * radius))
    told = [name for name in ("size", "colour", "shape", "detail", "background") if draw.random() < 0.7]
    return attributes, caption(attributes) if draw.random() < 0.5 else caption(attributes, told)


def _pair(draw: np.random.Generator, reserved: bool) -> tuple[str, str]:
    while True:
        pair = str(draw.choice(SHAPES)), str(draw.choice(tuple(COLOURS)))
        if (pair in RESERVED) == reserved:
            return pair
