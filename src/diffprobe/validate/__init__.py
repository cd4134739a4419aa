"""Known answers: each probe's mathematics against worlds whose truth is exact, as `diffprobe validate` prints it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from diffprobe.validate.check import Check
from diffprobe.validate.consistency import consistency
from diffprobe.validate.drift import drift
from diffprobe.validate.geometry import geometry
from diffprobe.validate.interpolation import interpolation
from diffprobe.validate.speciation import speciation

__all__ = ["VALIDATIONS", "Check"]

VALIDATIONS: dict[str, Callable[[], Iterator[Check]]] = {
    "drift": drift,
    "consistency": consistency,
    "geometry": geometry,
    "interpolation": interpolation,
    "speciation": speciation,
}
