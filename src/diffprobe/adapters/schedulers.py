"""What a diffusers scheduler says of noise: the path that it follows, and the level at which a network is asked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from diffprobe.paths import NoisePath, RectifiedFlow, VarianceExploding, VariancePreserving

_TRIED = (3, 10, 50)
_EQUAL = 1e-4  # of a ratio: what float32 leaves between two visits of one level
#: Settings of schedulers that space their levels in other ways.
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas", "use_dynamic_shifting")


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


def visited(path: NoisePath, scheduler: Any, spacing: Callable[[int], Mapping[str, Any]] = lambda n: {}) -> NoisePath:
    """The path with the levels that this scheduler visits: by the path's own rule where that gives them, else by asking the scheduler.

    `spacing` is what the pipeline passes to `set_timesteps` beside the number of steps.
    """
    visits = Visits(scheduler, path, spacing)
    found = _tried(visits)
    if all(_same(path, times) for times in found.values()) or any(len(times) != n for n, times in found.items()):
        return path  # what visits other numbers of levels makes half steps, as Runge-Kutta's methods do
    assert isinstance(path, VariancePreserving | VarianceExploding | RectifiedFlow)
    return replace(path, grid=visits)


@dataclass(frozen=True, eq=False)
class Visits:
    """The times at which a scheduler asks its network in n steps, in the path's own units; raises ValueError for an n that it cannot take.

    Solvers that have sigmas are asked for those; the others for their timesteps, which index a table. A level that is visited twice, as
    second-order solvers do, counts once.
    """

    scheduler: Any
    path: NoisePath
    spacing: Callable[[int], Mapping[str, Any]]

    def __call__(self, n: int) -> tuple[float, ...]:
        asked = deepcopy(self.scheduler)
        try:
            asked.set_timesteps(n, **self.spacing(n))
        except (ValueError, TypeError, IndexError, ZeroDivisionError) as error:
            raise ValueError(f"{n} steps: {type(asked).__name__} cannot take them ({error})") from error
        times = list[float]()
        for time in (self._time(asked, index) for index in range(len(asked.timesteps))):
            if not times or float(self.path.ratio(time)) < (1 - _EQUAL) * float(self.path.ratio(times[-1])):
                times.append(time)
        return tuple(times)

    def _time(self, asked: Any, index: int) -> float:
        if not hasattr(asked, "sigmas"):
            return float(asked.timesteps[index])
        level = float(asked.sigmas[index])
        if not isinstance(self.path, VariancePreserving):
            return level
        most = float(self.path.ratio(len(self.path.alphas_cumprod) - 1.0))
        if level > most * (1 + 1e-3):
            raise ValueError(f"it reaches sigma {level:.4g}, and the network was trained up to {most:.4g}")
        shown = float(asked.timesteps[index])  # a whole index of the table, where it is one, and not what float32 makes of it
        whole = shown.is_integer() and 0 <= shown < len(self.path.alphas_cumprod)
        exact = whole and math.isclose(float(self.path.ratio(shown)), level, rel_tol=1e-4)
        return shown if exact else float(self.path.time(level))


def _tried(visits: Visits) -> dict[int, tuple[float, ...]]:
    """The levels of a few numbers of steps, of which one can be taken at least; raises ValueError as the last of them does."""
    most = int(visits.scheduler.config.get("num_train_timesteps", 1000))
    found, refused = dict[int, tuple[float, ...]](), None
    for n in [n for n in _TRIED if n < most]:
        try:
            found[n] = visits(n)
        except ValueError as error:
            refused = error
    if refused is not None and not found:
        raise refused
    return found


def _same(path: NoisePath, times: tuple[float, ...]) -> bool:
    """Whether a path's own rule gives these levels."""
    own = path.levels(len(times))
    return all(math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-3) for a, b in zip(times, own, strict=True))


def shift_of(scheduler: Any, tokens: int) -> Mapping[str, float]:
    """What a flow's scheduler that shifts by the image's size is told for so many tokens (Esser et al. 2024, S5.3.2); nothing else.

    mu runs linearly from `base_shift` at `base_image_seq_len` tokens to `max_shift` at `max_image_seq_len`; the shift is exp(mu), or mu.
    """
    settings = scheduler.config
    if not settings.get("use_dynamic_shifting"):
        return {}
    few, many = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
    low, high = settings.get("base_shift", 0.5), settings.get("max_shift", 1.15)
    slope = (high - low) / (many - few)
    return {"mu": tokens * slope + (low - slope * few)}


def distilled(scheduler: Any) -> dict[str, str]:
    """What identifies a network that was distilled to leap to data (LCM, TCD): it gives no E[x_0 | x_t], and its steps have no inverse."""
    kind = type(scheduler).__name__
    return {"distilled": kind} if kind in {"LCMScheduler", "TCDScheduler"} else {}


def digest_settings(scheduler: Any) -> str:
    """A scheduler's class and a digest of its settings, by which a run knows it again."""
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    told = json.dumps(settings, sort_keys=True, default=str)
    return f"{type(scheduler).__name__}/{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def described(scheduler: Any) -> str:
    """A scheduler in words: its class, how it spaces its steps, what its network predicts, and whether its noisiest level is pure noise."""
    settings = scheduler.config
    spaced = [name.removeprefix("use_") for name in SPACINGS if settings.get(name)]
    words = [type(scheduler).__name__, str(settings.get("timestep_spacing") or ""), *spaced]
    shift = settings.get("flow_shift" if settings.get("use_flow_sigmas") else "shift")
    if shift and not settings.get("use_dynamic_shifting"):
        words.append(f"shift {shift:g}")
    if settings.get("rescale_betas_zero_snr"):
        words.append("zero terminal SNR")
    words.append(str(settings.get("prediction_type") or ""))
    return ", ".join(word.replace("_", " ") for word in words if word)


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
