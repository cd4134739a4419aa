"""Null-text inversion: what guidance pushes away from is optimised step by step, until guided sampling retraces a climb."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffprobe.errors import UserError
from diffprobe.model import Denoiser, StatedCondition
from diffprobe.paths import NoisePath
from diffprobe.sampling import step

INNER_STEPS = 10
#: What the loss is multiplied with while it is differentiated, so that half precision keeps its small gradients.
LIFT = 2.0**14


class Retraced(NamedTuple):
    """A step down: the x at time t that it left, the states [B, ...] float32 that guidance pushed away from, and how far it came out.

    `error` [B] is the mean squared distance from the climb's own state at the level below.
    """

    step: int
    t: float
    x: Tensor
    states: Tensor
    error: Tensor


def null_text(
    denoiser: Denoiser,
    path: NoisePath,
    pivots: Sequence[tuple[float, Tensor]],
    conditions: tuple[Any, Any],
    scale: float,
    iterations: int = INNER_STEPS,
) -> Iterator[Retraced]:
    """The guided steps down from the last of a climb's states, each with the unconditional states that keep it near the climb.

    `pivots` are the climb's times and states, from data to noise. `conditions` are the one that guidance goes towards and the one that
    it pushes away from. Step by step, from where the step before left them, Adam moves the states of the second so that
    D = D(second) + scale (D(first) - D(second)) steps down to the pivot: Mokady et al. 2023, their rates, thresholds and inner
    steps. A sample that is within its threshold stays exactly as it is, so that it is the same in any batch. No parameter of the
    network gets a gradient, and no graph outlives an inner step. Raises UserError where the second condition holds nothing that can
    be optimised, or nothing depends on it.
    """
    towards, away = conditions
    check_optimisable(away, scale)
    first = states_of(away)
    x = pivots[-1][1].to(first.device)
    states = first.float().expand(len(x), *first.shape[1:]).clone()
    for index, ((t, _), (s, target)) in enumerate(pairwise(reversed(pivots))):
        with torch.no_grad():
            plain = denoiser(x, t, towards)
        down = _Descent(denoiser, path, (s, t), x, plain, away, scale, target.to(x))
        states = _optimised(down, states, index, iterations)
        with torch.no_grad():
            landed = down(states)
        yield Retraced(index, t, x, states, down.error(landed).cpu())
        x = landed


def check_optimisable(away: Any, scale: float) -> None:
    """Raise UserError where nothing is pushed away from, at guidance scale 1, or where its condition cannot be optimised."""
    if scale == 1:
        raise UserError("null-text inversion tunes what guidance pushes away from, and at guidance_scale 1 that is nothing: give 7.5")
    states_of(away)


def states_of(condition: Any) -> Tensor:
    """The floating tensor of a condition that can be optimised. Raises UserError for a condition that is, or has, none."""
    states = condition.states if isinstance(condition, StatedCondition) else condition
    if not isinstance(states, Tensor) or not states.is_floating_point():
        kind = str(states.dtype).removeprefix("torch.") if isinstance(states, Tensor) else type(states).__name__
        raise UserError(f"null-text inversion tunes a prompt's states, and this model's conditions are {kind}, which has none: use 'ddim'")
    return states.detach()


def with_states(condition: Any, states: Tensor) -> Any:
    """The condition with other states, in the dtype and place of its own; what else it has stays."""
    states = states.to(states_of(condition))
    return condition.with_states(states) if isinstance(condition, StatedCondition) else states


@dataclass(frozen=True, eq=False)
class _Descent:
    """One guided step from x as a function of the states that it pushes away from, and where it should arrive."""

    denoiser: Denoiser
    path: NoisePath
    to_from: tuple[float, float]
    x: Tensor
    plain: Tensor
    away: Any
    scale: float
    target: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        pushed = self.denoiser(self.x, self.to_from[1], with_states(self.away, states))
        return step(self.path, self.to_from, self.x, pushed + self.scale * (self.plain - pushed))

    def error(self, landed: Tensor) -> Tensor:
        return (landed - self.target).square().flatten(1).mean(1)


def _optimised(down: _Descent, states: Tensor, index: int, iterations: int) -> Tensor:
    """The states after the inner steps of outer step `index`; beyond the study's 50 outer steps its rate stays at a tenth at least."""
    found = states.clone().requires_grad_()
    adam = torch.optim.Adam([found], lr=1e-2 * max(1 - index / 100, 0.1))
    going = torch.ones(len(states), dtype=torch.bool, device=states.device)
    for _ in range(iterations):
        with torch.enable_grad():
            error = down.error(down(found))
            if not error.requires_grad:
                raise UserError("null-text inversion needs gradients from the network to its condition, and here are none: use 'ddim'")
            (lifted,) = torch.autograd.grad(error.sum() * LIFT, found)
        error = error.detach()  # what of the graph no backward pass went through would live until the next one is there
        found.grad = lifted / LIFT
        going = going & (error > 1e-5 + 2e-5 * index)
        if not going.any():
            break
        before = found.detach().clone()
        adam.step()
        with torch.no_grad():
            found[~going] = before[~going]
    return found.detach()
