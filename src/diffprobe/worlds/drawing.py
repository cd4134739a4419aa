"""How a scene is drawn: signed distances with soft edges, a shadow, shading, and backgrounds on several spatial scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import numpy.typing as npt

from diffprobe.worlds.attributes import COLOURS, Attributes

SIZE = 64
_PLAIN = {"grey": (0.55, 0.55, 0.57), "beige": (0.85, 0.78, 0.65), "teal": (0.30, 0.52, 0.52)}

Array = npt.NDArray[np.floating]
_AXIS = ((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1).astype(np.float32)
X, Y = np.meshgrid(_AXIS, _AXIS)
_WAVES = np.cos(np.pi * np.outer((_AXIS + 1) / 2, np.arange(6))).astype(np.float32)


def render(attributes: Attributes, noise: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw a scene: uint8 [64, 64, 3]. `noise` gives textures, stars, flakes and the sensor's noise (sigma 0.008)."""
    picture = background(attributes.background, noise)
    x, y, radius = X - attributes.x, Y - attributes.y, attributes.radius
    distance = _distance(attributes.shape, x / radius, y / radius) * radius
    shadow = _distance(attributes.shape, (x - 0.07) / radius, (y - 0.09) / radius) * radius
    picture *= 1 - 0.4 / (1 + np.exp(np.clip(shadow / 0.03, -30, 30)))[..., None]
    colour = np.asarray(COLOURS[attributes.colour], np.float32)
    light = 1 - 0.16 * (x + y) / radius
    paint(picture, distance, np.clip(colour * light[..., None], 0, 1))
    _detail(picture, attributes, x / radius, y / radius)
    if attributes.tone != "colour":
        picture[:] = (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    picture += 0.008 * noise.standard_normal(picture.shape, dtype=np.float32)
    return cast("npt.NDArray[np.uint8]", (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


def paint(picture: Array, distance: Array, colour: Array | tuple[float, float, float]) -> None:
    """Blend `colour` where the signed distance is negative, with an edge one pixel wide."""
    cover = np.clip(0.5 - distance * (SIZE / 2), 0, 1)[..., None]
    picture += cover * (np.asarray(colour, np.float32) - picture)


def box(x: Array, y: Array, width: float, height: float) -> Array:
    return np.asarray(np.maximum(np.abs(x) - width, np.abs(y) - height))


def _distance(shape: str, x: Array, y: Array) -> Array:
    """Signed distance to the outline of a shape of circumradius 1, y downwards; exact near straight edges."""
    return np.asarray(_OUTLINES[shape](x, y))


def _triangle(x: Array, y: Array) -> Array:
    return np.asarray(np.maximum(0.866 * np.abs(x) - 0.5 * (y + 0.2), y + 0.2 - 0.8) - np.float32(0.42))


def _star(x: Array, y: Array) -> Array:
    """Five points: the distance to the edge of one half point, the angle folded into it."""
    sector, outer, inner = np.pi / 5, 1.05, 0.42
    angle = np.abs((np.arctan2(x, -y) + sector) % (2 * sector) - sector)
    edge = np.array([inner * np.cos(sector) - outer, inner * np.sin(sector)])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    radius = np.hypot(x, y)
    return np.asarray((radius * np.cos(angle) - outer) * normal[0] + radius * np.sin(angle) * normal[1], np.float32)


def _heart(x: Array, y: Array) -> Array:
    """A square on its tip and two discs."""
    across, along = (x + y + 0.1) * 0.7071, (x - y - 0.1) * 0.7071
    left, right = np.hypot(across + 0.52, along), np.hypot(across, along - 0.52)
    return np.asarray(np.minimum(box(across, along, 0.52, 0.52), np.minimum(left, right) - np.float32(0.52)))


_OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": lambda x, y: np.hypot(x, y) - np.float32(0.88),
    "square": lambda x, y: box(x, y, 0.76, 0.76),
    "triangle": _triangle,
    "star": _star,
    "cross": lambda x, y: np.minimum(box(x, y, 0.3, 0.95), box(x, y, 0.95, 0.3)),
    "heart": _heart,
}


def _detail(picture: Array, attributes: Attributes, x: Array, y: Array) -> None:
    """Draw the detail in the object's own coordinates (circumradius 1); distances are scaled back to the picture."""
    radius, kind = attributes.radius, attributes.detail
    if kind == "dot":
        paint(picture, (np.hypot(x, y) - 0.24) * radius, (0.04, 0.04, 0.04))
    elif kind == "window":
        paint(picture, box(x, y, 0.32, 0.32) * radius, (0.22, 0.14, 0.08))
        for column in (-0.145, 0.145):
            for row in (-0.145, 0.145):
                paint(picture, box(x - column, y - row, 0.105, 0.105) * radius, (0.98, 0.97, 0.80))
    elif kind == "eyes":
        for side in (-0.23, 0.23):
            paint(picture, (np.hypot(x - side, y) - 0.20) * radius, (0.99, 0.99, 0.99))
            paint(picture, (np.hypot(x - side, y - 0.04) - 0.09) * radius, (0.02, 0.02, 0.02))
    elif kind == "hat":
        paint(picture, box(x, y + 0.72, 0.62, 0.09) * radius, (0.20, 0.09, 0.04))
        paint(picture, box(x, y + 0.98, 0.36, 0.26) * radius, (0.20, 0.09, 0.04))
        paint(picture, box(x, y + 0.84, 0.36, 0.06) * radius, (0.95, 0.92, 0.85))


def background(kind: str, noise: np.random.Generator) -> Array:
    """float32 [64, 64, 3] in [0, 1], one of BACKGROUNDS."""
    tilt = noise.uniform(-0.05, 0.05, 2)
    shade = (1 + tilt[0] * X + tilt[1] * Y).astype(np.float32)[..., None]
    rise = ((Y + 1) / 2)[..., None]
    if kind in _PLAIN:
        return np.asarray(np.asarray(_PLAIN[kind], np.float32) * shade + 0.015 * clouds(noise)[..., None])
    if kind == "textured":
        mix = np.clip(0.5 + 0.45 * clouds(noise), 0, 1)[..., None]
        return _blend((0.33, 0.40, 0.18), (0.62, 0.52, 0.33), mix)
    if kind == "stripes":
        angle, phase = noise.choice((0.0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)), noise.uniform(0, 2 * np.pi)
        wave = np.sin((X * np.cos(angle) + Y * np.sin(angle)) * 2 * np.pi * noise.uniform(1.8, 2.6) + phase)
        return np.asarray(_blend((0.95, 0.94, 0.90), (0.36, 0.42, 0.58), np.clip(0.5 + 4 * wave, 0, 1)[..., None]) * shade)
    if kind == "night":
        picture = _blend((0.02, 0.03, 0.12), (0.09, 0.08, 0.24), rise)
        for column, row in noise.uniform(-1, 1, (16, 2)):
            paint(picture, np.hypot(X - column, Y - row) - noise.uniform(0.012, 0.03), (0.95, 0.95, 0.85))
        return picture
    if kind == "snow":
        picture = _blend((0.62, 0.72, 0.84), (0.78, 0.84, 0.92), rise)
        hill = 0.35 + 0.08 * np.sin(3 * X + noise.uniform(0, 6.28)) - Y
        paint(picture, hill, (0.96, 0.97, 1.0))
        for column, row in noise.uniform(-1, 1, (16, 2)):
            paint(picture, np.hypot(X - column, Y - row) - noise.uniform(0.03, 0.05), (1.0, 1.0, 1.0))
        return picture
    return _blend((0.42, 0.18, 0.45), (0.99, 0.60, 0.25), np.clip(rise + 0.04 * clouds(noise)[..., None], 0, 1))


def clouds(noise: np.random.Generator) -> Array:
    """A smooth random field of unit variance, with at most five half waves across the picture."""
    weights = noise.standard_normal((6, 6), dtype=np.float32)
    weights[0, 0] = 0
    field = _WAVES @ weights @ _WAVES.T
    return np.asarray(field / (field.std() + np.float32(1e-6)))


def _blend(low: tuple[float, float, float], high: tuple[float, float, float], mix: Array) -> Array:
    a, b = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return cast(Array, (a + (b - a) * mix).astype(np.float32))
