"""Gallery pictures as data: URIs: small ones byte for byte, large ones reduced, so that a report stays one light file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

#: Longest side of an inlined picture in pixels; larger ones are reduced for display.
LARGEST = 384
#: Up to this longest side a picture is drawn with visible pixels.
PIXELATED = 160


class Picture(NamedTuple):
    """A picture ready for an `img` element; `width` and `height` are those of what it shows."""

    uri: str
    width: int
    height: int
    pixelated: bool


def picture(media: Path, name: str) -> Picture | None:
    """The picture `name` under `media`; None where there is no such file, it is no picture, or it lies outside the folder."""
    path = (media / name).resolve()
    if not name or not path.is_relative_to(media.resolve()) or not path.is_file():
        return None
    content = path.read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = image.size
            kind = Image.MIME.get(image.format or "", "image/webp")
            if max(size) > LARGEST:
                content, size = _reduced(image)
                kind = "image/webp"
    except OSError:
        return None
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(uri, *size, pixelated=max(size) <= PIXELATED)


def _reduced(image: Image.Image) -> tuple[bytes, tuple[int, int]]:
    """Without further loss, so that an amplified difference shows the edit and not a compression."""
    smaller = image.convert("RGB")
    smaller.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue(), smaller.size
