"""What networks are asked and what they say: however one counts time and whatever it predicts, D(x, t, cond) is E[x_0 | x_t]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, like

#: What a network may predict, in diffusers' words.
PREDICTIONS = ("epsilon", "v_prediction", "flow_prediction", "sample")


@dataclass(frozen=True)
class Convention:
    """How a network is asked on a path, and how its answer reads. `prediction` is one of PREDICTIONS.

    With `sigma_data` it is preconditioned as Karras et al. (2022, table 1) do: shown x/sqrt(sigma^2 + sigma_data^2) and log(sigma)/4.
    """

    path: NoisePath
    prediction: str
    sigma_data: float | None = None

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"a prediction is one of {', '.join(PREDICTIONS)}, not {self.prediction}")

    def shown(self, x: Tensor, t: Tensor | float) -> Tensor:
        """x [B, ...] as the network sees it."""
        return x if self.sigma_data is None else x / like((self.path.sigma(t).square() + self.sigma_data**2).sqrt(), x)

    def clock(self, x: Tensor, t: Tensor | float) -> Tensor:
        """The time of each sample as the network counts it, float32 [B]: a flow's runs to its number of training steps."""
        if self.sigma_data is not None:
            return (self.path.sigma(t).float().log() / 4).to(x.device).expand(len(x))
        ticks = self.path.train_steps if isinstance(self.path, RectifiedFlow) else 1
        return (torch.as_tensor(t, dtype=torch.float32, device=x.device) * ticks).expand(len(x))

    def clean(self, x: Tensor, t: Tensor | float, raw: Tensor) -> Tensor:
        """E[x_0 | x_t] from what the network says at t, in float32."""
        if self.sigma_data is not None:
            return self._preconditioned(x, t, raw)
        a, s, raw = like(self.path.alpha(t), x), like(self.path.sigma(t), x), raw.float()
        by_kind: dict[str, Callable[[], Tensor]] = {
            "epsilon": lambda: (x - s * raw) / a,
            "v_prediction": lambda: a * x - s * raw,
            "flow_prediction": lambda: x - s * raw,
            "sample": lambda: raw,
        }
        return by_kind[self.prediction]()

    def _preconditioned(self, x: Tensor, t: Tensor | float, raw: Tensor) -> Tensor:
        assert self.sigma_data is not None
        s, own, sign = like(self.path.sigma(t), x), self.sigma_data, -1 if self.prediction == "v_prediction" else 1
        total = (s.square() + own**2).sqrt()
        clean: Tensor = own**2 / total.square() * x + sign * s * own / total * raw.float()
        return clean


def convention(path: NoisePath, scheduler: Any) -> Convention:
    """The convention of a network that runs on a diffusers scheduler, by the scheduler's own settings."""
    settings = scheduler.config
    prediction = "flow_prediction" if isinstance(path, RectifiedFlow) else settings.get("prediction_type", "epsilon")
    own = float(settings.sigma_data) if isinstance(path, VarianceExploding) and settings.get("sigma_data") else None
    return Convention(path, prediction, own)
