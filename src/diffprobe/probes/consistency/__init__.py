"""The consistency probe: how alike are the images that one prompt gives?"""

from diffprobe.probes.consistency.probe import Consistency

__all__ = ["Consistency"]
