"""The stochastic sampler's paths in a world that is known: what the online estimator gathers on them, beside the exact answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.adapters.mixture_entropy import Partition, Sides, sides_at
from diffprobe.adapters.mixtures import GaussianMixture
from diffprobe.measures.speciation.likelihood import log_likelihood_steps, squared_gaps
from diffprobe.paths import NoisePath, transition
from diffprobe.sampling import Sampler, start, trajectory

Array = NDArray[np.float64]


class Stage(NamedTuple):
    """All samples at one level: the log likelihoods of their paths so far under every side [B, S] (against the first), the squared gaps
    of the sides' predictions [B, P], and the exact log p(side | x_t) [B, S] at the same states.
    """

    t: float
    sigma: float
    log_likelihoods: Array
    gaps: Array
    log_posterior: Array


def walk(
    mixture: GaussianMixture, path: NoisePath, times: Sequence[float], asked: Partition, own: Sequence[int], seeds: Sequence[int]
) -> Iterator[Stage]:
    """Sample with eta 1 from pure noise, sample i by the predictions of side own[i] and the noise of seeds[i]; a stage for each time.

    Every side is evaluated once a level, for the sampler and the likelihood together. A side of several classes is denoised as the
    mixture that it is: for sets of classes whose likelihoods are to be combined afterwards, let each class be a side.
    """
    labels, total = torch.as_tensor(own), torch.zeros(len(seeds), len(asked.sides), dtype=torch.float64)
    seen: list[Sides] = []

    def denoiser(x: Tensor, t: Tensor | float, cond: Any = None) -> Tensor:
        seen[:] = [sides_at(mixture, path, x.numpy(), float(t), asked)]
        return torch.from_numpy(seen[0].x0)[cond, torch.arange(len(x))]

    noise = start(path, times[0], mixture.means.shape[1:], seeds).double()
    x, t, predictions = noise, times[0], torch.empty(0)
    for state in trajectory(denoiser, path, noise, times, cond=labels, sampler=Sampler(1.0, tuple(seeds))):
        if state.step == len(times):
            return
        if state.step:
            total += log_likelihood_steps(state.x, x, predictions, transition(path, state.t, t))
        x, t, predictions = state.x, state.t, torch.from_numpy(seen[0].x0)
        yield Stage(t, float(path.ratio(t)), total.numpy().copy(), squared_gaps(predictions).numpy(), seen[0].log_posterior)
