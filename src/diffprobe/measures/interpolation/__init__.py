"""Mixing of terminal latents, the corrections it needs, and what betrays that an inverted latent is no pure noise."""

from __future__ import annotations

from diffprobe.measures.interpolation.alignment import Alignment, Misalignment, alignment, misalignment
from diffprobe.measures.interpolation.amplification import Amplified, amplification, amplified
from diffprobe.measures.interpolation.mixing import Mixture, effective_number, interpolate, mix
from diffprobe.measures.interpolation.parts import split
from diffprobe.measures.interpolation.scheme import MEANS, NORMS, Scheme
from diffprobe.measures.interpolation.signature import Signature, signature, white_noise
from diffprobe.measures.interpolation.sphere import slerp

__all__ = [
    "MEANS",
    "NORMS",
    "Alignment",
    "Amplified",
    "Misalignment",
    "Mixture",
    "Scheme",
    "Signature",
    "alignment",
    "amplification",
    "amplified",
    "effective_number",
    "interpolate",
    "misalignment",
    "mix",
    "signature",
    "slerp",
    "split",
    "white_noise",
]
