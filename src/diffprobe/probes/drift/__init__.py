"""Drift: what does an edit pipeline change when it is told to change nothing, and which part of it does so?"""

from diffprobe.probes.drift.probe import Drift

__all__ = ["Drift"]
