"""The speciation probe: at which noise level does a sample decide what it is, and where should guidance act?"""

from diffprobe.probes.speciation.partitions import Partition, Push
from diffprobe.probes.speciation.probe import Speciation
from diffprobe.probes.speciation.sweep import Sweep

__all__ = ["Partition", "Push", "Speciation", "Sweep"]
