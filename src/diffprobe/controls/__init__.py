"""What to do about what was measured: controls for deployed pipelines."""

from diffprobe.controls.guidance_interval import Applied, GuidanceInterval, apply, propose

__all__ = ["Applied", "GuidanceInterval", "apply", "propose"]
