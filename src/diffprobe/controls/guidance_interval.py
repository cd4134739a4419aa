"""Guidance on an interval of noise levels (Kynkaanniemi et al. 2024): proposed from a profile, applied to a deployed pipeline."""

from __future__ import annotations

import inspect
import math
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from diffprobe.adapters.pipelines import network_of
from diffprobe.adapters.schedulers import path_of, shown_ratio
from diffprobe.errors import UserError, unknown
from diffprobe.measures.stats import Estimate
from diffprobe.paths import NoisePath

#: A pipeline keeps its clock in float32: a level this near, relatively, to an end of the interval is taken to be that end.
SLACK = 1e-4

#: The modules whose frames lie between a pipeline and the hooks of its network.
_MACHINERY = re.compile(r"(torch|accelerate|diffusers\.hooks|" + re.escape(__name__) + r")(\.|$)")


@dataclass(frozen=True)
class GuidanceInterval:
    """The levels with lo < sigma <= hi, sigma the noise-to-signal ratio. Raises UserError where no level can lie between."""

    lo: float = 0.0
    hi: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.lo < self.hi:
            raise UserError(
                f"guidance acts where lo < sigma <= hi, and nothing lies between {self.lo:g} and {self.hi:g}: give 0 <= lo < hi"
            )

    def guides(self, sigma: float) -> bool:
        """Whether guidance acts at this level."""
        return sigma > self.lo * (1 + SLACK) and sigma <= self.hi * (1 + SLACK)

    def share(self, path: NoisePath, num_inference_steps: int) -> float:
        """The share of a path's own `num_inference_steps` levels that are guided."""
        return self._guided(path, num_inference_steps) / num_inference_steps

    def evaluations(self, path: NoisePath, num_inference_steps: int) -> int:
        """Network evaluations a sample: two at a guided level, one at any other. Full guidance takes 2 `num_inference_steps`."""
        return num_inference_steps + self._guided(path, num_inference_steps)

    def _guided(self, path: NoisePath, num_inference_steps: int) -> int:
        return sum(self.guides(float(path.ratio(t))) for t in path.levels(num_inference_steps))


def propose(estimates: Iterable[Estimate], *, partition: str | None = None) -> GuidanceInterval:
    """The interval in which the class decides: where a speciation run found production above half its peak.

    Reads the `window_lo` and `window_hi` in sigma of every partition (facet "partition") and spans them, from the lowest to the
    highest, or takes those of one `partition`. A window that lacks one end is open there, since production is still as high where
    the levels end; partitions without either count only where none has one, and windows of guided trajectories (facet "guidance")
    do not. Guidance moves samples most while their class is open, which is why this is where it is proposed; that images gain by
    it is not implied: measure it. Raises UserError where there is no window, with the reason.
    """
    found = [e for e in estimates if e.quantity in ("window_lo", "window_hi") and e.unit == "sigma" and "guidance" not in e.facets]
    if not found:
        raise UserError("no window of decision among these estimates: give those of a run of the speciation probe")
    names = {str(e.facets.get("partition", "")) for e in found}
    if partition is not None and partition not in names:
        raise unknown("partition", partition, names)
    asked = [e for e in found if partition is None or e.facets.get("partition") == partition]
    ends: dict[str, dict[str, float]] = {}
    for e in asked:
        if e.value is not None:
            ends.setdefault(str(e.facets.get("partition", "")), {})[e.quantity] = e.value
    if not ends:
        why = next((e.reason for e in asked if e.reason), "none of its windows has an end")
        raise UserError(f"no interval to propose for {'any partition' if partition is None else repr(partition)}: {why}")
    return GuidanceInterval(
        min(window.get("window_lo", 0.0) for window in ends.values()), max(window.get("window_hi", math.inf) for window in ends.values())
    )


class Applied:
    """An interval at work in a pipeline, until `remove` or the end of a `with` block, which leave the pipeline as it was."""

    def __init__(self, limit: _Limit, handles: Sequence[Any]) -> None:
        self._limit, self._handles = limit, tuple(handles)

    def remove(self) -> None:
        """Let the pipeline guide everywhere again. Harmless when it does already.

        Raises UserError where the pipeline's network was replaced meanwhile, so that the interval no longer acted; warns
        (RuntimeWarning) where the pipeline did not call its network once.
        """
        pipe, network, seen = self._end()
        if pipe is None:
            return
        now = network_of(pipe)
        if now is not None and network not in (now, _plain(now)):
            raise UserError(
                "the network of this pipeline was replaced while an interval was at work, and the new one guided everywhere: "
                "replace the network first, then apply the interval"
            )
        if not seen:
            told = f"the interval never acted: this {type(pipe).__name__} did not call its network between apply and remove"
            warnings.warn(told, RuntimeWarning, stacklevel=2)

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.remove()
        else:
            self._end()

    def _end(self) -> tuple[Any, Any, int]:
        """Take the hooks away; what they acted in and how often, None and None where they are away already."""
        for handle in self._handles:
            handle.remove()
        found = self._limit.pipe, self._limit.network, self._limit.seen
        self._limit.pipe = self._limit.network = None  # copies of the network keep the hooks, and should keep nothing else
        return found


def apply(pipe: Any, interval: GuidanceInterval) -> Applied:
    """Let a deployed diffusers pipeline guide inside the interval alone, from now on or within `with apply(pipe, interval):`.

    For pipelines that guide by one call a step on the batch [negative; positive]: Stable Diffusion 1 to 3.5 and XL, on any
    scheduler, generating and editing, and `ClassConditionalPipeline`. Outside the interval the network gets the second half alone,
    at half the cost, and its answer counts for both, so that the pipeline's own formula, neg + w (pos - neg), gives pos. A
    rescaling of guidance has no effect there; guidance by skipped layers stays as it is. Calls of the network that are not this
    pipeline's pass untouched, also in other threads and in its callbacks; so do those of a copy of the network. Raises UserError
    for a pipeline that guides otherwise or not at all, and for a second interval.
    """
    network = _guided_network(pipe)
    limit = _Limit(pipe, network, interval)
    before, after = torch.compiler.disable(limit.before), torch.compiler.disable(limit.after)  # they ask who calls: no graph can
    return Applied(limit, (network.register_forward_pre_hook(before, with_kwargs=True), network.register_forward_hook(after)))


class _Limit:
    """Hooks around a network's forward, so that whatever else wraps or compiles that is left alone."""

    def __init__(self, pipe: Any, network: Any, interval: GuidanceInterval) -> None:
        self.pipe, self.network = pipe, network
        self.seen = 0
        self._interval = interval
        self._scheduler, self._path = pipe.scheduler, path_of(pipe.scheduler)
        self._names = list(inspect.signature(type(_plain(network)).forward).parameters)[1:]
        self._calls = {inspect.unwrap(vars(kind)["__call__"]).__code__ for kind in type(pipe).__mro__ if "__call__" in vars(kind)}
        self._spared: dict[int, int] = {}  # how many rows a call had, by the frame that it comes from

    def before(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Outside the interval, the second half of everything that has a row a sample."""
        caller = self._caller(network)
        if caller is None:
            return None
        self.seen += 1
        self._spared.pop(caller, None)  # left by a call that failed
        given = dict(zip(self._names, args, strict=False)) | kwargs
        if not self.pipe.do_classifier_free_guidance or given.get("skip_layers") is not None:
            return None
        x = given[self._names[0]]
        rows = len(x)
        if rows % 2 or not torch.allclose(x[: rows // 2], x[rows // 2 :], rtol=0, atol=0, equal_nan=True):
            raise _other_guidance(type(self.pipe))
        if self.pipe.scheduler is not self._scheduler:
            self._scheduler, self._path = self.pipe.scheduler, path_of(self.pipe.scheduler)
        if self._interval.guides(shown_ratio(self._scheduler, self._path, given["timestep"])):
            return None
        self._spared[caller] = rows
        return tuple(_second_half(value, rows) for value in args), {name: _second_half(value, rows) for name, value in kwargs.items()}

    def after(self, network: Any, args: tuple[Any, ...], output: Any) -> Any:
        """The answer to a second half, twice."""
        caller = self._caller(network)
        rows = None if caller is None else self._spared.pop(caller, None)
        if rows is None:
            return None
        answer = output[0] if isinstance(output, tuple) else output.sample
        if len(answer) != rows // 2:
            raise UserError(f"the network was asked for {rows // 2} rows and gave {len(answer)}: remove what else changes its answers")
        twice = torch.cat([answer, answer])
        return (twice, *output[1:]) if isinstance(output, tuple) else replace(output, sample=twice)

    def _caller(self, network: Any) -> int | None:
        """The identity of the frame in which this pipeline asks; None where something else does, or where a copy is asked.

        A network may serve another pipeline too, or a denoiser, also within this pipeline's callbacks, and their batches mean other
        things. So what asks must be the pipeline itself, with nothing between but the machinery of calling a network.
        """
        if network is not self.network:
            return None
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and _MACHINERY.match(frame.f_globals.get("__name__", "")):
            frame = frame.f_back
        own = frame is not None and frame.f_code in self._calls and frame.f_locals.get("self") is self.pipe
        return id(frame) if own else None


def _guided_network(pipe: Any) -> Any:
    """The network of a pipeline that can guide on an interval; raises UserError for one that cannot, with the reason."""
    kind = type(pipe)
    if not hasattr(pipe, "scheduler") or not (hasattr(pipe, "unet") or hasattr(pipe, "transformer")):
        raise UserError(f"a {kind.__name__} is no diffusers pipeline: give the pipeline itself, such as model.generator.pipe")
    network = network_of(pipe)
    settings = network.config
    if getattr(settings, "guidance_embeds", False) or getattr(settings, "time_cond_proj_dim", None) is not None:
        raise UserError(f"the guidance of this {kind.__name__} is distilled into its network, which runs once a step: no interval applies")
    if hasattr(kind, "image_guidance_scale") or not hasattr(kind, "do_classifier_free_guidance"):
        raise _other_guidance(kind)
    hooks = (*network._forward_pre_hooks.values(), *_plain(network)._forward_pre_hooks.values())
    limits = (getattr(inspect.unwrap(hook), "__self__", None) for hook in hooks)
    if any(isinstance(limit, _Limit) and limit.pipe is pipe for limit in limits):
        raise UserError("this pipeline guides on an interval already: remove that one first")
    return network


def _other_guidance(kind: type) -> UserError:
    return UserError(f"a {kind.__name__} does not guide by one call on the batch [negative; positive]: no interval can be applied to it")


def _plain(network: Any) -> Any:
    """The network inside what `torch.compile` returns."""
    return getattr(network, "_orig_mod", network)


def _second_half(value: Any, rows: int) -> Any:
    """A tensor of `rows` rows as its second half, also inside lists, tuples and mappings; anything else as it is."""
    if isinstance(value, Tensor):
        return value[rows // 2 :] if value.ndim and len(value) == rows else value
    if isinstance(value, Mapping):
        return {key: _second_half(inner, rows) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_second_half(inner, rows) for inner in value)
    return value
