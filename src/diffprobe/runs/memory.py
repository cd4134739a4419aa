"""Planned memory: what each kind of call takes of a model, found on the meta device, and what a probe's heaviest calls come to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffprobe.errors import UserError
from diffprobe.inversion.null_text import states_of, with_states
from diffprobe.measures.geometry.maps import gradients
from diffprobe.measures.geometry.memory import fitting
from diffprobe.measures.geometry.passes import pull
from diffprobe.model import Model
from diffprobe.probes.base import Load, Probe
from diffprobe.runs.storages import kept, peak

#: Numbers of rows at which a forward, and a graph, are tried; what lies between and beyond follows the line through them.
_FORWARD, _GRAPH = (2, 8), (1, 2)
#: How many rows a deployed pipeline shows its network for one guided image, where they are not two.
_SIDES = {"StableDiffusionInstructPix2Pix": 3, "Flux": 1, "DDPM": 1, "DDIM": 1}
#: What parts of a pipeline are called that denoise, and that turn latents into images; all others read prompts.
_NETWORKS, _CODECS = frozenset({"unet", "transformer"}), frozenset({"vae"})


class Line(NamedTuple):
    """Bytes that a call takes beyond the weights, by its rows: `fixed`, and so many a `row`."""

    fixed: int = 0
    row: int = 0

    def at(self, rows: int) -> int:
        """The bytes of a call of so many rows; none of no row."""
        return self.fixed + self.row * rows if rows else 0


NOTHING = Line()


@dataclass(frozen=True)
class Primitives:
    """What a model takes at one size, in bytes: its `weights` by part, and beyond them each kind of call; 0 for what was not asked.

    `network`, `encode` and `decode` are forwards alone; `graph` is a decoding with backward passes through it, whose graph keeps
    `kept` a row; `tuned` and `chained` are the same of the network. An image has `outputs` numbers, and a guided one takes
    `sides` rows of the network.
    """

    weights: Mapping[str, int]
    network: Line = NOTHING
    encode: Line = NOTHING
    decode: Line = NOTHING
    graph: Line = NOTHING
    kept: int = 0
    tuned: Line = NOTHING
    chained: int = 0
    outputs: int = 0
    sides: int = 2


class Foreseen(NamedTuple):
    """What a model takes, and what a probe asks of it."""

    takes: Primitives
    load: Load


def primitives(model: Model, wanted: Load, size: int | None = None) -> Primitives:
    """What the kinds of calls that `wanted` has take of a model at a size in pixels (None: its native one).

    Of a model on the meta device nothing is computed, and no memory taken. Anywhere else the calls are made, on up to eight rows:
    that is for models as small as the exact worlds.
    """
    shape, image = shapes(model, size)
    found: dict[str, Any] = {"weights": weights(model), "sides": _SIDES.get(model.identity.get("family", ""), 2)}
    with torch.no_grad():
        if model.denoiser is not None and shape:
            found |= _network(model, shape, wanted)
        if model.codec is not None and shape:
            found |= _codec(model, shape, image, wanted)
    return Primitives(**found)


def planned(asked: Foreseen, device: torch.device, memory: int | None = None) -> int:
    """The bytes that a probe needs on a device: all weights, and the largest of its calls.

    The decoder's graph has as many rows as `measures.geometry.memory` lets it have on a device of so much `memory` (None: what the
    device of this kind has here), and beside it lie the directions that it is projected on.
    """
    takes, load = asked
    calls = (
        takes.network.at(max(load.network, takes.sides * load.guided)),
        takes.encode.at(load.encode),
        takes.decode.at(load.decode),
        takes.tuned.at(load.tuned),
        _mapped(takes, load, device, memory) if load.graph else 0,
    )
    return load.models * sum(takes.weights.values()) + max(calls)


def foreseen(model: Model, probes: Iterable[Probe], batch_size: int, size: int | None = None) -> dict[str, Foreseen]:
    """What each probe asks of a model at a batch size, by the probe's name, and what that takes; at a size in pixels, or (None) its own.

    Raises UserError where the model does not run at that size.
    """
    loads = {probe.name: probe.load(batch_size) for probe in probes}
    sides = {name: size or load.side for name, load in loads.items()}
    takes = {side: _tried(model, [loads[name] for name, own in sides.items() if own == side], side) for side in {*sides.values()}}
    return {name: Foreseen(takes[sides[name]], load) for name, load in loads.items()}


def _tried(model: Model, loads: Sequence[Load], side: int) -> Primitives:
    try:
        return primitives(model, reduce(Load.with_largest, loads), side or None)
    except (RuntimeError, ValueError) as error:
        told = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        where = f"{side} pixels" if side else "its native size"
        raise UserError(f"'{model.name}' does not run at {where} ({told}): leave the size out, or take a multiple of 64") from error


def memory_of(device: torch.device) -> int | None:
    """The bytes that a device has in all; None where it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.type == "cpu" and hasattr(os, "sysconf") else None


def gibibytes(number: int) -> str:
    """Bytes of memory as they are told of devices."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def weights(model: Model) -> dict[str, int]:
    """The bytes of a model's parameters and buffers by part, each once. What is neither network nor codec counts as text encoders."""
    parts, seen = {"network": 0, "codec": 0, "text encoders": 0}, set[int]()
    for part, holder in (("network", model.denoiser), ("codec", model.codec), ("text encoders", (model.generator, model.editor))):
        for name, module in modules(holder):
            place = "network" if name in _NETWORKS else "codec" if name in _CODECS else part
            parts[place] += _bytes(module, seen)
    return parts


def instruments(held: Iterable[object]) -> int:
    """The bytes of the weights of instruments: embedders, distances, scorers."""
    seen = set[int]()
    return sum(_bytes(module, seen) for _, module in modules(tuple(held)))


def modules(holder: object, name: str = "", depth: int = 4) -> Iterator[tuple[str, nn.Module]]:
    """The networks that an object holds in its fields, or a pipeline among its parts, and so on down, each by the name of its field."""
    if isinstance(holder, nn.Module):
        yield name, holder
    elif depth:
        for key, one in _held(holder, name):
            yield from modules(one, key, depth - 1)


def shapes(model: Model, size: int | None = None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of a latent and of an image, at a size in pixels or the native one; empty where the model does not say."""
    shape = model.shape or ()
    if not shape or model.codec is None:
        return shape, ()
    with torch.no_grad():
        image = tuple(model.codec.decode(torch.zeros(1, *shape, device=model.device)).shape[1:])
    if size is None:
        return shape, image
    latent = size * shape[-1] // image[-1]
    return (*shape[:-2], latent, latent), (*image[:-2], size, size)


def _mapped(takes: Primitives, load: Load, device: torch.device, memory: int | None) -> int:
    """The bytes of the map that geometry differentiates, with its directions; two rows are tried first, where there is room."""
    chained = load.chain * takes.chained
    row = takes.kept + chained
    rows = min(load.graph, fitting(row, device, memory))
    tried = row if memory is not None and 2 * row > memory else 2 * row
    return max(takes.graph.at(rows) + rows * chained, tried) + 4 * load.directions * takes.outputs


def _network(model: Model, shape: tuple[int, ...], wanted: Load) -> dict[str, Any]:
    if not (wanted.network or wanted.guided or wanted.tuned or wanted.chain):
        return {}
    assert model.denoiser is not None
    denoiser, t = model.denoiser, 0.5 if model.path is None else float(model.path.levels(3)[-1])

    def start(rows: int) -> Tensor:
        return torch.zeros(rows, *shape, device=model.device)

    def forward(rows: int) -> Tensor:
        return denoiser(start(rows), t, conditions[rows])

    def graph(rows: int) -> tuple[Tensor, Tensor]:
        """The sum of the answers, and what null-text tunes of the condition; x where the condition holds nothing of the kind."""
        x, cond = start(rows), conditions[rows]
        if _tunable(cond):
            leaf = states_of(cond).float().requires_grad_()
            return denoiser(x, t, with_states(cond, leaf)).sum(), leaf
        return denoiser(x.requires_grad_(), t, cond).sum(), x

    def back(rows: int) -> None:
        with gradients():
            torch.autograd.grad(*graph(rows))

    # A prompt is encoded before, and what a first call keeps for later ones is kept.
    conditions = {rows: None if model.condition is None else model.condition([""] * rows) for rows in {1, *_FORWARD, *_GRAPH}}
    forward(1)
    found: dict[str, Any] = {"network": _line(forward, _FORWARD)}
    if wanted.tuned or wanted.chain:
        one, two = (kept(partial(graph, rows)) for rows in _GRAPH)
        found |= {"tuned": _line(back, _GRAPH), "chained": two - one}
    return found


def _codec(model: Model, shape: tuple[int, ...], image: tuple[int, ...], wanted: Load) -> dict[str, Any]:
    assert model.codec is not None
    codec, outputs, device = model.codec, prod(image), model.device

    def latents(rows: int) -> Tensor:
        return torch.zeros(rows, *shape, device=device)

    def mapped(z: Tensor) -> Tensor:
        return 2 * codec.decode(z) - 1

    def graph(rows: int) -> Tensor:
        return mapped(latents(rows).requires_grad_())

    def back(rows: int) -> Tensor:  # the second direction makes the first one keep the graph
        return pull(mapped, latents(rows), rows, torch.zeros(2, outputs, device=device), outputs)

    found: dict[str, Any] = {"outputs": outputs}
    if wanted.encode:
        found["encode"] = _line(lambda rows: codec.encode(torch.zeros(rows, *image, device=device)), _FORWARD)
    if wanted.decode:
        found["decode"] = _line(lambda rows: codec.decode(latents(rows)), _FORWARD)
    if wanted.graph:
        one, two = (kept(partial(graph, rows)) for rows in _GRAPH)
        found |= {"graph": _line(back, _GRAPH), "kept": max(two - one, 4 * outputs)}
    return found


def _line(call: Callable[[int], object], rows: tuple[int, int]) -> Line:
    """The peak of a call by its rows, through two numbers of them."""
    few, many = (peak(partial(call, count)) for count in rows)
    row = max(0, (many - few) // (rows[1] - rows[0]))
    return Line(max(0, many - row * rows[1]), row)


def _tunable(condition: Any) -> bool:
    states = getattr(condition, "states", condition)
    return isinstance(states, Tensor) and states.is_floating_point()


def _held(holder: object, name: str) -> Iterator[tuple[str, object]]:
    """The fields of an object, the parts of a pipeline, or the members of a collection, each with its name or that of the collection."""
    if isinstance(holder, tuple | list):
        yield from ((name, one) for one in holder)
    else:
        parts = holder if isinstance(holder, Mapping) else getattr(holder, "components", None)
        yield from (parts if isinstance(parts, Mapping) else getattr(holder, "__dict__", {})).items()


def _bytes(module: nn.Module, seen: set[int]) -> int:
    """The bytes of a module's parameters and buffers that were not counted before."""
    held = [part for part in (*module.parameters(), *module.buffers()) if id(part) not in seen]
    seen.update(map(id, held))
    return sum(part.nbytes for part in held)
