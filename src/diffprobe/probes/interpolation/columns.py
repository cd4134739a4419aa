"""Values as columns of a record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from diffprobe.probes.looks import LOSSLESS, webp


def picture(image: Tensor) -> bytes:
    """An image [3, H, W] as a file: lossless where it is small, for a look alone where it is not."""
    return webp(image, lossless=max(image.shape[-2:]) <= LOSSLESS)


def finite(value: float) -> float | None:
    """The number, or None where it is none."""
    return value if math.isfinite(value) else None


def numbers(values: Tensor | npt.NDArray[Any], length: int | None = None, *, flags: Sequence[str | None] = ()) -> pa.Array:
    """Numbers as a column of `length`, null beyond the last, where one is not finite, or where the sample does not count."""
    found = [finite(float(value)) for value in values]
    found = [None if flag else value for value, flag in zip(found, flags or [None] * len(found), strict=True)]
    return pa.array(found + [None] * ((length or len(found)) - len(found)), pa.float64())


def lists(rows: Tensor | npt.NDArray[Any]) -> pa.Array:
    """Rows of numbers as a column of lists, null where a number is not finite: nan is not equal to itself, and a record must be."""
    return pa.array([[finite(float(value)) for value in row] for row in rows], pa.list_(pa.float64()))
