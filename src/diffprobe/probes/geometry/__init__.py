"""The geometry probe: how the decoder stretches and folds the space around a sample, and what that tells."""

from diffprobe.probes.geometry.probe import Geometry
from diffprobe.probes.geometry.settings import Field, Generated, Slice

__all__ = ["Field", "Generated", "Geometry", "Slice"]
