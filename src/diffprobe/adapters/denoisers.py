"""Networks as denoisers: whatever a network predicts, and however it counts time, D(x, t, cond) is E[x_0 | x_t]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, like

Condition = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True, eq=False)
class UNetDenoiser:
    """A text-conditioned U-Net that predicts eps, v, x_0 or a flow's velocity. Conditions are text states; None is the empty prompt."""

    unet: Any
    path: NoisePath
    prediction: str
    condition: Condition

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        states = self.condition([""]) if cond is None else cond
        clock = self.path.train_steps if isinstance(self.path, RectifiedFlow) else 1
        times = (torch.as_tensor(t, dtype=torch.float32, device=x.device) * clock).expand(len(x))
        states = states.expand(len(x), *states.shape[1:])
        raw = self.unet(x.to(self.unet.dtype), times, encoder_hidden_states=states).sample.float()
        a, s = like(self.path.alpha(t), x), like(self.path.sigma(t), x)
        by_kind: dict[str, Callable[[], Tensor]] = {
            "epsilon": lambda: (x - s * raw) / a,
            "v_prediction": lambda: a * x - s * raw,
            "flow_prediction": lambda: x - s * raw,
            "sample": lambda: raw,
        }
        return by_kind[self.prediction]()


@dataclass(frozen=True, eq=False)
class EdmDenoiser:
    """A class-conditional U-Net with Karras et al.'s preconditioning (2022, table 1). Conditions are class indices; None is `no_class`.

    `tokens` turns class indices [B] into what the network takes.
    """

    unet: Any
    path: VarianceExploding
    sigma_data: float
    no_class: int
    tokens: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        classes = torch.as_tensor(self.no_class if cond is None else cond, device=x.device).expand(len(x))
        sigma = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(len(x))
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        total = (s.square() + self.sigma_data**2).sqrt()
        shown = (x / total).to(self.unet.dtype)
        raw = self.unet(shown, sigma.log() / 4, encoder_hidden_states=self.tokens(classes)).sample.float()
        clean: Tensor = self.sigma_data**2 / total.square() * x + s * self.sigma_data / total * raw
        return clean
