"""What a diffusers scheduler says of noise: the path that it follows, and the level at which a network is asked."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any, Literal

from torch import Tensor

from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving


def path_of(scheduler: Any) -> NoisePath:
    """The noise path that a scheduler follows. A solver with `use_flow_sigmas` follows a flow, whatever betas it also holds."""
    settings = scheduler.config
    if "sigma_data" in settings:
        return VarianceExploding(float(settings.sigma_min), float(settings.sigma_max), float(settings.rho))
    if settings.get("use_flow_sigmas") or not hasattr(scheduler, "alphas_cumprod"):
        shift = settings.get("flow_shift") if settings.get("use_flow_sigmas") else settings.get("shift")
        spacing: Literal["solver", "euler"] = "solver" if settings.get("use_flow_sigmas") else "euler"
        return RectifiedFlow(float(shift or 1.0), int(settings.num_train_timesteps), spacing)
    table = tuple(scheduler.alphas_cumprod.double().tolist())
    return VariancePreserving(table, offset=int(getattr(settings, "steps_offset", 0)), end=_end(scheduler))


def distilled(scheduler: Any) -> dict[str, str]:
    """What identifies a network that was distilled to leap to data (LCM, TCD): it gives no E[x_0 | x_t], and its steps have no inverse."""
    kind = type(scheduler).__name__
    return {"distilled": kind} if kind in {"LCMScheduler", "TCDScheduler"} else {}


def shown_ratio(scheduler: Any, path: NoisePath, timestep: Tensor | float) -> float:
    """sigma/alpha at the level for which a scheduler that has its steps asks a network with `timestep`; infinite for pure noise.

    A solver that has sigmas is asked for the one of its step: some round their clock, so that a timestep is near a level only, and
    may stand for two. Otherwise a timestep is an index of the table, a flow's time in training steps, or log(sigma)/4 (Karras et
    al. 2022). Of several, one a sample, the first counts.
    """
    t = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
    index = _step(scheduler, t)
    if index is not None:
        level = _visited(scheduler, index)
        return float(path.ratio(level)) if isinstance(path, RectifiedFlow) else level
    if isinstance(path, VarianceExploding) or scheduler.config.get("timestep_type") == "continuous":
        return math.exp(4 * t)
    return float(path.ratio(t / path.train_steps if isinstance(path, RectifiedFlow) else t))


def _step(scheduler: Any, t: float) -> int | None:
    """The step at which a solver with sigmas shows t: the one that it is at; None where it has no sigmas, or no step shows t."""
    if not hasattr(scheduler, "sigmas"):
        return None
    found = [int(index) for index in (scheduler.timesteps == t).nonzero()]
    for known in (getattr(scheduler, "step_index", None), getattr(scheduler, "begin_index", None)):
        if known is not None:
            return int(known) if known in found else next(iter(found), None)
    return next(iter(found[1:] or found), None)  # of equal ones, every solver of diffusers begins at the second


def _visited(scheduler: Any, index: int) -> float:
    """A solver's own sigma at a step. The second half of a step of DPM-2 and of DPM-Solver-SDE has one between two levels."""
    if getattr(scheduler, "state_in_first_order", True):
        return float(scheduler.sigmas[index])
    if hasattr(scheduler, "sigmas_interpol"):
        return float(scheduler.sigmas_interpol[index - 1 if hasattr(scheduler, "sigmas_up") else index])
    between = getattr(scheduler, "mid_point_sigma", None)
    return float(scheduler.sigmas[index] if between is None else between)


def _end(scheduler: Any) -> float:
    """Where a variance-preserving scheduler's last step arrives: -1 for data, 0 for the table's first level.

    DDIM and its kin have a setting for it; the solvers in sigmas are asked for the last one; the others arrive at data.
    """
    known = scheduler.config.get("set_alpha_to_one")
    if known is None:
        asked = deepcopy(scheduler)
        asked.set_timesteps(2)
        known = not hasattr(asked, "sigmas") or float(asked.sigmas[-1]) == 0
    return -1.0 if known else 0.0
