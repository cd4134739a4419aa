"""What to do about what was measured: controls for deployed pipelines."""

from diffprobe.controls.deployed import Applied
from diffprobe.controls.geometry_guidance import GeometryGuide, apply_guide, steered
from diffprobe.controls.guidance_interval import GuidanceInterval, apply, propose
from diffprobe.controls.guide_labels import LabelSettings
from diffprobe.controls.guide_training import GuideSettings, train_guide
from diffprobe.controls.morph import Morph, Morphing, morph

__all__ = [
    "Applied",
    "GeometryGuide",
    "GuidanceInterval",
    "GuideSettings",
    "LabelSettings",
    "Morph",
    "Morphing",
    "apply",
    "apply_guide",
    "morph",
    "propose",
    "steered",
    "train_guide",
]
