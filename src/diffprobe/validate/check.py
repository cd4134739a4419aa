"""What a validation tells: one answer beside its truth."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One answer: what was measured, what is true, and how far apart they may be, relative to the truth."""

    what: str
    measured: float
    truth: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return abs(self.measured - self.truth) <= self.tolerance * abs(self.truth)

    @property
    def allowed(self) -> str:
        return f"{self.tolerance:.1%}"
