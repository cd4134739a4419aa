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


def shown_ratio(scheduler: Any, path: NoisePath, timestep: Tensor | float) -> float:
    """sigma/alpha at the level for which a scheduler that has its steps asks a network with `timestep`; infinite for pure noise.

    A timestep is an index of the table, a flow's time in training steps, or log(sigma)/4 (Karras et al. 2022). Of several, one a
    sample, the first counts. Solvers that round their clock to whole numbers are asked for the level itself.
    """
    t = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
    if isinstance(path, VarianceExploding) or scheduler.config.get("timestep_type") == "continuous":
        return math.exp(4 * t)
    if hasattr(scheduler, "sigmas") and not scheduler.timesteps.is_floating_point():
        level = float(scheduler.sigmas[int((scheduler.timesteps == t).nonzero()[0])])
        return float(path.ratio(level)) if isinstance(path, RectifiedFlow) else level
    return float(path.ratio(t / path.train_steps if isinstance(path, RectifiedFlow) else t))


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
