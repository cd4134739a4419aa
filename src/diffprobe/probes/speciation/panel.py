"""Stochastic trajectories along which every condition is asked at once: how likely each of them finds the path so far."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffprobe.measures.speciation.likelihood import log_likelihood_steps, squared_gaps
from diffprobe.model import Denoiser, Model
from diffprobe.paths import transition
from diffprobe.probes.speciation.partitions import Push
from diffprobe.sampling import Sampler, State, start, trajectory

_ROLE = "speciation"


class Followed(NamedTuple):
    """A batch of trajectories at L levels of `sigma`, after N evaluations, under K conditions, in P pairs."""

    sigma: tuple[float, ...]
    likelihoods: Tensor  # [B, L, K] float64, each condition against the first; 0 in pure noise
    gaps: Tensor  # [B, N, P] float64: squared distances between the conditions' predictions
    arrived: Tensor  # [B, ...] where the trajectories end


@dataclass(frozen=True)
class Asked:
    """The conditions of a panel, the first of which is followed, with guidance away from the one numbered `away` where there is a push."""

    conditions: tuple[str, ...]
    push: Push | None = None
    away: int = 0


class Panel:
    """A denoiser that asks all conditions in one batch, keeps their answers [K, B, ...] in `predictions`, and follows the first.

    Inside a push's interval it follows the guided combination, of answers that are there already.
    """

    def __init__(self, model: Model, asked: Asked, samples: int) -> None:
        self._denoiser, self._path = _whole(model)
        assert model.condition is not None
        self._asked = asked
        self._conditions = model.condition([name for name in asked.conditions for _ in range(samples)])
        self.predictions = torch.empty(0)

    def __call__(self, x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        count, push = len(self._asked.conditions), self._asked.push
        answers = self._denoiser(x.repeat(count, *[1] * (x.ndim - 1)), t, self._conditions)
        self.predictions = answers.reshape(count, *x.shape)
        own = self.predictions[0]
        if push is None or not push.lo < float(self._path.ratio(t)) <= push.top:
            return own
        away = self.predictions[self._asked.away]
        return away + push.scale * (own - away)


@torch.no_grad()
def follow(model: Model, asked: Asked, seeds: Sequence[int], num_inference_steps: int) -> Followed:
    """One trajectory a seed from the exact transition (eta 1), with the log likelihoods of its steps summed up as it goes.

    One network call a step, for all conditions; what is kept grows by a few numbers a step, never by a state. The step to
    sigma 0 adds no noise, so it has no density and tells nothing: the record ends before it.
    """
    _, path = _whole(model)
    panel = Panel(model, asked, len(seeds))
    steps = states(model, panel, seeds, num_inference_steps)
    before = next(steps)
    seen, sigma = panel.predictions, [float(path.ratio(before.t))]
    total = torch.zeros(len(seeds), len(asked.conditions), dtype=torch.float64)
    likelihoods, gaps = [total], [squared_gaps(seen).cpu()]
    for state in steps:
        step = transition(path, state.t, before.t)
        if step.variance > 0:
            total = total + log_likelihood_steps(state.x, before.x, seen, step).cpu()
            sigma.append(float(path.ratio(state.t)))
            likelihoods.append(total)
        if state.step < num_inference_steps:
            gaps.append(squared_gaps(panel.predictions).cpu())
        before, seen = state, panel.predictions
    return Followed(tuple(sigma), torch.stack(likelihoods, 1), torch.stack(gaps, 1), before.x.float().cpu())


def alone(model: Model, prompt: str, samples: int) -> Denoiser:
    """The model's denoiser under one condition for every sample."""
    denoiser, _ = _whole(model)
    assert model.condition is not None
    condition = model.condition([prompt] * samples)
    return lambda x, t, cond=None: denoiser(x, t, condition)


def states(model: Model, denoiser: Denoiser, seeds: Sequence[int], num_inference_steps: int) -> Iterator[State]:
    """The stochastic trajectories of these seeds, whose noise is the same whatever is followed."""
    _, path = _whole(model)
    assert model.shape is not None
    times = path.levels(num_inference_steps)
    x = start(path, times[0], model.shape, seeds, f"{_ROLE}.start").to(model.device, torch.float32)
    return trajectory(denoiser, path, x, times, sampler=Sampler(1.0, tuple(seeds), _ROLE))


def _whole(model: Model) -> Any:
    assert model.denoiser is not None
    assert model.path is not None
    return model.denoiser, model.path
