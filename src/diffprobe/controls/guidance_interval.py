"""Guidance on an interval of noise levels (Kynkaanniemi et al. 2024): proposed from a profile, applied to a deployed pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffprobe.controls.deployed import Applied, Calls, at_work, network_in
from diffprobe.errors import UserError, unknown
from diffprobe.measures.stats import Estimate
from diffprobe.paths import NoisePath

#: A pipeline keeps its clock in float32: a level this near, relatively, to an end of the interval is taken to be that end.
SLACK = 1e-4


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
    hooks = network.register_forward_pre_hook(before, with_kwargs=True), network.register_forward_hook(after)
    return Applied(limit.calls, hooks, ("an interval", "guided everywhere"))


class _Limit:
    """Hooks around a network's forward, so that whatever else wraps or compiles that is left alone."""

    def __init__(self, pipe: Any, network: Any, interval: GuidanceInterval) -> None:
        self.calls = Calls(pipe, network)
        self._interval = interval
        self._spared: dict[int, int] = {}  # how many rows a call had, by the frame that it comes from

    def before(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Outside the interval, the second half of everything that has a row a sample."""
        caller = self.calls.caller(network)
        if caller is None:
            return None
        self.calls.seen += 1
        self._spared.pop(caller, None)  # left by a call that failed
        given, pipe = self.calls.given(args, kwargs), self.calls.pipe
        if not pipe.do_classifier_free_guidance or given.get("skip_layers") is not None:
            return None
        x = given[self.calls.names[0]]
        rows = len(x)
        if rows % 2 or not torch.allclose(x[: rows // 2], x[rows // 2 :], rtol=0, atol=0, equal_nan=True):
            raise _other_guidance(type(pipe))
        if self._interval.guides(self.calls.level(given["timestep"])[1]):
            return None
        self._spared[caller] = rows
        return tuple(_second_half(value, rows) for value in args), {name: _second_half(value, rows) for name, value in kwargs.items()}

    def after(self, network: Any, args: tuple[Any, ...], output: Any) -> Any:
        """The answer to a second half, twice."""
        caller = self.calls.caller(network)
        rows = None if caller is None else self._spared.pop(caller, None)
        if rows is None:
            return None
        answer = output[0] if isinstance(output, tuple) else output.sample
        if len(answer) != rows // 2:
            raise UserError(f"the network was asked for {rows // 2} rows and gave {len(answer)}: remove what else changes its answers")
        twice = torch.cat([answer, answer])
        return (twice, *output[1:]) if isinstance(output, tuple) else replace(output, sample=twice)


def _guided_network(pipe: Any) -> Any:
    """The network of a pipeline that can guide on an interval; raises UserError for one that cannot, with the reason."""
    network, kind = network_in(pipe), type(pipe)
    settings = network.config
    if getattr(settings, "guidance_embeds", False) or getattr(settings, "time_cond_proj_dim", None) is not None:
        raise UserError(f"the guidance of this {kind.__name__} is distilled into its network, which runs once a step: no interval applies")
    if hasattr(kind, "image_guidance_scale") or not hasattr(kind, "do_classifier_free_guidance"):
        raise _other_guidance(kind)
    if at_work(pipe, network, _Limit):
        raise UserError("this pipeline guides on an interval already: remove that one first")
    return network


def _other_guidance(kind: type) -> UserError:
    return UserError(f"a {kind.__name__} does not guide by one call on the batch [negative; positive]: no interval can be applied to it")


def _second_half(value: Any, rows: int) -> Any:
    """A tensor of `rows` rows as its second half, also inside lists, tuples and mappings; anything else as it is."""
    if isinstance(value, Tensor):
        return value[rows // 2 :] if value.ndim and len(value) == rows else value
    if isinstance(value, Mapping):
        return {key: _second_half(inner, rows) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_second_half(inner, rows) for inner in value)
    return value
