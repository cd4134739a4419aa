"""Interpolation: can latents be inverted and mixed without the images degenerating, and with which correction?"""

from diffprobe.probes.interpolation.probe import Interpolation

__all__ = ["Interpolation"]
