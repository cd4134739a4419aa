"""Small real cells and rigs, for tests of what stores and executes them: no model is asked anything."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from diffprobe.adapters.exact import exact_model
from diffprobe.model import Rig
from diffprobe.probes.base import Cell, Cost
from diffprobe.probes.drift import Drift
from diffprobe.runs.execute import Progress


@dataclass(frozen=True)
class Number:
    """One number, its square, and a picture of it where `picture` is given."""

    version: ClassVar[int] = 1
    value: float
    picture: str | None = None

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        return Cost(samples=1)

    def measure(self, rig: Rig) -> pa.Table:
        pictures = [None if self.picture is None else self.picture.encode(), None]
        return pa.table({"value": [self.value, self.value**2], "picture": pa.array(pictures, pa.binary())})


@dataclass(frozen=True)
class Sum:
    """The sum over the records of numbers."""

    version: ClassVar[int] = 1
    of: tuple[Number, ...]

    def inputs(self) -> tuple[Cell, ...]:
        return self.of

    def cost(self) -> Cost:
        return Cost(samples=1)

    def measure(self, rig: Rig, *records: pa.Table) -> pa.Table:
        return pa.table({"sum": [sum(table["value"][0].as_py() for table in records)]})


@dataclass(frozen=True)
class Division:
    """A number over the number in a file: it fails while that is 0, and each measurement leaves a mark in `marks`."""

    version: ClassVar[int] = 1
    value: float
    file: str
    marks: str

    def inputs(self) -> tuple[Cell, ...]:
        return ()

    def cost(self) -> Cost:
        return Cost(samples=1)

    def measure(self, rig: Rig) -> pa.Table:
        with Path(self.marks).open("a") as marks:
            marks.write(f"{self.value}\n")
        return pa.table({"value": [self.value / float(Path(self.file).read_text())]})


@dataclass(frozen=True)
class After:
    """Reads the record of a division."""

    version: ClassVar[int] = 1
    division: Division

    def inputs(self) -> tuple[Cell, ...]:
        return (self.division,)

    def cost(self) -> Cost:
        return Cost(samples=1)

    def measure(self, rig: Rig, division: pa.Table) -> pa.Table:
        return division


@dataclass(frozen=True)
class Pixels:
    """An instrument that any image suits: means over a grid of 4 x 4."""

    fingerprint: str = "pixels/1"

    def __call__(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


def gaussian(batch_size: int = 16) -> Rig:
    """The Gaussian world without instruments."""
    return Rig(exact_model("gaussian"), {}, batch_size)


def small_drift(**changes: object) -> Drift:
    """Four images, one prompt, two strengths: 5 cells of milliseconds."""
    settings: dict[str, object] = {"count": 4, "prompt_sets": ("empty",), "strengths": (0.3, 0.6), **changes}
    return Drift(**settings)  # type: ignore[arg-type]


def silent(progress: Progress) -> None:
    """No report."""
