"""Pictures that are no scenes, from near to far, for tests that ask whether a model notices what it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from diffprobe import rng
from diffprobe.worlds.attributes import COLOURS, Attributes, caption
from diffprobe.worlds.drawing import SIZE, Array, X, Y, background, box, clouds, paint, render
from diffprobe.worlds.scenes import attributes_of

Kind = Literal["inverted", "strokes", "shuffled", "noise"]
KINDS: tuple[Kind, ...] = get_args(Kind)
#: What stands in the pictures of the inverted world; no scene holds any of it.
UNSEEN = ("ring", "crescent", "hexagon", "arrow", "spiral", "letter E")
_PAPERS = {"white": (0.97, 0.97, 0.96), "cream": (0.96, 0.91, 0.78), "yellow": (0.98, 0.93, 0.58), "blue": (0.82, 0.89, 0.95)}
_INKS = {"black": (0.08, 0.08, 0.10), "blue": (0.10, 0.16, 0.55), "brown": (0.36, 0.20, 0.08), "red": (0.70, 0.10, 0.12)}
_NUMBERS = ("three", "four", "five", "six", "seven")
_BLOCK = 8  # pixels a side of what is shuffled


@dataclass(frozen=True)
class Foreign:
    """A picture that is no scene: `image` uint8 [64, 64, 3] sRGB, a caption that says what it is, and its kind."""

    image: npt.NDArray[np.uint8]
    caption: str
    kind: Kind


def foreign(n: int, seed: int, *, kind: Kind, start: int = 0) -> list[Foreign]:
    """The pictures number start to start + n of a kind; picture i is the same however many are asked for.

    "inverted" is near to the scenes: the same light and backgrounds, but shapes of UNSEEN, and all of it as a photographic negative.
    "strokes" is far: rows of handwriting on paper, in no language. "shuffled" has the pixels of a scene (one of its own, that no other
    set holds) in squares of 8 x 8 that changed places at random, so it differs in structure alone. "noise" has no structure: every
    channel of every pixel is uniform. Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of foreign picture {kind}: choose from {', '.join(KINDS)}")
    draw = _DRAW[kind]
    return [Foreign(*draw(rng.stream(f"worlds.foreign.{kind}", seed, index)), kind) for index in range(start, start + n)]


def _inverted(draw: np.random.Generator) -> tuple[npt.NDArray[np.uint8], str]:
    """A scene's attributes with another shape; the caption tells the tones and colours before they are inverted."""
    attributes = replace(attributes_of(draw)[0], shape=str(draw.choice(UNSEEN)), detail="none")
    picture = background(attributes.background, draw)
    _stand(picture, attributes)
    if attributes.tone != "colour":
        picture[:] = (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return _sensed(1 - picture, draw), f"the negative of {caption(attributes)}"


def _stand(picture: Array, attributes: Attributes) -> None:
    """Put the shape into the picture, with a scene's shadow and light."""
    x, y, radius = X - attributes.x, Y - attributes.y, attributes.radius
    outline = _OUTLINES[attributes.shape]
    shadow = outline((x - 0.07) / radius, (y - 0.09) / radius) * radius
    picture *= 1 - 0.4 / (1 + np.exp(np.clip(shadow / 0.03, -30, 30)))[..., None]
    light = 1 - 0.16 * (x + y) / radius
    colour = np.asarray(COLOURS[attributes.colour], np.float32)
    paint(picture, outline(x / radius, y / radius) * radius, np.clip(colour * light[..., None], 0, 1))


def _sensed(picture: Array, draw: np.random.Generator) -> npt.NDArray[np.uint8]:
    """To eight bits, with the noise of a scene's sensor."""
    noisy = picture + 0.008 * draw.standard_normal(picture.shape, dtype=np.float32)
    return cast("npt.NDArray[np.uint8]", (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8))


def _crescent(x: Array, y: Array) -> Array:
    return np.asarray(np.maximum(np.hypot(x - 0.12, y) - 0.92, 0.78 - np.hypot(x - 0.67, y + 0.08)))


def _hexagon(x: Array, y: Array) -> Array:
    return np.asarray(np.maximum(0.866 * np.abs(x) + 0.5 * np.abs(y), np.abs(y)) - 0.8)


def _arrow(x: Array, y: Array) -> Array:
    """To the right: a shaft, and a head whose sides fall by 41 degrees."""
    head = np.maximum(0.02 - x, 0.66 * (x - 0.95) + 0.75 * np.abs(y))
    return np.asarray(np.minimum(box(x + 0.44, y, 0.5, 0.24), head))


def _spiral(x: Array, y: Array) -> Array:
    """Two turns of an Archimedean spiral with round ends: the distance along the radius to the nearest turn."""
    pitch, inner, half = 0.4, 0.1, 0.115
    radius, turn = np.hypot(x, y), np.arctan2(y, x) / (2 * np.pi) + 0.5 + inner
    arm = np.abs(radius - pitch * (np.clip(np.round(radius / pitch - turn), 0, 1) + turn))
    tips = np.minimum(np.hypot(x + pitch * inner, y), np.hypot(x + pitch * (inner + 2), y))
    return np.asarray(np.minimum(arm, tips) - half)


def _letter(x: Array, y: Array) -> Array:
    stem = box(x + 0.42, y, 0.19, 0.9)
    bars = [box(x - 0.02, y - row, width, 0.18) for row, width in ((-0.72, 0.6), (0.0, 0.5), (0.72, 0.6))]
    return np.asarray(np.minimum.reduce([stem, *bars]))


_OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "ring": lambda x, y: np.abs(np.hypot(x, y) - np.float32(0.66)) - np.float32(0.22),
    "crescent": _crescent,
    "hexagon": _hexagon,
    "arrow": _arrow,
    "spiral": _spiral,
    "letter E": _letter,
}


def _strokes(draw: np.random.Generator) -> tuple[npt.NDArray[np.uint8], str]:
    """Three to seven lines from the top of a page; `top` (the first line's foot) and `spacing` are in pixels."""
    paper, ink, ruled = str(draw.choice(tuple(_PAPERS))), str(draw.choice(tuple(_INKS))), draw.random() < 0.5
    spacing, tilt = draw.uniform(8.5, 13), draw.uniform(-0.06, 0.06)
    top = spacing * draw.uniform(0.8, 1)
    lines = int(draw.integers(3, int((SIZE - 4 - top) / spacing) + 2))
    picture = np.asarray(_PAPERS[paper], np.float32) * (1 + draw.uniform(-0.06, 0.02) * X + draw.uniform(-0.06, 0.02) * Y)[..., None]
    picture += 0.012 * clouds(draw)[..., None]
    if ruled:
        below = (Y + 1 - tilt * (X + 1)) * (SIZE / 2) - top
        _wash(picture, 0.5 * np.clip(1 - np.abs((below + spacing / 2) % spacing - spacing / 2), 0, 1), (0.45, 0.60, 0.82))
    feet = top + spacing * np.arange(lines)
    _wash(picture, 1 - np.exp(-draw.uniform(1.6, 3.2) * _written(feet, spacing, tilt, draw)), _INKS[ink])
    return _sensed(picture, draw), f"{_NUMBERS[lines - 3]} lines of {ink} handwriting on {'ruled ' if ruled else ''}{paper} paper"


def _wash(picture: Array, cover: Array, colour: tuple[float, float, float]) -> None:
    """Blend `colour` by its cover [64, 64]."""
    picture += cover[..., None] * (np.asarray(colour, np.float32) - picture)


def _written(feet: Array, spacing: float, tilt: float, draw: np.random.Generator) -> Array:
    """Ink on a page [64, 64], lines at the heights `feet` (pixels): about 1 along the middle of a stroke, 0 on bare paper.

    A letter is one wave of the pen, up from the last one's foot and down to its own; the swing to and fro makes it a loop or an arch.
    """
    height = spacing * draw.uniform(0.3, 0.4)
    width, slant, joined = height * draw.uniform(0.65, 1), draw.uniform(-0.15, 0.55), draw.random() < 0.7
    many = len(feet), int(SIZE / width) + 1
    phase = np.linspace(0, 1, 24, endpoint=False)
    peak = draw.choice((1.0, 1.95, 0.6), many, p=(0.68, 0.24, 0.08)) * draw.uniform(0.9, 1.1, many)
    foot = draw.choice((0.0, -0.95), many, p=(0.84, 0.16)) + draw.uniform(-0.06, 0.06, many)
    low = np.where(phase < 0.5, np.roll(foot, 1, axis=1)[..., None], foot[..., None])
    up = height * (low + (peak[..., None] - low) * (0.5 - 0.5 * np.cos(2 * np.pi * phase)))
    swing = draw.uniform(-0.35, 0.7, many)[..., None] * np.sin(2 * np.pi * phase)
    margin = draw.uniform(3, 8) + draw.uniform(0, 1.5, (len(feet), 1, 1))
    x = margin + width * (np.arange(many[1])[:, None] + phase + swing) + slant * up
    y = feet[:, None, None] + tilt * x - up
    ends = draw.uniform(52, 61, len(feet))
    ends[-1] *= draw.uniform(0.4, 1)
    down = _words(many, draw)[..., None] & (x < ends[:, None, None]) & (joined | (np.abs(phase - 0.5) < 0.4))
    way = np.hypot(*(np.diff(v.reshape(len(feet), -1), append=0).reshape(v.shape) for v in (x, y)))
    return _splat(x, y, np.where(down, np.minimum(way, 2), 0), max(0.4, height * draw.uniform(0.1, 0.15)))


def _words(many: tuple[int, int], draw: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which letters of [lines, letters] are written: words of two to seven, with a letter left out between them."""
    written = np.ones(many, bool)
    for line, gaps in zip(written, np.cumsum(draw.integers(3, 9, many), axis=1) - 1, strict=True):
        line[gaps[gaps < many[1]]] = False
    return written


def _splat(x: Array, y: Array, weight: Array, sigma: float) -> Array:
    """Sum of round Gaussian dots of width `sigma` pixels; dots a `weight` of pixels apart make a line of height 1."""
    seen = (weight > 0) & (np.abs(x - 32) < 31) & (np.abs(y - 32) < 31)
    x, y, weight = x[seen] - 0.5, y[seen] - 0.5, weight[seen] / (sigma * np.sqrt(2 * np.pi))
    near = np.arange(-1, 3)
    columns, rows = (np.floor(v).astype(int)[:, None] + near for v in (x, y))
    across, down = (np.exp(-((p - v[:, None]) ** 2) / (2 * sigma**2)) for p, v in ((columns, x), (rows, y)))
    cells = (np.clip(rows, 0, SIZE - 1)[:, :, None] * SIZE + np.clip(columns, 0, SIZE - 1)[:, None, :]).ravel()
    dots = (weight[:, None, None] * down[:, :, None] * across[:, None, :]).ravel()
    return np.bincount(cells, dots, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.float32)


def _shuffled(draw: np.random.Generator) -> tuple[npt.NDArray[np.uint8], str]:
    """A whole scene first, then the places of its squares."""
    attributes, _ = attributes_of(draw)
    side = SIZE // _BLOCK
    squares = render(attributes, draw).reshape(side, _BLOCK, side, _BLOCK, 3).swapaxes(1, 2).reshape(side**2, _BLOCK, _BLOCK, 3)
    moved = squares[draw.permutation(side**2)].reshape(side, side, _BLOCK, _BLOCK, 3).swapaxes(1, 2)
    return np.ascontiguousarray(moved.reshape(SIZE, SIZE, 3)), f"the shuffled squares of {caption(attributes)}"


def _noise(draw: np.random.Generator) -> tuple[npt.NDArray[np.uint8], str]:
    return draw.integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8), "coloured noise"


_DRAW: dict[Kind, Callable[[np.random.Generator], tuple[npt.NDArray[np.uint8], str]]] = {
    "inverted": _inverted,
    "strokes": _strokes,
    "shuffled": _shuffled,
    "noise": _noise,
}
