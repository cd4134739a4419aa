"""Networks as denoisers: whatever a network predicts, and however it counts time, D(x, t, cond) is E[x_0 | x_t]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.conditions import TextCondition
from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, like


@dataclass(frozen=True, eq=False)
class UNetDenoiser:
    """A text-conditioned U-Net that predicts eps, v, x_0 or a flow's velocity. Conditions are text states [B, tokens, width].

    None is what `nothing` gives, the empty prompt: a row that is asked for once and kept.
    """

    unet: Any
    path: NoisePath
    prediction: str
    nothing: Callable[[], Tensor]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        states = self._nothing if cond is None else cond
        states = states.expand(len(x), *states.shape[1:])
        raw = self.unet(x.to(self.unet.dtype), _clock(self.path, t, x), encoder_hidden_states=states).sample
        return _clean(self.prediction, self.path, x, t, raw)

    @cached_property
    def _nothing(self) -> Tensor:
        return self.nothing()


@dataclass(frozen=True, eq=False)
class XlDenoiser:
    """Stable Diffusion XL's U-Net, which also takes pooled text and the picture's size: x's own, uncropped, `pixels` a latent.

    Conditions are a `TextCondition`. None is what the deployed pipeline guides away from where no negative prompt is given, which
    is zeros for most of them and not the empty prompt.
    """

    unet: Any
    path: NoisePath
    prediction: str
    nothing: Callable[[], TextCondition]
    pixels: int

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        text = (self._nothing if cond is None else cond).expand(len(x))
        height, width = (side * self.pixels for side in x.shape[-2:])
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=text.states.dtype, device=x.device)
        added = {"text_embeds": text.pooled, "time_ids": sizes.expand(len(x), -1)}
        shown, times = x.to(self.unet.dtype), _clock(self.path, t, x)
        raw = self.unet(shown, times, encoder_hidden_states=text.states, added_cond_kwargs=added).sample
        return _clean(self.prediction, self.path, x, t, raw)

    @cached_property
    def _nothing(self) -> TextCondition:
        return self.nothing()


@dataclass(frozen=True, eq=False)
class FlowTransformer:
    """Stable Diffusion 3's transformer, which predicts a flow's velocity. Conditions are a `TextCondition`; None is the empty prompt."""

    transformer: Any
    path: RectifiedFlow
    nothing: Callable[[], TextCondition]

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        text = (self._nothing if cond is None else cond).expand(len(x))
        raw = self.transformer(
            hidden_states=x.to(self.transformer.dtype),
            timestep=_clock(self.path, t, x),
            encoder_hidden_states=text.states,
            pooled_projections=text.pooled,
        ).sample
        return _clean("flow_prediction", self.path, x, t, raw)

    @cached_property
    def _nothing(self) -> TextCondition:
        return self.nothing()


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


def _clock(path: NoisePath, t: Tensor | float, x: Tensor) -> Tensor:
    """The time of each sample as the network counts it, float32 [B]: a flow's runs to its number of training steps."""
    ticks = path.train_steps if isinstance(path, RectifiedFlow) else 1
    return (torch.as_tensor(t, dtype=torch.float32, device=x.device) * ticks).expand(len(x))


def _clean(prediction: str, path: NoisePath, x: Tensor, t: Tensor | float, raw: Tensor) -> Tensor:
    """E[x_0 | x_t] from what the network predicts at t, in float32."""
    a, s, raw = like(path.alpha(t), x), like(path.sigma(t), x), raw.float()
    by_kind: dict[str, Callable[[], Tensor]] = {
        "epsilon": lambda: (x - s * raw) / a,
        "v_prediction": lambda: a * x - s * raw,
        "flow_prediction": lambda: x - s * raw,
        "sample": lambda: raw,
    }
    return by_kind[prediction]()
